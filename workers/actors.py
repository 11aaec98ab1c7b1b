"""The actors, ``settle`` and one a step: a message names a recording, the ledger does the rest."""

import logging
from collections.abc import Callable

import dramatiq

from callcore.calls import SETTLE
from callcore.chain import Chain
from callcore.jobs import queue_of
from callcore.log import frames

logger = logging.getLogger(__name__)


def declare(broker: dramatiq.Broker, chain: Chain) -> None:
    """Declare an actor for each step of ``chain``."""
    _declare(broker, SETTLE, chain.settle)
    for name in chain.steps:
        _declare(broker, name, _runner(chain, name))


def _runner(chain: Chain, name: str) -> Callable[[str], None]:
    def run(audio_id: str) -> None:
        chain.run_step(name, audio_id)

    return run


def _told(work: Callable[[str], None]) -> Callable[[str], None]:
    """Return ``work`` so that dramatiq, which logs whole tracebacks, sees no error of it.

    The ledger has the step; when its lease ends, it is done again.
    """

    def run(audio_id: str) -> None:
        try:
            work(audio_id)
        except Exception as error:
            logger.error(
                "a message came to nothing", extra={"audio_id": audio_id, "error": frames(error)}
            )

    return run


def _declare(broker: dramatiq.Broker, name: str, work: Callable[[str], None]) -> None:
    # No retries and no time limit here: tries are counted in the ledger, and a step that runs long
    # keeps its lease.
    dramatiq.Actor(
        _told(work),
        broker=broker,
        actor_name=name,
        queue_name=queue_of(name),
        priority=0,
        options={},
    )
