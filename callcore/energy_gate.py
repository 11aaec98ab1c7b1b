"""Which windows of a leg can be speech at all: a loudness gate before the speech detector.

Half of a telephone leg is silence or the same noise all the time, and the detector's network costs
as much there as in speech. A window goes to it only if a block of four windows is loud within
``hold_s`` before or ``lead_s`` after it::

    loudness   ....._....######__###_____________________________.....
    heard          HHHHHHHHHHHHHHHHHHHHHHHHHHHHHHH
                   lead                 hold

Loud is relative to the floor, the quietest of the newest seconds, so steady sound of any strength
is not loud. Each band has a floor of its own, because speech over hum, a tone or a constant offset
hardly changes the loudness of the whole. The lead-in lets the network settle, and finds soft
onsets where it finds them without a gate: quiet windows are decided a lead-in later, when it is
known that none of them is one. Nothing depends on a clock or on how the audio arrives, only on the
samples.
"""

from collections import deque
from dataclasses import dataclass

import numpy as np

from callcore.engines import Floats, Samples

#: Windows that are loud or not as a whole, counted from the gate's start: 0.13 s.
_BLOCK = 4


@dataclass(frozen=True, slots=True)
class GateConfig:
    """What is loud; seconds are rounded to whole windows."""

    rate: int = 8000
    """Samples a second."""
    window: int = 256
    """Samples that are judged together."""
    bands_hz: tuple[int, ...] = (190, 375, 750, 1500, 3000, 4000)
    """Edges of the bands: from above hum to where the telephone ends."""
    ratio: float = 1.5
    """Loud is a mean magnitude of one window this many times the floor ..."""
    band_ratio: float = 2.4
    """... or an amplitude of one band this many times the band's floor ..."""
    least: float = 2.0
    """... and no less than this, in int16 units; of a band: of white noise as dense as it."""
    floor_s: float = 5.0
    """The floor is the quietest of so many newest seconds; until they have come all is heard,
    because a leg may begin in the middle of a word."""
    hold_s: float = 1.0
    """Heard after the last loud block: longer than the silence that ends an utterance."""
    lead_s: float = 1.0
    """Heard before the first loud block."""

    def num_windows(self, seconds: float) -> int:
        """Return how many windows so many seconds are, at least one."""
        return max(1, round(seconds * self.rate / self.window))


@dataclass(slots=True)
class Judged:
    """Windows in order that it is decided about."""

    heard: list[bool]
    """For each window whether the detector is to hear it."""
    levels: list[float]
    """For each window its mean magnitude, in int16 units."""
    samples: list[Samples]
    """The windows to be heard, one array each."""


class EnergyGate:
    """The gate of one leg."""

    def __init__(self, config: GateConfig | None = None, *, start: int = 0) -> None:
        """Begin open.

        Args:
            config: What is loud.
            start: Sample index of the first window.
        """
        self.config = config = config or GateConfig()
        self.position = start
        """Sample index after the newest window."""
        self._hold = config.num_windows(config.hold_s)
        self._lead = config.num_windows(config.lead_s)
        self._num_seen = 0
        """Windows so far."""
        self._open_until = config.num_windows(config.floor_s)
        """Windows before this one are heard even if they are quiet."""
        self._undecided: deque[tuple[Samples, float]] = deque()
        self._unjudged: list[tuple[Samples, float]] = []
        """Windows of blocks that nobody has looked at: while all is heard, none needs to."""
        bins = np.array([round(edge * config.window / config.rate) for edge in config.bands_hz])
        # Real and imaginary part of each bin side by side.
        self._edges = 2 * bins
        self._hann = np.hanning(config.window).astype(np.float32)
        # White noise of rms 1 has power 1 in each band.
        self._scale = (1 / (_BLOCK * (self._hann**2).sum() * np.diff(bins))).astype(np.float32)
        # Of a newest block each: the power of each band, and the smallest mean magnitude.
        num_blocks = max(1, self._open_until // _BLOCK)
        self._newest = np.full((num_blocks, len(bins)), np.inf, np.float32)
        self._num_blocks = 0

    def push(self, samples: Samples) -> Judged:
        """Take the next windows and return those that are decided by them.

        Args:
            samples: Shape (n * window,), int16.
        """
        windows = samples.reshape(-1, self.config.window)
        self.position += len(samples)
        levels = np.abs(windows.astype(np.float32)).mean(axis=1).tolist()
        judged = Judged([], [], [])
        for each in zip(windows, levels, strict=True):
            self._undecided.append(each)
            self._unjudged.append(each)
            self._num_seen += 1
            if self._num_seen > self._open_until and len(self._unjudged) >= _BLOCK:
                self._judge_blocks()
            self._decide_more(judged)
        return judged

    def seal(self) -> Judged:
        """Return the windows that nothing was decided about: nothing loud follows them.

        Less than a block at the end counts as quiet: it is too short for a word.
        """
        judged = Judged([], [], [])
        while self._undecided:
            self._decide(False, judged)
        return judged

    def _judge_blocks(self) -> None:
        """Look at the blocks that are complete, and stay open after those that are loud."""
        num = len(self._unjudged) // _BLOCK
        windows = self._unjudged[: num * _BLOCK]
        self._unjudged = self._unjudged[num * _BLOCK :]
        samples = np.concatenate([window for window, _ in windows])
        for i, powers in enumerate(self._powers(samples)):
            levels = [level for _, level in windows[i * _BLOCK : (i + 1) * _BLOCK]]
            if self._is_loud(powers, levels):
                end = self._num_seen - len(self._unjudged) - (num - 1 - i) * _BLOCK
                self._open_until = max(self._open_until, end + self._hold)

    def _powers(self, samples: Samples) -> Floats:
        """Return the power of each block in each band."""
        windows = samples.reshape(-1, self.config.window)
        parts = np.fft.rfft(windows * self._hann).view(np.float32)
        bins = (parts * parts).reshape(-1, _BLOCK, parts.shape[-1]).sum(axis=1)
        powers: Floats = np.add.reduceat(bins, self._edges, axis=1)[:, :-1] * self._scale
        return powers

    def _is_loud(self, powers: Floats, levels: list[float]) -> bool:
        config = self.config
        row = self._newest[self._num_blocks % len(self._newest)]
        row[:-1], row[-1] = powers, min(levels)
        self._num_blocks += 1
        *quietest, floor = self._newest.min(axis=0).tolist()
        if max(levels) > max(config.ratio * floor, config.least):
            return True
        ratio, least = config.band_ratio**2, config.least**2
        bands = zip(powers.tolist(), quietest, strict=True)
        return any(power > max(ratio * each, least) for power, each in bands)

    def _decide_more(self, judged: Judged) -> None:
        """Decide what is known after a window."""
        if self._num_seen <= self._open_until:
            while self._undecided:
                self._decide(True, judged)
        elif self._num_seen % _BLOCK == 0:
            while len(self._undecided) > self._lead:
                self._decide(False, judged)

    def _decide(self, heard: bool, judged: Judged) -> None:
        window, level = self._undecided.popleft()
        judged.heard.append(heard)
        judged.levels.append(level)
        if heard:
            judged.samples.append(window)
