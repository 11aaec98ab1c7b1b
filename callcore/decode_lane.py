"""The engines of live recognition: what each has in hand, and whether it answers at all.

An engine that is down as a whole, as a remote one may be, rests. A process that leaves a call
without an answer is replaced, and the successor of one that died is given nothing before it has
loaded its model: no job is at fault for what happens until then.
"""

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

from callcore.decode_load import Load
from callcore.errors import EngineDied, EngineDown, EngineError, EngineNotLoaded
from callcore.inference import EngineSpec
from callcore.inference_wire import ATTRIBUTES
from callcore.recognizer_config import RecognizerConfig

logger = logging.getLogger(__name__)

#: Seconds until an engine that could not be loaded is asked again.
_LOAD_AGAIN_S = 5.0


class Inference(Protocol):
    """The part of ``InferenceProcess`` that recognition uses."""

    @property
    def engines(self) -> Mapping[str, EngineSpec]:
        """Specs by name: ``vad`` and ``live`` or ``live_multilingual`` or both."""
        ...

    @property
    def pid(self) -> int | None:
        """Which process there is, None while there is none."""
        ...

    def call(self, engine: str, method: str, *args: Any) -> "Future[Any]":
        """Return the future result of a method; EngineDied when the process dies."""
        ...

    def kill(self) -> None:
        """End the process that does not answer; the next one follows."""
        ...


class Replaced(EngineDied):
    """The process was ended by us, because one of its calls had no answer."""

    def __init__(self, engine: str, running: "Running") -> None:
        super().__init__(engine, "its process was replaced")
        self.running = running


@dataclass(eq=False, slots=True)
class Running:
    """A call that has no answer yet."""

    since: float
    """Clock time."""
    needed: float
    """Share of it that cannot be shed under load."""
    counts: bool
    """Whether its time is work: while a process loads its model, it is not."""
    replaced: bool = False
    """Whether we end the process that has it."""
    stalled: bool = False
    """Whether that may be its own fault."""


@dataclass(eq=False, slots=True)
class Lane:
    """One engine: what it has in hand."""

    engine: str
    threads: int
    inference: Inference
    clock: Callable[[], float]
    config: RecognizerConfig = field(default_factory=RecognizerConfig)
    load: Load = field(init=False)
    """What is decoded at present beside finals."""
    running: dict["Future[Any]", Running] = field(default_factory=dict)
    """Calls without an answer, oldest first."""
    answers: int = 0
    """Calls that it has answered."""
    busy_s: float = 0.0
    """Seconds that answered calls took, all together."""
    needed_s: float = 0.0
    """The same without what can be shed under load."""
    is_down: bool = False
    """Whether the engine said so last: it has not answered since."""
    rests_until: float = -math.inf
    """Clock time before which an engine that is down is not asked."""
    _died: bool = False
    """Whether its process died and the next one has not answered."""
    _answered_pid: int | None = None
    """The process that answered last."""
    _waits_for: Running | None = None
    """The oldest call at the last look ..."""
    _waits_pid: int | None = None
    """... the process then ..."""
    _waited_s: float = 0.0
    """... for how long both have been the same, ..."""
    _looked: float = 0.0
    """... and when that was."""

    def __post_init__(self) -> None:
        """Begin without load."""
        self.load = Load(self.config, self.clock())

    @property
    def answered(self) -> bool:
        """Whether the present process has answered: before that it may still load its model."""
        return self._answered_pid is not None and self._answered_pid == self.inference.pid

    @property
    def rests(self) -> bool:
        """Whether the engine answers nobody at present: no leg should be opened on it."""
        return self.clock() < self.rests_until

    @property
    def max_batch(self) -> int:
        """Jobs that it is given at once at most; whether it is back, one finds out."""
        if self.is_down:
            return 1
        own = self.inference.engines[self.engine].max_batch
        return self.config.max_batch if own is None else own

    @property
    def has_room(self) -> bool:
        """Whether it may be called now; whether it is back, one call finds out."""
        return self.is_there and len(self.running) < (1 if self.is_down else self.threads)

    @property
    def is_there(self) -> bool:
        """Whether it may answer: it does not rest, and has loaded again if its process died."""
        return not (self.rests or self._died)

    def wake(self, then: Callable[[], None]) -> None:
        """Ask the successor of a process that died whether it is there, if nobody does yet."""
        if not self._died or self.rests or self.running:
            return

        def woken(answer: Any) -> None:
            if isinstance(answer, EngineDown):
                self.rest(answer, self.config.tick_s)
            then()

        self.call(ATTRIBUTES, (), woken)

    def rest(self, down: EngineDown, least_s: float) -> None:
        """Leave the engine alone for as long as it asks for, ``least_s`` at least."""
        self.rests_until = self.clock() + max(down.retry_after_s, least_s)
        if not self.is_down:
            logger.warning("engine is down", extra={"engine": self.engine, "reason": down.message})
        self.is_down = True

    def _is_up(self) -> None:
        if self.is_down:
            logger.info("engine answers again", extra={"engine": self.engine})
        self.is_down = False

    def call(
        self,
        method: str,
        arguments: tuple[Any, ...],
        then: Callable[[Any], None],
        needed: float = 1.0,
    ) -> None:
        """Call the engine; ``then`` takes its answer, or the EngineError, on the event loop.

        Args:
            method: Of the engine.
            arguments: For it.
            then: As above.
            needed: Share of the call, 0 to 1, that cannot be shed under load.
        """
        loop = asyncio.get_running_loop()
        future = self.inference.call(self.engine, method, *arguments)
        self.running[future] = Running(self.clock(), needed, self.answered)

        # The future comes as an argument: held by its own callback it would be a cycle, and keep
        # the legs of its batch with their rings until the collector finds it.
        def on_loop(answered: "Future[Any]", pid: int | None) -> None:
            running = self.running.pop(answered)
            self.busy_s, self.needed_s = self._worked([running], self.clock())
            error = answered.exception()
            if error is not None and not isinstance(error, EngineError):
                error = EngineError(self.engine, type(error).__name__)
            self._died = isinstance(error, EngineDied)
            if isinstance(error, EngineDied):
                if running.replaced:
                    error = Replaced(self.engine, running)
            elif isinstance(error, EngineNotLoaded):
                error = EngineDown(self.engine, error.message, _LOAD_AGAIN_S)
            else:
                # An engine that fails belongs to a process that lives and has loaded.
                self._answered_pid = pid
            if error is None and method != ATTRIBUTES:
                self.answers += 1
                self._is_up()
            then(answered.result() if error is None else error)

        def done(answered: "Future[Any]") -> None:
            pid = self.inference.pid
            # The loop may be closed by now.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(on_loop, answered, pid)

        future.add_done_callback(done)

    def worked(self, now: float) -> tuple[float, float]:
        """Return ``busy_s`` and ``needed_s`` with what running calls have taken so far."""
        return self._worked(self.running.values(), now)

    def _worked(self, calls: Iterable[Running], now: float) -> tuple[float, float]:
        busy_s, needed_s = self.busy_s, self.needed_s
        for each in calls:
            if each.counts:
                busy_s += now - each.since
                needed_s += (now - each.since) * each.needed
        return busy_s, needed_s

    def is_stalled(self, now: float) -> bool:
        """Return whether the process leaves the oldest call without an answer too long.

        To be asked at every tick: between two of them only a few count, since a machine that
        stood still has an answer waiting that nobody has read.
        """
        elapsed_s, self._looked = min(now - self._looked, 4 * self.config.tick_s), now
        oldest = next(iter(self.running.values()), None)
        pid = self.inference.pid
        if oldest is None or oldest is not self._waits_for or pid != self._waits_pid:
            self._waits_for, self._waits_pid, self._waited_s = oldest, pid, 0.0
        elif pid is not None:
            self._waited_s += elapsed_s
        limit_s = self.config.stalled_s if self.answered else self.config.loading_s
        return self._waited_s > limit_s

    def note_replaced(self) -> None:
        """Mark the calls that end with their process, and the one it may be at fault for."""
        for running in self.running.values():
            running.replaced = True
        # What one engine hangs in may stop the others, which then were asked a little later.
        if self._waits_for is not None and self._waited_s > self.config.stalled_s / 2:
            self._waits_for.stalled = True


def replace_if_stalled(lanes: Iterable[Lane], now: float) -> None:
    """Replace the inference process if it leaves a call of one of its engines without an answer.

    The other calls that end with it are not at fault.
    """
    lanes = list(lanes)
    found = [lane for lane in lanes if lane.is_stalled(now)]
    if not found:
        return
    logger.warning("inference process does not answer", extra={"engine": found[0].engine})
    for lane in lanes:
        lane.note_replaced()
    found[0].inference.kill()


def lanes_of(
    inference: Inference, clock: Callable[[], float], config: RecognizerConfig
) -> dict[str, Lane]:
    """Return the lane of each kind of leg; equal specs are one engine, so one lane."""
    engines = inference.engines
    names = [name for name in ("live", "live_multilingual") if name in engines]
    if not names:
        raise ValueError("there is no engine live or live_multilingual")
    lanes: dict[str, Lane] = {}
    for name in names:
        twin = next((n for n in lanes if engines[n] == engines[name]), None)
        if twin:
            lanes[name] = lanes[twin]
        else:
            lanes[name] = Lane(name, engines[name].threads, inference, clock, config)
    return {
        "live": lanes[names[0]],
        "live_multilingual": lanes[names[-1]],
    }
