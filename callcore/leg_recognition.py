"""Recognition of one leg: from what the speech detector says to utterances in order.

The detector's probabilities make utterances (``endpointing``), and utterances make jobs:

* a **partial** each fraction of a second of speech; the newest replaces one that still waits;
* a **speculative** final after a short pause, which is the final if the pause lasts;
* a **final** at the end of the utterance. Finals are never dropped: they refer to samples in the
  ring, or in ``spill`` (the leg's capture) when the ring has moved on.

A job belongs to one utterance of one leg and is delivered once, so late answers do no harm.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from callcore.decode_queue import DecodeQueue, Job, Kind, Lane, Spill
from callcore.endpointing import (
    Endpointer,
    EndpointEvent,
    SpeechEnded,
    SpeechPaused,
    SpeechResumed,
    SpeechStarted,
)
from callcore.engines import LIVE_RATE, Floats, Hypothesis, Samples
from callcore.hypothesis import Agreement
from callcore.ringbuffer import RingBuffer

logger = logging.getLogger(__name__)


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


class LegOwner(Protocol):
    """The part of ``Recognizer`` that a leg uses."""

    @property
    def answers(self) -> int:
        """Calls that engines have answered."""
        ...

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
        language: str | None,
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
        self._owner = owner
        self._queue = queue
        self._config = queue.config
        self._listener = listener
        self._given_language = language
        self._found_language: str | None = None
        self._bad_finals = 0
        self._endpointer = Endpointer(self._config.endpoint)
        self._agreement = Agreement()
        self._finals: deque[Job] = deque()
        """Ended utterances that are not delivered, in order."""
        self._speculation: Job | None = None
        self._partial: Job | None = None
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
            answers = self._owner.answers
            try:
                async with asyncio.timeout(self._config.given_up_s):
                    await self._closed.wait()
            except TimeoutError:
                if self._owner.answers == answers:
                    logger.error("no engine answers: the last words of a leg are given up")
                    self.discard()

    def discard(self) -> None:
        """Drop the leg and what is in work for it; nothing is delivered any more."""
        self._owner.closed(self)
        self._closed.set()

    @property
    def language(self) -> str | None:
        """Code of the language that is decoded, None while it is unknown."""
        return self._given_language or self._found_language

    @property
    def closed(self) -> bool:
        """Whether it is over: it takes no results any more."""
        return self._closed.is_set()

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
        self._queue.fetch(self, start, end, self._take_fetched)

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
        now = self._owner.now()
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
                if self._queue.load.speculates:
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
        job.agreement = self._agreement
        if self.spill is None and job.samples is None:
            with contextlib.suppress(LookupError):
                job.samples = self.ring.read(job.start, job.end)
        self._finals.append(job)
        self._deliver(now)

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
        interval_s = self._queue.load.partial_interval_s
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
        if self._given_language is not None or not self._finals:
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

    def _learn_language(self, job: Job, hypothesis: Hypothesis) -> None:
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
            now = self._owner.now()
            for event in self._endpointer.seal(self.ring.end):
                self._on_event(event, now)
        if self._sealed and not self._finals:
            self.discard()
