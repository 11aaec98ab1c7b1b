"""What a worker process does beside its messages: the sweep, and an orderly end."""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterable
from typing import Any

import dramatiq
from dramatiq.middleware import Middleware

from callcore.chain import Chain
from callcore.log import frames
from workers.engines import WorkerEngines

logger = logging.getLogger(__name__)

#: Seconds between two sweeps.
SWEEP_S = 1.0
#: Seconds that running steps get at the end; then they are given back to the ledger.
DRAIN_S = 5.0


class Housekeeping(Middleware):
    """Sweeps each second; at the end lets short steps finish and gives long ones back.

    Args:
        chain: Whose steps the process runs.
        engines: Closed when the time to drain is over.
        closing: Called once the worker has stopped.
    """

    def __init__(
        self, chain: Chain, engines: WorkerEngines, closing: Iterable[Callable[[], None]]
    ) -> None:
        self._chain = chain
        self._engines = engines
        self._closing = tuple(closing)
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []

    def after_worker_boot(self, broker: dramatiq.Broker, worker: Any) -> None:
        """Start the sweep."""
        self._spawn("sweep", self._sweep)

    def before_worker_shutdown(self, broker: dramatiq.Broker, worker: Any) -> None:
        """Stop sweeping, and see to it that no step holds up the end."""
        self._chain.stop()
        self._over.set()
        timer = threading.Timer(DRAIN_S, self._engines.close)
        timer.daemon = True
        timer.start()

    def after_worker_shutdown(self, broker: dramatiq.Broker, worker: Any) -> None:
        """Close everything."""
        for thread in self._threads:
            thread.join(timeout=SWEEP_S)
        for close in self._closing:
            close()

    def _spawn(self, name: str, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _sweep(self) -> None:
        parent = os.getppid()
        while not self._over.wait(SWEEP_S):
            if os.getppid() != parent:
                # Dramatiq's main process was killed: nobody would ever stop this one.
                os.kill(os.getpid(), signal.SIGTERM)
                return
            try:
                self._chain.sweep()
            except Exception as error:
                # The database may be away for a while; the next sweep finds what this one missed.
                logger.error("the sweep failed", extra={"error": frames(error)})
