"""Whether new recordings may be taken: room on the disk, and what may be uploaded in a day.

The floor leaves room for calls in progress and for the database. Nothing that has been accepted is
dropped for want of room: it waits, and goes on by itself when there is some.
"""

import os
import shutil
from datetime import timedelta

from callcore.errors import Refused
from callcore.settings import Settings
from callcore.storage import Storage

_MB = 1_000_000
#: Hours that the quota of uploads is about.
QUOTA_HOURS = 24


def shortage(settings: Settings) -> str | None:
    """Return what is wrong with the room for new recordings, for people; None if nothing is."""
    folder = settings.audio_dir
    while not folder.exists():
        folder = folder.parent
    free_mb = shutil.disk_usage(folder).free // _MB
    if free_mb >= settings.free_floor_mb:
        return None
    return (
        f"the disk of recordings has {free_mb} MB free, and no new ones are taken below "
        f"{settings.free_floor_mb} MB (CALLCORE_FREE_FLOOR_MB)"
    )


def require_room(settings: Settings) -> None:
    """Make sure that the disk has room.

    Raises:
        Refused: ``no-room``.
    """
    if reason := shortage(settings):
        raise Refused("no-room", reason)


def require_quota(storage: Storage, settings: Settings) -> None:
    """Make sure that more may be uploaded today.

    Raises:
        Refused: ``quota-used``.
    """
    if not settings.upload_quota_mb:
        return
    since = storage.clock() - timedelta(hours=QUOTA_HOURS)
    used = sum(_size(path) for path in storage.uploaded_files(since))
    if used >= settings.upload_quota_mb * _MB:
        raise Refused(
            "quota-used",
            f"{used // _MB} MB were uploaded in the last {QUOTA_HOURS} hours, and "
            f"{settings.upload_quota_mb} MB may be (CALLCORE_UPLOAD_QUOTA_MB): try again later",
        )


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
