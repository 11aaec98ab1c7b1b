"""How busy live calls keep one decoder, and whether it can take one more leg.

Everything is in shares of the decoder's time: 1.0 is all its threads, all the time. What counts
for admission is the work that cannot be shed: finals, and the speculations that become finals.
Partials become rarer and stop before a leg is refused.

A new leg costs nothing yet. So a prediction takes what was measured, and adds for each leg, as far
as the measurement has not seen it yet, what a leg costs on average::

    measured + cost * (sum over open legs of the unseen part of the window + 1)

That way a burst of 60 calls within a second is judged by its number, and a busy hour by the clock.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

#: Seconds over which the average cost of a leg is taken: people take turns, so that one leg costs
#: much and then nothing.
_COST_WINDOW_S = 60.0

#: Seconds of legs that the assumed cost counts for beside the measured one: one leg for half a
#: minute. An average over less is chance.
_ASSUMED_LEG_S = 30.0

#: A leg never counts for less than this part of the assumed cost: legs that listen to music on
#: hold will speak.
_LEAST_COST = 0.25

#: Seconds after which what is said has become work: an utterance is decoded when it is over.
_DELAY_S = 6.0

#: Load from which on more is waiting than is done: what was done says too little of what legs need.
_SATURATED = 0.95

#: Seconds between two readings that are kept.
_GRAIN_S = 0.25

#: Once legs are refused, the prediction has to fall to this part of the limit before one is
#: admitted: calls would else get text or none as by the toss of a coin.
_RELAXED = 0.8


@dataclass(frozen=True, slots=True)
class Reading:
    """What a decoder has done since its start, summed up at one moment."""

    at: float
    """Seconds of the clock."""
    busy_s: float = 0.0
    """Seconds that its calls took, all threads together."""
    needed_s: float = 0.0
    """The same without what can be shed."""
    leg_s: float = 0.0
    """Seconds that legs were open, all legs together."""


class LoadMeter:
    """Averages over the newest seconds; whoever asks, as often as they ask.

    Args:
        threads: Calls that the decoder answers at once.
        now: Seconds of the clock.
        window_s: Seconds over which the load is taken.
        leg_cost: Seconds of one thread that a leg is assumed to need per second.
    """

    def __init__(self, threads: int, now: float, window_s: float, leg_cost: float) -> None:
        self.threads = threads
        self.window_s = window_s
        self._leg_cost = leg_cost
        self._newest = Reading(now)
        self._num_legs = 0
        self._readings = deque([self._newest])

    def note(self, now: float, busy_s: float, needed_s: float, num_legs: int) -> None:
        """Take a reading; more often than four times a second is as good.

        Args:
            now: Seconds of the clock.
            busy_s: As in ``Reading``.
            needed_s: As in ``Reading``.
            num_legs: Legs that are open from now on.
        """
        leg_s = self._newest.leg_s + self._num_legs * (now - self._newest.at)
        before, self._newest = self._newest, Reading(now, busy_s, needed_s, leg_s)
        self._num_legs = num_legs
        if now - self._readings[-1].at >= _GRAIN_S:
            self._readings.append(before)
        while len(self._readings) > 1 and self._readings[1].at <= now - _COST_WINDOW_S:
            self._readings.popleft()

    @property
    def load(self) -> float:
        """Share of the decoder's time in the newest window, up to 1."""
        before, elapsed_s = self._before()
        return min(1.0, (self._newest.busy_s - before.busy_s) / (elapsed_s * self.threads))

    @property
    def needed_load(self) -> float:
        """The same without what can be shed."""
        before, elapsed_s = self._before()
        return min(1.0, (self._newest.needed_s - before.needed_s) / (elapsed_s * self.threads))

    @property
    def leg_cost(self) -> float:
        """Share of the decoder's time that a leg needs on average."""
        first, heard = self._readings[0], self._at(self._newest.at - _DELAY_S)
        needed_s = self._newest.needed_s - first.needed_s + self._leg_cost * _ASSUMED_LEG_S
        measured = needed_s / (heard.leg_s - first.leg_s + _ASSUMED_LEG_S)
        least = 1.0 if self.load >= _SATURATED else _LEAST_COST
        return max(measured, least * self._leg_cost) / self.threads

    def predicted(self, opened: Iterable[float]) -> float:
        """Return the load with one more leg; it may be more than 1.

        Args:
            opened: When the open legs were opened.
        """
        return self.expected(opened) + self.leg_cost

    def expected(self, opened: Iterable[float]) -> float:
        """Return the load with the open legs alone; it may be more than 1.

        Args:
            opened: When the open legs were opened.
        """
        now = self._newest.at
        unseen = sum(max(0.0, 1.0 - (now - at) / self.window_s) for at in opened)
        return self.needed_load + unseen * self.leg_cost

    def _before(self) -> tuple[Reading, float]:
        """Return the newest reading that is a window old, and the seconds since.

        Before the first reading the decoder did nothing, so the seconds are never fewer than the
        window.
        """
        found = self._at(self._newest.at - self.window_s)
        return found, max(self.window_s, self._newest.at - found.at)

    def _at(self, moment: float) -> Reading:
        """Return the newest reading up to a moment; before all of them the oldest."""
        for reading in reversed(self._readings):
            if reading.at <= moment:
                return reading
        return self._readings[0]


class Admission:
    """Says whether one more leg may be opened.

    Args:
        meter: Measures the decoder.
        max_load: Predicted load above which a leg is refused.
    """

    def __init__(self, meter: LoadMeter, max_load: float) -> None:
        self.meter = meter
        self._max_load = max_load
        self._refusing = False

    def admits(self, opened: list[float], beside: float = 0.0, *, in_use: bool = False) -> bool:
        """Return whether a leg may be opened now, after ``meter.note``.

        Cores without legs take one whatever it would cost.

        Args:
            opened: When the open legs were opened.
            beside: Load that other decoders put on the same cores.
            in_use: Whether those have legs.
        """
        limit = self._max_load * (_RELAXED if self._refusing else 1.0)
        # What a sum of shares is off by is no reason to refuse a leg.
        predicted = beside + self.meter.predicted(opened)
        self._refusing = (bool(opened) or in_use) and predicted > limit + 1e-9
        return not self._refusing
