"""Receives calls from Asterisk, answers nothing but silence.

The server feeds bytes to ``audiosocket.Connection`` and what comes out to the leg's session. It
never stops reading a socket: a short write on Asterisk's side ends the caller's leg
(res_audiosocket.c). What Asterisk expects, all seen on Asterisk 22:

* AudioSocket() hangs the call up when for 2 s no frame went either way, and some versions read
  before they write: so one frame of silence right after the UUID, and one a second;
* one frame is one ``write``: a payload that is not there 5 ms after its header ends the call;
* a closed or half-closed connection lets the dialplan go on; a reset ends the call. So a stream
  that is not wanted is half-closed and drained, never reset while it sends;
* connections without a UUID: a channel that was not answered connects and closes.

A stream whose UUID is all zeros is a probe (``callcore doctor``): it is answered, is no leg, and is
ended after ``PROBE_S``: neither a proxy without a daemon behind it nor one that hangs does that.
"""

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, cast

from callcore.audiosocket import (
    NEED_DATA,
    PROBE_UUID,
    Audio,
    Connection,
    Dtmf,
    Event,
    Hangup,
    Kind,
    PeerError,
    Unknown,
    UuidReceived,
    silence_frame,
)
from callcore.errors import Refused, RemoteProtocolError
from callcore.leg_session import LegSession
from callcore.session import LiveCalls
from callcore.settings import Address, Settings

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
#: Seconds after which a probe is ended: whoever does not know AudioSocket closes at once or not at
#: all (``doctor.reach``).
PROBE_S = 2.0
#: Seconds that legs get for their last words once they are ended. With the drain, the farewell and
#: the publisher's last events that must stay under the 30 s of ``supervisor.STOP_TIMEOUT_S``.
SEAL_S = 10.0
#: Connections from which on the loop sleeps between its passes. Alone on a core it is quicker than
#: they are: it would wake up for each frame, which costs more than the frame does. Fewer are no
#: trouble, and what else waits for the loop (an answer of the decoder) is then not held up.
MANY = 300
#: Seconds from one of those passes to the next: frames that wait so long are taken together.
GATHER_S = 0.004
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
        self._gathers = False
        self._next_pass = 0.0

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
        is_stall = late_s > _STALL_S
        for peer in tuple(self.peers):
            peer.tick(at, is_stall=is_stall)
        if not is_stall:
            self.calls.tick(at)
        if not self._gathers and len(self.peers) >= MANY and self._closing is None:
            self._gathers = True
            self._gather()

    def _gather(self) -> None:
        """Hold the loop up until its next pass is due, again and again while there are many.

        A pass that took longer than ``GATHER_S`` is followed by the next one at once.
        """
        if len(self.peers) < MANY or self._closing is not None:
            self._gathers = False
            return
        wait_s = self._next_pass - time.monotonic()
        if wait_s > 0:
            time.sleep(wait_s)  # threads that wait for the interpreter's lock have it meanwhile
        self._next_pass = time.monotonic() + GATHER_S
        asyncio.get_running_loop().call_soon(self._gather)

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
        self._clock = server.clock
        self._connection = Connection()
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self._host = ""
        self._leg: LegSession | None = None
        self._kind = Kind.SLIN
        self._counted = False
        self._is_probe = False
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
        at = self._heard_at = self._clock()
        samples = self._connection.take_frame(data)
        if samples is None:
            self._parse(data, at)
        elif self._leg is not None:
            self._leg.feed_frame(samples, at)

    def _parse(self, data: bytes, at: float) -> None:
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
        self._leg = None  # which knows us: its memory must not wait for a collector
        self._server.peers.discard(self)
        # Not before: what is half-closed still holds a descriptor.
        if self._counted:
            self._counted = False
            self._server.hosts[self._host] -= 1
        self._server.changed()

    def tick(self, at: float, *, is_stall: bool = False) -> None:
        """Keep the peer alive, or end it because of the time.

        Args:
            at: ``clock()`` of the moment.
            is_stall: Nothing was read for a while: what came meanwhile may be what is missed.
        """
        if is_stall:
            if self._end is None and self._leg is not None and at >= self._due_at:
                self._send_silence(at)
        elif self._end is not None:
            if at >= self._due_at:
                self.abort()
        elif self._is_probe:
            if at >= self._due_at:
                self.dismiss("probe")
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
        if leg_uuid == PROBE_UUID:
            self._is_probe = True
            self._send_silence(at)
            self._due_at = at + PROBE_S
            return
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
        elif isinstance(event, Unknown):
            logger.debug("message skipped", extra={**self._ids(), "kind": event.kind})

    def _ended(self, reason: str) -> bool:
        """End the stream once; return whether it was this time."""
        if self._end is not None:
            return False
        self._end = reason
        if self._leg is not None:
            self._leg.end(reason)
        elif self._is_probe:
            reason = "probe"
        elif reason == "hangup":  # Asterisk does so where the channel is not answered
            reason = "closed without UUID"
        self._server.counts[reason] += 1
        self._server.changed()
        return True

    def _ids(self) -> dict[str, Any]:
        return {"leg_uuid": self._leg.uuid if self._leg is not None else None}
