"""What engines and steps produce: words, segments, transcripts.

Times are float seconds; from the start of the call once they are stored.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Word:
    """One recognised word."""

    w: str
    """The word with its punctuation, without spaces around it."""
    s: float
    """Start in seconds."""
    e: float
    """End in seconds, at least ``s``."""
    p: float
    """Probability, 0 to 1."""

    def as_json(self) -> dict[str, Any]:
        """Return the form of events and documents."""
        return {"w": self.w, "s": round(self.s, 3), "e": round(self.e, 3), "p": round(self.p, 3)}


@dataclass(frozen=True, slots=True)
class Segment:
    """A span of speech of one leg."""

    segment: int
    """Unique in its call, never used twice."""
    leg: str
    start: float
    end: float
    text: str
    language: str | None
    words: tuple[Word, ...]
    source: str
    """``live`` or ``recording``."""
    latency: float | None = None
    """Live only: seconds from the end of speech to publishing."""
    revised: bool = False
    """Live only: the final changed a word that partials had shown as stable."""
    speaker: str | None = None
    """``A`` (who speaks first) or ``B`` in a mono recording of both parties; else None."""

    def as_json(self) -> dict[str, Any]:
        """Return the form of documents and of ``/api/calls/``."""
        return {
            "segment": self.segment,
            "leg": self.leg,
            "start": round(self.start, 3),
            "end": round(self.end, 3),
            "text": self.text,
            "language": self.language,
            "words": [word.as_json() for word in self.words],
            "source": self.source,
            "latency": None if self.latency is None else round(self.latency, 3),
            "revised": self.revised,
            "speaker": self.speaker,
        }


@dataclass(frozen=True, slots=True)
class Transcript:
    """The result of step ``transcribe``."""

    segments: tuple[Segment, ...]
    """Ordered by start."""
    language: str | None
    duration_s: float
    engine: str
    model: str
    version: str
    parameters: dict[str, Any]
    """What would be needed to get the same result again."""

    def as_json(self) -> dict[str, Any]:
        """Return the stored form."""
        return {
            "segments": [segment.as_json() for segment in self.segments],
            "language": self.language,
            "duration_s": round(self.duration_s, 3),
            "engine": self.engine,
            "model": self.model,
            "version": self.version,
            "parameters": self.parameters,
        }
