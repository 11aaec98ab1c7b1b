"""The queue of jobs for the decoders: whose samples go to which engine next.

One queue serves all legs: finals by deadline, then speculative finals, then partials by age.
Under load partials become rarer and stop, then speculation stops, then finals come late. Jobs that
are as long as each other are decoded together.

What the inference process holds dies with it; nothing that matters is only there: finals of a dead
process are put back, so its death costs a delay. Samples that a leg's ring has lost are read from
its spill, in a thread.
"""

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Protocol

from callcore.endpointing import EndpointConfig
from callcore.engines import LIVE_RATE, DecodeJob, Hypothesis, Samples, bucket_s
from callcore.errors import EngineError
from callcore.hypothesis import Agreement
from callcore.inference import EngineSpec
from callcore.ringbuffer import RingBuffer

logger = logging.getLogger(__name__)

Spill = Callable[[int, int], Samples]


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
    max_load: float = math.inf
    """Predicted share of an engine's time above which no leg is opened: see ``live_load``."""
    load_window_s: float = 8.0
    """Seconds of the clock over which that share is measured: some utterances of each leg."""
    leg_cost: float = 0.05
    """Seconds of one thread that a leg is assumed to need per second, until it was measured.

    Measured on both sides of the sample call with tiny.en on one thread of a two-core machine:
    0.04 for what cannot be shed (0.15 with partials); base needs about twice as much. Too high,
    and the first calls after a start are refused for nothing; too low, and a burst of them is late.
    """


class Leg(Protocol):
    """The part of ``LegRecognition`` that the queue uses."""

    @property
    def lane(self) -> "Lane":
        """The engine that decodes it."""
        ...

    @property
    def ring(self) -> RingBuffer:
        """Its audio."""
        ...

    @property
    def spill(self) -> Spill | None:
        """Reads samples that the ring has lost."""
        ...

    @property
    def language(self) -> str | None:
        """Code of the language that is decoded, None while it is unknown."""
        ...

    @property
    def closed(self) -> bool:
        """Whether it takes no results any more."""
        ...

    def may_decode(self, job: "Job") -> bool:
        """Return whether the job may start."""
        ...

    def heard(self, job: "Job", now: float) -> None:
        """Take the result of a job."""
        ...

    def forget(self, job: "Job") -> None:
        """Notice that a partial or a speculation will have no result."""
        ...


class Kind(IntEnum):
    """What a job is for; also the order in which jobs are served."""

    FINAL = 0
    SPECULATIVE = 1
    PARTIAL = 2


@dataclass(eq=False, slots=True)
class Job:
    """A span of one leg that is to be decoded."""

    leg: Leg
    kind: Kind
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


@dataclass(frozen=True, slots=True)
class Running:
    """A call that has no answer yet."""

    since: float
    """Clock time."""
    needed: float
    """Share of it that cannot be shed under load."""
    counts: bool
    """Whether its time is work: while a process loads its model, it is not."""


@dataclass(eq=False, slots=True)
class Lane:
    """One engine: what it has in hand."""

    engine: str
    threads: int
    inference: Inference
    clock: Callable[[], float]
    running: dict["Future[Any]", Running] = field(default_factory=dict)
    """Calls without an answer."""
    answered: bool = False
    """Whether the present process has answered: before that it may still load its model."""
    answers: int = 0
    """Calls that it has answered."""
    busy_s: float = 0.0
    """Seconds that answered calls took, all together."""
    needed_s: float = 0.0
    """The same without what can be shed under load."""

    def call(
        self,
        method: str,
        arguments: tuple[Any, ...],
        then: Callable[[Any], None],
        needed: float = 1.0,
    ) -> None:
        """Call the engine; ``then`` takes its answer, or the EngineError, on the event loop.

        Args:
            method: Of the engine.
            arguments: For it.
            then: As above.
            needed: Share of the call, 0 to 1, that cannot be shed under load.
        """
        loop = asyncio.get_running_loop()
        future = self.inference.call(self.engine, method, *arguments)
        self.running[future] = Running(self.clock(), needed, self.answered)

        def on_loop() -> None:
            self.busy_s, self.needed_s = self._worked([self.running.pop(future)], self.clock())
            error = future.exception()
            if error is not None and not isinstance(error, EngineError):
                error = EngineError(self.engine, type(error).__name__)
            self.answered = error is None
            self.answers += self.answered
            then(future.result() if error is None else error)

        def done(_: "Future[Any]") -> None:
            # The loop may be closed by now.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(on_loop)

        future.add_done_callback(done)

    def worked(self, now: float) -> tuple[float, float]:
        """Return ``busy_s`` and ``needed_s`` with what running calls have taken so far."""
        return self._worked(self.running.values(), now)

    def _worked(self, calls: Iterable[Running], now: float) -> tuple[float, float]:
        busy_s, needed_s = self.busy_s, self.needed_s
        for each in calls:
            if each.counts:
                busy_s += now - each.since
                needed_s += (now - each.since) * each.needed
        return busy_s, needed_s

    def replace_if_stalled(self, now: float, config: RecognizerConfig) -> None:
        """Have the inference process replaced if it leaves a call without an answer too long."""
        oldest = min((each.since for each in self.running.values()), default=now)
        limit_s = config.stalled_s if self.answered else config.loading_s
        if now - oldest > limit_s:
            logger.warning("inference process does not answer", extra={"engine": self.engine})
            self.answered = False
            self.inference.kill()


class Load:
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


class DecodeQueue:
    """Jobs of all legs that wait, and the engines that decode them."""

    def __init__(
        self, inference: Inference, clock: Callable[[], float], config: RecognizerConfig
    ) -> None:
        """Begin empty.

        Args:
            inference: Holds the engines ``live`` or ``live_multilingual`` or both.
            clock: Seconds, monotonic.
            config: When what is decoded.

        Raises:
            ValueError: If there is neither engine.
        """
        self.config = config
        self.lanes = _lanes(inference, clock)
        """By kind of leg: ``live`` and ``live_multilingual``, which may be the same."""
        self.load = Load(config, clock())
        """What is decoded at present beside finals."""
        self.fetches: set[asyncio.Task[None]] = set()
        """Reads of spills that are under way."""
        self._clock = clock
        self._waiting: list[Job] = []

    def add(self, job: Job) -> None:
        """Queue a job; it starts with the next dispatch."""
        self._waiting.append(job)

    def withdraw(self, job: Job) -> None:
        """Take a job out of the queue if it still waits there."""
        with contextlib.suppress(ValueError):
            self._waiting.remove(job)

    def dispatch(self) -> None:
        """Start what the engines have threads for."""
        for lane in dict.fromkeys(self.lanes.values()):
            while len(lane.running) < lane.threads:
                batch = self._next_batch(lane)
                if not batch:
                    break
                self._start(lane, batch)

    def _next_batch(self, lane: Lane) -> list[Job]:
        """Return jobs with their samples, the most urgent first; jobs beside it are as long."""
        batch: list[Job] = []
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

    def _provide_samples(self, job: Job) -> bool:
        """Return whether the job has its samples now; what the spill holds comes later."""
        if job.samples is not None:
            return True
        try:
            job.samples = job.leg.ring.read(job.start, job.end)
        except LookupError:
            if job.kind is not Kind.FINAL:
                self._waiting.remove(job)
                job.leg.forget(job)
            elif job.leg.spill is None:
                self._waiting.remove(job)
                self._give_up(job, "its samples have left the ring")
            elif not job.fetching and len(self.fetches) < self.config.max_batch:
                job.fetching = True
                self.fetch(job.leg, job.start, job.end, lambda got: self._fetched(job, got))
            return False
        return True

    def _fetched(self, job: Job, samples: Samples | None) -> None:
        job.fetching = False
        job.samples = samples
        if samples is None:
            self._retry_later(job, EngineError("spill", "samples cannot be read"))
        self.dispatch()

    def fetch(
        self,
        leg: Leg,
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
                self.fetches.discard(task)
            if samples is not None and len(samples) != end - start:
                samples = None
            if not leg.closed:
                then(samples)

        task = asyncio.get_running_loop().create_task(read())
        self.fetches.add(task)

    def _start(self, lane: Lane, batch: list[Job]) -> None:
        jobs = []
        for job in batch:
            assert job.samples is not None
            speech_s = job.num_speech / LIVE_RATE
            is_final = job.kind is not Kind.PARTIAL
            jobs.append(DecodeJob(job.samples, job.leg.language, is_final, speech_s))
        needed = sum(job.kind is not Kind.PARTIAL for job in batch) / len(batch)
        lane.call("decode", (jobs,), lambda answer: self._decoded(batch, answer), needed)

    def _decoded(self, batch: list[Job], answer: Any) -> None:
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
        self.dispatch()

    def _retry_later(self, job: Job, error: EngineError) -> None:
        """Put a job back whose decode failed or died; only finals are worth it."""
        self.withdraw(job)
        if job.leg.closed:
            return
        if job.kind is not Kind.FINAL:
            job.leg.forget(job)
            return
        job.attempts += 1
        if job.attempts < self.config.max_attempts:
            # The first death is most likely not the job's fault; after that it takes its time.
            job.not_before = self._clock() + 0.25 * (job.attempts - 1)
            self.add(job)
            return
        self._give_up(job, error.message)

    def _give_up(self, job: Job, reason: str) -> None:
        """Deliver a final without words, because none can be had."""
        logger.error("an utterance is given up", extra={"attempts": job.attempts, "reason": reason})
        job.result = Hypothesis("")
        job.leg.heard(job, self._clock())

    def waits(self, job: Job) -> bool:
        """Return whether the job is queued and not in work."""
        return job in self._waiting

    def drop(self, leg: Leg) -> None:
        """Forget all that waits for a leg."""
        self._waiting = [job for job in self._waiting if job.leg is not leg]

    def update_load(self, now: float) -> None:
        """Notice how long jobs wait."""
        # A job that has failed waits for other reasons than too much work.
        waits = (now - job.since for job in self._waiting if not job.attempts and not job.fetching)
        self.load.update(now, max(waits, default=0.0))


def _lanes(inference: Inference, clock: Callable[[], float]) -> dict[str, Lane]:
    """Return the lane of each kind of leg; equal specs are one engine, so one lane."""
    engines = inference.engines
    names = [name for name in ("live", "live_multilingual") if name in engines]
    if not names:
        raise ValueError("there is no engine live or live_multilingual")
    lanes: dict[str, Lane] = {}
    for name in names:
        twin = next((n for n in lanes if engines[n] == engines[name]), None)
        if twin:
            lanes[name] = lanes[twin]
        else:
            lanes[name] = Lane(name, engines[name].threads, inference, clock)
    return {
        "live": lanes[names[0]],
        "live_multilingual": lanes[names[-1]],
    }


def _bucket(job: Job) -> float:
    return bucket_s(job.end - job.start)
