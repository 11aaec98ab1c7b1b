"""Segments as turns: what one speaker says without a long pause reads as one paragraph."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from callcore.talk import party_of
from web.marks import Marks, Piece, Token

#: As in ``static/transcript.js``.
SAME_TURN_S = 1.0

Stored = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Line:
    """One segment as it is printed."""

    segment: int
    language: str | None
    tokens: list[Token]


@dataclass(slots=True)
class Turn:
    """Consecutive segments of one speaker, seconds from the start of the call."""

    party: str
    """The leg; of a mono recording, the speaker where speakers were told apart."""
    leg: str
    start: float
    end: float
    lines: list[Line] = field(default_factory=list)
    translation: list[tuple[Piece, ...]] = field(default_factory=list)
    """What was said, in the other language."""
    segments: list[Stored] = field(default_factory=list)


def turns_of(segments: Iterable[Stored], marks: Marks | None = None) -> list[Turn]:
    """Return the turns of a transcript in the order of time.

    Args:
        segments: As ``Segment.as_json`` makes them.
        marks: What is marked in them.
    """
    marks = marks or Marks(None)
    turns: list[Turn] = []
    for segment in sorted(segments, key=lambda each: (each["start"], each["segment"])):
        party = party_of(segment)
        last = turns[-1] if turns else None
        if not last or last.party != party or segment["start"] - last.end >= SAME_TURN_S:
            last = Turn(party, segment["leg"], segment["start"], segment["end"])
            turns.append(last)
        last.segments.append(segment)
        last.lines.append(Line(segment["segment"], segment["language"], marks.tokens(segment)))
        last.end = max(last.end, segment["end"])
    return turns


def add_translation(turns: list[Turn], translation: Stored, marks: Marks) -> None:
    """Put each translated segment under the turn that it belongs to.

    Args:
        turns: The turns of the original.
        translation: ``document_types.Translation``; whatever has no number goes by its time.
        marks: What is marked in the translation.
    """
    if translation["method"] is None:  # all of it was said in that language
        return
    by_number = {each["segment"]: (turn, each) for turn in turns for each in turn.segments}
    ordered = sorted(translation["segments"], key=lambda each: (each["start"], each["end"]))
    for index, each in enumerate(ordered):
        turn, said = by_number.get(each["segment"], (None, None))
        if said and said["text"] == each["text"]:
            continue  # said in that language
        turn = turn or _nearest(turns, each)
        if turn:
            turn.translation.append(marks.line(index, each["text"]))


def _nearest(turns: Iterable[Turn], translated: Stored) -> Turn | None:
    """Return the turn of the same leg that shares most time with a translated segment."""
    own = [turn for turn in turns if turn.leg == translated["leg"]]

    def shared(turn: Turn) -> float:
        ends = min(turn.end, translated["end"])
        return float(ends - max(turn.start, translated["start"]))

    return max(own, key=shared, default=None)
