"""What a worker process does beside its messages: chores, and an orderly end."""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import dramatiq
from dramatiq.middleware import Middleware

from callcore.chain import Chain
from callcore.engine_pool import EnginePool
from callcore.log import frames

logger = logging.getLogger(__name__)

#: Seconds that a chore under way may hold up the end.
_JOIN_S = 1.0
#: Seconds that running steps get at the end; then they are given back to the ledger.
DRAIN_S = 5.0


@dataclass(frozen=True, slots=True)
class Chore:
    """Something to be done again and again."""

    name: str
    every_s: float
    """Seconds between the end of one time and the next."""
    work: Callable[[], object]


class Housekeeping(Middleware):
    """Does the chores, each in its own thread; at the end gives long steps back.

    Args:
        chain: Whose steps the process runs.
        engines: Closed when the time to drain is over.
        chores: What is done beside the messages.
        closing: Called once the worker has stopped.
    """

    def __init__(
        self,
        chain: Chain,
        engines: EnginePool,
        chores: Iterable[Chore],
        closing: Iterable[Callable[[], None]],
    ) -> None:
        self._chain = chain
        self._engines = engines
        self._chores = tuple(chores)
        self._closing = tuple(closing)
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []

    def after_worker_boot(self, broker: dramatiq.Broker, worker: Any) -> None:
        """Start the chores."""
        parent = os.getppid()
        for chore in self._chores:
            thread = threading.Thread(
                target=self._do, args=(chore, parent), name=chore.name, daemon=True
            )
            self._threads.append(thread)
            thread.start()

    def before_worker_shutdown(self, broker: dramatiq.Broker, worker: Any) -> None:
        """Stop the chores, and see to it that no step holds up the end."""
        self._chain.stop()
        self._over.set()
        timer = threading.Timer(DRAIN_S, self._engines.close)
        timer.daemon = True
        timer.start()

    def after_worker_shutdown(self, broker: dramatiq.Broker, worker: Any) -> None:
        """Close everything."""
        for thread in self._threads:
            thread.join(timeout=_JOIN_S)
        for close in self._closing:
            close()

    def _do(self, chore: Chore, parent: int) -> None:
        while not self._over.wait(chore.every_s):
            if os.getppid() != parent:
                # Dramatiq's main process was killed: nobody would ever stop this one.
                os.kill(os.getpid(), signal.SIGTERM)
                return
            try:
                chore.work()
            except Exception as error:
                # The database may be away for a while; the next time finds what this one missed.
                logger.error("a chore failed", extra={"chore": chore.name, "error": frames(error)})
