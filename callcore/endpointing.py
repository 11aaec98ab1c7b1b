"""Where an utterance begins and ends: speech probabilities in, events at sample indices out.

A pure state machine over windows of equal length. Time is counted in samples from the first
window, so the same audio gives the same utterances however it arrives. Utterances never overlap
and lie in order: each begins at or after the end of the one before, and what lies between two of
them is silence.
"""

from collections import deque
from dataclasses import dataclass
from itertools import islice


@dataclass(frozen=True, slots=True)
class EndpointConfig:
    """When speech begins, when it has ended; seconds are rounded to whole windows."""

    rate: int = 8000
    """Samples a second."""
    window: int = 256
    """Samples that one probability is about: 32 ms."""
    on: float = 0.5
    """An utterance begins with the first window whose probability reaches this."""
    off: float = 0.35
    """Within an utterance a window below this is silence."""
    pre_roll_s: float = 0.25
    """Audio kept before the first window of speech: soft onsets."""
    pause_s: float = 0.2
    """Silence after which the utterance may be over, and that is kept after its last speech."""
    hangover_s: float = 0.45
    """Silence after which it is over."""
    long_s: float = 8.0
    """Past this length ..."""
    long_hangover_s: float = 0.3
    """... so much silence is enough to end it."""
    limit_s: float = 14.0
    """Longest utterance: then it is cut where it is quietest ..."""
    cut_s: float = 4.0
    """... within this much of its end; the next begins at the cut."""

    def num_windows(self, seconds: float) -> int:
        """Return how many windows so many seconds are, at least one."""
        return max(1, round(seconds * self.rate / self.window))


@dataclass(frozen=True, slots=True)
class SpeechStarted:
    """An utterance began."""

    utterance: int
    """0, 1, 2 ..."""
    start: int
    """Sample index, pre-roll included."""


@dataclass(frozen=True, slots=True)
class SpeechPaused:
    """The utterance is over unless speech goes on soon: then its end will be this one."""

    utterance: int
    start: int
    end: int
    """Sample index after its last sample."""
    num_speech: int
    """Samples in it that were speech."""


@dataclass(frozen=True, slots=True)
class SpeechResumed:
    """Speech went on after a pause."""

    utterance: int


@dataclass(frozen=True, slots=True)
class SpeechEnded:
    """The utterance is over; its span never changes."""

    utterance: int
    start: int
    end: int
    speech_end: int
    """Sample index after its last window of speech."""
    num_speech: int
    """Samples in it that were speech."""
    is_cut: bool = False
    """Whether it got too long: whoever spoke may speak on."""


EndpointEvent = SpeechStarted | SpeechPaused | SpeechResumed | SpeechEnded


@dataclass(slots=True)
class _Window:
    speech: bool
    level: float


class Endpointer:
    """The utterances of one leg."""

    def __init__(self, config: EndpointConfig | None = None, *, start: int = 0) -> None:
        """Begin with silence.

        Args:
            config: When speech begins and ends.
            start: Sample index of the first window.
        """
        self.config = config = config or EndpointConfig()
        self.position = start
        """Sample index after the last window."""
        self._pre_roll = config.num_windows(config.pre_roll_s)
        self._pause = config.num_windows(config.pause_s)
        self._hangover = config.num_windows(config.hangover_s)
        self._long_hangover = config.num_windows(config.long_hangover_s)
        self._long = config.num_windows(config.long_s)
        self._limit = config.num_windows(config.limit_s)
        self._cut = min(config.num_windows(config.cut_s), self._limit - 1)
        self._free_from = start
        """The next utterance begins no earlier."""
        self._next = 0
        self._start: int | None = None
        self._windows: deque[_Window] = deque()
        """Of the open utterance, pre-roll excluded."""
        self._silence = 0
        """Windows of silence at the end of the open utterance."""
        self._paused = False

    @property
    def open(self) -> bool:
        """Whether an utterance has begun and not ended."""
        return self._start is not None

    @property
    def utterance(self) -> int:
        """Number of the open utterance, or of the next one."""
        return self._next

    @property
    def speaking(self) -> bool:
        """Whether the last window was speech of an open utterance."""
        return self.open and self._silence == 0

    @property
    def start(self) -> int:
        """Sample index where the open utterance begins, or the next may begin."""
        return self._free_from if self._start is None else self._start

    @property
    def num_speech(self) -> int:
        """Samples of speech in the open utterance."""
        return sum(each.speech for each in self._windows) * self.config.window

    def push(self, probability: float, level: float) -> list[EndpointEvent]:
        """Take the next window and return what it changes.

        Args:
            probability: That it is speech, 0 to 1.
            level: How loud it is, in any unit: a limit is cut at the quietest place.
        """
        self.position += self.config.window
        if self._start is None:
            if probability < self.config.on:
                return []
            return self._begin(level)
        speech = probability >= self.config.off
        self._windows.append(_Window(speech, level))
        events: list[EndpointEvent] = []
        if speech:
            self._silence = 0
            if self._paused:
                self._paused = False
                events.append(SpeechResumed(self._next))
        else:
            self._silence += 1
        return events + self._after_window()

    def seal(self, end: int) -> list[EndpointEvent]:
        """End the open utterance because the audio ends.

        Args:
            end: Sample index after the last sample of the leg.
        """
        if self._start is None:
            return []
        end = max(end, self.position)
        return [self._end(min(end, self._speech_end() + self._pause * self.config.window))]

    def skip(self, position: int) -> list[EndpointEvent]:
        """Go on at a later position because the audio up to there is lost.

        Args:
            position: Sample index of the next window.
        """
        events = self.seal(self.position)
        self.position = self._free_from = position
        return events

    def _begin(self, level: float) -> list[EndpointEvent]:
        first = self.position - self.config.window
        self._start = max(self._free_from, first - self._pre_roll * self.config.window)
        self._windows = deque([_Window(True, level)])
        self._silence = 0
        self._paused = False
        return [SpeechStarted(self._next, self._start)]

    def _after_window(self) -> list[EndpointEvent]:
        """Return what follows from the length of the utterance and of its last silence."""
        assert self._start is not None
        length = (self.position - self._start) // self.config.window
        if self._silence >= (self._hangover if length < self._long else self._long_hangover):
            return [self._end(self._speech_end() + self._pause * self.config.window)]
        if length >= self._limit:
            return self._cut_in_two()
        if self._silence == self._pause:
            self._paused = True
            end = self._speech_end() + self._pause * self.config.window
            return [SpeechPaused(self._next, self._start, end, self.num_speech)]
        return []

    def _speech_end(self) -> int:
        return self.position - self._silence * self.config.window

    def _end(self, end: int) -> SpeechEnded:
        assert self._start is not None
        ended = SpeechEnded(self._next, self._start, end, self._speech_end(), self.num_speech)
        self._next += 1
        self._start = None
        self._free_from = end
        self._windows.clear()
        self._silence = 0
        self._paused = False
        return ended

    def _cut_in_two(self) -> list[EndpointEvent]:
        """End the utterance where it is quietest; speech after that is the next utterance."""
        assert self._start is not None
        windows = list(self._windows)
        keep = self._quietest(windows) + 1
        cut = self.position - (len(windows) - keep) * self.config.window
        last_speech = max((i for i in range(keep) if windows[i].speech), default=keep - 1)
        num_speech = sum(each.speech for each in windows[:keep]) * self.config.window
        speech_end = cut - (keep - 1 - last_speech) * self.config.window
        ended = SpeechEnded(self._next, self._start, cut, speech_end, num_speech, True)
        rest = windows[keep:]
        self._next += 1
        self._free_from = cut
        self._windows = deque(rest)
        self._silence = min(self._silence, len(rest))
        if self._silence == len(rest):
            self._start = None
            return [ended]
        self._start = cut
        return [ended, SpeechStarted(self._next, cut)]

    def _quietest(self, windows: list[_Window]) -> int:
        """Return the index of the quietest window of those in reach, the later of equals.

        The level is averaged over three windows, so that a gap between words wins over the
        closure of a single consonant; the last window stays with the next utterance.
        """
        first = min(max(0, len(windows) - self._cut), len(windows) - 1)

        def loudness(index: int) -> float:
            near = list(islice(windows, max(index - 1, 0), index + 2))
            return sum(each.level for each in near) / len(near)

        candidates = range(first, max(first + 1, len(windows) - 1))
        return min(candidates, key=lambda i: (loudness(i), windows[i].level, -i))
