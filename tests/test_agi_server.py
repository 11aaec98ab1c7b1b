"""The FastAGI server: over real sockets, with peers of every kind."""

import asyncio
import contextlib
import dataclasses
import ipaddress
import logging
from pathlib import Path

import pytest

from callcore.agi import server as agi_server
from callcore.agi.protocol import Reply
from callcore.agi.server import AgiServer, Request
from callcore.settings import Address, Settings
from tests.support.agi import PATIENCE_S, Dialplan, running
from tests.support.recordings import make_settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return make_settings(tmp_path)


class Seen:
    """A route that remembers its requests."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    async def answer(self, request: Request) -> None:
        self.requests.append(request)


class Stuck:
    """A route that waits until it is let go."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.proceed = asyncio.Event()

    async def answer(self, request: Request) -> None:
        self.entered.set()
        await self.proceed.wait()


async def test_a_request_runs_the_route_of_its_path_and_is_closed(settings: Settings) -> None:
    seen, other = Seen(), Seen()
    async with running(settings, {"hangup": seen.answer, "live": other.answer}) as server:
        dialplan = await Dialplan.connect(server.address)
        dialplan.greet("hangup?queue=help%20line&x", "leg=caller")
        assert await dialplan.closed() == b""
        assert server.counts["answered"] == 1
    [request] = seen.requests
    assert request.environment.variables["uniqueid"] == "1795362086.75"
    assert request.environment.arguments == ("leg=caller",)
    assert request.parameters == (("queue", "help line"),)
    assert not other.requests


async def test_a_route_may_ask_back(settings: Settings) -> None:
    replies: list[Reply] = []
    hung_up: list[bool] = []

    async def ask(request: Request) -> None:
        for name in ("A", "a b"):
            replies.append(await request.command("GET VARIABLE", name))
        hung_up.append(request.has_hung_up)

    async with running(settings, {"ask": ask}) as server:
        dialplan = await Dialplan.connect(server.address)
        dialplan.greet("ask")
        assert await dialplan.line() == "GET VARIABLE A"
        dialplan.send(b"HANGUP\n200 result=1 (x)\n")
        assert await dialplan.line() == 'GET VARIABLE "a b"'
        dialplan.send(b"200 result=0\n")
        assert await dialplan.closed() == b""
    assert replies == [Reply(200, "1", "x"), Reply(200, "0")]
    assert hung_up == [True]


@pytest.mark.parametrize("data", [b"", b"200 resul"])
async def test_a_route_learns_that_asterisk_has_gone(settings: Settings, data: bytes) -> None:
    async def ask(request: Request) -> None:
        await request.command("NOOP")

    async with running(settings, {"ask": ask}) as server:
        dialplan = await Dialplan.connect(server.address)
        dialplan.greet("ask")
        assert await dialplan.line() == "NOOP"
        dialplan.send(data)
        dialplan.writer.write_eof()
        await dialplan.closed()
        await server.close()
    [outcome] = server.counts
    assert outcome.startswith("protocol error" if data else "closed too early")


async def test_a_peer_that_only_looks_is_no_fault(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(settings, {}) as server:
        dialplan = await Dialplan.connect(server.address)
        dialplan.writer.write_eof()
        await dialplan.closed()
    assert server.counts == {"closed without a word": 1}
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "protocol error: expected `agi_name: value`"),
        (b"x" * 20_000, "protocol error: a line has more than"),
        (b"agi_network_script: nothing\n\n", "no such route"),
        (b"agi_uniqueid: 1.2\n\n", "no such route"),
    ],
)
async def test_what_is_no_request_of_ours_is_closed_with_the_reason_in_the_log(
    settings: Settings, caplog: pytest.LogCaptureFixture, data: bytes, reason: str
) -> None:
    async with running(settings, {"hangup": Seen().answer}) as server:
        dialplan = await Dialplan.connect(server.address)
        dialplan.send(data)
        with contextlib.suppress(ConnectionResetError):  # it did not read to the end
            await dialplan.closed()
        await server.close()
    [record] = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert vars(record)["reason"].startswith(reason)


async def test_a_route_that_fails_ends_only_its_request_and_logs_no_number(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(request: Request) -> None:
        raise RuntimeError("0700123456")

    async with running(settings, {"fail": fail}) as server:
        for _ in range(2):
            dialplan = await Dialplan.connect(server.address)
            dialplan.greet("fail")
            assert await dialplan.closed() == b""
    assert server.counts["error"] == 2
    assert "0700" not in caplog.text
    assert vars(caplog.records[0])["error"].startswith("RuntimeError at agi/server.py")


async def test_peers_that_are_not_allowed_are_closed_unheard(settings: Settings) -> None:
    seen = Seen()
    elsewhere = dataclasses.replace(settings, agi_peers=(ipaddress.ip_network("10.0.0.0/8"),))
    async with running(elsewhere, {"hangup": seen.answer}) as server:
        dialplan = await Dialplan.connect(server.address)
        assert await dialplan.closed() == b""
        assert server.counts["not one of CALLCORE_AGI_PEERS"] == 1
    assert not seen.requests


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("127.0.0.1", True),
        ("::ffff:10.1.2.3", True),
        ("::1", True),
        ("fd00::7%eth0", True),
        ("8.8.8.8", False),
        ("::ffff:8.8.8.8", False),
        ("unknown", False),
    ],
)
def test_private_networks_may_ask_by_default(settings: Settings, host: str, allowed: bool) -> None:
    assert agi_server._is_within(host, settings.agi_peers) is allowed


async def test_requests_beyond_the_limit_are_closed_and_later_ones_served(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agi_server, "MAX_CONNECTIONS_PER_PEER", 1)
    stuck = Stuck()
    async with running(settings, {"hangup": stuck.answer}) as server:
        first = await Dialplan.connect(server.address)
        first.greet("hangup")
        await stuck.entered.wait()
        second = await Dialplan.connect(server.address)
        assert await second.closed() == b""
        monkeypatch.setattr(agi_server, "MAX_CONNECTIONS", 1)
        third = await Dialplan.connect(server.address)
        assert await third.closed() == b""
        stuck.proceed.set()
        assert await first.closed() == b""
        assert server.counts["answered"] == 1
        fourth = await Dialplan.connect(server.address)
        fourth.greet("hangup")
        assert await fourth.closed() == b""
    assert server.counts == {
        "answered": 2,
        "too many requests": 1,
        "too many requests from this address": 1,
    }
    assert not server._hosts


@pytest.mark.parametrize("limit", ["ENVIRONMENT_S", "ROUTE_S"])
async def test_nothing_waits_for_ever(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setattr(agi_server, limit, 0.05)
    async with running(settings, {"hangup": Stuck().answer}) as server:
        dialplan = await Dialplan.connect(server.address)
        if limit == "ROUTE_S":
            dialplan.greet("hangup")
        else:
            dialplan.send(b"agi_network: yes\n")
        assert await dialplan.closed() == b""
        assert server.counts["too slow"] == 1


async def test_the_end_waits_for_routes_and_then_cuts_them_off(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    stuck = Stuck()
    async with running(settings, {"hangup": stuck.answer}) as server:
        patient, late = [await Dialplan.connect(server.address) for _ in range(2)]
        patient.greet("hangup")
        await stuck.entered.wait()
        closing = asyncio.create_task(server.close(PATIENCE_S))
        stuck.proceed.set()
        assert await patient.closed() == b""
        late.writer.close()
        await closing
        with pytest.raises(OSError, match=r"Connect|Multiple"):
            await Dialplan.connect(server.address)
    stuck = Stuck()
    again = AgiServer(settings, {"hangup": stuck.answer})
    await again.start(Address("127.0.0.1", 0))
    dialplan = await Dialplan.connect(again.address)
    dialplan.greet("hangup")
    await stuck.entered.wait()
    await asyncio.gather(again.close(0.05), again.close(0.05))
    assert await dialplan.closed() == b""
    assert again.counts == {"daemon stopped": 1}
    assert "requests were cut off" in caplog.text
