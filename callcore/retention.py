"""Deletes audio that is older than the site keeps it; the text of the calls stays.

Recordings whose analysis failed go like the others, and so do files in the audio folder that
belong to nothing. The spool is the PBX's: nothing there is touched.
"""

import logging
import os
import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

from callcore import settling
from callcore.settings import Settings
from callcore.storage import Storage

logger = logging.getLogger(__name__)

#: The folders below ``audio_dir`` that callcore makes: one a year, and one a door.
_OURS = re.compile(r"\d{4}|uploads|fetched|capture")
#: Recordings that are looked at in one transaction.
_BATCH = 200


class Retention:
    """Deletes what is older than ``keep_audio_days``; does nothing where that is 0.

    Args:
        storage: The record.
        settings: ``keep_audio_days`` and ``audio_dir``.
    """

    def __init__(self, storage: Storage, settings: Settings) -> None:
        self._storage = storage
        self._folder = settings.audio_dir
        self._days = settings.keep_audio_days

    def sweep(self) -> int:
        """Delete what is due; return the number of files."""
        if not self._days:
            return 0
        before = self._storage.clock() - timedelta(days=self._days)
        # What is being written has no row yet, and may be on hold for a while.
        unused = min(before, self._storage.clock() - timedelta(days=1))
        num_files = self._recordings(before) + self._orphans(unused)
        if num_files:
            logger.info("old audio deleted", extra={"files": num_files, "days": self._days})
        return num_files

    def _recordings(self, before: datetime) -> int:
        reason = f"its audio was deleted after {self._days:g} days (CALLCORE_KEEP_AUDIO_DAYS)"
        num_files = 0
        while True:
            copies, named = self._storage.drop_audio(before, reason, _BATCH)
            if not (copies or named):
                return num_files
            # On record first: a file that a crash leaves behind is an orphan, which goes next time.
            ours = {path for path in named if settling.is_ours(path, self._folder)} | set(copies)
            for path in ours:
                Path(path).unlink(missing_ok=True)
            num_files += len(ours)

    def _orphans(self, before: datetime) -> int:
        wanted = self._storage.audio_files(before)
        num_files = 0
        for path, modified in _files(self._folder):
            if modified < before.timestamp() and path not in wanted:
                Path(path).unlink(missing_ok=True)
                num_files += 1
        return num_files


def _files(folder: Path) -> Iterator[tuple[str, float]]:
    """Yield the path of each file that callcore put into the folder, and when it was written."""
    for at, folders, names in os.walk(folder):
        if Path(at) == folder:
            # Whatever else a site keeps there is not ours to delete.
            folders[:] = [name for name in folders if _OURS.fullmatch(name)]
            continue
        for name in names:
            path = os.path.join(at, name)
            try:
                yield path, os.lstat(path).st_mtime
            except FileNotFoundError:
                continue
