"""The real embedded broker in a folder of the test's own."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from callcore import broker, settings
from callcore.errors import ConfigError
from tests.support.require import missing

ROOT = Path(__file__).parents[2]
_RUN = """
import os, sys
from callcore import broker, log, settings
log.configure("INFO", "text")
sys.exit(broker.run(settings.load(os.environ)))
"""


class Valkey:
    """A broker under ``folder`` that tests start, kill and start again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environ = {"CALLCORE_STATE_DIR": str(folder)}
        self.settings = settings.load(self.environ)
        self.url = settings.broker_url(self.settings)
        self.processes: list[subprocess.Popen[str]] = []

    def launch(self, **environ: str) -> "subprocess.Popen[str]":
        """Start one ``callcore broker`` without waiting for it."""
        process = subprocess.Popen(
            [sys.executable, "-c", _RUN],
            env={**os.environ, **self.environ, **environ},
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        return process

    def start(self) -> "subprocess.Popen[str]":
        """Start it and wait until it answers."""
        process = self.launch()
        broker.wait_ready(self.settings, 30)
        return process

    def kill(self) -> None:
        """Kill -9 every process we started."""
        for process in self.processes:
            process.kill()
            process.wait()
            if process.stderr:
                process.stderr.close()
        self.processes.clear()


def require_program() -> None:
    """Skip, or fail in CI, where there is no server program."""
    try:
        broker._program(settings.load({}))
    except ConfigError as error:
        missing(str(error))


@pytest.fixture
def stopped_valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """A broker that is not running yet."""
    require_program()
    # tmp_path carries the test's name, which may make the socket's path too long.
    valkey = Valkey(tmp_path_factory.mktemp("valkey"))
    yield valkey
    valkey.kill()


@pytest.fixture
def valkey(stopped_valkey: Valkey) -> Valkey:
    """A running broker."""
    stopped_valkey.start()
    return stopped_valkey
