"""The chain without servers: threads of this process run the steps of some recordings.

The ledger is the same as everywhere, so a run that is killed loses nothing that is stored, and
workers of the same database may take part.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from callcore.calls import SETTLE, StepState, StepStatus
from callcore.chain import Chain
from callcore.events import Event
from callcore.log import frames
from callcore.settings import Settings
from callcore.steps import Engines
from callcore.storage import Storage

logger = logging.getLogger(__name__)

#: Recordings that are looked at: a look costs queries for each, and there may be thousands.
_AHEAD = 16
#: Steps that run side by side; most wait for their engine's process.
_THREADS = 4
#: Seconds between two looks at the ledger, unless a step ends before.
_LOOK_S = 0.25
#: Seconds for which nothing may happen before recordings are given up: a full disk, a host away.
_PATIENCE_S = 120.0


class LocalRun:
    """Runs recordings to their end.

    Args:
        storage: The record.
        settings: As for ``Chain``.
        engines: Where the engines of the steps run.
        stop: Called when the run is cut short: ends what the engines are doing.
    """

    def __init__(
        self,
        storage: Storage,
        settings: Settings,
        engines: Engines,
        stop: Callable[[], object] = lambda: None,
    ) -> None:
        self._storage = storage
        self._stop = stop
        self._changed = threading.Event()
        self._chain = Chain(storage, settings, self, engines, self)

    def publish(self, events: Sequence[Event]) -> None:
        """Drop events: nobody listens to a command."""

    def wake(self, step: str, audio_id: str, backfill: bool = False) -> bool:
        """Look at the ledger at once."""
        self._changed.set()
        return True

    def backlog(self) -> Mapping[str, int] | None:
        """Return None: there is no queue."""
        return None

    def run(
        self,
        audio_ids: Iterable[str],
        look: Callable[[Mapping[str, Sequence[StepStatus]]], None],
    ) -> None:
        """Run recordings until all their steps are over, or can only be waited for.

        Args:
            audio_ids: The recordings; those that come first are begun first.
            look: Called again and again with the steps of the first recordings that are not over,
                and once more when they are.
        """
        open_ids = list(dict.fromkeys(audio_ids))
        running: dict[tuple[str, str], Future[None]] = {}
        moved_at = time.monotonic()
        before: Mapping[str, Sequence[StepStatus]] = {}
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="step") as pool:
            try:
                while open_ids:
                    self._changed.clear()
                    steps = {each: self._of_chain(each) for each in open_ids[:_AHEAD]}
                    look(steps)
                    running = {key: each for key, each in running.items() if not each.done()}
                    for audio_id, its in steps.items():
                        self._begin(pool, running, audio_id, its)
                    done = {each for each, its in steps.items() if is_over(its)}
                    if _moves(before, steps):
                        moved_at = time.monotonic()
                    elif time.monotonic() - moved_at > _PATIENCE_S:
                        done, moved_at = set(steps), time.monotonic()
                    open_ids = [each for each in open_ids if each not in done]
                    before = steps
                    self._changed.wait(_LOOK_S)
            except BaseException:
                self._chain.stop()
                for each in running.values():
                    each.cancel()
                self._stop()
                raise

    def _of_chain(self, audio_id: str) -> list[StepStatus]:
        """Return the steps that the settings name: nobody here runs others."""
        known = {SETTLE, *self._chain.steps}
        return [step for step in self._storage.steps(audio_id) if step.name in known]

    def _begin(
        self,
        pool: ThreadPoolExecutor,
        running: dict[tuple[str, str], Future[None]],
        audio_id: str,
        steps: Sequence[StepStatus],
    ) -> None:
        own_id = self._storage.recording(audio_id).audio_id  # it may have become an alias
        states = {step.name: step.status for step in steps}
        for name, state in states.items():
            key = (own_id, name)
            is_free = len(running) < _THREADS and key not in running
            if is_free and not state.is_over and self._is_ready(name, states):
                running[key] = pool.submit(self._do, own_id, name)

    def _is_ready(self, name: str, states: Mapping[str, StepState]) -> bool:
        if name == SETTLE:
            return True
        step = self._chain.steps[name]
        needed = (SETTLE, *step.needs)
        return all(states.get(each) == StepState.DONE for each in needed) and all(
            states[each].is_over for each in step.after if each in states
        )

    def _do(self, audio_id: str, name: str) -> None:
        # The claim tells whether the step can run now, and takes it from a process that died;
        # where it cannot run, that costs one query.
        try:
            if name == SETTLE:
                self._chain.settle(audio_id)
            else:
                self._chain.run_step(name, audio_id)
        except Exception as error:
            # The ledger has the step: it is tried again when its lease ends.
            logger.error("a step came to nothing", extra={"step": name, "error": frames(error)})


def is_over(steps: Sequence[StepStatus]) -> bool:
    """Tell whether all steps of a recording are over."""
    return all(step.status.is_over for step in steps)


def _moves(
    before: Mapping[str, Sequence[StepStatus]], steps: Mapping[str, Sequence[StepStatus]]
) -> bool:
    """Tell whether a step runs or has ended; tries that were put off do not count."""
    return any(
        any(step.status == StepState.RUNNING for step in its)
        or [step.status.is_over for step in before.get(audio_id, ())]
        != [step.status.is_over for step in its]
        for audio_id, its in steps.items()
    )
