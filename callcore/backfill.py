"""Recordings that give way: old ones that were handed over in bulk.

A worker process runs one of their steps at a time, and none while live calls need the machine.
"""

import contextlib
import threading
from collections.abc import Iterator

from callcore.storage import Storage


class Backfill:
    """Decides whether a step of a backfilled recording may run now.

    Args:
        storage: Knows which recordings are backfilled, and the load of the daemons.
        max_load: Share of a daemon's decoding time that live calls may take meanwhile.
    """

    def __init__(self, storage: Storage, max_load: float) -> None:
        self._storage = storage
        self._max_load = max_load
        self._running = threading.Lock()

    def concerns(self, audio_id: str) -> bool:
        """Tell whether a recording is a backfilled one; False if there is no such recording."""
        return self._storage.is_backfill(audio_id)

    def must_wait(self) -> bool:
        """Tell whether live calls need the machine."""
        return self._storage.live_load() > self._max_load

    @contextlib.contextmanager
    def turn(self, audio_id: str) -> Iterator[bool]:
        """Enter with whether a step of the recording may run until the exit."""
        if not self.concerns(audio_id):
            yield True
        elif self.must_wait() or not self._running.acquire(blocking=False):
            yield False
        else:
            try:
                yield True
            finally:
                self._running.release()
