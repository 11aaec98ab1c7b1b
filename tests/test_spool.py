"""The spool: each file once, none before it is complete, whatever happens around it."""

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import peewee
import pytest

from callcore import spool, tables
from callcore.calls import CallFacts, RecordingState, now
from callcore.log import TextFormatter
from callcore.spool import BACKFILL_AFTER_S, Scanner, Watch, files
from callcore.storage import Storage
from tests.support.databases import Clock, clock, database_url, storage
from tests.support.recordings import Works, make_settings, write_unfinished_wav, write_wav

__all__ = ["clock", "database_url", "storage"]

ID = "1700000000.12"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "spool"
    made.mkdir()
    return made


@pytest.fixture
def works(storage: Storage, tmp_path: Path, folder: Path, clock: Clock) -> Works:
    clock.moment = now()
    return Works(storage, make_settings(tmp_path / "state", spool_dir=folder, settle_s=2))


@pytest.fixture
def woken() -> list[str]:
    return []


@pytest.fixture
def scanner(works: Works, clock: Clock, woken: list[str]) -> Scanner:
    """A scanner to which files are an hour old."""
    clock.move(3600)
    return new_scanner(works, clock, woken)


def new_scanner(works: Works, clock: Clock, woken: list[str]) -> Scanner:
    return Scanner(works.storage, works.settings, woken.append, lambda: clock.moment.timestamp())


def names(works: Works) -> set[str]:
    """Return the stems of all recordings."""
    found, _ = works.storage.recordings(None, 10_000)
    return {each.facts.uniqueid or "?" for each in found}


def count(works: Works) -> int:
    return len(works.storage.recordings(None, 10_000)[0])


class TestScans:
    def test_files_dropped_while_nobody_watched_are_registered_once(
        self, works: Works, folder: Path, clock: Clock, scanner: Scanner, woken: list[str]
    ) -> None:
        for number in range(5):
            write_wav(folder / f"170000000{number}.1.wav")
        assert scanner.scan() is None
        assert count(works) == 5
        assert scanner.scan() is None
        assert new_scanner(works, clock, woken).scan() is None  # after a restart
        assert count(works) == 5
        works.run()
        assert all(
            each.state is RecordingState.STORED for each in works.storage.recordings(None, 9)[0]
        )

    def test_a_new_recording_wakes_a_worker_and_an_old_one_waits_for_its_turn(
        self, works: Works, folder: Path, clock: Clock, woken: list[str]
    ) -> None:
        new = write_wav(folder / "new.wav", pitch=300)
        old = write_wav(folder / "old.wav", pitch=400)
        at = now().timestamp() - BACKFILL_AFTER_S - 60
        os.utime(old, (at, at))
        # Copied a moment ago, but from an archive: its name says when the call began.
        write_wav(folder / f"{ID}.wav", pitch=500)
        clock.move(60)
        new_scanner(works, clock, woken).scan()
        known = works.storage.database.all(tables.SpoolFile.select())
        ids = {row["path"]: row["audio_id"] for row in known}
        is_backfill = {path: works.storage.is_backfill(audio_id) for path, audio_id in ids.items()}
        assert is_backfill == {
            str(new): False,
            str(old): True,
            str(folder / f"{ID}.wav"): True,
        }
        assert woken == [ids[str(new)]]

    def test_names_of_freepbx_tell_of_the_call(
        self, works: Works, folder: Path, scanner: Scanner
    ) -> None:
        name = f"q-6001-0700111222-20231114-151320-{ID}.wav"
        write_wav(folder / "2023" / "11" / "14" / name)
        scanner.scan()
        [recording], _ = works.storage.recordings(None, 9)
        facts = recording.facts
        assert (facts.queue, facts.caller, facts.direction) == ("6001", "0700111222", "in")
        assert facts.started_at is None
        # The second at which Asterisk made the channel, whatever time zone the name is in.
        began = works.storage.call(ID).started_at
        assert began == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)

    def test_a_site_names_its_files_as_it_likes(
        self, works: Works, folder: Path, clock: Clock
    ) -> None:
        settings = dataclasses.replace(
            works.settings, name_pattern=r"(?P<call_id>\w+) (?P<leg>caller|agent) (?P<queue>\w+)"
        )
        for leg, pitch in (("caller", 300), ("agent", 400)):
            write_wav(folder / f"a1 {leg} help.wav", pitch=pitch)
        clock.move(60)
        Scanner(works.storage, settings, print, lambda: clock.moment.timestamp()).scan()
        works.run()
        [recording], _ = works.storage.recordings(None, 9)
        assert [media.role for media in recording.media] == ["caller", "agent"]
        assert recording.facts == CallFacts(call_id="a1", queue="help")

    @pytest.mark.parametrize(
        "extension", ["wav49", "WAV", "gsm", "sln", "sln16", "mp3", "ogg", "opus", "flac"]
    )
    def test_every_format_of_a_pbx_is_taken(
        self, works: Works, folder: Path, scanner: Scanner, extension: str
    ) -> None:
        write_wav(folder / f"{ID}.{extension}")
        scanner.scan()
        assert names(works) == {ID}

    def test_a_file_counts_when_it_has_not_changed_for_a_while(
        self, works: Works, folder: Path, clock: Clock, woken: list[str]
    ) -> None:
        scanner = new_scanner(works, clock, woken)
        write_wav(folder / f"{ID}.wav")
        clock.moment = now()
        wait_s = scanner.scan()
        assert wait_s is not None
        assert 0 < wait_s <= 2
        assert count(works) == 0
        clock.move(wait_s + 0.01)
        assert scanner.scan() is None
        assert names(works) == {ID}

    def test_sub_folders_are_looked_through(
        self, works: Works, folder: Path, scanner: Scanner
    ) -> None:
        write_wav(folder / "2026" / "03" / "04" / f"{ID}.wav")
        scanner.scan()
        assert names(works) == {ID}

    def test_hidden_and_unfinished_names_links_and_devices_are_ignored(
        self, works: Works, folder: Path, tmp_path: Path, scanner: Scanner
    ) -> None:
        outside = write_wav(tmp_path / "secret" / "1700000000.99.wav")
        write_wav(folder / ".hidden" / "1700000000.1.wav")
        for name in (".1.wav", "2.wav.part", "3.wav.TMP", "4.wav~", "5.wav.swp"):
            write_wav(folder / name)
        (folder / "1700000000.6.wav").symlink_to(outside)
        (folder / "linked").symlink_to(outside.parent)
        os.mkfifo(folder / "1700000000.7.wav")
        scanner.scan()
        assert count(works) == 0

    def test_what_is_no_sound_file_is_no_recording(
        self, works: Works, folder: Path, scanner: Scanner
    ) -> None:
        for name in ("notes.txt", "calls.csv", "README", "1700000000.1.wav.md5", "x.w", "x.avwav"):
            (folder / name).write_text("no sound")
        write_wav(folder / f"{ID}.WAV")
        scanner.scan()
        assert names(works) == {ID}

    def test_a_wav_without_sound_is_no_recording_and_a_short_file_of_another_format_is(
        self, works: Works, folder: Path, scanner: Scanner
    ) -> None:
        write_wav(folder / "1700000000.1.wav", seconds=0)
        (folder / f"{ID}.gsm").write_bytes(bytes(33))  # 20 ms of it
        scanner.scan()
        assert names(works) == {ID}

    def test_a_name_that_is_no_utf8_is_told_once_and_holds_up_no_other(
        self,
        works: Works,
        folder: Path,
        scanner: Scanner,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        write_wav(folder / os.fsdecode(b"call \xff.wav"))
        write_wav(folder / f"{ID}.wav")
        for _ in range(3):
            scanner.scan()
        assert names(works) == {ID}
        [record] = caplog.records
        assert "no UTF-8" in vars(record)["reason"]

    def test_files_of_a_folder_that_cannot_be_read_now_are_not_forgotten(
        self, works: Works, folder: Path, scanner: Scanner, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        gone = write_wav(folder / "1700000000.1.wav")
        write_wav(folder / "share" / "1700000000.2.wav")
        scanner.scan()
        before = works.storage.spool_files()
        assert len(before) == 2
        real = os.scandir

        def stale(path: Path) -> object:
            if path.name == "share":
                raise OSError(116, "Stale file handle")
            return real(path)

        with monkeypatch.context() as patch:
            patch.setattr(os, "scandir", stale)
            gone.unlink()
            scanner.scan()
        assert works.storage.spool_files().keys() == before.keys() - {str(gone)}

    def test_a_hard_link_is_a_file(self, works: Works, folder: Path, scanner: Scanner) -> None:
        # Some PBXs move recordings out of their own folder so.
        (folder / f"{ID}.wav").hardlink_to(write_wav(folder.parent / "x.wav"))
        scanner.scan()
        assert names(works) == {ID}

    def test_the_files_of_one_recording_come_together(
        self, works: Works, folder: Path, scanner: Scanner
    ) -> None:
        for leg in ("-caller", "", "-agent"):
            write_wav(folder / f"{ID}{leg}.wav")
        write_wav(folder / "without-ids-caller.wav", pitch=700)
        write_wav(folder / "without-ids-agent.wav", pitch=900)
        scanner.scan()
        assert count(works) == 2
        works.run()
        roles = sorted(
            [media.role for media in each.media] for each in works.storage.recordings(None, 9)[0]
        )
        assert roles == [["caller", "agent"], ["mixed", "caller", "agent"]]

    def test_a_recording_waits_for_the_last_of_its_files(
        self, works: Works, folder: Path, clock: Clock, woken: list[str]
    ) -> None:
        scanner = new_scanner(works, clock, woken)
        write_wav(folder / f"{ID}-caller.wav")
        clock.moment = now()
        clock.move(1.5)
        late = write_wav(folder / f"{ID}-agent.wav")
        ahead = clock.moment.timestamp()
        os.utime(late, (ahead, ahead))  # it was written 1.5 s later
        clock.move(0.6)
        assert scanner.scan() is not None
        assert count(works) == 0

    def test_a_file_that_grew_is_the_same_recording_read_again(
        self, works: Works, folder: Path, scanner: Scanner
    ) -> None:
        path = write_wav(folder / f"{ID}.wav", seconds=1)
        scanner.scan()
        works.run()
        write_wav(path, seconds=4)
        scanner.scan()
        works.run()
        [recording] = works.storage.recordings(None, 9)[0]
        assert recording.duration_s == 4.0
        assert len(works.engines.calls) == 2

    def test_a_truncated_header_is_one_recording_that_is_repaired(
        self, works: Works, folder: Path, scanner: Scanner
    ) -> None:
        write_unfinished_wav(folder / f"{ID}.wav", seconds=2)
        scanner.scan()
        works.run()
        [recording] = works.storage.recordings(None, 9)[0]
        assert recording.duration_s == 2.0

    def test_copies_under_other_names_are_one_recording(
        self, works: Works, folder: Path, scanner: Scanner
    ) -> None:
        for name in ("a.wav", "b.wav", "c/d.wav"):
            write_wav(folder / name)
        scanner.scan()
        works.run()
        assert count(works) == 1
        scanner.scan()
        works.run()
        assert count(works) == 1

    def test_a_removed_file_is_forgotten_and_its_recording_stays(
        self, works: Works, folder: Path, scanner: Scanner
    ) -> None:
        path = write_wav(folder / f"{ID}.wav")
        scanner.scan()
        works.run()
        path.unlink()
        scanner.scan()
        assert works.storage.spool_files() == {}
        assert names(works) == {ID}
        write_wav(path)
        scanner.scan()
        works.run()
        assert count(works) == 1
        assert len(works.engines.calls) == 1

    def test_a_name_that_cannot_be_an_id_is_still_a_recording(
        self, works: Works, folder: Path, scanner: Scanner
    ) -> None:
        write_wav(folder / "Anruf für Müller; rm -rf $HOME '\".wav")
        scanner.scan()
        works.run()
        [recording] = works.storage.recordings(None, 9)[0]
        assert recording.state is RecordingState.STORED

    def test_a_folder_that_cannot_be_read_is_no_error(self, works: Works, tmp_path: Path) -> None:
        assert list(files(tmp_path / "nothing", {})) == []

    def test_one_file_that_cannot_be_registered_hides_no_other(
        self,
        works: Works,
        folder: Path,
        scanner: Scanner,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        # The scan ended at the first one, each time, and what came behind it was never seen.
        real = spool.intake.accept_recording

        def failing(*args: Any, **given: Any) -> Any:
            if "0700123456" in args[4][0].path:
                raise OverflowError("0700123456")
            return real(*args, **given)

        monkeypatch.setattr(spool.intake, "accept_recording", failing)
        for name in ("a", "0700123456", "z"):
            write_wav(folder / f"{name}.wav")
        for _ in range(3):
            scanner.scan()
        assert count(works) == 2
        [record] = [each for each in caplog.records if each.levelname == "ERROR"]
        assert "0700123456" not in str(vars(record))
        monkeypatch.setattr(spool.intake, "accept_recording", real)
        scanner.scan()
        assert count(works) == 3

    def test_a_database_that_is_away_ends_the_scan(
        self, works: Works, folder: Path, scanner: Scanner, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def away(*_: object, **__: object) -> None:
            raise peewee.OperationalError("locked")

        write_wav(folder / "a.wav")
        monkeypatch.setattr(spool.intake, "accept_recording", away)
        with pytest.raises(peewee.OperationalError):
            scanner.scan()

    def test_a_time_stamp_beyond_all_calendars_is_no_error(
        self, works: Works, folder: Path, scanner: Scanner
    ) -> None:
        path = write_wav(folder / "a.wav")
        os.utime(path, (99_999_999_999, 99_999_999_999))  # as far as the file system goes along
        for _ in range(2):
            scanner.scan()
        assert count(works) == 1

    def test_each_of_many_files_is_one_recording(
        self, works: Works, folder: Path, scanner: Scanner
    ) -> None:
        original = write_wav(folder.parent / "original.wav", seconds=0.1)
        for number in range(300):
            target = folder / f"{number % 10}" / f"17{number:08}.1.wav"
            target.parent.mkdir(exist_ok=True)
            target.hardlink_to(original)
        scanner.scan()
        assert len(names(works)) == 300


# watchdog 7 warns in its own thread when folders are made faster than it can look.
@pytest.mark.filterwarnings("ignore:Callback with id:RuntimeWarning")
class TestWatching:
    @pytest.fixture
    def watched(self, works: Works, folder: Path, woken: list[str]) -> Iterator[Works]:
        quick = dataclasses.replace(works.settings, settle_s=0.1)
        scanner = Scanner(works.storage, quick, woken.append)
        watch = Watch(scanner, folder)  # its rescan comes too late to help
        thread = threading.Thread(target=watch.run)
        thread.start()
        assert watch.is_watching.wait(30)
        yield works
        watch.stop()
        thread.join(30)
        assert not thread.is_alive()

    @staticmethod
    def wait_for(condition: Callable[[], bool]) -> None:
        until = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < until
            time.sleep(0.02)

    def test_a_new_file_is_seen(self, watched: Works, folder: Path) -> None:
        write_wav(folder / f"{ID}.wav")
        self.wait_for(lambda: names(watched) == {ID})

    def test_a_file_that_is_moved_in_is_seen(self, watched: Works, folder: Path) -> None:
        write_wav(folder.parent / "elsewhere.wav").rename(folder / f"{ID}.wav")
        self.wait_for(lambda: names(watched) == {ID})

    def test_files_in_new_sub_folders_are_seen(self, watched: Works, folder: Path) -> None:
        for number in range(5):
            write_wav(folder / "2026" / f"{number}" / "x" / f"170000000{number}.1.wav")
        self.wait_for(lambda: len(names(watched)) == 5)
        write_wav(folder / "2026" / "3" / "x" / "1800000000.1.wav")
        self.wait_for(lambda: len(names(watched)) == 6)

    def test_a_file_that_is_renamed_when_it_is_whole_is_seen(
        self, watched: Works, folder: Path
    ) -> None:
        write_wav(folder / f"{ID}.wav.part").rename(folder / f"{ID}.wav")
        self.wait_for(lambda: names(watched) == {ID})

    def test_a_slow_writer_is_waited_for(self, watched: Works, folder: Path) -> None:
        whole = write_wav(folder.parent / "whole.wav", seconds=2).read_bytes()
        with (folder / f"{ID}.wav").open("wb") as writer:
            for start in range(0, len(whole), 4000):
                writer.write(whole[start : start + 4000])
                writer.flush()
                time.sleep(0.02)  # the writer is slow
        self.wait_for(lambda: names(watched) == {ID})
        watched.storage.clock = now
        self.wait_for(lambda: bool(watched.run() or _durations(watched) == [2.0]))

    def test_the_watch_goes_on_after_an_error(
        self, watched: Works, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(spool, "_RETRY_S", 0.1)
        real = watched.storage.spool_files
        failed = threading.Event()

        def away() -> dict[str, tuple[int, int]]:
            failed.set()
            raise ConnectionError("no database")

        monkeypatch.setattr(watched.storage, "spool_files", away)
        write_wav(folder / f"{ID}.wav")
        assert failed.wait(30)
        monkeypatch.setattr(watched.storage, "spool_files", real)
        self.wait_for(lambda: names(watched) == {ID})

    def test_an_error_that_names_a_file_does_not_reach_the_log(
        self, works: Works, folder: Path, woken: list[str], caplog: pytest.LogCaptureFixture
    ) -> None:
        def away() -> dict[str, tuple[int, int]]:
            raise ConnectionError("Failing row contains (0700123456.wav)")

        works.storage.spool_files = away  # type: ignore[method-assign]
        Watch(Scanner(works.storage, works.settings, woken.append), folder)._scan()
        [record] = caplog.records
        assert "0700" not in TextFormatter().format(record)
        assert "ConnectionError at callcore/spool.py:" in vars(record)["error"]

    def test_a_folder_that_cannot_be_watched_is_scanned(
        self, works: Works, folder: Path, woken: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise OSError(28, "inotify watch limit reached")

        monkeypatch.setattr(spool.Observer, "schedule", refuse)
        quick = dataclasses.replace(works.settings, settle_s=0.0)
        watch = Watch(Scanner(works.storage, quick, woken.append), folder, rescan_s=0.1)
        thread = threading.Thread(target=watch.run)
        thread.start()
        write_wav(folder / f"{ID}.wav")
        self.wait_for(lambda: names(works) == {ID})
        watch.stop()
        thread.join(30)


def _durations(works: Works) -> list[float | None]:
    return [each.duration_s for each in works.storage.recordings(None, 9)[0]]


def test_the_command_registers_files_and_ends_when_told_to(
    database_url: str, tmp_path: Path
) -> None:
    storage = Storage(database_url)
    storage.migrate()
    folder = tmp_path / "spool"
    environ = {
        **os.environ,
        "CALLCORE_STATE_DIR": str(tmp_path),
        "CALLCORE_DATABASE_URL": database_url,
        "CALLCORE_SETTLE_S": "0",
    }
    program = (
        "import os, sys; from callcore import settings, spool;"
        "sys.exit(spool.serve(settings.load(os.environ)))"
    )
    root = Path(__file__).parents[1]
    process = subprocess.Popen([sys.executable, "-c", program], env=environ, cwd=root)
    write_wav(folder / f"{ID}.wav")
    TestWatching.wait_for(lambda: len(storage.recordings(None, 9)[0]) == 1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    storage.close()
