"""Real workers, a real broker and a database in one folder; tests kill any of them."""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from callcore import intake, settings, tables
from callcore.calls import CallFacts, Media, StepState
from callcore.jobs import Waker
from callcore.storage import Storage
from tests.support.recordings import write_wav
from tests.support.slow import make_model
from tests.support.valkey import Valkey

ROOT = Path(__file__).parents[2]
#: Bound of every wait; what is waited for takes a tenth of it on a busy machine.
PATIENCE_S = 90.0


class House:
    """Workers, a broker and a database in one folder.

    Args:
        valkey: The broker; its folder is the state folder.
        database_url: Of an empty database.
        **given: Settings by their lower-case names.
    """

    def __init__(self, valkey: Valkey, database_url: str, **given: str) -> None:
        self.valkey = valkey
        self.model = make_model(valkey.folder / "model")
        (self.model / "starts").touch()
        own = {
            "database_url": database_url,
            "transcriber": "tests.support.slow:SlowTranscriber",
            "model": str(self.model),
            "lease_s": "3",
            "max_attempts": "50",
            "settle_s": "0",
            "steps": "transcribe",
            "speaker_turns": "off",
            **given,
        }
        self.environ = {
            **valkey.environ,
            "PYTHONFAULTHANDLER": "1",  # where a process died, if nobody killed it
            **{f"CALLCORE_{name.upper()}": value for name, value in own.items()},
        }
        self.settings = settings.load(self.environ)
        self.storage = Storage(database_url)
        self.storage.migrate()
        self.waker = Waker(self.settings)
        self.workers: list[subprocess.Popen[bytes]] = []
        self._numbers = itertools.count()

    def start_worker(self) -> "subprocess.Popen[bytes]":
        worker = self.start("workers")
        self.workers.append(worker)
        return worker

    def start(self, module: str, *arguments: str) -> "subprocess.Popen[bytes]":
        """Start a module of ours in a process group of its own."""
        with (self.valkey.folder / f"{module}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                env={**os.environ, **self.environ},
                cwd=ROOT,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def a_worker(self) -> "subprocess.Popen[bytes]":
        """Return a running worker: an earlier test may have left one."""
        running = [each for each in self.workers if each.poll() is None]
        return running[0] if running else self.start_worker()

    def accept(self, wake: bool = True, backfill: bool = False) -> str:
        number = next(self._numbers)
        path = self.valkey.folder / "files" / f"1700{number:06}.1.wav"
        write_wav(path, seconds=0.5, pitch=200 + number)
        media = [Media("mixed", str(path))]
        accepted = intake.accept_recording(
            self.storage, self.settings, CallFacts(), "spool", media, backfill=backfill
        )
        if wake and accepted.wake:
            self.waker.wake("settle", accepted.audio_id)
        return accepted.audio_id

    def wait_for(self, condition: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
        until = time.monotonic() + patience_s
        while not condition():
            if time.monotonic() > until:
                pytest.fail("waited in vain; the workers said:\n" + self.log())
            time.sleep(0.05)

    def log(self) -> str:
        return (self.valkey.folder / "workers.log").read_text(errors="replace")[-6000:]

    def is_done(self, audio_id: str) -> bool:
        return all(step.status == "done" for step in self.storage.steps(audio_id))

    def num_done(self) -> int:
        """Return how many steps are done."""
        job = tables.Job
        done = job.select(job.step).where(job.state == StepState.DONE)
        return len(self.storage.database.all(done))

    def num_starts(self) -> int:
        return len((self.model / "starts").read_text().splitlines())

    def hold(self) -> None:
        (self.model / "hold").touch()

    def go_on(self) -> None:
        (self.model / "hold").unlink()

    def close(self) -> None:
        for worker in self.workers:
            kill_group(worker)
        self.waker.close()
        self.storage.close()


def kill_group(worker: "subprocess.Popen[bytes]") -> None:
    """Kill -9 a runner with all of its processes."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()
