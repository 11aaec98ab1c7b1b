"""The server against real sockets: the good leg loses nothing whatever stands beside it."""

import asyncio
import contextlib
import gc
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from weakref import ref

import numpy as np
import pytest

from callcore import audiosocket_server, leg_session, session
from callcore.audiosocket import MAX_OTHERS, PROBE_UUID, Kind, encode, silence_frame
from callcore.audiosocket_server import AudioSocketServer
from callcore.calls import CallState
from callcore.ringbuffer import RingBuffer
from tests.support.live import (
    PATIENCE_S,
    FakeRecognition,
    Live,
    Wire,
    daemon,
    new_uuid,
    on_uvloop,
    ramp,
)

HOSTILE = sorted((Path(__file__).parent / "data" / "audiosocket").glob("*.bin"))
SILENCE = silence_frame()


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "LINGER_S", 0.05)
    monkeypatch.setattr(audiosocket_server, "UUID_TIMEOUT_S", 0.3)
    monkeypatch.setattr(audiosocket_server, "FAREWELL_S", 0.3)


async def heard(ring: RingBuffer, num_samples: int) -> bytes:
    """Return what is in the ring once it holds so many samples."""
    async with asyncio.timeout(PATIENCE_S):
        # The ring has no event: the product polls it too.
        while ring.end < num_samples:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return ring.read(0, num_samples).tobytes()


async def count(server: AudioSocketServer, reason: str, number: int = 1) -> None:
    """Return once so many connections ended for that reason."""
    async with asyncio.timeout(PATIENCE_S):
        while server.counts[reason] < number:
            server._changed.clear()
            await server._changed.wait()


async def stream(server: AudioSocketServer, leg_uuid: str | None = None) -> Wire:
    """Return a connection that has said who it is, and been answered."""
    wire = await Wire.connect(server.address)
    wire.greet(leg_uuid or new_uuid())
    assert await wire.frame() == SILENCE
    return wire


def captured(parts: Live, call_id: str) -> np.ndarray:
    """Return what was captured of a call of one leg."""
    [media] = parts.storage.capture_media(call_id)
    return np.frombuffer(Path(media.path).read_bytes()[44:], "<i2").astype(int)


@asynccontextmanager
async def good_leg_beside(parts: Live, server: AudioSocketServer) -> AsyncIterator[None]:
    """Speak while the test does its worst, and check that all of it was heard."""
    wire = await stream(server, parts.register("good", "caller"))
    recognition: FakeRecognition = await parts.recognizer.leg()
    wire.speak(ramp(0, 4000))
    yield
    before = len(parts.sink.of("leg.ended"))
    wire.speak(ramp(4000, 8000))
    wire.close()
    await parts.sink.until("leg.ended", before + 1)
    assert recognition.finished
    ring = recognition.ring
    samples = ring.read(0, ring.end)
    assert samples[samples != 0].tobytes() == ramp(0, 8000)


@on_uvloop
async def test_a_stream_becomes_a_call_with_every_sample_in_place(tmp_path: Path):
    async with daemon(tmp_path) as (parts, server):
        leg_uuid = parts.register("call-1", "caller")
        wire = await stream(server, leg_uuid)
        wire.speak(ramp(0, 8000))
        recognition = await parts.recognizer.leg()
        assert await heard(recognition.ring, 8000) == ramp(0, 8000)
        wire.send(encode(Kind.DTMF, b"#"))
        assert (await parts.sink.until("dtmf"))[0]["digit"] == "#"
        wire.close()
        [ended] = await parts.sink.until("call.ended")
        assert ended["reason"] == "hangup"
        assert parts.storage.call("call-1").state is CallState.ENDED
        assert server.counts == {"accepted": 1, "hangup": 1}


@on_uvloop
async def test_one_frame_of_silence_comes_at_once_and_one_each_second_of_the_kind_received(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(audiosocket_server, "KEEPALIVE_S", 0.05)
    async with daemon(tmp_path) as (_, server):
        wire = await stream(server)
        assert await wire.frame() == SILENCE
        wire.send(encode(Kind.SLIN16, bytes(640)))
        async with asyncio.timeout(PATIENCE_S):
            while (await wire.frame()) == SILENCE:
                pass
        assert await wire.frame() == silence_frame(Kind.SLIN16)
        wire.close()


@on_uvloop
async def test_byte_by_byte_is_heard_alike(tmp_path: Path):
    async with daemon(tmp_path) as (parts, server):
        wire = await Wire.connect(server.address)
        wire.greet(new_uuid())
        for byte in encode(Kind.SLIN, ramp(0, 160)) * 3:
            wire.send(bytes([byte]))
            await wire.writer.drain()
        recognition = await parts.recognizer.leg()
        assert await heard(recognition.ring, 480) == ramp(0, 160) * 3
        wire.close()


async def gathers(server: AudioSocketServer, wanted: bool) -> None:
    """Return once the server does, or does not, take many streams' frames together."""
    async with asyncio.timeout(PATIENCE_S):
        while server._gathers is not wanted:  # noqa: ASYNC110 - it has no event, and needs none
            await asyncio.sleep(0.01)


@on_uvloop
async def test_many_streams_are_heard_in_passes_until_there_are_few_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(audiosocket_server, "MANY", 2)
    async with daemon(tmp_path) as (parts, server):
        first = await stream(server)
        assert not server._gathers
        second = await stream(server)
        await gathers(server, True)
        for wire in (first, second):
            wire.speak(ramp(0, 1600))
        for number in range(2):
            recognition = await parts.recognizer.leg(number)
            assert await heard(recognition.ring, 1600) == ramp(0, 1600)
        second.close()
        await gathers(server, False)
        first.speak(ramp(1600, 3200))
        rings = [(await parts.recognizer.leg(number)).ring for number in range(2)]
        async with asyncio.timeout(PATIENCE_S):
            while max(ring.end for ring in rings) < 3200:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        first.close()
        await count(server, "hangup", 2)


@on_uvloop
async def test_a_server_that_closes_is_not_held_up_by_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(audiosocket_server, "MANY", 1)
    async with daemon(tmp_path) as (_, server):
        wire = await stream(server)
        await gathers(server, True)
        closing = asyncio.create_task(server.close(drain_s=60.0))
        await gathers(server, False)
        server.tick(server.clock())
        assert not server._gathers
        assert wire in Wire.opened
        server.hurry()
        wire.close()
        await closing


@pytest.mark.parametrize("ending", ["fin", "half-close", "rst", "hangup message", "rst mid-frame"])
def test_every_end_of_a_stream_is_a_hangup(tmp_path: Path, ending: str):
    @on_uvloop
    async def run() -> None:
        async with daemon(tmp_path) as (parts, server):
            wire = await stream(server)
            wire.speak(ramp(0, 160))
            if ending == "rst mid-frame":
                wire.send(encode(Kind.SLIN, bytes(320))[:100])
            await heard((await parts.recognizer.leg()).ring, 160)
            if ending.startswith("rst"):
                wire.reset()
            elif ending == "fin":
                wire.close()
            elif ending == "half-close":
                wire.writer.write_eof()
                await wire.closed()
            else:
                wire.send(encode(Kind.HANGUP))
                await wire.closed()
            [ended] = await parts.sink.until("leg.ended")
            assert ended["reason"] == "hangup"
            wire.close()

    run()


@pytest.mark.parametrize("path", HOSTILE, ids=lambda path: path.stem)
def test_a_hostile_peer_ends_its_own_connection_only(tmp_path: Path, path: Path):
    data = path.read_bytes()

    @on_uvloop
    async def run() -> None:
        async with daemon(tmp_path) as (parts, server), good_leg_beside(parts, server):
            wire = await Wire.connect(server.address)
            wire.send(data)
            if path.stem in ("half-uuid", "endless-unknown-kind", "random-after-uuid"):
                wire.writer.write_eof()  # no fault yet: the rest of a message may still come
            await wire.closed()
            wire.close()

    run()


@on_uvloop
async def test_connections_without_a_uuid_are_tolerated(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    async with daemon(tmp_path) as (parts, server), good_leg_beside(parts, server):
        for _ in range(20):
            (await Wire.connect(server.address)).close()
        await count(server, "closed without UUID", 20)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@on_uvloop
async def test_a_slow_peer_has_no_more_time_for_its_uuid_than_others(tmp_path: Path):
    async with daemon(tmp_path) as (parts, server), good_leg_beside(parts, server):
        silent, slow = await Wire.connect(server.address), await Wire.connect(server.address)
        hello = encode(Kind.UUID, bytes(16))

        async def drip() -> None:
            for byte in hello:
                slow.send(bytes([byte]))
                await asyncio.sleep(0.05)

        dripping = asyncio.create_task(drip())
        await silent.closed()
        await slow.closed()
        await count(server, "no UUID", 2)
        dripping.cancel()
        silent.close()
        slow.close()


@on_uvloop
async def test_too_many_streams_from_one_address_are_let_go_without_a_reset(tmp_path: Path):
    async with (
        daemon(tmp_path, max_calls_per_peer="2") as (parts, server),
        good_leg_beside(parts, server),
    ):
        second = await stream(server)
        third = await Wire.connect(server.address)
        third.greet(new_uuid())
        third.speak(ramp(0, 1600))
        await third.closed()  # a reset would raise
        await count(server, "too many calls from this address")
        second.close()
        await count(server, "hangup")
        (await stream(server)).close()
        await count(server, "hangup", 2)


@on_uvloop
async def test_too_many_streams_in_all_are_let_go(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    async with daemon(tmp_path, max_calls="1") as (parts, server), good_leg_beside(parts, server):
        wire = await Wire.connect(server.address)
        await wire.closed()
        wire.close()
        await count(server, "too many calls")
    assert "too many calls" in [getattr(record, "reason", "") for record in caplog.records]


@on_uvloop
async def test_the_same_uuid_streams_once(tmp_path: Path):
    async with daemon(tmp_path) as (parts, server), good_leg_beside(parts, server):
        leg_uuid = parts.register("call-2", "caller")
        first = await stream(server, leg_uuid)
        await parts.sink.until("leg.started", 2)
        beside = await Wire.connect(server.address)
        beside.greet(leg_uuid)
        await beside.closed()
        await count(server, "uuid-in-use")
        first.close()
        await parts.sink.until("call.ended")
        after = await stream(server, leg_uuid)
        await after.closed()
        await count(server, "uuid-used")
        for wire in (beside, after):
            wire.close()


@on_uvloop
async def test_an_unregistered_stream_is_let_go_where_the_site_refuses_it(tmp_path: Path):
    async with daemon(tmp_path, unregistered="refuse") as (parts, server):
        async with good_leg_beside(parts, server):
            wire = await stream(server)
            wire.speak(ramp(0, 1600))
            await wire.closed()
            wire.close()
        assert [leg["leg"] for leg in parts.sink.of("leg.started")] == ["caller"]


@on_uvloop
async def test_a_stream_that_sends_nothing_for_too_long_is_ended(tmp_path: Path):
    async with daemon(tmp_path, idle_timeout_s="1") as (parts, server):
        wire = await stream(server)
        await wire.closed()
        wire.close()
        [ended] = await parts.sink.until("leg.ended")
        assert ended["reason"] == "idle"
        assert ended["duration"] > 0.5


@on_uvloop
async def test_a_peer_that_does_not_read_gets_no_more_silence_and_is_still_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(audiosocket_server, "_MAX_UNREAD", 0)
    async with daemon(tmp_path) as (parts, server):
        wire = await Wire.connect(server.address)
        wire.greet(new_uuid())
        wire.speak(ramp(0, 1600))
        assert await heard((await parts.recognizer.leg()).ring, 1600) == ramp(0, 1600)
        wire.close()


@on_uvloop
async def test_draining_lets_legs_hang_up_themselves(tmp_path: Path):
    async with daemon(tmp_path) as (parts, server):
        wire = await stream(server)
        recognition = await parts.recognizer.leg()
        closing = asyncio.create_task(server.close(PATIENCE_S))
        await asyncio.sleep(0)
        with contextlib.suppress(ConnectionRefusedError):  # or let go, if it was in the backlog
            await (await Wire.connect(server.address)).closed()
        wire.speak(ramp(0, 1600))
        await heard(recognition.ring, 1600)
        assert not closing.done()
        wire.close()
        await closing
        await server.close()
        [ended] = parts.sink.of("call.ended")
        assert ended["reason"] == "hangup"


@on_uvloop
async def test_who_does_not_hang_up_is_sealed_and_let_go_without_a_reset(tmp_path: Path):
    async with daemon(tmp_path) as (parts, server):
        wire = await stream(server, parts.register("call-1", "caller"))
        (await parts.recognizer.leg()).last_words = ["one more word"]
        closing = asyncio.create_task(server.close(PATIENCE_S))
        await asyncio.sleep(0)
        server.hurry()
        await wire.closed()
        wire.close()
        await closing
        assert parts.sink.of("leg.ended")[0]["reason"] == "daemon_stopped"
        assert parts.sink.of("call.ended")[0]["reason"] == "daemon_stopped"
        assert len(parts.storage.live_segments("call-1")) == 1
        assert server.peers == set()


@on_uvloop
async def test_after_a_stall_no_silence_is_put_before_the_audio_that_waits(tmp_path: Path):
    async with daemon(tmp_path) as (parts, server):
        wire = await stream(server)
        ring = (await parts.recognizer.leg()).ring
        at = server.clock()
        server.tick(at + 5.0, late_s=4.9)
        assert ring.end < 4000
        server.tick(at + 5.0)
        assert ring.end >= 4.8 * 8000
        wire.close()


@on_uvloop
async def test_after_a_stall_no_stream_is_ended_for_what_is_still_unread(tmp_path: Path):
    # Fault held off: timers run before reads, so a daemon that was stopped for longer than a
    # time-out let every stream go whose audio waited in its socket.
    async with daemon(tmp_path, idle_timeout_s="1") as (parts, server):
        wire = await stream(server)
        await parts.recognizer.leg()
        silent, asking = await Wire.connect(server.address), await stream(server, PROBE_UUID)
        while len(server.peers) < 3 or not any(  # noqa: ASYNC110
            peer._is_probe for peer in server.peers
        ):
            await asyncio.sleep(0.01)
        server.tick(server.clock() + 60.0, late_s=59.9)
        assert server.counts == {"accepted": 1}
        server.tick(server.clock() + 60.0)
        assert server.counts == {"accepted": 1, "idle": 1, "no UUID": 1, "probe": 1}
        for each in (wire, silent, asking):
            each.close()


@on_uvloop
async def test_a_stream_that_has_ended_leaves_no_memory_to_the_collector(tmp_path: Path):
    async with daemon(tmp_path) as (parts, server):
        gc.collect()
        gc.disable()
        try:
            wire = await stream(server)
            recognition = await parts.recognizer.leg()
            [peer] = server.peers
            held = [ref(each) for each in (peer, recognition.listener)]
            wire.close()
            await parts.sink.until("call.ended")
            parts.recognizer.legs.clear()
            del peer, recognition
            while parts.calls._tasks or server.peers:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            assert [each() for each in held] == [None, None]
        finally:
            gc.enable()


@on_uvloop
async def test_a_peer_that_changes_its_kind_of_audio_with_each_frame_is_let_go(tmp_path: Path):
    # Fault held off: one read of it stopped the loop, and so every call, for 46 s.
    async with daemon(tmp_path) as (parts, server), good_leg_beside(parts, server):
        wire = await stream(server)
        wire.send((encode(Kind.SLIN12, b"ab") + encode(Kind.SLIN16, b"ab")) * 25_000)
        await wire.closed()
        await count(server, "protocol error")


@on_uvloop
async def test_a_flood_of_digits_is_let_go_and_few_of_them_are_published(tmp_path: Path):
    # Fault held off: 64,000 events of one read filled the publisher's queue.
    async with daemon(tmp_path) as (parts, server), good_leg_beside(parts, server):
        wire = await stream(server)
        await parts.sink.until("leg.started", 2)
        wire.send(encode(Kind.DTMF, b"5") * 64_000)
        await wire.closed()
        await count(server, "protocol error")
        assert len(parts.sink.of("dtmf")) <= MAX_OTHERS


@on_uvloop
async def test_a_peer_that_sends_faster_than_people_speak_is_let_go(tmp_path: Path):
    # Fault held off: 2 s at line rate were taken for 647 minutes of speech.
    async with daemon(tmp_path) as (parts, server), good_leg_beside(parts, server):
        leg_uuid = parts.register("fast", "caller")
        wire = await stream(server, leg_uuid)
        wire.speak(bytes(2 * 8000 * 70))
        await wire.closed()
        await count(server, "too-fast")
        [ended] = await parts.sink.until("leg.ended")
        assert ended["reason"] == "too-fast"
        assert ended["duration"] <= leg_session.MAX_AHEAD_S + PATIENCE_S


@on_uvloop
async def test_a_probe_is_answered_and_is_no_leg(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    async with daemon(tmp_path) as (parts, server):
        wire = await stream(server, PROBE_UUID)
        wire.speak(ramp(0, 1600))  # dropped
        async with good_leg_beside(parts, server):
            wire.close()
            async with asyncio.timeout(PATIENCE_S):
                while len(server.peers) > 1:
                    server._changed.clear()
                    await server._changed.wait()
        await count(server, "hangup")
        assert server.counts == {"probe": 1, "accepted": 1, "hangup": 1}
        assert [call.call_id for call in parts.storage.calls(None, 10)[0]] == ["good"]
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@on_uvloop
async def test_a_probe_is_ended_after_a_moment_and_not_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(audiosocket_server, "PROBE_S", 3600.0)
    async with daemon(tmp_path) as (_, server):
        wire = await stream(server, PROBE_UUID)
        server.tick(server.clock() + 3599.0)
        assert server.counts == {}
        server.tick(server.clock() + 3600.0)
        await wire.closed()
        wire.close()
        assert server.counts == {"probe": 1}


@on_uvloop
async def test_a_probe_takes_a_place_until_its_connection_is_closed(tmp_path: Path):
    # Fault held off: probes did not count, so that they could use up the descriptors.
    async with daemon(tmp_path, max_calls="1") as (_, server):
        probe = await stream(server, PROBE_UUID)
        for _ in range(2):  # while it goes on, and once our half of it is closed
            await (await Wire.connect(server.address)).closed()
            await probe.closed()
        await count(server, "too many calls", 2)
        probe.close()
        async with asyncio.timeout(PATIENCE_S):
            while server.peers:
                server._changed.clear()
                await server._changed.wait()
        await stream(server)


@on_uvloop
async def test_wideband_frames_are_heard_and_captured_at_8_khz(tmp_path: Path):
    # As ARI's externalMedia with slin16 and c(slin16) send them: kind 0x12, 640 bytes.
    async with daemon(tmp_path) as (parts, server):
        wire = await stream(server, parts.register("call-1", "caller"))
        tone = (np.sin(np.arange(32000) * 2 * np.pi * 300 / 16000) * 9000).astype("<i2").tobytes()
        for at in range(0, len(tone), 640):
            wire.send(encode(Kind.SLIN16, tone[at : at + 640]))
        wire.close()
        [ended] = await parts.sink.until("leg.ended")
        assert ended["reason"] == "hangup"
        heard = captured(parts, "call-1")[:16000]
        assert len(heard) > 15900
        expected = (np.sin(np.arange(len(heard)) * 2 * np.pi * 300 / 8000) * 9000).astype(int)
        assert np.abs(heard - expected)[100:-100].max() < 30


@on_uvloop
async def test_a_stream_that_changes_its_kind_goes_on_in_its_place(tmp_path: Path):
    # A codec that changes within the call: narrow, wide, narrow again.
    async with daemon(tmp_path) as (parts, server):
        wire = await stream(server, parts.register("call-1", "caller"))
        level = np.full(16000, 4000, "<i2").tobytes()
        for kind, size, frames in (
            (Kind.SLIN, 320, 25),
            (Kind.SLIN16, 640, 25),
            (Kind.SLIN48, 1920, 8),
            (Kind.SLIN, 320, 25),
        ):
            for _ in range(frames):
                wire.send(encode(kind, level[:size]))
        wire.close()
        [ended] = await parts.sink.until("leg.ended")
        assert ended["duration"] == pytest.approx(83 * 0.02, abs=0.02)
        heard = captured(parts, "call-1")
        assert np.count_nonzero(np.abs(heard - 4000) < 40) > 0.95 * len(heard)
