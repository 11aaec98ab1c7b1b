"""From files that doors named to checked copies in the audio folder.

A file counts as complete when it has not changed for ``settle_s`` and its header agrees with its
size. A writer that was killed leaves a wrong header for ever: after a while the copy is repaired.
Files of the PBX are only read; what lies in the audio folder is ours.
"""

import contextlib
import errno
import hashlib
import logging
import os
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from callcore import audio, filenames
from callcore.calls import Media, Recording
from callcore.errors import AudioError, CallcoreError, InvalidRecording
from callcore.storage.recording_rows import Source, StoredMedia

logger = logging.getLogger(__name__)

#: Seconds for which a file that was announced may be absent before we go on without it: a PBX
#: with ``cache_record_files`` moves it in after the call.
ABSENT_S = 60.0
#: A header that does not fit the size is taken for a killed writer's after so many ``settle_s``.
REPAIR_AFTER = 15.0
#: A time stamp further ahead than this comes from a wrong clock and says nothing, in seconds.
_FUTURE_S = 60.0
_BLOCK_BYTES = 1 << 20
#: Seconds after which a half-made copy is taken for that of a worker that was killed.
_STALE_S = 3600.0
#: A full disk is waited out, see ``chain``; other errors of the system are told and retried.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_GONE = (
    "no file of this recording can be found: was it moved or deleted, or may callcore's user not "
    "look into its folder?"
)
_NO_ACCESS = (errno.EACCES, errno.EPERM)


class NotYet(CallcoreError):
    """A recording is not complete; looking again later is no failed try.

    Args:
        wait_s: Seconds until it is worth looking again.
        reason: What is awaited, for people.
    """

    def __init__(self, wait_s: float, reason: str) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class Gone(AudioError):
    """None of the files that doors named can be found."""


@dataclass(frozen=True, slots=True)
class Site:
    """What settling needs to know of its surroundings."""

    audio_dir: Path
    settle_s: float
    moment: datetime
    """Now, UTC."""


@dataclass(frozen=True, slots=True)
class Settled:
    """What is at hand of a recording."""

    media: list[StoredMedia]
    reason: str | None = None
    """For people: which file is not among ``media`` and why; None if all are."""


def settle(
    recording: Recording, sources: Sequence[Source], stored: Sequence[StoredMedia], site: Site
) -> Settled:
    """Return checked copies of a recording's files.

    Args:
        recording: ``created_at`` and ``audio_id`` tell where the copies go.
        sources: The files that doors named; of several for one role the first that is there.
        stored: What an earlier settling stored.
        site: The surroundings.

    Raises:
        NotYet: If a file is still being written, or announced and not there.
        Gone: If there is no file, and none has come for a while.
        InvalidRecording: If no file can be read as audio.
        AudioError: If the system does not let us read a file or write its copy; that may change.
    """
    waited_s = (site.moment - recording.created_at).total_seconds()
    found = _locate(sources, stored)
    absent = {source.role for source in sources} - found.keys()
    if absent and waited_s < ABSENT_S:
        raise NotYet(min(ABSENT_S - waited_s, max(1.0, site.settle_s)), "a file is not there yet")
    if not found:
        raise Gone(_GONE)
    for candidates in found.values():  # before the first copy: nothing is copied in vain
        _check_complete(candidates[0], site)
    folder = folder_of(recording, site.audio_dir)
    _remove_stale(folder, site.moment)
    media, refused = [], None
    lacking = [f"the {role} file never came" for role in sorted(absent)]
    for role, candidates in sorted(found.items()):
        try:
            media.append(_first_readable(candidates, folder, site))
        except InvalidRecording as error:
            # The leg of a party that never spoke may be empty; the others tell of the call.
            logger.warning("a file cannot be read", extra={"role": role, "reason": str(error)})
            lacking.append(f"the {role} file was left out: {error}")
            refused = error
    if refused is not None and not media:
        raise refused
    return Settled(media, "; ".join(lacking) or None)


def _first_readable(
    candidates: Sequence[Source | StoredMedia], folder: Path, site: Site
) -> StoredMedia:
    for number, each in enumerate(candidates, 1):
        if isinstance(each, StoredMedia):
            return each
        _check_complete(each, site)
        try:
            return _copy(each, folder)
        except InvalidRecording:
            if number == len(candidates):
                raise
    raise AssertionError("a role without candidates was not located")


def folder_of(recording: Recording, audio_dir: Path) -> Path:
    """Return where the files of a recording are stored."""
    return audio_dir / f"{recording.created_at:%Y/%m}" / recording.audio_id


def is_ours(path: str, audio_dir: Path) -> bool:
    """Tell whether a file lies in the audio folder, so that we may repair or remove it."""
    return Path(os.path.normpath(audio_dir)) in Path(os.path.normpath(path)).parents


def with_siblings(sources: Iterable[Source], audio_dir: Path) -> list[Media]:
    """Return files of the same recording that lie beside the named ones and nobody named."""
    named = {source.path for source in sources}
    found = {}
    for source in sources:
        if is_ours(source.path, audio_dir):
            continue
        for path in filenames.siblings(source.path):
            if path not in named and os.path.isfile(path) and not os.path.islink(path):
                role = filenames.parse(path).leg or "mixed"
                found[role] = Media(role, path, source.offset_s)
    return [media for role, media in sorted(found.items())]


def _locate(
    sources: Sequence[Source], stored: Sequence[StoredMedia]
) -> dict[str, list[Source | StoredMedia]]:
    """Return for each role the files that exist, and what is stored of them, best first."""
    found: dict[str, list[Source | StoredMedia]] = {}
    kept = {_said_role(media, sources): media for media in stored if os.path.isfile(media.path)}
    for source in sources:
        candidates = found.setdefault(source.role, [])
        earlier = kept.get(source.role)
        # Stored from a file that is gone, or from another one than this: that stays.
        is_there = os.path.isfile(source.path)
        if (
            earlier
            and earlier not in candidates
            and not (earlier.origin == source.path and is_there)
        ):
            candidates.append(earlier)
        if is_there:
            candidates.append(source)
    return {role: candidates for role, candidates in found.items() if candidates}


def _said_role(media: StoredMedia, sources: Sequence[Source]) -> str:
    """Return the role under which a door named the file: stereo is what we found."""
    return next((each.role for each in sources if each.path == media.origin), media.role)


def _check_complete(file: Source | StoredMedia, site: Site) -> None:
    if isinstance(file, StoredMedia) or is_ours(file.path, site.audio_dir):
        return
    path = Path(file.path)
    with _reading():
        _check_still(path, site)


def _check_still(path: Path, site: Site) -> None:
    status = path.stat()
    age_s = site.moment.timestamp() - max(status.st_mtime, status.st_ctime)
    if -_FUTURE_S < age_s < site.settle_s:
        raise NotYet(max(0.1, site.settle_s - age_s), "the file is still changing")
    patience_s = site.settle_s * REPAIR_AFTER
    # Asterisk writes an empty header first and the right one when it closes the file.
    if -_FUTURE_S < age_s < patience_s and (not status.st_size or audio.wav_needs_repair(path)):
        raise NotYet(max(site.settle_s, 0.1), "the file's header says that it is not finished")


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    with _told("the file cannot be read", "let callcore's user read the file and its folder"):
        yield


@contextlib.contextmanager
def _told(what: str, remedy: str) -> Iterator[None]:
    """Turn an error of the system into one that people can act on, without the file's name."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            raise
        hint = remedy if error.errno in _NO_ACCESS else "look after its disk or share"
        raise AudioError(f"{what} ({error.strerror or type(error).__name__}): {hint}") from error


def _remove_stale(folder: Path, moment: datetime) -> None:
    """Remove what workers that were killed had begun to copy."""
    for partial in folder.glob(".*.part"):
        with contextlib.suppress(OSError):  # another worker may do the same
            if moment.timestamp() - partial.stat().st_mtime > _STALE_S:
                partial.unlink()


def _copy(source: Source, folder: Path) -> StoredMedia:
    """Copy one file into the audio folder, so that the name appears with all of its bytes."""
    with _told("its copy cannot be written", "let callcore's user write to the audio folder"):
        return _copied(source, folder)


def _copied(source: Source, folder: Path) -> StoredMedia:
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{uuid.uuid4().hex}.part"
    try:
        sha256 = _copy_bytes(Path(source.path), partial)
        if audio.wav_needs_repair(partial):
            audio.repair_wav(partial)
            sha256 = _sha256(partial)
        info = audio.probe(partial)
        if info.duration_s <= 0:
            raise InvalidRecording("the file holds no audio")
        role = "stereo" if source.role == "mixed" and info.num_channels == 2 else source.role
        path = folder / f"{role}.{_extension(source, info)}"
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)
    _sync_folder(folder)
    return StoredMedia(
        role=role,
        path=str(path),
        origin=source.path,
        offset_s=source.offset_s,
        sha256=sha256,
        format=info.format,
        num_channels=info.num_channels,
        rate=info.rate,
        duration_s=info.duration_s,
    )


def _extension(source: Source, info: audio.AudioInfo) -> str:
    """Return the extension of the name if there is one: ``gsm`` says more than the container."""
    return filenames.parse(source.original_name or source.path).extension or info.format


def _copy_bytes(source: Path, target: Path) -> str:
    digest = hashlib.sha256()
    with _reading():
        reader = source.open("rb")
    with reader, target.open("xb") as writer:
        while block := _read(reader):
            digest.update(block)
            writer.write(block)
        writer.flush()
        os.fsync(writer.fileno())
    return digest.hexdigest()


def _read(reader: BinaryIO) -> bytes:
    with _reading():
        return reader.read(_BLOCK_BYTES)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(paths: Iterable[str], audio_dir: Path) -> None:
    """Remove files of ours that nobody needs any more; files of the PBX stay."""
    for path in paths:
        if is_ours(path, audio_dir):
            Path(path).unlink(missing_ok=True)
