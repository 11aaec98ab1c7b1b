#!/usr/bin/env python3
"""How the daemon takes many AudioSocket streams, beside a server that does nothing but count.

    python bench/ingest.py                              # 200 streams, capture off and on
    python bench/ingest.py --streams 1000 --seconds 30
    python bench/ingest.py --baseline PATH/ingest_limit.py   # that file's own server as well

One paced generator (stream k sends its 20 ms frame in slot k % 20 of each 20 ms and never waits
for the server) drives one server after the other, each a process of its own on this machine:

    bare      an asyncio.Protocol on uvloop: parse, copy into a ring, count
    daemon    ``callcore audiosocket`` as it is, recognition off, with its database and broker
    baseline  ``ingest_limit.py serve --impl protocol --loop uvloop --work ring``

A row each: frames sent and received of all that were sent from the first to the last (the daemon's
figure is the sum of ``frames`` of its own "leg ended" log lines), frames the generator could not
hand to the kernel, CPU % of one core of the server's process in the measured window, CPU us a
frame, latency from send() to handled (p50, p99, max, ms; same clock), silence in s that the daemon
filled in, how late the generator itself was (p99, ms), and what the rest of the machine burnt in
that window (cores): figures are only clean where the last two are near 0. Latency is taken from a
time stamp in each frame by a wrapper around ``LegSession.feed``; the wrapper's cost is in the CPU
figure, as it is in the baseline's.
"""

import argparse
import asyncio
import functools
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
    feed = session.LegSession.feed

    def timed(leg: Any, batch: list[Any], at: float) -> None:
        feed(leg, batch, at)
        for part in batch:
            latencies.take(part.samples)

    setattr(session.LegSession, "feed", timed)  # noqa: B010 - mypy refuses the assignment
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

    class Counting(asyncio.Protocol):
        def __init__(self) -> None:
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
    """Paced streams to one server."""

    def __init__(self, port: int, streams: int) -> None:
        self.load = Load()
        self._slots: list[list[socket.socket]] = [[] for _ in range(SLOTS)]
        self._left: dict[socket.socket, bytes] = {}
        tone = (np.sin(np.arange(160) * 0.3) * 8000).astype("<i2").tobytes()
        self._frame = bytearray(struct.pack(">BH", 0x10, FRAME_BYTES) + tone)
        for number in range(streams):
            peer = socket.create_connection(("127.0.0.1", port))
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            peer.sendall(struct.pack(">BH", 0x01, 16) + uuid.uuid4().bytes)
            peer.setblocking(False)
            self._slots[number % SLOTS].append(peer)

    def run(self, seconds: float, *, measure: bool) -> None:
        start = time.monotonic_ns()
        for slot in range(round(seconds * 1000)):
            due = start + slot * 1_000_000
            wait_ns = due - time.monotonic_ns()
            if wait_ns > 50_000:
                time.sleep(wait_ns / 1e9)
            elif measure:
                self.load.late_ms.append(-wait_ns / 1e6)
            self._send(slot % SLOTS)
            if slot % 1000 < SLOTS:
                self._drop_received(slot % SLOTS)

    def close(self) -> None:
        """Half-close like Asterisk's hangup, and wait for the server's close."""
        for peer in self._all():
            if self._left.get(peer):
                peer.setblocking(True)
                peer.sendall(self._left[peer])
            peer.setblocking(False)
            peer.shutdown(socket.SHUT_WR)
        waiting = select.poll()
        by_fd = {peer.fileno(): peer for peer in self._all()}
        for fd in by_fd:
            waiting.register(fd, select.POLLIN)
        deadline = time.monotonic() + 30
        while by_fd and time.monotonic() < deadline:
            for fd, _ in waiting.poll(1000):
                if not self._received(by_fd[fd]):
                    waiting.unregister(fd)
                    by_fd.pop(fd).close()

    def _all(self) -> list[socket.socket]:
        return [peer for slot in self._slots for peer in slot]

    def _send(self, slot: int) -> None:
        for peer in self._slots[slot]:
            STAMP.pack_into(self._frame, 3, time.monotonic_ns())
            try:
                if left := self._left.get(peer):
                    self._left[peer] = left[peer.send(left) :]
                    self.load.unsent += 1
                    continue
                num_bytes = peer.send(self._frame)
            except BlockingIOError:
                self.load.unsent += 1
                continue
            self.load.sent += 1
            if num_bytes < len(self._frame):
                self._left[peer] = bytes(self._frame[num_bytes:])

    def _drop_received(self, slot: int) -> None:
        for peer in self._slots[slot]:
            self._received(peer)

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


def machine_cpu_s() -> float:
    fields = [int(x) for x in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


class Child:
    """A server's process and what it writes to standard error."""

    def __init__(self, command: list[str], environ: dict[str, str] | None = None) -> None:
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environ
        )
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
    others = (machine - cpu - (time.process_time() - own)) / wall
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
        "gen late": late[int(len(late) * 0.99)],
        "others": others,
    }


def bench_bare(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    port, report = free_port(), folder / "bare.json"
    child = Child([sys.executable, __file__, "--bare", str(port), "--report", str(report)])
    child.until("listening")
    row = measured("bare", port, child, options, lambda: None)
    child.stop()
    told: dict[str, Any] = json.loads(report.read_text())
    return row | told | {"received": told["frames"]}


def bench_baseline(options: argparse.Namespace) -> dict[str, Any]:
    port = free_port()
    command = [sys.executable, options.baseline, "serve", "--impl", "protocol", "--loop", "uvloop"]
    child = Child([*command, "--work", "ring", "--ring-seconds", "32", "--port", str(port)])
    child.until("ready")
    row = measured("baseline", port, child, options, lambda: None)
    child.stop()
    told = json.loads(child.lines[-1])
    # Its counter begins at the measured window: there is nothing to compare the total with.
    return row | {key: told[key] for key in ("p50", "p99", "max")}


def bench_daemon(options: argparse.Namespace, folder: Path, capture: str) -> dict[str, Any]:
    from callcore.settings import load
    from callcore.storage import Storage

    port, state = free_port(), folder / f"state-{capture}"
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
    child = Child([sys.executable, __file__, "--daemon", "--report", str(report)], environ)
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
    lost = sum('"audio lost"' in line for line in child.lines)
    if lost:
        print(f"the daemon reports lost audio {lost} times", file=sys.stderr)
    files = list((state / "audio_files").glob("capture/*.wav"))
    return (
        row
        | latency
        | {
            "received": sum(leg["frames"] for leg in ended),
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
    "p50",
    "p99",
    "max",
    "filled s",
    "captured s",
    "gen late",
    "others",
)


def show(row: dict[str, Any]) -> None:
    if "received" in row:
        row["lost"] = row["sent"] - row["received"]
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
    print("| " + " | ".join(COLUMNS) + " |")
    print("|" + " --- |" * len(COLUMNS), flush=True)
    # A short path: a unix socket's name has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="cc-", dir="/tmp") as folder:
        show(bench_bare(options, Path(folder)))
        if options.baseline:
            show(bench_baseline(options))
        for capture in options.capture.split(","):
            show(bench_daemon(options, Path(folder), capture))
    return None


if __name__ == "__main__":
    main()
