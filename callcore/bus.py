"""The way of live events from the daemon and the workers to the pages: one stream per call.

``room:<call_id>`` carries every event of a call, ``lobby`` those of ``events.LOBBY_TYPES`` of all
calls. A stream entry has one field, ``event``: the event as JSON. The entry's id is the ``id:`` of
server-sent events, so that a page resumes where it stopped. Streams are bounded and expire: the
database stays the record, and a reader who is too late is told to load from there.
"""

import json
import logging
import threading
import time
import uuid
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.retry import Retry

from callcore.events import LOBBY_TYPES, Event

logger = logging.getLogger(__name__)

#: The stream of all calls.
LOBBY = "lobby"
#: Entries that a stream keeps, about: an hour of a call with two partials a second and leg.
MAX_ENTRIES = 10_000
#: Seconds that a stream lives after its last event.
EXPIRE_S = 24 * 3600
#: The id before the first entry of any stream.
START = "0-0"

_PARTIAL = "transcript.partial"
_ENDED = "call.ended"
#: Entries of the lobby that are read at once to find those of one call.
_PAGE = 1000


def room(call_id: str) -> str:
    """Return the name of the stream of one call."""
    return f"room:{call_id}"


def streams_of(event: Event) -> tuple[str, ...]:
    """Return the streams that carry the event."""
    own = room(event.call_id)
    return (own, LOBBY) if event.type in LOBBY_TYPES else (own,)


class EventBus(Protocol):
    """Where events are published."""

    def publish(self, events: Sequence[Event]) -> None:
        """Publish the events in their order, or raise and publish none of them."""


class Rooms(EventBus, Protocol):
    """Where events are published until they are forgotten."""

    def forget(self, call_ids: Sequence[str]) -> None:
        """Delete what was published about a call.

        Args:
            call_ids: Every id by which it is or was known.
        """


class MemoryBus:
    """Keeps the events in a list: for tests, and for commands without pages."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        """Everything published, in order."""
        self._lock = threading.Lock()

    def publish(self, events: Sequence[Event]) -> None:
        """Append the events."""
        with self._lock:
            self.events.extend(events)

    def forget(self, call_ids: Sequence[str]) -> None:
        """Drop the events of a call, but not that it ended."""
        with self._lock:
            kept = (e for e in self.events if e.call_id not in call_ids or e.type == _ENDED)
            self.events[:] = kept


class RedisBus:
    """Publishes into Redis streams, a batch of events in one transaction.

    A connection that breaks while a batch is under way leaves open whether it arrived. Each batch
    therefore sets a key of its own within its transaction: publishing *the same sequence object*
    again looks for that key first, so that a retry never shows an event twice.

    Args:
        url: ``unix://``, ``redis://`` or ``rediss://``.
        timeout_s: How long one round trip may take before it counts as failed.
    """

    def __init__(self, url: str, timeout_s: float = 5.0) -> None:
        # A broken connection is reported at once: retrying inside the client would hide from us
        # that a batch is in doubt. Whoever must not lose events uses a Publisher.
        self._client = redis.Redis.from_url(
            url,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
        )
        self._doubtful: tuple[Sequence[Event], str] | None = None
        self._lock = threading.Lock()

    def publish(self, events: Sequence[Event]) -> None:
        """Append the events to their streams.

        Raises:
            redis.RedisError: If the broker is away or refuses writes.
        """
        if not events:
            return
        with self._lock:
            token = self._token_of(events)
            if token and self._client.exists(token):
                self._doubtful = None
                return
            token = token or f"published:{uuid.uuid4()}"
            self._doubtful = (events, token)
            self._transaction(events, token)
            self._doubtful = None

    def forget(self, call_ids: Sequence[str]) -> None:
        """Empty the call's room and take it out of the lobby, but for that it ended.

        Of a page that reads on in the lobby nothing else takes the call away.

        An emptied stream goes on counting its ids, so that whoever follows it misses nothing that
        comes after.

        Raises:
            redis.RedisError: If the broker is away or refuses writes.
        """
        with self._lock:
            for call_id in call_ids:
                self._client.xtrim(room(call_id), maxlen=0, approximate=False)
            first = "-"
            entries: Any = self._client.xrange(LOBBY, first, count=_PAGE)
            while entries:
                gone = [key for key, entry in entries if _is_of(call_ids, entry)]
                if gone:
                    self._client.xdel(LOBBY, *gone)
                first = f"({entries[-1][0].decode()}"
                entries = self._client.xrange(LOBBY, first, count=_PAGE)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _token_of(self, events: Sequence[Event]) -> str | None:
        if self._doubtful and self._doubtful[0] is events:
            return self._doubtful[1]
        return None

    def _transaction(self, events: Sequence[Event], token: str) -> None:
        touched: set[str] = set()
        with self._client.pipeline(transaction=True) as pipe:
            for event in events:
                entry: dict[Any, Any] = {"event": json.dumps(event.as_json())}
                for stream in streams_of(event):
                    pipe.xadd(stream, entry, maxlen=MAX_ENTRIES, approximate=True)
                    touched.add(stream)
            for stream in touched:
                pipe.expire(stream, EXPIRE_S)
            pipe.set(token, 1, ex=600)
            pipe.execute()


def _is_of(call_ids: Sequence[str], entry: dict[bytes, bytes]) -> bool:
    event = json.loads(entry[b"event"])
    return event["call_id"] in call_ids and event["type"] != _ENDED


@dataclass(frozen=True, slots=True)
class _Forget:
    """In the place of an event: what was published of this call goes."""

    call_ids: tuple[str, ...]


class Publisher:
    """A thread with a bounded queue in front of a bus.

    ``put`` never waits and never raises, so that a slow or absent broker costs events on pages and
    nothing else. While the broker is away the events wait here; where there is no room left the
    oldest partials go first (a later one replaces them anyway), then the oldest events of all,
    which are counted as losses: what people said is in the database.

    Args:
        bus: Where the events go.
        max_events: How many may wait.
        retry_s: Pause after a failed try.
    """

    _BATCH = 200

    def __init__(self, bus: Rooms, *, max_events: int = 10_000, retry_s: float = 0.2) -> None:
        self._bus = bus
        self._max_events = max_events
        self._retry_s = retry_s
        self._waiting: OrderedDict[int, Event | _Forget] = OrderedDict()
        self._partials: deque[int] = deque()
        self._next = 0
        self._changed = threading.Condition()
        self._closing = False
        self._deadline: float | None = None
        self.dropped_partials = 0
        """Partials that gave way to newer events."""
        self.lost = 0
        """Other events that never reached the bus."""
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)
        self._thread.start()

    def put(self, event: Event) -> None:
        """Queue an event; after ``close`` it is counted as lost."""
        with self._changed:
            if self._closing:
                self.lost += 1
                return
            self._waiting[self._next] = event
            if event.type == _PARTIAL:
                self._partials.append(self._next)
            self._next += 1
            if len(self._waiting) > self._max_events:
                self._drop_one()
            self._changed.notify()

    def forget(self, *call_ids: str) -> None:
        """Have everything deleted that was published of a call, and publish nothing that waits.

        What is put after that is published after that.
        """
        with self._changed:
            for key, event in tuple(self._waiting.items()):
                if isinstance(event, Event) and event.call_id in call_ids:
                    del self._waiting[key]
            self._waiting[self._next] = _Forget(call_ids)
            self._next += 1
            self._changed.notify()

    def close(self, timeout_s: float = 5) -> None:
        """Publish what waits, for at most ``timeout_s``; then count the rest as lost."""
        with self._changed:
            self._closing = True
            self._deadline = time.monotonic() + timeout_s
            self._changed.notify()
        # One try that has begun may outlast the deadline by the bus's own time-out; the thread
        # is a daemon, so it never keeps the process.
        self._thread.join(timeout_s + 1)
        with self._changed:
            if self._waiting:
                self.lost += sum(isinstance(each, Event) for each in self._waiting.values())
                self._waiting.clear()
            if self.lost:
                logger.warning("events lost", extra={"lost": self.lost})

    def _drop_one(self) -> None:
        while self._partials:
            if self._waiting.pop(self._partials.popleft(), None):
                self.dropped_partials += 1
                return
        oldest = next((key for key, each in self._waiting.items() if isinstance(each, Event)), None)
        if oldest is not None:
            del self._waiting[oldest]
            self.lost += 1

    def _run(self) -> None:
        while batch := self._take():
            if not self._publish(batch):
                with self._changed:
                    self.lost += len(batch) if isinstance(batch, list) else 0
                return

    def _take(self) -> list[Event] | _Forget | None:
        """Return the events that go at once, or a call to forget; None at the end."""
        with self._changed:
            while not self._waiting and not self._closing:
                self._changed.wait()
            batch: list[Event] = []
            while self._waiting and len(batch) < self._BATCH:
                key, first = next(iter(self._waiting.items()))
                if isinstance(first, Event):
                    batch.append(first)
                elif batch:
                    break
                del self._waiting[key]
                if isinstance(first, _Forget):
                    return first
            while self._partials and self._partials[0] not in self._waiting:
                self._partials.popleft()
            return batch or None

    def _publish(self, batch: list[Event] | _Forget) -> bool:
        """Return whether the batch arrived, trying until closing gives up."""
        failures = 0
        while True:
            try:
                if isinstance(batch, _Forget):
                    self._bus.forget(batch.call_ids)
                else:
                    self._bus.publish(batch)
            except Exception as error:
                # Whatever the bus has, the daemon goes on: its calls do not depend on pages.
                failures += 1
                if failures == 1:
                    logger.warning(
                        "broker away, events wait", extra={"error": type(error).__name__}
                    )
                if not self._wait_to_retry():
                    return False
            else:
                if failures:
                    logger.info("broker is back", extra={"tries": failures + 1})
                return True

    def _wait_to_retry(self) -> bool:
        until = time.monotonic() + self._retry_s
        with self._changed:
            while True:
                present = time.monotonic()
                if self._deadline is not None and present >= self._deadline:
                    return False
                if present >= until:
                    return True
                end = until if self._deadline is None else min(until, self._deadline)
                self._changed.wait(end - present)


class RoomReader:
    """Reads streams for the pages.

    Every method raises ``redis.RedisError`` while the broker is away.

    Args:
        url: As for ``RedisBus``.
    """

    def __init__(self, url: str) -> None:
        self._client: redis.asyncio.Redis = redis.asyncio.Redis.from_url(
            url,
            retry=None,
            socket_connect_timeout=5,
            socket_timeout=20,  # longer than any ``block_ms``
            decode_responses=True,
        )

    async def ping(self) -> None:
        """Return when the broker has answered."""
        await self._client.ping()

    async def last_id(self, stream: str) -> str | None:
        """Return the id of the newest entry, None where there is no entry."""
        newest = await self._client.xrevrange(stream, count=1)
        return str(newest[0][0]) if newest else None

    async def after(
        self, stream: str, last_id: str, block_ms: int | None = None, count: int = 500
    ) -> list[tuple[str, dict[str, Any]]]:
        """Return entries after ``last_id`` as (id, event), oldest first.

        Args:
            stream: ``room(call_id)`` or ``LOBBY``.
            last_id: The newest id already known; ``START`` for all.
            block_ms: How long to wait for the first one; None does not wait.
            count: The most to return.
        """
        answer: Any = await self._client.xread({stream: last_id}, count=count, block=block_ms)
        if not answer:
            return []
        # RESP2 answers [[name, entries]], RESP3 {name: [entries]}.
        entries = answer[stream][0] if isinstance(answer, dict) else answer[0][1]
        return [(str(entry_id), json.loads(fields["event"])) for entry_id, fields in entries]

    async def recent(self, stream: str, count: int) -> list[dict[str, Any]]:
        """Return the newest events, newest first."""
        entries: Any = await self._client.xrevrange(stream, count=count)
        return [json.loads(fields["event"]) for _, fields in entries]

    async def can_resume(self, stream: str, last_id: str) -> bool:
        """Return whether every entry after ``last_id`` is still there.

        False when the stream was trimmed past the id, has expired, or was lost and began anew.
        """
        try:
            facts = await self._client.xinfo_stream(stream)
        except redis.ResponseError:  # no such key
            return last_id == START
        if last_id == START:
            return bool(facts["entries-added"] == facts["length"])
        first = facts["first-entry"]
        newest = position(facts["last-generated-id"])
        return bool(first) and position(first[0]) <= position(last_id) <= newest

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()


def is_id(text: str) -> bool:
    """Return whether the text has the form of an entry's id: ``<ms>-<n>``."""
    ms, dash, number = text.partition("-")
    return (
        bool(dash and text.isascii() and ms.isdigit() and number.isdigit() and len(text) <= 41)
        and max(position(text)) < 2**64
    )


def position(entry_id: str) -> tuple[int, int]:
    """Return what orders the ids of a stream, which as text would not: ``2-0`` < ``10-0``."""
    ms, _, number = entry_id.partition("-")
    return int(ms), int(number)
