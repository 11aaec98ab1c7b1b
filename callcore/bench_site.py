"""A site for ``callcore bench live``: broker, database and live daemon in a temporary folder.

The daemon runs on cores of its own where the machine has more, so that what plays the calls does
not take part in what is measured. What processes have used is read from /proc (proc(5)).
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from callcore import broker, model_store
from callcore.errors import CallcoreError
from callcore.settings import Address, Settings, load, parse_address
from callcore.storage import Storage

#: Seconds within which the broker, and then the daemon, has to answer.
_READY_S = 60.0
#: Seconds that a process gets to stop by itself.
_STOP_S = 30.0
#: Settings of the machine's own site that must not reach this one.
_NOT_INHERITED = (
    "DATABASE_URL",
    "REDIS_URL",
    "SPOOL_DIR",
    "AUDIO_DIR",
    "DAEMON_NAME",
    "WEBHOOK_URLS",
)
#: What becomes the process: on its cores, and ended with us, by kill -9 too (PR_SET_PDEATHSIG of
#: prctl(2); both outlive exec). Not a ``preexec_fn``: that may hang in a process with threads.
_START = """
import ctypes, os, signal, sys
os.sched_setaffinity(0, map(int, sys.argv[1].split(",")))
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
os.execv(sys.executable, [sys.executable, "-m", *sys.argv[2:]])
"""
_CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process has used."""

    cpu_s: float = 0.0
    """User and system seconds of all its threads."""
    memory_mib: float = 0.0
    """Resident."""

    def since(self, before: "Usage") -> "Usage":
        """Return what was used since then."""
        return Usage(self.cpu_s - before.cpu_s, self.memory_mib - before.memory_mib)


@dataclass(slots=True)
class Site:
    """A running site."""

    settings: Settings
    storage: Storage
    address: Address
    """Where the daemon receives audio."""
    daemon_pid: int
    lines: list[dict[str, Any]] = field(default_factory=list)
    """What the daemon has logged; complete after the site has stopped."""

    def daemon(self) -> Usage:
        """Return what the daemon has used."""
        return usage(self.daemon_pid)

    def inference(self) -> Usage:
        """Return what the inference processes have used: those that ended, their CPU seconds."""
        used = [usage(pid) for pid in children(self.daemon_pid)]
        ended_s = ended_children_s(self.daemon_pid)
        memory_mib = sum(each.memory_mib for each in used)
        return Usage(ended_s + sum(each.cpu_s for each in used), memory_mib)

    def logged(self, message: str) -> list[dict[str, Any]]:
        """Return the daemon's log lines with that message."""
        return [line for line in self.lines if line.get("message") == message]


def usage(pid: int) -> Usage:
    """Return what a process has used; nothing where it is gone."""
    try:
        fields = _stat(pid)
        statm = Path(f"/proc/{pid}/statm").read_text("ascii")
    except OSError:
        return Usage()
    cpu_s = (int(fields[11]) + int(fields[12])) / _CLOCK_TICKS
    resident = int(statm.split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return Usage(cpu_s, resident / 2**20)


def ended_children_s(pid: int) -> float:
    """Return the CPU seconds of the children that a process has seen end; 0 where it is gone."""
    try:
        fields = _stat(pid)
    except OSError:
        return 0.0
    return (int(fields[13]) + int(fields[14])) / _CLOCK_TICKS


def _stat(pid: int) -> list[str]:
    """Return the fields of a process from its state on."""
    stat = Path(f"/proc/{pid}/stat").read_text("ascii", "replace")
    # The name in parentheses may hold anything: fields are counted from its end.
    return stat.rpartition(")")[2].split()


def children(pid: int) -> list[int]:
    """Return the processes that a process has started and that still run."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                found += map(int, (thread / "children").read_text("ascii").split())
    return found


def cores_for(num_cores: int) -> tuple[set[int], set[int]]:
    """Return the cores of the daemon, and those of everything else.

    Where the machine has no core left for the rest, they are shared.
    """
    all_cores = sorted(os.sched_getaffinity(0))
    ours = set(all_cores[:num_cores])
    return ours, set(all_cores[num_cores:]) or set(all_cores)


@asynccontextmanager
async def running(
    environ: Mapping[str, str], command: str, num_cores: int, **values: str
) -> AsyncIterator[Site]:
    """Run a site; it is gone with its folder when the context ends.

    Args:
        environ: Environment of this process; its settings hold, but for where things are.
        command: Module, and its arguments, that runs the daemon.
        num_cores: Cores of the daemon.
        **values: Settings by their lower-case names.

    Raises:
        CallcoreError: If a model is missing, or a part of the site does not start.
    """
    daemon_cores, other_cores = cores_for(num_cores)
    # A socket's path is limited: the folder's name is short.
    with tempfile.TemporaryDirectory(prefix="cc-") as folder:
        own = _environment(environ, Path(folder), values)
        settings = load(own)
        live = (settings.live_model, settings.live_model_multilingual)
        check_models(settings, (*live, model_store.SPEECH_MODEL))
        storage = Storage(settings.database_url)
        storage.migrate()
        try:
            async with (
                _on_cores(other_cores),
                _process("callcore.cli broker", own, other_cores, None),
                _daemon(command, own, daemon_cores, settings, storage) as site,
            ):
                yield site
        finally:
            storage.close()


@asynccontextmanager
async def _on_cores(cores: set[int]) -> AsyncIterator[None]:
    """Keep this thread on these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _environment(
    environ: Mapping[str, str], folder: Path, values: Mapping[str, str]
) -> dict[str, str]:
    given = load(environ)
    dropped = {f"CALLCORE_{name}{end}" for name in _NOT_INHERITED for end in ("", "_FILE")}
    return {
        **{name: value for name, value in environ.items() if name not in dropped},
        "CALLCORE_STATE_DIR": str(folder),
        "CALLCORE_MODELS_DIR": str(given.models_dir),
        # The system chooses a port; the daemon's log says which.
        "CALLCORE_AUDIOSOCKET_BIND": "127.0.0.1:0",
        "CALLCORE_LIVE": "on",
        # This machine is measured: nothing of it may be decoded by an endpoint elsewhere.
        "CALLCORE_TRANSCRIPTION_FOR": "recordings",
        "CALLCORE_LOG_LEVEL": "INFO",
        "CALLCORE_LOG_FORMAT": "json",
        **{f"CALLCORE_{name.upper()}": value for name, value in values.items()},
    }


def check_models(settings: Settings, names: Iterable[str]) -> None:
    """Return if all these models are there.

    Raises:
        CallcoreError: If not; it says what to do.
    """
    missing = model_store.missing(settings.models_dir, dict.fromkeys(names))
    if missing:
        wanted = " ".join(missing)
        raise CallcoreError(
            f"{settings.models_dir} lacks {wanted}: run `callcore models pull {wanted}`"
        )


@asynccontextmanager
async def _daemon(
    command: str, environ: Mapping[str, str], cores: set[int], settings: Settings, storage: Storage
) -> AsyncIterator[Site]:
    await asyncio.to_thread(broker.wait_ready, settings, _READY_S)
    lines: list[dict[str, Any]] = []
    async with _process(command, environ, cores, lines) as process:
        address = await _listening(process, lines)
        yield Site(settings, storage, address, process.pid, lines)


async def _listening(process: asyncio.subprocess.Process, lines: list[dict[str, Any]]) -> Address:
    """Return where the daemon listens, once it does."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_READY_S):
            while process.returncode is None:
                for line in lines:
                    if line.get("message") == "listening":
                        return parse_address(str(line["address"]))
                await asyncio.sleep(0.05)
    # Its last line may come after its end is seen.
    await asyncio.sleep(0.1)
    said = lines[-1].get("message", "nothing") if lines else "nothing"
    raise CallcoreError(f"the live daemon does not start; it said: {said}")


@asynccontextmanager
async def _process(
    command: str, environ: Mapping[str, str], cores: set[int], lines: list[dict[str, Any]] | None
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a module; its lines are collected, or dropped where ``lines`` is None."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _START, ",".join(map(str, cores)), *command.split()),
        env=dict(environ),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL if lines is None else asyncio.subprocess.PIPE,
        # Ctrl-C is for us: we stop it, so that what it says at its end is heard.
        start_new_session=True,
    )
    reading = asyncio.create_task(_read(process, lines))
    try:
        yield process
    finally:
        await asyncio.shield(_stop(process))
        await reading


async def _read(process: asyncio.subprocess.Process, lines: list[dict[str, Any]] | None) -> None:
    if process.stderr is None or lines is None:
        return
    while line := await process.stderr.readline():
        text = line.decode("utf-8", "replace").strip()
        try:
            lines.append(json.loads(text))
        except ValueError:
            lines.append({"message": text})  # what Python or a library prints


async def _stop(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    try:
        await asyncio.wait_for(process.wait(), _STOP_S)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
