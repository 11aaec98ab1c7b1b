"""Settling while disks, hosts and names misbehave: nothing is lost, nothing waits for ever."""

import dataclasses
import errno
import os
import sqlite3
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from callcore import chain, intake, settling, tables
from callcore.calls import SETTLE, CallFacts, Media, RecordingState, StepState, now
from callcore.fetch import AWAY_S
from callcore.settling import FILE_PATIENCE_S
from callcore.storage import Storage
from tests.support.databases import Clock, clock, storage
from tests.support.recording_host import Host, sends, serve
from tests.support.recordings import Works, make_settings, write_wav

__all__ = ["clock", "storage"]

ID = "1700000000.12"


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    """What becomes of files does not depend on the database."""
    return f"sqlite:///{tmp_path / 'callcore.db'}"


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    folder = tmp_path / "spool"
    folder.mkdir()
    return folder


@pytest.fixture
def host() -> Iterator[Host]:
    with serve() as host:
        yield host


@pytest.fixture
def works(storage: Storage, clock: Clock, host: Host, tmp_path: Path, spool: Path) -> Works:
    clock.moment = now() + timedelta(hours=1)  # files have the time stamps of the machine
    given = {
        "spool_dir": spool,
        "recording_hosts": f"127.0.0.1:{host.port}",
        "recording_networks": "127.0.0.0/8",
    }
    return Works(storage, make_settings(tmp_path / "state", **given))


def accept(works: Works, path: Path | str, source: str = "spool", role: str = "mixed") -> str:
    media = [Media(role, str(path))]
    return intake.accept_recording(
        works.storage, works.settings, CallFacts(), source, media
    ).audio_id


def settle_of(works: Works, audio_id: str) -> Any:
    return works.storage.steps(audio_id)[0]


def state_of(works: Works, audio_id: str) -> RecordingState:
    return works.storage.recording(audio_id).state


# ---- files that others need


def test_a_stored_file_that_is_processed_again_stays_where_it_is(
    works: Works, spool: Path, tmp_path: Path
) -> None:
    # `callcore process --store <audio folder>/.../mixed.wav` unlinked the file of the recording.
    first = accept(works, write_wav(spool / f"{ID}-caller.wav"))
    accept(works, write_wav(spool / f"{ID}-agent.wav", pitch=300))
    works.run()
    [caller, _] = works.storage.recording(first).media
    for source in ("process", "upload"):  # even a door whose files are ours
        accept(works, caller.path, source)
        works.run()
        assert Path(caller.path).is_file()


def test_a_capture_that_is_processed_stays_for_its_call(works: Works, clock: Clock) -> None:
    leg_id = "0d9ef5e0-a8f5-4b4e-9f27-3c3b0b9a6f00"
    intake.register_leg(works.storage, leg_id, CallFacts(call_id="c", leg="caller"))
    intake.open_leg(works.storage, works.settings, leg_id)
    path = write_wav(works.settings.audio_dir / "capture" / f"{leg_id}.wav")
    accept(works, path, "process")  # while the call goes on, nothing on record points at it
    works.run()
    assert path.is_file()
    works.storage.end_leg(leg_id, "hangup", str(path))
    accept(works, path, "upload")
    works.run()
    assert path.is_file()


# ---- disks and shares that are away


@pytest.mark.parametrize("code", [errno.ESTALE, errno.EIO, errno.ETIMEDOUT])
def test_a_share_that_is_away_is_waited_for_and_says_so(
    works: Works, spool: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    # Four tries in eleven seconds refused the recordings of every share that was remounted.
    path = write_wav(spool / f"{ID}.wav")
    real = os.stat

    def away(at: Any, *args: Any, **kwargs: Any) -> os.stat_result:
        if str(at) == str(path):
            raise OSError(code, os.strerror(code))
        return real(at, *args, **kwargs)

    audio_id = accept(works, path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", away)
        for _ in range(30):
            works.run()
            clock.move(600)
        settle = settle_of(works, audio_id)
        assert (settle.status, settle.attempts) == (StepState.PENDING, 0)
        assert os.strerror(code) in settle.error
        assert state_of(works, audio_id) is RecordingState.EXPECTED
    clock.move(3600)
    works.run()
    assert state_of(works, audio_id) is RecordingState.STORED


def test_a_share_that_is_away_for_a_day_is_given_up(
    works: Works, spool: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    audio_id = accept(works, write_wav(spool / f"{ID}.wav"))
    monkeypatch.setattr(settling, "_open", away)
    clock.move(AWAY_S)
    for _ in range(4):
        works.chain.settle(audio_id)
        clock.move(60)
    recording = works.storage.recording(audio_id)
    assert recording.state is RecordingState.REFUSED
    assert recording.reason == (
        "the file cannot be read (Input/output error): look after its disk or share"
    )


def test_an_audio_folder_that_cannot_be_looked_at_is_waited_for(
    works: Works, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    audio_id = accept(works, write_wav(spool / f"{ID}.wav"))
    with monkeypatch.context() as patch:
        patch.setattr(chain.admission, "shortage", away)
        works.chain.settle(audio_id)
    settle = settle_of(works, audio_id)
    assert (settle.status, settle.attempts) == (StepState.PENDING, 0)
    assert "Stale file handle" in settle.error


def test_what_is_stored_is_kept_when_its_share_is_away_at_a_later_report(
    works: Works, spool: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    audio_id = accept(works, write_wav(spool / f"{ID}-caller.wav"))
    works.run()
    clock.move(FILE_PATIENCE_S + 1)
    real = settling._open

    def away(path: Path, spool_dir: Path) -> Any:
        if "caller" in path.name:
            raise OSError(errno.EIO, "Input/output error")
        return real(path, spool_dir)

    monkeypatch.setattr(settling, "_open", away)
    accept(works, write_wav(spool / f"{ID}-agent.wav", pitch=300))
    works.run()
    recording = works.storage.recording(audio_id)
    assert [media.role for media in recording.media] == ["caller", "agent"]
    assert all(media.path and Path(media.path).is_file() for media in recording.media)


# ---- one file of several that does not come


def test_a_leg_on_a_host_that_is_away_holds_up_the_mix_for_minutes_not_a_day(
    works: Works, spool: Path, host: Host, clock: Clock
) -> None:
    mixed = accept(works, write_wav(spool / f"{ID}.wav"))
    host.paths[f"/{ID}-caller.wav"] = sends(b"", status=503)
    url = host.url(f"/{ID}-caller.wav", "127.0.0.1")
    fetched = intake.accept_url(works.storage, works.settings, CallFacts(), url)
    assert fetched.audio_id == mixed
    works.run()
    assert state_of(works, mixed) is RecordingState.EXPECTED
    assert works.files() == []  # nothing is copied in vain
    for _ in range(20):
        clock.move(60)
        works.run()
    recording = works.storage.recording(mixed)
    assert recording.state is RecordingState.STORED
    assert [media.role for media in recording.media] == ["mixed"]
    assert "the caller file was not waited for" in str(recording.reason)
    assert "answered 503" in str(recording.reason)

    # Reported again once it is there, it is taken in.
    host.paths[f"/{ID}-caller.wav"] = sends(
        write_wav(spool.parent / "c.wav", pitch=300).read_bytes()
    )
    assert intake.accept_url(works.storage, works.settings, CallFacts(), url).wake
    works.run()
    recording = works.storage.recording(mixed)
    assert ([media.role for media in recording.media], recording.reason) == (
        ["mixed", "caller"],
        None,
    )


def test_a_recording_without_files_waits_for_another_door(
    works: Works, spool: Path, clock: Clock
) -> None:
    # A hook that named a file outside of the spool failed the analysis before the spool saw it.
    made = intake.accept_recording(
        works.storage, works.settings, CallFacts(uniqueid=ID), "agi", [], original_name=f"{ID}.wav"
    )
    works.run()
    assert state_of(works, made.audio_id) is RecordingState.EXPECTED
    assert works.events() == ["step.started settle"]
    assert accept(works, write_wav(spool / f"{ID}.wav")) == made.audio_id
    works.run()
    assert state_of(works, made.audio_id) is RecordingState.STORED
    other = intake.accept_recording(
        works.storage, works.settings, CallFacts(uniqueid="1700000001.1"), "agi", []
    )
    clock.move(settling.ABSENT_S)
    works.run()
    assert state_of(works, other.audio_id) is RecordingState.MISSING


def test_a_fetch_that_its_worker_broke_off_is_due_at_once(
    works: Works, host: Host, clock: Clock
) -> None:
    # Hours after the report the next try came up to an hour after a restart.
    host.paths[f"/{ID}.wav"] = sends(b"", status=503)
    url = host.url(f"/{ID}.wav", "127.0.0.1")
    made = intake.accept_url(works.storage, works.settings, CallFacts(), url)
    works.run()
    clock.move(6 * 3600)
    works.chain.stop()
    works.chain.settle(made.audio_id)
    job = tables.Job.select().where(tables.Job.step == SETTLE)
    [row] = works.storage.database.all(job)
    assert (row["state"], row["due"]) == (StepState.PENDING, clock.moment)


# ---- links


@pytest.mark.parametrize("part", ["file", "folder"])
def test_a_link_that_took_a_files_place_in_the_spool_is_not_followed(
    works: Works, spool: Path, tmp_path: Path, part: str
) -> None:
    # Swapped after it was registered: the audio of any file of this machine was read.
    secret = write_wav(tmp_path / "secret" / f"{ID}.wav", pitch=300)
    path = write_wav(spool / "day" / f"{ID}.wav")
    audio_id = accept(works, path)
    path.unlink()
    if part == "file":
        path.symlink_to(secret)
    else:
        path.parent.rmdir()
        path.parent.symlink_to(secret.parent)
    works.run()
    recording = works.storage.recording(audio_id)
    assert recording.state is RecordingState.REFUSED
    assert "a link" in str(recording.reason)
    assert works.files() == []


def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.wav")
    for folder in (tmp_path, tmp_path / "elsewhere"):
        with pytest.raises(settling.InvalidRecording):
            settling._open(tmp_path / "x.wav", folder)


def test_a_slow_share_keeps_nobody_from_writing(
    works: Works, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Files beside the named ones were looked for inside of a transaction that writes.
    real = settling.with_siblings
    written = []

    def slow(*args: Any) -> Any:
        database = sqlite3.connect(works.storage.database.peewee.database, timeout=0)
        with database:
            written.append(database.execute("UPDATE calls SET queue = 'x'").rowcount)
        database.close()
        return real(*args)

    monkeypatch.setattr(settling, "with_siblings", slow)
    audio_id = accept(works, write_wav(spool / f"{ID}.wav"))
    works.run()
    assert (written, state_of(works, audio_id)) == ([1], RecordingState.STORED)


# ---- legs without sound


def empty_leg(works: Works, spool: Path, source: str) -> str:
    """Report a call whose agent's file has no sound; return the recording."""
    media = [
        Media("caller", str(write_wav(spool / f"{ID}-caller.wav"))),
        Media("agent", str(write_wav(spool / f"{ID}-agent.wav", seconds=0))),
    ]
    accepted = intake.accept_recording(works.storage, works.settings, CallFacts(), source, media)
    return accepted.audio_id


@pytest.mark.parametrize("source", ["agi", "spool"])
def test_an_empty_leg_is_waited_for_only_where_nobody_told_of_the_end(
    works: Works, clock: Clock, spool: Path, source: str
) -> None:
    # One leg that never spoke held up each recording that a hook had reported, for 30 seconds.
    works = Works(works.storage, dataclasses.replace(works.settings, settle_s=2.0))
    clock.moment = now() + timedelta(seconds=5)
    audio_id = empty_leg(works, spool, source)
    works.run()
    is_told = source == "agi"
    stored, expected = RecordingState.STORED, RecordingState.EXPECTED
    assert state_of(works, audio_id) is (stored if is_told else expected)
    clock.move(2 * settling.REPAIR_AFTER)
    works.run()
    assert state_of(works, audio_id) is RecordingState.STORED
    [caller] = works.storage.recording(audio_id).media
    assert caller.role == "caller"
