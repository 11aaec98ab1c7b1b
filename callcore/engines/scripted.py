"""Deterministic engines for tests: what they answer follows from samples or texts alone.

A sound is a stretch of samples at one constant level, at least ``_SHORTEST_S`` long and above
``_QUIET``; it is the word ``w<level>``, level in int16. So a test writes words by writing levels,
and can tell what was lost, cut in two or heard twice. The options make engines slow, failing or
deadly at chosen calls.
"""

import os
import re
import signal
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from callcore.engines import (
    LIVE_RATE,
    DecodeJob,
    Floats,
    FoundSpan,
    Hypothesis,
    Samples,
    TranscribedSegment,
)
from callcore.errors import EngineError
from callcore.results import Word

#: Level (int16) that is silence.
_QUIET = 300

#: Level (int16) above which a sound is the other voice.
_LOUD = 8000

_SHORTEST_S = 0.03

_RECORDING_RATE = 16_000

#: Silence that separates two segments of a recording.
_SEGMENT_GAP_S = 0.5


@dataclass
class Misbehaviour:
    """What an engine does beside its work, by the number of its calls."""

    delay_s: float = 0.0
    """Seconds that each call takes longer."""
    fail_times: int = 0
    """So many first calls raise EngineError."""
    crash_once: str = ""
    """Path of a file: the process that can create it kills itself at its first call."""
    _calls: int = field(default=0, init=False)

    def misbehave(self) -> None:
        """Do what is due at this call."""
        self._calls += 1
        if self.crash_once:
            try:
                Path(self.crash_once).touch(exist_ok=False)
            except FileExistsError:
                pass
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        if self.delay_s:
            time.sleep(self.delay_s)
        if self._calls <= self.fail_times:
            raise EngineError("scripted", f"failure {self._calls} of {self.fail_times}")


def sounds(levels: npt.NDArray[Any], rate: int) -> list[Word]:
    """Return the words that the samples hold, times in seconds.

    Args:
        levels: Shape (n,), in int16 units.
        rate: Hz.
    """
    magnitudes = np.abs(levels.astype(np.int32))
    if not len(magnitudes):
        return []
    changes = np.flatnonzero(np.diff(magnitudes)) + 1
    begins = np.concatenate([[0], changes])
    ends = np.concatenate([changes, [len(magnitudes)]])
    return [
        Word(f"w{magnitudes[begin]}", float(begin) / rate, float(end) / rate, 1.0)
        for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)
        if magnitudes[begin] >= _QUIET and end - begin >= _SHORTEST_S * rate
    ]


class ScriptedDetector(Misbehaviour):
    """Calls a window speech when it is loud; its state counts windows."""

    window = 256

    def initial_state(self) -> Floats:
        """Return a count of zero."""
        return np.zeros(1, np.float32)

    def probabilities(
        self, samples: list[Samples], states: list[Floats]
    ) -> tuple[list[Floats], list[Floats]]:
        """Return 1 for windows of a mean level above a third of silence's limit, else 0."""
        self.misbehave()
        results = []
        for each in samples:
            levels = np.abs(each.astype(np.float32)).reshape(-1, self.window).mean(axis=1)
            results.append((levels > _QUIET / 3).astype(np.float32))
        counts = [state + len(each) for state, each in zip(states, results, strict=True)]
        return results, counts


class ScriptedLiveTranscriber(Misbehaviour):
    """Hears the sounds of a job."""

    def decode(self, jobs: list[DecodeJob]) -> list[Hypothesis]:
        """Return ``w<level> w<level> ...`` for each job."""
        self.misbehave()
        return [self._hypothesis(job) for job in jobs]

    def _hypothesis(self, job: DecodeJob) -> Hypothesis:
        words = tuple(sounds(job.samples, LIVE_RATE))
        text = " ".join(word.w for word in words)
        return Hypothesis(text, words if job.words else (), job.language or "en")


class ScriptedTranscriber(Misbehaviour):
    """Hears loud stretches of a recording: ``sound 1.5 2.3`` from 1.5 s to 2.3 s."""

    name = "scripted"
    model = "loudness"
    version = "1"

    @property
    def parameters(self) -> dict[str, Any]:
        """Return what the result depends on."""
        return {"quiet": _QUIET, "gap_s": _SEGMENT_GAP_S}

    def transcribe(
        self, samples: Floats, language: str | None, hotwords: str | None = None
    ) -> Iterator[TranscribedSegment]:
        """Yield a segment of three words for each loud stretch."""
        self.misbehave()
        for start, end in self._loud(samples):
            texts = ("sound", f"{start:.1f}", f"{end:.1f}")
            step = (end - start) / len(texts)
            words = tuple(
                Word(text, start + i * step, start + (i + 1) * step, 1.0)
                for i, text in enumerate(texts)
            )
            yield TranscribedSegment(start, end, " ".join(texts), words, language or "en", 0.0, 0.0)

    def translate(self, samples: Floats, language: str | None) -> Iterator[TranscribedSegment]:
        """Yield the same: it is English already."""
        yield from self.transcribe(samples, language)

    def _loud(self, samples: Floats) -> Iterator[tuple[float, float]]:
        loud = np.flatnonzero(np.abs(samples) > _QUIET / 32768)
        if not len(loud):
            return
        gaps = np.flatnonzero(np.diff(loud) > _SEGMENT_GAP_S * _RECORDING_RATE)
        begins = loud[np.concatenate([[0], gaps + 1])]
        ends = loud[np.concatenate([gaps, [len(loud) - 1]])]
        for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
            yield begin / _RECORDING_RATE, (end + 1) / _RECORDING_RATE


class ScriptedSpeakerEncoder(Misbehaviour):
    """Takes two levels for two voices: up to 8000 one, above it the other."""

    name = "scripted"
    model = "loudness"
    version = "1"

    @property
    def parameters(self) -> dict[str, Any]:
        """Return what the result depends on."""
        return {}

    def embed(self, windows: list[Floats]) -> Floats:
        """Return a vector of length 1 for each window: how much of either level it holds."""
        self.misbehave()
        vectors = np.empty((len(windows), 2), np.float32)
        for number, window in enumerate(windows):
            levels = np.abs(window) * 32768
            vectors[number] = (levels > _QUIET).sum() + 1, 20 * (levels > _LOUD).sum()
        result: Floats = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return result


class _OfTexts(Misbehaviour):
    """An engine of the steps that read texts.

    Args:
        delay_s: As in ``Misbehaviour``.
        fail_times: As in ``Misbehaviour``.
        crash_once: As in ``Misbehaviour``.
        **_options: What engines with models are given.
    """

    name = "scripted"
    version = "1"

    def __init__(
        self, delay_s: float = 0.0, fail_times: int = 0, crash_once: str = "", **_options: Any
    ) -> None:
        super().__init__(delay_s, fail_times, crash_once)

    @property
    def parameters(self) -> dict[str, Any]:
        """Return what the result depends on."""
        return {}


class ScriptedTranslator(_OfTexts):
    """Knows Spanish and French, and translates each word into itself, marked."""

    model = "marks"

    def pairs(self) -> list[tuple[str, str]]:
        """Return what it translates: from, to."""
        return [("es", "en"), ("fr", "en")]

    def translate(self, texts: list[str], source: str, target: str) -> list[str]:
        """Return ``word-en`` for each word."""
        self.misbehave()
        return [" ".join(f"{word}-{target}" for word in text.split()) for text in texts]


class ScriptedEntityRecognizer(_OfTexts):
    """Takes each word with a capital for the name of a person."""

    model = "capitals"

    def languages(self) -> list[str]:
        """Return the languages that it knows."""
        return ["en"]

    def recognize(self, texts: list[str], language: str) -> list[list[FoundSpan]]:
        """Return the words with a capital."""
        self.misbehave()
        return [
            [
                FoundSpan("PERSON", found.start(), found.end(), 1.0)
                for found in re.finditer(r"\b[A-Z][a-z]+", text)
            ]
            for text in texts
        ]


class ScriptedEmbedder(_OfTexts):
    """Counts words: texts are alike that share many."""

    model = "words"
    _SIZE = 64

    def embed(self, texts: list[str]) -> Floats:
        """Return a vector of length 1 for each text."""
        self.misbehave()
        vectors = np.full((len(texts), self._SIZE), 1e-3, np.float32)
        for row, text in zip(vectors, texts, strict=True):
            for word in text.lower().split():
                row[zlib.crc32(word.encode()) % self._SIZE] += 1
        result: Floats = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return result


class ScriptedSentiment(_OfTexts):
    """Hears joy in ``good`` and sorrow in ``bad``."""

    model = "two words"

    def score(self, texts: list[str], language: str) -> list[float | None]:
        """Return five points for each; None where the language is not English."""
        self.misbehave()
        return [self._score(text) if language == "en" else None for text in texts]

    def _score(self, text: str) -> float:
        words = text.lower().split()
        return float(max(-5, min(5, 5 * (words.count("good") - words.count("bad")))))
