"""Live calls of one daemon: from the samples of a leg to its stored words and its end.

``LiveCalls`` holds what all legs share. A ``LegSession`` takes the audio of one connection: ring
and capture get it on the event loop, in memory only; everything slow (database, decoding, disk)
runs elsewhere and comes back through the leg's own coroutine, in this order::

    register -> call.started, leg.started -> recognition; each final: stored, then published
    end of audio -> last finals -> capture sealed -> leg stored as ended -> leg.ended
    last leg of the call and ``LINGER_S`` without a new one -> call.ended -> its capture accepted

A stream registered with two channels is two legs: the session of the left one splits the audio
and carries a session of its own for the right one, which lives and ends with it. Until the
registration is found a stream is taken for one channel; audio is kept to be split after all.

Time is arrival: Asterisk sends nothing in silence, so missing frames are silence, and sample i of
a leg was heard i / 8000 s after its UUID came.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from callcore import audio, events, log
from callcore.audiosocket import Audio
from callcore.calls import REFUSED, Call, Leg, LegState, now
from callcore.capture import Capture
from callcore.engines import LIVE_RATE, Hypothesis
from callcore.errors import CallcoreError, Refused
from callcore.live_records import Records
from callcore.recognizer import LegRecognition, Recognizer
from callcore.results import Segment
from callcore.ringbuffer import RingBuffer
from callcore.settings import Settings
from callcore.stereo import EarlyAudio, Splitter
from callcore.storage import consent_rows

logger = logging.getLogger(__name__)

#: Seconds of audio that a leg keeps in memory for recognition (512 KB).
RING_S = 32

#: Seconds after the end of a call's last leg in which a new leg (a transfer) continues the call.
LINGER_S = 2.0

#: A leg further behind the clock than this, when audio comes, missed frames: they were silence.
_GAP_SAMPLES = LIVE_RATE // 10

#: A leg from which nothing comes is filled with silence once it is so far behind, so that the
#: end of an utterance is found without audio; up to ``_GAP_SAMPLES`` before the present.
_QUIET_SAMPLES = 3 * LIVE_RATE // 10

#: Seconds that a leg's audio may be ahead of the clock: who sends faster than people speak is no
#: telephone. Audio that comes after all, once ticks have filled its time with silence, counts too.
MAX_AHEAD_S = 60

#: What people are told where a leg was refused recognition.
NO_TEXT = "too many calls at once: its text comes from the recording"

#: Sweeps without a sign of life after which another daemon is lost: a minute. Counted by who
#: looks, so that neither a clock that is wrong nor a daemon that was stopped itself ends calls.
LOST_AFTER_SWEEPS = 12

_UUID_LENGTH = 36


class EventSink(Protocol):
    """Where live events go: ``bus.Publisher``."""

    def put(self, event: events.Event) -> None:
        """Queue an event; never blocks, never raises."""

    def forget(self, *call_ids: str) -> None:
        """Have deleted what was published of a call; never blocks, never raises."""


class LiveCalls:
    """All live calls of a daemon.

    Args:
        settings: The daemon's settings.
        records: The database.
        publisher: Where live events go.
        capture: Where legs are kept; None keeps none.
        recognizer: What turns samples into words; None leaves the calls without words.
        clock: Seconds that only go forward.
    """

    def __init__(
        self,
        settings: Settings,
        records: Records,
        publisher: EventSink,
        capture: Capture | None,
        recognizer: Recognizer | None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self.records = records
        self.publisher = publisher
        self.capture = capture
        self.recognizer = recognizer
        self.clock = clock
        self.loop = asyncio.get_running_loop()
        self._legs: dict[str, LegSession] = {}
        self._calls: dict[str, CallSession] = {}
        self._seen: set[str] | None = set()  # UUIDs since the start, until orphans are sorted out
        # Other daemons with live legs: their last sign of life, and the sweeps that saw no newer.
        self._signs: dict[str, tuple[datetime | None, int]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.closing = asyncio.Event()
        """Set once the daemon ends: calls end without waiting for more legs."""

    def open_leg(
        self, leg_uuid: str, arrived: float, refuse: Callable[[str], None]
    ) -> "LegSession":
        """Return the session of a stream that has just said who it is.

        Args:
            leg_uuid: 36 characters.
            arrived: ``clock()`` when the UUID came: sample 0.
            refuse: Called later with the reason why the stream is not wanted, if it is not.

        Raises:
            Refused: If the same UUID streams at this moment.
        """
        if leg_uuid in self._legs:
            raise Refused("uuid-in-use", "another stream has this UUID")
        return self._opened(LegSession(self, leg_uuid, arrived, refuse))

    def open_right(self, left: "LegSession", leg_uuid: str) -> "LegSession":
        """Return the session of the right channel of a stream; it takes what ``left`` gives it.

        Raises:
            Refused: If a stream of its own has this UUID.
        """
        if leg_uuid in self._legs:
            raise Refused("uuid-in-use", "another stream has this UUID")
        return self._opened(LegSession(self, leg_uuid, left.arrived, _nobody, left=left))

    def _opened(self, leg: "LegSession") -> "LegSession":
        self._legs[leg.uuid] = leg
        if self._seen is not None:
            self._seen.add(leg.uuid)
        self.spawn(leg.run(), lambda: self._legs.pop(leg.uuid, None))
        return leg

    def tick(self, at: float) -> None:
        """Fill legs with silence from which nothing comes; about ten times a second."""
        for leg in self._legs.values():
            leg.tick(at)

    def call_of(self, leg: Leg) -> "CallSession":
        """Return the call of a leg, known from now on."""
        if leg.call_id not in self._calls:
            self._calls[leg.call_id] = CallSession(self, leg.call_id)
        return self._calls[leg.call_id]

    def forget(self, call_id: str) -> None:
        """Drop a call that has no legs here."""
        self._calls.pop(call_id, None)

    def spawn(
        self, work: Coroutine[Any, Any, None], done: Callable[[], object] | None = None
    ) -> None:
        """Run a coroutine beside the others; ``close`` waits for it."""
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(partial(self._finished, done))

    def _finished(self, done: Callable[[], object] | None, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if done is not None:
            done()
        if not task.cancelled() and (error := task.exception()) is not None:
            # One leg's or call's failure must not touch the others.
            logger.error("a live task failed", exc_info=error)

    async def recover(self) -> None:
        """End what an earlier daemon of our name left behind, and hand over its captures."""
        await self.records.note_alive()
        orphans = await self.records.orphaned_legs()
        seen, self._seen = self._seen or set(), None
        await self._end_orphans(leg for leg in orphans if leg.uuid not in seen)
        await self._adopt_captures()

    async def sweep(self, idle_s: float = 10.0) -> None:
        """End calls that nobody else ends: legs that never came, daemons that died.

        Args:
            idle_s: A live call whose last leg ended longer ago than this has lost its daemon.
        """
        await self.records.note_alive(self.recognizer.load() if self.recognizer else None)
        for call in await self.records.expire_legs():
            self._publish_end(call)
        for name in self._lost_daemons(await self.records.other_daemons()):
            logger.warning("daemon lost", extra={"daemon": name})
            await self._end_orphans(await self.records.orphaned_legs(name))
        for call in await self.records.live_calls():
            if call.call_id not in self._calls and _idle_s(call) > idle_s:
                await self.end_call(call.call_id, "daemon_lost")

    async def end_refused(self) -> None:
        """End the legs of calls whose callers refused analysis; about twice a second."""
        if not self._legs:
            return
        for leg_uuid in await self.records.refused_legs():
            if (leg := self._legs.get(leg_uuid)) is not None:
                leg.refuse()

    async def end_call(self, call_id: str, reason: str) -> bool:
        """End a call if it is idle everywhere, and say so; return whether it ended now."""
        call = await self.records.end_call(call_id, reason)
        if call is not None:
            self._publish_end(call)
        return call is not None

    async def close(self, timeout_s: float) -> None:
        """Seal what is left, legs that were not ended too. Again does nothing."""
        self.closing.set()
        for leg in tuple(self._legs.values()):
            leg.end("daemon_stopped")
        self.records.give_up_after(0.8 * timeout_s)  # so that what follows may still be tried
        deadline = self.loop.time() + timeout_s
        while self._tasks and (left_s := deadline - self.loop.time()) > 0:
            # The end of a leg begins the end of its call: look again.
            await asyncio.wait(self._tasks, timeout=left_s)
        if self._tasks:
            logger.error("calls could not be finished in time", extra={"tasks": len(self._tasks)})
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks)

    def _publish_end(self, call: Call) -> None:
        if call.consent == REFUSED:
            # What was published before the refusal was known here.
            self.publisher.forget(call.call_id)
        duration = call.duration_s
        fields = {
            "duration": None if duration is None else round(duration, 3),
            "reason": call.reason,
        }
        self.publisher.put(events.make("call.ended", call.call_id, **fields))
        logger.info("call ended", extra={"call_id": call.call_id, **fields})

    def _lost_daemons(self, signs: Mapping[str, datetime | None]) -> list[str]:
        before, self._signs = self._signs, {}
        for name, sign in signs.items():
            last, sweeps = before.get(name, (sign, 0))
            self._signs[name] = (sign, sweeps + 1 if sign == last else 0)
        return [name for name, (_, sweeps) in self._signs.items() if sweeps > LOST_AFTER_SWEEPS]

    async def _end_orphans(self, orphans: Iterable[Leg]) -> None:
        calls = []
        orphans = list(orphans)
        refused = await self.records.refused_among([leg.uuid for leg in orphans])
        for leg in orphans:
            with log.call_context(call_id=leg.call_id, leg=leg.leg):
                await self._end_orphan(leg, is_refused=leg.uuid in refused)
            calls.append(leg.call_id)
        for call_id in dict.fromkeys(calls):
            await self.end_call(call_id, "daemon_lost")

    async def _adopt_captures(self) -> None:
        """Hand over captures whose leg another daemon ended, out of reach of the file."""
        if self.capture is None:
            return
        files = await asyncio.to_thread(self.capture.files)
        by_file = {path: path.stem[:_UUID_LENGTH] for path in files}
        legs = await self.records.captures_of(list(by_file.values()))
        refused = await self.records.refused_among(list(by_file.values()))
        unknown = 0
        for path, leg_uuid in by_file.items():
            state, held = legs.get(leg_uuid, (None, None))
            if state is LegState.LIVE or leg_uuid in self._legs:
                continue
            if leg_uuid in refused:
                await asyncio.to_thread(self.capture.remove, leg_uuid)
                continue
            if held is not None and Path(held).name == path.name:
                continue
            if (
                state is LegState.ENDED
                and held is None
                and await asyncio.to_thread(_repaired_s, path) is not None
            ):
                await self.records.adopt_capture(leg_uuid, path)
            else:
                unknown += 1
        if unknown:
            # What was said in them is nowhere else: people decide.
            logger.warning("captures that no leg names", extra={"files": unknown})

    async def _end_orphan(self, leg: Leg, *, is_refused: bool) -> None:
        path = self.capture.path_of(leg.uuid) if self.capture is not None else None
        duration = None
        if self.capture is not None and is_refused:
            await asyncio.to_thread(self.capture.remove, leg.uuid)
        elif path is not None:
            duration = await asyncio.to_thread(_repaired_s, path)
        held = path if duration is not None else None
        reason = consent_rows.ENDED if is_refused else "daemon_lost"
        await self.records.end_leg(leg.uuid, reason, held)
        fields = {"leg": leg.leg, "duration": duration, "reason": reason}
        self.publisher.put(events.make("leg.ended", leg.call_id, **fields))
        logger.warning("leg of a lost daemon ended", extra={"captured_s": duration})


def _idle_s(call: Call) -> float:
    """Return the seconds since the last leg of a call ended; 0 while one is live."""
    if any(leg.state is LegState.LIVE for leg in call.legs):
        return 0.0
    ends = [leg.ended_at for leg in call.legs if leg.ended_at]
    return (now() - max(ends)).total_seconds() if ends else 0.0


def _repaired_s(path: Path) -> float | None:
    """Make the capture of a killed daemon whole; return its seconds, None if there is none."""
    try:
        audio.repair_wav(path)
        return (path.stat().st_size - audio.WAV_HEADER_BYTES) / 2 / LIVE_RATE
    except FileNotFoundError:
        return None
    except (OSError, CallcoreError):
        # Going on loses one capture; stopping would leave the other calls live for ever.
        logger.exception("a capture cannot be repaired", extra={"path": path.name})
        return None


class CallSession:
    """One call as far as this daemon sees it: how many legs are open, and the end."""

    def __init__(self, calls: LiveCalls, call_id: str) -> None:
        self.call_id = call_id
        self._calls = calls
        self._legs = 0
        self._ending = 0  # counts ends that were begun: a new leg makes an older one void

    def joined(self) -> None:
        """Count a leg in."""
        self._legs += 1
        self._ending += 1

    def left(self, reason: str) -> None:
        """Count a leg out; the last one ends the call unless another comes."""
        self._legs -= 1
        if not self._legs:
            self._calls.spawn(self._end(reason, self._ending))

    async def _end(self, reason: str, ending: int) -> None:
        try:
            async with asyncio.timeout(LINGER_S):
                await self._calls.closing.wait()
        except TimeoutError:
            pass
        if ending != self._ending:
            return
        try:
            # A leg that is announced, or live on another daemon, keeps the call: whoever ends
            # that leg, or the sweep, ends the call.
            await self._calls.end_call(self.call_id, reason)
        finally:
            if ending == self._ending:  # if it failed, the sweep tries again
                self._calls.forget(self.call_id)


def _nobody(reason: str) -> None:
    """Take the place of a stream for a leg that has none of its own."""


class LegSession:
    """One connection: takes audio on the event loop, runs the leg's life as a coroutine.

    It is the listener of its recognition.
    """

    def __init__(
        self,
        calls: LiveCalls,
        leg_uuid: str,
        arrived: float,
        refuse: Callable[[str], None],
        *,
        left: "LegSession | None" = None,
    ) -> None:
        self.uuid = leg_uuid
        self.arrived = arrived
        """``clock()`` at sample 0."""
        self.arrived_at: datetime = now() if left is None else left.arrived_at
        """The same as a date."""
        self.frames = 0
        """Messages of audio received."""
        self.received_samples = 0
        """Samples received, at 8 kHz."""
        self.filled_samples = 0
        """Samples of silence put where nothing came."""
        self.finals = 0
        """Finals stored."""
        self._calls = calls
        self._refuse = refuse
        self._left = left
        self._right: LegSession | None = None
        self._splitter: Splitter | None = None
        self._early_audio = EarlyAudio() if left is None else None
        self._clock = calls.clock
        self._end = 0  # absolute index after the newest sample
        self._ring: RingBuffer | None = RingBuffer(RING_S * LIVE_RATE)
        self._capture = None
        if calls.capture is not None:
            self._capture = calls.capture.open_leg(
                leg_uuid, LIVE_RATE, lost=self._lost_from_any_thread
            )
        self._resampler: audio.StreamingResampler | None = None
        self._recognition: LegRecognition | None = None
        self._leg: Leg | None = None
        # Events before the leg is known; a peer may press keys as fast as it likes.
        self._early: deque[tuple[str, dict[str, Any]]] = deque(maxlen=100)
        self._shown: set[int] = set()  # utterances with a partial on the pages
        self._finals: asyncio.Queue[tuple[Segment, float] | None] = asyncio.Queue()
        self._reason: asyncio.Future[str] = calls.loop.create_future()
        self._refused = False  # by the caller: nothing is kept

    # What the connection calls, on the event loop: memory only.

    def feed(self, batch: list[Audio], at: float) -> None:
        """Take all audio that was received at one moment.

        Args:
            batch: Audio in order. What came at once was spoken one after the other: after a stall
                a batch holds the stalled time, so that none of it is taken for silence.
            at: ``clock()`` of the moment.
        """
        if self._early_audio is not None:
            self._early_audio.keep(batch, at)
        if self._splitter is None:
            self._take(batch, at)
            return
        left, right = self._splitter.split(batch)
        self._take(left, at)
        if self._right is not None and not self._right._reason.done():
            self._right.feed(right, at)

    def _take(self, batch: list[Audio], at: float) -> None:
        try:
            samples = [self._at_live_rate(part) for part in batch]
            num_samples = sum(map(len, samples)) >> 1
            gap = self._gap(at) - num_samples
            if self._too_fast(gap, num_samples):
                return
            if gap > _GAP_SAMPLES:
                self._fill(gap)
            self.received_samples += num_samples
            for part in samples:
                self._end += len(part) >> 1
                if self._capture is not None:
                    self._capture.write(part)
                if self._ring is not None:
                    self._ring.append(part)
        except Exception:
            # One leg's audio must not end the connection, nor the loop that serves all.
            logger.exception("a leg's audio failed", extra={"leg_uuid": self.uuid})
            self._stop_recognition()

    def _gap(self, at: float) -> int:
        """Return the samples by which the leg is behind the clock."""
        return int((at - self.arrived) * LIVE_RATE) - self._end

    def _too_fast(self, gap: int, num_samples: int) -> bool:
        """Let a stream go that is too far ahead of the clock; return whether it is."""
        if self._early_audio is not None:
            # It may have two channels: then half the samples are its time.
            gap += (self.received_samples + num_samples) // 2
        if gap >= -MAX_AHEAD_S * LIVE_RATE:
            return False
        self._let_go("too-fast")
        return True

    def tick(self, at: float) -> None:
        """Fill with silence if nothing has come for a while."""
        behind = self._gap(at)
        if behind <= _QUIET_SAMPLES or self._reason.done():
            return
        try:
            self._fill(behind - _GAP_SAMPLES)
        except Exception:
            # As in ``feed``; the other legs need their tick too.
            logger.exception("a leg's silence failed", extra={"leg_uuid": self.uuid})
            self._stop_recognition()

    def dtmf(self, digit: str) -> None:
        """Publish a digit; it is never logged, people type card numbers."""
        self._publish("dtmf", digit=digit)

    def end(self, reason: str) -> None:
        """Take no more audio. Again does nothing.

        Args:
            reason: ``hangup`` or what else ended the stream.
        """
        if not self._reason.done():
            self._reason.set_result(reason)
        if self._right is not None:
            self._right.end(reason)

    def refuse(self) -> None:
        """End the leg because its caller refused analysis; nothing of it is kept.

        Again does nothing.
        """
        if self._refused:
            return
        self._refused = True
        if self._right is not None:
            self._right.refuse()
        self._early_audio = None
        self._early.clear()
        self._stop_recognition()
        self._discard_capture()
        if self._leg is not None:
            self._calls.publisher.forget(self._leg.call_id)
        self._let_go(consent_rows.ENDED)
        if self._right is not None:
            self._right.refuse()

    # What the recognition calls, on the event loop.

    def partial(self, utterance: int, start: int, end: int, text: str, stable: int) -> None:
        """Publish what is heard so far of an utterance."""
        if text:
            self._shown.add(utterance)
        self._publish_partial(utterance, start, end, text, stable)

    def final(
        self,
        utterance: int,
        start: int,
        end: int,
        hypothesis: Hypothesis,
        latency: float,
        revised: bool,
    ) -> None:
        """Queue a final to be stored and published; one without text withdraws its partials."""
        leg = self._known_leg()
        shown = utterance in self._shown
        self._shown.discard(utterance)
        if not hypothesis.text:
            if shown:
                self._publish_partial(utterance, start, end, "", 0)
            return
        began = self._call_time(start)
        segment = Segment(
            segment=leg.segment_base + utterance,
            leg=leg.leg,
            start=began,
            end=self._call_time(end),
            text=hypothesis.text,
            language=hypothesis.language,
            words=tuple(
                replace(word, s=began + word.s, e=began + word.e) for word in hypothesis.words
            ),
            source="live",
            latency=latency,
            revised=revised,
        )
        self._finals.put_nowait((segment, self._clock()))

    def lag(self, lag_s: float, state: str) -> None:
        """Publish that the text is late, or on time again."""
        self._publish("lag.updated", lag_s=round(lag_s, 3), state=state)

    # The leg's life.

    async def run(self) -> None:
        """Register the leg, see it through, and store its end."""
        try:
            opened = await self._register()
            if opened is not None:
                await self._see_through(*opened)
        except Exception:
            # Nobody hears this leg any more. What was captured is kept: it may be all there is.
            self._let_go("error")
            if self._capture is not None:
                await self._capture.close()
            raise

    async def _register(self) -> tuple[Leg, Call] | None:
        with log.call_context(leg_uuid=self.uuid):
            try:
                return await self._calls.records.open_leg(self.uuid, self.arrived_at)
            except Refused as error:
                logger.warning("stream refused", extra={"code": error.code})
                self._discard_capture()
                self._refuse(error.code)
                return None

    async def _see_through(self, leg: Leg, call: Call) -> None:
        with log.call_context(call_id=leg.call_id, leg=leg.leg):
            session = self._calls.call_of(leg)
            session.joined()
            reason = "error"
            try:
                self._start(leg, call)
                await self._begin_recognition(leg)
                reason = await self._until_ended()
            finally:
                session.left(reason)

    def _know_channels(self, leg: Leg) -> None:
        """Go on with one channel, or begin again with two."""
        early, self._early_audio = self._early_audio, None
        if early is None:  # a right channel itself
            return
        if leg.right_uuid is None:
            self._too_fast(self._gap(self._clock()), 0)
            return
        try:
            self._right = self._calls.open_right(self, leg.right_uuid)
        except Refused as error:
            # That channel is lost; the other one is the call that we have.
            logger.warning("right channel refused", extra={"code": error.code})
        self._splitter = Splitter()
        self._begin_again()
        for batch, at in early:
            self.feed(batch, at)
        if early.lost_bytes:
            self._splitter.skip(early.lost_bytes)
            self._lose_until(early.lost_until)
            if self._right is not None:
                self._right._lose_until(early.lost_until)
        if self._right is not None and self._reason.done():
            self._right.end(self._reason.result())

    def _begin_again(self) -> None:
        """Throw away what was taken for one channel."""
        self.frames = self.received_samples = self.filled_samples = self._end = 0
        self._resampler = None
        self._ring = RingBuffer(RING_S * LIVE_RATE)
        if self._capture is not None:
            self._capture.restart()

    def _lose_until(self, at: float) -> None:
        """Put silence where early audio was too much to be kept, and say so."""
        start = self._end
        self._fill(max(0, self._gap(at)))
        self._lost(start, self._end, "registration found too late")

    def _let_go(self, reason: str) -> None:
        """End the leg and its stream, if nothing else has ended them."""
        if self._reason.done():
            return
        logger.warning("stream let go", extra={"leg_uuid": self.uuid, "reason": reason})
        self.end(reason)
        self._refuse(reason)

    def _start(self, leg: Leg, call: Call) -> None:
        self._leg = leg
        logger.info("leg started", extra={"leg_uuid": self.uuid})
        if self._refused:
            return
        started = [other for other in call.legs if other.started_at]
        if self._left is None and all(_order(leg) <= _order(other) for other in started):
            self._publish("call.started", **_call_fields(call))
        self._publish("leg.started", leg=leg.leg, uuid=leg.uuid)
        for event_type, fields in self._early:
            self._publish(event_type, **fields)
        self._early.clear()
        self._know_channels(leg)

    async def _begin_recognition(self, leg: Leg) -> None:
        if self._calls.recognizer is None or self._ring is None:
            return
        try:
            language = leg.language or self._calls.settings.language
            self._recognition = self._calls.recognizer.open_leg(
                self._ring,
                self,
                language=None if language == "auto" else language,
                spill=self._capture.read if self._capture is not None else None,
            )
        except Exception:
            # A leg without words is still captured, and its recording is transcribed.
            logger.exception("recognition of a leg cannot start")
        else:
            if self._recognition is None:
                await self._go_without_text()

    async def _go_without_text(self) -> None:
        self._ring = None
        logger.warning("leg gets no live text: too many calls at once")
        try:
            # Stored before it is published, as finals are.
            await self._calls.records.note_no_text(self.uuid, NO_TEXT)
        except Exception:
            # People do not learn why there is no text; the leg must go on.
            logger.exception("why a leg has no text cannot be stored")
        self._publish("lag.updated", lag_s=None, state="recording")

    async def _until_ended(self) -> str:
        storing = asyncio.create_task(self._store_finals())
        try:
            reason = await self._reason
            await self._finish_recognition()
            self._finals.put_nowait(None)
            await storing
        finally:
            storing.cancel()
            self._stop_recognition()
        path = await self._captured()
        await self._calls.records.end_leg(self.uuid, reason, path)
        duration = round(self._end / LIVE_RATE, 3)
        self._publish("leg.ended", leg=self._known_leg().leg, duration=duration, reason=reason)
        logger.info(
            "leg ended",
            extra={
                "reason": reason,
                "duration_s": duration,
                "frames": self.frames,
                "received_s": round(self.received_samples / LIVE_RATE, 3),
                "filled_s": round(self.filled_samples / LIVE_RATE, 3),
                "finals": self.finals,
            },
        )
        return reason

    async def _captured(self) -> Path | None:
        """Return where the leg was captured, once all of it is there."""
        capture = self._capture
        if capture is None:
            return None
        await capture.close()
        if self._refused:  # meanwhile
            await asyncio.to_thread(capture.path.unlink, missing_ok=True)
            return None
        return capture.path

    async def _store_finals(self) -> None:
        """Store and publish finals in order, until None comes."""
        leg = self._known_leg()
        while (item := await self._finals.get()) is not None:
            segment, heard = item
            if self._refused:
                continue
            try:
                # Stored before it is published: a page that loads the call from the database and
                # resumes the events from there misses nothing.
                await self._calls.records.add_segment(leg.call_id, segment)
            except Refused:
                self.refuse()
                continue
            except Exception:
                # Only this final is lost from the record; the pages still show it.
                logger.exception("a final cannot be stored", extra={"segment": segment.segment})
            self.finals += 1
            late = (segment.latency or 0.0) + self._clock() - heard
            known = replace(segment, latency=late).as_json()
            fields = {name: known[name] for name in events.FIELDS["transcript.final"]}
            self._publish("transcript.final", **fields)

    async def _finish_recognition(self) -> None:
        if self._recognition is None:
            return
        try:
            await self._recognition.finish()
        except Exception:
            # The capture is transcribed later; the leg must still end.
            logger.exception("recognition of a leg failed at its end")
        else:
            self._recognition = None

    def _stop_recognition(self) -> None:
        recognition, self._recognition, self._ring = self._recognition, None, None
        if recognition is not None:
            recognition.discard()

    def _discard_capture(self) -> None:
        if self._capture is not None:
            self._capture.discard()
            self._capture = None

    def _at_live_rate(self, part: Audio) -> bytes:
        self.frames += part.frames
        if part.rate == LIVE_RATE:
            return part.samples
        # 45 us a frame, four times what a frame of 8 kHz costs in all: 400 wideband legs fill a
        # core. A filter of our own for 2:1 would be the way out.
        if self._resampler is None or self._resampler.from_hz != part.rate:
            self._resampler = audio.StreamingResampler(part.rate, LIVE_RATE)
        return self._resampler.push(np.frombuffer(part.samples, "<i2")).tobytes()

    def _fill(self, num_samples: int) -> None:
        self.filled_samples += num_samples
        self._end += num_samples
        if self._capture is not None:
            self._capture.write_silence(num_samples)
        if self._ring is not None:
            self._ring.append_silence(num_samples)

    def _known_leg(self) -> Leg:
        assert self._leg is not None, "recognition starts after registration"
        return self._leg

    def _call_time(self, index: int) -> float:
        return self._known_leg().offset_s + index / LIVE_RATE

    def _publish_partial(
        self, utterance: int, start: int, end: int, text: str, stable: int
    ) -> None:
        leg = self._known_leg()
        self._publish(
            "transcript.partial",
            leg=leg.leg,
            segment=leg.segment_base + utterance,
            start=round(self._call_time(start), 3),
            end=round(self._call_time(end), 3),
            text=text,
            stable=stable,
        )

    def _publish(self, event_type: str, **fields: Any) -> None:
        if self._refused and event_type != "leg.ended":
            return
        if self._leg is None:
            self._early.append((event_type, fields))
            return
        if event_type in ("dtmf", "audio.lost"):
            fields["leg"] = self._leg.leg
        if event_type == "audio.lost":
            for name in ("start", "end"):  # of the leg, which may not have been known
                fields[name] = round(self._leg.offset_s + fields[name], 3)
        self._calls.publisher.put(events.make(event_type, self._leg.call_id, **fields))

    def _lost_from_any_thread(self, start: int, end: int, reason: str) -> None:
        self._calls.loop.call_soon_threadsafe(self._lost, start, end, reason)

    def _lost(self, start: int, end: int, reason: str) -> None:
        logger.warning(
            "audio lost",
            extra={"leg_uuid": self.uuid, "samples": end - start, "reason": reason},
        )
        self._publish(
            "audio.lost",
            start=start / LIVE_RATE,
            end=end / LIVE_RATE,
            reason=reason,
        )


def _order(leg: Leg) -> tuple[float, str]:
    """Return what legs of a call are ordered by: all daemons find the same first one."""
    return (leg.started_at.timestamp() if leg.started_at else float("inf"), leg.uuid)


def _call_fields(call: Call) -> dict[str, Any]:
    facts = call.facts
    return {
        "session_id": call.session_id,
        "uniqueid": facts.uniqueid,
        "linkedid": facts.linkedid,
        "caller": facts.caller,
        "callee": facts.callee,
        "queue": facts.queue,
        "agent": facts.agent,
        "direction": facts.direction,
        "language": facts.language,
    }
