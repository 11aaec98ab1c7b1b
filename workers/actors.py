"""The actors, ``settle`` and one a step: a message names a recording, the ledger does the rest."""

from collections.abc import Callable

import dramatiq

from callcore.calls import SETTLE
from callcore.chain import Chain
from callcore.jobs import queue_of


def declare(broker: dramatiq.Broker, chain: Chain) -> None:
    """Declare an actor for each step of ``chain``."""
    _declare(broker, SETTLE, chain.settle)
    for name in chain.steps:
        _declare(broker, name, _runner(chain, name))


def _runner(chain: Chain, name: str) -> Callable[[str], None]:
    def run(audio_id: str) -> None:
        chain.run_step(name, audio_id)

    return run


def _declare(broker: dramatiq.Broker, name: str, work: Callable[[str], None]) -> None:
    # No retries and no time limit here: tries are counted in the ledger, and a step that runs long
    # keeps its lease.
    dramatiq.Actor(
        work, broker=broker, actor_name=name, queue_name=queue_of(name), priority=0, options={}
    )
