"""What the decoder of live calls leaves out when it has more work than time.

Partials become rarer, then finals get less time each (no second decode, a narrow beam), then
partials stop, then speculation; finals are never left out.
"""

import math

from callcore.recognizer_config import RecognizerConfig


class Load:
    """How much is decoded beyond the finals, by how much of the time a decoder is late."""

    def __init__(self, config: RecognizerConfig, now: float) -> None:
        self._config = config
        self._changed = self._updated = now
        self._late_share = 0.0
        """Of the newest time; what is older counts less and less."""
        self.level = 0
        """0: everything; up to ``highest``: each final once, and nothing else."""

    @property
    def highest(self) -> int:
        """The level at which nothing is left to shed."""
        return len(self._config.partial_intervals_s) + 1

    @property
    def partial_interval_s(self) -> float | None:
        """Speech between two partials; None: there are none."""
        intervals = self._config.partial_intervals_s
        return intervals[self.level] if self.level < len(intervals) else None

    @property
    def speculates(self) -> bool:
        """Whether finals are begun before their endpoint."""
        return self.level < self.highest

    @property
    def redoes(self) -> bool:
        """Whether a final may take the time of a wide beam and, if doubtful, a second decode."""
        interval_s = self.partial_interval_s
        return interval_s is not None and interval_s <= self._config.redo_interval_s

    def is_late(self, final_waits_s: float, partial_waits_s: float) -> bool:
        """Return whether the oldest final or the oldest partial waits too long."""
        limit_s = self._config.overloaded_s
        partial_limit_s = max(limit_s, self.partial_interval_s or 0.0)
        return final_waits_s > limit_s or partial_waits_s > partial_limit_s

    def update(self, now: float, is_late: bool) -> None:
        """Notice whether the decoder is late at the moment."""
        config = self._config
        # A machine that stood still was not late all the time.
        elapsed_s = min(now - self._updated, 0.5)
        self._updated = now
        weight = 1.0 - math.exp(-elapsed_s / config.late_window_s)
        self._late_share += weight * (is_late - self._late_share)
        if self._late_share > config.overloaded_share:
            if is_late and now - self._changed >= config.rise_s:
                self.level = min(self.level + 1, self.highest)
                self._changed = now
        elif self._late_share > config.relaxed_share:
            self._changed = max(self._changed, now - config.rise_s)
        elif self.level and now - self._changed >= config.fall_s:
            self.level -= 1
            self._changed = now
