"""Argos translation packages on disk: from where they come, and whether they are whole.

A package is a zip of one folder: ``metadata.json`` {package_version, from_code, to_code, ...},
``sentencepiece.model`` or ``bpe.model``, and a CTranslate2 model in ``model/``. Only these files
are unpacked, into ``<models>/argos/translate-<from>_<to>/``; what else a package brings (sentence
splitters, some of them pickles) is not used. The index knows no hashes, so what came is written
down in ``callcore.json``: later damage is seen.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import sys
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from callcore.download import Downloader, Progress, open_client, progress_for, sha256_of, size_text
from callcore.errors import DownloadError, ModelError
from callcore.package_index import pip_settings
from callcore.settings import Settings

#: Folder of the Argos project's list of packages.
DEFAULT_INDEX = "https://raw.githubusercontent.com/argosopentech/argospm-index/main"
#: Folder below the models' where packages are installed.
FOLDER = "argos"

#: Bytes of a package, packed or not: the largest of the index has 0.3 GB.
_LARGEST = 2_000_000_000
#: Entries of a package: the largest of the index has a few dozen.
_MOST_ENTRIES = 1_000
_LARGEST_METADATA = 64_000

_RECORD = "callcore.json"
_SUFFIX = ".argosmodel"
_NAME = re.compile(r"translate-([a-z]{2,3})_([a-z]{2,3})")
_CODE = re.compile(r"[a-z]{2,3}")
_NEEDED = re.compile(
    r"metadata\.json|(?:sentencepiece|bpe)\.model|README\.md|LICENSE|model/[\w.-]+"
)


@dataclass(frozen=True, slots=True)
class ArgosPackage:
    """A package as it lies on this machine."""

    name: str
    """``translate-es_en``."""
    version: str
    """Of the package; empty where its metadata cannot be read."""
    num_bytes: int
    state: str
    """``ready``, or ``damaged``."""
    folder: Path
    bad_files: tuple[str, ...] = ()
    """Files that are missing or not what was installed."""

    @property
    def pair(self) -> tuple[str, str]:
        """Language codes: from, to."""
        source, _, target = self.name.removeprefix("translate-").partition("_")
        return source, target


def is_package(name: str) -> bool:
    """Return whether a name of ``callcore models`` means a package: a pair, or a file's path."""
    return bool(_NAME.fullmatch(name)) or name.endswith(_SUFFIX)


def folder_of(models_dir: Path) -> Path:
    """Return where packages are installed; it need not exist."""
    return models_dir / FOLDER


def index_url(environ: Mapping[str, str] | None = None) -> str:
    """Return the list of packages that ``ARGOS_PACKAGE_INDEX`` names, else the Argos project's."""
    base = (os.environ if environ is None else environ).get("ARGOS_PACKAGE_INDEX") or DEFAULT_INDEX
    return base.rstrip("/") + "/index.json"


def installed(models_dir: Path) -> list[ArgosPackage]:
    """Return the installed packages by name, judged by the sizes of their files."""
    return [_state(each) for each in _folders(models_dir)]


def inspect(models_dir: Path, names: Sequence[str] = ()) -> list[ArgosPackage]:
    """Return installed packages after reading every file and checking its hash.

    Args:
        models_dir: Folder of downloaded models.
        names: Which packages; none: all of them.

    Raises:
        ModelError: If one of ``names`` is not installed.
    """
    wanted = [folder_of(models_dir) / name for name in names] or _folders(models_dir)
    for folder in wanted:
        if not folder.is_dir():
            raise ModelError(folder.name, f"not there: run `callcore models pull {folder.name}`")
    return [_state(folder, read=True) for folder in wanted]


def pull(
    models_dir: Path,
    names: Sequence[str],
    progress: Progress | None = None,
    *,
    index: str | None = None,
) -> list[ArgosPackage]:
    """Install packages and return them; pairs that are whole already are left alone.

    Args:
        models_dir: Folder of downloaded models; made if it is not there.
        names: Pairs such as ``translate-es_en``, or paths of ``.argosmodel`` files.
        progress: Who is told how it goes; None shows it on standard error.
        index: URL of the list of packages; None: ``index_url()``.

    Raises:
        ModelError: If a package cannot be had, is not what a package is, or cannot be stored.
    """
    shown = progress_for() if progress is None else progress
    home = folder_of(models_dir)
    try:
        home.mkdir(parents=True, exist_ok=True)
        with _one_at_a_time(home, shown):
            return [_pulled(home, name, shown, index or index_url()) for name in names]
    except OSError as error:
        reason = error.strerror or str(error)
        raise ModelError(", ".join(names), f"cannot be stored in {home}: {reason}") from error


def run_list(settings: Settings, names: Sequence[str]) -> int:
    """Print the installed packages, or those of ``names``: part of ``models list``."""
    found = installed(settings.models_dir)
    shown = [each for each in found if not names or each.name in names]
    _print_table(shown)
    for name in names:
        if name not in {each.name for each in found}:
            print(f"{name}: missing; run `callcore models pull {name}`")
    return 0


def run_pull(settings: Settings, names: Sequence[str]) -> int:
    """Install packages: part of ``models pull``."""
    try:
        for package in pull(settings.models_dir, names):
            print(f"{package.name}: version {package.version} ready in {package.folder}")
    except ModelError as error:
        print(f"callcore: {error}", file=sys.stderr)
        return 1
    return 0


def run_verify(settings: Settings, names: Sequence[str]) -> int:
    """Read packages and check their hashes: part of ``models verify``."""
    try:
        states = inspect(settings.models_dir, names)
    except ModelError as error:
        print(f"callcore: {error}", file=sys.stderr)
        return 1
    _print_table(states)
    bad = [state.name for state in states if state.state != "ready"]
    if bad:
        print(f"\nRun `callcore models pull {' '.join(bad)}` to set them right.")
    return 1 if bad else 0


def _print_table(packages: Sequence[ArgosPackage]) -> None:
    for each in packages:
        damage = f": {', '.join(each.bad_files)}" if each.bad_files else ""
        print(
            f"{each.name}  translation, Argos package {each.version or '?'}  "
            f"{size_text(each.num_bytes)}  {each.state}{damage}"
        )


def _folders(models_dir: Path) -> list[Path]:
    home = folder_of(models_dir)
    if not home.is_dir():
        return []
    return sorted(each for each in home.iterdir() if each.is_dir() and _NAME.fullmatch(each.name))


def _state(folder: Path, *, read: bool = False) -> ArgosPackage:
    """Return how an installed package stands; ``read`` also checks the hashes."""
    version, size, bad = "", 0, []
    try:
        record = json.loads((folder / _RECORD).read_text("utf-8"))
        version = str(record["version"])
        for file in record["files"]:
            path = folder / file["name"]
            size += file["bytes"]
            whole = path.is_file() and path.stat().st_size == file["bytes"]
            if not whole or (read and sha256_of(path) != file["sha256"]):
                bad.append(str(file["name"]))
    except (OSError, ValueError, KeyError, TypeError):
        bad.append(_RECORD)
    return ArgosPackage(
        folder.name, version, size, "damaged" if bad else "ready", folder, tuple(bad)
    )


@contextmanager
def _one_at_a_time(home: Path, progress: Progress) -> Iterator[None]:
    """Hold the folder's lock; the kernel gives it back when this process ends in any way."""
    with (home / ".pull.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.note("another pull is running: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _pulled(home: Path, name: str, progress: Progress, index: str) -> ArgosPackage:
    if name.endswith(_SUFFIX):
        return install(home, Path(name).expanduser())
    if not _NAME.fullmatch(name):
        raise ModelError(name, "expected translate-<from>_<to>, or the path of an .argosmodel file")
    if (home / name).is_dir() and _state(home / name, read=True).state == "ready":
        return _state(home / name)
    archive = home / f".{name}{_SUFFIX}"
    try:
        _download(name, archive, progress, index)
        return install(home, archive, expected=name)
    finally:
        archive.unlink(missing_ok=True)
        archive.with_name(archive.name + ".part").unlink(missing_ok=True)


class _Capped:
    """Passes on how a download goes, and ends one that is larger than any package."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._left = _LARGEST

    def start(self, label: str, total: int | None, done: int) -> None:
        """Begin a file."""
        self._left = _LARGEST - done
        self._progress.start(label, total, done)

    def advance(self, num_bytes: int) -> None:
        """Count bytes.

        Raises:
            DownloadError: If there are too many.
        """
        self._left -= num_bytes
        if self._left < 0:
            raise DownloadError("the index's host", f"sent more than {size_text(_LARGEST)}")
        self._progress.advance(num_bytes)

    def finish(self) -> None:
        """End the file."""
        self._progress.finish()

    def note(self, line: str) -> None:
        """Show one line."""
        self._progress.note(line)


def _download(name: str, target: Path, progress: Progress, index: str) -> None:
    failures: list[str] = []
    with open_client(pip_settings().certificates) as client:
        downloader = Downloader(client, _Capped(progress))
        try:
            links = _links(name, downloader.get(index, "application/json").json())
        except DownloadError as error:
            failures.append(str(error))
            links = []
        except ValueError as error:
            raise ModelError(name, "the index of packages is not JSON") from error
        for link in links:
            try:
                downloader.file(link, target, name, size=None, sha256=None)
                return
            except DownloadError as error:
                failures.append(str(error))
    raise ModelError(
        name,
        f"{'; '.join(failures)}. Run `callcore models pull {name}` where there is a network, or "
        f"`callcore models pull ./{name}{_SUFFIX}` with a file from another machine",
    )


def _links(name: str, index: Any) -> list[str]:
    """Return the URLs of the newest version of a pair in the index.

    Raises:
        ModelError: If it is not there.
    """
    source, target = _NAME.fullmatch(name).groups()  # type: ignore[union-attr]
    entries = [
        entry
        for entry in (index if isinstance(index, list) else [])
        if isinstance(entry, dict)
        and (entry.get("from_code"), entry.get("to_code")) == (source, target)
        and entry.get("type", "translate") == "translate"
    ]
    newest = max(entries, key=lambda entry: _version(entry.get("package_version")), default={})
    links = [
        link
        for link in newest.get("links") or ()
        if isinstance(link, str) and link.startswith(("https://", "http://"))
    ]
    if not links:
        raise ModelError(name, "the index of Argos packages has no such pair")
    return sorted(links, key=lambda link: not link.startswith("https://"))


def _version(text: object) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", str(text)))


def install(home: Path, archive: Path, *, expected: str | None = None) -> ArgosPackage:
    """Unpack a package into ``home`` and return it; one of the same pair is replaced.

    Args:
        home: Folder of the packages.
        archive: The ``.argosmodel`` file.
        expected: Name that it must turn out to have.

    Raises:
        ModelError: If it is not a package, or one that tries to harm.
        OSError: If it cannot be written.
    """
    label = expected or archive.name
    try:
        with zipfile.ZipFile(archive) as zipped:
            members = _members(label, zipped)
            name, version = _about(label, zipped, members)
            if expected not in (None, name):
                raise ModelError(label, f"the file is {name}, not {expected}")
            part = home / f".{name}.part"
            shutil.rmtree(part, ignore_errors=True)
            try:
                files = _unpack(label, zipped, members, part)
                record = {"name": name, "version": version, "files": files}
                _write(part / _RECORD, json.dumps(record, indent=2).encode() + b"\n")
                _replace(part, home / name)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    except FileNotFoundError as error:
        if archive.exists():
            raise
        raise ModelError(label, "there is no such file") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        # NotImplementedError: a compression that zipfile lacks; RuntimeError: encrypted.
        raise ModelError(label, "not an Argos package, or a damaged one (no whole zip)") from error
    return _state(home / name)


def _members(label: str, zipped: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Return the files of the package's folder that are needed, by name below that folder."""
    entries = zipped.infolist()
    if len(entries) > _MOST_ENTRIES:
        raise ModelError(label, f"has {len(entries)} entries, more than any package")
    tops: set[str] = set()
    members: dict[str, zipfile.ZipInfo] = {}
    for entry in entries:
        path = PurePosixPath(entry.filename)
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if (
            path.is_absolute()
            or "\\" in entry.filename
            or ".." in path.parts
            or kind not in (0, stat.S_IFREG, stat.S_IFDIR)
        ):
            raise ModelError(label, "has an entry that points out of its folder")
        tops.update(path.parts[:1])
        inside = "/".join(path.parts[1:])
        if not entry.is_dir() and _NEEDED.fullmatch(inside):
            members[inside] = entry
    if len(tops) != 1:
        raise ModelError(label, f"holds {len(tops)} folders, expected one")
    missing = {"metadata.json", "model/model.bin"} - members.keys()
    if not {"sentencepiece.model", "bpe.model"} & members.keys():
        missing.add("sentencepiece.model")
    if missing:
        raise ModelError(label, f"lacks {', '.join(sorted(missing))}: not a translation package")
    if sum(entry.file_size for entry in members.values()) > _LARGEST:
        raise ModelError(label, f"unpacks to more than {size_text(_LARGEST)}")
    return members


def _about(
    label: str, zipped: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo]
) -> tuple[str, str]:
    """Return name and version of the package from its metadata."""
    with zipped.open(members["metadata.json"]) as stream:
        text = stream.read(_LARGEST_METADATA + 1)
    try:
        about: Any = json.loads(text) if len(text) <= _LARGEST_METADATA else None
        source, target = about["from_code"], about["to_code"]
        version = str(about.get("package_version", "?"))[:40]
        right = bool(_CODE.fullmatch(source) and _CODE.fullmatch(target)) and source != target
        right = right and about.get("type", "translate") == "translate"
    except (ValueError, KeyError, TypeError, AttributeError):
        right = False
    if not right:
        raise ModelError(label, "its metadata.json names no pair of languages")
    return f"translate-{source}_{target}", version


def _unpack(
    label: str, zipped: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo], folder: Path
) -> list[dict[str, Any]]:
    """Write the members and return what a record of them holds."""
    (folder / "model").mkdir(parents=True)
    files: list[dict[str, Any]] = []
    left = _LARGEST
    for name, entry in sorted(members.items()):
        digest, size = hashlib.sha256(), 0
        with zipped.open(entry) as stream, (folder / name).open("wb") as sink:
            while block := stream.read(1 << 20):
                size += len(block)
                left -= len(block)
                if left < 0:  # the sizes of its directory were a lie
                    raise ModelError(label, f"unpacks to more than {size_text(_LARGEST)}")
                digest.update(block)
                sink.write(block)
            sink.flush()
            os.fsync(sink.fileno())
        files.append({"name": name, "bytes": size, "sha256": digest.hexdigest()})
    return files


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as sink:
        sink.write(content)
        sink.flush()
        os.fsync(sink.fileno())


def _replace(part: Path, folder: Path) -> None:
    """Give a finished folder its name; an engine that has the old one open keeps its files."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    part.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
