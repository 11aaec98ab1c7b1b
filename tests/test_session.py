import asyncio
import gc
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn
from weakref import ref

import numpy as np
import peewee
import pytest

from callcore import intake, leg_session, orphans, session
from callcore.audio import wav_header
from callcore.audiosocket import Audio, Kind
from callcore.calls import CallFacts, CallState, LegState, Media
from callcore.errors import EngineError, Refused
from callcore.leg_session import LegSession
from callcore.recognizer import RefusedText
from callcore.results import Word
from tests.support.live import Clock, Live, live, new_uuid, ramp


@pytest.fixture(autouse=True)
def _no_linger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "LINGER_S", 0.05)


def never(reason: str) -> None:
    raise AssertionError(f"refused: {reason}")


def open_leg(parts: Live, leg_uuid: str, at: float = 1000.0) -> LegSession:
    return parts.calls.open_leg(leg_uuid, at, never)


def content_of(media: Media) -> bytes:
    return Path(media.path).read_bytes()


def size_of(media: Media) -> int:
    return len(content_of(media))


def slin(samples: bytes, frames: int = 1) -> Audio:
    return Audio(Kind.SLIN, 8000, samples, frames)


def failing(count: int, work: Callable[..., Any], error: Exception) -> Callable[..., Any]:
    """Return ``work`` that fails so many times before it works."""
    left = count

    def call(*args: Any) -> Any:
        nonlocal left
        if left:
            left -= 1
            raise type(error)(*error.args)
        return work(*args)

    return call


LOCKED = peewee.OperationalError("database is locked")


# ---- time from arrival


async def test_audio_that_comes_in_time_is_taken_as_it_is(tmp_path: Path):
    clock = Clock()
    async with live(tmp_path, clock=clock) as parts:
        leg = open_leg(parts, new_uuid(), clock.now)
        recognition = await parts.recognizer.leg()
        for i in range(50):
            leg.feed([slin(ramp(160 * i, 160 * (i + 1)))], clock.now + 0.02 * (i + 1) + 0.09)
        assert recognition.ring.read(0, 8000).tobytes() == ramp(0, 8000)
        assert (leg.frames, leg.filled_samples) == (50, 0)
        leg.end("hangup")
        await parts.sink.until("leg.ended")


async def test_missing_frames_are_silence_of_the_time_they_were_missing(tmp_path: Path):
    clock = Clock()
    async with live(tmp_path, clock=clock) as parts:
        leg = open_leg(parts, new_uuid(), clock.now)
        recognition = await parts.recognizer.leg()
        leg.feed([slin(ramp(0, 160))], clock.now + 0.02)
        leg.feed([slin(ramp(160, 320))], clock.now + 1.5)
        ring = recognition.ring
        assert ring.end == 12000
        assert not ring.read(160, 11840).any()
        assert ring.read(11840, 12000).tobytes() == ramp(160, 320)
        assert leg.filled_samples == 11680
        leg.end("hangup")
        [ended] = await parts.sink.until("leg.ended")
        assert ended["duration"] == 1.5


async def test_a_burst_after_a_stall_carries_its_own_time(tmp_path: Path):
    clock = Clock()
    async with live(tmp_path, clock=clock) as parts:
        leg = open_leg(parts, new_uuid(), clock.now)
        recognition = await parts.recognizer.leg()
        leg.feed([slin(ramp(0, 8000), 50), slin(ramp(8000, 16000), 50)], clock.now + 2.0)
        assert recognition.ring.read(0, 16000).tobytes() == ramp(0, 16000)
        assert (leg.frames, leg.filled_samples) == (100, 0)


async def test_audio_ahead_of_the_clock_is_never_dropped(tmp_path: Path):
    clock = Clock()
    async with live(tmp_path, clock=clock) as parts:
        leg = open_leg(parts, new_uuid(), clock.now)
        recognition = await parts.recognizer.leg()
        leg.feed([slin(ramp(0, 80000))], clock.now + 0.01)
        leg.feed([slin(ramp(80000, 80160))], clock.now + 0.03)
        assert recognition.ring.end == 80160
        parts.calls.tick(clock.now + 5.0)
        assert recognition.ring.end == 80160


async def test_audio_too_far_ahead_of_the_clock_ends_the_leg(tmp_path: Path):
    # Fault held off: 2 s at line rate were taken for 647 minutes of speech.
    clock = Clock()
    async with live(tmp_path, clock=clock) as parts:
        refused: list[str] = []
        leg = parts.calls.open_leg(new_uuid(), clock.now, refused.append)
        recognition = await parts.recognizer.leg()
        leg.feed([slin(bytes(2 * 8000 * leg_session.MAX_AHEAD_S))], clock.now)
        assert refused == []
        leg.feed([slin(bytes(16000))], clock.now + 1.0)
        assert refused == []
        leg.feed([slin(bytes(320))], clock.now + 1.0)
        assert refused == ["too-fast"]
        leg.feed([slin(bytes(320))], clock.now + 1.0)
        assert refused == ["too-fast"]
        assert recognition.ring.end == 8000 * (leg_session.MAX_AHEAD_S + 1)
        [ended] = await parts.sink.until("leg.ended")
        assert ended["reason"] == "too-fast"


async def test_ticks_fill_a_quiet_leg_and_leave_room_for_what_is_on_its_way(tmp_path: Path):
    clock = Clock()
    async with live(tmp_path, clock=clock) as parts:
        leg = open_leg(parts, new_uuid(), clock.now)
        recognition = await parts.recognizer.leg()
        parts.calls.tick(clock.now + 0.3)
        assert recognition.ring.end == 0
        parts.calls.tick(clock.now + 0.5)
        assert recognition.ring.end == 3200
        leg.feed([slin(ramp(0, 160))], clock.now + 0.52)
        assert recognition.ring.end == 3360
        leg.end("hangup")
        await parts.sink.until("leg.ended")
        parts.calls.tick(clock.now + 9.0)
        assert recognition.ring.end == 3360


async def test_wideband_is_taken_at_8_khz(tmp_path: Path):
    clock = Clock()
    async with live(tmp_path, clock=clock) as parts:
        leg = open_leg(parts, new_uuid(), clock.now)
        recognition = await parts.recognizer.leg()
        tone = (np.sin(np.arange(16000) * 2 * np.pi * 300 / 16000) * 9000).astype("<i2")
        for i in range(50):
            part = Audio(Kind.SLIN16, 16000, tone[320 * i : 320 * (i + 1)].tobytes())
            leg.feed([part], clock.now + 0.02 * (i + 1))
        heard = recognition.ring.read(0, recognition.ring.end).astype(int)
        assert 7900 < len(heard) <= 8000
        expected = (np.sin(np.arange(len(heard)) * 2 * np.pi * 300 / 8000) * 9000).astype(int)
        assert np.abs(heard - expected)[100:-100].max() < 30
        for i in range(5):
            leg.feed([slin(ramp(0, 160))], clock.now + 1.02 + 0.02 * i)
        assert recognition.ring.read(recognition.ring.end - 160, recognition.ring.end)[0] == 1


# ---- a leg's life


async def test_a_call_of_two_legs_from_registration_to_its_end(tmp_path: Path):
    async with live(tmp_path) as parts:
        caller = parts.register("call-7", "caller", caller="+254700000001", language="sw")
        agent = parts.register("call-7", "agent")
        now = parts.calls.clock()
        first = open_leg(parts, caller, now)
        await parts.sink.until("leg.started")
        second = open_leg(parts, agent, now)
        await parts.sink.until("leg.started", 2)
        assert [leg.language for leg in parts.recognizer.legs] == ["sw", "sw"]
        assert len({id(leg.call_language) for leg in parts.recognizer.legs}) == 1
        first.feed([slin(ramp(0, 160))], now + 0.02)
        second.feed([slin(ramp(0, 160))], now + 0.02)
        first.end("hangup")
        await parts.sink.until("leg.ended")
        second.end("hangup")
        second.end("again")
        [ended] = await parts.sink.until("call.ended")
        call = parts.storage.call("call-7")
        assert call.state is CallState.ENDED
        assert ended["duration"] == pytest.approx(call.duration_s, abs=0.001)
    assert [kind for kind in parts.sink.types if kind != "transcript.partial"] == [
        "call.started",
        "leg.started",
        "leg.started",
        "leg.ended",
        "leg.ended",
        "call.ended",
    ]
    [started] = parts.sink.of("call.started")
    assert started["session_id"] == call.session_id
    assert started["caller"] == "+254700000001"
    assert [leg.reason for leg in call.legs] == ["hangup", "hangup"]
    assert sorted(media.role for media in parts.storage.capture_media("call-7")) == [
        "agent",
        "caller",
    ]


async def test_a_final_is_stored_in_call_time_before_it_is_published(tmp_path: Path):
    async with live(tmp_path) as parts:
        open_leg(parts, parts.register("call-1", "caller"), parts.calls.clock())
        recognition = await parts.recognizer.leg()
        recognition.listener.partial(2, 16000, 20000, "help", 0)
        recognition.say(
            2, "Help me.", words=(Word("Help", 0.1, 0.4, 0.9), Word("me.", 0.5, 0.8, 1))
        )
        [final] = await parts.sink.until("transcript.final")
        [stored] = parts.storage.live_segments("call-1")
        [partial] = parts.sink.of("transcript.partial")
        leg = parts.storage.call("call-1").legs[0]
    assert final["segment"] == partial["segment"] == leg.segment_base + 2
    assert (final["start"], final["end"]) == (2.0, 3.0)
    assert final["words"][0] == {"w": "Help", "s": 2.1, "e": 2.4, "p": 0.9}
    assert final["latency"] >= 0.25
    assert "source" not in final
    assert (stored.text, stored.start, stored.words[1].e) == ("Help me.", 2.0, 2.8)


async def test_an_utterance_that_was_nothing_withdraws_its_partials_only(tmp_path: Path):
    async with live(tmp_path) as parts:
        leg = open_leg(parts, new_uuid(), parts.calls.clock())
        recognition = await parts.recognizer.leg()
        recognition.say(0, "")
        recognition.listener.partial(1, 0, 100, "uh", 0)
        recognition.say(1, "")
        leg.end("hangup")
        await parts.sink.until("leg.ended")
    assert [each["text"] for each in parts.sink.of("transcript.partial")] == ["uh", ""]
    assert parts.sink.of("transcript.final") == []


async def test_a_locked_database_delays_finals_and_loses_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    async with live(tmp_path) as parts:
        add = failing(7, parts.storage.add_live_segment, LOCKED)
        monkeypatch.setattr(parts.storage, "add_live_segment", add)
        monkeypatch.setattr(parts.storage, "end_leg", failing(3, parts.storage.end_leg, LOCKED))
        leg = open_leg(parts, parts.register("call-1", "caller"), parts.calls.clock())
        recognition = await parts.recognizer.leg()
        recognition.last_words = ["and", "goodbye"]
        for number in range(3):
            recognition.say(number, f"word {number}")
        leg.end("hangup")
        await parts.sink.until("leg.ended")
        texts = [segment.text for segment in parts.storage.live_segments("call-1")]
    assert texts == ["word 0", "word 1", "word 2", "and", "goodbye"]
    assert [final["text"] for final in parts.sink.of("transcript.final")] == texts
    assert parts.sink.types.index("leg.ended") > parts.sink.types.index("transcript.final")
    assert "word" not in caplog.text


async def test_a_final_that_no_retry_can_store_costs_that_final_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    async with live(tmp_path) as parts:
        add = failing(1, parts.storage.add_live_segment, peewee.IntegrityError("no"))
        monkeypatch.setattr(parts.storage, "add_live_segment", add)
        leg = open_leg(parts, parts.register("call-1", "caller"), parts.calls.clock())
        recognition = await parts.recognizer.leg()
        recognition.say(0, "lost")
        recognition.say(1, "kept")
        leg.end("hangup")
        await parts.sink.until("leg.ended")
        assert [segment.text for segment in parts.storage.live_segments("call-1")] == ["kept"]


async def test_a_database_that_is_away_at_the_start_costs_no_audio(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    clock = Clock()
    async with live(tmp_path, clock=clock) as parts:
        leg_uuid = parts.register("call-1", "caller")
        back = asyncio.Event()
        consume = parts.storage.consume_leg

        def away(*args: Any) -> Any:
            if not back.is_set():
                raise LOCKED
            return consume(*args)

        monkeypatch.setattr(parts.storage, "consume_leg", away)
        leg = open_leg(parts, leg_uuid, clock.now)
        leg.feed([slin(ramp(0, 16000))], clock.now + 2.0)
        leg.dtmf("5")
        # The registration is over by the time that the database can say so.
        came = parts.storage.clock()
        parts.storage.clock = lambda: came + timedelta(seconds=60)
        # ... and the sweep, which the database answers first, has given it up.
        await parts.calls.sweep()
        assert parts.storage.call("call-1").state is CallState.ENDED
        back.set()
        recognition = await parts.recognizer.leg()
        assert recognition.ring.read(0, 16000).tobytes() == ramp(0, 16000)
        [digit] = await parts.sink.until("dtmf")
        assert digit == {"leg": "caller", "digit": "5"}
        leg.end("hangup")
        await parts.sink.until("leg.ended")
        [media] = parts.storage.capture_media("call-1")
        assert parts.storage.call("call-1").started_at <= came
        assert size_of(media) == 44 + 32000


async def test_a_commit_that_was_cut_off_does_not_refuse_its_own_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    async with live(tmp_path) as parts:
        consume, tries = parts.storage.consume_leg, 0

        def cut_off(*args: Any) -> Any:
            nonlocal tries
            tries += 1
            leg = consume(*args)
            if tries == 1:
                raise LOCKED
            return leg

        monkeypatch.setattr(parts.storage, "consume_leg", cut_off)
        open_leg(parts, parts.register("call-1", "caller"), parts.calls.clock())
        await parts.sink.until("leg.started")
    assert tries == 2


async def test_the_end_of_a_call_is_told_even_if_its_commit_was_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    async with live(tmp_path) as parts:
        leg = open_leg(parts, new_uuid(), parts.calls.clock())
        await parts.sink.until("leg.started")
        end, transaction = parts.storage.end_call_if_idle, parts.storage.database.transaction
        ends = 0

        def count(*args: Any) -> Any:
            nonlocal ends
            ends += 1
            return end(*args)

        @contextmanager
        def cut_off() -> Iterator[None]:
            before = ends
            with transaction():
                yield
            if ends == 1 and not before:
                raise LOCKED

        monkeypatch.setattr(parts.storage, "end_call_if_idle", count)
        monkeypatch.setattr(parts.storage.database, "transaction", cut_off)
        leg.end("hangup")
        [ended] = await parts.sink.until("call.ended")
    assert ended["reason"] == "hangup"
    assert ends == 2


async def test_an_end_of_a_call_that_cannot_be_stored_is_tried_again_by_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    async with live(tmp_path) as parts:
        end = failing(1, parts.storage.end_call_if_idle, peewee.IntegrityError("no"))
        monkeypatch.setattr(parts.storage, "end_call_if_idle", end)
        leg = open_leg(parts, parts.register("call-1", "caller"), parts.calls.clock())
        leg.end("hangup")
        async with asyncio.timeout(20.0):
            # Nothing tells of an end that failed: look until the call is not waited for here.
            while not parts.sink.of("leg.ended") or parts.calls._calls:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await parts.calls.sweep(idle_s=-1.0)
        await parts.sink.until("call.ended")


async def test_an_error_at_the_start_lets_the_stream_go_and_keeps_what_was_captured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    # Fault held off: the session died, the socket stayed, the file was open for ever.
    async with live(tmp_path) as parts:
        consume = failing(1, parts.storage.consume_leg, peewee.IntegrityError("no"))
        monkeypatch.setattr(parts.storage, "consume_leg", consume)
        refused: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        leg_uuid = parts.register("call-1", "caller")
        leg = parts.calls.open_leg(leg_uuid, parts.calls.clock(), refused.set_result)
        leg.feed([slin(ramp(0, 160))], parts.calls.clock())
        async with asyncio.timeout(20.0):
            assert await refused == "error"
        await parts.calls.close(20.0)
        assert parts.capture is not None
        assert parts.capture._legs == set()
        assert parts.capture.path_of(leg_uuid).read_bytes() == wav_header(8000, 1, 320) + ramp(
            0, 160
        )
    assert "a live task failed" in caplog.text


async def test_a_leg_that_is_given_up_while_the_database_is_away_keeps_its_capture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # Fault held off: giving up at the stop of the daemon left a file of 0 bytes by its header.
    async with live(tmp_path) as parts:
        monkeypatch.setattr(parts.storage, "consume_leg", failing(10**9, print, LOCKED))
        leg_uuid = parts.register("call-1", "caller")
        leg = open_leg(parts, leg_uuid, parts.calls.clock())
        leg.feed([slin(ramp(0, 160))], parts.calls.clock())
        leg.end("daemon_stopped")
        parts.calls.records.give_up_after(0.0)
        assert leg._capture is not None
        assert await asyncio.to_thread(leg._capture.closed.wait, 20.0)
        assert parts.capture is not None
        assert parts.capture.path_of(leg_uuid).stat().st_size == 44 + 320


async def test_an_unregistered_stream_is_refused_where_the_site_says_so(tmp_path: Path):
    async with live(tmp_path, unregistered="refuse") as parts:
        refused: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        leg_uuid = new_uuid()
        leg = parts.calls.open_leg(leg_uuid, parts.calls.clock(), refused.set_result)
        leg.feed([slin(ramp(0, 160))], parts.calls.clock())
        assert await refused
        assert parts.sink.events == []
        assert parts.capture is not None
        assert not parts.capture.path_of(leg_uuid).exists()


async def test_a_uuid_streams_once_at_a_time(tmp_path: Path):
    async with live(tmp_path) as parts:
        leg_uuid = new_uuid()
        open_leg(parts, leg_uuid)
        with pytest.raises(Refused):
            open_leg(parts, leg_uuid)


async def test_a_new_leg_in_time_continues_the_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(session, "LINGER_S", 30.0)
    async with live(tmp_path) as parts:
        leg = open_leg(parts, parts.register("call-1", "caller"), parts.calls.clock())
        await parts.sink.until("leg.started")
        leg.end("hangup")
        await parts.sink.until("leg.ended")
        open_leg(parts, parts.register("call-1", "agent"), parts.calls.clock()).end("hangup")
        await parts.sink.until("leg.ended", 2)
    assert len(parts.sink.of("call.started")) == 1
    assert len(parts.sink.of("call.ended")) == 1


async def test_the_capture_of_an_ended_call_becomes_its_recording(tmp_path: Path):
    async with live(tmp_path, capture="always") as parts:
        leg = open_leg(parts, parts.register("call-1", "caller"), parts.calls.clock())
        leg.feed([slin(ramp(0, 160))], parts.calls.clock())
        leg.end("hangup")
        await parts.sink.until("call.ended")
        await parts.calls.close(20.0)
        [recording] = parts.storage.recordings_of("call-1")
        assert recording.source == "capture"
        assert parts.waker.woken == [("settle", recording.audio_id)]


# ---- what breaks


async def test_a_leg_whose_pipeline_breaks_is_still_captured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    clock = Clock()
    async with live(tmp_path, clock=clock) as parts:
        leg = open_leg(parts, parts.register("call-1", "caller"), clock.now)
        other = open_leg(parts, parts.register("call-2", "caller"), clock.now)
        broken, healthy = await parts.recognizer.leg(0), await parts.recognizer.leg(1)

        def fail(ring: Any, samples: bytes) -> None:
            raise RuntimeError("ring broke")

        with monkeypatch.context() as patch:
            patch.setattr(type(broken.ring), "append", fail)
            leg.feed([slin(ramp(0, 160))], clock.now + 0.02)
        other.feed([slin(ramp(0, 160))], clock.now + 0.02)
        leg.feed([slin(ramp(160, 320))], clock.now + 0.04)
        leg.end("hangup")
        other.end("hangup")
        await parts.sink.until("call.ended", 2)
        assert broken.discarded
        assert healthy.finished
        media = parts.storage.capture_media("call-1")
        assert size_of(media[0]) == 44 + 640
    assert "a leg's audio failed" in caplog.text


async def test_recognition_that_fails_costs_the_leg_its_words_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    async with live(tmp_path) as parts:
        leg = open_leg(parts, parts.register("call-1", "caller"), parts.calls.clock())
        recognition = await parts.recognizer.leg()
        recognition.error = EngineError("live", "died")
        recognition.say(0, "before")
        leg.end("hangup")
        await parts.sink.until("call.ended")
        assert len(parts.storage.live_segments("call-1")) == 1
        parts.recognizer.error = EngineError("live", "died")
        leg = open_leg(parts, parts.register("call-2", "caller"), parts.calls.clock())
        await parts.sink.until("lag.updated")
        told = parts.storage.call("call-2").legs[0].no_text
        assert told == "speech recognition does not answer; its text comes from the recording"
        leg.end("hangup")
        await parts.sink.until("call.ended", 2)
    assert {record.levelno for record in caplog.records if record.exc_info} == {logging.ERROR}


async def test_audio_that_the_disk_lost_is_told_in_call_time(tmp_path: Path):
    async with live(tmp_path) as parts:
        leg = open_leg(parts, parts.register("call-1", "caller"), parts.calls.clock())
        leg._lost_from_any_thread(8000, 12000, "disk too slow")
        [lost] = await parts.sink.until("audio.lost")
    assert lost == {"leg": "caller", "start": 1.0, "end": 1.5, "reason": "disk too slow"}


async def test_audio_that_recognition_lost_is_told_in_call_time(tmp_path: Path):
    async with live(tmp_path) as parts:
        open_leg(parts, parts.register("call-1", "caller"), parts.calls.clock())
        recognition = await parts.recognizer.leg()
        recognition.listener.lost(8000, 12000, "recognition was too late")
        [lost] = await parts.sink.until("audio.lost")
    assert lost == {
        "leg": "caller",
        "start": 1.0,
        "end": 1.5,
        "reason": "recognition was too late",
    }


async def test_lag_is_told_to_the_room(tmp_path: Path):
    async with live(tmp_path) as parts:
        open_leg(parts, new_uuid(), parts.calls.clock())
        (await parts.recognizer.leg()).listener.lag(1.23456, "behind")
        assert parts.sink.of("lag.updated") == [{"lag_s": 1.235, "state": "behind"}]


async def test_a_call_is_on_time_again_once_none_of_its_legs_is_late(tmp_path: Path):
    async with live(tmp_path) as parts:
        sessions = [
            open_leg(parts, parts.register("call-1", leg), parts.calls.clock())
            for leg in ("caller", "agent")
        ]
        first, second = [(await parts.recognizer.leg(i)).listener for i in range(2)]
        first.lag(4.0, "behind")
        second.lag(5.0, "behind")
        first.lag(0.5, "ok")
        told = [(each["lag_s"], each["state"]) for each in parts.sink.of("lag.updated")]
        # What the page counts on from is the leg that is late for longer.
        assert told == [(4.0, "behind")]
        # A leg that ends is not waited for any more.
        for session in sessions:
            session.end("hangup")
        assert (await parts.sink.until("lag.updated", 2))[-1]["state"] == "ok"


@pytest.mark.parametrize(
    ("refused", "capture", "told"),
    [
        (
            RefusedText.BUSY,
            "fallback",
            "too many calls at once; its text comes from the recording",
        ),
        (RefusedText.DOWN, "off", "speech recognition does not answer"),
    ],
)
async def test_a_leg_without_room_goes_on_without_text_and_says_so(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    refused: RefusedText,
    capture: str,
    told: str,
):
    async with live(tmp_path, capture=capture) as parts:
        parts.recognizer.room = 1
        parts.recognizer.no_room = refused
        note = failing(2, parts.storage.note_no_text, LOCKED)
        monkeypatch.setattr(parts.storage, "note_no_text", note)
        now = parts.calls.clock()
        heard = open_leg(parts, parts.register("call-1", "caller", caller="+254700000001"), now)
        recognition = await parts.recognizer.leg()
        mute = open_leg(parts, parts.register("call-2", "caller", caller="+254700000002"), now)
        [lag] = await parts.sink.until("lag.updated")
        assert lag == {"lag_s": None, "state": "recording"}
        [leg] = parts.storage.call("call-2").legs
        assert leg.no_text == told  # by the time that it is told
        mute.feed([slin(ramp(0, 8000))], now + 1.0)
        recognition.say(0, "Hello.")
        heard.end("hangup")
        mute.end("hangup")
        await parts.sink.until("call.ended", 2)
        media = parts.storage.capture_media("call-2")
        assert [size_of(each) for each in media] == [44 + 16000] * (capture != "off")
        assert len(parts.storage.live_segments("call-1")) == 1
        assert parts.storage.live_segments("call-2") == []
        assert parts.storage.call("call-1").legs[0].no_text is None
    assert "+2547" not in caplog.text
    [line] = [each for each in caplog.records if each.message == "leg gets no live text"]
    assert told.startswith(line.reason)  # type: ignore[attr-defined]


async def test_a_reason_for_no_text_that_cannot_be_stored_costs_no_leg(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    async with live(tmp_path) as parts:
        parts.recognizer.room = 0
        note = failing(1, parts.storage.note_no_text, peewee.IntegrityError("no"))
        monkeypatch.setattr(parts.storage, "note_no_text", note)
        leg = open_leg(parts, parts.register("call-1", "caller"), parts.calls.clock())
        await parts.sink.until("lag.updated")
        leg.end("hangup")
        [ended] = await parts.sink.until("leg.ended")
        assert ended["reason"] == "hangup"


async def test_without_recognition_and_capture_a_call_still_comes_and_goes(tmp_path: Path):
    async with live(tmp_path, live="off", capture="off") as parts:
        leg = open_leg(parts, new_uuid(), parts.calls.clock())
        leg.feed([slin(ramp(0, 160))], parts.calls.clock())
        leg.end("hangup")
        [ended] = await parts.sink.until("call.ended")
        assert ended["reason"] == "hangup"
        assert parts.recognizer.legs == []


async def test_early_audio_that_cannot_be_kept_ends_no_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(*_args: object) -> NoReturn:
        raise MemoryError

    async with live(tmp_path) as parts:
        leg = open_leg(parts, parts.register("call-1", "caller"), parts.calls.clock())
        with monkeypatch.context() as patch:
            patch.setattr("callcore.stereo.EarlyAudio.keep", full)
            leg.feed([slin(ramp(0, 160))], parts.calls.clock())
        await parts.sink.until("leg.started")
        leg.feed([slin(ramp(0, 160))], parts.calls.clock())
        leg.end("hangup")
        await parts.sink.until("leg.ended")
        [media] = parts.storage.capture_media("call-1")
        assert ramp(0, 160) in content_of(media), "what came later is kept"


@contextmanager
def without_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.mark.parametrize("channels", ["one", "two", "refused"])
async def test_a_leg_that_has_ended_leaves_no_memory_to_the_collector(
    tmp_path: Path, channels: str
):
    # Fault held off: each leg kept half a megabyte until the collector's oldest generation ran,
    # which in a daemon that freezes what it starts with takes minutes.
    refused: list[str] = []
    async with live(tmp_path, unregistered="refuse") as parts:
        with without_collector():
            leg_uuid = parts.register("call-1", "caller")
            if channels == "two":
                both = CallFacts(leg="stereo", call_id="call-1")
                leg_uuid = intake.register_leg(parts.storage, new_uuid(), both).uuid
            if channels == "refused":
                leg_uuid = new_uuid()
            leg = parts.calls.open_leg(leg_uuid, parts.calls.clock(), refused.append)
            leg.feed([slin(ramp(0, 160))], parts.calls.clock())
            if channels != "refused":
                await parts.sink.until("leg.started")
            leg.end("hangup")
            await parts.calls.close(20.0)
            parts.recognizer.legs.clear()
            held = [ref(leg), ref(leg._capture) if leg._capture else None]
            del leg
            await asyncio.sleep(0)
            assert [each() for each in held if each is not None] == [None] * sum(map(bool, held))
    assert bool(refused) == (channels == "refused")


# ---- after a crash


async def test_what_a_killed_daemon_left_is_ended_and_its_capture_made_whole(tmp_path: Path):
    async with live(tmp_path) as parts:
        lost, gone = parts.register("call-1", "caller"), parts.register("call-2", "caller")
        other = parts.register("call-3", "caller")
        parts.storage.consume_leg(lost, "daemon-1")
        parts.storage.consume_leg(gone, "daemon-1")
        parts.storage.consume_leg(other, "daemon-2")
        assert parts.capture is not None
        parts.capture.path_of(lost).write_bytes(wav_header(8000, 1, 0) + ramp(0, 8000))
        parts.capture.path_of(gone).write_bytes(b"no header")
        new = open_leg(parts, parts.register("call-4", "caller"), parts.calls.clock())
        await parts.sink.until("leg.started")
        await parts.calls.recover()
        states = {f"call-{i}": parts.storage.call(f"call-{i}").state for i in (1, 2, 3, 4)}
        assert states == {
            "call-1": CallState.ENDED,
            "call-2": CallState.ENDED,
            "call-3": CallState.LIVE,
            "call-4": CallState.LIVE,
        }
        assert parts.storage.call("call-1").reason == "daemon_lost"
        [media] = parts.storage.capture_media("call-1")
        assert content_of(media) == wav_header(8000, 1, 16000) + ramp(0, 8000)
        assert parts.storage.capture_media("call-2") == []
        ended = parts.sink.of("leg.ended")
        assert [(leg["duration"], leg["reason"]) for leg in ended] == [
            (1.0, "daemon_lost"),
            (None, "daemon_lost"),
        ]
        assert len(parts.sink.of("call.ended")) == 2
        new.end("hangup")


def lost_capture(parts: Live, leg_uuid: str) -> None:
    """Write what a killed daemon leaves of one second."""
    assert parts.capture is not None
    parts.capture.path_of(leg_uuid).write_bytes(wav_header(8000, 1, 0) + ramp(0, 8000))


async def test_a_capture_whose_leg_another_daemon_ended_is_handed_over_at_the_next_start(
    tmp_path: Path,
):
    async with live(tmp_path) as parts:
        ended, busy, here = (parts.register(f"call-{i}", "caller") for i in (1, 2, 3))
        for leg_uuid in (ended, busy):
            parts.storage.consume_leg(leg_uuid, "daemon-1")
            parts.storage.end_leg(leg_uuid, "daemon_lost", None)
            lost_capture(parts, leg_uuid)
        parts.storage.end_call_if_idle("call-1", "daemon_lost")
        new = open_leg(parts, here, parts.calls.clock())
        await parts.sink.until("leg.started")
        for _ in range(2):
            await parts.calls.recover()
            [media] = parts.storage.capture_media("call-1")
            assert content_of(media) == wav_header(8000, 1, 16000) + ramp(0, 8000)
            assert len(parts.storage.recordings_of("call-1")) == 1
            assert size_of(parts.storage.capture_media("call-2")[0]) == 44 + 16000
            assert parts.storage.recordings_of("call-2") == []
        assert parts.storage.capture_media("call-3") == []
        assert parts.storage.call("call-3").legs[0].state is LegState.LIVE
        assert "leg.ended" not in parts.sink.types, "it streams here"
        new.end("hangup")


async def test_captures_that_no_leg_names_are_told_once_at_the_start_and_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    # Fault held off: audio whose leg could not be registered was on disk and nobody knew.
    async with live(tmp_path) as parts:
        leg = open_leg(parts, parts.register("call-1", "caller"), parts.calls.clock())
        leg.feed([slin(ramp(0, 160))], parts.calls.clock())
        leg.end("hangup")
        await parts.sink.until("leg.ended")
        elsewhere = parts.register("call-2", "caller")
        parts.storage.consume_leg(elsewhere, "daemon-2")
        lost_capture(parts, elsewhere)
        await parts.calls.recover()
        assert "captures that no leg names" not in caplog.text
        unknown = [new_uuid(), f"{leg.uuid}-2"]
        for name in unknown:
            lost_capture(parts, name)
        await parts.calls.recover()
        [line] = [each for each in caplog.records if each.message == "captures that no leg names"]
        assert (line.levelno, getattr(line, "files", None)) == (logging.WARNING, 2)
        assert parts.capture is not None
        assert len(parts.capture.files()) == 4


async def test_legs_of_a_daemon_that_gives_no_sign_of_life_are_ended_by_another(tmp_path: Path):
    # Fault held off: calls of a daemon that came back under another name stayed live for ever.
    async with live(tmp_path) as parts:
        dead, away, alive = (parts.register(f"call-{i}", "caller") for i in (1, 2, 3))
        parts.storage.consume_leg(dead, "daemon-2")
        parts.storage.consume_leg(away, "daemon-2")
        parts.storage.consume_leg(alive, "daemon-3")
        lost_capture(parts, dead)
        parts.storage.note_daemon("daemon-2")
        own = open_leg(parts, parts.register("call-4", "caller"), parts.calls.clock())
        await parts.sink.until("leg.started")
        for _ in range(orphans.LOST_AFTER_SWEEPS):
            parts.storage.note_daemon("daemon-3")
            await parts.calls.sweep()
        assert len(parts.storage.live_calls()) == 4
        parts.storage.note_daemon("daemon-3")
        await parts.calls.sweep()
        assert parts.storage.live_daemons()["daemon-1"] is not None
        live_ids = {call.call_id for call in parts.storage.live_calls()}
        assert live_ids == {"call-3", "call-4"}
        assert parts.storage.call("call-1").reason == "daemon_lost"
        [media] = parts.storage.capture_media("call-1")
        assert content_of(media) == wav_header(8000, 1, 16000) + ramp(0, 8000)
        assert len(parts.storage.recordings_of("call-1")) == 1
        assert parts.storage.capture_media("call-2") == []
        assert [each["reason"] for each in parts.sink.of("leg.ended")] == ["daemon_lost"] * 2
        assert len(parts.sink.of("call.ended")) == 2
        own.end("hangup")


async def test_a_daemon_that_was_stopped_itself_waits_for_signs_of_life_again(tmp_path: Path):
    async with live(tmp_path) as parts:
        parts.storage.consume_leg(parts.register("call-1", "caller"), "daemon-2")
        parts.storage.note_daemon("daemon-2")
        came = parts.storage.clock()
        await parts.calls.sweep()
        parts.storage.clock = lambda: came + timedelta(hours=1)  # both were stopped meanwhile
        await parts.calls.sweep()
        assert parts.storage.call("call-1").state is CallState.LIVE


async def test_a_leg_that_another_daemon_ended_goes_on_to_its_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    # A daemon that was stopped (SIGSTOP) for a minute is lost to the others, and wakes.
    async with live(tmp_path) as parts:
        leg = open_leg(parts, parts.register("call-1", "caller"), parts.calls.clock())
        recognition = await parts.recognizer.leg()
        parts.storage.end_leg(leg.uuid, "daemon_lost", None)
        assert parts.storage.end_call_if_idle("call-1", "daemon_lost") is not None
        recognition.say(0, "late")
        await parts.sink.until("transcript.final")
        leg.end("hangup")
        await parts.sink.until("leg.ended")
        await parts.calls.close(20.0)
        call = parts.storage.call("call-1")
        assert (call.state, call.legs[0].reason) == (CallState.ENDED, "daemon_lost")
        assert [segment.text for segment in parts.storage.live_segments("call-1")] == ["late"]
        assert parts.sink.of("call.ended") == []
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_the_sweep_ends_calls_that_nobody_else_ends(tmp_path: Path):
    async with live(tmp_path) as parts:
        lingering = parts.register("call-1", "caller")
        parts.storage.consume_leg(lingering, "daemon-2")
        parts.storage.end_leg(lingering, "hangup", None)
        busy = parts.register("call-2", "caller")
        parts.storage.consume_leg(busy, "daemon-2")
        await parts.calls.sweep(idle_s=-1.0)
        assert parts.storage.call("call-1").state is CallState.ENDED
        assert parts.storage.call("call-2").state is CallState.LIVE
        [ended] = parts.sink.of("call.ended")
        assert ended["reason"] == "daemon_lost"


async def test_the_sweep_ends_calls_whose_legs_never_came(tmp_path: Path):
    async with live(tmp_path) as parts:
        leg_uuid = new_uuid()
        parts.storage.register_leg(leg_uuid, CallFacts(call_id="call-1"), -1.0)
        await parts.calls.sweep()
        assert parts.storage.call("call-1").legs[0].state is LegState.EXPIRED
        assert len(parts.sink.of("call.ended")) == 1


async def test_closing_seals_what_is_left_and_gives_up_on_a_database_that_stays_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    async with live(tmp_path) as parts:
        leg = open_leg(parts, parts.register("call-1", "caller"), parts.calls.clock())
        await parts.sink.until("leg.started")
        monkeypatch.setattr(parts.storage, "end_leg", failing(10**9, print, LOCKED))
        leg.end("daemon_stopped")
        await parts.calls.close(0.2)
    assert "a live task failed" in caplog.text or "could not be finished" in caplog.text
