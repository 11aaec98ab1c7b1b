import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from callcore import player, session
from callcore.audio import WavWriter
from callcore.audiosocket_server import AudioSocketServer
from callcore.calls import CallFacts
from callcore.errors import CallcoreError, InvalidRecording
from callcore.settings import Address, Settings
from tests.support.live import Live, daemon, on_uvloop, ramp, settings_for


@pytest.fixture(autouse=True)
def _no_linger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "LINGER_S", 0.05)


@pytest.fixture
def mono(tmp_path: Path) -> Path:
    with WavWriter(tmp_path / "mono.wav", 8000) as out:
        out.write(ramp(0, 4060))
    return tmp_path / "mono.wav"


@pytest.fixture
def stereo(tmp_path: Path) -> Path:
    left, right = np.frombuffer(ramp(0, 1600), "<i2"), np.frombuffer(ramp(7000, 8600), "<i2")
    with WavWriter(tmp_path / "stereo.wav", 8000, 2) as out:
        out.write(np.stack([left, right], axis=1).tobytes())
    return tmp_path / "stereo.wav"


@asynccontextmanager
async def site(folder: Path) -> AsyncIterator[tuple[Live, AudioSocketServer, Settings]]:
    async with daemon(folder) as (parts, server):
        yield parts, server, replace(parts.settings, audiosocket_bind=server.address)


class Api:
    """Answers ``POST /api/legs/`` and keeps what it was told."""

    def __init__(self, parts: Live | None = None, status: str = "201 Created") -> None:
        self.told: list[dict[str, Any]] = []
        self.headers: list[str] = []
        self._parts = parts
        self._status = status

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[Address]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        try:
            yield Address("127.0.0.1", server.sockets[0].getsockname()[1])
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower().splitlines()
        [length] = [int(line.split()[1]) for line in lines if line.startswith("content-length")]
        body = json.loads(await reader.readexactly(length))
        self.told.append(body)
        self.headers += [line for line in lines if line.startswith("authorization")]
        if self._parts is not None:
            facts = CallFacts(call_id=body["call_id"], leg=body["leg"])
            self._parts.storage.register_leg(body["uuid"], facts, 10.0)
        answer = json.dumps({"error": {"message": "the leg is odd"}}).encode()
        head = f"HTTP/1.1 {self._status}\r\nContent-Length: {len(answer)}\r\n"
        writer.write(f"{head}Connection: close\r\n\r\n".encode() + answer)
        await writer.drain()
        writer.close()


@on_uvloop
async def test_a_mono_file_is_one_leg_with_every_sample(tmp_path: Path, mono: Path):
    async with site(tmp_path) as (parts, server, settings):
        [played] = await player.play(settings, mono, rate=0)
        [ended] = await parts.sink.until("leg.ended")
        ring = parts.recognizer.legs[0].ring
        assert ring.read(0, 4060).tobytes() == ramp(0, 4060)
        assert (played.leg, played.frames, played.complete) == ("mixed", 26, True)
        assert parts.sink.of("leg.started")[0]["uuid"] == played.uuid
        assert ended["reason"] == "hangup"
        assert server.counts["hangup"] == 1


@on_uvloop
async def test_a_stereo_file_is_two_legs_of_one_registered_call(tmp_path: Path, stereo: Path):
    async with site(tmp_path) as (parts, _, settings):
        api = Api(parts)
        async with api.listening() as web:
            settings = replace(settings, web_bind=web, token="secret")
            played = await player.play(
                settings, stereo, call_id="demo-1", register=True, language="en", rate=4
            )
        await parts.sink.until("call.ended")
        assert [(leg.leg, leg.call_id, leg.frames) for leg in played] == [
            ("caller", "demo-1", 10),
            ("agent", "demo-1", 10),
        ]
        assert [fact["language"] for fact in api.told] == ["en", "en"]
        assert api.headers == ["authorization: bearer secret"] * 2
        heard = {leg.ring.read(0, 1)[0] for leg in parts.recognizer.legs}
        assert heard == {1, 7001}
        assert len(parts.sink.of("call.started")) == 1


@on_uvloop
async def test_real_time_takes_its_time(tmp_path: Path, mono: Path):
    async with site(tmp_path) as (_, _, settings):
        [played] = await player.play(settings, mono)
        # Frame 26 is due 500 ms after the first; how much later it went is the machine's affair.
        assert played.seconds >= 0.5


@on_uvloop
async def test_several_calls_are_played_at_once(tmp_path: Path, mono: Path):
    async with site(tmp_path) as (parts, server, settings):
        played = await player.play_many(settings, [mono], calls=5, rate=0)
        await parts.sink.until("leg.ended", 5)
        assert len({leg.call_id for leg in played}) == 5
        assert server.counts["accepted"] == 5


@on_uvloop
async def test_each_file_is_played_once_in_turn(tmp_path: Path, mono: Path, stereo: Path):
    async with site(tmp_path) as (parts, _, settings):
        played = await player.play_many(settings, [mono, stereo, mono], rate=0, leg="agent")
        assert [leg.file for leg in played] == [mono, stereo, mono]
        assert {leg.leg for leg in played} == {"agent"}
        await parts.sink.until("leg.ended", 3)


@on_uvloop
async def test_a_stream_can_end_by_a_reset(tmp_path: Path, mono: Path):
    async with site(tmp_path) as (parts, _, settings):
        [played] = await player.play(settings, mono, rate=0, reset=True)
        [ended] = await parts.sink.until("leg.ended")
        assert (played.complete, ended["reason"]) == (True, "hangup")


@on_uvloop
async def test_a_daemon_that_refuses_the_stream_is_told(
    tmp_path: Path, mono: Path, capsys: pytest.CaptureFixture[str]
):
    async with daemon(tmp_path, unregistered="refuse") as (_, server):
        settings = replace(settings_for(tmp_path), audiosocket_bind=server.address)
        assert await player.run(settings, [mono], register=False) == 1
    assert "the daemon closed it early" in capsys.readouterr().out


@on_uvloop
async def test_running_prints_each_leg(
    tmp_path: Path, stereo: Path, capsys: pytest.CaptureFixture[str]
):
    async with site(tmp_path) as (_, server, settings):
        code = await player.run(
            settings, [stereo], stereo=True, rate=0, to=server.address, register=False
        )
    lines = capsys.readouterr().out.splitlines()
    assert code == 0
    assert len(lines) == 2
    assert "caller" in lines[0]
    assert "10 frames" in lines[1]


async def test_what_cannot_be_played_says_why(tmp_path: Path, mono: Path):
    settings = settings_for(tmp_path, audiosocket_bind="127.0.0.1:1", web_bind="127.0.0.1:1")
    with pytest.raises(CallcoreError, match="stereo needs 2"):
        await player.play(settings, mono, stereo=True)
    with pytest.raises(CallcoreError, match=r"nothing listens on 127\.0\.0\.1:1"):
        await player.play(settings, mono)
    with pytest.raises(CallcoreError, match="does not answer"):
        await player.play(settings, mono, register=True)
    text = tmp_path / "a.txt"
    text.write_text("no sound")
    with pytest.raises(InvalidRecording):
        await player.play(settings, text)
    assert await player.run(settings, [tmp_path / "away.wav"]) == 1


async def test_a_refused_registration_says_why(tmp_path: Path, mono: Path):
    async with Api(status="422 Unprocessable").listening() as web:
        settings = replace(settings_for(tmp_path), web_bind=web)
        with pytest.raises(CallcoreError, match="422 the leg is odd"):
            await player.play(settings, mono, register=True)


def test_an_address_to_listen_on_is_connected_to_on_this_machine():
    assert str(player._reachable(Address("0.0.0.0", 5))) == "127.0.0.1:5"
    assert str(player._reachable(Address("::", 5))) == "[::1]:5"
    assert str(player._reachable(Address("10.1.1.1", 5))) == "10.1.1.1:5"
