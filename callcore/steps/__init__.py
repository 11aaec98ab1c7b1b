"""The steps of an analysis: one module each, named like the step, with a ``STEP``.

A step reads its inputs from a ``StepContext`` and returns the document to be stored. It knows no
database, no queue and no web.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from callcore.calls import Call, Correction, Recording
from callcore.errors import ConfigError
from callcore.results import Segment
from callcore.settings import Settings


class Engines(Protocol):
    """Where the engines of a step run: ``engine_pool.EnginePool``."""

    def call(self, engine: str, method: str, *args: Any) -> Any:
        """Return what the engine's method returns."""
        ...

    def stream(self, engine: str, method: str, *args: Any) -> Iterator[Any]:
        """Yield what the engine's generator yields."""
        ...

    def attributes(self, engine: str, *names: str) -> dict[str, Any]:
        """Return attributes of the engine."""
        ...


@dataclass(frozen=True, slots=True)
class StepContext:
    """What a step gets."""

    recording: Recording
    """Stored: its media are checked files on this machine."""
    call: Call
    """What is known of its call."""
    language: str | None
    """Language code; None: find out."""
    settings: Settings
    results: Mapping[str, dict[str, Any]]
    """The documents of the steps that this one needs, and of those before it that succeeded."""
    engines: Engines
    take_segment_block: Callable[[], int]
    """Returns the first of 100,000 segment numbers that are unique in the call."""
    live_segments: Callable[[], Sequence[Segment]]
    """Returns the live transcript of the call, empty where there is none."""
    corrections: Callable[[], Sequence[Correction]]
    """Returns what people said about the categories of calls."""
    progress: Callable[[float], None]
    """Takes the share that is done, 0 to 1; may be called as often as one likes."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step of an analysis."""

    name: str
    needs: tuple[str, ...]
    """Steps whose results it reads."""
    result: str
    """Key of its result in the document of the call."""
    run: Callable[[StepContext], dict[str, Any]]
    """Returns JSON.

    ``InvalidRecording`` fails the step for good, any other error lets it be tried again.
    """
    after: tuple[str, ...] = ()
    """Steps that must be over before it runs: it reads their results where they succeeded."""


def table(names: Sequence[str]) -> dict[str, Step]:
    """Return the steps of these names, in their order.

    Raises:
        ConfigError: If there is no such step, or one needs a step that is not among them.
    """
    steps = {name: _load(name) for name in names}
    for step in steps.values():
        for need in step.needs:
            if need not in steps:
                expected = f"{need} too, because {step.name} needs it"
                raise ConfigError("CALLCORE_STEPS", ",".join(names), expected)
    return steps


def _load(name: str) -> Step:
    module = f"{__name__}.{name}"
    try:
        step: Step = importlib.import_module(module).STEP
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise ConfigError("CALLCORE_STEPS", name, "names of modules in callcore/steps") from None
    return step
