"""Recognition of one leg: from what the speech detector says to utterances in order.

Windows that can be speech at all (``energy_gate``) go to the detector, the others are silence. Its
probabilities make utterances (``endpointing``), and utterances make jobs:

* a **partial** each fraction of a second of speech; the newest replaces one that still waits;
* a **speculative** final after a short pause, which is the final if the pause lasts;
* a **final** at the end of the utterance. Finals are never dropped: they refer to samples in the
  ring, or in ``spill`` (the leg's capture) when the ring has moved on.

A job belongs to one utterance of one leg and is delivered once, so late answers do no harm.
"""

import asyncio
import contextlib
import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np

from callcore.call_language import CallLanguage, LegLanguage
from callcore.decode_jobs import Job, Kind, Spill
from callcore.decode_lane import Lane
from callcore.decode_queue import DecodeQueue
from callcore.endpointing import (
    Endpointer,
    EndpointEvent,
    SpeechEnded,
    SpeechPaused,
    SpeechResumed,
    SpeechStarted,
)
from callcore.energy_gate import EnergyGate, GateConfig, Judged
from callcore.engines import LIVE_RATE, Floats, Hypothesis, Samples
from callcore.hypothesis import Agreement
from callcore.ringbuffer import RingBuffer

logger = logging.getLogger(__name__)

#: Keys of the legs' audio: what an engine keeps of one leg is never taken for another's.
_streams = itertools.count(1)

#: Seconds of audio that finals of a leg without spill keep while they wait, all together: 2 MB.
_KEPT_S = 120.0
#: Seconds by which each try to read a spill is later after a failure than after the one before.
_FETCH_PAUSE_S = 0.25


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

    def lost(self, start: int, end: int, reason: str) -> None:
        """Take that nobody will hear a span of audio: words in it are missing.

        Args:
            start: Sample index of its beginning.
            end: Sample index after its last sample.
            reason: Why.
        """
        ...

    def lag(self, lag_s: float, state: str) -> None:
        """Take how far the words are behind, whenever ``state`` changes.

        Args:
            lag_s: Seconds.
            state: ``ok`` or ``behind``.
        """
        ...


class LegOwner(Protocol):
    """The part of ``Recognizer`` that a leg uses."""

    def now(self) -> float:
        """Return the time of the clock."""
        ...

    def closed(self, leg: "LegRecognition") -> None:
        """Forget a leg and all that waits for it."""
        ...


class LegRecognition:
    """Recognition of one leg: its utterances and what of them is in work."""

    def __init__(
        self,
        owner: LegOwner,
        queue: DecodeQueue,
        lane: Lane,
        ring: RingBuffer,
        listener: LegListener,
        language: str | CallLanguage,
        spill: Spill | None,
    ) -> None:
        """Begin at sample 0; made by ``Recognizer.open_leg``."""
        self.lane = lane
        self.ring = ring
        self.spill = spill
        self.state: Floats | None = None
        """Of the speech detector, at the endpointer's position; None before the first window."""
        self.opened_at = owner.now()
        """Clock time."""
        self.stream = next(_streams)
        """Key of its audio for engines."""
        self._owner = owner
        self._queue = queue
        self._config = queue.config
        self._listener = listener
        self._language = LegLanguage(language) if isinstance(language, CallLanguage) else language
        self._endpointer = Endpointer(self._config.endpoint)
        self._gate = self._gate_from(0)
        self._judged: Judged | None = None
        """Windows whose turn it is; the detector has not answered about those to be heard."""
        self._agreement = Agreement()
        self._finals: deque[Job] = deque()
        """Ended utterances that are not delivered, in order."""
        self._abandoned: dict[Job, str] = {}
        """Those of them that will have no words, and why."""
        self._speculation: Job | None = None
        self._partial: Job | None = None
        self._partial_end = 0
        """Sample index up to which partials were asked for."""
        self._shown_end = 0
        """Sample index up to which the open utterance has been shown."""
        self._shown: tuple[str, int] = ("", 0)
        self._fetching = False
        self._fetch_failures = 0
        self._fetch_at = -float("inf")
        """Clock time before which the spill is not read again."""
        self._origin = float("inf")
        """Clock time of sample 0."""
        self._behind = False
        self._finishing = False
        self._sealed = False
        self._closed = asyncio.Event()

    async def finish(self) -> None:
        """Wait until all audio of the ring is heard and every final is delivered.

        The leg has no more audio: an utterance that is open ends with it. Where its engine answers
        nobody any more and the detector does not get on with it, the rest is given up: a call must
        end. Each utterance then has an empty final, and the listener knows what was lost.
        """
        self._finishing = True
        self._advance_end()
        while not self._closed.is_set():
            progress = self._progress
            try:
                async with asyncio.timeout(self._config.given_up_s):
                    await self._closed.wait()
            except TimeoutError:
                if self._progress == progress:
                    logger.error("no engine answers: the last words of a leg are given up")
                    self._give_up_rest("no engine answers")

    def discard(self) -> None:
        """Drop the leg and what is in work for it; nothing is delivered any more."""
        self._owner.closed(self)
        self._closed.set()
        # Jobs know their leg: a cycle would keep its ring until the collector finds it.
        self._finals.clear()
        self._abandoned.clear()
        self._partial = self._speculation = self._judged = None

    @property
    def _progress(self) -> tuple[int, int, int]:
        """What changes as long as there is hope; answers about other legs' windows are none."""
        return self.lane.answers, self._gate.position, self._endpointer.position

    def _give_up_rest(self, reason: str) -> None:
        """Deliver what waits as empty, and drop the leg."""
        now = self._owner.now()
        unheard = self._unheard
        self._judged = None
        for event in self._endpointer.seal(self._endpointer.position):
            self._on_event(event, now)
        for job in self._finals:
            if job.result is None:
                self._abandon(job, reason)
        self._deliver(now)
        if unheard >= self._config.endpoint.window:
            self._tell(self._listener.lost, self.ring.end - unheard, self.ring.end, reason)
        self.discard()

    @property
    def language(self) -> str | None:
        """Code of the language that is spoken, None while it is unknown."""
        known = self._language
        return known.found if isinstance(known, LegLanguage) else known

    def language_of(self, job: Job) -> str | None:
        """Return the code of the language that a job is decoded in, None to find out."""
        known = self._language
        return known.of(job.num_speech / LIVE_RATE) if isinstance(known, LegLanguage) else known

    @property
    def closed(self) -> bool:
        """Whether it is over: it takes no results any more."""
        return self._closed.is_set()

    @property
    def has_backlog(self) -> bool:
        """Whether more windows wait than come with a tick."""
        return self._unheard > 4 * self._config.endpoint.window

    @property
    def _unheard(self) -> int:
        """Samples that wait for gate or detector.

        What the gate keeps back until it knows whether speech follows is not late.
        """
        heard = self._gate if self._judged is None else self._endpointer
        return self.ring.end - heard.position

    # Windows, for the speech detector.

    def next_windows(self) -> Samples | None:
        """Return the windows that the detector is to hear next, or None."""
        if self._closed.is_set():
            return None
        if self._judged is None and not self._fetching and self._owner.now() >= self._fetch_at:
            self._judge_more()
        return None if self._judged is None else np.concatenate(self._judged.samples)

    def _judge_more(self) -> None:
        """Let the gate look at new audio."""
        window = self._config.endpoint.window
        start = self._gate.position
        num = min((self.ring.end - start) // window, self._config.windows_per_call)
        if num <= 0:
            return
        end = start + num * window
        try:
            samples = self.ring.read(start, end)
        except LookupError:
            self._fetch_windows(start, end)
        else:
            self._take_judged(self._gate.push(samples))

    def _take_judged(self, judged: Judged) -> None:
        """Keep windows for the detector; without any to be heard, go on at once."""
        self._judged = judged
        if not judged.samples:
            self._push_judged(iter(()), self._owner.now())

    def _fetch_windows(self, start: int, end: int) -> None:
        if self.spill is None:
            self._skip_lost()
            return
        self._fetching = True
        self._queue.fetch(self, start, end, self._take_fetched)

    def _take_fetched(self, samples: Samples | None) -> None:
        self._fetching = False
        if samples is not None:
            self._fetch_failures = 0
            self._take_judged(self._gate.push(samples))
            return
        self._fetch_failures += 1
        if self._fetch_failures >= self._config.max_attempts:
            self._skip_lost()
        else:
            self._fetch_at = self._owner.now() + _FETCH_PAUSE_S * self._fetch_failures

    def _skip_lost(self) -> None:
        """Go on where the ring begins: what was before cannot be had any more."""
        start, end = self._gate.position, self.ring.start
        logger.warning("audio lost before it was heard", extra={"samples": end - start})
        self._tell(self._listener.lost, start, end, "recognition was too late")
        self._fetch_failures = 0
        self._take_judged(self._gate.seal())
        self.state = None
        self._gate = self._gate_from(end)
        now = self._owner.now()
        for event in self._endpointer.skip(end):
            self._on_event(event, now)

    def _gate_from(self, start: int) -> EnergyGate:
        config = self._config.endpoint
        return EnergyGate(GateConfig(rate=config.rate, window=config.window), start=start)

    def take_windows(self, probabilities: Floats, state: Floats, now: float) -> None:
        """Take what the detector says about the windows that ``next_windows`` gave."""
        if self._closed.is_set():
            return
        self.state = state
        self._push_judged(iter(probabilities.tolist()), now)

    def _push_judged(self, probabilities: Iterator[float], now: float) -> None:
        """Go through the windows whose turn it is; those that are not heard are silence."""
        judged = self._judged
        assert judged is not None
        for heard, level in zip(judged.heard, judged.levels, strict=True):
            for event in self._endpointer.push(next(probabilities) if heard else 0.0, level):
                self._on_event(event, now)
        self._judged = None
        self._advance_partial(now)
        self._advance_end()

    def look(self, now: float) -> None:
        """Notice the clock: where the audio stands, and how late the words are."""
        self._origin = min(self._origin, now - self.ring.end / LIVE_RATE)
        unheard_s = self._unheard / LIVE_RATE
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
                if self.lane.load.speculates:
                    self._speculation = self._queue_job(Kind.SPECULATIVE, event, now)
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
                self._queue.withdraw(job)
            job = self._queue_job(Kind.FINAL, event, now)
        job.kind = Kind.FINAL
        job.since = now
        job.due = now + self._config.final_due_s
        job.speech_end = event.speech_end
        job.is_cut = event.is_cut
        job.agreement = self._agreement
        if self.spill is None and job.samples is None:
            with contextlib.suppress(LookupError):
                job.samples = self.ring.read(job.start, job.end)
        self._finals.append(job)
        if self.spill is None:
            self._limit_kept()
        self._deliver(now)

    def _limit_kept(self) -> None:
        """Give up the oldest finals where too much audio is kept for those that wait."""
        waiting = [job for job in self._finals if job.result is None and job.samples is not None]
        kept = sum(job.end - job.start for job in waiting)
        for job in waiting:
            if kept <= _KEPT_S * LIVE_RATE:
                break
            if self._queue.waits(job):
                self._abandon(job, "too many words wait")
                kept -= job.end - job.start

    def _abandon(self, job: Job, reason: str) -> None:
        """Let a final be empty; nothing is decoded for it any more."""
        self._queue.withdraw(job)
        job.result = Hypothesis("")
        self._abandoned[job] = reason

    def _queue_job(self, kind: Kind, event: SpeechPaused | SpeechEnded, now: float) -> Job:
        job = Job(
            self,
            kind,
            event.utterance,
            event.start,
            event.end,
            event.num_speech,
            since=now,
            due=now,
            stream=self.stream,
        )
        self._queue.add(job)
        return job

    def _drop_speculation(self) -> None:
        job, self._speculation = self._speculation, None
        if job is not None:
            self._queue.withdraw(job)

    # Partials.

    def _advance_partial(self, now: float) -> None:
        """Ask for a partial if enough was said since the last one."""
        interval_s = self.lane.load.partial_interval_s
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
            if not self._queue.waits(self._partial):
                return  # it is being decoded: the next one follows its answer
            waited_since = self._partial.since
            self._drop_partial()
        self._partial_end = position
        self._partial = Job(
            self,
            Kind.PARTIAL,
            endpointer.utterance,
            endpointer.start,
            position,
            endpointer.num_speech,
            since=waited_since,
            due=waited_since,
            stream=self.stream,
        )
        self._queue.add(self._partial)

    def _drop_partial(self) -> None:
        job, self._partial = self._partial, None
        if job is not None:
            self._queue.withdraw(job)

    def forget(self, job: Job) -> None:
        """Notice that a partial or a speculation will have no result."""
        if self._partial is job:
            self._partial = None
        if self._speculation is job:
            self._speculation = None

    # Results.

    def may_decode(self, job: Job) -> bool:
        """Return whether the job may start.

        Where the language is to be found out, it depends on the finals before, so that the
        result is the same however busy the machine is.
        """
        if isinstance(self._language, str) or not self._finals:
            return True
        return job is self._finals[0]

    def heard(self, job: Job, now: float) -> None:
        """Take the result of a job."""
        if self._closed.is_set():
            return
        if self._partial is job:
            self._partial = None
        if job.kind is Kind.FINAL:
            self._deliver(now)
        else:
            self._show(job)

    def _show(self, job: Job) -> None:
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
            if (reason := self._why_lost(job)) is not None:
                self._tell(self._listener.lost, job.start, job.end, reason)
            if isinstance(self._language, LegLanguage):
                self._language.learn(hypothesis, job.num_speech / LIVE_RATE)
            latency = max(0.0, now - self._origin - job.speech_end / LIVE_RATE)
            revised = job.agreement.revised(hypothesis.text, is_cut=job.is_cut)
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

    def _why_lost(self, job: Job) -> str | None:
        """Return why a final has no words although something may have been said."""
        if job in self._abandoned:
            return self._abandoned.pop(job)
        if job.samples is None:
            return "recognition was too late"
        if job.attempts >= self._config.max_attempts:
            return "recognition failed"
        return None

    def _tell(self, method: Callable[..., None], *arguments: Any) -> None:
        try:
            method(*arguments)
        except Exception:
            # What one leg's listener does wrong must not keep words from the others.
            logger.exception("a leg's listener failed")

    def _advance_end(self) -> None:
        """Seal and close the leg when it is finishing and nothing is left to do."""
        if not self._finishing or self._closed.is_set():
            return
        heard = self._judged is None and self._unheard < self._config.endpoint.window
        if heard and not self._sealed:
            rest = self._gate.seal()
            if rest.heard:
                self._take_judged(rest)  # and back here
                return
            self._sealed = True
            now = self._owner.now()
            for event in self._endpointer.seal(self.ring.end):
                self._on_event(event, now)
        if self._sealed and not self._finals:
            self.discard()
