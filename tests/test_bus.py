import asyncio
import threading
from collections.abc import AsyncIterator, Sequence

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from callcore import bus as bus_module
from callcore.bus import (
    LOBBY,
    START,
    MemoryBus,
    Publisher,
    RedisBus,
    RoomReader,
    is_id,
    room,
    streams_of,
)
from callcore.events import Event, make
from tests.support.valkey import Valkey, stopped_valkey, valkey

__all__ = ["stopped_valkey", "valkey"]


def final(number: int) -> Event:
    return make("transcript.final", "c1", segment=number)


def partial(number: int) -> Event:
    return make("transcript.partial", "c1", segment=number)


class GatedBus:
    """Holds a batch until the test lets it go; may be away."""

    def __init__(self) -> None:
        self.away = False
        self.tries = threading.Semaphore(0)
        self.gate = threading.Event()
        self.published = MemoryBus()

    def publish(self, events: Sequence[Event]) -> None:
        self.tries.release()
        self.gate.wait(10)
        if self.away:
            raise redis.ConnectionError("away")
        self.published.publish(events)


@pytest.fixture
async def reader(valkey: Valkey) -> AsyncIterator[RoomReader]:
    reader = RoomReader(valkey.url)
    yield reader
    await reader.close()


def test_the_lobby_carries_what_it_needs_and_no_words() -> None:
    assert streams_of(make("call.started", "c1")) == ("room:c1", "lobby")
    assert streams_of(final(1)) == ("room:c1",)
    assert streams_of(partial(1)) == ("room:c1",)


@given(st.text())
def test_an_id_from_a_stranger_is_checked_before_the_broker_sees_it(text: str) -> None:
    assert is_id(text) in {True, False}


def test_ids_have_two_numbers_of_64_bits() -> None:
    assert is_id("1795370971280-1")
    assert is_id(START)
    for wrong in ("", "-", "1", "1-", "-1", "$", "1-1-1", "1-x", "²-1", f"{2**64}-0", "9" * 50):
        assert not is_id(wrong), wrong


def test_a_publisher_keeps_the_order() -> None:
    memory = MemoryBus()
    publisher = Publisher(memory)
    events = [final(n) for n in range(1000)]
    for event in events:
        publisher.put(event)
    publisher.close()
    assert memory.events == events
    assert publisher.lost == 0


def test_a_publisher_tries_again_until_the_broker_is_back() -> None:
    gated = GatedBus()
    gated.away = True
    gated.gate.set()
    publisher = Publisher(gated, retry_s=0)
    publisher.put(final(1))
    for _ in range(3):
        assert gated.tries.acquire(timeout=10)
    gated.away = False
    publisher.close()
    assert [e.fields["segment"] for e in gated.published.events] == [1]


def test_a_full_publisher_drops_old_partials_first_and_counts_what_else_it_loses() -> None:
    gated = GatedBus()
    publisher = Publisher(gated, max_events=4)
    publisher.put(final(0))
    assert gated.tries.acquire(timeout=10)  # the thread holds event 0 and waits at the gate
    for event in (final(1), partial(2), final(3), partial(4)):
        publisher.put(event)
    publisher.put(final(5))
    assert (publisher.dropped_partials, publisher.lost) == (1, 0)
    publisher.put(final(6))
    assert (publisher.dropped_partials, publisher.lost) == (2, 0)
    publisher.put(final(7))
    assert (publisher.dropped_partials, publisher.lost) == (2, 1)
    gated.gate.set()
    publisher.close()
    assert [e.fields["segment"] for e in gated.published.events] == [0, 3, 5, 6, 7]


def test_closing_without_a_broker_ends_in_time_and_counts_the_loss() -> None:
    gated = GatedBus()
    gated.away = True
    gated.gate.set()
    publisher = Publisher(gated, retry_s=60)
    publisher.put(final(1))
    assert gated.tries.acquire(timeout=10)
    publisher.put(final(2))
    publisher.close(timeout_s=0.05)
    assert publisher.lost == 2
    publisher.put(final(3))
    assert publisher.lost == 3


@pytest.mark.redis
async def test_a_room_is_read_from_any_id(valkey: Valkey, reader: RoomReader) -> None:
    bus = RedisBus(valkey.url)
    bus.publish([make("call.started", "c1", caller="100"), final(1), final(2)])
    bus.publish([])
    bus.close()
    entries = await reader.after(room("c1"), START)
    assert [event["type"] for _, event in entries] == [
        "call.started",
        "transcript.final",
        "transcript.final",
    ]
    assert entries[0][1]["caller"] == "100"
    assert await reader.after(room("c1"), entries[1][0]) == entries[2:]
    assert await reader.last_id(room("c1")) == entries[2][0]
    assert [e["type"] for _, e in await reader.after(LOBBY, START)] == ["call.started"]
    assert await reader.last_id(room("other")) is None
    assert await reader.after(room("other"), START, block_ms=1) == []
    with redis.Redis.from_url(valkey.url) as client:
        assert 0 < int(str(client.ttl(room("c1")))) <= bus_module.EXPIRE_S


@pytest.mark.redis
async def test_a_waiting_reader_gets_what_comes(valkey: Valkey, reader: RoomReader) -> None:
    waiting = asyncio.create_task(reader.after(room("c1"), START, block_ms=10_000))
    bus = RedisBus(valkey.url)
    await asyncio.to_thread(bus.publish, [final(1)])
    bus.close()
    assert [event["segment"] for _, event in await waiting] == [1]


@pytest.mark.redis
async def test_only_an_id_with_all_its_successors_can_be_resumed(
    valkey: Valkey, reader: RoomReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await reader.can_resume(room("c1"), START)
    assert not await reader.can_resume(room("c1"), "1-1")
    bus = RedisBus(valkey.url)
    bus.publish([final(0)])
    (first,) = await reader.after(room("c1"), START)
    assert await reader.can_resume(room("c1"), START)
    assert await reader.can_resume(room("c1"), first[0])
    assert not await reader.can_resume(room("c1"), "1-1")
    assert not await reader.can_resume(room("c1"), "99999999999999-0")

    monkeypatch.setattr(bus_module, "MAX_ENTRIES", 10)
    bus.publish([final(n) for n in range(1, 1000)])
    bus.close()
    assert not await reader.can_resume(room("c1"), first[0])
    assert not await reader.can_resume(room("c1"), START)
    newest = await reader.last_id(room("c1"))
    assert newest
    assert await reader.can_resume(room("c1"), newest)


class BreaksAfterSending:
    """Loses the connection after a transaction has been carried out, once."""

    def __init__(self, bus: RedisBus) -> None:
        self.bus = bus
        self.broken = False
        self._transaction = bus._transaction

    def __call__(self, events: Sequence[Event], token: str) -> None:
        self._transaction(events, token)
        if not self.broken:
            self.broken = True
            raise redis.ConnectionError("lost on the way back")


@pytest.mark.redis
async def test_a_batch_whose_answer_was_lost_is_not_published_twice(
    valkey: Valkey, reader: RoomReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus = RedisBus(valkey.url)
    monkeypatch.setattr(bus, "_transaction", BreaksAfterSending(bus))
    publisher = Publisher(bus, retry_s=0)
    publisher.put(final(1))
    publisher.put(final(2))
    await asyncio.to_thread(publisher.close)
    bus.close()
    entries = await reader.after(room("c1"), START)
    assert [event["segment"] for _, event in entries] == [1, 2]


@pytest.mark.redis
async def test_a_killed_broker_costs_no_event_and_doubles_none(stopped_valkey: Valkey) -> None:
    stopped_valkey.start()
    bus = RedisBus(stopped_valkey.url)
    publisher = Publisher(bus, retry_s=0.01)
    reader = RoomReader(stopped_valkey.url)
    for number in range(300):
        publisher.put(final(number))
        if number in {100, 200}:
            await asyncio.to_thread(stopped_valkey.kill)
            await asyncio.to_thread(stopped_valkey.start)
    await asyncio.to_thread(publisher.close)
    bus.close()
    entries = await reader.after(room("c1"), START)
    await reader.close()
    assert [event["segment"] for _, event in entries] == list(range(300))
