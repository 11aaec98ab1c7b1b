"""Segments as turns: what one speaker says without a long pause reads as one paragraph."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

#: As in ``static/transcript.js``.
SAME_TURN_S = 1.0


@dataclass(slots=True)
class Turn:
    """Consecutive segments of one speaker, seconds from the start of the call."""

    leg: str
    start: float
    end: float
    segments: list[dict[str, Any]] = field(default_factory=list)


def turns_of(segments: Iterable[dict[str, Any]]) -> list[Turn]:
    """Return the turns of a transcript in the order of time.

    Args:
        segments: As ``Segment.as_json`` makes them.
    """
    turns: list[Turn] = []
    for segment in sorted(segments, key=lambda each: (each["start"], each["segment"])):
        last = turns[-1] if turns else None
        if not last or last.leg != segment["leg"] or segment["start"] - last.end >= SAME_TURN_S:
            last = Turn(segment["leg"], segment["start"], segment["end"])
            turns.append(last)
        last.segments.append(segment)
        last.end = max(last.end, segment["end"])
    return turns
