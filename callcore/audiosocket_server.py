"""``callcore audiosocket``: receives calls from Asterisk, answers nothing but silence.

The server feeds bytes to ``audiosocket.Connection`` and what comes out to the leg's session. It
never stops reading a socket: a short write on Asterisk's side ends the caller's leg
(res_audiosocket.c). What Asterisk expects, all seen on Asterisk 22:

* AudioSocket() hangs the call up when for 2 s no frame went either way, and some versions read
  before they write: so one frame of silence right after the UUID, and one a second;
* one frame is one ``write``: a payload that is not there 5 ms after its header ends the call;
* a closed or half-closed connection lets the dialplan go on; a reset ends the call. So a stream
  that is not wanted is half-closed and drained, never reset while it sends;
* connections without a UUID: a channel that was not answered connects and closes.
"""

import asyncio
import contextlib
import gc
import logging
import resource
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, cast

from callcore import model_store
from callcore.audiosocket import (
    NEED_DATA,
    Audio,
    Connection,
    Dtmf,
    Event,
    Hangup,
    Kind,
    PeerError,
    UuidReceived,
    silence_frame,
)
from callcore.bus import Publisher, RedisBus
from callcore.capture import Capture
from callcore.errors import Refused, RemoteProtocolError
from callcore.inference import EngineSpec, InferenceProcess
from callcore.jobs import Waker
from callcore.recognizer import Recognizer
from callcore.session import LegSession, LiveCalls, Records
from callcore.settings import Address, Settings, broker_url
from callcore.storage import Storage

logger = logging.getLogger(__name__)

#: Seconds between two looks at the clock: silence, keep-alive and time-outs of all connections.
TICK_S = 0.1
#: A tick that is later than this comes after a stall: the audio of that time is still unread in
#: the sockets, and must not be taken for silence.
_STALL_S = 0.2
#: Seconds from the connect to the whole UUID message.
UUID_TIMEOUT_S = 2.0
#: Seconds between frames of silence to the peer; Asterisk waits 2.
KEEPALIVE_S = 1.0
#: Seconds in which a peer may close after we have closed our half.
FAREWELL_S = 2.0
#: Seconds that legs get for their last words once they are ended.
SEAL_S = 15.0
#: Seconds between looks for calls that nobody else ends.
_SWEEP_S = 5.0
#: Bytes that may wait for a peer that does not read: it gets no more silence then.
_MAX_UNREAD = 65536

_SILENCE = {kind: silence_frame(kind) for kind in Kind if Kind.SLIN <= kind <= Kind.SLIN192}


class AudioSocketServer:
    """Accepts streams, within limits, and keeps their time.

    Args:
        settings: Limits and time-outs.
        calls: Where the legs go.
        clock: Seconds that only go forward.
    """

    def __init__(
        self, settings: Settings, calls: LiveCalls, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.settings = settings
        self.calls = calls
        self.clock = clock
        self.counts: Counter[str] = Counter()
        """Connections by what became of them: ``accepted``, or the reason of their end."""
        self.address = settings.audiosocket_bind
        """Where it listens; the port is the real one after ``start``."""
        self.peers: set[Peer] = set()
        self.hosts: Counter[str] = Counter()
        """Streams of each address."""
        self._server: asyncio.Server | None = None
        self._ticking: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._closing: asyncio.Task[None] | None = None
        self._hurried = False

    async def start(self, address: Address) -> Address:
        """Listen, and return the address with the real port.

        Raises:
            OSError: If the address is in use or not ours.
        """
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Peer(self), address.host, address.port, backlog=4096
        )
        self._ticking = loop.create_task(self._tick_always())
        host, port = self._server.sockets[0].getsockname()[:2]
        self.address = Address(host, port)
        logger.info("listening", extra={"address": str(self.address)})
        return self.address

    async def close(self, drain_s: float = 0.0) -> None:
        """Stop accepting, let legs go on until they hang up or ``drain_s`` is over, seal them.

        Again waits for the same end, sooner if ``drain_s`` is 0.
        """
        if not drain_s:
            self.hurry()
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(drain_s))
        await asyncio.shield(self._closing)

    def hurry(self) -> None:
        """Drain no longer."""
        self._hurried = True
        self._changed.set()

    async def _close(self, drain_s: float) -> None:
        if self._server is not None:
            self._server.close()
        streams_end = self._until(lambda: self._hurried or not any(p.is_stream for p in self.peers))
        await _at_most(drain_s, streams_end)
        for peer in tuple(self.peers):
            peer.dismiss("daemon_stopped")
        await self.calls.close(SEAL_S)
        # Half-closed peers get their moment: closing with unread audio resets, and a reset ends
        # the caller's call.
        await _at_most(FAREWELL_S, self._until(lambda: not self.peers))
        for peer in tuple(self.peers):
            peer.abort()
        if self._ticking is not None:
            self._ticking.cancel()
            await asyncio.wait([self._ticking])

    def tick(self, at: float, late_s: float = 0.0) -> None:
        """Do what is due at ``at``; ``late_s`` after it should have been done."""
        for peer in tuple(self.peers):
            peer.tick(at)
        if late_s <= _STALL_S:
            self.calls.tick(at)

    def refusal(self, host: str) -> str | None:
        """Return why one more stream from this address is too much, None if it is not."""
        if self._closing is not None:
            return "draining"
        if self.hosts.total() >= self.settings.max_calls:
            return "too many calls"
        if self.hosts[host] >= self.settings.max_calls_per_peer:
            return "too many calls from this address"
        return None

    def changed(self) -> None:
        """Note that a peer's state has changed."""
        self._changed.set()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    async def _tick_always(self) -> None:
        last = self.clock()
        while True:
            await asyncio.sleep(TICK_S)
            at = self.clock()
            try:
                self.tick(at, at - last - TICK_S)
            except Exception:
                # Without ticks no call would be kept alive: whatever failed, go on.
                logger.exception("a tick failed")
            last = at


async def _at_most(seconds: float, work: Awaitable[None]) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(work, seconds)


class Peer(asyncio.Protocol):
    """One connection."""

    def __init__(self, server: AudioSocketServer) -> None:
        self._server = server
        self._connection = Connection()
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self._host = ""
        self._leg: LegSession | None = None
        self._kind = Kind.SLIN
        self._counted = False
        self._complained = False
        self._end: str | None = None  # why the stream ended, once it has
        self._heard_at = self._due_at = server.clock()

    @property
    def is_stream(self) -> bool:
        """Whether it is a stream that goes on, or may become one."""
        return self._end is None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Count it in, if there is room."""
        self._transport = cast(asyncio.Transport, transport)
        self._host = transport.get_extra_info("peername", ("unknown",))[0]
        self._server.peers.add(self)
        reason = self._server.refusal(self._host)
        if reason is not None:
            logger.warning("connection refused", extra={"peer": self._host, "reason": reason})
            self.dismiss(reason)
            return
        self._counted = True
        self._server.hosts[self._host] += 1
        self._due_at = self._server.clock() + UUID_TIMEOUT_S

    def data_received(self, data: bytes) -> None:
        """Parse, and hand the audio of this moment to the leg in one piece."""
        if self._end is not None:
            return
        at = self._heard_at = self._server.clock()
        connection = self._connection
        connection.receive_data(data)
        batch: list[Audio] = []
        others: list[Event] = []
        fault = None
        try:
            while (event := connection.next_batch()) is not NEED_DATA:
                if type(event) is Audio:
                    batch.append(event)
                elif type(event) is UuidReceived:
                    self._open(event.uuid, at)
                else:
                    others.append(event)
        except RemoteProtocolError as error:
            fault = error
        if batch and self._leg is not None:
            self._kind = Kind(batch[-1].kind)
            self._leg.feed(batch, at)
        for event in others:
            self._take(event)
        if fault is not None:
            logger.warning(
                "protocol error", extra={**self._ids(), "peer": self._host, "error": str(fault)}
            )
            self.dismiss("protocol error")

    def eof_received(self) -> None:
        """End the leg: this is how Asterisk hangs up. The transport closes by itself."""
        self._ended("hangup")

    def connection_lost(self, exc: Exception | None) -> None:
        """Count it out; a reset is a hangup like any other."""
        self._ended("hangup")
        self._server.peers.discard(self)
        self._server.changed()

    def tick(self, at: float) -> None:
        """Keep the peer alive, or end it because of the time."""
        if self._end is not None:
            if at >= self._due_at:
                self.abort()
        elif self._leg is None:
            if at >= self._due_at:
                logger.info("no UUID came in time", extra={"peer": self._host})
                self.dismiss("no UUID")
        elif at - self._heard_at >= self._server.settings.idle_timeout_s:
            logger.warning("stream was idle too long", extra=self._ids())
            self.dismiss("idle")
        elif at >= self._due_at:
            self._send_silence(at)

    def dismiss(self, reason: str) -> None:
        """End the leg and close our half; what still comes is dropped. Again does nothing."""
        if not self._ended(reason):
            return
        self._due_at = self._server.clock() + FAREWELL_S
        if self._transport.is_closing():
            return
        try:
            self._transport.write_eof()
        except (OSError, RuntimeError):  # the peer was faster
            self._transport.abort()

    def abort(self) -> None:
        """Drop the connection."""
        self._transport.abort()

    def _open(self, leg_uuid: str, at: float) -> None:
        try:
            self._leg = self._server.calls.open_leg(leg_uuid, at, self.dismiss)
        except Refused as error:
            logger.warning("stream refused", extra={"leg_uuid": leg_uuid, "code": error.code})
            self.dismiss(error.code)
            return
        self._server.counts["accepted"] += 1
        # Before audio comes: some versions of Asterisk send nothing until they have read.
        self._send_silence(at)

    def _send_silence(self, at: float) -> None:
        self._due_at = at + KEEPALIVE_S
        if self._transport.get_write_buffer_size() < _MAX_UNREAD:
            self._transport.write(_SILENCE[self._kind])

    def _take(self, event: Event) -> None:
        if isinstance(event, Dtmf):
            if self._leg is not None:
                self._leg.dtmf(event.digit)
        elif isinstance(event, Hangup):
            self.dismiss("hangup")
        elif isinstance(event, PeerError):
            if not self._complained:  # once: a peer shall not fill our log
                logger.warning("peer reports an error", extra={**self._ids(), "code": event.code})
            self._complained = True
        else:
            logger.debug("message skipped", extra={**self._ids(), "message_": repr(event)})

    def _ended(self, reason: str) -> bool:
        """End the stream once; return whether it was this time."""
        if self._end is not None:
            return False
        self._end = reason
        if self._leg is not None:
            self._leg.end(reason)
        elif reason == "hangup":  # Asterisk does so where the channel is not answered
            reason = "closed without UUID"
        self._server.counts[reason] += 1
        if self._counted:
            self._counted = False
            self._server.hosts[self._host] -= 1
        self._server.changed()
        return True

    def _ids(self) -> dict[str, Any]:
        return {"leg_uuid": self._leg.uuid if self._leg is not None else None}


async def serve(settings: Settings) -> None:
    """Receive calls until SIGTERM or SIGINT; a second signal ends the draining.

    Raises:
        CallcoreError: If the database is not migrated, or a model is missing.
        OSError: If the address is in use.
    """
    raise_file_limit()
    parts = _build(settings)
    calls = LiveCalls(settings, parts.records, parts.publisher, parts.capture, parts.recognizer)
    server = AudioSocketServer(settings, calls)
    try:
        if parts.inference is not None and parts.recognizer is not None:
            parts.inference.start()
            await parts.recognizer.start()
        await server.start(settings.audiosocket_bind)
        calls.spawn(_keep_house(calls))
        await _run_until_signal(server, settings.drain_s)
    finally:
        await server.close()
        await _close(parts)
        logger.info("stopped", extra={"connections": dict(server.counts)})


async def _run_until_signal(server: AudioSocketServer, drain_s: float) -> None:
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()

    def on_signal() -> None:
        if stopping.is_set():
            server.hurry()
        stopping.set()

    signals = (signal.SIGTERM, signal.SIGINT)
    for signum in signals:
        loop.add_signal_handler(signum, on_signal)
    try:
        # What is made from here on is short-lived: the collector need not look at modules again.
        gc.collect()
        gc.freeze()
        await stopping.wait()
        logger.info("draining", extra={"drain_s": drain_s})
        await server.close(drain_s)
    finally:
        for signum in signals:
            loop.remove_signal_handler(signum)


async def _keep_house(calls: LiveCalls) -> None:
    """End what earlier daemons left behind, now and from time to time."""
    try:
        # The address is ours by now, so no other daemon of our name is alive.
        await calls.recover()
    except Exception:
        # What is left waits for the next start; new calls do not depend on it.
        logger.exception("earlier calls could not be ended")
    while not calls.closing.is_set():
        try:
            await calls.sweep()
        except Exception:
            # Another round may work; without rounds calls would stay live for ever.
            logger.exception("a sweep failed")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SWEEP_S):
                await calls.closing.wait()


def raise_file_limit() -> None:
    """Allow as many open files as the system lets us: one a leg and one a capture."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def live_engines(settings: Settings) -> dict[str, EngineSpec]:
    """Return the engines that live recognition needs, by their names in the inference process.

    Raises:
        ModelError: If a model is not there.
    """

    def folder(model: str) -> str:
        return str(model_store.find(settings.models_dir, model))

    def transcriber(model: str) -> EngineSpec:
        threads = settings.live_threads
        options = {"model": folder(model), "threads": threads}
        return EngineSpec(settings.live_transcriber, options, threads)

    return {
        "vad": EngineSpec(settings.speech_detector, {"model": folder(model_store.SPEECH_MODEL)}),
        "live": transcriber(settings.live_model),
        "live_multilingual": transcriber(settings.live_model_multilingual),
    }


@dataclass(slots=True)
class _Parts:
    """What the daemon is made of, in the order in which it is closed."""

    recognizer: Recognizer | None
    inference: InferenceProcess | None
    capture: Capture | None
    publisher: Publisher
    bus: RedisBus
    records: Records
    storage: Storage
    waker: Waker


def _build(settings: Settings) -> _Parts:
    storage = Storage(settings.database_url)
    storage.check_migrated()
    inference = InferenceProcess(live_engines(settings)) if settings.live == "on" else None
    bus = RedisBus(broker_url(settings))
    waker = Waker(settings)
    return _Parts(
        recognizer=Recognizer(inference) if inference is not None else None,
        inference=inference,
        capture=Capture(settings.audio_dir) if settings.capture != "off" else None,
        publisher=Publisher(bus),
        bus=bus,
        records=Records(storage, settings, waker),
        storage=storage,
        waker=waker,
    )


async def _close(parts: _Parts) -> None:
    if parts.recognizer is not None:
        await parts.recognizer.close()
    if parts.inference is not None:
        await asyncio.to_thread(parts.inference.close)
    if parts.capture is not None:
        await asyncio.to_thread(parts.capture.close)
    await asyncio.to_thread(parts.publisher.close)
    parts.bus.close()
    parts.records.close()
    parts.storage.close()
    await asyncio.to_thread(parts.waker.close)
