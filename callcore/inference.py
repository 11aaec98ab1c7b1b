"""Engines in a child process that may be killed at any moment and comes back by itself.

A decode holds a core for as long as it takes and may crash the process it runs in, so engines
never run where sockets or jobs are served. ``InferenceProcess`` starts ``python -m
callcore.inference_child FD`` over a socket pair; the child loads its engines and answers calls,
each engine with its own threads, so that speech detection never waits for a decode. The child ends
when its parent's end of the socket closes, whatever the parent died of.

What goes over the socket is in ``inference_wire``.
"""

import contextlib
import itertools
import logging
import os
import pickle
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import callcore
from callcore import log
from callcore.errors import EngineDied, EngineError
from callcore.inference_wire import ATTRIBUTES, EngineSpec, Wire

__all__ = ["EngineSpec", "InferenceProcess"]

logger = logging.getLogger(__name__)

#: Waits (s) between a child's death and the next start, by how many before it in a row died
#: without answering anything; the last one repeats.
_BACKOFF_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)

#: How long a child may take to end by itself when the parent closes.
_CLOSE_S = 2.0


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
        values: dict[str, Any] = self.call(engine, ATTRIBUTES, *names).result()
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
        wire = Wire(sock)
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
            request.answer("error", EngineDied(request.engine, "its process died"))

    def _write(self, wire: Wire, outbox: "queue.SimpleQueue[tuple[Any, ...] | None]") -> None:
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
                [sys.executable, "-m", "callcore.inference_child", str(theirs.fileno())],
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
        # A remote engine waits for the resolver without a limit of its own: dead name servers must
        # not take as long as a process that hangs.
        "RES_OPTIONS": os.environ.get("RES_OPTIONS", "timeout:2 attempts:1"),
    }
