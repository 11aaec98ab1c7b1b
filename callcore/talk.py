"""Who spoke how much and when: talk, silence, overlap, interruptions, monologues.

A party is a leg; of a mono recording it is the speaker that was told apart (``A``, ``B``), or
``mixed`` where nobody was. Only what the recording can tell is told: who was not recorded may have
spoken in any silence, and one stream of both parties hides where they speak at once.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from callcore.utterances import PAUSE_S, UNSPACED

#: Seconds of silence that are listed. Turns follow each other within a few tenths of a second and
#: the recogniser's times are wrong by up to half a second: two seconds are a silence to anybody.
SILENCE_S = 2.0
#: Shortest overlap, in seconds, of an interruption: the error of the recogniser's times.
INTERRUPTION_S = 0.5
#: Who says so few words ("mm-hm", "yes, okay") listens: that neither interrupts a turn nor ends it.
LISTENING_WORDS = 2
#: Shortest silence, in seconds, that is a hold where words announce one.
HOLD_S = 5.0
#: Seconds after the words that announce a hold within which it begins.
HOLD_BEGINS_S = 5.0

#: A party of which several people may be part.
MIXED = "mixed"

Segment = Mapping[str, Any]
Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Turn:
    """A stretch of speech of one party without a pause."""

    party: str
    start: float
    end: float
    num_words: int
    segment: int


def party_of(segment: Segment) -> str:
    """Return who speaks in a segment."""
    speaker: str | None = segment.get("speaker")
    return speaker or str(segment["leg"])


def turns_of(segments: Iterable[Segment]) -> list[Turn]:
    """Return the turns of all segments, ordered by start."""
    turns = [turn for segment in segments for turn in _turns(segment)]
    return sorted(turns, key=lambda each: (each.start, each.end, each.party, each.segment))


def _turns(segment: Segment) -> Iterator[Turn]:
    """Yield the segment, cut where its words leave a pause."""
    party, number = party_of(segment), segment["segment"]
    words = sorted(segment["words"], key=lambda each: (each["s"], each["e"]))
    if not words:
        if segment["end"] > segment["start"]:
            num_words = len(segment["text"].split())
            yield Turn(party, segment["start"], segment["end"], num_words, number)
        return
    first, end, num_words = words[0]["s"], words[0]["e"], 1
    for word in words[1:]:
        if word["s"] - end >= PAUSE_S:
            yield Turn(party, first, end, num_words, number)
            first, num_words = word["s"], 0
        end = max(end, word["e"]) if num_words else word["e"]
        num_words += 1
    yield Turn(party, first, end, num_words, number)


@dataclass(frozen=True, slots=True)
class Heard:
    """What a recording lets one hear."""

    parties: frozenset[str]
    """Legs that have sound of their own; empty: one stream of all."""
    start: float
    """Seconds from the start of the call to the recording's first sample."""
    end: float | None
    """None where its length is unknown."""

    @property
    def is_apart(self) -> bool:
        """Whether both sides can be heard, each by itself."""
        return len({party.partition("-")[0] for party in self.parties}) > 1

    @property
    def is_whole(self) -> bool:
        """Whether everybody can be heard: else a silence may be the other side speaking."""
        return not self.parties or self.is_apart


def measure(segments: Sequence[Segment], heard: Heard, language: str | None) -> dict[str, Any]:
    """Return the fields of ``document_types.Talk``; ``hold_s`` and ``holds`` are still null.

    Args:
        segments: Of a transcript in its stored form, in any order.
        heard: What they were made from.
        language: Of the call: some are written without spaces, and have no words to count.
    """
    turns = turns_of(segments)
    start = min([heard.start, *(turn.start for turn in turns)])
    ends = [turn.end for turn in turns] + ([heard.end] if heard.end is not None else [])
    end = max([start, *ends])
    parties = sorted(heard.parties | {turn.party for turn in turns})
    spoken = {party: union(_intervals(turns, party)) for party in parties}
    silences = _gaps(union(_intervals(turns)), start, end)
    told = heard.is_apart
    return {
        "start": round(start, 3),
        "end": round(end, 3),
        "parties": {party: _party(party, turns, spoken, language) for party in parties},
        "silence_s": round(length(silences), 3) if heard.is_whole else None,
        "silences": _listed(silences) if heard.is_whole else None,
        "overlap_s": round(_overlap(spoken), 3) if told else None,
        "interruptions": interruptions(turns) if told else None,
        "hold_s": None,
        "holds": None,
        "first_response_s": _first_response(turns, start),
    }


def holds(
    silences: Sequence[Mapping[str, float]], announced: Iterable[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return the silences that words announce.

    Args:
        silences: As ``measure`` lists them.
        announced: Evidence of words such as "please hold".
    """
    said = list(announced)
    found = []
    for silence in silences:
        if silence["end"] - silence["start"] < HOLD_S:
            continue
        begins = silence["start"]
        # The recogniser's word ends may lie a little within the silence.
        words = [w for w in said if -SILENCE_S <= begins - w["end"] <= HOLD_BEGINS_S]
        if words:
            found.append({"start": begins, "end": silence["end"], "evidence": words})
    return found


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """Return the same stretches without overlaps, in order."""
    joined: list[Interval] = []
    for start, end in sorted(intervals):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((start, end))
    return joined


def length(intervals: Iterable[Interval]) -> float:
    """Return the seconds that the stretches last, which do not overlap."""
    return sum(end - start for start, end in intervals)


def interruptions(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """Return who begins to speak within another's turn, and not just to show that they listen.

    Args:
        turns: Ordered by start.
    """
    found = []
    going_on: list[Turn] = []
    for turn in turns:
        going_on = [other for other in going_on if other.end > turn.start]
        others = [each for each in going_on if each.party != turn.party]
        going_on.append(turn)
        if turn.num_words <= LISTENING_WORDS:
            continue
        # Of several who are spoken over, the one whose turn is cut into most.
        over = [
            (min(other.end, turn.end) - turn.start, other)
            for other in others
            if other.start < turn.start and other.num_words > LISTENING_WORDS
        ]
        seconds, of = max(over, key=lambda each: (each[0], each[1].party), default=(0.0, turn))
        if seconds >= INTERRUPTION_S:
            found.append(
                {
                    "by": turn.party,
                    "of": of.party,
                    "at": round(turn.start, 3),
                    "seconds": round(seconds, 3),
                    "segment": turn.segment,
                }
            )
    return found


def _intervals(turns: Iterable[Turn], party: str | None = None) -> list[Interval]:
    return [(t.start, t.end) for t in turns if party is None or t.party == party]


def _gaps(spoken: Sequence[Interval], start: float, end: float) -> list[Interval]:
    edges = [(start, start), *spoken, (end, end)]
    return [(a[1], b[0]) for a, b in pairwise(edges) if b[0] > a[1]]


def _listed(silences: Iterable[Interval]) -> list[dict[str, float]]:
    long = ((a, b) for a, b in silences if b - a >= SILENCE_S)
    return [{"start": round(a, 3), "end": round(b, 3)} for a, b in long]


def _overlap(spoken: Mapping[str, Sequence[Interval]]) -> float:
    """Return how long two or more speak at once."""
    # Ends before starts at the same moment: who begins as another ends does not overlap.
    edges = sorted(
        (at, step) for each in spoken.values() for a, b in each for at, step in ((a, 1), (b, -1))
    )
    seconds, speaking, since = 0.0, 0, 0.0
    for at, step in edges:
        if speaking > 1:
            seconds += at - since
        speaking, since = speaking + step, at
    return seconds


def _party(
    party: str,
    turns: Sequence[Turn],
    spoken: Mapping[str, Sequence[Interval]],
    language: str | None,
) -> dict[str, Any]:
    talk_s = length(spoken[party])
    everybody_s = sum(map(length, spoken.values()))
    num_words = sum(turn.num_words for turn in turns if turn.party == party)
    known = talk_s > 0 and language not in UNSPACED
    single = party != MIXED
    return {
        "talk_s": round(talk_s, 3),
        "share": round(talk_s / everybody_s, 3) if everybody_s and len(spoken) > 1 else None,
        "words": num_words,
        "wpm": round(60 * num_words / talk_s, 1) if known else None,
        "longest_monologue_s": round(_longest(party, turns), 3) if single and talk_s else None,
    }


def _longest(party: str, turns: Sequence[Turn]) -> float:
    """Return the longest time that a party holds the floor: no long silence, nobody else's turn."""
    longest, since, until = 0.0, None, 0.0
    for turn in turns:
        if turn.party != party:
            if turn.num_words > LISTENING_WORDS:
                since = None
            continue
        if since is None or turn.start - until >= SILENCE_S:
            since, until = turn.start, turn.end
        until = max(until, turn.end)
        longest = max(longest, until - since)
    return longest


def _first_response(turns: Sequence[Turn], start: float) -> float | None:
    """Return the seconds until an agent's first word; None where no agent is known by leg."""
    said = [turn.start for turn in turns if turn.party.partition("-")[0] == "agent"]
    return round(said[0] - start, 3) if said else None
