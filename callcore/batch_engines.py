"""Which engines the steps of recordings use: the settings' classes with their models."""

import os
from collections.abc import Callable

from callcore import argos_packages, model_store
from callcore.inference import EngineSpec
from callcore.settings import Settings


def batch_engines(site: Settings) -> dict[str, Callable[[], EngineSpec]]:
    """Return, by name in ``Engines``, what makes the spec of each engine.

    A maker raises ModelError if a model is not there.
    """
    # One recording at a time with all cores: its niceness leaves them to live calls.
    cores = os.cpu_count() or 1

    def folder(model: str) -> str:
        return str(model_store.find(site.models_dir, model))

    def transcriber() -> EngineSpec:
        # Several recordings take turns, window by window: a short one need not wait for a long one.
        options = {"model": folder(site.model), "threads": cores}
        return EngineSpec(site.transcriber, options, threads=max(2, site.worker_threads))

    def translator() -> EngineSpec:
        packages = argos_packages.folder_of(site.models_dir)
        return EngineSpec(site.translator, {"packages": str(packages), "threads": cores})

    def summarizer() -> EngineSpec:
        if site.summary_url:
            options = {
                "url": site.summary_url,
                "model": site.summary_model,
                "key": site.summary_key,
            }
            return EngineSpec("callcore.engines.chat_endpoint:ChatEndpoint", options)
        local = {"folder": site.summary_model, "threads": cores}
        return EngineSpec("callcore.engines.seq2seq:Seq2Seq", local)

    def entity_recognizer() -> EngineSpec:
        models = {language: folder(model) for language, model in site.entity_models}
        return EngineSpec(site.entity_recognizer, {"models": models})

    def embedder() -> EngineSpec:
        # Sentences are short: a second thread costs more than it gains.
        options = {"model": folder(site.embedding_model), "threads": 1}
        return EngineSpec(site.embedder, options)

    return {
        "transcriber": transcriber,
        "speaker_encoder": lambda: EngineSpec(site.speaker_encoder),
        "translator": translator,
        "summarizer": summarizer,
        "entity_recognizer": entity_recognizer,
        "embedder": embedder,
        "sentiment": lambda: EngineSpec(site.sentiment),
    }
