"""Memory that is free in the C heap goes back to the system.

glibc keeps what was freed for whoever asks next. Arrays of every length come and go in the daemon
and most of all in the inference process, and what stays between them grows for hours (measured:
40 MB in one). Giving free pages back now and then holds it down, and takes some milliseconds.
"""

import ctypes
import threading
import time

#: Seconds between two times.
EVERY_S = 20.0


def trim() -> None:
    """Return free pages of the heap; where the C library is not glibc, nothing happens."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)


def keep_small() -> None:
    """Trim the heap from time to time, in a thread of its own, as long as the process lives."""

    def look() -> None:
        while True:
            time.sleep(EVERY_S)
            trim()

    threading.Thread(target=look, name="heap", daemon=True).start()
