"""What the decoders are asked to do: spans of legs, and what for."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from callcore.decode_lane import Lane
from callcore.engines import Hypothesis, Samples, bucket_s
from callcore.hypothesis import Agreement
from callcore.ringbuffer import RingBuffer

#: Reads samples [start, end) of a leg that its ring has lost; may block.
Spill = Callable[[int, int], Samples]


class Leg(Protocol):
    """The part of ``LegRecognition`` that the queue uses."""

    @property
    def lane(self) -> Lane:
        """The engine that decodes it."""
        ...

    @property
    def ring(self) -> RingBuffer:
        """Its audio."""
        ...

    @property
    def spill(self) -> Spill | None:
        """Reads samples that the ring has lost."""
        ...

    def language_of(self, job: "Job") -> str | None:
        """Return the code of the language that a job is decoded in, None to find out."""
        ...

    @property
    def closed(self) -> bool:
        """Whether it takes no results any more."""
        ...

    def may_decode(self, job: "Job") -> bool:
        """Return whether the job may start."""
        ...

    def heard(self, job: "Job", now: float) -> None:
        """Take the result of a job."""
        ...

    def forget(self, job: "Job") -> None:
        """Notice that a partial or a speculation will have no result."""
        ...


class Kind(IntEnum):
    """What a job is for; also the order in which jobs are served."""

    FINAL = 0
    SPECULATIVE = 1
    PARTIAL = 2


@dataclass(eq=False, slots=True)
class Job:
    """A span of one leg that is to be decoded."""

    leg: Leg
    kind: Kind
    utterance: int
    start: int
    end: int
    num_speech: int
    since: float
    """Clock time from which it waits."""
    due: float
    """Clock time by which it should be done."""
    speech_end: int = 0
    """Finals: sample index after the last speech."""
    is_cut: bool = False
    """Finals: whether speech may go on after it."""
    agreement: Agreement | None = None
    """Finals: what the partials of the utterance promised."""
    samples: Samples | None = None
    """What the ring no longer holds."""
    fetching: bool = False
    attempts: int = 0
    """Decodes that failed or died."""
    deaths: int = 0
    """Those of them that the process did not live through."""
    stalls: int = 0
    """Decodes without an answer, alone in the process."""
    suspect: bool = False
    """Whether it may be what kills or stops the process or a remote engine: it is tried alone."""
    answers_at_outage: int | None = None
    """Answers that its engine had given when it was down for this one last."""
    not_before: float = 0.0
    result: Hypothesis | None = None
    stream: int = 0
    """Key of the leg's audio for the engine, as in ``DecodeJob``."""

    @property
    def order(self) -> tuple[int, float]:
        """What is served first; may change while it waits: a speculation becomes a final."""
        return self.kind, self.due

    @property
    def bucket_s(self) -> float:
        """Length of the window that it is decoded in; only such jobs go together."""
        return bucket_s(self.end - self.start)
