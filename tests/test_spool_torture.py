"""R7: a thousand files, dropped in every way we know: each one recording, none read in part.

``SPOOL_TORTURE_FILES=10000`` is the full size.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from watchdog.events import FileSystemEvent

from callcore import spool
from callcore.calls import Recording, RecordingState
from callcore.spool import Scanner, Watch
from callcore.storage import Storage
from tests.support.recordings import Works, make_settings, write_unfinished_wav, write_wav

SIZE = int(os.environ.get("SPOOL_TORTURE_FILES", "1000"))
#: Bound of every wait.
PATIENCE_S = 60.0 + SIZE / 10

#: Seconds of audio and of waiting: a stall of the machine in the middle of a slow writer is told
#: from its end by the header, for ``settling.REPAIR_AFTER`` times as long.
SETTLE_S = 0.3


class Folder:
    """A spool and what was dropped into it."""

    def __init__(self, root: Path) -> None:
        self.spool = root / "spool"
        self.outside = root / "outside"
        self.spool.mkdir()
        self.outside.mkdir()
        self.durations: dict[str, float] = {}
        """By uniqueid."""
        self.risky: set[str] = set()
        """Those that lay there in part for a while."""

    def drop(self, count: int, put: Callable[[Path, Path], None]) -> None:
        """Have so many recordings of different lengths put into day folders."""
        for _ in range(count):
            number = len(self.durations)
            uniqueid = f"17{number:08}.{number % 7}"
            seconds = self.durations[uniqueid] = 0.1 + number % 40 / 100
            day = self.spool / "2026" / f"{number // 97 % 12:02}" / f"{number // 11:04}"
            source = write_wav(self.outside / f"{uniqueid}.wav", seconds)
            day.mkdir(parents=True, exist_ok=True)
            put(source, day / f"{uniqueid}.wav")
            if put in RISKY:
                self.risky.add(uniqueid)


def copied(source: Path, target: Path) -> None:
    target.write_bytes(source.read_bytes())


def moved(source: Path, target: Path) -> None:
    source.rename(target)


def renamed(source: Path, target: Path) -> None:
    partial = target.with_name(target.name + ".part")
    copied(source, partial)
    partial.rename(target)


def linked(source: Path, target: Path) -> None:
    target.hardlink_to(source)


def truncated(source: Path, target: Path) -> None:
    """Write like a PBX that was killed: the audio is there, its header says none."""
    write_unfinished_wav(target, (source.stat().st_size - 44) / 16000)


def rewritten(source: Path, target: Path) -> None:
    """Open it again and write it anew: two ends of writing for one file."""
    target.write_bytes(source.read_bytes()[:300])
    copied(source, target)


def written_slowly(source: Path, target: Path) -> None:
    content = source.read_bytes()
    with target.open("wb") as writer:
        for start in range(0, len(content), 2000):
            writer.write(content[start : start + 2000])
            writer.flush()
            time.sleep(0.005)  # the writer is slow


RISKY = (truncated, rewritten, written_slowly)


@pytest.fixture
def root() -> Iterator[Path]:
    # Ten thousand commits that wait for a disk measure the disk.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with TemporaryDirectory(dir=memory) as made:
        yield Path(made)


@pytest.fixture
def works(root: Path) -> Iterator[Works]:
    (root / "state").mkdir()
    storage = Storage(f"sqlite:///{root / 'callcore.db'}")
    storage.migrate()
    given = {"spool_dir": root / "spool", "settle_s": SETTLE_S, "steps": "transcribe"}
    yield Works(storage, make_settings(root / "state", **given))
    storage.close()


class Watcher:
    """The spool's process, as a thread."""

    def __init__(self, works: Works) -> None:
        scanner = Scanner(works.storage, works.settings, lambda audio_id: None)
        self._watch = Watch(scanner, works.settings.spool_dir, rescan_s=2.0)
        self._thread = threading.Thread(target=self._watch.run)

    def __enter__(self) -> None:
        self._thread.start()
        assert self._watch.is_watching.wait(PATIENCE_S)

    def __exit__(self, *_: object) -> None:
        self._watch.stop()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.slow
# watchdog 7 warns in its own thread when folders are made faster than it can look.
@pytest.mark.filterwarnings("ignore:Callback with id:RuntimeWarning")
def test_each_file_is_one_recording_and_none_is_read_in_part(
    works: Works, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(root)
    share = SIZE // 10

    def registered() -> bool:
        return len(works.storage.spool_files()) == len(folder.durations)

    folder.drop(2 * share, copied)  # while nobody watches
    with Watcher(works):
        folder.drop(2 * share, copied)
        folder.drop(share, moved)
        folder.drop(share, renamed)
        folder.drop(share, linked)
        folder.drop(share // 2, truncated)
        folder.drop(share // 2, rewritten)
        wait_for(registered)
    folder.drop(share // 2, copied)  # while it is being restarted
    with Watcher(works), monkeypatch.context() as patch:
        folder.drop(share, written_slowly)
        wait_for(registered)
        # A queue that overflows tells of the first events and loses the others.
        told: list[FileSystemEvent] = []
        patch.setattr(spool._Hints, "on_any_event", lambda self, event: told.append(event))
        folder.drop(SIZE - len(folder.durations), copied)
        wait_for(registered)
        assert told

    recordings = every_recording(works)
    assert recordings.keys() == folder.durations.keys()
    assert len(recordings) == SIZE
    audio_ids = [recordings[uniqueid].audio_id for uniqueid in folder.risky]

    def read() -> bool:
        for audio_id in audio_ids:
            works.chain.settle(audio_id)
            works.chain.run_step("transcribe", audio_id)
        return all(
            works.storage.recording(audio_id).state is RecordingState.STORED
            for audio_id in audio_ids
        )

    wait_for(read)
    recordings = every_recording(works)
    durations = {uniqueid: recordings[uniqueid].duration_s for uniqueid in folder.risky}
    assert durations == pytest.approx({each: folder.durations[each] for each in folder.risky})
    assert len(works.engines.calls) == len(folder.risky) == 2 * share


def every_recording(works: Works) -> dict[str, Recording]:
    found, _ = works.storage.recordings(None, SIZE + 9)
    by_id = {each.facts.uniqueid or "?": each for each in found}
    assert len(by_id) == len(found)
    return by_id
