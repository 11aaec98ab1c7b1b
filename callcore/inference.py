"""Engines in a child process that may be killed at any moment and comes back by itself.

A decode holds a core for as long as it takes and may crash the process it runs in, so engines
never run where sockets or jobs are served. ``InferenceProcess`` starts ``python -m
callcore.inference FD`` over a socket pair; the child loads its engines and answers calls, each
engine with its own threads, so that speech detection never waits for a decode. The child ends when
its parent's end of the socket closes, whatever the parent died of.

A message is pickled with its arrays out of band::

    u32 number of parts | u64 length of each part | the parts: the pickle, then the raw arrays

The parent's first message is ``(engines, nice, log level, log style)``.
Parent to child: ``(id, engine, method, arguments)``, or ``(id, None)`` to stop stream ``id``.
Child to parent: ``(id, kind, value)``, kind one of ``value``, ``item``, ``end``, ``error``.
"""

import contextlib
import itertools
import logging
import os
import pickle
import queue
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import callcore
from callcore import log
from callcore.engines import load
from callcore.errors import CallcoreError, EngineError

logger = logging.getLogger(__name__)

#: Waits (s) between a child's death and the next start, by how many before it in a row died
#: without answering anything; the last one repeats.
_BACKOFF_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)

#: How long a child may take to end by itself when the parent closes.
_CLOSE_S = 2.0

#: The method that reads attributes instead of calling one.
_ATTRIBUTES = "<attributes>"

#: Buffers of one sendmsg call: IOV_MAX is 1024 on Linux.
_MAX_BUFFERS = 512

_COUNT = struct.Struct("!I")


@dataclass(frozen=True)
class EngineSpec:
    """An engine that the child shall hold."""

    path: str
    """``module:attribute`` of its class."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of its constructor; they are pickled."""
    threads: int = 1
    """Calls that it answers side by side."""


class _Wire:
    """Whole messages over a stream socket; one thread sends at a time, one receives."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._sending = threading.Lock()

    def send(self, message: Any) -> None:
        """Send a message; blocks until the other side has taken all but a buffer of it."""
        buffers: list[pickle.PickleBuffer] = []
        data = pickle.dumps(message, protocol=5, buffer_callback=buffers.append)
        parts = [memoryview(data), *(each.raw() for each in buffers)]
        header = _COUNT.pack(len(parts)) + struct.pack(f"!{len(parts)}Q", *map(len, parts))
        with self._sending:
            self._send_all([memoryview(header), *(part for part in parts if len(part))])

    def _send_all(self, parts: list[memoryview]) -> None:
        while parts:
            sent = self._socket.sendmsg(parts[:_MAX_BUFFERS])
            while parts and sent >= len(parts[0]):
                sent -= len(parts[0])
                parts.pop(0)
            if sent:
                parts[0] = parts[0][sent:]

    def receive(self) -> Any:
        """Return the next message; raises EOFError when the other side has closed."""
        (count,) = _COUNT.unpack(self._exactly(_COUNT.size))
        lengths = struct.unpack(f"!{count}Q", self._exactly(8 * count))
        data, *buffers = [self._exactly(length) for length in lengths]
        return pickle.loads(data, buffers=buffers)

    def _exactly(self, num_bytes: int) -> bytearray:
        data = bytearray(num_bytes)
        view = memoryview(data)
        while view:
            try:
                received = self._socket.recv_into(view)
            except ConnectionError:
                received = 0
            if not received:
                raise EOFError
            view = view[received:]
        return data


@dataclass(slots=True)
class _Request:
    """A call or stream that waits for the child."""

    engine: str
    method: str
    arguments: tuple[Any, ...]
    answer: Callable[[str, Any], None]
    """Takes (kind, value) on the reader's thread."""


class InferenceProcess:
    """A child process with engines, started again when it dies.

    Calls made while no child is ready wait for the next one; calls that a child had when it died
    fail with EngineError, and whoever made them decides whether to make them again. All methods
    may be used from any thread. From asyncio: ``asyncio.wrap_future(process.call(...))``.
    """

    def __init__(
        self, engines: Mapping[str, EngineSpec], *, restart: bool = True, nice: int = 0
    ) -> None:
        """Prepare; nothing runs before ``start``.

        Args:
            engines: Specs by name. Names with equal specs share one engine.
            restart: Whether a child that died is replaced.
            nice: Added to the child's niceness: recordings give way to live calls.
        """
        self.engines = dict(engines)
        self.pid: int | None = None
        """Process id of the child, None while there is none."""
        self.restarts = 0
        """How many children have been started after the first."""
        self._restart = restart
        self._nice = nice
        self._ids = itertools.count(1)
        self._lock = threading.Lock()
        self._waiting: dict[int, _Request] = {}
        """Requests that the child has, or has in its outbox."""
        self._outbox: queue.SimpleQueue[tuple[Any, ...] | None] = queue.SimpleQueue()
        self._child: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._supervisor: threading.Thread | None = None
        self._closing = threading.Event()
        self._gone = False
        """No child will come any more."""

    def __enter__(self) -> "InferenceProcess":
        """Start."""
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Close."""
        self.close()

    def start(self) -> None:
        """Start the child and return at once: it loads its engines while calls may be made.

        Raises:
            EngineError: If the process cannot be started at all.
        """
        if self._supervisor is not None:
            return
        self._spawn()
        self._supervisor = threading.Thread(
            target=self._supervise, name="inference supervisor", daemon=True
        )
        self._supervisor.start()

    def close(self) -> None:
        """End the child and fail what waits; may be called again and from any thread."""
        self._closing.set()
        with self._lock:
            sock, child = self._socket, self._child
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        if child is not None:
            try:
                child.wait(_CLOSE_S)
            except subprocess.TimeoutExpired:
                self.kill()
        supervisor = self._supervisor
        if supervisor is None:
            self._give_up("it is closed")
        elif supervisor is not threading.current_thread():
            supervisor.join()

    def kill(self) -> None:
        """End the child the hard way; where restarting is on, the next one follows.

        For an owner whose call is not answered: also a stopped or hanging child dies of it. Its
        calls have failed when this returns; later calls are for the next child.
        """
        with self._lock:
            child, outbox = self._child, self._outbox
        if child is not None:
            child.kill()
            self._detach(outbox)

    def call(self, engine: str, method: str, *args: Any) -> "Future[Any]":
        """Return the future result of ``engine.method(*args)``.

        Arrays among the arguments are read later, on another thread: leave them unchanged. The
        future fails with EngineError if the engine raised, or its process died.
        """
        future: Future[Any] = Future()

        def answer(kind: str, value: Any) -> None:
            # A caller that stopped waiting has cancelled the future.
            with contextlib.suppress(InvalidStateError):
                if kind == "error":
                    future.set_exception(value)
                else:
                    future.set_result(value)

        self._submit(_Request(engine, method, args, answer))
        return future

    def stream(
        self, engine: str, method: str, *args: Any, timeout_s: float | None = None
    ) -> Iterator[Any]:
        """Yield what the generator ``engine.method(*args)`` yields.

        Leaving the loop early stops the generator in the child after its next item.

        Args:
            engine: Name of the engine.
            method: Name of its method.
            *args: Arguments of the method.
            timeout_s: Longest wait for the next item.

        Raises:
            EngineError: If the engine raised, its process died or the next item took too long.
        """
        answers: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        request_id = self._submit(
            _Request(engine, method, args, lambda kind, value: answers.put((kind, value)))
        )
        try:
            while True:
                try:
                    kind, value = answers.get(timeout=timeout_s)
                except queue.Empty:
                    message = f"no answer within {timeout_s:g} s"
                    raise EngineError(engine, message) from None
                if kind == "error":
                    raise value
                if kind == "end":
                    return
                yield value
        finally:
            with self._lock:
                unfinished = self._waiting.pop(request_id, None) is not None
            if unfinished:
                self._outbox.put((request_id, None))

    def attributes(self, engine: str, *names: str) -> dict[str, Any]:
        """Return attributes of an engine; waits until it is loaded.

        Raises:
            EngineError: If it cannot be loaded.
        """
        values: dict[str, Any] = self.call(engine, _ATTRIBUTES, *names).result()
        return values

    def _submit(self, request: _Request) -> int:
        request_id = next(self._ids)
        with self._lock:
            if not self._gone and not self._closing.is_set():
                self._waiting[request_id] = request
                self._outbox.put((request_id, request.engine, request.method, request.arguments))
                return request_id
        request.answer("error", EngineError(request.engine, "its process has ended"))
        return request_id

    # The supervisor's thread: it reads answers, and starts the next child when this one has died.

    def _supervise(self) -> None:
        failures = 0
        while True:
            failures = 0 if self._run_child() else failures + 1
            if self._closing.is_set() or not self._restart:
                break
            if not self._spawn_again(failures):
                break
        self._give_up("it is closed" if self._closing.is_set() else "its process has ended")

    def _spawn_again(self, failures: int) -> bool:
        """Start the next child after a wait, however often that takes; False when closing."""
        while not self._closing.wait(_BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)]):
            try:
                self._spawn()
            except EngineError:
                # Short of memory or processes: that may pass.
                logger.exception("inference process cannot be started")
                failures += 1
            else:
                self.restarts += 1
                return True
        return False

    def _spawn(self) -> None:
        try:
            ours, child = _start_child()
        except OSError as error:  # no more files, memory or processes
            raise EngineError("inference", f"its process cannot be started: {error}") from error
        with self._lock:
            self._socket, self._child = ours, child
            self.pid = child.pid
            if self._closing.is_set():  # close() came meanwhile and found nothing to end
                child.kill()
        logger.info("inference process started", extra={"pid": child.pid})

    def _run_child(self) -> bool:
        """Serve the present child until it is dead and reaped; return whether it ever answered."""
        answered = False
        sock, child, outbox = self._socket, self._child, self._outbox
        assert sock is not None
        assert child is not None
        wire = _Wire(sock)
        writer = threading.Thread(
            target=self._write, args=(wire, outbox), name="inference writer", daemon=True
        )
        writer.start()
        try:
            while True:
                self._answer(*wire.receive())
                answered = True
        except EOFError:
            pass
        except Exception:
            # An answer that cannot be read leaves no way to find the next one.
            logger.exception("inference process sent what cannot be read")
        child.kill()
        code = child.wait()
        with self._lock:
            self.pid = None
            self._child = self._socket = None
        self._detach(outbox)
        sock.close()
        writer.join()
        if not self._closing.is_set():
            logger.warning("inference process died", extra={"pid": child.pid, "code": code})
        return answered

    def _detach(self, outbox: "queue.SimpleQueue[tuple[Any, ...] | None]") -> None:
        """Fail what the child of this outbox had; what is called from now on is for the next."""
        with self._lock:
            if self._outbox is not outbox:
                return
            self._outbox = queue.SimpleQueue()
            lost, self._waiting = self._waiting, {}
        outbox.put(None)
        for request in lost.values():
            request.answer("error", EngineError(request.engine, "its process died"))

    def _write(self, wire: _Wire, outbox: "queue.SimpleQueue[tuple[Any, ...] | None]") -> None:
        with contextlib.suppress(OSError):
            wire.send((self.engines, self._nice, *_log_style()))
            while (message := outbox.get()) is not None:
                try:
                    wire.send(message)
                except (pickle.PicklingError, TypeError, AttributeError) as error:
                    engine = str(message[1])
                    problem = EngineError(engine, f"arguments cannot be sent: {error}")
                    self._answer(message[0], "error", problem)

    def _answer(self, request_id: int, kind: str, value: Any) -> None:
        with self._lock:
            if kind == "item":
                request = self._waiting.get(request_id)
            else:
                request = self._waiting.pop(request_id, None)
        if request is not None:
            request.answer(kind, value)

    def _give_up(self, reason: str) -> None:
        with self._lock:
            self._gone = True
            lost, self._waiting = self._waiting, {}
        for request in lost.values():
            request.answer("error", EngineError(request.engine, reason))


def _log_style() -> tuple[str, str]:
    """Return level and style of our own log, for the child's."""
    root = logging.getLogger()
    is_json = any(isinstance(each.formatter, log.JsonFormatter) for each in root.handlers)
    return logging.getLevelName(root.getEffectiveLevel()), "json" if is_json else "text"


def _start_child() -> "tuple[socket.socket, subprocess.Popen[bytes]]":
    ours, theirs = socket.socketpair()
    try:
        with theirs:
            return ours, subprocess.Popen(
                [sys.executable, "-m", "callcore.inference", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=_child_environment(),
            )
    except OSError:
        ours.close()
        raise


def _child_environment() -> dict[str, str]:
    """Return our environment, so that the child finds this very callcore and stays on its cores."""
    root = str(Path(callcore.__file__).parents[1])
    path = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path if root in path else [*path, root]),
        # Engines count their threads themselves; numpy's own would spin beside them.
        "OPENBLAS_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


# The child.


class _Host:
    """One engine with its threads."""

    def __init__(self, spec: EngineSpec) -> None:
        self._spec = spec
        self._pool = ThreadPoolExecutor(spec.threads, thread_name_prefix=spec.path)
        self._engine: Future[Any] = self._pool.submit(self._load)

    def _load(self) -> Any:
        started = time.monotonic()
        engine = load(self._spec.path)(**self._spec.options)
        took_ms = round((time.monotonic() - started) * 1000)
        logger.info("engine loaded", extra={"engine": self._spec.path, "ms": took_ms})
        return engine

    def submit(self, serve: Callable[[Any], None], failed: Callable[[Exception], None]) -> None:
        """Run ``serve(engine)`` on one of the threads, or ``failed`` with why it cannot."""

        def run() -> None:
            try:
                serve(self._engine.result())
            except Exception as error:
                # Without the exception's text: it may repeat what the engine was working on.
                where = traceback.extract_tb(error.__traceback__)[-1]
                logger.warning(
                    "engine failed",
                    extra={
                        "engine": self._spec.path,
                        "error": type(error).__name__,
                        "at": f"{Path(where.filename).name}:{where.lineno}",
                    },
                )
                failed(error)

        self._pool.submit(run)


class _Child:
    """Receives calls, hands them to the engines' threads, sends what comes back."""

    def __init__(self, wire: _Wire, engines: Mapping[str, EngineSpec]) -> None:
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

        def failed(error: Exception) -> None:
            self._send(request_id, "error", _as_engine_error(engine, error))

        def serve(instance: Any) -> None:
            self._serve(request_id, instance, method, arguments)

        if host is None:
            failed(EngineError(engine, "there is no such engine"))
        else:
            host.submit(serve, failed)

    def _serve(self, request_id: int, instance: Any, method: str, arguments: Any) -> None:
        if method == _ATTRIBUTES:
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


def _as_engine_error(engine: str, error: Exception) -> EngineError:
    if isinstance(error, EngineError):
        return error
    detail = str(error) if isinstance(error, CallcoreError | OSError | RuntimeError) else ""
    # Texts of other exceptions may repeat what an engine was working on.
    return EngineError(engine, detail or type(error).__name__)


def main(fd: int) -> None:
    """Serve the parent at the other end of socket ``fd`` until it closes."""
    # Ctrl-C and a service manager signal the whole group: the parent drains first, then closes.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    wire = _Wire(socket.socket(fileno=fd))
    try:
        engines, nice, *log_style = wire.receive()
        log.configure(*log_style)
        os.nice(nice)
        child = _Child(wire, engines)
        while True:
            child.dispatch(*wire.receive())
    except EOFError:
        # Not sys.exit: threads in the middle of a decode would keep a dead parent's child alive.
        os._exit(0)


if __name__ == "__main__":
    # ``__main__`` is not ``callcore.inference``: what is pickled must be of the latter.
    from callcore import inference

    inference.main(int(sys.argv[1]))
