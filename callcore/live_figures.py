"""What a daemon counts of its live calls, and what waits for the workers: the figures of /metrics.

Numbers of calls and of steps; nothing of a call is in them.
"""

import dataclasses
from dataclasses import dataclass
from datetime import datetime
from typing import Any


@dataclass(slots=True)
class LiveFigures:
    """What one daemon has done since it started, and how it stands."""

    legs: int = 0
    """Legs that it has opened."""
    refused: int = 0
    """Those of them that got no live text because the decoder had no room."""
    refused_down: int = 0
    """Those that got none because speech recognition did not answer."""
    finals: int = 0
    """Utterances that it has stored."""
    behind_s: float = 0.0
    """Seconds for which the oldest utterance that has ended waits for its words."""
    shed: int = 0
    """What is left out under load: see ``decode_load.Load``; 0 is nothing."""

    def as_json(self) -> dict[str, Any]:
        """Return the fields by name."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, stored: dict[str, Any] | None) -> "LiveFigures":
        """Return what a daemon has stored; what one of another version knows more is left out."""
        names = {each.name for each in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in (stored or {}).items() if name in names})


@dataclass(frozen=True, slots=True)
class DaemonFigures:
    """A daemon as the record knows it."""

    name: str
    seen_s: float
    """Seconds since its last sign of life."""
    live_legs: int
    load: float | None
    """Share of its decoding time that live calls take; None: it recognises nothing."""
    figures: LiveFigures


@dataclass(frozen=True, slots=True)
class StepFigures:
    """How many recordings stand where with one step."""

    step: str
    ready: int = 0
    """Due: a worker may begin."""
    oldest_s: float = 0.0
    """Seconds for which the first of those has been due."""
    later: int = 0
    """Due later: tried again, or their recording is still being written."""
    blocked: int = 0
    """Wait for other steps."""
    running: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True)
class SiteFigures:
    """All of it at one moment."""

    daemons: tuple[DaemonFigures, ...]
    steps: tuple[StepFigures, ...]


def seconds_since(moment: datetime, now: datetime) -> float:
    """Return the seconds from ``moment`` to ``now``, none if clocks differ."""
    return max(0.0, (now - moment).total_seconds())
