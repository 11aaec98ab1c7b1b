"""``callcore up``: runs the Procfile, restarts what dies, stops everything in order.

Each line ``name: command`` becomes one child in a process group of its own, so that Ctrl-C reaches
only this supervisor, which then stops the children in order: everything else first, the broker
last, because workers that finish their step still talk to it. A child whose supervisor is killed
gets SIGTERM from the kernel.
"""

import asyncio
import contextlib
import ctypes
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from callcore.errors import ConfigError

logger = logging.getLogger(__name__)

#: Seconds before a child that died is started again; doubled up to the second figure while it
#: keeps dying within ``STEADY_S``.
RESTART_DELAYS_S = (0.5, 10.0)
STEADY_S = 10.0
#: Seconds that children get to finish their work after SIGTERM. Longer than the AudioSocket
#: daemon's drain and than an engine call that cannot be interrupted.
STOP_TIMEOUT_S = 30.0
#: Stopped after all others.
LAST_STOPPED = "broker"
#: Longest line of a child that is passed on whole.
MAX_LINE_BYTES = 1 << 20

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a Procfile."""

    name: str
    command: str


def parse_procfile(text: str) -> list[Entry]:
    """Return the entries of a Procfile in order; comments and empty lines are skipped.

    Raises:
        ConfigError: If a line is not ``name: command`` or a name stands twice.
    """
    entries: list[Entry] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = re.fullmatch(r"([A-Za-z0-9_-]+):\s*(\S.*)", line.strip())
        if match is None:
            raise ConfigError("Procfile", f"line {number}", "name: command")
        if any(entry.name == match[1] for entry in entries):
            raise ConfigError("Procfile", f"line {number}", f"{match[1]} only once")
        entries.append(Entry(match[1], match[2]))
    return entries


def child_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return ``environ`` with this interpreter's programs first on PATH and unbuffered output."""
    programs = str(Path(sys.executable).parent)
    path = os.pathsep.join(part for part in (programs, environ.get("PATH", "")) if part)
    return {**environ, "PATH": path, "PYTHONUNBUFFERED": "1"}


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class Supervisor:
    """Runs the entries of a Procfile until it is told to stop.

    Args:
        entries: What to run.
        environ: Environment of the children.
        write_line: Called on the event loop with (name, line) for each line a child prints.
    """

    def __init__(
        self,
        entries: list[Entry],
        environ: Mapping[str, str],
        write_line: Callable[[str, str], None],
    ) -> None:
        self._entries = entries
        self._environ = child_environment(environ)
        self._write_line = write_line
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._stop = asyncio.Event()
        self._force = asyncio.Event()
        self.restarts: dict[str, int] = {entry.name: 0 for entry in entries}

    def pid(self, name: str) -> int | None:
        """Return the process id of a child that runs now."""
        process = self._processes.get(name)
        return process.pid if process and process.returncode is None else None

    def stop(self) -> None:
        """Ask for the orderly end; a second call kills what is still there."""
        if self._stop.is_set():
            self._force.set()
        self._stop.set()

    async def run(self) -> None:
        """Run until ``stop`` was called and every child has ended."""
        keepers = {entry.name: asyncio.create_task(self._keep(entry)) for entry in self._entries}
        await self._stop.wait()
        others = [name for name in keepers if name != LAST_STOPPED]
        await self._end(others, keepers)
        await self._end([name for name in keepers if name == LAST_STOPPED], keepers)

    async def _keep(self, entry: Entry) -> None:
        loop = asyncio.get_running_loop()
        delay = RESTART_DELAYS_S[0]
        while not self._stop.is_set():
            started = loop.time()
            try:
                ending = f"ended with {await self._run_once(entry)}"
            except OSError as error:  # no more processes or files: that may pass
                ending = f"cannot start ({error.strerror})"
            if self._stop.is_set():
                return
            self.restarts[entry.name] += 1
            delay = delay if loop.time() - started < STEADY_S else RESTART_DELAYS_S[0]
            self._tell(entry.name, f"{ending}; starts again in {delay:g} s")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), delay)
            delay = min(delay * 2, RESTART_DELAYS_S[1])

    async def _run_once(self, entry: Entry) -> int:
        """Run a child to its end and return its exit code."""
        process, lines = await self._spawn(entry)
        self._processes[entry.name] = process
        if self._stop.is_set():  # asked between the fork and the line above
            self._signal(entry.name, signal.SIGTERM)
        pump = asyncio.create_task(self._pump(entry.name, lines))
        code = await process.wait()
        # What the child itself started must not outlive it: it would hold ports and locks.
        _signal_group(process.pid, signal.SIGKILL)
        await pump
        return code

    def _tell(self, name: str, line: str) -> None:
        # Nobody may be reading any more (`callcore up | head`): the children go on.
        with contextlib.suppress(OSError):
            self._write_line(name, line)

    async def _spawn(self, entry: Entry) -> tuple[asyncio.subprocess.Process, BinaryIO]:
        # A pipe of our own: asyncio's would make wait() last until the child's children close it.
        read_end, write_end = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                "/bin/sh",
                "-c",
                f"exec {entry.command}",
                stdin=asyncio.subprocess.DEVNULL,
                stdout=write_end,
                stderr=asyncio.subprocess.STDOUT,
                env=self._environ,
                process_group=0,
                preexec_fn=_die_with_parent,
            )
        except BaseException:
            os.close(read_end)
            raise
        finally:
            os.close(write_end)
        return process, os.fdopen(read_end, "rb", 0)

    async def _pump(self, name: str, pipe: BinaryIO) -> None:
        reader = asyncio.StreamReader(MAX_LINE_BYTES)
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), pipe
        )
        try:
            while True:
                try:
                    line = await reader.readline()
                except ValueError:  # longer than MAX_LINE_BYTES: skipped, the child must not block
                    continue
                if not line:
                    return
                self._tell(name, line.decode("utf-8", "replace").rstrip("\n"))
        finally:
            transport.close()

    async def _end(self, names: list[str], keepers: Mapping[str, asyncio.Task[None]]) -> None:
        tasks = [keepers[name] for name in names]
        for name in names:
            self._signal(name, signal.SIGTERM)
        if not tasks:
            return
        force = asyncio.create_task(self._force.wait())
        finished = asyncio.create_task(asyncio.wait(tasks))
        await asyncio.wait(
            [force, finished], timeout=STOP_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED
        )
        force.cancel()
        if not finished.done():
            late = [name for name in names if self.pid(name)]
            logger.warning("children did not stop in time and are killed", extra={"names": late})
            for name in late:
                self._signal(name, signal.SIGKILL)
        await asyncio.gather(*tasks)

    def _signal(self, name: str, signum: signal.Signals) -> None:
        process = self._processes.get(name)
        if process is None or process.returncode is not None:
            return
        if signum == signal.SIGKILL:
            _signal_group(process.pid, signum)
        else:  # only the child itself: it stops its own children in its own order
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signum)


def _signal_group(group: int, signum: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signum)


def prefixed_printer(names: list[str], colour: bool) -> Callable[[str, str], None]:
    """Return a ``write_line`` that prints ``name | line`` with aligned, coloured names."""
    width = max(map(len, names), default=0)
    codes = {name: 36 - index % 6 for index, name in enumerate(names)}

    def write_line(name: str, line: str) -> None:
        label = f"{name:<{width}} |"
        if colour:
            label = f"\x1b[{codes[name]}m{label}\x1b[0m"
        sys.stdout.write(f"{label} {line}\n")
        sys.stdout.flush()

    return write_line


async def run_until_signal(supervisor: Supervisor) -> None:
    """Run the supervisor until SIGTERM or SIGINT; the second signal kills."""
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, supervisor.stop)
    await supervisor.run()
