"""The child of ``InferenceProcess``: it loads the engines and answers calls.

Run as ``python -m callcore.inference_child FD``; it ends when the other end of the socket closes.
"""

import logging
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from callcore import heap, log
from callcore.engines import load
from callcore.errors import CallcoreError, EngineDown, EngineError, EngineNotLoaded
from callcore.inference_wire import ATTRIBUTES, EngineSpec, Wire

# Not __name__: that is ``__main__`` here.
logger = logging.getLogger("callcore.inference_child")


#: Takes what an engine raised, and as which error the caller gets it.
_Failed = Callable[[Exception, type[EngineError]], None]


class _Host:
    """One engine with its threads."""

    def __init__(self, spec: EngineSpec) -> None:
        self._spec = spec
        self._pool = ThreadPoolExecutor(spec.threads, thread_name_prefix=spec.path)
        self._engine: Any = None
        self._loading = threading.Lock()
        self.submit(lambda engine: None, lambda error, kind: None)

    def _loaded(self) -> Any:
        """Return the engine; what kept it from being loaded before may have passed."""
        with self._loading:
            if self._engine is None:
                started = time.monotonic()
                self._engine = load(self._spec.path)(**self._spec.options)
                took_ms = round((time.monotonic() - started) * 1000)
                logger.info("engine loaded", extra={"engine": self._spec.path, "ms": took_ms})
            return self._engine

    def submit(self, serve: Callable[[Any], None], failed: _Failed) -> None:
        """Run ``serve(engine)`` on one of the threads, or ``failed`` with why it cannot."""

        def run() -> None:
            kind: type[EngineError] = EngineNotLoaded
            try:
                engine = self._loaded()
                kind = EngineError
                serve(engine)
            except Exception as error:
                # Without the exception's text: it may repeat what the engine was working on.
                where = traceback.extract_tb(error.__traceback__)[-1]
                # Whoever asked tells of an outage once, not at every look whether it is over.
                logger.log(
                    logging.DEBUG if isinstance(error, EngineDown) else logging.WARNING,
                    "engine failed" if kind is EngineError else "engine cannot be loaded",
                    extra={
                        "engine": self._spec.path,
                        "error": type(error).__name__,
                        "at": f"{Path(where.filename).name}:{where.lineno}",
                    },
                )
                failed(error, kind)

        self._pool.submit(run)


class _Child:
    """Receives calls, hands them to the engines' threads, sends what comes back."""

    def __init__(self, wire: Wire, engines: Mapping[str, EngineSpec]) -> None:
        self._wire = wire
        self._hosts: dict[str, _Host] = {}
        self._stopped: set[int] = set()
        shared: list[tuple[EngineSpec, _Host]] = []
        for name, spec in engines.items():
            host = next((host for other, host in shared if other == spec), None)
            if host is None:
                host = _Host(spec)
                shared.append((spec, host))
            self._hosts[name] = host

    def dispatch(self, request_id: int, engine: str | None, *call: Any) -> None:
        if engine is None:
            self._stopped.add(request_id)
            return
        method, arguments = call
        host = self._hosts.get(engine)

        def failed(error: Exception, kind: type[EngineError]) -> None:
            self._send(request_id, "error", _as_engine_error(engine, error, kind))

        def serve(instance: Any) -> None:
            self._serve(request_id, instance, method, arguments)

        if host is None:
            failed(EngineError(engine, "there is no such engine"), EngineError)
        else:
            host.submit(serve, failed)

    def _serve(self, request_id: int, instance: Any, method: str, arguments: Any) -> None:
        if method == ATTRIBUTES:
            self._send(request_id, "value", {name: getattr(instance, name) for name in arguments})
            return
        result = getattr(instance, method)(*arguments)
        if not isinstance(result, Iterator):
            self._send(request_id, "value", result)
            return
        for item in result:
            if request_id in self._stopped:
                self._stopped.discard(request_id)
                return
            self._send(request_id, "item", item)
        self._send(request_id, "end", None)

    def _send(self, request_id: int, kind: str, value: Any) -> None:
        try:
            self._wire.send((request_id, kind, value))
        except OSError:
            os._exit(0)  # the parent has gone


def _as_engine_error(engine: str, error: Exception, kind: type[EngineError]) -> EngineError:
    if isinstance(error, EngineError) and kind is EngineError:
        return error
    detail = str(error) if isinstance(error, CallcoreError | OSError | RuntimeError) else ""
    # Texts of other exceptions may repeat what an engine was working on.
    return kind(engine, detail or type(error).__name__)


def main(fd: int) -> None:
    """Serve the parent at the other end of socket ``fd`` until it closes."""
    # Ctrl-C and a service manager signal the whole group: the parent drains first, then closes.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    wire = Wire(socket.socket(fileno=fd))
    try:
        engines, nice, *log_style = wire.receive()
        log.configure(*log_style)
        os.nice(nice)
        heap.keep_small()
        child = _Child(wire, engines)
        while True:
            child.dispatch(*wire.receive())
    except EOFError:
        # Not sys.exit: threads in the middle of a decode would keep a dead parent's child alive.
        os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]))
