import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from callcore import bus as bus_module
from callcore.bus import LOBBY, START, RoomReader, room
from tests.support.pages import Pages, segment_of
from tests.support.valkey import ROOT, Valkey, stopped_valkey, valkey
from web import sse
from web.sse import Rooms

__all__ = ["stopped_valkey", "valkey"]
pytestmark = pytest.mark.redis


@dataclass
class Message:
    """One server-sent event as a browser would see it."""

    event: str
    id: str | None
    data: dict[str, Any]


async def messages(answer: httpx.Response) -> AsyncIterator[Message]:
    fields: dict[str, str] = {}
    async for line in answer.aiter_lines():
        if line.startswith(":"):
            continue
        if line:
            name, _, value = line.partition(": ")
            fields[name.rstrip(":")] = value
        elif "data" in fields:
            yield Message(fields["event"], fields.get("id"), json.loads(fields["data"]))
            fields = {}
        else:
            fields = {}


@asynccontextmanager
async def stream(url: str, last_id: str | None = None) -> AsyncIterator[AsyncIterator[Message]]:
    headers = {"Last-Event-ID": last_id} if last_id else {}
    async with (
        httpx.AsyncClient(timeout=30) as client,
        client.stream("GET", url, headers=headers) as answer,
    ):
        assert answer.status_code == 200, await answer.aread()
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        yield messages(answer)


async def get(url: str) -> httpx.Response:
    async with httpx.AsyncClient() as client:
        return await client.get(url)


async def take(source: AsyncIterator[Message], count: int) -> list[Message]:
    async with asyncio.timeout(30):
        return [await anext(source) for _ in range(count)]


def segments(found: list[Message]) -> list[int]:
    return [message.data["segment"] for message in found]


@pytest.fixture
def pages(tmp_path: Path, valkey: Valkey) -> Iterator[Pages]:
    pages = Pages(tmp_path, valkey.url)
    pages.begin_call("1.2", alias="1.3", caller="100")
    yield pages
    pages.close()


def say(pages: Pages, *numbers: int) -> None:
    for number in numbers:
        pages.say("1.2", segment_of(number, "caller", float(number), number + 0.5, "words"))


async def test_a_room_is_replayed_and_goes_on_live(pages: Pages) -> None:
    with pages.served() as url:
        say(pages, 1, 2)
        async with stream(f"{url}/events/calls/1.3", START) as events:
            found = await take(events, 3)
            assert [m.event for m in found] == ["call.started", *["transcript.final"] * 2]
            assert found[0].data["caller"] == "100"
            await asyncio.to_thread(say, pages, 3)
            found += await take(events, 1)
        assert segments(found[1:]) == [1, 2, 3]
        async with stream(f"{url}/events/calls/1.2", found[1].id) as events:
            assert segments(await take(events, 2)) == [2, 3]
        async with stream(f"{url}/events/calls/1.2?after={found[2].id}") as events:
            assert segments(await take(events, 1)) == [3]


async def test_the_header_of_a_reconnect_wins_over_where_the_page_began(pages: Pages) -> None:
    with pages.served() as url:
        say(pages, 1, 2, 3)
        async with stream(f"{url}/events/calls/1.2", START) as events:
            found = await take(events, 4)
        resumed = f"{url}/events/calls/1.2?after={START}"
        async with stream(resumed, found[2].id) as events:
            assert segments(await take(events, 1)) == [3]


async def test_a_stream_without_an_id_begins_now(pages: Pages) -> None:
    with pages.served() as url:
        say(pages, 1)
        async with stream(f"{url}/events/calls/1.2") as events:
            following = asyncio.create_task(take(events, 1))
            # Joined once the pump waits for events after the present ones.
            while not following.done():
                await asyncio.to_thread(say, pages, 2)
                await asyncio.wait([following], timeout=0.2)
            assert segments(await following) == [2]


async def test_the_lobby_carries_begin_end_and_delay_of_every_call(pages: Pages) -> None:
    with pages.served() as url:
        say(pages, 1)
        pages.publish("lag.updated", "1.2", lag_s=4.0, state="behind")
        pages.end_call("1.2")
        async with stream(f"{url}/events/calls", START) as events:
            found = await take(events, 3)
    assert [m.event for m in found] == ["call.started", "lag.updated", "call.ended"]


async def test_many_reconnects_while_events_come_miss_none_and_double_none(pages: Pages) -> None:
    total = 400
    with pages.served() as url:
        speaking = asyncio.create_task(asyncio.to_thread(say, pages, *range(total)))
        found: list[Message] = []
        while len(found) < total + 1:  # with call.started
            last_id = found[-1].id if found else START
            async with stream(f"{url}/events/calls/1.2", last_id) as events:
                found += await take(events, min(37, total + 1 - len(found)))
        await speaking
    assert segments(found[1:]) == list(range(total))


async def test_an_id_whose_successors_are_gone_gets_a_reset(
    pages: Pages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bus_module, "MAX_ENTRIES", 10)
    with pages.served() as url:
        say(pages, *range(300))
        for old in (START, "1-1", "99999999999999-0"):
            async with stream(f"{url}/events/calls/1.2", old) as events:
                (message,) = [m async for m in events]
                assert (message.event, message.id) == ("reset", "")
        state = (await get(f"{url}/api/calls/1.2/")).json()
        assert len(state["segments"]) == 300
        async with stream(f"{url}/events/calls/1.2", state["last_event_id"]) as events:
            await asyncio.to_thread(say, pages, 300)
            assert segments(await take(events, 1)) == [300]


async def test_a_restarted_broker_costs_nothing(tmp_path: Path, stopped_valkey: Valkey) -> None:
    stopped_valkey.start()
    pages = Pages(tmp_path, stopped_valkey.url)
    pages.begin_call("1.2")
    with pages.served() as url:
        async with stream(f"{url}/events/calls/1.2", START) as events:
            await asyncio.to_thread(say, pages, 1)
            found = await take(events, 2)
            await asyncio.to_thread(stopped_valkey.kill)
            assert await until_broker_is(events, "away") == []
            assert (await get(f"{url}/ready")).status_code == 503
            async with stream(f"{url}/events/calls/1.2", found[1].id) as late:
                assert await until_broker_is(late, "away") == []
                await asyncio.to_thread(stopped_valkey.start)
                await asyncio.to_thread(say, pages, 2, 3)
                for each in (events, late):
                    finals = await until_broker_is(each, "back")
                    while len(finals) < 2:
                        finals += [m for m in await take(each, 1) if m.event != "broker"]
                    assert segments(finals) == [2, 3]
    pages.close()


async def until_broker_is(source: AsyncIterator[Message], state: str) -> list[Message]:
    """Read up to what tells of that state; return the other messages before it."""
    others = []
    while True:
        (message,) = await take(source, 1)
        if message.event != "broker":
            others.append(message)
        elif message.data["state"] == state:
            assert message.id is None
            return others


async def test_a_broker_that_lost_its_data_resets_the_pages(
    tmp_path: Path, stopped_valkey: Valkey
) -> None:
    stopped_valkey.start()
    pages = Pages(tmp_path, stopped_valkey.url)
    pages.begin_call("1.2")
    with pages.served() as url:
        async with stream(f"{url}/events/calls/1.2", START) as events:
            await take(events, 1)
            await asyncio.to_thread(stopped_valkey.kill)
            (path,) = stopped_valkey.folder.glob("appendonlydir/*.incr.aof")
            await asyncio.to_thread(path.write_bytes, b"garbage\r\n" * 10)
            await asyncio.to_thread(stopped_valkey.start)
            rest = [m async for m in events]
        assert {m.event for m in rest[:-1]} == {"broker"}
        assert rest[-1].event == "reset"
    pages.close()


async def test_a_silent_stream_says_that_it_is_there(pages: Pages) -> None:
    with pages.served(heartbeat_s=0.05) as url:
        async with (
            httpx.AsyncClient(timeout=30) as client,
            client.stream("GET", f"{url}/events/calls/1.2") as answer,
        ):
            lines = answer.aiter_lines()
            async with asyncio.timeout(30):
                found = [await anext(lines) for _ in range(6)]
    assert "retry: 1000" in found
    assert ": still here" in found


async def test_head_of_a_stream_ends(pages: Pages) -> None:
    with pages.served() as url:
        async with httpx.AsyncClient() as client:
            answer = await client.head(f"{url}/events/calls/1.2")
    assert answer.status_code == 200


async def test_one_pump_serves_all_pages_of_a_room_and_leaves_with_the_last(
    pages: Pages, valkey: Valkey
) -> None:
    reader = RoomReader(valkey.url)
    rooms = Rooms(reader)
    first = rooms.follow(room("1.2"), START)._chunks
    second = rooms.follow(room("1.2"), START)._chunks
    other = rooms.follow(LOBBY, START)._chunks
    async with asyncio.timeout(30):
        for each in (first, second, other):
            assert b"retry" in await anext(each)
            assert b"call.started" in await anext(each)
    assert (rooms.num_pumps, rooms.num_listeners) == (2, 3)
    await first.aclose()
    assert (rooms.num_pumps, rooms.num_listeners) == (2, 2)
    await second.aclose()
    assert (rooms.num_pumps, rooms.num_listeners) == (1, 1)
    rooms.close()
    async with asyncio.timeout(30):
        assert [chunk async for chunk in other] == []
    assert (rooms.num_pumps, rooms.num_listeners) == (0, 0)
    await reader.close()


async def test_a_page_that_does_not_read_is_cut_off_and_the_others_go_on(
    pages: Pages, valkey: Valkey
) -> None:
    reader = RoomReader(valkey.url)
    rooms = Rooms(reader, max_waiting=10)
    stuck, blocked = asyncio.Event(), asyncio.Event()

    async def send(message: dict[str, Any]) -> None:
        if b"transcript.final" in message.get("body", b""):
            stuck.set()
            await blocked.wait()

    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    slow = rooms.follow(room("1.2"), START)
    serving = asyncio.create_task(slow({"type": "http", "method": "GET"}, receive, send))  # type: ignore[arg-type]
    healthy = rooms.follow(room("1.2"), START)._chunks
    async with asyncio.timeout(30):
        assert b"retry" in await anext(healthy)
        assert b"call.started" in await anext(healthy)
        for number in range(30):
            await asyncio.to_thread(say, pages, number)
            assert f'"segment": {number},'.encode() in await anext(healthy)
        await serving
    assert stuck.is_set()
    assert rooms.num_listeners == 1
    await healthy.aclose()
    await reader.close()


async def test_sigterm_ends_the_streams_and_the_process(pages: Pages) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    environ = {**os.environ, **pages.environ, "CALLCORE_WEB_BIND": f"127.0.0.1:{port}"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "web", env=environ, cwd=ROOT
    )
    try:
        url = f"http://127.0.0.1:{port}"
        async with asyncio.timeout(60):
            while True:
                with contextlib.suppress(httpx.TransportError):
                    await get(f"{url}/live")
                    break
                await asyncio.sleep(0.05)
        async with stream(f"{url}/events/calls/1.2", START) as events:
            await take(events, 1)
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(30):
                assert [m async for m in events] == []
        async with asyncio.timeout(30):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def test_a_taken_address_and_a_wrong_setting_are_said(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        bind = f"127.0.0.1:{taken.getsockname()[1]}"
        for value, status, said in (
            (bind, 1, "CALLCORE_WEB_BIND"),
            ("0.0.0.0:1", 2, "CALLCORE_TOKEN is not set"),
        ):
            environ = {
                **os.environ,
                "CALLCORE_STATE_DIR": str(tmp_path),
                "CALLCORE_WEB_BIND": value,
            }
            run = subprocess.run(
                [sys.executable, "-m", "web"],
                env=environ,
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert run.returncode == status, run.stderr
            assert said in run.stderr


def test_the_heartbeat_of_the_pump_is_shorter_than_its_time_out() -> None:
    assert sse.BLOCK_MS / 1000 < 20
