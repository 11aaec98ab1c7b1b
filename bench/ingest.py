#!/usr/bin/env python3
"""How the daemon takes many AudioSocket streams, beside a server that does nothing but count.

    python bench/ingest.py                              # 200 streams, capture off and on
    chrt -r 1 python bench/ingest.py --streams 1000 --pin    # as root, on a machine that others use
    python bench/ingest.py --baseline PATH/ingest_limit.py   # that file's own server as well

One paced generator (stream k sends its 20 ms frame in slot k % 20 of each 20 ms and never waits
for the server) drives one server after the other, each a process of its own on this machine:

    bare      an asyncio.Protocol on uvloop: parse, copy into a ring, count
    baseline  ``ingest_limit.py serve --impl protocol --loop uvloop --work ring``
    daemon    ``callcore audiosocket`` as it is, recognition off, with its database and broker

A row each: frames sent and received of all that were sent from the first to the last (the daemon's
figure is the sum of ``frames`` of its own "leg ended" log lines), frames the generator could not
hand to the kernel, CPU % of one core of the server's process in the measured window, CPU us a
frame and its ratio to each of the other two rows, latency from send() to handled (p50, p99, max,
ms; same clock), lag of the daemon's event loop (p99, ms), KiB of memory a leg at the window's end,
silence in s that the daemon filled in (nothing is sent while it registers the legs), the
generator's own lateness (p99, ms) and CPU %, and what the rest of the machine burnt in that window
(cores): latencies are only clean where the generator was not late and the rest is near 0. Latency
is taken from a time stamp in each frame by a wrapper around every seventh leg's ``feed``;
``ingest_limit.py`` stamps every frame of all.
"""

import argparse
import asyncio
import contextlib
import functools
import gc
import itertools
import json
import os
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

FRAME_BYTES, SLOTS = 320, 20
#: Latency is taken of every stream whose number is a multiple: no slot of the 20 is left out, and
#: the figures are those of the server, not of the measurement.
TIMED = 7
STAMP = struct.Struct("<q")
ROOT = Path(__file__).resolve().parent.parent


# ---- in the server's process


class Latencies:
    """Milliseconds from send() to handled, of the measured window."""

    def __init__(self, size: int = 4_000_000) -> None:
        self._ns = np.zeros(size, np.int64)
        self._count = 0

    def take(self, samples: bytes) -> None:
        now = time.monotonic_ns()
        for at in range(0, len(samples) - FRAME_BYTES + 1, FRAME_BYTES):
            if self._count < len(self._ns):
                self._ns[self._count] = now - STAMP.unpack_from(samples, at)[0]
                self._count += 1

    def reset(self) -> None:
        self._count = 0

    def report(self) -> dict[str, float]:
        ms = np.sort(self._ns[: self._count]) / 1e6
        if not len(ms):
            return {}
        return {"p50": ms[len(ms) // 2], "p99": ms[int(len(ms) * 0.99)], "max": ms[-1]}


def run_daemon(path: str) -> None:
    """Run the daemon with its latencies written to ``path`` at the end."""
    import uvloop

    from callcore import live_daemon, log, session
    from callcore.settings import load

    latencies = Latencies()
    open_leg = session.LiveCalls.open_leg
    numbers = itertools.count()

    def opened(calls: Any, *args: Any) -> Any:
        leg = open_leg(calls, *args)
        if next(numbers) % TIMED == 0:
            feed, feed_frame = leg.feed, leg.feed_frame

            def timed(batch: list[Any], at: float) -> None:
                feed(batch, at)
                for part in batch:
                    latencies.take(part.samples)

            def timed_frame(samples: bytes, at: float) -> None:
                feed_frame(samples, at)
                latencies.take(samples)

            leg.feed, leg.feed_frame = timed, timed_frame
        return leg

    setattr(session.LiveCalls, "open_leg", opened)  # noqa: B010 - mypy refuses the assignment
    settings = load(os.environ)
    log.configure(settings.log_level, settings.log_format)
    signal.signal(signal.SIGUSR1, lambda *_: latencies.reset())
    uvloop.run(live_daemon.serve(settings))
    Path(path).write_text(json.dumps(latencies.report()))


def run_bare(port: int, path: str) -> None:
    """Run the server that only counts."""
    import uvloop

    latencies = Latencies()
    frames = 0
    numbers = itertools.count()

    class Counting(asyncio.Protocol):
        def __init__(self) -> None:
            self.is_timed = next(numbers) % TIMED == 0
            self.rest = b""
            self.ring = bytearray(512_000)
            self.at = 0

        def data_received(self, data: bytes) -> None:
            nonlocal frames
            data = self.rest + data if self.rest else data
            at = 0
            while len(data) - at >= 3:
                end = at + 3 + (data[at + 1] << 8 | data[at + 2])
                if end > len(data):
                    break
                if data[at] == 0x10:
                    samples = data[at + 3 : end]
                    if self.at + len(samples) > len(self.ring):
                        self.at = 0
                    self.ring[self.at : self.at + len(samples)] = samples
                    self.at += len(samples)
                    frames += 1
                    if self.is_timed:
                        latencies.take(samples)
                at = end
            self.rest = data[at:]

    async def main() -> None:
        loop = asyncio.get_running_loop()
        done = asyncio.Event()
        loop.add_signal_handler(signal.SIGTERM, done.set)
        loop.add_signal_handler(signal.SIGUSR1, latencies.reset)
        await loop.create_server(Counting, "127.0.0.1", port, backlog=4096)
        print("listening", file=sys.stderr, flush=True)
        await done.wait()

    uvloop.run(main())
    Path(path).write_text(json.dumps({"frames": frames, **latencies.report()}))


# ---- the generator


@dataclass
class Load:
    """What was sent."""

    sent: int = 0
    unsent: int = 0
    late_ms: list[float] = field(default_factory=list)


class Generator:
    """Paced streams to one server.

    50,000 frames a second leave 20 us for each: a write to a loopback socket is most of that, so
    nothing but the time stamp is made anew for each frame.
    """

    def __init__(self, port: int, streams: int) -> None:
        self.load = Load()
        self._slots: list[list[int]] = [[] for _ in range(SLOTS)]
        self._left: dict[int, bytes] = {}
        self._peers: list[socket.socket] = []
        tone = (np.sin(np.arange(160) * 0.3) * 8000).astype("<i2").tobytes()
        self._frame = bytearray(struct.pack(">BH", 0x10, FRAME_BYTES) + tone)
        for number in range(streams):
            peer = socket.create_connection(("127.0.0.1", port))
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            peer.sendall(struct.pack(">BH", 0x01, 16) + uuid.uuid4().bytes)
            peer.setblocking(False)
            self._peers.append(peer)
            self._slots[number % SLOTS].append(peer.fileno())
        gc.freeze()

    def run(self, seconds: float, *, measure: bool) -> None:
        start = time.monotonic_ns()
        for slot in range(round(seconds * 1000)):
            due = start + slot * 1_000_000
            wait_ns = due - time.monotonic_ns()
            if wait_ns > 50_000:
                time.sleep(wait_ns / 1e9)
            if measure:
                self.load.late_ms.append((time.monotonic_ns() - due) / 1e6)
            self._send(slot % SLOTS)
            if slot % 1000 < SLOTS:
                self._drop_received(slot % SLOTS)

    def close(self) -> None:
        """Half-close like Asterisk's hangup, and wait for the server's close."""
        for peer in self._peers:
            if left := self._left.get(peer.fileno()):
                peer.setblocking(True)
                peer.sendall(left)
            peer.setblocking(False)
            peer.shutdown(socket.SHUT_WR)
        waiting = select.poll()
        by_fd = {peer.fileno(): peer for peer in self._peers}
        for fd in by_fd:
            waiting.register(fd, select.POLLIN)
        deadline = time.monotonic() + 30
        while by_fd and time.monotonic() < deadline:
            for fd, _ in waiting.poll(1000):
                if not self._received(by_fd[fd]):
                    waiting.unregister(fd)
                    by_fd.pop(fd).close()

    def _send(self, slot: int) -> None:
        frame, load = self._frame, self.load
        stamp, now, write = STAMP.pack_into, time.monotonic_ns, os.write
        sent = 0
        for fd in self._slots[slot]:
            stamp(frame, 3, now())
            try:
                if self._left and (left := self._left.pop(fd, None)):
                    load.unsent += 1
                    num_bytes = self._written(fd, left)
                    if num_bytes < len(left):
                        self._left[fd] = left[num_bytes:]
                    continue
                num_bytes = write(fd, frame)
            except BlockingIOError:
                load.unsent += 1
                continue
            sent += 1
            if num_bytes < len(frame):
                self._left[fd] = bytes(frame[num_bytes:])
        load.sent += sent

    @staticmethod
    def _written(fd: int, left: bytes) -> int:
        try:
            return os.write(fd, left)
        except BlockingIOError:
            return 0

    def _drop_received(self, slot: int) -> None:
        for fd in self._slots[slot]:
            with contextlib.suppress(BlockingIOError, ConnectionError):
                os.read(fd, 65536)

    @staticmethod
    def _received(peer: socket.socket) -> bool:
        try:
            return bool(peer.recv(65536))
        except BlockingIOError:
            return True
        except ConnectionError:
            return False


# ---- one run


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_kib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize() / 1024


def machine_cpu_s() -> float:
    fields = [int(x) for x in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


class Child:
    """A server's process and what it writes to standard error."""

    def __init__(
        self,
        command: list[str],
        environ: dict[str, str] | None = None,
        cores: set[int] | None = None,
    ) -> None:
        self.lines: list[str] = []
        self._changed = threading.Condition()
        own = os.sched_getaffinity(0)
        os.sched_setaffinity(0, cores or own)
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environ
        )
        os.sched_setaffinity(0, own)
        self.pid = self._process.pid
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._changed:
                self.lines.append(line)
                self._changed.notify()

    def until(self, text: str, count: int = 1, timeout_s: float = 120.0) -> None:
        """Wait for that many lines that hold ``text``."""
        with self._changed:
            if not self._changed.wait_for(
                lambda: sum(text in line for line in self.lines) >= count, timeout_s
            ):
                raise SystemExit(f"waited for {text!r}:\n" + "".join(self.lines[-20:]))

    def signal(self, signum: signal.Signals) -> None:
        self._process.send_signal(signum)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(60)
        self._thread.join()


def measured(
    name: str, port: int, child: Child, options: argparse.Namespace, ready: Callable[[], None]
) -> dict[str, Any]:
    """Drive one server that listens; return what can be told from outside."""
    memory = memory_kib(child.pid)
    generator = Generator(port, options.streams)
    generator.run(options.warm, measure=False)
    ready()
    child.signal(signal.SIGUSR1)
    generator.run(0.1, measure=False)
    sent, own = generator.load.sent, time.process_time()
    cpu, machine, wall = cpu_s(child.pid), machine_cpu_s(), time.monotonic()
    generator.run(options.seconds, measure=True)
    wall = time.monotonic() - wall
    cpu, machine = cpu_s(child.pid) - cpu, machine_cpu_s() - machine
    own = time.process_time() - own
    memory = memory_kib(child.pid) - memory
    in_window = generator.load.sent - sent
    generator.close()
    late = sorted(generator.load.late_ms) or [0.0]
    return {
        "server": name,
        "streams": options.streams,
        "frames/s": in_window / wall,
        "sent": generator.load.sent,
        "unsent": generator.load.unsent,
        "cpu%": 100 * cpu / wall,
        "us/frame": 1e6 * cpu / max(1, in_window),
        "KiB/leg": memory / options.streams,
        "gen late": late[int(len(late) * 0.99)],
        "gen cpu%": 100 * own / wall,
        "others": (machine - cpu - own) / wall,
    }


def bench_bare(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    port, report = free_port(), folder / "bare.json"
    command = [sys.executable, __file__, "--bare", str(port), "--report", str(report)]
    child = Child(command, cores=options.server_cores)
    child.until("listening")
    row = measured("bare", port, child, options, lambda: None)
    child.stop()
    told: dict[str, Any] = json.loads(report.read_text())
    return row | told | {"received": told["frames"]}


def bench_baseline(options: argparse.Namespace) -> dict[str, Any]:
    port = free_port()
    command = [sys.executable, options.baseline, "serve", "--impl", "protocol", "--loop", "uvloop"]
    command += ["--work", "ring", "--ring-seconds", "32", "--port", str(port)]
    child = Child(command, cores=options.server_cores)
    child.until("ready")
    row = measured("baseline", port, child, options, lambda: None)
    child.stop()
    told = json.loads(child.lines[-1])
    # Its counter begins at the measured window: there is nothing to compare the total with.
    return row | {key: told[key] for key in ("p50", "p99", "max")}


def bench_daemon(options: argparse.Namespace, folder: Path, capture: str) -> dict[str, Any]:
    from callcore.settings import load
    from callcore.storage import Storage

    port, state = free_port(), folder / f"state-{capture}-{free_port()}"
    environ = {k: v for k, v in os.environ.items() if not k.startswith("CALLCORE_")} | {
        "CALLCORE_STATE_DIR": str(state),
        "CALLCORE_AUDIOSOCKET_BIND": f"127.0.0.1:{port}",
        "CALLCORE_LIVE": options.live,
        "CALLCORE_MODELS_DIR": os.environ.get("CALLCORE_MODELS_DIR", str(ROOT / "var" / "models")),
        "CALLCORE_CAPTURE": capture,
        "CALLCORE_MAX_CALLS": "10000",
        "CALLCORE_MAX_CALLS_PER_PEER": "10000",
        "CALLCORE_LOG_FORMAT": "json",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    state.mkdir()
    storage = Storage(load(environ).database_url)
    storage.migrate()
    storage.close()
    broker = Child([sys.executable, "-m", "callcore.cli", "broker"], environ)
    report = state / "latency.json"
    command = [sys.executable, __file__, "--daemon", "--report", str(report)]
    child = Child(command, environ, options.server_cores)
    try:
        child.until('"listening"')
        ready = functools.partial(child.until, '"leg started"', options.streams)
        row = measured(f"daemon, capture {capture}", port, child, options, ready)
        child.until('"leg ended"', options.streams)
        child.stop()
    finally:
        broker.stop()
    latency: dict[str, Any] = json.loads(report.read_text())
    ended = [json.loads(line) for line in child.lines if '"leg ended"' in line]
    [stopped] = [json.loads(line) for line in child.lines if '"stopped"' in line]
    lost = sum('"audio lost"' in line for line in child.lines)
    if lost:
        print(f"the daemon reports lost audio {lost} times", file=sys.stderr)
    files = list((state / "audio_files").glob("capture/*.wav"))
    return (
        row
        | latency
        | {
            "received": sum(leg["frames"] for leg in ended),
            "loop lag": stopped["loop_lag_p99_ms"],
            "filled s": sum(leg["filled_s"] for leg in ended),
            "captured s": sum((f.stat().st_size - 44) / 16000 for f in files) if files else None,
        }
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


COLUMNS = (
    "server",
    "streams",
    "frames/s",
    "sent",
    "received",
    "lost",
    "unsent",
    "cpu%",
    "us/frame",
    "x bare",
    "x baseline",
    "p50",
    "p99",
    "max",
    "loop lag",
    "KiB/leg",
    "filled s",
    "captured s",
    "gen late",
    "gen cpu%",
    "others",
)


def show(row: dict[str, Any], *earlier: dict[str, Any]) -> None:
    if "received" in row:
        row["lost"] = row["sent"] - row["received"]
    for other in earlier:
        row[f"x {other['server']}"] = row["us/frame"] / other["us/frame"]
    cells = []
    for name in COLUMNS:
        value = row.get(name)
        cells.append(
            "-" if value is None else f"{value:.2f}" if isinstance(value, float) else value
        )
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=20.0, help="the measured window")
    parser.add_argument("--warm", type=float, default=3.0, help="seconds before it")
    parser.add_argument("--capture", default="off,always", help="daemon runs, by commas")
    parser.add_argument("--nice", type=int, default=0, help="of all that is started; < 0 as root")
    parser.add_argument("--pin", action="store_true", help="the servers to a core of their own")
    parser.add_argument("--live", choices=("on", "off"), default="off", help="recognition")
    parser.add_argument("--baseline", metavar="FILE", help="ingest_limit.py, to run its server too")
    parser.add_argument("--bare", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--daemon", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--report", help=argparse.SUPPRESS)
    options = parser.parse_args()
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    if options.daemon:
        return run_daemon(options.report)
    if options.bare:
        return run_bare(options.bare, options.report)
    os.setpriority(os.PRIO_PROCESS, 0, options.nice)
    options.server_cores = None
    if options.pin:
        *others, last = sorted(os.sched_getaffinity(0))
        options.server_cores = {last}
        os.sched_setaffinity(0, others or {last})
    print("| " + " | ".join(COLUMNS) + " |")
    print("|" + " --- |" * len(COLUMNS), flush=True)
    # A short path: a unix socket's name has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="cc-", dir="/tmp") as folder:
        rows = [bench_bare(options, Path(folder))]
        show(rows[0])
        if options.baseline:
            rows.append(bench_baseline(options))
            show(rows[1])
        for capture in options.capture.split(","):
            show(bench_daemon(options, Path(folder), capture), *rows)
    return None


if __name__ == "__main__":
    main()
