"""The spool folder: finished recordings that a PBX drops, handed to ``intake``.

File-system events are hints, the scan is the truth: a scan at the start, one a minute, and one
whenever events may have been missed. A file counts when it has not changed for ``settle_s`` and is
no WAV that is still being written; what is in it, ``settle`` finds out. Files are left where they
are; a table remembers which were registered and how they looked, so that a restart registers
nothing twice. What was recorded long ago comes as backfill: it gives way to live calls and to new
recordings.
"""

import contextlib
import logging
import os
import signal
import stat
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peewee
from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer

from callcore import filenames, intake, log, settling
from callcore.audio import WAV_HEADER_BYTES, wav_needs_repair
from callcore.calls import CallFacts, Media
from callcore.errors import Refused
from callcore.jobs import Waker
from callcore.settings import Settings
from callcore.storage import Storage

logger = logging.getLogger(__name__)

#: Seconds between two scans of the whole folder.
RESCAN_S = 60.0
#: A recording that was written longer ago than this is backfill, in seconds: it was waiting for us
#: while we were down, or is one of an archive, and newer ones come first.
BACKFILL_AFTER_S = 3600.0
#: The same by the start of its call, where the name tells that: copies may look newer than what
#: is in them. Longer than any call.
_BACKFILL_CALL_S = 86_400.0
#: Seconds between the end of a scan and the next one at least.
PAUSE_S = 0.2
#: Names that writers use until a file is whole; hidden files too.
UNFINISHED = (".part", ".tmp", ".temp", ".filepart", ".crdownload", ".swp", "~")
#: A time stamp further ahead than this comes from a wrong clock and says nothing, in seconds.
_FUTURE_S = 60.0
#: Seconds that the observer gets to stop; its threads end with the process.
_STOP_S = 5.0
#: Seconds after which a scan that failed is tried again.
_RETRY_S = 5.0

#: The largest number of a database, for nanoseconds: the year 2262.
_MAX_NS = 2**63 - 1
_DATABASE_ERRORS = (peewee.OperationalError, peewee.InterfaceError)
_OBSERVED = ("created", "closed", "moved", "deleted")


@dataclass(frozen=True, slots=True)
class Found:
    """A file in the spool."""

    path: str
    size: int
    mtime_ns: int
    changed_at: float
    """Seconds since 1970: when its content or its name last changed."""


class Scanner:
    """Looks through the spool and registers what is complete and new.

    Args:
        storage: The record; remembers what was registered.
        settings: ``spool_dir`` and ``settle_s``.
        wake: Tells a worker of a recording to settle; False if that failed.
        clock: Seconds since 1970.
    """

    def __init__(
        self,
        storage: Storage,
        settings: Settings,
        wake: Callable[[str], object],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._storage = storage
        self._settings = settings
        self._messenger = intake.Messenger(wake)
        self._clock = clock
        self._patterns = filenames.patterns(settings.name_pattern)
        self._unread: set[str] = set()
        self._failed: set[str] = set()

    def scan(self) -> float | None:
        """Register every complete file that is new.

        Returns:
            Seconds until a file that still changes may be complete; None if there is none.
        """
        known = self._storage.spool_files()
        groups: dict[str, list[Found]] = {}
        unread: dict[str, str] = {}
        for found in files(self._settings.spool_dir, unread):
            groups.setdefault(self._group(found.path), []).append(found)
        waits = []
        self._failed &= groups.keys()
        for key, group in groups.items():
            try:
                wait_s = self._look(group, known)
            except _DATABASE_ERRORS:
                raise  # the others would fail too
            except Exception as error:
                # One recording must not hide the others. Its name may be a number.
                if key not in self._failed:
                    text = "a recording of the spool could not be registered"
                    logger.error(text, extra={"error": log.frames(error)})
                self._failed.add(key)
                continue
            self._failed.discard(key)
            if wait_s > 0:
                waits.append(wait_s)
        for path in unread.keys() - self._unread:
            logger.warning("part of the spool cannot be read", extra={"reason": unread[path]})
        self._unread = set(unread)
        gone = known.keys() - {f.path for g in groups.values() for f in g}
        # What we could not look at may be there: forgotten, it would come as a new file.
        self._storage.forget_spool_files(path for path in gone if not _is_below(path, unread))
        return min(waits, default=None)

    def _look(self, group: list[Found], known: Mapping[str, tuple[int, int]]) -> float:
        """Register what is complete and new; return the seconds to wait for what is not."""
        new = [each for each in group if known.get(each.path) != (each.size, each.mtime_ns)]
        if not new:
            return 0.0
        wait_s = max(self._wait_s(each) for each in group)
        if wait_s <= 0:
            self._register(new, renewed=any(each.path in known for each in new))
        return wait_s

    def _wait_s(self, found: Found) -> float:
        age_s = self._clock() - found.changed_at
        wait_s = 0.0 if age_s < -_FUTURE_S else self._settings.settle_s - age_s
        if wait_s <= 0 and age_s < settling.REPAIR_AFTER * self._settings.settle_s:
            with contextlib.suppress(OSError):  # settle will tell
                if wav_needs_repair(found.path):
                    # A call that goes on: MixMonitor writes every two seconds.
                    return self._settings.settle_s or 0.1
        return wait_s

    def _group(self, path: str) -> str:
        """Return what the files of one recording share."""
        name = filenames.parse(path, self._patterns)
        return f"{os.path.dirname(path)}/{name.stem}.{name.extension}"

    def _is_old(self, files: list[Found], facts: CallFacts) -> bool:
        """Tell whether it was recorded so long ago that it gives way to new recordings."""
        moment = self._clock()
        begun = filenames.channel_started_at(facts.linkedid or facts.uniqueid)
        if begun is not None and moment - begun.timestamp() > _BACKFILL_CALL_S:
            return True
        written = max(each.mtime_ns for each in files) / 1e9
        return moment - written > BACKFILL_AFTER_S

    def _register(self, new: list[Found], renewed: bool) -> None:
        names = [filenames.parse(each.path, self._patterns) for each in new]
        media = [
            Media(name.leg or "mixed", each.path) for name, each in zip(names, new, strict=True)
        ]
        seen = [(each.path, each.size, each.mtime_ns) for each in new]
        try:
            # One transaction: a recording whose files are not remembered would come twice.
            with self._storage.database.transaction():
                accepted = intake.accept_recording(
                    self._storage,
                    self._settings,
                    CallFacts(),
                    "spool",
                    media,
                    renewed=renewed,
                    backfill=self._is_old(new, names[0].facts),
                )
                audio_id = None if accepted.is_refused else accepted.audio_id
                self._storage.remember_spool_files(seen, audio_id)
        except Refused as error:
            logger.warning("a file of the spool was refused", extra={"reason": str(error)})
            self._storage.remember_spool_files(seen, None)
            return
        logger.info("recording found", extra={"audio_id": accepted.audio_id, "num_files": len(new)})
        if accepted.wake:
            self._messenger.tell(accepted.audio_id)


def files(folder: Path, unread: dict[str, str]) -> Iterator[Found]:
    """Yield the files in a folder and below it that may be recordings.

    Links are not followed and not read: a spool is writable by others than those whose files a
    link may point at.

    Args:
        folder: Where to look.
        unread: Takes the paths that could not be looked at, and why.
    """
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        unread[str(folder)] = str(error.strerror)
        return
    for entry in entries:
        if entry.name.startswith(".") or entry.name.lower().endswith(UNFINISHED):
            continue
        if not filenames.is_storable(entry.name):
            unread[entry.path] = f"the name of inode {entry.inode()} is no UTF-8: rename it"
            continue
        try:
            if entry.is_dir(follow_symlinks=False):
                yield from files(Path(entry.path), unread)
                continue
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            continue  # it went while we looked
        except OSError as error:
            unread[entry.path] = str(error.strerror)
            continue
        # Notes and lists of files lie in spools too.
        extension = filenames.parse(entry.name).extension
        is_audio = filenames.AUDIO_EXTENSION.fullmatch(extension)
        # MixMonitor begins with a header alone, and leaves it so where nobody answered.
        is_bare = extension == "wav" and 0 < status.st_size <= WAV_HEADER_BYTES
        if is_audio and stat.S_ISREG(status.st_mode) and not is_bare:
            changed_at = max(status.st_mtime, status.st_ctime)
            # File systems know years that databases and clocks do not.
            mtime_ns = min(status.st_mtime_ns, _MAX_NS)
            yield Found(entry.path, status.st_size, mtime_ns, changed_at)


def _is_below(path: str, folders: Iterable[str]) -> bool:
    return any(path == folder or path.startswith(f"{folder}/") for folder in folders)


class _Hints(FileSystemEventHandler):
    def __init__(self, hint: Callable[[], None]) -> None:
        self._hint = hint

    def on_any_event(self, event: FileSystemEvent) -> None:
        if event.event_type in _OBSERVED:
            self._hint()


class Watch:
    """Scans whenever something may be new, until it is stopped.

    Args:
        scanner: What is run.
        folder: Watched with its sub-folders; made if missing.
        rescan_s: Seconds between two scans at most.
    """

    def __init__(self, scanner: Scanner, folder: Path, rescan_s: float = RESCAN_S) -> None:
        self._scanner = scanner
        self._folder = folder
        self._rescan_s = rescan_s
        self._hinted = threading.Event()
        self._stopped = threading.Event()
        self.is_watching = threading.Event()
        """Set once the observer runs, or is known not to."""

    def stop(self) -> None:
        """Let ``run`` return; safe in a signal handler."""
        self._stopped.set()
        self._hinted.set()

    def run(self) -> None:
        """Watch and scan."""
        self._folder.mkdir(parents=True, exist_ok=True)
        observer = self._observe()
        self.is_watching.set()
        try:
            while not self._stopped.is_set():
                self._hinted.clear()
                wait_s = self._scan()
                self._hinted.wait(min(self._rescan_s, wait_s))
                # A thousand files that come at once are one scan or two, not a thousand.
                self._stopped.wait(PAUSE_S)
                if observer is not None and not observer.is_alive():
                    observer = self._observe()
        finally:
            if observer is not None:
                observer.stop()
                observer.join(timeout=_STOP_S)

    def _scan(self) -> float:
        """Scan and return the seconds until the next scan is worth it."""
        try:
            wait_s = self._scanner.scan()
        except Exception as error:
            # The database may be away; the files are not, so the next scan finds them.
            logger.error("the spool could not be scanned", extra={"error": log.frames(error)})
            return _RETRY_S
        return self._rescan_s if wait_s is None else wait_s

    def _observe(self) -> Any:
        """Return a running observer, or None where the system cannot watch: scans go on."""
        observer: Any = Observer()
        try:
            observer.schedule(_Hints(self._hinted.set), str(self._folder), recursive=True)
            observer.start()
        except OSError as error:
            logger.warning(
                "the spool cannot be watched; it is scanned instead",
                extra={"reason": error.strerror, "every_s": self._rescan_s},
            )
            return None
        return observer


def serve(settings: Settings) -> int:
    """Watch the spool until SIGTERM or SIGINT; return the exit code.

    Raises:
        CallcoreError: If the database is not migrated.
    """
    # watchdog 7 warns, with the paths in it, when folders are made faster than it can look.
    warnings.filterwarnings("ignore", "Callback with id", RuntimeWarning)
    storage = Storage(settings.database_url)
    waker = Waker(settings)
    try:
        storage.check_migrated()
        scanner = Scanner(storage, settings, lambda audio_id: waker.wake("settle", audio_id))
        watch = Watch(scanner, settings.spool_dir)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: watch.stop())
        logger.info("watching the spool", extra={"folder": str(settings.spool_dir)})
        watch.run()
    finally:
        waker.close()
        storage.close()
    return 0
