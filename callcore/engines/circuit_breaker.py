"""Whether a remote engine is asked at all: after failures it is left alone for a while.

::

    closed --failures in a row, or one that is nobody's fault but its own--> open
    open --its rest is over--> one caller probes, the others go on waiting
    the probe works --> closed;  it fails --> open, for longer

Pure state: time comes from a clock that is passed in, requests are made by whoever asks.
"""

import threading
from collections.abc import Callable
from enum import Enum

#: Failures in a row after which the engine is left alone.
THRESHOLD = 3
#: Seconds of each rest, the last for all that follow: live words wait no longer than that for an
#: engine that is back.
RESTS_S = (1.0, 2.0, 5.0, 10.0)
#: Seconds after which those who may not probe ask again.
PROBE_S = 1.0


class Turn(Enum):
    """What a caller may do."""

    ASK = "ask"
    """The engine answers: go on."""
    PROBE = "probe"
    """It may answer again: find out, and tell."""
    WAIT = "wait"
    """It does not answer."""


class CircuitBreaker:
    """The state of one remote engine, for all threads that ask it."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """Begin closed.

        Args:
            clock: Seconds, monotonic.
        """
        self._clock = clock
        self._lock = threading.Lock()
        self._failures = 0
        self._rests = 0
        """Rests since it last answered."""
        self._until: float | None = None
        """Clock time at which its rest ends; None while it is closed."""
        self._probing = False

    def turn(self) -> tuple[Turn, float]:
        """Return what the caller may do now, and the seconds to wait.

        Who is told to probe must call ``answered`` or ``failed`` afterwards.
        """
        with self._lock:
            if self._until is None:
                return Turn.ASK, 0.0
            left_s = self._until - self._clock()
            if left_s > 0:
                return Turn.WAIT, left_s
            if self._probing:
                return Turn.WAIT, PROBE_S
            self._probing = True
            return Turn.PROBE, 0.0

    def answered(self) -> None:
        """Note that the engine did its work."""
        with self._lock:
            self._failures = self._rests = 0
            self._until = None
            self._probing = False

    def failed(self, *, sure: bool, rest_s: float = 0.0, probe: bool = False) -> float:
        """Note a failure; return the seconds that the engine is left alone, 0 if it is not.

        Args:
            sure: Whether it would have failed for everybody.
            rest_s: Least seconds of rest, as the engine itself asks for.
            probe: Whether it was the probe that failed.
        """
        with self._lock:
            now = self._clock()
            if self._until is not None and not probe:
                # It was asked before the rest began: nothing new.
                return max(self._until - now, PROBE_S)
            self._probing = False
            self._failures += 1
            if not (sure or probe or self._failures >= THRESHOLD):
                return 0.0
            rest_s = max(rest_s, RESTS_S[min(self._rests, len(RESTS_S) - 1)])
            self._rests += 1
            self._until = now + rest_s
            return rest_s
