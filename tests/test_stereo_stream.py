"""Two parties in one stream: from interleaved bytes to two legs of a call."""

import asyncio
import itertools
import logging
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import peewee
import pytest
from hypothesis import given
from hypothesis import strategies as st

from callcore import intake, session, stereo
from callcore.audio import wav_header
from callcore.audiosocket import Audio, Kind, encode
from callcore.calls import CallFacts, CallState, Leg, LegState, Media
from callcore.capture import Capture
from callcore.errors import Refused
from callcore.leg_session import LegSession
from callcore.stereo import EarlyAudio, Splitter
from tests.support.live import (
    PATIENCE_S,
    Clock,
    Live,
    Wire,
    daemon,
    live,
    new_uuid,
    on_uvloop,
    ramp,
)

LOCKED = peewee.OperationalError("database is locked")


@pytest.fixture(autouse=True)
def _no_linger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "LINGER_S", 0.05)


def right_ramp(start: int, end: int) -> bytes:
    """Return samples that tell their index as ``ramp`` does, and that they are the other side."""
    return (-(np.arange(start, end) % 32767 + 1)).astype("<i2").tobytes()


def both(start: int, end: int) -> bytes:
    """Return interleaved samples of the two ramps."""
    sides = [np.frombuffer(side(start, end), "<i2") for side in (ramp, right_ramp)]
    return np.stack(sides, 1).tobytes()


def slin(samples: bytes) -> Audio:
    return Audio(Kind.SLIN, 8000, samples)


def register(parts: Live, **facts: Any) -> Leg:
    own = CallFacts(leg="stereo", **(facts or {"call_id": "call-1"}))
    return intake.register_leg(parts.storage, new_uuid(), own)


def never(reason: str) -> None:
    raise AssertionError(f"refused: {reason}")


async def streaming(parts: Live, leg: Leg, at: float) -> tuple[LegSession, Any, Any]:
    """Return the session of a stereo stream, and the recognition of its two sides."""
    opened = parts.calls.open_leg(leg.uuid, at, never)
    left, right = await parts.recognizer.leg(0), await parts.recognizer.leg(1)
    return opened, left, right


def content_of(media: Media) -> bytes:
    return Path(media.path).read_bytes()


def captured(parts: Live, call_id: str = "call-1") -> dict[str, bytes]:
    return {each.role: content_of(each) for each in parts.storage.capture_media(call_id)}


async def written(opened: LegSession) -> None:
    """Return once the disk has what the leg has heard: tests speak faster than people do."""
    capture = opened._capture
    assert capture is not None
    capture._capture.wake()
    async with asyncio.timeout(PATIENCE_S):
        while capture._done < capture._queued:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


class Away:
    """A database that says nobody who a stream is, until it is back."""

    def __init__(self, consume: Callable[..., Any]) -> None:
        self.back = threading.Event()
        self.asked = threading.Event()
        self._consume = consume

    def __call__(self, *args: Any) -> Any:
        self.asked.set()
        if not self.back.is_set():
            raise LOCKED
        return self._consume(*args)


# ---- bytes


@given(st.lists(st.integers(0, 4000), max_size=8), st.integers(0, 3))
def test_the_sides_do_not_depend_on_where_messages_are_cut(cuts: list[int], missing: int) -> None:
    data = both(0, 1000)[: 4000 - missing]
    splitter = Splitter()
    edges = [0, *sorted(cuts), len(data)]
    sides = [splitter.push(data[a:b]) for a, b in itertools.pairwise(edges)]
    whole = len(data) // 4
    assert b"".join(left for left, _ in sides) == ramp(0, whole)
    assert b"".join(right for _, right in sides) == right_ramp(0, whole)


@given(st.integers(0, 40), st.integers(0, 40))
def test_after_lost_bytes_the_sides_are_still_told_apart(before: int, lost: int) -> None:
    data, splitter = both(0, 100), Splitter()
    splitter.push(data[:before])
    splitter.skip(lost)
    left, right = splitter.push(data[before + lost :])
    # A frame that lost its beginning comes too, but for the lost part.
    whole = 100 - -(-(before + lost) // 4)
    assert left[len(left) - 2 * whole :] == ramp(100 - whole, 100)
    assert right[len(right) - 2 * whole :] == right_ramp(100 - whole, 100)
    assert len(left) == len(right) <= 2 * whole + 2


def test_early_audio_is_kept_up_to_its_limit_and_counted_beyond() -> None:
    early = EarlyAudio(max_bytes=1000)
    for at in range(5):
        early.keep([slin(bytes(400))], float(at))
    early.keep([slin(bytes(10))], 9.0)
    assert [at for _, at in early] == [0.0, 1.0]
    assert (early.lost_bytes, early.lost_until) == (1210, 9.0)


def test_a_stream_that_nobody_knows_yet_costs_the_memory_of_ten_seconds() -> None:
    # With the database away 1,000 legs kept 1 GB, and splitting it stopped the loop.
    early = EarlyAudio()
    for at in range(60):
        early.keep([slin(both(8000 * at, 8000 * (at + 1)))], float(at))
    assert [at for _, at in early] == [float(at) for at in range(10)]


# ---- registration


async def test_stereo_is_two_legs_of_one_call(tmp_path: Path):
    async with live(tmp_path) as parts:
        left = register(parts, linkedid="17.1", caller="+254700000001", language="sw")
        call = parts.storage.call("17.1")
        assert left.right_uuid is not None
        legs = {leg.leg: leg for leg in call.legs}
        assert legs["caller"] == left
        assert legs["agent"].uuid == left.right_uuid
        assert {leg.state for leg in call.legs} == {LegState.EXPECTED}
        assert {leg.language for leg in call.legs} == {"sw"}
        assert len({leg.segment_base for leg in call.legs}) == 2
        nameless = intake.register_leg(parts.storage, new_uuid(), CallFacts(leg="stereo"))
        assert len(parts.storage.call(nameless.call_id).legs) == 2


async def test_stereo_is_no_leg_elsewhere_and_a_probe_is_none(tmp_path: Path):
    async with live(tmp_path) as parts:
        facts = CallFacts(call_id="call-1", leg="stereo")
        with pytest.raises(Refused) as caught:
            intake.check_facts(facts)
        assert caught.value.code == "bad-leg"
        with pytest.raises(Refused) as caught:
            intake.register_leg(parts.storage, "0" * 8 + "-0000-0000-0000-" + "0" * 12, facts)
        assert caught.value.code == "bad-uuid"


# ---- a stream's life


async def test_both_sides_are_heard_captured_and_ended_as_two_legs(tmp_path: Path):
    clock = Clock()
    async with live(tmp_path, clock=clock) as parts:
        leg = register(parts)
        opened, left, right = await streaming(parts, leg, clock.now)
        data = both(0, 8000)
        for number, at in enumerate(range(0, len(data), 642)):  # frames are cut in their middle
            opened.feed([slin(data[at : at + 642])], clock.now + 0.02 * (number + 1))
        assert left.ring.read(0, 8000).tobytes() == ramp(0, 8000)
        assert right.ring.read(0, 8000).tobytes() == right_ramp(0, 8000)
        left.say(0, "Hello.")
        right.say(0, "Good morning.")
        right.last_words = ["Goodbye."]
        await parts.sink.until("transcript.final", 2)
        parts.calls.tick(clock.now + 2.0)
        assert left.ring.end == right.ring.end == 15200
        opened.dtmf("5")
        opened.end("idle")
        [ended] = await parts.sink.until("call.ended")
        call = parts.storage.call("call-1")
        assert (call.state, ended["reason"]) == (CallState.ENDED, "idle")
        assert {(each.leg, each.state, each.reason) for each in call.legs} == {
            ("caller", LegState.ENDED, "idle"),
            ("agent", LegState.ENDED, "idle"),
        }
        assert len({each.offset_s for each in call.legs}) == 1
        assert left.finished
        assert right.finished
        said = [(each.leg, each.text) for each in parts.storage.live_segments("call-1")]
        header, silence = wav_header(8000, 1, 30400), bytes(14400)
        assert captured(parts) == {
            "caller": header + ramp(0, 8000) + silence,
            "agent": header + right_ramp(0, 8000) + silence,
        }
    assert sorted(said) == [("agent", "Good morning."), ("agent", "Goodbye."), ("caller", "Hello.")]
    assert len(parts.sink.of("call.started")) == 1
    assert {each["leg"] for each in parts.sink.of("leg.started")} == {"caller", "agent"}
    assert [each["duration"] for each in parts.sink.of("leg.ended")] == [1.9, 1.9]
    assert parts.sink.of("dtmf") == [{"leg": "caller", "digit": "5"}]


@pytest.mark.parametrize("capture", ["fallback", "off"])
async def test_audio_before_the_registration_is_found_is_split_after_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capture: str
):
    clock = Clock()
    async with live(tmp_path, clock=clock, capture=capture) as parts:
        leg = register(parts)
        away = Away(parts.storage.consume_leg)
        monkeypatch.setattr(parts.storage, "consume_leg", away)
        opened = parts.calls.open_leg(leg.uuid, clock.now, never)
        data = both(0, 16000)
        for number, at in enumerate(range(0, len(data), 6402)):
            opened.feed([slin(data[at : at + 6402])], clock.now + 0.2 * (number + 1))
        assert opened.received_samples == 32000
        if parts.capture is not None:
            path = parts.capture.path_of(leg.uuid)
            async with asyncio.timeout(PATIENCE_S):
                # The wrong beginning is on disk before it is thrown away.
                while not path.exists():  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        away.back.set()
        left, right = await parts.recognizer.leg(0), await parts.recognizer.leg(1)
        assert left.ring.read(0, 16000).tobytes() == ramp(0, 16000)
        assert right.ring.read(0, 16000).tobytes() == right_ramp(0, 16000)
        opened.feed([slin(both(16000, 16160))], clock.now + 2.02)
        assert right.ring.read(16000, 16160).tobytes() == right_ramp(16000, 16160)
        opened.end("hangup")
        await parts.sink.until("call.ended")
        assert (opened.received_samples, opened.filled_samples) == (16160, 0)
        if capture != "off":
            header = wav_header(8000, 1, 32320)
            assert captured(parts) == {
                "caller": header + ramp(0, 16160),
                "agent": header + right_ramp(0, 16160),
            }
    assert parts.sink.of("audio.lost") == []


async def test_a_stream_that_ends_before_its_registration_is_found_keeps_both_sides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    clock = Clock()
    async with live(tmp_path, clock=clock) as parts:
        leg = register(parts)
        away = Away(parts.storage.consume_leg)
        monkeypatch.setattr(parts.storage, "consume_leg", away)
        opened = parts.calls.open_leg(leg.uuid, clock.now, never)
        opened.feed([slin(both(0, 8000))], clock.now + 1.0)
        opened.end("hangup")
        away.back.set()
        await parts.sink.until("call.ended")
        header = wav_header(8000, 1, 16000)
        assert captured(parts) == {
            "caller": header + ramp(0, 8000),
            "agent": header + right_ramp(0, 8000),
        }
        assert [each.reason for each in parts.storage.call("call-1").legs] == ["hangup"] * 2


async def test_a_database_away_for_minutes_costs_both_sides_what_was_too_much_to_keep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    clock = Clock()
    async with live(tmp_path, clock=clock) as parts:
        # A call that began ten seconds before: what is lost is told in its time.
        first = parts.register("call-1", "caller")
        parts.storage.consume_leg(first, "daemon-2")
        came = parts.storage.clock() + timedelta(seconds=10)
        parts.storage.clock = lambda: came
        leg = register(parts)
        away = Away(parts.storage.consume_leg)
        monkeypatch.setattr(parts.storage, "consume_leg", away)
        opened = parts.calls.open_leg(leg.uuid, clock.now, never)
        opened.arrived_at = came
        data = both(0, 131 * 8000)
        for second in range(130):
            # A stream of two channels is twice as long as its time, for longer than MAX_AHEAD_S.
            # It is cut in the middle of a frame.
            part = data[max(0, 32000 * second - 2) : 32000 * (second + 1) - 2]
            clock.now += 1.0
            opened.feed([slin(part)], clock.now)
            await written(opened)
        away.back.set()
        left, right = await parts.recognizer.leg(0), await parts.recognizer.leg(1)
        lost = await parts.sink.until("audio.lost", 2)
        kept = stereo.MAX_EARLY_BYTES // 32000
        assert {each["leg"] for each in lost} == {"caller", "agent"}
        for each in lost:
            begun = parts.storage.call("call-1").legs[-1].offset_s
            assert begun >= 10.0
            assert each["start"] == pytest.approx(begun + kept, abs=0.01)
            assert each["end"] == pytest.approx(begun + 130, abs=0.01)
            assert each["reason"] == "registration found too late"
        clock.now += 1.0
        opened.feed([slin(data[130 * 32000 - 2 :])], clock.now)
        for side, samples in ((left, ramp), (right, right_ramp)):
            end = side.ring.end
            assert end == pytest.approx(131 * 8000, abs=1)
            assert side.ring.read(end - 8000, end).tobytes() == samples(130 * 8000, 131 * 8000)
            assert not side.ring.read(end - 31 * 8000, end - 8001).any()
        opened.end("hangup")
        await parts.sink.until("leg.ended", 2)
        role = "caller.2" if "caller.2" in captured(parts) else "caller"
        whole = 8000 * kept - 1
        assert captured(parts)[role][44 : 44 + 2 * whole] == ramp(0, whole)
        parts.storage.end_leg(first, "hangup", None)


async def test_one_channel_too_far_ahead_is_let_go_once_it_is_known_to_be_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    clock = Clock()
    async with live(tmp_path, clock=clock) as parts:
        away = Away(parts.storage.consume_leg)
        monkeypatch.setattr(parts.storage, "consume_leg", away)
        refused: list[str] = []
        uuid = parts.register("call-1", "caller")
        opened = parts.calls.open_leg(uuid, clock.now, refused.append)
        opened.feed([slin(bytes(2 * 8000 * 100))], clock.now)
        assert refused == []
        away.back.set()
        [ended] = await parts.sink.until("leg.ended")
        assert refused == [ended["reason"]] == ["too-fast"]


async def test_two_channels_too_far_ahead_are_let_go_together(tmp_path: Path):
    clock = Clock()
    async with live(tmp_path, clock=clock) as parts:
        refused: list[str] = []
        leg = register(parts)
        opened = parts.calls.open_leg(leg.uuid, clock.now, refused.append)
        await parts.recognizer.leg(1)
        opened.feed([slin(bytes(4 * 8000 * 59))], clock.now)
        assert refused == []
        opened.feed([slin(bytes(4 * 8000 * 2))], clock.now)
        assert refused == ["too-fast"]
        assert [e["reason"] for e in await parts.sink.until("leg.ended", 2)] == ["too-fast"] * 2


async def test_a_right_channel_that_streams_elsewhere_costs_that_channel_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    clock = Clock()
    async with live(tmp_path, clock=clock) as parts:
        leg = register(parts)
        assert leg.right_uuid is not None
        beside = parts.calls.open_leg(leg.right_uuid, clock.now, never)
        await parts.recognizer.leg(0)
        opened = parts.calls.open_leg(leg.uuid, clock.now, never)
        left = await parts.recognizer.leg(1)
        opened.feed([slin(both(0, 160))], clock.now + 0.02)
        assert left.ring.read(0, 160).tobytes() == ramp(0, 160)
        opened.end("hangup")
        beside.end("hangup")
        await parts.sink.until("leg.ended", 2)
    lines = [each for each in caplog.records if each.levelno >= logging.WARNING]
    assert [getattr(each, "code", None) for each in lines] == ["uuid-in-use"]


async def test_a_right_channel_that_fails_leaves_the_left_one_its_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    clock = Clock()
    async with live(tmp_path, clock=clock) as parts:
        leg = register(parts)
        consume = parts.storage.consume_leg

        def fail(uuid: str, *args: Any) -> Any:
            if uuid == leg.right_uuid:
                raise peewee.IntegrityError("no")
            return consume(uuid, *args)

        monkeypatch.setattr(parts.storage, "consume_leg", fail)
        opened = parts.calls.open_leg(leg.uuid, clock.now, never)
        left = await parts.recognizer.leg(0)
        for number in range(50):
            opened.feed(
                [slin(both(160 * number, 160 * (number + 1)))], clock.now + 0.02 * (number + 1)
            )
            await asyncio.sleep(0)
        assert left.ring.read(0, 8000).tobytes() == ramp(0, 8000)
        opened.end("hangup")
        [ended] = await parts.sink.until("leg.ended")
        assert (ended["leg"], ended["reason"]) == ("caller", "hangup")


async def test_closing_the_daemon_seals_both_sides(tmp_path: Path):
    clock = Clock()
    async with live(tmp_path, clock=clock) as parts:
        opened, *_ = await streaming(parts, register(parts), clock.now)
        opened.feed([slin(both(0, 160))], clock.now + 0.02)
        await parts.calls.close(PATIENCE_S)
        call = parts.storage.call("call-1")
        assert [each.reason for each in call.legs] == ["daemon_stopped"] * 2
        assert (call.state, len(captured(parts))) == (CallState.ENDED, 2)


# ---- over the wire


@pytest.mark.parametrize("kind", [Kind.SLIN, Kind.SLIN16])
def test_interleaved_frames_of_any_length_arrive_on_their_sides(tmp_path: Path, kind: Kind):
    @on_uvloop
    async def run() -> None:
        async with daemon(tmp_path) as (parts, server):
            leg = register(parts)
            wire = await Wire.connect(server.address)
            wire.greet(leg.uuid)
            left, right = np.full(16000, 5000, "<i2"), np.full(16000, -7000, "<i2")
            data = np.stack([left, right], 1).tobytes()
            for at in range(0, len(data), 646):  # as the end of a sound file cuts them
                wire.send(encode(kind, data[at : at + 646]))
            wire.close()
            await parts.sink.until("call.ended")
            sides = captured(parts)
            seconds = 2.0 if kind is Kind.SLIN else 1.0
            for role, level in (("caller", 5000), ("agent", -7000)):
                samples = np.frombuffer(sides[role][44:], "<i2").astype(int)
                assert abs(len(samples) - 8000 * seconds) < 100
                assert np.abs(samples[100:-100] - level).max() < 50

    run()


# ---- the capture of what was taken for one channel


def test_a_capture_that_begins_again_holds_only_what_came_after(tmp_path: Path):
    capture = Capture(tmp_path)
    leg = capture.open_leg(new_uuid(), 8000)
    try:
        leg.write(ramp(0, 8000))
        assert len(leg.read(0, 8000)) == 8000
        leg.write(ramp(0, 160))
        leg.restart()
        # What was written before must not be read as what comes after.
        leg.write(ramp(100, 200))
        assert leg.read(0, 100).tobytes() == ramp(100, 200)
        leg.write_silence(50)
        leg.restart()
        leg.restart()
        leg.write(ramp(7, 207))
    finally:
        capture.close()
    assert leg.path.read_bytes() == wav_header(8000, 1, 400) + ramp(7, 207)
    assert leg._queued == leg._done


def test_a_capture_that_begins_again_before_anything_is_on_disk(tmp_path: Path):
    capture = Capture(tmp_path, max_queued_bytes=1000)
    leg = capture.open_leg(new_uuid(), 8000)
    try:
        leg.write(bytes(2000))  # dropped, and nobody needs to know any more
        leg.restart()
        leg.write(ramp(0, 100))
    finally:
        capture.close()
    assert leg.path.read_bytes() == wav_header(8000, 1, 200) + ramp(0, 100)


async def test_a_caller_who_refuses_analysis_ends_both_sides_without_a_trace(tmp_path: Path):
    clock = Clock()
    async with live(tmp_path, clock=clock) as parts:
        refused: list[str] = []
        leg = register(parts)
        opened = parts.calls.open_leg(leg.uuid, clock.now, refused.append)
        left, right = await parts.recognizer.leg(0), await parts.recognizer.leg(1)
        opened.feed([slin(both(0, 8000))], clock.now + 1.0)
        opened.refuse()
        await parts.sink.until("leg.ended", 2)
        assert len(refused) == 1
        assert left.discarded
        assert right.discarded
        assert captured(parts) == {}
