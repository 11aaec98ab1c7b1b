"""Entities by spaCy pipelines, one a language."""

import warnings
from typing import Any

import spacy
from spacy.about import __version__ as SPACY_VERSION
from spacy.language import Language

from callcore.engines import FoundSpan
from callcore.errors import EngineError, ModelError

#: Parts of pipelines that entities do not need: without them it takes a third of the time.
_NOT_NEEDED = (
    "tagger",
    "parser",
    "senter",
    "morphologizer",
    "attribute_ruler",
    "lemmatizer",
    "trainable_lemmatizer",
)
#: Characters that are given to a pipeline at once: memory grows with them.
_MAX_CHARACTERS = 100_000


class SpacyEntities:
    """Finds names, places and dates.

    Args:
        models: Folder of a pipeline by language code.

    Raises:
        ModelError: If a folder holds no pipeline that finds entities.
    """

    name = "spacy"
    version = SPACY_VERSION

    def __init__(self, models: dict[str, str]) -> None:
        self._pipelines = {language: _load(folder) for language, folder in models.items()}
        self.model = ",".join(
            f"{pipeline.meta['lang']}_{pipeline.meta['name']}-{pipeline.meta['version']}"
            for pipeline in self._pipelines.values()
        )
        self.parameters: dict[str, Any] = {
            "pipes": {language: list(each.pipe_names) for language, each in self._pipelines.items()}
        }

    def languages(self) -> list[str]:
        """Return the language codes that it knows."""
        return list(self._pipelines)

    def recognize(self, texts: list[str], language: str) -> list[list[FoundSpan]]:
        """Return the entities of each text, in the order of the texts.

        Raises:
            EngineError: If there is no pipeline for the language, or it fails.
        """
        pipeline = self._pipelines.get(language)
        if pipeline is None:
            raise EngineError(self.name, f"no pipeline for language {language!r}")
        try:
            cut = (text[:_MAX_CHARACTERS] for text in texts)
            return [
                [FoundSpan(each.label_, each.start_char, each.end_char) for each in document.ents]
                for document in pipeline.pipe(cut)
            ]
        except Exception as error:
            # The library's message may quote the text.
            raise EngineError(self.name, type(error).__name__) from None


def _load(folder: str) -> Language:
    try:
        with warnings.catch_warnings():
            # A pipeline of another minor version works; pip's metadata says what fits.
            warnings.simplefilter("ignore", UserWarning)
            pipeline = spacy.load(folder, exclude=list(_NOT_NEEDED))
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(folder, f"is no spaCy pipeline ({type(error).__name__})") from error
    if "ner" not in pipeline.pipe_names:
        raise ModelError(folder, "is a spaCy pipeline that finds no entities")
    shared: Any = pipeline.get_pipe("tok2vec") if "tok2vec" in pipeline.pipe_names else None
    if shared is not None and "ner" not in shared.listening_components:
        pipeline.remove_pipe("tok2vec")
    return pipeline
