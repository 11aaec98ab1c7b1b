"""``audio.probe`` and ``audio.decode`` for files from outside, in a process with limits.

A decoder is the largest piece of C that strangers' bytes reach. Here it runs in a child for each
file (see ``audio_child``), which has only so much memory and time and can open nothing but that
file. What it sends is checked, and whatever becomes of it, the caller gets samples,
InvalidRecording (the file is at fault: final) or AudioError (the system is: worth another try). The
process that forks the children is started at the first use, one for each of ours, and again when it
has died. All functions may be used from any thread.
"""

import atexit
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

import callcore
from callcore import audio
from callcore.audio import AudioInfo
from callcore.audio_child import (
    BLOCK,
    END,
    ERRNO,
    FAILED,
    INFO,
    INVALID,
    NUM_BROKEN,
    PACKET_BYTES,
    STATUS,
    UNFORESEEN,
    Limits,
)
from callcore.errors import AudioError, InvalidRecording

__all__ = ["AudioInfo", "close", "decode", "probe"]

logger = logging.getLogger(__name__)

#: Longest wait for the next packet, in seconds. A child that computes is ended by its CPU limit
#: long before; this is for one that hangs on a disk, and leaves room on a busy machine.
SILENCE_S = 60.0
#: Wait for word of how a child ended that has closed its end already, in seconds.
_STATUS_S = 10.0
_CLOSE_S = 2.0
_LIMITS = Limits()

_STALLS = "reading the file takes more time than its audio can need: it is damaged or made to stall"
_CRASHES = "the file makes its decoder crash: it is damaged"
_NONSENSE = "the file makes its decoder answer nonsense: it is damaged"
_CRASH_SIGNALS = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)


def probe(path: Path | str, extension: str | None = None) -> AudioInfo:
    """Return what the file is, without decoding it where its header tells.

    Args:
        path: A sound file.
        extension: What its name claims, which counts only for files without a header; None: that
            of ``path``.

    Raises:
        InvalidRecording: If it is empty, too long or nothing that can be read as audio.
        AudioError: If the process that reads it was lost; another try may do.
        OSError: If it cannot be opened or read.
    """
    with open(path, "rb") as file, _Reading(file, _extension(path, extension), None) as reading:
        kind, body = reading.receive()
        if kind != INFO:
            raise reading.broken(InvalidRecording(_NONSENSE))
        try:
            info = _info(json.loads(bytes(body)))
        except (ValueError, TypeError) as error:
            raise reading.broken(InvalidRecording(_NONSENSE)) from error
        reading.over()
        return info


def decode(
    path: Path | str, rate: int, block_s: float = 30.0, extension: str | None = None
) -> Iterator[np.ndarray]:
    """Yield the file's audio in blocks; the child waits while nobody takes one.

    A broken spot is left out with a warning; the rest follows.

    Args:
        path: A sound file.
        rate: Rate in Hz that the samples shall have.
        block_s: Length of a block in seconds; the last one is shorter.
        extension: As for ``probe``.

    Yields:
        Shape (n, num_channels), float32 in [-1, 1].

    Raises:
        InvalidRecording: If nothing in it can be decoded, or it turns out too long.
        AudioError: If the process that reads it was lost; another try may do.
        OSError: If it cannot be opened or read.
    """
    with open(path, "rb") as file, _Reading(file, _extension(path, extension), rate) as reading:
        yield from audio.in_blocks(reading.parts(), max(1, round(block_s * rate)))


def _extension(path: Path | str, given: str | None) -> str:
    return audio.extension_of(path) if given is None else given


def close() -> None:
    """End this process's reader; the next use starts one."""
    _forker.close()


class _Forker:
    """The warm process that forks a child for each file."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def begin(self, request: bytes, fds: list[int]) -> None:
        """Hand over a request; starts the process where there is none.

        Raises:
            AudioError: If it cannot be started.
        """
        with self._lock:
            for _ in range(2):
                if self._control is None:
                    self._start()
                assert self._control is not None
                try:
                    socket.send_fds(self._control, [request], fds)
                    return
                except OSError:  # it died since
                    self._end()
        raise AudioError("the process that reads sound files dies at its start: try again")

    def close(self) -> None:
        with self._lock:
            self._end()

    def forget(self) -> None:
        """Let go of a parent's process after a fork: its children are the parent's."""
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            self._process.returncode = 0  # not ours to wait for
        self.__init__()  # type: ignore[misc]

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "callcore.audio_child", str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    env=_child_environment(),
                )
            except OSError as error:  # no more files, memory or processes
                ours.close()
                text = f"the process that reads sound files cannot be started: {error.strerror}"
                raise AudioError(text) from error
        self._control = ours

    def _end(self) -> None:
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            try:
                self._process.wait(_CLOSE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._control = self._process = None


def _child_environment() -> dict[str, str]:
    """Return our environment, so that the child finds this very callcore and starts no threads."""
    root = str(Path(callcore.__file__).parents[1])
    path = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path if root in path else [*path, root]),
        "OPENBLAS_NUM_THREADS": "1",
    }


_forker = _Forker()
os.register_at_fork(after_in_child=_forker.forget)
atexit.register(_forker.close)


class _Reading:
    """One file being read by a child, which dies when this is closed."""

    def __init__(self, file: BinaryIO, extension: str, rate: int | None) -> None:
        asked = {"extension": extension[:16], "rate": rate, "limits": asdict(_LIMITS)}
        self._data, data = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._status, status = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._buffer = bytearray(PACKET_BYTES + 1)
        try:
            with data, status:
                _forker.begin(
                    json.dumps(asked).encode(), [file.fileno(), data.fileno(), status.fileno()]
                )
        except BaseException:
            self.__exit__()
            raise
        self._status.settimeout(_STATUS_S)

    def __enter__(self) -> "_Reading":
        """Return the reading."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Close; a child that still runs is killed."""
        self._data.close()
        self._status.close()

    def parts(self) -> Iterator[np.ndarray]:
        """Yield what is decoded, shape (n, num_channels), float32."""
        num_channels = 0
        while True:
            kind, body = self.receive()
            if kind == END and len(body) == NUM_BROKEN.size:
                audio.warn_of(NUM_BROKEN.unpack(body)[0])
                self.over()
                return
            given = body[0] if kind == BLOCK and len(body) else 0
            num_channels = num_channels or given
            if not given or given != num_channels or (len(body) - 1) % (4 * given):
                raise self.broken(InvalidRecording(_NONSENSE))
            yield np.frombuffer(body[1:].tobytes(), "<f4").reshape(-1, given)

    def receive(self) -> tuple[bytes, memoryview]:
        """Return kind and body of the next packet, which is good until the next call.

        Raises:
            InvalidRecording: If the child says that of the file, or the file was its end.
            AudioError: If the child ended for another reason.
            OSError: If the file could not be read.
        """
        self._data.settimeout(SILENCE_S)
        try:
            size = self._data.recv_into(self._buffer)
        except TimeoutError:
            text = f"the file's disk has not answered for {SILENCE_S:g} s: look after it"
            raise AudioError(text) from None
        except ConnectionResetError:
            size = 0
        if not size:
            raise self.broken(None)
        kind, body = bytes(self._buffer[:1]), memoryview(self._buffer)[1:size]
        if kind == INVALID:
            raise self.broken(InvalidRecording(bytes(body).decode(errors="replace")))
        if kind == UNFORESEEN:
            text = bytes(body).decode(errors="replace")[:200]
            logger.warning("a file makes its reader fail", extra={"error": text})
            raise self.broken(InvalidRecording(_NONSENSE))
        if kind == FAILED and len(body) == ERRNO.size:
            number = ERRNO.unpack(body)[0]
            raise OSError(number, os.strerror(number))
        return kind, body

    def broken(self, error: InvalidRecording | None) -> AudioError:
        """Return why there is no more audio: what the child said, or what its end says."""
        if error is None:
            status = self.over()
            return (
                AudioError("the process that reads the file was lost")
                if status is None
                else (_verdict(status))
            )
        self.over()
        return error

    def over(self) -> int | None:
        """Return the child's wait status and log what it took; None if it is not known."""
        self._data.close()  # a child that goes on sending ends of it
        try:
            told = self._status.recv(STATUS.size)
        except OSError:
            return None
        if len(told) != STATUS.size:
            return None
        code, peak_kib, cpu_s = STATUS.unpack(told)
        logger.debug("file read", extra={"rss_mb": peak_kib >> 10, "cpu_ms": round(cpu_s * 1000)})
        return int(code)


def _verdict(status: int) -> AudioError:
    """Return the error for a child that ended without a word."""
    if not os.WIFSIGNALED(status):
        # Python itself gave up: out of memory, or an error nobody foresaw in a decoder's binding.
        return InvalidRecording(_NONSENSE)
    number = os.WTERMSIG(status)
    if number == signal.SIGXCPU:
        return InvalidRecording(_STALLS)
    if number in _CRASH_SIGNALS:
        return InvalidRecording(_CRASHES)
    # The kernel short of memory, or a person: that is not the file's doing, its limit is its own.
    return AudioError("the process that reads the file was killed: is the machine out of memory?")


def _info(told: dict[str, Any]) -> AudioInfo:
    info = AudioInfo(
        str(told["format"])[:16],
        int(told["rate"]),
        int(told["num_channels"]),
        float(told["duration_s"]),
        bool(told["complete"]),
    )
    if not (info.num_channels <= audio.MAX_CHANNELS and info.duration_s <= audio.MAX_S):
        raise ValueError
    return info
