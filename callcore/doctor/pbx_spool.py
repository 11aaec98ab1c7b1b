"""Whether Asterisk records where we look, and may write there."""

import grp
import os
import pwd
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from callcore.ami import Ami
from callcore.doctor.finding import Finding
from callcore.settings import Settings

#: Folder of our dialplan's recordings below Asterisk's monitor folder.
DEFAULT_FOLDER = "callcore"

_CHECK = "pbx-spool"
_USER = re.compile(r"User name and group:\s*([^/\s]*)/")
_PID_FILE = re.compile(r"PID file:\s*(\S+)")


def findings(ami: Ami, settings: Settings) -> Iterator[Finding]:
    """Yield whether the two folders are one, and whether Asterisk can write into it."""
    monitor = os.path.join(ami.variable("ASTSPOOLDIR") or "/var/spool/asterisk", "monitor")
    theirs = os.path.join(monitor, ami.variable("CALLCORE_FOLDER") or DEFAULT_FOLDER)
    below = place_below(theirs, settings)
    if below is None:
        watched = settings.pbx_spool_dir or settings.spool_dir
        remedy = (
            f"set CALLCORE_SPOOL_DIR={monitor}; if this machine has that folder under another\n"
            f"path (other host, container), set CALLCORE_SPOOL_DIR to that path and\n"
            f"CALLCORE_PBX_SPOOL_DIR={monitor}"
        )
        detail = f"Asterisk records into {theirs}, outside of the watched {watched}"
        yield Finding(_CHECK, "failed", detail, remedy)
        return
    here = settings.spool_dir / below
    # What is another path there may have other users too.
    if not settings.pbx_spool_dir and settings.ami_address.is_loopback:
        user = _user_of(ami.command("core show settings"))
        nearest = _nearest(here)
        if user is not None and nearest is not None and not may_write(nearest, *user):
            name = _name(user[0])
            detail = f"Asterisk's user {name} cannot write into {nearest}"
            yield Finding(_CHECK, "failed", detail, how_to_open(name, here))
            return
    yield Finding(_CHECK, "ok", f"Asterisk records into {theirs}, which is watched")


def place_below(theirs: str, settings: Settings) -> str | None:
    """Return where Asterisk's folder is below the one that is watched; None if it is not."""
    watched = settings.pbx_spool_dir or str(settings.spool_dir)
    pairs = [(theirs, watched)]
    if not settings.pbx_spool_dir:  # one machine: a link may lead from one to the other
        pairs.append((os.path.realpath(theirs), os.path.realpath(watched)))
    for inner, outer in pairs:
        below = os.path.relpath(os.path.normpath(inner), os.path.normpath(outer))
        if below != ".." and not below.startswith("../"):
            return below
    return None


def how_to_open(name: str, folder: Path) -> str:
    """Return the command that lets a user write there; whatever is around it stays as it is."""
    return f"chown {name} {folder}" if folder.is_dir() else f"install -d -o {name} {folder}"


def _nearest(folder: Path) -> Path | None:
    """Return the folder, or the nearest one around it that there is."""
    for each in (folder, *folder.parents):
        if each.is_dir():
            return each
    return None


def _user_of(shown: Sequence[str]) -> tuple[int, set[int]] | None:
    """Return user and groups that Asterisk runs as; None if nobody can tell."""
    text = "\n".join(shown)
    user, pid_file = _USER.search(text), _PID_FILE.search(text)
    try:
        if user and user[1]:
            return _with_groups(pwd.getpwnam(user[1]).pw_uid)
        # Started by its user itself: the process tells.
        if pid_file:
            pid = int(Path(pid_file[1]).read_text())
            return _with_groups(os.stat(f"/proc/{pid}").st_uid)
    except (KeyError, OSError, ValueError):
        pass
    return None


def _with_groups(uid: int) -> tuple[int, set[int]]:
    entry = pwd.getpwuid(uid)
    return uid, {
        entry.pw_gid,
        *(each.gr_gid for each in grp.getgrall() if entry.pw_name in each.gr_mem),
    }


def _name(uid: int) -> str:
    return pwd.getpwuid(uid).pw_name


def may_write(folder: Path, uid: int, gids: set[int]) -> bool:
    """Tell by mode and owner whether a user may make files in a folder."""
    if uid == 0:
        return True
    about = folder.stat()
    wanted = stat.S_IWOTH | stat.S_IXOTH
    if about.st_uid == uid:
        wanted <<= 6
    elif about.st_gid in gids:
        wanted <<= 3
    return about.st_mode & wanted == wanted
