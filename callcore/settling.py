"""From files that doors named to checked copies in the audio folder.

A file counts as complete when it has not changed for ``settle_s`` and its header agrees with its
size. A writer that was killed leaves a wrong header for ever: after a while the copy is repaired.
Files of the PBX are only read; what lies in the audio folder is ours.
"""

import contextlib
import errno
import hashlib
import logging
import math
import os
import stat
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from callcore import audio, audio_reading, filenames
from callcore.calls import Media, Recording
from callcore.errors import AudioError, CallcoreError, FetchError, InvalidRecording
from callcore.fetch import AWAY_S, Fetcher
from callcore.recording_url import RecordingUrl
from callcore.storage.recording_rows import Source, StoredMedia

logger = logging.getLogger(__name__)

#: Seconds for which a file that was announced may be absent before we go on without it: a PBX
#: with ``cache_record_files`` moves it in after the call.
ABSENT_S = 60.0
#: Seconds after its report for which one file that cannot be had keeps the others waiting.
FILE_PATIENCE_S = 600.0
#: A header that does not fit the size is taken for a killed writer's after so many ``settle_s``.
REPAIR_AFTER = 15.0
#: A time stamp further ahead than this comes from a wrong clock and says nothing, in seconds.
_FUTURE_S = 60.0
_BLOCK_BYTES = 1 << 20
#: Seconds between two tries to fetch a file, or to reach a disk or share: at least, and at most.
_AGAIN_S = (2.0, 3600.0)
#: Name of a fetched file: when it was reported, and what distinguishes it.
_FETCHED_AT = "%Y%m%dT%H%M%SZ"
#: Seconds after which a half-made copy is taken for that of a worker that was killed.
_STALE_S = 3600.0
#: A full disk is waited out, see ``chain``; other errors of the system are told and retried.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
#: What opening a path says that a link is part of.
_IS_LINK = (errno.ELOOP, errno.ENOTDIR)
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
        waited_s: Seconds for which one file has been awaited that may never come: the others do
            not wait for it for ever. 0: there is no end to it, or one of its own.
    """

    def __init__(self, wait_s: float, reason: str, waited_s: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_s = wait_s
        self.waited_s = waited_s


class Gone(AudioError):
    """None of the files that doors named can be found."""


class Away(AudioError):
    """A disk or share does not answer as it should; it may come back by itself."""


@dataclass(frozen=True, slots=True)
class Site:
    """What settling needs to know of its surroundings."""

    audio_dir: Path
    spool_dir: Path
    """Others write here: no link in it is followed."""
    settle_s: float
    moment: datetime
    """Now, UTC."""
    fetcher: Fetcher


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
        NotYet: If a file is still being written, or announced and not there, or if a disk or
            share is away.
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
        if waited_s < ABSENT_S:  # another door may name one
            raise NotYet(ABSENT_S - waited_s, "nobody has named a file of it yet")
        raise Gone(_GONE)
    for candidates in found.values():  # before the first copy: nothing is copied in vain
        with contextlib.suppress(Away):
            _check_complete(candidates[0], site)
    folder = folder_of(recording, site.audio_dir)
    _remove_stale(folder, site.moment)
    media: list[StoredMedia] = []
    awaited: NotYet | None = None
    refused: AudioError | None = None
    lacking = [f"the {role} file never came" for role in sorted(absent)]
    # What has to come over the network first: while that is awaited, nothing is copied in vain.
    for role, candidates in sorted(found.items(), key=lambda each: (_is_here(each[1]), each[0])):
        try:
            media.append(_first_readable(candidates, folder, site, waited_s))
        except NotYet as error:
            if error.waited_s < FILE_PATIENCE_S:
                raise
            lacking.append(f"the {role} file was not waited for any longer: {error.__cause__}")
            awaited = error
        except (InvalidRecording, Gone, Away) as error:
            # The leg of a party that never spoke may be empty; the others tell of the call.
            logger.warning("a file cannot be read", extra={"role": role, "reason": str(error)})
            lacking.append(f"the {role} file was left out: {error}")
            refused = error
    if not media and (failed := awaited or refused):
        raise failed
    return Settled(sorted(media, key=lambda each: each.role), "; ".join(lacking) or None)


def _is_here(candidates: Sequence[Source | StoredMedia]) -> bool:
    return isinstance(candidates[0], StoredMedia) or candidates[0].url is None


def _first_readable(
    candidates: Sequence[Source | StoredMedia], folder: Path, site: Site, waited_s: float
) -> StoredMedia:
    failed: AudioError | NotYet | None = None
    tried: set[str] = set()
    for each in candidates:
        if isinstance(each, StoredMedia):
            # A copy of what was to be read again counts while that cannot be read.
            if each.origin not in tried or _has_been_awaited(failed):
                return each
            continue
        tried.add(each.path)
        try:
            _check_complete(each, site)
            _fetch(each, site)
            return _copy(each, folder, site.spool_dir)
        except (InvalidRecording, Gone) as error:
            if each.url is not None:
                remove([each.path], site.audio_dir)  # another try must fetch it again
            failed = failed if isinstance(failed, NotYet) else error
        except Away as error:
            failed = error
            if waited_s < AWAY_S:
                failed = _later(error, waited_s)
        except NotYet as error:
            if not error.waited_s:
                raise
            failed = error  # of a URL; whatever is here came before it
    assert failed is not None, "a role without candidates was not located"
    raise failed


def _has_been_awaited(failed: Exception | None) -> bool:
    if isinstance(failed, NotYet):
        return failed.waited_s >= FILE_PATIENCE_S
    return isinstance(failed, Away)


def _later(error: Exception, waited_s: float) -> NotYet:
    """Return that something is tried again, later each time."""
    least, most = _AGAIN_S
    wait_s = min(most, max(least, waited_s / 2))
    # Even what was reported this very moment has been awaited: a wait that ends.
    made = NotYet(wait_s, f"{error}; it is tried again", max(waited_s, 0.001))
    made.__cause__ = error
    return made


def later(recording: Recording, error: OSError, moment: datetime) -> NotYet | None:
    """Return that a disk or share that failed is tried again; None if it failed for a day."""
    waited_s = (moment - recording.created_at).total_seconds()
    if waited_s >= AWAY_S or error.errno in _NO_ACCESS:
        return None
    what = f"a disk or share does not work ({error.strerror or type(error).__name__})"
    return _later(Away(what), waited_s)


def fetched_path(audio_dir: Path, url: RecordingUrl, identity: str, moment: datetime) -> Path:
    """Return where the file of a URL goes; its name tells when it was reported.

    Two reports of the same file of one recording differ in that alone.
    """
    key = hashlib.sha256(f"{identity} {url.resource}".encode()).hexdigest()[:32]
    return audio_dir / "fetched" / f"{moment.astimezone(UTC):{_FETCHED_AT}}-{key}"


def _fetch(source: Source, site: Site) -> None:
    """Fetch the file of a source that is a URL, unless all of it is here.

    Raises:
        NotYet: If it may come later.
        Gone: If it did not come for so long that it is not tried again.
        InvalidRecording: If it is refused for good.
    """
    path = Path(source.path)
    if source.url is None or path.is_file():
        return
    _remove_stale(path.parent, site.moment)
    try:
        with _told("the fetched file cannot be written", "let callcore's user write there"):
            got = site.fetcher.fetch(source.url, path)
    except FetchError as error:
        told = f"the recording was not fetched: {error}"
        if not error.retry_s:
            raise InvalidRecording(told) from error
        if math.isinf(error.retry_s):  # we are ending: the next worker does it at once
            raise NotYet(0.0, told) from error
        reported_at = datetime.fromisoformat(path.name.partition("-")[0])
        waited_s = (site.moment - reported_at).total_seconds()
        if waited_s >= error.retry_s:
            raise Gone(f"{told}; report it again when that is mended") from error
        raise _later(FetchError(None, told), waited_s) from error
    logger.info("recording fetched", extra={"bytes": got.size_bytes})


def folder_of(recording: Recording, audio_dir: Path) -> Path:
    """Return where the files of a recording are stored."""
    return folder_at(recording.audio_id, recording.created_at, audio_dir)


def folder_at(audio_id: str, created_at: datetime, audio_dir: Path) -> Path:
    """Return where the files of the recording of that id and creation are stored."""
    return audio_dir / f"{created_at:%Y/%m}" / audio_id


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
    """Return for each role the files that exist, and what is stored of them, best first.

    What would have to be fetched comes last.
    """
    found: dict[str, list[Source | StoredMedia]] = {}
    remote: list[Source] = []
    kept = {_said_role(media, sources): media for media in stored if _may_be_there(media.path)}
    for source in sources:
        candidates = found.setdefault(source.role, [])
        earlier = kept.get(source.role)
        # Stored from a file that is gone, or from another one than this: that stays.
        is_there = _may_be_there(source.path)
        is_read_again = earlier is not None and earlier.origin == source.path and is_there
        if earlier and earlier not in candidates and not is_read_again:
            candidates.append(earlier)
        if is_there:
            candidates.append(source)
        if earlier and earlier not in candidates:
            candidates.append(earlier)
        elif source.url is not None:
            remote.append(source)
    for source in remote:
        found[source.role].append(source)
    return {role: candidates for role, candidates in found.items() if candidates}


def _may_be_there(path: str) -> bool:
    """Tell whether a file is there, or nobody can tell now: then reading it will."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError as error:
        return error.errno not in (errno.ENOENT, errno.ENAMETOOLONG, *_IS_LINK, *_NO_ACCESS)


def _said_role(media: StoredMedia, sources: Sequence[Source]) -> str:
    """Return the role under which a door named the file: stereo is what we found."""
    return next((each.role for each in sources if each.path == media.origin), media.role)


def _check_complete(file: Source | StoredMedia, site: Site) -> None:
    if isinstance(file, StoredMedia) or is_ours(file.path, site.audio_dir):
        return
    path = Path(file.path)
    with _reading():
        _check_still(path, site, is_told=file.source != "spool")


def _check_still(path: Path, site: Site, *, is_told: bool) -> None:
    """Make sure that nobody writes to a file any more.

    Args:
        path: Of the PBX.
        site: The surroundings.
        is_told: Whether somebody reported the file, who knows that its call is over.
    """
    status = path.stat()
    age_s = site.moment.timestamp() - max(status.st_mtime, status.st_ctime)
    if -_FUTURE_S < age_s < site.settle_s:
        raise NotYet(max(0.1, site.settle_s - age_s), "the file is still changing")
    patience_s = site.settle_s * REPAIR_AFTER
    # Asterisk writes an empty header first, then sound every two seconds, and the right header when
    # it closes the file. A leg that never spoke stays empty: only where nobody has told of the end
    # of the call may there be more to come.
    may_begin = not is_told and status.st_size <= audio.WAV_HEADER_BYTES
    if -_FUTURE_S < age_s < patience_s and (may_begin or audio.wav_needs_repair(path)):
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
        told = f"{what} ({error.strerror or type(error).__name__}): "
        if error.errno in _NO_ACCESS:
            raise AudioError(told + remedy) from error
        raise Away(f"{told}look after its disk or share") from error


def _remove_stale(folder: Path, moment: datetime) -> None:
    """Remove what workers that were killed had begun to copy."""
    for partial in folder.glob(".*.part"):
        with contextlib.suppress(OSError):  # another worker may do the same
            if moment.timestamp() - partial.stat().st_mtime > _STALE_S:
                partial.unlink()


def _copy(source: Source, folder: Path, spool_dir: Path) -> StoredMedia:
    """Copy one file into the audio folder, so that the name appears with all of its bytes."""
    with _told("its copy cannot be written", "let callcore's user write to the audio folder"):
        return _copied(source, folder, spool_dir)


def _copied(source: Source, folder: Path, spool_dir: Path) -> StoredMedia:
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{uuid.uuid4().hex}.part"
    try:
        sha256 = _copy_bytes(Path(source.path), partial, spool_dir)
        if audio.wav_needs_repair(partial):
            audio.repair_wav(partial)
            sha256 = _sha256(partial)
        info = audio_reading.probe(partial, filenames.parse(_name(source)).extension)
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
    return filenames.parse(_name(source)).extension or info.format


def _name(source: Source) -> str:
    return source.original_name or source.path


def _copy_bytes(source: Path, target: Path, spool_dir: Path) -> str:
    digest = hashlib.sha256()
    with _reading():
        reader = _open(source, spool_dir)
    with reader, target.open("xb") as writer:
        while block := _read(reader):
            digest.update(block)
            writer.write(block)
        writer.flush()
        os.fsync(writer.fileno())
    return digest.hexdigest()


def _open(path: Path, spool_dir: Path) -> BinaryIO:
    """Open a regular file; of the spool only what lies in it, without a link anywhere below it.

    Whoever may write to the spool may put a link in a file's place after we looked at it.
    """
    below = os.path.relpath(path, spool_dir)
    is_in_spool = below.partition("/")[0] != ".."
    try:
        descriptor = _open_below(spool_dir, below) if is_in_spool else os.open(path, _READ)
    except OSError as error:
        if is_in_spool and error.errno in _IS_LINK:
            raise InvalidRecording("a link stands in its place in the spool") from error
        raise
    file = os.fdopen(descriptor, "rb")
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        file.close()
        raise InvalidRecording("it is no regular file")
    return file


#: A pipe in a file's place must not keep us waiting for somebody who writes to it.
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
_ENTER = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC


def _open_below(folder: Path, path: str) -> int:
    """Return a descriptor of a file; fails where any part of ``path`` is a link."""
    *folders, name = Path(path).parts
    at = os.open(folder, _ENTER)
    try:
        for each in folders:
            inner = os.open(each, _ENTER | os.O_NOFOLLOW, dir_fd=at)
            os.close(at)
            at = inner
        return os.open(name, _READ | os.O_NOFOLLOW, dir_fd=at)
    finally:
        os.close(at)


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
        # What cannot be removed now belongs to nothing: ``retention`` finds it.
        if is_ours(path, audio_dir):
            with contextlib.suppress(OSError):
                Path(path).unlink()
