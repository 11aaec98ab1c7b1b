"""Server-sent events: one pump a stream and process reads the broker, many pages listen.

A listener joins the pump first, then reads the history after its ``Last-Event-ID``, then takes
what the pump has brought meanwhile, without what the history already held: nothing is missed and
nothing comes twice. An id whose successors are no longer all there gets ``event: reset``: the page
loads the call anew. A page that does not read fast enough is cut off, and resumes by its id.

Beside the events of ``callcore.events`` a stream may carry ``broker`` with
``{"state": "away" | "back"}``, without an id: live text stands still while the broker is away.
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import anyio
import redis
from starlette.types import Receive, Scope, Send

from callcore.bus import START, RoomReader, position

logger = logging.getLogger(__name__)

#: How long browsers wait before they connect again.
RECONNECT_MS = 1000
#: Pause of a pump after the broker did not answer.
RETRY_S = 0.5
#: How long a read waits for the next event; also how soon a silent death of the broker's host is
#: noticed, at most.
BLOCK_MS = 5000

_HEARTBEAT = b": still here\n\n"
# redis-py lets some of the socket's own errors through while a server restarts.
_AWAY = (redis.RedisError, OSError)


@dataclass(frozen=True, slots=True)
class _Entry:
    """An event of the stream, encoded once for all its listeners."""

    position: tuple[int, int]
    chunk: bytes


class _NotThere(Exception):
    """Some events after the id are gone."""


class _Signal(Enum):
    READY = auto()  # the pump reads on from here: history can be read without a gap
    RESET = auto()  # the pump cannot go on without a gap
    CLOSED = auto()  # the process ends


_Item = _Entry | bytes | _Signal


def _chunk(event_type: str, data: dict[str, Any], entry_id: str | None = None) -> bytes:
    lines = [f"event: {event_type}"]
    if entry_id is not None:
        lines.append(f"id: {entry_id}")
    lines.append(f"data: {json.dumps(data)}")
    return ("\n".join(lines) + "\n\n").encode()


def _entry(entry_id: str, event: dict[str, Any]) -> _Entry:
    return _Entry(position(entry_id), _chunk(event["type"], event, entry_id))


def _broker(state: str) -> bytes:
    return _chunk("broker", {"type": "broker", "state": state})


#: The empty id makes a client that only reconnects start from now on instead of asking again for
#: what is gone.
_RESET = _chunk("reset", {"type": "reset"}, "")


class _Listener:
    def __init__(self, max_waiting: int) -> None:
        self.items: asyncio.Queue[_Item] = asyncio.Queue(max_waiting)
        self.overflow = asyncio.Event()

    def put(self, item: _Item) -> None:
        try:
            self.items.put_nowait(item)
        except asyncio.QueueFull:
            self.overflow.set()


class _Pump:
    """Reads one stream for all its listeners."""

    def __init__(self, reader: RoomReader, stream: str) -> None:
        self._reader = reader
        self._stream = stream
        self._listeners: set[_Listener] = set()
        self._cursor: str | None = None
        self._away = False
        self._task = asyncio.create_task(self._run(), name=f"pump of {stream}")

    @property
    def num_listeners(self) -> int:
        return len(self._listeners)

    def join(self, listener: _Listener) -> None:
        self._listeners.add(listener)
        if self._away:
            listener.put(_broker("away"))
        elif self._cursor is not None:
            listener.put(_Signal.READY)

    def leave(self, listener: _Listener) -> None:
        self._listeners.discard(listener)
        if not self._listeners:
            self._task.cancel()

    def tell(self, item: _Item) -> None:
        for listener in self._listeners:
            listener.put(item)

    async def _run(self) -> None:
        while True:
            try:
                await self._begin()
                while True:
                    await self._read()
            except _AWAY as error:
                if not self._away:
                    self._away = True
                    logger.warning("broker away", extra={"error": type(error).__name__})
                    self.tell(_broker("away"))
                await asyncio.sleep(RETRY_S)

    async def _begin(self) -> None:
        newest = await self._reader.last_id(self._stream) or START
        if self._cursor is None:
            self._cursor = newest
        elif not await self._reader.can_resume(self._stream, self._cursor):
            # The broker came back without its data: pages load what they show from the database.
            self._cursor = newest
            self.tell(_Signal.RESET)
        if self._away:
            self._away = False
            self.tell(_broker("back"))
        self.tell(_Signal.READY)

    async def _read(self) -> None:
        assert self._cursor
        entries = await self._reader.after(self._stream, self._cursor, block_ms=BLOCK_MS)
        for entry_id, event in entries:
            self._cursor = entry_id
            self.tell(_entry(entry_id, event))


class Rooms:
    """All streams that this process's pages listen to.

    Args:
        reader: The broker.
        heartbeat_s: Silence after which a comment keeps proxies and browsers from giving up.
        max_waiting: Events that a page may be behind before it is cut off.
    """

    def __init__(
        self, reader: RoomReader, *, heartbeat_s: float = 15.0, max_waiting: int = 2000
    ) -> None:
        self._reader = reader
        self._heartbeat_s = heartbeat_s
        self._max_waiting = max_waiting
        self._pumps: dict[str, _Pump] = {}
        self._closed = False

    @property
    def num_listeners(self) -> int:
        """How many pages are listening."""
        return sum(pump.num_listeners for pump in self._pumps.values())

    @property
    def num_pumps(self) -> int:
        """How many streams are read."""
        return len(self._pumps)

    def close(self) -> None:
        """End every stream; new ones end at once."""
        self._closed = True
        for pump in self._pumps.values():
            pump.tell(_Signal.CLOSED)

    def follow(self, stream: str, last_id: str | None) -> "EventStream":
        """Return the response that carries a stream.

        Args:
            stream: ``bus.room(call_id)`` or ``bus.LOBBY``.
            last_id: The newest id that the page has seen; None: only what comes from now on.
        """
        listener = _Listener(self._max_waiting)
        return EventStream(self._chunks(stream, last_id, listener), listener.overflow)

    async def _chunks(
        self, stream: str, last_id: str | None, listener: _Listener
    ) -> AsyncGenerator[bytes]:
        yield f"retry: {RECONNECT_MS}\n\n".encode()
        if self._closed:
            return
        pump = self._join(stream, listener)
        seen = None if last_id else position(START)
        try:
            while True:
                item = await self._next(listener)
                if item is _Signal.CLOSED:
                    return
                if item is _Signal.RESET:
                    yield _RESET
                    return
                if item is _Signal.READY:
                    if seen is None and last_id:
                        seen = position(last_id)
                        async for past in self._history(stream, last_id):
                            if isinstance(past, _Entry):
                                seen = past.position
                                yield past.chunk
                            else:
                                yield past
                elif isinstance(item, bytes):
                    yield item
                elif seen is not None and item.position > seen:
                    yield item.chunk
        except _NotThere:
            yield _RESET
        finally:
            self._leave(stream, pump, listener)

    async def _next(self, listener: _Listener) -> _Item:
        try:
            async with asyncio.timeout(self._heartbeat_s):
                return await listener.items.get()
        except TimeoutError:
            return _HEARTBEAT

    async def _history(self, stream: str, last_id: str) -> AsyncIterator[_Entry | bytes]:
        """Yield what came after ``last_id`` up to now; what comes meanwhile waits in the queue."""
        is_away = False
        while True:
            try:
                if not await self._reader.can_resume(stream, last_id):
                    raise _NotThere
                entries = await self._reader.after(stream, last_id)
            except _AWAY:
                is_away = True
                yield _broker("away")
                await asyncio.sleep(RETRY_S)
                continue
            if is_away:
                is_away = False
                yield _broker("back")
            if not entries:
                return
            for entry_id, event in entries:
                yield _entry(entry_id, event)
                last_id = entry_id

    def _join(self, stream: str, listener: _Listener) -> _Pump:
        pump = self._pumps.get(stream)
        if pump is None:
            pump = self._pumps[stream] = _Pump(self._reader, stream)
        pump.join(listener)
        return pump

    def _leave(self, stream: str, pump: _Pump, listener: _Listener) -> None:
        pump.leave(listener)
        if not pump.num_listeners and self._pumps.get(stream) is pump:
            del self._pumps[stream]


class EventStream:
    """The response that carries a stream until the page, the process or slowness ends it."""

    def __init__(self, chunks: AsyncGenerator[bytes], overflow: asyncio.Event) -> None:
        self._chunks = chunks
        self._overflow = overflow

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream."""
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"x-accel-buffering", b"no"),  # nginx would collect events otherwise
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if scope["method"] == "HEAD":
            await send({"type": "http.response.body", "body": b""})
            return
        async with anyio.create_task_group() as tasks:

            async def stop_when_gone() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                tasks.cancel_scope.cancel()

            async def stop_when_slow() -> None:
                await self._overflow.wait()
                logger.warning("a page reads too slowly and is cut off")
                tasks.cancel_scope.cancel()

            tasks.start_soon(stop_when_gone)
            tasks.start_soon(stop_when_slow)
            async with contextlib.aclosing(self._chunks) as chunks:
                async for chunk in chunks:
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
            tasks.cancel_scope.cancel()
