"""Checks of this machine: what callcore needs without any Asterisk."""

import contextlib
import importlib.util
import os
import shutil
import socket
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path

import httpx
import redis

from callcore import model_store, taxonomies
from callcore.audiosocket import PROBE_UUID, Kind, encode, silence_frame
from callcore.calls import now
from callcore.category_rules import failed_examples
from callcore.consent import Consent
from callcore.doctor.finding import Finding
from callcore.doctor.transcription import check_device, check_endpoint
from callcore.errors import CallcoreError, ConfigError
from callcore.settings import Address, Settings, broker_url
from callcore.storage import Storage

#: An hour of one stereo call is 115 MB; below the first figure a busy day does not fit.
LOW_DISK_BYTES = 5_000_000_000
NO_DISK_BYTES = 200_000_000
TIMEOUT_S = 3.0
#: Folders below the spool that are looked into, and entries of each.
SPOOL_DEPTH = 5
SPOOL_ENTRIES = 10_000
#: What a stream begins with, and a request of Asterisk's: both of the kind that changes nothing.
_PROBE = encode(Kind.UUID, uuid.UUID(PROBE_UUID).bytes)
_PING = b"agi_network: yes\nagi_network_script: ping\n\n"

#: This release came out then: a clock that shows an earlier day is wrong.
RELEASED = datetime(2026, 11, 1, tzinfo=UTC)


def findings(settings: Settings, secret_files: Sequence[Path] = ()) -> Iterator[Finding]:
    """Run all checks, in the order in which a beginner should mend them.

    Args:
        settings: Of the site.
        secret_files: Files that hold secrets of the settings.
    """
    checks: tuple[Callable[[Settings], Finding | None], ...] = (
        _packages,
        _clock,
        _state_folder,
        partial(check_permissions, secret_files=secret_files),
        _disk,
        _models,
        check_device,
        check_endpoint,
        check_taxonomies,
        _database,
        check_consent,
        _broker,
        check_spool,
        _audiosocket,
        _agi,
        _web,
    )
    for check in checks:
        found = check(settings)
        if found is not None:
            yield found


def _packages(settings: Settings) -> Finding:
    home = Path(__file__).parent.parent.parent
    for name in ("workers", "web"):
        spec = importlib.util.find_spec(name)
        origin = Path(spec.origin).parent.parent if spec and spec.origin else None
        if origin != home:
            return Finding(
                "packages",
                "failed",
                f"the package {name} that Python finds is not callcore's",
                "install callcore into a virtual environment of its own",
            )
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding("packages", "ok", f"callcore, workers and web in Python {version}")


def _clock(settings: Settings) -> Finding:
    return clock_finding(now())


def clock_finding(moment: datetime) -> Finding:
    """Judge what this machine's clock shows."""
    shown = f"{moment:%Y-%m-%d %H:%M:%S} UTC"
    if moment < RELEASED:
        detail = f"it shows {shown}, before this callcore was made"
        return Finding("clock", "failed", detail, "set it: `timedatectl set-ntp true`")
    return Finding("clock", "ok", shown)


def _state_folder(settings: Settings) -> Finding:
    for folder in (settings.state_dir, settings.audio_dir):
        problem = _not_writable(folder)
        if problem:
            return Finding(
                "folders", "failed", f"{folder}: {problem}", f"make {folder} writable for this user"
            )
    return Finding("folders", "ok", f"{settings.state_dir} and {settings.audio_dir} are writable")


def _not_writable(folder: Path) -> str | None:
    """Return why files cannot be written into the folder (or made with it); None if they can."""
    nearest = folder
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    if not nearest.is_dir():
        return "is not a folder"
    return None if os.access(nearest, os.W_OK | os.X_OK) else "is not writable"


def check_permissions(settings: Settings, secret_files: Sequence[Path]) -> Finding:
    """Look whether others on this machine can read what callers say, or our secrets."""
    kind, _, path = settings.database_url.partition(":///")
    private = [settings.state_dir / "consent.key", *secret_files]
    if kind == "sqlite":
        private.append(Path(path))
    for file in private:
        with contextlib.suppress(OSError):
            mode = file.stat().st_mode
            # A service's secret may belong to its group; our own key is nobody else's.
            if mode & (0o077 if file.parent == settings.state_dir else 0o007):
                detail = f"others on this machine can read {file}"
                return Finding("permissions", "failed", detail, f"chmod 600 {file}")
    for folder in (settings.state_dir, settings.audio_dir):
        with contextlib.suppress(OSError):
            if folder.stat().st_mode & 0o007:
                detail = f"everybody on this machine can look into {folder}"
                return Finding("permissions", "warning", detail, f"chmod o= {folder}")
    return Finding("permissions", "ok", "secrets and calls are closed to others")


def _disk(settings: Settings) -> Finding:
    nearest = settings.audio_dir
    while not nearest.exists():
        nearest = nearest.parent
    return disk_finding(nearest, shutil.disk_usage(nearest).free)


def disk_finding(folder: Path, free: int) -> Finding:
    """Judge the bytes that are free on the disk of a folder."""
    detail = f"{free / 1e9:.1f} GB free, about {free / 115e6:,.0f} hours of calls"
    if free < NO_DISK_BYTES:
        return Finding("disk", "failed", detail, f"free space on the disk of {folder}")
    if free < LOW_DISK_BYTES:
        return Finding("disk", "warning", detail, f"free space on the disk of {folder}")
    return Finding("disk", "ok", detail)


def _models(settings: Settings) -> Finding:
    names = model_store.used(settings)
    try:
        model_store.verify(settings.models_dir, names)
    except CallcoreError as error:
        return Finding("models", "failed", str(error), "run `callcore models pull`")
    return Finding("models", "ok", ", ".join(names) + " complete, hashes right")


def check_taxonomies(settings: Settings) -> Finding:
    """Judge the taxonomies that the settings name."""
    remedy = "mend the file, or CALLCORE_TAXONOMIES; docs/analysis.md explains the keys"
    try:
        known = taxonomies.load(settings.taxonomies)
    except CallcoreError as error:
        return Finding("taxonomies", "failed", str(error), remedy)
    wrong = [
        f"{name}: rule {rule.id} does not treat its own example as it says: {example!r}"
        for name, taxonomy in zip(settings.taxonomies, known, strict=True)
        for rule in taxonomy.rules
        for example in failed_examples(rule)
    ]
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        return Finding("taxonomies", "failed", wrong[0] + more, remedy)
    names = ", ".join(f"{each.id} {each.version}" for each in known)
    return Finding("taxonomies", "ok", f"{names or 'none'}, rules hold in their examples")


def _database(settings: Settings) -> Finding:
    kind = settings.database_url.partition(":")[0]
    try:
        with contextlib.closing(Storage(settings.database_url)) as storage:
            storage.check_migrated()
    except CallcoreError as error:
        return Finding("database", "failed", str(error), "run `callcore migrate`")
    except Exception as error:  # any driver's own error: the database cannot be used
        reason = type(error).__name__
        remedy = "check CALLCORE_DATABASE_URL, and that the server runs and lets this user in"
        return Finding("database", "failed", f"{kind} cannot be opened ({reason})", remedy)
    return Finding("database", "ok", f"{kind}, migrated")


def check_consent(settings: Settings) -> Finding | None:
    """Judge whether callers who refused can be told from others; None without a database."""
    try:
        with contextlib.closing(Storage(settings.database_url)) as storage:
            storage.check_migrated()
            Consent(storage, settings).is_refused("10")
    except ConfigError as error:
        detail = "nobody can tell which numbers refused analysis: every call with one is refused"
        return Finding("consent", "failed", detail, str(error))
    except Exception:  # the database cannot be used: its own check says why
        return None
    return Finding("consent", "ok", "callers who refused analysis are known")


def _broker(settings: Settings) -> Finding:
    kind = "external broker" if settings.redis_url else "embedded broker"
    client = redis.Redis.from_url(
        broker_url(settings), socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S
    )
    try:
        client.ping()
    except redis.RedisError:
        remedy = "check CALLCORE_REDIS_URL" if settings.redis_url else "start it: `callcore up`"
        return Finding("broker", "failed", f"the {kind} does not answer", remedy)
    finally:
        client.close()
    return Finding("broker", "ok", f"the {kind} answers")


def check_spool(settings: Settings) -> Finding:
    """Judge whether the folder of finished recordings can be read."""
    folder = settings.spool_dir
    if not folder.is_dir():
        remedy = f"`callcore up` creates it, or set CALLCORE_SPOOL_DIR; wanted: {folder}"
        return Finding("spool", "failed", "the spool folder does not exist", remedy)
    if not os.access(folder, os.R_OK | os.X_OK):
        remedy = f"let this user read {folder}, e.g. by the group of Asterisk's user"
        return Finding("spool", "failed", "the spool folder cannot be read", remedy)
    newest = _newest_unreadable(folder)
    if newest is not None:
        remedy = (
            f"let this user read {newest} and what will come beside it, e.g. by the group of\n"
            "Asterisk's user and its umask (UMask=0027 in its systemd unit)"
        )
        return Finding("spool", "failed", f"{newest} cannot be read", remedy)
    return Finding("spool", "ok", f"{folder} is readable")


def _newest_unreadable(folder: Path) -> Path | None:
    """Return what is newest in a folder, or in what is newest there, if we may not read it."""
    with contextlib.suppress(OSError):  # it was there a moment ago
        for _ in range(SPOOL_DEPTH):
            with os.scandir(folder) as entries:
                some = list(islice(entries, SPOOL_ENTRIES))
            if not some:
                break
            newest = max(some, key=lambda entry: entry.stat().st_mtime_ns)
            is_folder = newest.is_dir()
            if not os.access(newest.path, os.R_OK | os.X_OK if is_folder else os.R_OK):
                return Path(newest.path)
            if not is_folder:
                break
            folder = Path(newest.path)
    return None


def _audiosocket(settings: Settings) -> Finding:
    frame = silence_frame()
    return _listener(
        "audiosocket", settings.audiosocket_bind, _PROBE, len(frame), lambda said: said == frame
    )


def _agi(settings: Settings) -> Finding:
    # The route is through once the server closes, without a word.
    return _listener("agi", settings.agi_bind, _PING, 1, lambda said: not said)


def _listener(
    check: str, address: Address, ask: bytes, size: int, is_right: Callable[[bytes], bool]
) -> Finding:
    """Judge what a daemon answers: at most ``size`` bytes of it."""
    said = b""
    try:
        with socket.create_connection((_reachable(address.host), address.port), TIMEOUT_S) as peer:
            try:
                peer.sendall(ask)
                while len(said) < size and (data := peer.recv(size - len(said))):
                    said += data
                answered = is_right(said)
            except OSError:
                answered = False
    except OSError as error:
        detail = f"nothing listens on {address} ({error.strerror or 'timed out'})"
        return Finding(check, "failed", detail, "start it: `callcore up`")
    if not answered:
        detail = f"whoever listens on {address} does not answer as `callcore {check}` does"
        remedy = f"end whatever else has the port, or restart `callcore {check}` if that hangs"
        return Finding(check, "failed", detail, remedy)
    return Finding(check, "ok", f"the daemon answers on {address}")


def _web(settings: Settings) -> Finding:
    address, url = settings.web_bind, web_url(settings)
    try:
        answer = httpx.get(f"{url}/ready", timeout=TIMEOUT_S, trust_env=False)
    except httpx.HTTPError:
        return Finding("web", "failed", f"no answer on {address}", "start it: `callcore up`")
    if answer.status_code != 200:
        detail = f"{address} answers, but is not ready ({answer.status_code})"
        return Finding("web", "failed", detail, f"see {url}/ready for the reason")
    return Finding("web", "ok", f"ready on {url}")


def web_url(settings: Settings) -> str:
    """Return the address of the site's pages on this machine."""
    return f"http://{Address(_reachable(settings.web_bind.host), settings.web_bind.port)}"


def _reachable(host: str) -> str:
    """Return an address that connects to a server bound to ``host``."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
