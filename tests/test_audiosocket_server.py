"""The server against real sockets: the good leg loses nothing whatever stands beside it."""

import asyncio
import contextlib
import json
import logging
import os
import resource
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from callcore import audiosocket_server, session
from callcore.audio import decode, wav_needs_repair
from callcore.audiosocket import Kind, encode, silence_frame
from callcore.audiosocket_server import AudioSocketServer
from callcore.calls import CallState
from callcore.ringbuffer import RingBuffer
from callcore.settings import Address, load, parse_address
from callcore.storage import Storage
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


class Process:
    """``callcore audiosocket`` as a process, without recognition and without a broker."""

    def __init__(self, folder: Path) -> None:
        self.environ = {k: v for k, v in os.environ.items() if not k.startswith("CALLCORE_")} | {
            "CALLCORE_STATE_DIR": str(folder),
            "CALLCORE_AUDIOSOCKET_BIND": "127.0.0.1:0",
            "CALLCORE_DAEMON_NAME": "daemon-1",
            "CALLCORE_LIVE": "off",
            "CALLCORE_LOG_FORMAT": "json",
        }
        self.settings = load(self.environ)
        self.lines: list[dict[str, Any]] = []

    async def start(self) -> Address:
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "callcore.cli", "audiosocket"),
            env=self.environ,
            stderr=asyncio.subprocess.PIPE,
        )
        return parse_address((await self.until("listening"))["address"])

    async def until(self, message: str) -> dict[str, Any]:
        """Return the next log line with this message."""
        assert self._process.stderr is not None
        async with asyncio.timeout(PATIENCE_S):
            while line := await self._process.stderr.readline():
                self.lines.append(json.loads(line))
                if self.lines[-1]["message"] == message:
                    return self.lines[-1]
        raise AssertionError(f"no line {message!r} in {self.lines[-10:]}")

    async def end(self, signum: signal.Signals) -> int:
        self._process.send_signal(signum)
        async with asyncio.timeout(PATIENCE_S):
            await self._process.communicate()
            return await self._process.wait()


@on_uvloop
async def test_a_stopped_daemon_leaves_every_call_ended_and_every_frame_counted(tmp_path: Path):
    process = Process(tmp_path)
    storage = Storage(process.settings.database_url)
    storage.migrate()
    address = await process.start()
    wire = await Wire.connect(address)
    wire.greet(leg_uuid := new_uuid())
    wire.speak(ramp(0, 16000))
    assert await wire.frame() == SILENCE
    wire.close()
    ended = await process.until("leg ended")
    assert (ended["frames"], ended["reason"]) == (100, "hangup")
    assert await process.end(signal.SIGTERM) == 0
    call = storage.call(leg_uuid)
    assert (call.state, call.reason) == (CallState.ENDED, "hangup")
    assert len(storage.recordings_of(leg_uuid)) == 1
    storage.close()
    Wire.opened.clear()


@on_uvloop
async def test_a_killed_daemons_call_is_ended_by_the_next_one_with_its_audio(tmp_path: Path):
    process = Process(tmp_path)
    storage = Storage(process.settings.database_url)
    storage.migrate()
    address = await process.start()
    wire = await Wire.connect(address)
    wire.greet(leg_uuid := new_uuid())
    wire.speak(ramp(0, 16000))
    await process.until("leg started")
    path = process.settings.audio_dir / "capture" / f"{leg_uuid}.wav"
    async with asyncio.timeout(PATIENCE_S):
        # Another process writes the file: there is no event to wait for.
        while not path.exists() or path.stat().st_size < 32044:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    await process.end(signal.SIGKILL)
    wire.close()
    assert storage.call(leg_uuid).state is CallState.LIVE
    await process.start()
    await process.until("call ended")
    assert await process.end(signal.SIGTERM) == 0
    call = storage.call(leg_uuid)
    assert (call.state, call.reason) == (CallState.ENDED, "daemon_lost")
    [media] = storage.capture_media(leg_uuid)
    assert not wav_needs_repair(media.path)
    samples = next(decode(media.path, 8000))
    assert np.array_equal(
        np.rint(samples[samples != 0] * 32768).astype("<i2"), np.frombuffer(ramp(0, 16000), "<i2")
    )
    assert len(storage.recordings_of(leg_uuid)) == 1
    storage.close()
    Wire.opened.clear()


def test_as_many_files_as_the_system_allows_may_be_open():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, before[1]), before[1]))
        audiosocket_server.raise_file_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
