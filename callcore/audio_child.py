"""The process that reads sound files for ``audio_reading``: it forks one child a file, with limits.

Run as ``python -m callcore.audio_child FD``: FD is a socket (Unix, packets) over which requests
come, and at whose end the process ends, whatever its parent died of. Everything is imported once;
a fork is cheap. A request is JSON ``{"extension", "rate", "limits"}``, rate null for a mere probe,
with three descriptors:

    file    what is to be read; the child can open nothing else, neither files nor sockets
    data    packets from the child: one byte of kind, then
            i  JSON, the fields of ``AudioInfo``
            b  u8 number of channels, then float32 samples, interleaved
            .  u32 number of broken packets: all has been sent
            e  UTF-8: why the file is no recording (InvalidRecording)
            o  i32 errno: the system did not let it be read
            x  UTF-8: name and place of an error that nobody foresaw
    status  one packet from us when the child is over: i32 wait status, u32 peak RSS in KiB,
            f64 CPU seconds; when its other end is closed, the child is killed
"""

import contextlib
import ctypes
import gc
import io
import itertools
import json
import os
import resource
import selectors
import signal
import socket
import struct
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO

from callcore import audio
from callcore.errors import InvalidRecording

INFO, BLOCK, END, INVALID, FAILED, UNFORESEEN = b"i", b"b", b".", b"e", b"o", b"x"
NUM_BROKEN, ERRNO, STATUS = struct.Struct("!I"), struct.Struct("!i"), struct.Struct("!iId")
#: Largest packet; the kernel's default buffer holds a few.
PACKET_BYTES = 1 << 16
MAX_REQUEST_BYTES = 4096
_NICE = 10
_CPU_GRACE_S = 5
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_FDS = 3


@dataclass(frozen=True, slots=True)
class Limits:
    """What the reading of one file may take."""

    memory_bytes: int = 320 << 20
    """Address space beyond what the child has at its start; about 50 MB of that are in use."""
    cpu_s: int = 5
    """CPU seconds until the first audio."""
    audio_per_cpu_s: int = 20
    """Seconds of audio that earn one more CPU second; Opus, the slowest, gives 200 here."""


class _Forker:
    """Takes requests, forks their children, tells how they ended."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._prctl = ctypes.CDLL(None).prctl
        self._pid = os.getpid()
        self._own_bytes = _virtual_bytes()
        self._selector = selectors.DefaultSelector()
        self._statuses: dict[int, socket.socket] = {}
        """By process id of a child that is not reaped."""
        self._woken, wake = socket.socketpair()
        for end in (self._woken, wake):
            end.setblocking(False)
        self._wake = wake
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        self._selector.register(control, selectors.EVENT_READ, self._take)
        self._selector.register(self._woken, selectors.EVENT_READ, self._reap)

    def serve(self) -> None:
        """Serve until the parent closes; its children die with this process."""
        while True:
            for key, _ in self._selector.select():
                key.data()

    def _take(self) -> None:
        message, fds, _, _ = socket.recv_fds(self._control, MAX_REQUEST_BYTES, _FDS)
        if not message:
            os._exit(0)
        file, data, status = fds
        try:
            pid = os.fork()
        except OSError:
            pid = -1  # short of memory or processes: the parent sees that no status came
        if not pid:
            self._become_child(json.loads(message), file, data)
        os.close(file)
        os.close(data)
        if pid < 0:
            os.close(status)
            return
        self._statuses[pid] = socket.socket(fileno=status)
        # Nothing is ever sent to us over it: it becomes readable when the parent closes.
        self._selector.register(status, selectors.EVENT_READ, self._killer(pid, status))

    def _killer(self, pid: int, status: int) -> Callable[[], None]:
        def kill() -> None:
            if pid in self._statuses:  # else it is reaped, and the number may be another's
                os.kill(pid, signal.SIGKILL)
                self._selector.unregister(status)

        return kill

    def _reap(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._woken.recv(4096)
        while self._statuses:
            pid, code, usage = os.wait4(-1, os.WNOHANG)
            if not pid:
                return
            status = self._statuses.pop(pid)
            with contextlib.suppress(KeyError):
                self._selector.unregister(status)
            with status, contextlib.suppress(OSError):
                cpu_s = usage.ru_utime + usage.ru_stime
                status.send(STATUS.pack(code, usage.ru_maxrss, cpu_s))

    def _become_child(self, request: dict[str, Any], file: int, data: int) -> None:
        """Read the file; never returns."""
        try:
            limits = Limits(**request.pop("limits"))
            signal.set_wakeup_fd(-1)
            self._prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != self._pid:
                os._exit(1)  # it died before it could take us with it
            self._prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
            # Where memory runs out, the kernel shall take this child and nobody else.
            with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
                score.write("1000")
            for each in {int(name) for name in os.listdir("/proc/self/fd")} - {0, 1, 2, file, data}:
                with contextlib.suppress(OSError):  # one was that of the folder itself
                    os.close(each)
            ceilings = {
                resource.RLIMIT_AS: self._own_bytes + limits.memory_bytes,
                resource.RLIMIT_NOFILE: 0,
                resource.RLIMIT_FSIZE: 0,
                resource.RLIMIT_CORE: 0,  # a dump would hold voices
            }
            for kind, most in ceilings.items():
                resource.setrlimit(kind, (most, most))
            _allow_cpu(limits, 0)
            with open(file, "rb", closefd=False) as opened:
                _answer(request, limits, opened, socket.socket(fileno=data))
            os._exit(0)
        except BaseException:
            # Also what is no error of ours: the parent learns it from the status.
            os._exit(1)


def _allow_cpu(limits: Limits, audio_s: float) -> None:
    """Let the kernel end this process when it takes too long for the audio that it has given."""
    most = limits.cpu_s + int(audio.MAX_S / limits.audio_per_cpu_s)
    now = limits.cpu_s + int(audio_s / limits.audio_per_cpu_s)
    # At the hard limit the kernel sends SIGKILL, which would not say whose doing it was.
    resource.setrlimit(resource.RLIMIT_CPU, (min(now, most), most + _CPU_GRACE_S))


def _answer(request: dict[str, Any], limits: Limits, file: BinaryIO, data: socket.socket) -> None:
    """Send what is asked for over ``data``."""
    try:
        if request["rate"] is None:
            info = audio.probe_file(file, request["extension"])
            data.send(INFO + json.dumps(asdict(info)).encode())
        else:
            parts = audio.Parts(file, request["extension"], request["rate"])
            _send_parts(parts, request["rate"], limits, data)
    except InvalidRecording as error:
        data.send(INVALID + str(error).encode())
    except MemoryError:
        most = limits.memory_bytes >> 20
        text = f"reading the file takes more than {most} MB of memory: it is damaged"
        data.send(INVALID + text.encode())
    except BrokenPipeError:
        return  # the parent wants no more
    except OSError as error:
        data.send(FAILED + ERRNO.pack(error.errno or 0))
    except Exception as error:
        # Of a binding that did not expect such a file, or ours: told, so that it can be mended.
        at = error.__traceback__
        while at is not None and at.tb_next is not None:
            at = at.tb_next
        where = f"{os.path.basename(at.tb_frame.f_code.co_filename)}:{at.tb_lineno}" if at else ""
        data.send(UNFORESEEN + f"{type(error).__name__} at {where}".encode())


def _send_parts(parts: audio.Parts, rate: int, limits: Limits, data: socket.socket) -> None:
    each = iter(parts)
    first = next(each)
    num_channels, num_samples = first.shape[1], 0
    full = (PACKET_BYTES - 2) // (4 * num_channels)
    for piece in audio.in_blocks(itertools.chain([first], each), full):
        data.sendmsg([BLOCK, bytes([num_channels]), piece.astype("<f4").tobytes()])
        num_samples += len(piece)
        _allow_cpu(limits, num_samples / rate)
    data.send(END + NUM_BROKEN.pack(parts.num_broken))


def _virtual_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def _warm_up() -> None:
    """Decode something, so that all is imported before the first child, which may open nothing."""
    file = io.BytesIO(audio.wav_header(8000, 1, 1600) + bytes(1600))
    audio.probe_file(file, "wav")
    for part in audio.Parts(file, "wav", 16_000):
        part.astype("<f4").tobytes()
    gc.freeze()  # a collection would copy the pages that children share


def main(fd: int) -> None:
    """Serve the parent at the other end of socket ``fd`` until it closes."""
    # Ctrl-C and a service manager signal the whole group: the parent drains first, then closes.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.nice(_NICE)
    _warm_up()
    _Forker(socket.socket(fileno=fd)).serve()


if __name__ == "__main__":
    main(int(sys.argv[1]))
