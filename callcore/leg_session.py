"""One live leg: from the samples of its connection to its stored words and its end.

A ``LegSession`` takes the audio of one connection: ring and capture get it on the event loop, in
memory only; everything slow (database, decoding, disk) runs elsewhere and comes back through the
leg's own coroutine, in this order::

    register -> call.started, leg.started -> recognition; each final: stored, then published
    end of audio -> last finals -> capture sealed -> leg stored as ended -> leg.ended

A stream registered with two channels is two legs: the session of the left one splits the audio
and carries a session of its own for the right one, which lives and ends with it. Until the
registration is found a stream is taken for one channel; audio is kept to be split after all.

Time is arrival: Asterisk sends nothing in silence, so missing frames are silence, and sample i of
a leg was heard i / 8000 s after its UUID came.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from callcore import audio, events, log
from callcore.audiosocket import Audio, Kind
from callcore.call_language import CallLanguage
from callcore.calls import Call, Leg, now
from callcore.capture import Capture
from callcore.engines import LIVE_RATE, Hypothesis
from callcore.errors import Refused
from callcore.live_records import Records
from callcore.recognizer import LegRecognition, Recognizer, RefusedText
from callcore.results import Segment
from callcore.ringbuffer import RingBuffer
from callcore.settings import Settings
from callcore.stereo import EarlyAudio, Splitter
from callcore.storage import consent_rows

logger = logging.getLogger(__name__)

#: Seconds of audio that a leg keeps in memory for recognition (512 KB).
RING_S = 32

#: A leg further behind the clock than this, when audio comes, missed frames: they were silence.
_GAP_SAMPLES = LIVE_RATE // 10

#: A leg from which nothing comes is filled with silence once it is so far behind, so that the
#: end of an utterance is found without audio; up to ``_GAP_SAMPLES`` before the present.
_QUIET_SAMPLES = 3 * LIVE_RATE // 10

#: Seconds that a leg's audio may be ahead of the clock: who sends faster than people speak is no
#: telephone. Audio that comes after all, once ticks have filled its time with silence, counts too.
MAX_AHEAD_S = 60
_MOST_AHEAD = -MAX_AHEAD_S * LIVE_RATE

#: What people are told where a leg was refused recognition.
NO_TEXT = {
    RefusedText.BUSY: "too many calls at once",
    RefusedText.DOWN: "speech recognition does not answer",
}
#: What follows where the leg is captured.
TEXT_LATER = "; its text comes from the recording"


class EventSink(Protocol):
    """Where live events go: ``bus.Publisher``."""

    def put(self, event: events.Event) -> None:
        """Queue an event; never blocks, never raises."""

    def forget(self, *call_ids: str) -> None:
        """Have deleted what was published of a call; never blocks, never raises."""


class Membership(Protocol):
    """A call that counts its legs: ``session.CallSession``."""

    language: CallLanguage
    behind: set[str]

    def joined(self) -> None:
        """Count a leg in."""

    def left(self, reason: str) -> None:
        """Count a leg out."""


class Surroundings(Protocol):
    """What legs share: ``session.LiveCalls``."""

    settings: Settings
    records: Records
    publisher: EventSink
    capture: Capture | None
    recognizer: Recognizer | None
    clock: Callable[[], float]
    loop: asyncio.AbstractEventLoop

    def call_of(self, leg: Leg) -> Membership:
        """Return the call of a leg."""

    def open_right(self, left: "LegSession", leg_uuid: str) -> "LegSession":
        """Return the session of the right channel of a stream."""


def nobody(reason: str) -> None:
    """Take the place of a stream for a leg that has none of its own."""


class LegSession:
    """One connection: takes audio on the event loop, runs the leg's life as a coroutine.

    It is the listener of its recognition.
    """

    def __init__(
        self,
        calls: Surroundings,
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
        self.filled_samples = 0
        """Samples of silence put where nothing came."""
        self.finals = 0
        """Finals stored."""
        self._calls = calls
        self._refuse = refuse
        self._is_right = left is not None
        self._right: LegSession | None = None
        self._splitter: Splitter | None = None
        self._early_audio = EarlyAudio() if left is None else None
        self._is_steady = False  # one channel for certain: a frame may go the short way
        self._clock = calls.clock
        self._end = 0  # absolute index after the newest sample
        self._ring = self._new_ring()
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

    def feed_frame(self, samples: bytes, at: float) -> None:
        """Take one message of audio at 8 kHz: ``feed`` for what nearly all reads bring.

        Args:
            samples: int16, little-endian.
            at: ``clock()`` of the moment when it was received.
        """
        num_samples = len(samples) >> 1
        gap = int((at - self.arrived) * LIVE_RATE) - self._end - num_samples
        if not self._is_steady or not _MOST_AHEAD < gap <= _GAP_SAMPLES:
            self.feed([Audio(Kind.SLIN, LIVE_RATE, samples)], at)
            return
        self.frames += 1
        self._end += num_samples
        try:
            if self._capture is not None:
                self._capture.write(samples)
            if self._ring is not None:
                self._ring.append(samples)
        except Exception:
            # As in ``_take``.
            logger.exception("a leg's audio failed", extra={"leg_uuid": self.uuid})
            self._stop_recognition()

    def feed(self, batch: list[Audio], at: float) -> None:
        """Take all audio that was received at one moment.

        Args:
            batch: Audio in order. What came at once was spoken one after the other: after a stall
                a batch holds the stalled time, so that none of it is taken for silence.
            at: ``clock()`` of the moment.
        """
        right: list[Audio] = []
        try:
            if self._early_audio is not None:
                self._early_audio.keep(batch, at)
            if self._splitter is not None:
                batch, right = self._splitter.split(batch)
        except Exception:
            # As in ``_take``. What follows is heard, if its channel is known.
            logger.exception("a leg's audio failed", extra={"leg_uuid": self.uuid})
            self._stop_recognition()
            return
        self._take(batch, at)
        if right and self._right is not None and not self._right._reason.done():
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

    @property
    def received_samples(self) -> int:
        """Samples received, at 8 kHz."""
        return self._end - self.filled_samples

    def _gap(self, at: float) -> int:
        """Return the samples by which the leg is behind the clock."""
        return int((at - self.arrived) * LIVE_RATE) - self._end

    def _too_fast(self, gap: int, num_samples: int) -> bool:
        """Let a stream go that is too far ahead of the clock; return whether it is."""
        if self._early_audio is not None:
            # It may have two channels: then half the samples are its time.
            gap += (self.received_samples + num_samples) // 2
        if gap >= _MOST_AHEAD:
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

    def lost(self, start: int, end: int, reason: str) -> None:
        """Publish that words are missing; the recording may still have them."""
        self._lost(start, end, reason)

    def lag(self, lag_s: float, state: str) -> None:
        """Publish that the call's text is late, or that no leg's is any more."""
        assert self._leg is not None
        behind = self._calls.call_of(self._leg).behind
        if state == "behind":
            known = bool(behind)
            behind.add(self.uuid)
            if known:
                return  # by the leg that has been behind for longer
        else:
            behind.discard(self.uuid)
            if behind:
                return
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
        finally:
            # Who knows us and whom we know: memory must not wait for a collector, which comes
            # seldom to a process that lives long.
            self._refuse = nobody
            self._right = None

    async def _register(self) -> tuple[Leg, Call] | None:
        with log.call_context(leg_uuid=self.uuid):
            try:
                return await self._calls.records.open_leg(self.uuid, self.arrived_at)
            except Refused as error:
                logger.warning("stream refused", extra={"code": error.code})
                self._discard_capture()
                self._stop_recognition()
                self._early_audio = None
                self._refuse(error.code)
                # The future that brought the error keeps it, and its frames hold us.
                error.__traceback__ = None
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
                if self.uuid in session.behind:
                    self.lag(0.0, "ok")
                session.left(reason)

    def _know_channels(self, leg: Leg) -> None:
        """Go on with one channel, or begin again with two."""
        early, self._early_audio = self._early_audio, None
        if early is None:  # a right channel itself
            return
        if leg.right_uuid is None:
            self._is_steady = True
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
        self.frames = self.filled_samples = self._end = 0
        self._resampler = None
        self._ring = self._new_ring()
        if self._capture is not None:
            self._capture.restart()

    def _new_ring(self) -> RingBuffer | None:
        """Return a ring for recognition; nobody else reads it."""
        return RingBuffer(RING_S * LIVE_RATE) if self._calls.recognizer is not None else None

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
        if not self._is_right and all(_order(leg) <= _order(other) for other in started):
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
            opened = self._calls.recognizer.open_leg(
                self._ring,
                self,
                language=None if language == "auto" else language,
                spill=self._capture.read if self._capture is not None else None,
                call_language=self._calls.call_of(leg).language,
            )
        except Exception:
            # A leg without words is still captured, and its recording is transcribed.
            logger.exception("recognition of a leg cannot start")
            opened = RefusedText.DOWN
        if isinstance(opened, RefusedText):
            await self._go_without_text(opened)
        else:
            self._recognition = opened

    async def _go_without_text(self, refused: RefusedText) -> None:
        self._ring = None
        why = NO_TEXT[refused]
        logger.warning("leg gets no live text", extra={"reason": why})
        if self._capture is not None:
            why += TEXT_LATER
        is_down = refused is RefusedText.DOWN
        try:
            # Stored before it is published, as finals are.
            await self._calls.records.note_no_text(self.uuid, why, is_down=is_down)
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
