"""Answers FastAGI requests: one connection is one request, one route is one coroutine.

Asterisk's dialplan stands still until a route returns, and in a hangup handler the other party's
line stays up as long; it knows no time-out of its own. So every wait here has an end. A connection
that is refused or cut off fails ``AGI()`` with AGISTATUS=FAILURE, and the dialplan goes on.
"""

import asyncio
import contextlib
import ipaddress
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from urllib.parse import parse_qsl, unquote

from callcore.agi.protocol import (
    NEED_DATA,
    Closed,
    Connection,
    Environment,
    Hangup,
    Reply,
)
from callcore.errors import CallcoreError, RemoteProtocolError
from callcore.log import frames
from callcore.settings import Address, Network, Settings

logger = logging.getLogger(__name__)

#: Requests at once: each holds one file and lives for milliseconds, or a second where the database
#: is away. Beyond that many the PBX is better off without us.
MAX_CONNECTIONS = 512
#: The same from one address.
MAX_CONNECTIONS_PER_PEER = 256
#: Seconds from the connect to the end of the environment, which Asterisk sends at once.
ENVIRONMENT_S = 2.0
#: Seconds that a route may take in all.
ROUTE_S = 5.0
#: Seconds that routes get to end when the server is told to.
DRAIN_S = 3.0
_READ_BYTES = 16384
#: Parameters of a request: more than any route knows.
_MAX_PARAMETERS = 64


class PeerGone(CallcoreError):
    """Asterisk has closed the connection in the middle of a request."""


class Request:
    """One request, as its route sees it.

    Args:
        environment: What Asterisk told of the call.
        connection: The protocol's state.
        reader: Bytes from Asterisk.
        writer: Bytes to it.
    """

    def __init__(
        self,
        environment: Environment,
        connection: Connection,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.environment = environment
        self._connection = connection
        self._reader = reader
        self._writer = writer
        self.has_hung_up = False
        """Whether the caller of a live channel went meanwhile."""
        script = environment.variables.get("network_script", "")
        path, _, query = script.partition("?")
        self.route = unquote(path).strip("/")
        """Name of the route: the path of the address in the dialplan."""
        self.parameters = parameters_of(query)
        """What the query of the address says."""

    async def command(self, *words: str) -> Reply:
        """Send a command and return its reply.

        Raises:
            LocalProtocolError: If it is none, or too long.
            RemoteProtocolError: If Asterisk broke the protocol.
            PeerGone: If it closed the connection.
        """
        try:
            self._writer.write(self._connection.send(*words))
            await self._writer.drain()
            while True:
                event = await _next_event(self._connection, self._reader)
                if isinstance(event, Reply):
                    return event
                if isinstance(event, Closed):
                    raise PeerGone("the connection was closed before the reply")
                self.has_hung_up = self.has_hung_up or isinstance(event, Hangup)
        except OSError as error:
            raise PeerGone("the connection was lost before the reply") from error


Route = Callable[[Request], Awaitable[None]]


class AgiServer:
    """Accepts requests, within limits, and runs their routes.

    Args:
        settings: ``agi_peers``: who may ask.
        routes: Coroutines by the path of the address in the dialplan.
    """

    def __init__(self, settings: Settings, routes: Mapping[str, Route]) -> None:
        self._peers = settings.agi_peers
        self._routes = routes
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._hosts: Counter[str] = Counter()
        self._closing = False
        self.address = settings.agi_bind
        """Where it listens; the port is the real one after ``start``."""
        self.counts: Counter[str] = Counter()
        """Requests by what became of them: ``answered``, or the reason why not."""

    async def start(self, address: Address) -> Address:
        """Listen, and return the address with the real port.

        Raises:
            OSError: If the address is in use or not ours.
        """
        self._server = await asyncio.start_server(
            self._accept, address.host, address.port, limit=_READ_BYTES, backlog=1024
        )
        host, port = self._server.sockets[0].getsockname()[:2]
        self.address = Address(host, port)
        logger.info("listening", extra={"address": str(self.address)})
        return self.address

    async def close(self, drain_s: float = DRAIN_S) -> None:
        """Stop accepting, let routes end for ``drain_s``, cancel the rest. Again does the same."""
        self._closing = True
        if self._server is not None:
            self._server.close()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=drain_s)
        late = set(self._tasks)
        for task in late:
            task.cancel()
        if late:
            logger.warning("requests were cut off", extra={"num_requests": len(late)})
            await asyncio.wait(late)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        peer = writer.get_extra_info("peername") or ("unknown",)
        host = str(peer[0])
        self._hosts[host] += 1
        outcome = "lost"
        try:
            outcome = self._refusal(host) or await self._serve(reader, writer)
            if outcome not in _QUIET:
                logger.warning("request failed", extra={"peer": host, "reason": outcome})
        except asyncio.CancelledError:
            outcome = "daemon stopped"
        finally:
            self.counts[outcome] += 1
            self._hosts[host] -= 1
            if not self._hosts[host]:
                del self._hosts[host]
            self._tasks.discard(task)
            writer.close()

    def _refusal(self, host: str) -> str | None:
        """Return why a request from this address is not taken, None if it is."""
        if self._closing:
            return "daemon stopped"
        if not _is_within(host, self._peers):
            return "not one of CALLCORE_AGI_PEERS"
        if self._hosts.total() > MAX_CONNECTIONS:
            return "too many requests"
        if self._hosts[host] > MAX_CONNECTIONS_PER_PEER:
            return "too many requests from this address"
        return None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
        """Run the request's route; return what became of it."""
        connection = Connection()
        try:
            async with asyncio.timeout(ENVIRONMENT_S):
                environment = await _next_event(connection, reader)
            if not isinstance(environment, Environment):
                return "closed without a word"
            request = Request(environment, connection, reader, writer)
            route = self._routes.get(request.route)
            if route is None:
                return "no such route"
            async with asyncio.timeout(ROUTE_S):
                await route(request)
        except TimeoutError:
            return "too slow"
        except RemoteProtocolError as error:
            return f"protocol error: {error}"
        except (PeerGone, OSError):
            return "closed too early"
        except Exception as error:
            # One request; the next one may be about a call that this fault does not concern. Its
            # message may hold what the dialplan passed: numbers and names.
            logger.error("a route failed", extra={"error": frames(error)})
            return "error"
        return "answered"


#: Outcomes that are no fault of anybody's.
_QUIET = frozenset({"answered", "closed without a word", "daemon stopped"})


async def _next_event(
    connection: Connection, reader: asyncio.StreamReader
) -> Environment | Reply | Hangup | Closed:
    while (event := connection.next_event()) is NEED_DATA:
        data = await reader.read(_READ_BYTES)
        if data:
            connection.receive_data(data)
        else:
            connection.receive_eof()
    return event


def parameters_of(query: str) -> tuple[tuple[str, str], ...]:
    """Return the keys and values of a query; none of one that has more than any route knows."""
    with contextlib.suppress(ValueError):  # too many
        return tuple(parse_qsl(query, errors="replace", max_num_fields=_MAX_PARAMETERS))
    return ()


def _is_within(host: str, networks: tuple[Network, ...]) -> bool:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    # A socket of both families shows IPv4 peers so.
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return any((mapped or address) in network for network in networks)
