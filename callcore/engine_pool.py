"""The engines of the steps, each in a child process of its own that starts at its first use.

A step that is never reached costs nothing, a crash takes one engine with it, and a model that is
missing fails the step that needs it, not the others.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from callcore.errors import EngineError
from callcore.inference import EngineSpec, InferenceProcess

#: Calls in progress come first: what is computed for recordings may wait for them.
NICENESS = 10


class EnginePool:
    """Inference processes that nobody pays for until they are used.

    Args:
        specs: By engine name, what returns its spec; asked once, at the first use.
        nice: Added to the niceness of the children.
    """

    def __init__(
        self, specs: Mapping[str, Callable[[], EngineSpec]], *, nice: int = NICENESS
    ) -> None:
        self._specs = specs
        self._nice = nice
        self._processes: dict[str, InferenceProcess] = {}
        self._closed = False
        self._lock = threading.Lock()

    def call(self, engine: str, method: str, *args: Any) -> Any:
        """Return what the engine's method returns.

        Raises:
            EngineError: If the engine fails, its process dies, or the pool is closed.
            ModelError: If its model is missing.
        """
        return self._started(engine).call(engine, method, *args).result()

    def stream(self, engine: str, method: str, *args: Any) -> Iterator[Any]:
        """Yield what the engine's generator yields.

        Raises:
            EngineError, ModelError: As ``call``.
        """
        yield from self._started(engine).stream(engine, method, *args)

    def attributes(self, engine: str, *names: str) -> dict[str, Any]:
        """Return attributes of the engine.

        Raises:
            EngineError, ModelError: As ``call``.
        """
        return self._started(engine).attributes(engine, *names)

    def close(self) -> None:
        """End the children; steps that use them fail with EngineError."""
        with self._lock:
            self._closed = True
            processes, self._processes = list(self._processes.values()), {}
        for process in processes:
            process.close()

    def _started(self, engine: str) -> InferenceProcess:
        with self._lock:
            if self._closed:
                raise EngineError(engine, "the worker is ending")
            process = self._processes.get(engine)
            if process is None:
                process = InferenceProcess({engine: self._specs[engine]()}, nice=self._nice)
                process.start()
                self._processes[engine] = process
            return process
