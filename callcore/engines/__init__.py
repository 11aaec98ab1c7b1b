"""What an engine is: Protocols, what goes in and what comes out, and ``load("module:attr")``.

An engine is a class; its constructor loads what it needs (a folder of model files is passed in,
engines never look for models) and its methods are pure: everything that belongs to one stream
travels with the call, so a new process can go on where a dead one stopped. One instance serves
all streams; a method may be called by several threads at once where its spec asks for threads.
One file per third-party library.
"""

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from callcore.errors import ConfigError
from callcore.results import Word

Samples = npt.NDArray[np.int16]
Floats = npt.NDArray[np.float32]

#: Hz of everything live: telephone audio is not resampled on its way to the model.
LIVE_RATE = 8000

#: Lengths (s) that live utterances are rounded up to, so that jobs of one batch have one window
#: and the text of a job does not depend on the jobs beside it.
BUCKETS_S = (2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 15.0)


def bucket_s(num_samples: int) -> float:
    """Return the smallest bucket that holds so many samples at 8 kHz, the largest for longer."""
    return next((s for s in BUCKETS_S if num_samples <= s * LIVE_RATE), BUCKETS_S[-1])


@dataclass(frozen=True, slots=True)
class DecodeJob:
    """One utterance, or the beginning of one, to be transcribed."""

    samples: Samples
    """Shape (n,), int16, 8 kHz, at most 15 s."""
    language: str | None
    """Language code such as ``en``; None lets the engine find out."""
    words: bool
    """Whether word times are wanted: finals."""
    speech_s: float
    """Seconds of it that the speech detector took for speech."""
    redo: bool = True
    """Whether a final may take more time: a longer window, at once or where the short one left
    doubts, and a wide beam; False under overload."""
    stream: int = 0
    """Key of the audio that it was cut from: an engine may keep features of one stream from one
    job to the next. 0 where nothing shall be kept."""
    start: int = 0
    """Absolute index in that stream of the first sample."""


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """What an engine heard in one job."""

    text: str
    """Without spaces around it; empty where nothing was said."""
    words: tuple[Word, ...] = ()
    """Times in seconds from the job's first sample; empty unless asked for."""
    language: str | None = None
    """Language code of the text."""
    avg_logprob: float = 0.0
    """Mean log probability of a token, 0 is certain."""
    no_speech_prob: float = 0.0
    """What the model itself says about silence, 0 to 1."""
    language_prob: float = 1.0
    """How sure ``language`` is; 1 where it was given."""


@dataclass(frozen=True, slots=True)
class TranscribedSegment:
    """A span of a recording with its text."""

    start: float
    """Seconds from the first sample."""
    end: float
    text: str
    words: tuple[Word, ...]
    """Times in seconds from the first sample; the stored utterances are made from them."""
    language: str | None
    avg_logprob: float
    no_speech_prob: float
    language_prob: float = 1.0
    """How sure ``language`` is; 1 where it was given."""


class SpeechDetector(Protocol):
    """Tells speech from everything else, window by window, for many streams at once."""

    window: int
    """Samples at 8 kHz that give one probability."""

    def initial_state(self) -> Floats:
        """Return the state of a stream that has not begun."""
        ...

    def probabilities(
        self, samples: list[Samples], states: list[Floats]
    ) -> tuple[list[Floats], list[Floats]]:
        """Return the speech probability of each window, and the states to go on with.

        Args:
            samples: For each stream whole windows of int16 at 8 kHz, in order, without gaps.
            states: For each stream what the call before returned, or ``initial_state()``.
        """
        ...


class LiveTranscriber(Protocol):
    """Transcribes short pieces of live telephone audio, several in one go."""

    def decode(self, jobs: list[DecodeJob]) -> list[Hypothesis]:
        """Return what was said in each job, in the order of the jobs."""
        ...


class Transcriber(Protocol):
    """Transcribes a whole recording, as well as it can."""

    name: str
    """Of the engine, for the stored transcript."""
    model: str
    version: str
    """Of the library."""
    parameters: dict[str, Any]
    """What would be needed to get the same result again."""

    def transcribe(
        self, samples: Floats, language: str | None, hotwords: str | None = None
    ) -> Iterator[TranscribedSegment]:
        """Yield segments ordered by start.

        Args:
            samples: Shape (n,), float32 in [-1, 1], 16 kHz, mono.
            language: Language code; None lets the engine find out.
            hotwords: Names and words that are likely, separated by commas.
        """
        ...

    def translate(self, samples: Floats, language: str | None) -> Iterator[TranscribedSegment]:
        """Yield what was said in English, ordered by start; arguments as for ``transcribe``."""
        ...


class SpeakerEncoder(Protocol):
    """Turns speech into vectors: those of one voice are alike."""

    name: str
    model: str
    version: str
    parameters: dict[str, Any]

    def embed(self, windows: list[Floats]) -> Floats:
        """Return an L2-normalised vector for each window, shape (len(windows), d).

        Args:
            windows: Arrays of shape (n,), float32 in [-1, 1], 16 kHz.
        """
        ...


class Translator(Protocol):
    """Translates text."""

    name: str
    model: str
    version: str
    parameters: dict[str, Any]

    def pairs(self) -> list[tuple[str, str]]:
        """Return the installed pairs of language codes: from, to."""
        ...

    def translate(self, texts: list[str], source: str, target: str) -> list[str]:
        """Return the texts in ``target``, directly or through English."""
        ...


class Summarizer(Protocol):
    """Writes a summary in its own words; what it says is checked by whoever asked."""

    name: str
    model: str
    version: str
    parameters: dict[str, Any]
    max_bytes: int
    """Bytes of UTF-8 of a transcript that it takes at once."""

    def summarize(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the parts of a summary, see ``steps.summarize``."""
        ...


@dataclass(frozen=True, slots=True)
class FoundSpan:
    """An entity in a text."""

    label: str
    """The engine's own, e.g. ``PERSON``."""
    start: int
    """Index of its first character."""
    end: int
    """Index after its last character."""
    score: float | None = None
    """0 to 1; None where the engine gives none."""


class EntityRecognizer(Protocol):
    """Finds names, places, dates and the like in texts."""

    name: str
    model: str
    version: str
    parameters: dict[str, Any]

    def languages(self) -> list[str]:
        """Return the language codes that it knows."""
        ...

    def recognize(self, texts: list[str], language: str) -> list[list[FoundSpan]]:
        """Return the entities of each text, in the order of the texts."""
        ...


class Embedder(Protocol):
    """Turns sentences into vectors: those that mean the like are alike."""

    name: str
    model: str
    version: str
    parameters: dict[str, Any]

    def embed(self, texts: list[str]) -> Floats:
        """Return an L2-normalised vector for each text, shape (len(texts), d)."""
        ...


class SentimentScorer(Protocol):
    """Scores how an utterance feels."""

    name: str
    model: str
    version: str
    parameters: dict[str, Any]

    def score(self, texts: list[str], language: str) -> list[float | None]:
        """Return -5 (very negative) to 5 for each text; None where it cannot tell."""
        ...


def load(path: str) -> Any:
    """Return the attribute that ``module:attribute`` names, normally a class.

    Raises:
        ConfigError: If there is no such module or attribute.
    """
    module, colon, attribute = path.partition(":")
    try:
        if not (module and colon and attribute):
            raise ImportError(path)
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError("engine", path, f"module:attribute that can be imported ({error})") from (
            error
        )
