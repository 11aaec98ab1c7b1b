"""The engines of one worker process: a child that starts when the first step needs it."""

import threading
from collections.abc import Iterator, Mapping
from typing import Any

from callcore.errors import EngineError
from callcore.inference import EngineSpec, InferenceProcess

#: Calls in progress come first: what is computed for recordings may wait for them.
NICENESS = 10


class WorkerEngines:
    """An inference process that nobody pays for until it is used.

    Args:
        specs: The engines, by name.
    """

    def __init__(self, specs: Mapping[str, EngineSpec]) -> None:
        self._specs = specs
        self._process: InferenceProcess | None = None
        self._closed = False
        self._lock = threading.Lock()

    def stream(self, engine: str, method: str, *args: Any) -> Iterator[Any]:
        """Yield what the engine's generator yields.

        Raises:
            EngineError: If the engine fails, its process dies, or the worker is ending.
        """
        yield from self._started(engine).stream(engine, method, *args)

    def attributes(self, engine: str, *names: str) -> dict[str, Any]:
        """Return attributes of the engine.

        Raises:
            EngineError: As ``stream``.
        """
        return self._started(engine).attributes(engine, *names)

    def close(self) -> None:
        """End the child; steps that use it fail with EngineError."""
        with self._lock:
            self._closed = True
            process, self._process = self._process, None
        if process is not None:
            process.close()

    def _started(self, engine: str) -> InferenceProcess:
        with self._lock:
            if self._closed:
                raise EngineError(engine, "the worker is ending")
            if self._process is None:
                self._process = InferenceProcess(self._specs, nice=NICENESS)
                self._process.start()
            return self._process
