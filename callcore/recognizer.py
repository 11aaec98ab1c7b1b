"""From the audio of all live legs to words: who is heard when.

Everything here runs on the event loop and only decides; speech detection and decoding happen in
the inference process, in batches across legs. Every tick takes the new windows of all legs from
their rings to the speech detector; each leg makes utterances of its probabilities
(``leg_recognition``), and one queue decodes them (``decode_queue``).

What the inference process holds dies with it; nothing that matters is only there. Positions and
detector states are kept here, and jobs of a dead process are put back, so its death costs a delay.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable
from enum import Enum
from typing import Any

from callcore.call_language import CallLanguage
from callcore.decode_jobs import Spill
from callcore.decode_lane import Inference, Lane, replace_if_stalled
from callcore.decode_queue import DecodeQueue
from callcore.engines import Floats, Samples
from callcore.errors import EngineDied, EngineError
from callcore.leg_recognition import LegListener, LegRecognition
from callcore.live_load import Admission, LoadMeter
from callcore.recognizer_config import RecognizerConfig
from callcore.ringbuffer import RingBuffer

__all__ = ["LegListener", "LegRecognition", "Recognizer", "RefusedText"]

logger = logging.getLogger(__name__)

#: Times in a row that the speech detector fails, in a process that lives, before legs are refused.
_MOST_FAILURES = 3


class RefusedText(Enum):
    """Why a leg gets no live text."""

    BUSY = "busy"
    """The decoder would get more work than it may."""
    DOWN = "down"
    """Speech detector or engine does not answer."""


class Recognizer:
    """Recognition of all live legs of a daemon."""

    def __init__(
        self,
        inference: Inference,
        *,
        clock: Callable[[], float] = time.monotonic,
        config: RecognizerConfig | None = None,
    ) -> None:
        """Prepare; nothing runs before ``start``.

        Args:
            inference: Holds the engines ``vad``, and ``live`` for English, ``live_multilingual``
                for the rest; one of the two may be missing. It is neither started nor closed here.
            clock: Seconds, monotonic.
            config: When what is decoded.
        """
        self.config = config or RecognizerConfig()
        self._clock = clock
        self._legs: dict[LegRecognition, None] = {}
        self._detector = Lane("vad", 1, inference, clock, self.config)
        self._detector_failures = 0
        """In a row, in a process that lives."""
        self._detect_from = -math.inf
        """Clock time before which the detector is left alone."""
        self._queue = DecodeQueue(inference, clock, self.config)
        self._initial_state: Floats | None = None
        self._ticking: asyncio.Task[None] | None = None
        self._admission = {lane: self._admission_to(lane) for lane in self._queue.lanes.values()}

    async def start(self) -> None:
        """Begin to look at the rings."""
        self._ticking = asyncio.create_task(self._tick_forever(), name="recognizer")

    async def close(self) -> None:
        """Stop; legs that are still open get no more words, and their ``finish`` returns."""
        tasks = [*self._queue.fetches, *([self._ticking] if self._ticking else [])]
        self._ticking = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for leg in list(self._legs):
            leg.discard()

    def open_leg(
        self,
        ring: RingBuffer,
        listener: LegListener,
        *,
        language: str | None,
        spill: Spill | None,
        call_language: CallLanguage | None = None,
    ) -> LegRecognition | RefusedText:
        """Return the recognition of a leg, which begins with the next tick, or why it has none.

        ``BUSY`` if the decoder would get more work than ``config.max_load``: the leg gets no
        words, so that those of the others stay in time. What is open is never given up.

        Args:
            ring: The leg's audio; appending to it is all that is needed.
            listener: Takes partials, finals and lag.
            language: Language code; None finds out once and keeps it.
            call_language: What the legs of its call find out together where ``language`` is None;
                without it the leg finds out alone.
            spill: Reads samples [start, end) that the ring has lost; may block, is called in a
                thread. Without it finals keep a copy of their samples while they wait.
        """
        lane = self._queue.lanes["live" if language == "en" else "live_multilingual"]
        if self._is_down(lane):
            return RefusedText.DOWN
        if not self._admits(lane):
            return RefusedText.BUSY
        spoken = language or call_language or CallLanguage()
        leg = LegRecognition(self, self._queue, lane, ring, listener, spoken, spill)
        self._legs[leg] = None
        return leg

    def tick(self) -> None:
        """Look at all rings and queues once; ``start`` does so every ``tick_s``."""
        now = self._clock()
        self._detect(now)
        for leg in list(self._legs):
            leg.look(now)
        self._queue.update_load(now)
        for lane in self._admission:
            self._measure(lane)
        replace_if_stalled(self._lanes, now)
        self._queue.dispatch()

    async def _tick_forever(self) -> None:
        while True:
            try:
                self.tick()
            except Exception:
                # One broken leg must not silence the others.
                logger.exception("recognition failed at a tick")
            await asyncio.sleep(self.config.tick_s)

    # Speech detection: one call for all legs at a time.

    def _detect(self, now: float) -> None:
        if self._detector.running or now < self._detect_from:
            return
        if self._initial_state is None:
            self._detector.call("initial_state", (), self._know_initial_state)
            return
        batch: list[tuple[LegRecognition, Samples]] = []
        for leg in list(self._legs):  # one whose last window is silence may close
            samples = leg.next_windows()
            if samples is not None:
                batch.append((leg, samples))
        if batch:
            initial = self._initial_state
            states = [initial if leg.state is None else leg.state for leg, _ in batch]
            arguments = ([samples for _, samples in batch], states)
            self._detector.call(
                "probabilities",
                arguments,
                lambda answer: self._detected(batch, answer),
            )
        elif self._detector_failures:
            # Without legs nobody else would find out that it is back, and none would be let in.
            self._detector.call("initial_state", (), self._know_initial_state)

    def _know_initial_state(self, answer: Any) -> None:
        if isinstance(answer, EngineError):
            self._detector_failed(answer)
            return
        self._detector_failures = 0
        self._initial_state = answer
        self._detect(self._clock())

    def _detected(self, batch: list[tuple[LegRecognition, Samples]], answer: Any) -> None:
        if isinstance(answer, EngineError):
            self._detector_failed(answer)
            return
        self._detector_failures = 0
        now = self._clock()
        for (leg, _), probabilities, state in zip(batch, *answer, strict=True):
            try:
                leg.take_windows(probabilities, state, now)
            except Exception:
                # One broken leg must not silence the others.
                logger.exception("what the speech detector found cannot be taken")
        self._queue.dispatch()
        if any(leg.has_backlog for leg in self._legs):
            self._detect(now)

    def _detector_failed(self, error: EngineError) -> None:
        """Ask again: the states are here. A process that died has a successor at once."""
        if isinstance(error, EngineDied):
            return
        self._detector_failures += 1
        self._detect_from = self._clock() + min(0.25 * self._detector_failures, 5.0)
        if self._detector_failures == _MOST_FAILURES:
            logger.error("speech detection fails", extra={"reason": error.message})

    # For the legs.

    def load(self) -> float:
        """Return the share of their time, 0 to 1, that decoders worked in the last seconds.

        Those that share the cores of this machine count together; of remote ones the busiest.
        """
        for lane in self._admission:
            self._measure(lane)
        loads = {lane: admission.meter.load for lane, admission in self._admission.items()}
        return min(1.0, max(sum(loads[one] for one in self._beside(lane)) for lane in loads))

    def behind_s(self) -> float:
        """Return for how many seconds the oldest utterance that has ended waits for its words."""
        return self._queue.behind_s(self._clock())

    @property
    def shed(self) -> int:
        """What the busiest engine leaves out, 0 is nothing: see ``decode_load.Load``."""
        return max(lane.load.level for lane in self._admission)

    def _measure(self, lane: Lane) -> None:
        now = self._clock()
        self._admission[lane].meter.note(now, *lane.worked(now), len(self._legs_of(lane)))

    def _is_down(self, lane: Lane) -> bool:
        """Return whether nobody answers a new leg; one that has nothing in hand may try."""
        if self._detector_failures >= _MOST_FAILURES or lane.rests:
            return True
        return lane.is_down and (bool(lane.running) or self._queue.has_final(lane))

    def _admits(self, lane: Lane) -> bool:
        for each in self._beside(lane):
            self._measure(each)
        others = [each for each in self._beside(lane) if each is not lane]
        beside = sum(self._admission[each].meter.expected(self._opened(each)) for each in others)
        in_use = any(self._legs_of(each) for each in others)
        return self._admission[lane].admits(self._opened(lane), beside, in_use=in_use)

    def _beside(self, lane: Lane) -> list[Lane]:
        """Return the engines that share cores with one, and itself."""
        remote = self.config.remote
        if lane.engine in remote:
            return [lane]
        return [each for each in self._admission if each.engine not in remote]

    def _opened(self, lane: Lane) -> list[float]:
        return [leg.opened_at for leg in self._legs_of(lane)]

    def _legs_of(self, lane: Lane) -> list[LegRecognition]:
        return [leg for leg in self._legs if leg.lane is lane]

    def _admission_to(self, lane: Lane) -> Admission:
        config = self.config
        leg_cost = config.leg_costs.get(lane.engine, config.leg_cost)
        meter = LoadMeter(lane.threads, self._clock(), config.load_window_s, leg_cost)
        return Admission(meter, config.max_load)

    def now(self) -> float:
        """Return the time of the clock."""
        return self._clock()

    def closed(self, leg: LegRecognition) -> None:
        """Forget a leg and all that waits for it."""
        self._legs.pop(leg, None)
        self._queue.drop(leg)

    @property
    def _lanes(self) -> list[Lane]:
        return [self._detector, *self._admission]
