"""The broker: how workers are told that a step waits.

A message names a step and a recording, nothing else: what people said never lies in a queue, and a
message that is lost or doubled costs nothing, because the ledger decides.
"""

import logging
from typing import Any

import dramatiq
import redis
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import Middleware
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff
from redis.retry import Retry

from callcore.calls import SETTLE
from callcore.settings import Settings, broker_url

logger = logging.getLogger(__name__)

#: Steps that wait for files and the network; the others compute.
_IO_STEPS = frozenset({SETTLE})
#: All steps of backfilled recordings have a queue of their own, so that nobody waits behind them.
BACKFILL = "backfill"
QUEUES = ("io", "cpu", BACKFILL)

#: Milliseconds after which the messages of a silent worker process go to another one.
_HEARTBEAT_MS = 30_000
#: Dramatiq looks after dead workers in one of a thousand commands, which takes an idle site a
#: quarter of an hour; so it looks in each (in millionths).
_MAINTENANCE_CHANCE = 1_000_000
#: A worker rides out ten minutes without broker. With redis-py's ten tries dramatiq loses jobs
#: (its issue #527).
_PATIENT = Retry(ExponentialWithJitterBackoff(cap=1, base=0.05), 600)
#: Seconds that a waker waits for the broker: the sweep tells the workers anyway.
_WAKE_TIMEOUT_S = 1.0


def queue_of(step: str, backfill: bool = False) -> str:
    """Return the queue of a step: by the resource that it needs."""
    if backfill:
        return BACKFILL
    return "io" if step in _IO_STEPS else "cpu"


def make_broker(
    settings: Settings, middleware: list[Middleware] | None = None, *, patient: bool = True
) -> RedisBroker:
    """Return a dramatiq broker; nothing is connected yet.

    Args:
        settings: Where the broker is.
        middleware: What runs around messages; none by default. Retries and time limits of
            dramatiq stay out: both live in the ledger.
        patient: Whether to wait for an absent broker, as workers do, or to fail at once.
    """
    retry = _PATIENT if patient else Retry(NoBackoff(), 0)
    times = {} if patient else {"socket_timeout": _WAKE_TIMEOUT_S}
    client: Any = redis.Redis.from_url(
        broker_url(settings), retry=retry, socket_connect_timeout=_WAKE_TIMEOUT_S, **times
    )
    make: Any = RedisBroker  # dramatiq types it in part
    broker: RedisBroker = make(
        client=client,
        middleware=middleware or [],
        heartbeat_timeout=_HEARTBEAT_MS,
        maintenance_chance=_MAINTENANCE_CHANCE,
    )
    for queue in QUEUES:
        broker.declare_queue(queue)
    return broker


class Waker:
    """Tells the workers that a step waits; an absent broker is no error.

    Args:
        settings: Where the broker is.
    """

    def __init__(self, settings: Settings) -> None:
        self._broker = make_broker(settings, patient=False)

    def wake(self, step: str, audio_id: str, backfill: bool = False) -> bool:
        """Send a message; False if the broker is away, and the sweep will do it later."""
        queue = queue_of(step, backfill)
        message: dramatiq.Message[Any] = dramatiq.Message(
            queue_name=queue, actor_name=step, args=(audio_id,), kwargs={}, options={}
        )
        try:
            self._broker.enqueue(message)
        except redis.RedisError as error:
            logger.info("the broker is away", extra={"step": step, "reason": str(error)})
            return False
        return True

    def backlog(self) -> dict[str, int] | None:
        """Return how many messages wait for a worker, by queue; None if the broker is away."""
        client: Any = self._broker.client
        try:
            return {each: int(client.llen(f"{self._broker.namespace}:{each}")) for each in QUEUES}
        except redis.RedisError:
            return None

    def close(self) -> None:
        """Close the connections."""
        self._broker.close()
        self._broker.client.close()
