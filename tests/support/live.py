"""The live path without models and broker: a real database and capture, a scripted recogniser."""

import asyncio
import contextlib
import functools
import socket
import struct
import uuid as uuids
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import uvloop

from callcore.audiosocket import Kind, encode
from callcore.audiosocket_server import AudioSocketServer
from callcore.calls import CallFacts
from callcore.capture import Capture
from callcore.engines import Hypothesis
from callcore.events import Event
from callcore.live_records import Records
from callcore.recognizer import RefusedText
from callcore.ringbuffer import RingBuffer
from callcore.session import LiveCalls
from callcore.settings import Address, Settings, load
from callcore.storage import Storage

#: Bound of every wait; nothing here is expected to take a tenth of it.
PATIENCE_S = 20.0


def on_uvloop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run an async test on the loop that the daemon runs on."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(3 * PATIENCE_S):
                await test(*args, **kwargs)

        uvloop.run(bounded())

    return run


def new_uuid() -> str:
    return str(uuids.uuid4())


def ramp(start: int, end: int) -> bytes:
    """Return samples that tell their own index (modulo 2**15), never 0."""
    return (np.arange(start, end) % 32767 + 1).astype("<i2").tobytes()


def settings_for(folder: Path, **values: str) -> Settings:
    environ = {"CALLCORE_STATE_DIR": str(folder), "CALLCORE_DAEMON_NAME": "daemon-1"}
    return load({**environ, **{f"CALLCORE_{k.upper()}": v for k, v in values.items()}})


class Sink:
    """Takes the place of the publisher."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.forgotten: list[str] = []
        self._changed = asyncio.Event()

    def put(self, event: Event) -> None:
        self.events.append(event)
        self._changed.set()

    def forget(self, *call_ids: str) -> None:
        self.events = [event for event in self.events if event.call_id not in call_ids]
        self.forgotten += call_ids

    def of(self, event_type: str) -> list[dict[str, Any]]:
        return [event.fields for event in self.events if event.type == event_type]

    @property
    def types(self) -> list[str]:
        return [event.type for event in self.events]

    async def until(self, event_type: str, count: int = 1) -> list[dict[str, Any]]:
        """Return the fields of that many events, once they have come."""
        async with asyncio.timeout(PATIENCE_S):
            while len(found := self.of(event_type)) < count:
                self._changed.clear()
                await self._changed.wait()
        return found


@dataclass
class FakeRecognition:
    """A leg's recognition whose words the test says itself."""

    ring: RingBuffer
    listener: Any
    language: str | None
    spill: Any
    call_language: Any = None
    last_words: list[str] = field(default_factory=list)
    """Finals that come when the leg ends."""
    finished: bool = False
    discarded: bool = False
    error: Exception | None = None

    def say(self, utterance: int, text: str, *, revised: bool = False, **more: Any) -> None:
        start, end = 8000 * utterance, 8000 * (utterance + 1)
        hypothesis = Hypothesis(text=text, language="en", **more)
        self.listener.final(utterance, start, end, hypothesis, 0.25, revised)

    async def finish(self) -> None:
        if self.error is not None:
            raise self.error
        for number, text in enumerate(self.last_words):
            self.say(90 + number, text)
        self.finished = True

    def discard(self) -> None:
        self.discarded = True


class FakeRecognizer:
    def __init__(self) -> None:
        self.legs: list[FakeRecognition] = []
        self.error: Exception | None = None
        self.room: int | None = None
        """Legs that are admitted; None: all."""
        self.no_room = RefusedText.BUSY
        """What the others are told."""
        self._opened = asyncio.Event()

    shed = 0

    def load(self) -> float:
        return 0.25

    def behind_s(self) -> float:
        return 0.0

    def open_leg(
        self,
        ring: RingBuffer,
        listener: Any,
        *,
        language: str | None,
        spill: Any,
        call_language: Any = None,
    ) -> FakeRecognition | RefusedText:
        if self.error is not None:
            raise self.error
        if self.room is not None and len(self.legs) >= self.room:
            return self.no_room
        leg = FakeRecognition(ring, listener, language, spill, call_language)
        self.legs.append(leg)
        self._opened.set()
        return leg

    async def leg(self, number: int = 0) -> FakeRecognition:
        async with asyncio.timeout(PATIENCE_S):
            while len(self.legs) <= number:
                self._opened.clear()
                await self._opened.wait()
        return self.legs[number]


class FakeWaker:
    def __init__(self) -> None:
        self.woken: list[tuple[str, str]] = []

    def wake(self, step: str, audio_id: str) -> None:
        self.woken.append((step, audio_id))


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Live:
    """Everything of a daemon but its socket."""

    settings: Settings
    storage: Storage
    sink: Sink
    recognizer: FakeRecognizer
    waker: FakeWaker
    capture: Capture | None
    calls: LiveCalls

    def register(self, call_id: str, leg: str, **facts: Any) -> str:
        """Announce a leg and return its UUID."""
        leg_uuid = new_uuid()
        self.storage.register_leg(leg_uuid, CallFacts(call_id=call_id, leg=leg, **facts), 10.0)
        return leg_uuid


class QuickRecords(Records):
    """Tries again without waiting."""

    retry_s = (0.0, 0.0)


@asynccontextmanager
async def live(
    folder: Path, *, clock: Callable[[], float] | None = None, **values: str
) -> AsyncIterator[Live]:
    settings = settings_for(folder, **values)
    storage = Storage(settings.database_url)
    storage.migrate()
    capture = Capture(settings.audio_dir) if settings.capture != "off" else None
    sink, recognizer, waker = Sink(), FakeRecognizer(), FakeWaker()
    records = QuickRecords(storage, settings, waker)
    extra = {"clock": clock} if clock is not None else {}
    fake: Any = recognizer if settings.live == "on" else None
    calls = LiveCalls(settings, records, sink, capture, fake, **extra)
    try:
        yield Live(settings, storage, sink, recognizer, waker, capture, calls)
    finally:
        await calls.close(PATIENCE_S)
        if capture is not None:
            capture.close()
        records.close()
        storage.close()


@asynccontextmanager
async def daemon(folder: Path, **values: str) -> AsyncIterator[tuple[Live, AudioSocketServer]]:
    """Run a server on a free port; its address is ``server.address``."""
    async with live(folder, **values) as parts:
        server = AudioSocketServer(parts.settings, parts.calls)
        await server.start(Address("127.0.0.1", 0))
        try:
            yield parts, server
        finally:
            for wire in Wire.opened:
                wire.close()
            await server.close()
            for wire in Wire.opened:
                with contextlib.suppress(ConnectionError):
                    await wire.writer.wait_closed()
            Wire.opened.clear()


class Wire:
    """The peer's end of a connection; ``daemon`` closes what the test leaves open."""

    opened: ClassVar[list["Wire"]] = []

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.opened.append(self)

    @classmethod
    async def connect(cls, address: Address) -> "Wire":
        return cls(*await asyncio.open_connection(address.host, address.port))

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def greet(self, leg_uuid: str) -> None:
        self.send(encode(Kind.UUID, uuids.UUID(leg_uuid).bytes))

    def speak(self, samples: bytes) -> None:
        for at in range(0, len(samples), 320):
            self.send(encode(Kind.SLIN, samples[at : at + 320]))

    async def frame(self) -> bytes:
        """Return the next message from the daemon."""
        async with asyncio.timeout(PATIENCE_S):
            head = await self.reader.readexactly(3)
            return head + await self.reader.readexactly(int.from_bytes(head[1:], "big"))

    async def closed(self) -> None:
        """Return once the daemon has closed its half; what it still sent is dropped."""
        async with asyncio.timeout(PATIENCE_S):
            while await self.reader.read(65536):
                pass

    def reset(self) -> None:
        own = self.writer.get_extra_info("socket")
        own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    def close(self) -> None:
        self.writer.close()
