"""From the audio of all live legs to words: who is decoded when.

Everything here runs on the event loop and only decides; speech detection and decoding happen in
the inference process, in batches across legs. Every tick takes the new windows of all legs from
their rings to the speech detector; its probabilities make utterances (``endpointing``), and
utterances make jobs:

* a **partial** each fraction of a second of speech; the newest replaces one that still waits;
* a **speculative** final after a short pause, which is the final if the pause lasts;
* a **final** at the end of the utterance. Finals are never dropped: they refer to samples in the
  ring, or in ``spill`` (the leg's capture) when the ring has moved on.

One queue serves all legs: finals by deadline, then speculative finals, then partials by age.
Under load partials become rarer and stop, then speculation stops, then finals come late.

What the inference process holds dies with it; nothing that matters is only there. Positions and
detector states are kept here, and jobs of a dead process are put back, so its death costs a delay.
A job belongs to one utterance of one leg and is delivered once, so late answers do no harm.
"""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Protocol

import numpy as np

from callcore.endpointing import (
    EndpointConfig,
    Endpointer,
    EndpointEvent,
    SpeechEnded,
    SpeechPaused,
    SpeechResumed,
    SpeechStarted,
)
from callcore.engines import LIVE_RATE, DecodeJob, Floats, Hypothesis, Samples, bucket_s
from callcore.errors import EngineError
from callcore.hypothesis import Agreement
from callcore.inference import EngineSpec
from callcore.ringbuffer import RingBuffer

logger = logging.getLogger(__name__)

Spill = Callable[[int, int], Samples]


class LegListener(Protocol):
    """What a leg hears of its recognition, on the event loop, in the order of the utterances."""

    def partial(self, utterance: int, start: int, end: int, text: str, stable: int) -> None:
        """Take what is heard so far of an utterance; replaces its last partial.

        Args:
            utterance: 0, 1, 2 ... within the leg.
            start: Sample index of its beginning.
            end: Sample index up to which was heard.
            text: All words so far; may be empty after it was not.
            stable: How many leading words two decodes agree on.
        """
        ...

    def final(
        self,
        utterance: int,
        start: int,
        end: int,
        hypothesis: Hypothesis,
        latency: float,
        revised: bool,
    ) -> None:
        """Take an utterance that never changes again; comes exactly once for each.

        Args:
            utterance: As its partials.
            start: Sample index of its beginning.
            end: Sample index after its last sample; no later utterance begins before.
            hypothesis: Words with times from ``start``. An empty text means that nothing was
                said: a partial that was shown is to be withdrawn.
            latency: Seconds from the end of speech to now.
            revised: Whether a word changed that a partial had called stable.
        """
        ...

    def lag(self, lag_s: float, state: str) -> None:
        """Take how far the words are behind, whenever ``state`` changes.

        Args:
            lag_s: Seconds.
            state: ``ok`` or ``behind``.
        """
        ...


class Inference(Protocol):
    """The part of ``InferenceProcess`` that recognition uses."""

    @property
    def engines(self) -> Mapping[str, EngineSpec]:
        """Specs by name: ``vad`` and ``live`` or ``live_multilingual`` or both."""
        ...

    def call(self, engine: str, method: str, *args: Any) -> "Future[Any]":
        """Return the future result of a method; EngineError when the process dies."""
        ...

    def kill(self) -> None:
        """End the process that does not answer; the next one follows."""
        ...


@dataclass(frozen=True, slots=True)
class RecognizerConfig:
    """When what is decoded. Seconds of audio, except where it says seconds of the clock."""

    endpoint: EndpointConfig = field(default_factory=EndpointConfig)
    tick_s: float = 0.064
    """Seconds of the clock between two looks at the rings: two windows."""
    windows_per_call: int = 64
    """Windows of one leg that one call of the speech detector takes at most."""
    max_batch: int = 4
    """Jobs that are decoded together at most: eight fall out of the cache of a core (measured)."""
    first_partial_s: float = 0.5
    """Length of an utterance's first partial."""
    partial_intervals_s: tuple[float, ...] = (0.6, 0.8, 1.2, 2.0)
    """Speech between two partials, by rising load; then partials stop, then speculation."""
    overloaded_s: float = 0.4
    """Load rises while a job waits longer than this on the clock ..."""
    relaxed_s: float = 0.1
    """... and falls while none waits longer than this."""
    rise_s: float = 0.5
    """Seconds of the clock between two rises."""
    fall_s: float = 3.0
    """Seconds of the clock without a wait before each fall."""
    final_due_s: float = 0.3
    """Deadline of a final after its endpoint, on the clock; later than its speculation's."""
    behind_s: float = 3.0
    """Words this late are ``behind`` ..."""
    caught_up_s: float = 1.0
    """... until they are no later than this."""
    stalled_s: float = 15.0
    """Seconds of the clock without an answer after which the inference process is replaced.

    With the longest utterance it must fit into a leg's ring: where nothing is captured, what has
    left the ring meanwhile is lost.
    """
    loading_s: float = 120.0
    """The same for the first answer of a process, which has to load its models."""
    given_up_s: float = 60.0
    """Seconds after which a leg that has ended waits no more, if no engine answers at all."""
    max_attempts: int = 10
    """Decodes of one final that may fail or die before it is given up as empty."""
    language_speech_s: float = 2.0
    """Speech that an utterance needs for its language to be believed ..."""
    language_prob: float = 0.7
    """... with this probability; the leg then keeps it ..."""
    language_logprob: float = -1.0
    """... until two finals in a row are worse than this."""


class _Kind(IntEnum):
    """What a job is for; also the order in which jobs are served."""

    FINAL = 0
    SPECULATIVE = 1
    PARTIAL = 2


@dataclass(eq=False, slots=True)
class _Job:
    """A span of one leg that is to be decoded."""

    leg: "LegRecognition"
    kind: _Kind
    utterance: int
    start: int
    end: int
    num_speech: int
    since: float
    """Clock time from which it waits."""
    due: float
    """Clock time by which it should be done."""
    speech_end: int = 0
    """Finals: sample index after the last speech."""
    agreement: Agreement | None = None
    """Finals: what the partials of the utterance promised."""
    samples: Samples | None = None
    """What the ring no longer holds."""
    fetching: bool = False
    attempts: int = 0
    not_before: float = 0.0
    result: Hypothesis | None = None

    @property
    def order(self) -> tuple[int, float]:
        return self.kind, self.due


@dataclass(eq=False, slots=True)
class _Lane:
    """One engine: what it has in hand."""

    engine: str
    threads: int
    running: dict["Future[Any]", float] = field(default_factory=dict)
    """Calls without an answer, and since when."""
    answered: bool = False
    """Whether the present process has answered: before that it may still load its model."""


class _Load:
    """How much is decoded beyond the finals, by how long jobs wait."""

    def __init__(self, config: RecognizerConfig, now: float) -> None:
        self._config = config
        self._changed = now
        self.level = 0
        """0: everything; up to ``len(partial_intervals_s) + 1``: finals only."""

    @property
    def partial_interval_s(self) -> float | None:
        intervals = self._config.partial_intervals_s
        return intervals[self.level] if self.level < len(intervals) else None

    @property
    def speculates(self) -> bool:
        return self.level <= len(self._config.partial_intervals_s)

    def update(self, now: float, longest_wait_s: float) -> None:
        config = self._config
        if longest_wait_s > config.overloaded_s:
            if now - self._changed >= config.rise_s:
                self.level = min(self.level + 1, len(config.partial_intervals_s) + 1)
                self._changed = now
        elif longest_wait_s > config.relaxed_s:
            self._changed = max(self._changed, now - config.rise_s)
        elif self.level and now - self._changed >= config.fall_s:
            self.level -= 1
            self._changed = now


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
        self._inference = inference
        self._clock = clock
        self.answers = 0
        """Calls that engines have answered."""
        self._legs: set[LegRecognition] = set()
        self._waiting: list[_Job] = []
        self._detector = _Lane("vad", 1)
        self._lanes = _lanes(inference.engines)
        self._initial_state: Floats | None = None
        self._load = _Load(self.config, clock())
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ticking: asyncio.Task[None] | None = None
        self._fetches: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Begin to look at the rings."""
        self._loop = asyncio.get_running_loop()
        self._ticking = asyncio.create_task(self._tick_forever(), name="recognizer")

    async def close(self) -> None:
        """Stop; legs that are still open get no more words, and their ``finish`` returns."""
        tasks = [*self._fetches, *([self._ticking] if self._ticking else [])]
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
    ) -> "LegRecognition":
        """Return the recognition of a leg; it begins with the next tick.

        Args:
            ring: The leg's audio; appending to it is all that is needed.
            listener: Takes partials, finals and lag.
            language: Language code; None finds out once and keeps it.
            spill: Reads samples [start, end) that the ring has lost; may block, is called in a
                thread. Without it finals keep a copy of their samples while they wait.
        """
        lane = self._lanes["live" if language == "en" else "live_multilingual"]
        leg = LegRecognition(self, lane, ring, listener, language, spill)
        self._legs.add(leg)
        return leg

    def tick(self) -> None:
        """Look at all rings and queues once; ``start`` does so every ``tick_s``."""
        now = self._clock()
        self._detect(now)
        for leg in list(self._legs):
            leg.look(now)
        # A job that has failed waits for other reasons than too much work.
        waits = (now - job.since for job in self._waiting if not job.attempts and not job.fetching)
        self._load.update(now, max(waits, default=0.0))
        self._replace_if_stalled(now)
        self._dispatch()

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
            self._call(self._detector, "initial_state", (), self._know_initial_state)
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
            self._call(
                self._detector,
                "probabilities",
                arguments,
                lambda answer: self._detected(batch, answer),
            )

    def _know_initial_state(self, answer: Any) -> None:
        if not isinstance(answer, EngineError):
            self._initial_state = answer
            self._detect(self._clock())

    def _detected(self, batch: list[tuple["LegRecognition", Samples]], answer: Any) -> None:
        if isinstance(answer, EngineError):
            return  # the states are here: the next tick asks again
        now = self._clock()
        for (leg, samples), probabilities, state in zip(batch, *answer, strict=True):
            leg.take_windows(samples, probabilities, state, now)
        self._dispatch()
        if any(leg.has_backlog for leg in self._legs):
            self._detect(now)

    # Decoding.

    def add(self, job: _Job) -> None:
        """Queue a job; it starts with the next dispatch."""
        self._waiting.append(job)

    def withdraw(self, job: _Job) -> None:
        """Take a job out of the queue if it still waits there."""
        with contextlib.suppress(ValueError):
            self._waiting.remove(job)

    def _dispatch(self) -> None:
        for lane in dict.fromkeys(self._lanes.values()):
            while len(lane.running) < lane.threads:
                batch = self._next_batch(lane)
                if not batch:
                    break
                self._start(lane, batch)

    def _next_batch(self, lane: _Lane) -> list[_Job]:
        """Return jobs with their samples, the most urgent first; jobs beside it are as long."""
        batch: list[_Job] = []
        now = self._clock()
        ready = (job for job in self._waiting if job.leg.lane is lane and job.not_before <= now)
        for job in sorted(ready, key=lambda each: each.order):
            if len(batch) == self.config.max_batch:
                break
            alike = not batch or _bucket(job) == _bucket(batch[0])
            # A job that failed before is tried alone: it may be what kills the process.
            alone = job.attempts > 1 or (batch and batch[0].attempts > 1)
            if not alike or (batch and alone) or not job.leg.may_decode(job):
                continue
            if self._provide_samples(job):
                batch.append(job)
        for job in batch:
            self._waiting.remove(job)
        return batch

    def _provide_samples(self, job: _Job) -> bool:
        """Return whether the job has its samples now; what the spill holds comes later."""
        if job.samples is not None:
            return True
        try:
            job.samples = job.leg.ring.read(job.start, job.end)
        except LookupError:
            if job.kind is not _Kind.FINAL:
                self._waiting.remove(job)
                job.leg.forget(job)
            elif job.leg.spill is None:
                self._waiting.remove(job)
                self._give_up(job, "its samples have left the ring")
            elif not job.fetching and len(self._fetches) < self.config.max_batch:
                job.fetching = True
                self.fetch(job.leg, job.start, job.end, lambda got: self._fetched(job, got))
            return False
        return True

    def _fetched(self, job: _Job, samples: Samples | None) -> None:
        job.fetching = False
        job.samples = samples
        if samples is None:
            self._retry_later(job, EngineError("spill", "samples cannot be read"))
        self._dispatch()

    def fetch(
        self,
        leg: "LegRecognition",
        start: int,
        end: int,
        then: Callable[[Samples | None], None],
    ) -> None:
        """Read samples from the leg's spill in a thread; ``then`` takes None if that fails."""

        async def read() -> None:
            samples: Samples | None = None
            assert leg.spill is not None
            try:
                samples = await asyncio.to_thread(leg.spill, start, end)
            except Exception:
                # A leg whose capture cannot be read loses words, the others must not.
                logger.exception("samples that left the ring cannot be read back")
            finally:
                self._fetches.discard(task)
            if samples is not None and len(samples) != end - start:
                samples = None
            if leg in self._legs:
                then(samples)

        task = asyncio.get_running_loop().create_task(read())
        self._fetches.add(task)

    def _start(self, lane: _Lane, batch: list[_Job]) -> None:
        jobs = []
        for job in batch:
            assert job.samples is not None
            speech_s = job.num_speech / LIVE_RATE
            is_final = job.kind is not _Kind.PARTIAL
            jobs.append(DecodeJob(job.samples, job.leg.language, is_final, speech_s))
        self._call(lane, "decode", (jobs,), lambda answer: self._decoded(batch, answer))

    def _decoded(self, batch: list[_Job], answer: Any) -> None:
        if not isinstance(answer, EngineError) and len(answer) != len(batch):
            answer = EngineError("live", f"{len(answer)} results for {len(batch)} jobs")
        if isinstance(answer, EngineError):
            for job in batch:
                self._retry_later(job, answer)
        else:
            now = self._clock()
            for job, hypothesis in zip(batch, answer, strict=True):
                job.result = hypothesis
                job.leg.heard(job, now)
        self._dispatch()

    def _retry_later(self, job: _Job, error: EngineError) -> None:
        """Put a job back whose decode failed or died; only finals are worth it."""
        self.withdraw(job)
        if job.leg not in self._legs:
            return
        if job.kind is not _Kind.FINAL:
            job.leg.forget(job)
            return
        job.attempts += 1
        if job.attempts < self.config.max_attempts:
            # The first death is most likely not the job's fault; after that it takes its time.
            job.not_before = self._clock() + 0.25 * (job.attempts - 1)
            self.add(job)
            return
        self._give_up(job, error.message)

    def _give_up(self, job: _Job, reason: str) -> None:
        """Deliver a final without words, because none can be had."""
        logger.error("an utterance is given up", extra={"attempts": job.attempts, "reason": reason})
        job.result = Hypothesis("")
        job.leg.heard(job, self._clock())

    def _call(
        self, lane: _Lane, method: str, arguments: tuple[Any, ...], then: Callable[[Any], None]
    ) -> None:
        """Call the engine; ``then`` takes its answer, or the EngineError, on the event loop."""
        loop = self._loop
        assert loop is not None
        future = self._inference.call(lane.engine, method, *arguments)
        lane.running[future] = self._clock()

        def on_loop() -> None:
            del lane.running[future]
            error = future.exception()
            if error is not None and not isinstance(error, EngineError):
                error = EngineError(lane.engine, type(error).__name__)
            lane.answered = error is None
            self.answers += lane.answered
            then(future.result() if error is None else error)

        def done(_: "Future[Any]") -> None:
            # The loop may be closed by now.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(on_loop)

        future.add_done_callback(done)

    def _replace_if_stalled(self, now: float) -> None:
        for lane in {self._detector, *self._lanes.values()}:
            oldest = min(lane.running.values(), default=now)
            limit_s = self.config.stalled_s if lane.answered else self.config.loading_s
            if now - oldest > limit_s:
                logger.warning("inference process does not answer", extra={"engine": lane.engine})
                lane.answered = False
                self._inference.kill()

    def waits(self, job: _Job) -> bool:
        """Return whether the job is queued and not in work."""
        return job in self._waiting

    def now(self) -> float:
        """Return the time of the clock."""
        return self._clock()

    @property
    def load(self) -> _Load:
        """What is decoded at present beside finals."""
        return self._load

    def closed(self, leg: "LegRecognition") -> None:
        """Forget a leg and all that waits for it."""
        self._legs.discard(leg)
        self._waiting = [job for job in self._waiting if job.leg is not leg]


def _lanes(engines: Mapping[str, EngineSpec]) -> dict[str, _Lane]:
    """Return the lane of each kind of leg; equal specs are one engine, so one lane."""
    names = [name for name in ("live", "live_multilingual") if name in engines]
    if not names:
        raise ValueError("there is no engine live or live_multilingual")
    lanes: dict[str, _Lane] = {}
    for name in names:
        twin = next((n for n in lanes if engines[n] == engines[name]), None)
        lanes[name] = lanes[twin] if twin else _Lane(name, engines[name].threads)
    return {
        "live": lanes[names[0]],
        "live_multilingual": lanes[names[-1]],
    }


def _bucket(job: _Job) -> float:
    return bucket_s(job.end - job.start)


class LegRecognition:
    """Recognition of one leg: its utterances and what of them is in work."""

    def __init__(
        self,
        recognizer: Recognizer,
        lane: _Lane,
        ring: RingBuffer,
        listener: LegListener,
        language: str | None,
        spill: Spill | None,
    ) -> None:
        """Begin at sample 0; made by ``Recognizer.open_leg``."""
        self.lane = lane
        self.ring = ring
        self.spill = spill
        self.state: Floats | None = None
        """Of the speech detector, at the endpointer's position; None before the first window."""
        self._recognizer = recognizer
        self._config = recognizer.config
        self._listener = listener
        self._given_language = language
        self._found_language: str | None = None
        self._bad_finals = 0
        self._endpointer = Endpointer(self._config.endpoint)
        self._agreement = Agreement()
        self._finals: deque[_Job] = deque()
        """Ended utterances that are not delivered, in order."""
        self._speculation: _Job | None = None
        self._partial: _Job | None = None
        self._partial_end = 0
        """Sample index up to which partials were asked for."""
        self._shown_end = 0
        """Sample index up to which the open utterance has been shown."""
        self._shown: tuple[str, int] = ("", 0)
        self._fetched: Samples | None = None
        """Windows that came from the spill, for the next call of the detector."""
        self._fetching = False
        self._fetch_failures = 0
        self._origin = float("inf")
        """Clock time of sample 0."""
        self._behind = False
        self._finishing = False
        self._sealed = False
        self._closed = asyncio.Event()

    async def finish(self) -> None:
        """Wait until all audio of the ring is heard and every final is delivered.

        The leg has no more audio: an utterance that is open ends with it. Where no engine answers
        any more the rest is given up: a call must end, and its capture is transcribed later.
        """
        self._finishing = True
        self._advance_end()
        while not self._closed.is_set():
            answers = self._recognizer.answers
            try:
                async with asyncio.timeout(self._config.given_up_s):
                    await self._closed.wait()
            except TimeoutError:
                if self._recognizer.answers == answers:
                    logger.error("no engine answers: the last words of a leg are given up")
                    self.discard()

    def discard(self) -> None:
        """Drop the leg and what is in work for it; nothing is delivered any more."""
        self._recognizer.closed(self)
        self._closed.set()

    @property
    def language(self) -> str | None:
        """Code of the language that is decoded, None while it is unknown."""
        return self._given_language or self._found_language

    @property
    def has_backlog(self) -> bool:
        """Whether more windows wait than come with a tick."""
        return self.ring.end - self._endpointer.position > 4 * self._config.endpoint.window

    # Windows, for the speech detector.

    def next_windows(self) -> Samples | None:
        """Return the samples of whole windows that the detector has not seen, or None."""
        if self._fetched is not None or self._fetching:
            return self._fetched
        window = self._config.endpoint.window
        start = self._endpointer.position
        num = min((self.ring.end - start) // window, self._config.windows_per_call)
        if num <= 0:
            return None
        end = start + num * window
        try:
            return self.ring.read(start, end)
        except LookupError:
            self._fetch_windows(start, end)
            return None

    def _fetch_windows(self, start: int, end: int) -> None:
        if self.spill is None:
            self._skip_lost()
            return
        self._fetching = True
        self._recognizer.fetch(self, start, end, self._take_fetched)

    def _take_fetched(self, samples: Samples | None) -> None:
        self._fetching = False
        self._fetched = samples
        self._fetch_failures = 0 if samples is not None else self._fetch_failures + 1
        if self._fetch_failures >= self._config.max_attempts:
            self._skip_lost()

    def _skip_lost(self) -> None:
        """Go on where the ring begins: what was before cannot be had any more."""
        lost = self.ring.start - self._endpointer.position
        logger.warning("audio lost before it was heard", extra={"samples": lost})
        self._fetch_failures = 0
        self.state = None
        now = self._recognizer.now()
        for event in self._endpointer.skip(self.ring.start):
            self._on_event(event, now)

    def take_windows(
        self, samples: Samples, probabilities: Floats, state: Floats, now: float
    ) -> None:
        """Take what the detector says about the windows that ``next_windows`` gave."""
        if self._closed.is_set():
            return
        self._fetched = None
        self.state = state
        window = self._config.endpoint.window
        levels = np.abs(samples.astype(np.float32)).reshape(-1, window).mean(axis=1)
        for probability, level in zip(probabilities.tolist(), levels.tolist(), strict=True):
            for event in self._endpointer.push(probability, level):
                self._on_event(event, now)
        self._advance_partial(now)
        self._advance_end()

    def look(self, now: float) -> None:
        """Notice the clock: where the audio stands, and how late the words are."""
        self._origin = min(self._origin, now - self.ring.end / LIVE_RATE)
        unheard_s = (self.ring.end - self._endpointer.position) / LIVE_RATE
        undelivered_s = now - self._finals[0].since if self._finals else 0.0
        lag_s = max(unheard_s, undelivered_s)
        threshold_s = self._config.caught_up_s if self._behind else self._config.behind_s
        if (lag_s > threshold_s) is not self._behind:
            self._behind = not self._behind
            self._tell(self._listener.lag, lag_s, "behind" if self._behind else "ok")

    # Utterances.

    def _on_event(self, event: EndpointEvent, now: float) -> None:
        match event:
            case SpeechStarted():
                self._agreement = Agreement()
                self._shown = ("", 0)
                self._shown_end = self._partial_end = event.start
            case SpeechPaused():
                self._drop_partial()
                if self._recognizer.load.speculates:
                    self._speculation = self._queue(_Kind.SPECULATIVE, event, now)
            case SpeechResumed():
                self._drop_speculation()
            case SpeechEnded():
                self._drop_partial()
                self._end_utterance(event, now)

    def _end_utterance(self, event: SpeechEnded, now: float) -> None:
        """Make the final: the speculation if it was about the same span, else a new job."""
        job, self._speculation = self._speculation, None
        if job is None or (job.start, job.end) != (event.start, event.end):
            if job is not None:
                self._recognizer.withdraw(job)
            job = self._queue(_Kind.FINAL, event, now)
        job.kind = _Kind.FINAL
        job.since = now
        job.due = now + self._config.final_due_s
        job.speech_end = event.speech_end
        job.agreement = self._agreement
        if self.spill is None and job.samples is None:
            with contextlib.suppress(LookupError):
                job.samples = self.ring.read(job.start, job.end)
        self._finals.append(job)
        self._deliver(now)

    def _queue(self, kind: _Kind, event: SpeechPaused | SpeechEnded, now: float) -> _Job:
        job = _Job(
            self,
            kind,
            event.utterance,
            event.start,
            event.end,
            event.num_speech,
            since=now,
            due=now,
        )
        self._recognizer.add(job)
        return job

    def _drop_speculation(self) -> None:
        job, self._speculation = self._speculation, None
        if job is not None:
            self._recognizer.withdraw(job)

    # Partials.

    def _advance_partial(self, now: float) -> None:
        """Ask for a partial if enough was said since the last one."""
        interval_s = self._recognizer.load.partial_interval_s
        endpointer = self._endpointer
        if interval_s is None or not endpointer.speaking:
            return
        position = endpointer.position
        if position - endpointer.start < self._config.first_partial_s * LIVE_RATE:
            return
        if position - self._partial_end < interval_s * LIVE_RATE:
            return
        waited_since = now
        if self._partial is not None:
            if not self._recognizer.waits(self._partial):
                return  # it is being decoded: the next one follows its answer
            waited_since = self._partial.since
            self._drop_partial()
        self._partial_end = position
        self._partial = _Job(
            self,
            _Kind.PARTIAL,
            endpointer.utterance,
            endpointer.start,
            position,
            endpointer.num_speech,
            since=waited_since,
            due=waited_since,
        )
        self._recognizer.add(self._partial)

    def _drop_partial(self) -> None:
        job, self._partial = self._partial, None
        if job is not None:
            self._recognizer.withdraw(job)

    def forget(self, job: _Job) -> None:
        """Notice that a partial or a speculation will have no result."""
        if self._partial is job:
            self._partial = None
        if self._speculation is job:
            self._speculation = None

    # Results.

    def may_decode(self, job: _Job) -> bool:
        """Return whether the job may start.

        Where the language is to be found out, it depends on the finals before, so that the
        result is the same however busy the machine is.
        """
        if self._given_language is not None or not self._finals:
            return True
        return job is self._finals[0]

    def heard(self, job: _Job, now: float) -> None:
        """Take the result of a job."""
        if self._closed.is_set():
            return
        if self._partial is job:
            self._partial = None
        if job.kind is _Kind.FINAL:
            self._deliver(now)
        else:
            self._show(job)

    def _show(self, job: _Job) -> None:
        """Show what was heard so far, unless more of the utterance has been shown already."""
        endpointer = self._endpointer
        is_open = endpointer.open and job.utterance == endpointer.utterance
        if not is_open or job.end <= self._shown_end:
            return
        assert job.result is not None
        self._shown_end = job.end
        text = job.result.text
        shown = (text, self._agreement.push(text))
        if shown != self._shown:
            self._shown = shown
            self._tell(self._listener.partial, job.utterance, job.start, job.end, *shown)

    def _deliver(self, now: float) -> None:
        """Deliver the finals that are ready, in order."""
        while self._finals and (hypothesis := self._finals[0].result) is not None:
            job = self._finals.popleft()
            assert job.agreement is not None
            self._learn_language(job, hypothesis)
            latency = max(0.0, now - self._origin - job.speech_end / LIVE_RATE)
            revised = job.agreement.revised(hypothesis.text)
            self._tell(
                self._listener.final,
                job.utterance,
                job.start,
                job.end,
                hypothesis,
                latency,
                revised,
            )
        self._advance_end()

    def _tell(self, method: Callable[..., None], *arguments: Any) -> None:
        try:
            method(*arguments)
        except Exception:
            # What one leg's listener does wrong must not keep words from the others.
            logger.exception("a leg's listener failed")

    def _learn_language(self, job: _Job, hypothesis: Hypothesis) -> None:
        if self._given_language is not None or not hypothesis.text:
            return
        config = self._config
        bad = hypothesis.avg_logprob < config.language_logprob
        self._bad_finals = self._bad_finals + 1 if bad else 0
        if self._bad_finals >= 2:
            self._found_language = None
        elif (
            self._found_language is None
            and job.num_speech >= config.language_speech_s * LIVE_RATE
            and hypothesis.language_prob > config.language_prob
        ):
            self._found_language = hypothesis.language

    def _advance_end(self) -> None:
        """Seal and close the leg when it is finishing and nothing is left to do."""
        if not self._finishing or self._closed.is_set():
            return
        unheard = self.ring.end - self._endpointer.position
        if not self._sealed and unheard < self._config.endpoint.window:
            self._sealed = True
            now = self._recognizer.now()
            for event in self._endpointer.seal(self.ring.end):
                self._on_event(event, now)
        if self._sealed and not self._finals:
            self.discard()
