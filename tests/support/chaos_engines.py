"""Scripted engines that fail at one content in twenty, the first time that they meet it."""

import contextlib
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from callcore.engines import Floats, FoundSpan, TranscribedSegment
from callcore.engines.scripted import (
    ScriptedEmbedder,
    ScriptedEntityRecognizer,
    ScriptedSentiment,
    ScriptedTranscriber,
)
from callcore.errors import EngineError

#: Contents of a hundred that fail.
_PERCENT = 5
#: Seconds that a transcription takes, so that a kill hits some.
_DELAY_S = 0.05


def _meet(engine: object, content: bytes) -> None:
    """Fail at some contents, once each, whichever process meets them.

    A process that remembered for itself would fail again after each kill, until the waits between
    two tries are minutes.
    """
    key = zlib.crc32(content)
    if key % 100 < _PERCENT:
        met = Path(os.environ["CALLCORE_STATE_DIR"], "faults", f"{type(engine).__name__}-{key}")
        met.parent.mkdir(exist_ok=True)
        with contextlib.suppress(FileExistsError):
            met.touch(exist_ok=False)
            raise EngineError("scripted", "a fault that its content has")


class FaultyTranscriber(ScriptedTranscriber):
    def __init__(self, **_options: Any) -> None:
        super().__init__(delay_s=_DELAY_S)

    def transcribe(
        self, samples: Floats, language: str | None, hotwords: str | None = None
    ) -> Iterator[TranscribedSegment]:
        _meet(self, samples.tobytes())
        yield from super().transcribe(samples, language, hotwords)


class FaultyEntityRecognizer(ScriptedEntityRecognizer):
    def recognize(self, texts: list[str], language: str) -> list[list[FoundSpan]]:
        _meet(self, "".join(texts).encode())
        return super().recognize(texts, language)


class FaultyEmbedder(ScriptedEmbedder):
    def embed(self, texts: list[str]) -> Floats:
        _meet(self, "".join(texts).encode())
        return super().embed(texts)


class FaultySentiment(ScriptedSentiment):
    def score(self, texts: list[str], language: str) -> list[float | None]:
        _meet(self, "".join(texts).encode())
        return super().score(texts, language)
