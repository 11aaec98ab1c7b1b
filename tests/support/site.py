"""A whole site under ``callcore up``: every process real, on free ports, in a folder of its own."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import psutil

ROOT = Path(__file__).parent.parent.parent
#: Where `make test` has put the models.
MODELS = Path(os.environ.get("CALLCORE_MODELS_DIR", ROOT / "var" / "models"))
#: Bound of every wait; nothing here is expected to take a tenth of it.
PATIENCE_S = 180.0


def free_port() -> int:
    """Return a TCP port of the loopback address that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Site:
    """``callcore up`` in a temporary state folder.

    Args:
        state: Its state folder; short, because a socket's path is limited.
        **settings: Settings by their lower-case names.
    """

    def __init__(self, state: Path, **settings: str) -> None:
        self.state = state
        self.web = f"127.0.0.1:{free_port()}"
        self.audiosocket = f"127.0.0.1:{free_port()}"
        self.agi = f"127.0.0.1:{free_port()}"
        clean = {k: v for k, v in os.environ.items() if not k.startswith("CALLCORE_")}
        self.environ = {
            **clean,
            "CALLCORE_STATE_DIR": str(state),
            "CALLCORE_MODELS_DIR": str(MODELS),
            "CALLCORE_WEB_BIND": self.web,
            "CALLCORE_AUDIOSOCKET_BIND": self.audiosocket,
            "CALLCORE_AGI_BIND": self.agi,
            "CALLCORE_CAPTURE": "always",
            "CALLCORE_LEASE_S": "5",
            **{f"CALLCORE_{name.upper()}": value for name, value in settings.items()},
        }
        self.lines: list[str] = []
        self._process: subprocess.Popen[str] | None = None
        self._players: list[subprocess.Popen[str]] = []
        self.client = httpx.Client(base_url=f"http://{self.web}", timeout=10, trust_env=False)

    def __enter__(self) -> "Site":
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for player in self._players:
            player.kill()
            player.wait()
        self.stop()
        self.client.close()
        if error is not None:
            print("\n".join(self.lines[-400:]))

    def start(self) -> None:
        """Start everything and wait until it is ready."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "callcore.cli", "up"],
            env=self.environ,
            cwd=self.state,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self._process.stdout is not None
        reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        reader.start()
        self.wait("ready", self._ready)

    def stop(self) -> int:
        """Stop as Ctrl-C or systemd would and return the exit code."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        with self._process:  # closes the pipe once the child is gone
            return self._process.wait(60)

    def wait(self, what: str, answer: Callable[[], Any], patience_s: float = PATIENCE_S) -> Any:
        """Return the first true value of ``answer``; fail when it does not come in time."""
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            value = answer()
            if value:
                return value
            if self._process is not None and self._process.poll() is not None:
                raise AssertionError(f"callcore up ended with {self._process.returncode}")
            # Polling another process's state: there is no event of it to wait for.
            time.sleep(0.1)
        raise AssertionError(f"waited {patience_s:g} s for: {what}")

    def get(self, path: str) -> Any:
        """Return the JSON at ``path``; None while the server cannot answer."""
        try:
            answer = self.client.get(path)
        except httpx.TransportError:
            return None
        return answer.json() if answer.status_code == 200 else None

    def play(self, *arguments: str | Path) -> "subprocess.Popen[str]":
        """Start ``callcore play``; it is killed, if need be, when the site stops."""
        player = subprocess.Popen(
            [sys.executable, "-m", "callcore.cli", "play", *map(str, arguments)],
            env=self.environ,
            cwd=self.state,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        self._players.append(player)
        return player

    def child(self, part: str) -> psutil.Process:
        """Return the process of the site whose command line contains ``part``, outermost first."""
        assert self._process is not None
        parent = psutil.Process(self._process.pid)
        for process in parent.children(recursive=True):
            try:
                if part in " ".join(process.cmdline()):
                    return process
            except psutil.NoSuchProcess:
                continue
        raise AssertionError(f"no process with {part} in its command line")

    def kill(self, part: str) -> None:
        """Kill -9 the process whose command line contains ``part``."""
        self.child(part).send_signal(signal.SIGKILL)

    def _ready(self) -> bool:
        if self.get("/ready") is None:
            return False
        host, _, port = self.audiosocket.rpartition(":")
        try:
            socket.create_connection((host, int(port)), 2).close()
        except OSError:
            return False
        return True

    def _read(self, pipe: Any) -> None:
        for line in pipe:
            self.lines.append(line.rstrip("\n"))
