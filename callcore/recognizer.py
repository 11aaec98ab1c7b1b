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
import time
from collections.abc import Callable
from typing import Any

from callcore.decode_queue import DecodeQueue, Inference, Lane, RecognizerConfig, Spill
from callcore.engines import Floats, Samples
from callcore.errors import EngineError
from callcore.leg_recognition import LegListener, LegRecognition
from callcore.live_load import Admission, LoadMeter
from callcore.ringbuffer import RingBuffer

__all__ = ["LegListener", "LegRecognition", "Recognizer", "RecognizerConfig"]

logger = logging.getLogger(__name__)


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
        self._legs: set[LegRecognition] = set()
        self._detector = Lane("vad", 1, inference, clock)
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
    ) -> LegRecognition | None:
        """Return the recognition of a leg; it begins with the next tick.

        None if the decoder would get more work than ``config.max_load``: the leg gets no words,
        so that those of the others stay in time. What is open is never given up.

        Args:
            ring: The leg's audio; appending to it is all that is needed.
            listener: Takes partials, finals and lag.
            language: Language code; None finds out once and keeps it.
            spill: Reads samples [start, end) that the ring has lost; may block, is called in a
                thread. Without it finals keep a copy of their samples while they wait.
        """
        lane = self._queue.lanes["live" if language == "en" else "live_multilingual"]
        self._measure(lane)
        if not self._admission[lane].admits([leg.opened_at for leg in self._legs_of(lane)]):
            return None
        leg = LegRecognition(self, self._queue, lane, ring, listener, language, spill)
        self._legs.add(leg)
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
        for lane in self._lanes:
            lane.replace_if_stalled(now, self.config)
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
        if self._detector.running:
            return
        if self._initial_state is None:
            self._detector.call("initial_state", (), self._know_initial_state)
            return
        batch: list[tuple[LegRecognition, Samples]] = []
        for leg in self._legs:
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

    def _know_initial_state(self, answer: Any) -> None:
        if not isinstance(answer, EngineError):
            self._initial_state = answer
            self._detect(self._clock())

    def _detected(self, batch: list[tuple[LegRecognition, Samples]], answer: Any) -> None:
        if isinstance(answer, EngineError):
            return  # the states are here: the next tick asks again
        now = self._clock()
        for (leg, samples), probabilities, state in zip(batch, *answer, strict=True):
            leg.take_windows(samples, probabilities, state, now)
        self._queue.dispatch()
        if any(leg.has_backlog for leg in self._legs):
            self._detect(now)

    # For the legs.

    @property
    def answers(self) -> int:
        """Calls that engines have answered."""
        return sum(lane.answers for lane in self._lanes)

    def load(self) -> float:
        """Return the share of their time, 0 to 1, that decoders worked in the last seconds."""
        worked = threads = 0.0
        for lane, admission in self._admission.items():
            self._measure(lane)
            worked += admission.meter.load * lane.threads
            threads += lane.threads
        return worked / threads

    def _measure(self, lane: Lane) -> None:
        now = self._clock()
        self._admission[lane].meter.note(now, *lane.worked(now), len(self._legs_of(lane)))

    def _legs_of(self, lane: Lane) -> list[LegRecognition]:
        return [leg for leg in self._legs if leg.lane is lane]

    def _admission_to(self, lane: Lane) -> Admission:
        config = self.config
        meter = LoadMeter(lane.threads, self._clock(), config.load_window_s, config.leg_cost)
        return Admission(meter, config.max_load)

    def now(self) -> float:
        """Return the time of the clock."""
        return self._clock()

    def closed(self, leg: LegRecognition) -> None:
        """Forget a leg and all that waits for it."""
        self._legs.discard(leg)
        self._queue.drop(leg)

    @property
    def _lanes(self) -> set[Lane]:
        return {self._detector, *self._queue.lanes.values()}
