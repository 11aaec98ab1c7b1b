"""Commands: exit codes, and errors that say what to do, without a traceback or a secret."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from callcore.cli import main


@pytest.fixture(autouse=True)
def _clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No settings but a state folder; afterwards log and umask as they were before."""
    for name in list(os.environ):
        if name.startswith("CALLCORE_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("CALLCORE_STATE_DIR", str(tmp_path / "state"))
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    umask = os.umask(0o022)
    os.umask(umask)
    yield
    os.umask(umask)
    root.handlers[:] = handlers
    root.setLevel(level)


def test_a_wrong_setting_ends_with_2_and_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CALLCORE_WEB_BIND", "8000")
    assert main(["migrate"]) == 2
    assert capsys.readouterr().err == (
        "callcore: CALLCORE_WEB_BIND=8000: expected host:port, e.g. 127.0.0.1:9092\n"
    )


def test_wrong_usage_ends_with_2() -> None:
    with pytest.raises(SystemExit) as caught:
        main(["models", "fetch"])
    assert caught.value.code == 2


def test_migrating_twice_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["migrate"]) == 0
    assert "applied: 0001_initial" in capsys.readouterr().out
    assert main(["migrate"]) == 0
    assert capsys.readouterr().out == "the database is up to date\n"


def test_what_callers_say_is_readable_by_the_owner_only(tmp_path: Path) -> None:
    main(["migrate"])
    database = tmp_path / "state" / "callcore.db"
    assert database.stat().st_mode & 0o077 == 0
    assert database.parent.stat().st_mode & 0o077 == 0


def test_an_unusable_folder_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CALLCORE_STATE_DIR", "/proc/callcore")
    assert main(["migrate"]) == 1
    assert capsys.readouterr().err == "callcore: /proc/callcore: No such file or directory\n"


def test_a_database_that_is_away_is_told_without_its_password(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CALLCORE_DATABASE_URL", "postgresql://u:hunter2@127.0.0.1:1/x")
    assert main(["migrate"]) == 1
    said = capsys.readouterr().err
    assert "the database does not work" in said
    assert "hunter2" not in said


def test_the_doctor_names_a_remedy_for_everything_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CALLCORE_AUDIOSOCKET_BIND", "127.0.0.1:1")
    monkeypatch.setenv("CALLCORE_AGI_BIND", "127.0.0.1:3")
    monkeypatch.setenv("CALLCORE_WEB_BIND", "127.0.0.1:2")
    assert main(["doctor"]) == 1
    lines = capsys.readouterr().out.splitlines()
    failed = [index for index, line in enumerate(lines) if line.startswith("FAILED")]
    names = [lines[index].split()[1] for index in failed]
    assert names == ["models", "database", "broker", "spool", "audiosocket", "agi", "web"]
    assert all(lines[index + 1].strip().startswith("->") for index in failed)


def test_an_unknown_sample_is_told_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--sample", "nonsense"]) == 2
    assert "helpline-distress, silent-stretch, support-billing" in capsys.readouterr().err


def test_a_file_that_cannot_be_played_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"no sound")
    assert main(["play", "--unregistered", str(broken)]) == 1
    assert capsys.readouterr().err.count("\n") == 1
