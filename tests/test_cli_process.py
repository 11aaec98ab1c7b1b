"""``callcore process`` where no model is needed: whose database it uses, and how it ends."""

import contextlib
import dataclasses
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from callcore.cli import process
from callcore.errors import CallcoreError
from tests.support.recordings import make_settings, write_wav
from tests.support.signals import as_from_a_shell

_HOLD = """
import pathlib, sys, time
from callcore import settings
from callcore.cli.process import _ends_in_order, _place
site = settings.load({"CALLCORE_STATE_DIR": sys.argv[1]})
try:
    with _ends_in_order(), _place(site, store=False) as own:
        (own.state_dir / "words.txt").write_text("what somebody said")
        print(own.state_dir, flush=True)
        time.sleep(600)
except KeyboardInterrupt:
    sys.exit(130)
"""


@contextlib.contextmanager
def holding(
    tmp_path: Path, prepare: Callable[[], None] = as_from_a_shell
) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", _HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=prepare) as run:
        try:
            yield run
        finally:
            run.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_run_that_is_told_to_end_leaves_no_words_in_tmp(tmp_path: Path, number: int) -> None:
    with holding(tmp_path) as run:
        assert run.stdout is not None
        folder = Path(run.stdout.readline().strip())
        assert folder.is_dir()
        run.send_signal(number)
        assert run.wait(60) == 130
    assert not folder.exists()


def test_a_hangup_that_is_ignored_stays_ignored(tmp_path: Path) -> None:
    def as_nohup() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    with holding(tmp_path, as_nohup) as run:
        assert run.stdout is not None
        run.stdout.readline()
        run.send_signal(signal.SIGHUP)
        run.send_signal(signal.SIGTERM)
        assert run.wait(60) == 130


def test_the_database_of_a_site_is_not_migrated_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its services, of another version, would go on over tables that they do not know.
    monkeypatch.setattr(process, "batch_engines", lambda _: {"transcriber": lambda: None})
    monkeypatch.setattr(process.log, "in_background", contextlib.nullcontext)
    site = dataclasses.replace(make_settings(tmp_path / "state"), log_level="ERROR")
    with pytest.raises(CallcoreError, match="run `callcore migrate`"):
        process.run(site, [write_wav(tmp_path / "x.wav")], store=True)
