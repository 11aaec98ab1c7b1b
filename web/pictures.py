"""Figures of a call as shapes: places in percent, which SVG takes without style or script."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from callcore.talk import party_of
from callcore.utterances import PAUSE_S
from web.names import clock, feeling, tone

#: Steps of a time axis, in seconds, and how many a timeline bears.
_STEPS_S = (5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600)
_MOST_TICKS = 6
#: The feeling that fills a chart from its middle to its edge.
_GREATEST = 5.0

Stored = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Bar:
    """A stretch of time on the axis."""

    x: str
    width: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Lane:
    """When one party spoke."""

    party: str
    bars: list[Bar]


@dataclass(frozen=True, slots=True)
class Place:
    """A moment on the axis."""

    x: str
    at: float
    text: str
    anchor: str = "middle"


@dataclass(frozen=True, slots=True)
class FlagPlace:
    """A flag on the axis."""

    x: str
    flag: Stored


@dataclass(frozen=True, slots=True)
class Timeline:
    """The call from left to right."""

    start: float
    end: float
    lanes: list[Lane]
    silences: list[Bar]
    holds: list[Bar]
    flags: list[FlagPlace]
    ticks: list[Place]


@dataclass(frozen=True, slots=True)
class Quarter:
    """The feeling of a quarter of the call as a bar up or down from the middle."""

    number: int
    text: str
    tone: str
    y: str
    height: str


def timeline(document: Stored) -> Timeline | None:
    """Return when who spoke; None where nobody did or the measures are not there."""
    insights = document["insights"]
    segments = document["segments"]
    if insights is None or not segments:
        return None
    talk = insights["talk"]
    axis = _Axis(talk["start"], max(talk["end"], *(each["end"] for each in segments)))
    spoken: dict[str, list[tuple[float, float]]] = {}
    for segment in segments:
        spoken.setdefault(party_of(segment), []).extend(_stretches(segment))
    return Timeline(
        axis.start,
        axis.end,
        [
            Lane(party, [axis.bar(*each) for each in _joined(spoken[party])])
            for party in sorted(spoken, key=_caller_first)
        ],
        [axis.bar(each["start"], each["end"]) for each in talk["silences"] or ()],
        [axis.bar(each["start"], each["end"]) for each in talk["holds"] or ()],
        [FlagPlace(axis.x(flag["at_s"]), flag) for flag in document["flags"] or ()],
        list(axis.ticks()),
    )


def quarters(scores: Sequence[float | None]) -> list[Quarter]:
    """Return the feelings of the quarters of a call; those that are unknown have no height."""
    return [_quarter(number, score) for number, score in enumerate(scores, 1)]


def _quarter(number: int, score: float | None) -> Quarter:
    if score is None:
        return Quarter(number, "\N{EN DASH}", "none", "50%", "0%")
    height = max(2.0, 50 * min(abs(score), _GREATEST) / _GREATEST)
    top = 50 - height if score > 0 else 50
    return Quarter(number, feeling(score), tone(score), _percent(top), _percent(height))


class _Axis:
    def __init__(self, start: float, end: float) -> None:
        self.start = start
        self.end = max(end, start + 1)

    def x(self, at: float) -> str:
        return _percent(self._share(at))

    def bar(self, start: float, end: float) -> Bar:
        left, right = self._share(start), self._share(end)
        return Bar(_percent(left), _percent(max(right - left, 0.1)), start, end)

    def ticks(self) -> Iterator[Place]:
        length = self.end - self.start
        step = next((s for s in _STEPS_S if length / s <= _MOST_TICKS), _STEPS_S[-1])
        number = 0
        while number * step <= length:
            at = self.start + number * step
            share = self._share(at)
            # A number at the edge stays inside of the picture.
            anchor = "start" if share < 3 else "end" if share > 97 else "middle"
            yield Place(_percent(share), at, clock(at), anchor)
            number += 1

    def _share(self, at: float) -> float:
        share = 100 * (at - self.start) / (self.end - self.start)
        return min(100.0, max(0.0, share))


def _stretches(segment: Stored) -> Iterable[tuple[float, float]]:
    words = segment["words"]
    return [(w["s"], w["e"]) for w in words] or [(segment["start"], segment["end"])]


def _joined(stretches: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the stretches, those without a pause between them as one."""
    joined: list[tuple[float, float]] = []
    for start, end in sorted(stretches):
        if joined and start - joined[-1][1] < PAUSE_S:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((start, end))
    return joined


def _caller_first(party: str) -> tuple[bool, str]:
    return party != "caller", party


def _percent(value: float) -> str:
    return f"{value:.2f}%"
