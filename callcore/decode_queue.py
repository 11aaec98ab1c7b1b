"""The queue of jobs for the decoders: whose samples go to which engine next.

One queue serves all legs: finals by deadline, then speculative finals, then partials by age.
Under load partials become rarer, then finals get less time each, then partials stop, then
speculation, then finals come late. Jobs that are as long as each other are decoded together.

What the inference process holds dies with it; nothing that matters is only there: finals of a dead
process are put back, so its death costs a delay. Samples that a leg's ring has lost are read from
its spill, in a thread. An engine that is down as a whole, as a remote one may be, rests: its finals
wait as references, the rest is forgotten, and one of them finds out whether it is back. One final
that brings it down each time, while others are answered, is given up as one that fails.
"""

import asyncio
import itertools
import logging
from collections.abc import Callable
from typing import Any

from callcore.decode_jobs import Job, Kind, Leg
from callcore.decode_lane import Inference, Lane, Replaced, lanes_of
from callcore.engines import LIVE_RATE, DecodeJob, Hypothesis, Samples
from callcore.errors import EngineDied, EngineDown, EngineError
from callcore.recognizer_config import RecognizerConfig
from callcore.waiting_jobs import WaitingJobs

logger = logging.getLogger(__name__)

#: Seconds that other jobs are served after an outage before it is another turn of one that has been
#: there when it began and when it went on.
_OTHERS_S = 1.0


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
        self.lanes = lanes_of(inference, clock, config)
        """By kind of leg: ``live`` and ``live_multilingual``, which may be the same."""
        self.fetches: set[asyncio.Task[None]] = set()
        """Reads of spills that are under way."""
        self._clock = clock
        self._waiting = WaitingJobs()
        self._in_work: dict[Job, None] = {}
        self._suspects: dict[Job, None] = {}
        """Jobs that wait to be tried alone."""

    def add(self, job: Job) -> None:
        """Queue a job; it starts with the next dispatch."""
        self._waiting.add(job)

    def withdraw(self, job: Job) -> None:
        """Take a job out of the queue if it still waits there."""
        self._waiting.discard(job)

    def dispatch(self) -> None:
        """Start what the engines have threads for."""
        lanes = list(dict.fromkeys(self.lanes.values()))
        for lane in lanes:
            lane.wake(self.dispatch)
            if lane.rests:
                self._forget_all_but_finals(lane)
        if any(job.suspect for job in self._in_work):
            return
        if (suspect := self._next_suspect()) is not None:
            # Whatever is in work beside it would die with it, as often as it is tried.
            if not self._in_work:
                self._waiting.discard(suspect)
                del self._suspects[suspect]
                self._start(suspect.leg.lane, [suspect])
            return
        for lane in lanes:
            while lane.has_room:
                batch = self._next_batch(lane)
                if not batch:
                    break
                self._start(lane, batch)

    def _next_suspect(self) -> Job | None:
        now = self._clock()
        for job in list(self._suspects):
            if job not in self._waiting:
                del self._suspects[job]
            elif job.not_before > now or not (job.leg.lane.is_there and job.leg.may_decode(job)):
                continue
            elif self._provide_samples(job):
                return job
        return None

    def _next_batch(self, lane: Lane) -> list[Job]:
        """Return jobs with their samples, the most urgent first; jobs beside it are as long."""
        now = self._clock()

        def may_join(batch: list[Job], job: Job) -> bool:
            # A job that failed before is tried in a batch of its own.
            alone = job.attempts > 1 or (batch and batch[0].attempts > 1)
            if job.suspect or (batch and alone) or job.not_before > now:
                return False
            return job.leg.may_decode(job) and self._provide_samples(job)

        return self._waiting.take(lane, lane.max_batch, may_join)

    def _forget_all_but_finals(self, lane: Lane) -> None:
        """Forget what nobody will want any more when the engine is back."""
        for kind in (Kind.SPECULATIVE, Kind.PARTIAL):
            for job in self._waiting.of(lane, kind):
                self._waiting.discard(job)
                job.leg.forget(job)

    def _provide_samples(self, job: Job) -> bool:
        """Return whether the job has its samples now; what the spill holds comes later."""
        if job.samples is not None:
            return True
        if job.leg.ring.start <= job.start:
            job.samples = job.leg.ring.read(job.start, job.end)
            return True
        if job.kind is not Kind.FINAL:
            self._waiting.discard(job)
            job.leg.forget(job)
        elif job.leg.spill is None:
            self._waiting.discard(job)
            self._give_up(job, "its samples have left the ring")
        elif not job.fetching and len(self.fetches) < self.config.max_batch:
            job.fetching = True
            self.fetch(job.leg, job.start, job.end, lambda got: self._fetched(job, got))
        return False

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
            if leg.closed:
                return
            try:
                then(samples)
            except Exception:
                logger.exception("samples of a leg cannot be taken")

        task = asyncio.get_running_loop().create_task(read())
        self.fetches.add(task)

    def _start(self, lane: Lane, batch: list[Job]) -> None:
        self._in_work.update(dict.fromkeys(batch))
        jobs = [self._decode_job(job) for job in batch]
        needed = sum(job.kind is not Kind.PARTIAL for job in batch) / len(batch)
        lane.call("decode", (jobs,), lambda answer: self._decoded(lane, batch, answer), needed)

    def _decode_job(self, job: Job) -> DecodeJob:
        assert job.samples is not None
        is_final = job.kind is not Kind.PARTIAL
        return DecodeJob(
            job.samples,
            job.leg.language_of(job),
            words=is_final,
            speech_s=job.num_speech / LIVE_RATE,
            redo=is_final and job.leg.lane.load.redoes,
            stream=job.stream,
            start=job.start,
        )

    def _decoded(self, lane: Lane, batch: list[Job], answer: Any) -> None:
        for job in batch:
            self._in_work.pop(job, None)
        if isinstance(answer, EngineDown):
            lane.rest(answer, self.config.tick_s)
            for job in batch:
                self._met_outage(job, answer)
            self.dispatch()
            return
        if not isinstance(answer, EngineError) and len(answer) != len(batch):
            answer = EngineError(lane.engine, f"{len(answer)} results for {len(batch)} jobs")
        if isinstance(answer, EngineError):
            for job in batch:
                self._failed(job, answer)
        else:
            # All of them first: what goes wrong with one must not cost the next its words.
            for job, hypothesis in zip(batch, answer, strict=True):
                job.result = hypothesis
            for job in batch:
                self._tell(job)
        self.dispatch()

    def _tell(self, job: Job) -> None:
        """Let a leg take its result."""
        try:
            job.leg.heard(job, self._clock())
        except Exception:
            # A leg that fails must not keep words from the others.
            logger.exception("the result of a decode cannot be taken")

    def _met_outage(self, job: Job, down: EngineDown) -> None:
        """Put a job back whose engine is down.

        That costs it a try only if it was alone in the engine, and the engine has answered others
        since it was down for this job before.
        """
        lane = job.leg.lane
        before, job.answers_at_outage = job.answers_at_outage, lane.answers
        if before == lane.answers:
            # It may be down for everybody, or for this one: the next to be asked is another one.
            job.not_before = lane.rests_until + _OTHERS_S
        elif before is not None and job.suspect:
            self._retry_later(job, down)
            return
        elif before is not None:
            job.suspect = True
        self._put_back(job)

    def _failed(self, job: Job, error: EngineError) -> None:
        """Put a job back whose decode has no result."""
        if not isinstance(error, Replaced):
            if isinstance(error, EngineDied):
                job.deaths += 1
                job.suspect = job.suspect or job.deaths > 1
            self._retry_later(job, error)
            return
        if error.running.stalled:
            # A suspect is the only decode of the process.
            job.stalls += job.suspect
            job.suspect = True
            if job.stalls >= self.config.max_stalls:
                job.attempts = self.config.max_attempts - 1
                self._retry_later(job, error)
                return
        self._put_back(job)

    def _retry_later(self, job: Job, error: EngineError) -> None:
        """Put a job back whose decode failed or died."""
        job.attempts += 1
        if job.kind is Kind.FINAL and job.attempts >= self.config.max_attempts:
            self._waiting.discard(job)
            if not job.leg.closed:
                self._give_up(job, error.message)
            return
        # The first death is most likely not the job's fault; after that it takes its time.
        job.not_before = self._clock() + 0.25 * (job.attempts - 1)
        self._put_back(job)

    def _put_back(self, job: Job) -> None:
        """Let a job wait again that has no result; only finals are worth it."""
        self._waiting.discard(job)
        if job.leg.closed:
            return
        if job.kind is Kind.FINAL:
            self._waiting.add(job)
            if job.suspect:
                self._suspects[job] = None
        else:
            job.leg.forget(job)

    def _give_up(self, job: Job, reason: str) -> None:
        """Deliver a final without words, because none can be had."""
        logger.error("an utterance is given up", extra={"attempts": job.attempts, "reason": reason})
        job.result = Hypothesis("")
        self._tell(job)

    def waits(self, job: Job) -> bool:
        """Return whether the job is queued and not in work."""
        return job in self._waiting

    def drop(self, leg: Leg) -> None:
        """Forget all that waits for a leg."""
        for job in [job for job in self._waiting if job.leg is leg]:
            self._waiting.discard(job)

    def update_load(self, now: float) -> None:
        """Notice how long jobs wait."""
        for lane in set(self.lanes.values()):
            # What waits for an engine that is down does not wait because of too much work.
            if not lane.is_down:
                waits = (self._waits_s(lane, kind, now) for kind in (Kind.FINAL, Kind.PARTIAL))
                lane.load.update(now, lane.load.is_late(*waits))

    def _waits_s(self, lane: Lane, kind: Kind, now: float) -> float:
        """Return for how long the oldest job waits, unless it is because it failed."""
        job = self._waiting.first(lane, kind)
        return 0.0 if job is None or job.attempts or job.suspect else now - job.since

    def has_final(self, lane: Lane) -> bool:
        """Return whether a final waits for an engine."""
        return self._waiting.first(lane, Kind.FINAL) is not None

    def behind_s(self, now: float) -> float:
        """Return for how many seconds the oldest utterance that has ended waits for its words."""
        waiting = (self._waiting.first(lane, Kind.FINAL) for lane in set(self.lanes.values()))
        jobs = itertools.chain(filter(None, waiting), self._in_work)
        return max((now - job.since for job in jobs if job.kind is Kind.FINAL), default=0.0)
