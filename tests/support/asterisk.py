"""A real Asterisk of the test's own: on loopback, in a temporary folder, with our dialplan.

The templates in ``asterisk_etc`` become its ``/etc/asterisk``; ``extensions.conf`` there is what a
site would write. A call is a Local channel: its ``;1`` half is the person (context ``parties``,
plays prompts), its ``;2`` half that person's channel as Asterisk sees it.
"""

import itertools
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from callcore.ami import Ami
from callcore.settings import Address
from tests.support.require import missing
from tests.support.site import free_port

REPOSITORY = Path(__file__).parents[2]
DIALPLAN = REPOSITORY / "dialplan" / "extensions_callcore.conf"
TEMPLATES = Path(__file__).parent / "asterisk_etc"
_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
#: Where ``tools/install-asterisk`` unpacks it.
HOME = Path(os.environ.get("ASTERISK_ROOT") or _CACHE / "callcore" / "asterisk")
#: Bound of every wait; what is waited for takes a tenth of it on a busy machine.
PATIENCE_S = 60.0

_FOLDERS = (
    "etc",
    "run",
    "lib",
    "agi-bin",
    "log/cdr-csv",
    "log/cdr-custom",
    "spool/outgoing",
    "spool/outgoing_done",
    "spool/tmp",
    "spool/monitor",
    "spool/system",
    "spool/recording",
)


def require() -> Path:
    """Return the folder of the unpacked Asterisk; skip, or fail in CI, where there is none."""
    if not (HOME / "bin" / "asterisk").exists():
        missing("no Asterisk: run tools/install-asterisk")
    return HOME


def prompts() -> dict[str, str]:
    """Return what each English prompt says, by its name."""
    texts = {}
    for line in (require() / "prompts-en.txt").read_text("utf-8").splitlines():
        name, colon, text = line.partition(":")
        if colon and not line.startswith(";"):
            texts[name.strip()] = text.strip()
    return texts


class Asterisk:
    """An instance; a context manager that starts and stops it.

    Args:
        folder: Its folder, made if need be; short, because a socket's path is limited.
        audiosocket: ``host:port`` of the AudioSocket daemon, as its dialplan sees it.
        agi: ``host:port`` of the FastAGI server.
        without: Modules that are not loaded.
        dialplan: Our dialplan; another file to plant a fault.
        variables: More global variables.
    """

    def __init__(
        self,
        folder: Path,
        *,
        audiosocket: str = "127.0.0.1:9",
        agi: str = "127.0.0.1:9",
        without: tuple[str, ...] = (),
        dialplan: Path = DIALPLAN,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder.resolve()
        self.home = require()
        self.ami_address = Address("127.0.0.1", free_port())
        self.http_address = Address("127.0.0.1", free_port())
        """Of ARI; user and password are ``test``."""
        self._without = without
        variables = {"CALLCORE_AUDIOSOCKET": audiosocket, "CALLCORE_AGI": agi, **(variables or {})}
        self._values = {
            "DIR": str(self.folder),
            "ROOT": str(self.home),
            "AMI_PORT": str(self.ami_address.port),
            "HTTP_PORT": str(self.http_address.port),
            "DIALPLAN": str(dialplan),
            "GLOBALS": "\n".join(f"{name} = {value}" for name, value in variables.items()),
        }
        self._numbers = itertools.count(1)
        self._marked: dict[str, int] = {}
        self.process: subprocess.Popen[bytes] | None = None

    # What is where.

    @property
    def recordings(self) -> Path:
        """Asterisk's folder of recordings."""
        return self.folder / "spool" / "monitor"

    def log(self, name: str = "messages") -> str:
        """Return a log: ``messages`` (warnings, errors), ``full`` (every step) or ``console``."""
        path = self.folder / "log" / name
        return path.read_text("utf-8", "replace") if path.exists() else ""

    def mark(self) -> None:
        """Let ``new`` begin here."""
        self._marked = {name: len(self.log(name)) for name in ("messages", "full")}

    def new(self, name: str = "messages") -> str:
        """Return what a log tells since ``mark``."""
        return self.log(name)[self._marked.get(name, 0) :]

    def cdrs(self) -> list[str]:
        """Return the call detail records, one line each."""
        path = self.folder / "log" / "cdr-custom" / "calls.csv"
        return path.read_text("utf-8").splitlines() if path.exists() else []

    # Start and stop.

    def __enter__(self) -> "Asterisk":
        self.start()
        return self

    def __exit__(self, _kind: object, error: object, _trace: object) -> None:
        self.stop()
        if error is not None:
            # Little of it, so that what failed can still be seen above it.
            print(self.log("messages")[-4000:], self.log("full")[-4000:])

    def start(self) -> None:
        """Start it and wait until it takes calls."""
        for name in _FOLDERS:
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        for template in TEMPLATES.glob("*.conf"):
            (self.folder / "etc" / template.name).write_text(self._filled(template.read_text()))
        (self.folder / "log" / "full").unlink(missing_ok=True)
        with (self.folder / "log" / "console").open("ab") as console:
            self.process = subprocess.Popen(
                self._command("-f"),
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                cwd=self.folder,
                start_new_session=True,
            )
        self.wait("Asterisk is ready", lambda: "Asterisk Ready" in self.log("full"))
        self.cli("core waitfullybooted")

    def stop(self) -> None:
        """Stop it, whatever it does."""
        if self.process is None:
            return
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def kill(self) -> None:
        """Let it die as in a power cut."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    # Talk to it.

    def cli(self, command: str) -> str:
        """Run a command of the console and return what it prints."""
        return subprocess.run(
            self._command("-rx", command), check=True, capture_output=True, text=True
        ).stdout

    def ami(self, **options: Any) -> Ami:
        """Return a new manager session."""
        return Ami(self.ami_address, "test", "test", **options)

    def call(
        self,
        exten: str,
        *,
        caller_says: str = "demo-congrats",
        agent_says: str = "vm-options",
        person: str = "caller",
        caller: str = "5550100",
        name: str = "",
        count: int = 1,
        rate: float = 20.0,
        variables: Mapping[str, str] | None = None,
    ) -> list[str]:
        """Place calls to an extension of the context ``site``; return a mark of each.

        Args:
            exten: What is dialled.
            caller_says: Prompts joined with ``&``; ``silence/1`` to ``silence/10`` are some too.
            agent_says: The same, of whoever answers.
            person: Extension of the context ``parties`` that is the caller.
            caller: Number of the caller.
            name: Their name, as the trunk would send it.
            count: Calls.
            rate: Calls a second.
            variables: Channel variables of the caller's channel; ``__NAME`` is inherited.

        Returns:
            The value of the channel variable ``MARK`` of each call.
        """
        marks = []
        began = time.monotonic()
        with self.ami() as ami:
            for number in range(count):
                mark = f"call-{next(self._numbers)}"
                known = {
                    "__MARK": mark,
                    "CALLER_SAYS": caller_says,
                    "__AGENT_SAYS": agent_says,
                    **(variables or {}),
                }
                ami.action(
                    "Originate",
                    Channel=f"Local/{exten}@site/n",
                    Context="parties",
                    Exten=person,
                    Priority="1",
                    CallerID=f'"{name}" <{caller}>',
                    Async="true",
                    Timeout="10000",
                    Variable=[f"{key}={value}" for key, value in known.items()],
                )
                marks.append(mark)
                time.sleep(max(0.0, began + (number + 1) / rate - time.monotonic()))
        return marks

    def channels(self) -> list[str]:
        """Return the names of the channels there are."""
        lines = self.cli("core show channels concise").splitlines()
        return [line.split("!")[0] for line in lines if "!" in line]

    def wait_idle(self, timeout_s: float = PATIENCE_S) -> None:
        """Wait until there is no channel."""
        self.wait("all channels are gone", lambda: not self.channels(), timeout_s)

    def wait(self, what: str, answer: Callable[[], Any], timeout_s: float = PATIENCE_S) -> Any:
        """Return the first true value of ``answer``; fail when none comes in time."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if value := answer():
                return value
            if self.process is not None and self.process.poll() is not None:
                raise AssertionError(f"Asterisk ended with {self.process.returncode}")
            # Polling another process's state: there is no event of it to wait for.
            time.sleep(0.05)
        raise AssertionError(f"waited {timeout_s:g} s for: {what}\n{self.log()}")

    def _command(self, *arguments: str) -> list[str]:
        program = self.home / "bin" / "asterisk"
        found = str(program) if program.exists() else shutil.which("asterisk") or str(program)
        return [found, "-C", str(self.folder / "etc" / "asterisk.conf"), *arguments]

    def _filled(self, text: str) -> str:
        for key, value in self._values.items():
            text = text.replace(f"@{key}@", value)
        lines = [
            line
            for line in text.splitlines()
            if line.removeprefix("load = ").removesuffix(".so") not in self._without
        ]
        return "\n".join(lines) + "\n"
