"""How late an event loop comes to what is due: the time that one leg's work takes from the others.

An event that comes at any moment waits for the callbacks before it. That is measured by being
such an event fifty times a second, which costs 0.1 % of a core. Where very many streams come in,
the loop sleeps between its passes (``audiosocket_server.GATHER_S``): those sleeps count too.
"""

import asyncio
import time
from collections.abc import Callable

#: Seconds between two samples: a frame's length, so that a stall which delays frames is seen.
_INTERVAL_S = 0.02
#: Milliseconds that samples are told apart by. The timers of uvloop know whole milliseconds: a
#: sample is up to one too large, none is too small by more than this.
_STEP_MS = 0.1
#: Lags are counted up to here, in milliseconds; longer ones count as this.
_MOST_MS = 10_000.0


class LoopLag:
    """The lags of one loop since ``start``, in a table of fixed size.

    Args:
        clock: Seconds that only go forward.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._counts = [0] * (round(_MOST_MS / _STEP_MS) + 1)
        self._num_samples = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0

    def start(self) -> None:
        """Begin; called on the loop that is measured."""
        self._loop = asyncio.get_running_loop()
        self._expect()

    def stop(self) -> None:
        """End; what was counted stays. Again does nothing."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None

    def note(self, lag_s: float) -> None:
        """Count a wake-up that was so late, in seconds.

        A stall is as many samples as would have been due in it: else the longest ones, in which
        most has to wait, would count least.
        """
        while True:
            at = round(max(0.0, lag_s) * 1000 / _STEP_MS)
            self._counts[min(at, len(self._counts) - 1)] += 1
            self._num_samples += 1
            lag_s -= _INTERVAL_S
            if lag_s < 0:
                return

    def percentile_ms(self, share: float) -> float | None:
        """Return the lag, in ms, that ``share`` of the samples do not exceed; None without any."""
        if not self._num_samples:
            return None
        left = share * self._num_samples
        for at, count in enumerate(self._counts):
            left -= count
            if left <= 0:
                return round(at * _STEP_MS, 1)
        return _MOST_MS

    def _expect(self) -> None:
        assert self._loop is not None, "started on a loop"
        self._due = self._clock() + _INTERVAL_S
        self._timer = self._loop.call_later(_INTERVAL_S, self._woken)

    def _woken(self) -> None:
        self.note(self._clock() - self._due)
        self._expect()
