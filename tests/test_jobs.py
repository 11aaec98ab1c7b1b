"""Waking workers through the real broker, and doing without it."""

import time
from collections.abc import Iterator

import pytest
import redis

from callcore.jobs import QUEUES, Waker, make_broker, queue_of
from tests.support.valkey import Valkey, stopped_valkey, valkey

__all__ = ["stopped_valkey", "valkey"]

pytestmark = pytest.mark.redis


@pytest.fixture
def waker(stopped_valkey: Valkey) -> Iterator[Waker]:
    made = Waker(stopped_valkey.settings)
    yield made
    made.close()


def test_a_message_names_a_step_and_a_recording_and_nothing_else(
    valkey: Valkey, waker: Waker
) -> None:
    assert waker.backlog() == {"io": 0, "cpu": 0, "backfill": 0}
    assert waker.wake("settle", "recording-1")
    assert waker.wake("transcribe", "recording-1")
    assert waker.backlog() == {"io": 1, "cpu": 1, "backfill": 0}
    broker = make_broker(valkey.settings)
    for step in ("settle", "transcribe"):
        message = next(broker.consume(queue_of(step), timeout=1000))
        assert (message.actor_name, message.args, message.kwargs) == (step, ("recording-1",), {})
        assert set(message.options) == {"redis_message_id"}
    broker.close()
    broker.client.close()


def test_an_absent_broker_is_told_at_once_and_is_no_error(
    stopped_valkey: Valkey, waker: Waker
) -> None:
    before = time.monotonic()
    assert not waker.wake("settle", "recording-1")
    assert waker.backlog() is None
    assert time.monotonic() - before < 10
    stopped_valkey.start()
    assert waker.wake("settle", "recording-1")
    stopped_valkey.kill()
    assert not waker.wake("settle", "recording-1")


def test_settling_and_computing_have_queues_of_their_own() -> None:
    assert [queue_of(step) for step in ("settle", "transcribe")] == ["io", "cpu"]


def test_nobody_waits_behind_backfilled_recordings(valkey: Valkey, waker: Waker) -> None:
    assert {queue_of(step, backfill=True) for step in ("settle", "transcribe")} == {"backfill"}
    assert {"io", "cpu", "backfill"} == set(QUEUES)
    assert waker.wake("transcribe", "recording-1", backfill=True)
    assert waker.backlog() == {"io": 0, "cpu": 0, "backfill": 1}


def test_workers_wait_long_for_a_broker_and_wakers_do_not(stopped_valkey: Valkey) -> None:
    for patient in (True, False):
        broker = make_broker(stopped_valkey.settings, patient=patient)
        retry = broker.client.get_connection_kwargs()["retry"]
        assert isinstance(broker.client, redis.Redis)
        assert (retry.get_retries() > 500) == patient
        broker.client.close()
