"""Which engines the steps of recordings use: the settings' classes with their models."""

import os
from collections.abc import Callable
from typing import Any

from callcore import argos_packages, model_store
from callcore.inference import EngineSpec
from callcore.settings import Settings

#: Our engines that can compute on a GPU; others are not told of the setting.
_ON_DEVICES = (
    "callcore.engines.batch_whisper:BatchWhisper",
    "callcore.engines.live_whisper:LiveWhisper",
)


def device_options(engine: str, device: str) -> dict[str, Any]:
    """Return the options that tell an engine to compute elsewhere than on the processor."""
    return {"device": device} if device != "cpu" and engine in _ON_DEVICES else {}


def endpoint_options(site: Settings) -> dict[str, Any]:
    """Return the options of the engines that ask the transcription endpoint."""
    return {
        "url": site.transcription_url,
        "model": site.transcription_model,
        "key": site.transcription_key,
        "connections": site.transcription_connections,
    }


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
        side_by_side = max(2, site.worker_threads)
        if site.recordings_are_remote:
            remote = "callcore.engines.transcription_endpoint:RecordingEndpoint"
            return EngineSpec(remote, endpoint_options(site), threads=side_by_side)
        options = {"model": folder(site.model), "threads": cores}
        return EngineSpec(
            site.transcriber,
            {**options, **device_options(site.transcriber, site.device)},
            threads=side_by_side,
        )

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
