"""Recordings from other hosts, fetched so that nobody can make us ask where we should not.

A name is resolved once and exactly the address that was checked is connected to: a resolver that
answers otherwise the second time (DNS rebinding) is never asked a second time. Each redirect is
checked like a first URL. No proxies, cookies or passwords of the environment are used. A file has
its name only when it is whole and on the disk.
"""

import hashlib
import ipaddress
import math
import os
import queue
import re
import socket
import ssl
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import httpcore

from callcore import recording_url
from callcore.errors import FetchError
from callcore.recording_url import RecordingUrl
from callcore.settings import Network, Settings

#: Redirects that are followed.
MAX_REDIRECTS = 3
#: Seconds to wait for a connection, TLS included.
CONNECT_TIMEOUT_S = 10.0
#: Seconds without a byte after which a connection counts as broken.
READ_TIMEOUT_S = 30.0
#: Seconds after the report for which a host that is away is tried again.
AWAY_S = 86_400.0
#: The same for a file that the host does not give out: it may still be on its way there.
ABSENT_S = 600.0

_MAX_ADDRESSES = 4
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_BUSY = frozenset({408, 425, 429})
_TYPES = frozenset(
    {
        "application/octet-stream",
        "binary/octet-stream",
        "application/ogg",
        "application/x-wav",
        "video/ogg",
        "video/mp4",
        "video/webm",
        "video/x-matroska",
        "video/quicktime",
    }
)
#: Lists of addresses of audio: a player that reads one fetches what it names.
_PLAYLIST = re.compile(r"mpegurl|scpls|pls|xspf")
#: Of IPv6, global unicast only (RFC 4291); of that, none that leads elsewhere: 6to4, Teredo and
#: other special ones (2001::/23), documentation. NAT64 (64:ff9b::/96) lies outside of it.
_GLOBAL_V6 = ipaddress.IPv6Network("2000::/3")
_SPECIAL = (
    ipaddress.IPv4Network("192.88.99.0/24"),
    ipaddress.IPv6Network("2001::/23"),
    ipaddress.IPv6Network("2001:db8::/32"),
    ipaddress.IPv6Network("2002::/16"),
    ipaddress.IPv6Network("3fff::/20"),
)

Resolve = Callable[[str, int], Sequence[str]]


@dataclass(frozen=True, slots=True)
class Rules:
    """What may be fetched."""

    hosts: tuple[str, ...]
    networks: tuple[Network, ...]
    """Where else than in the public internet a host may be."""
    max_bytes: int
    timeout_s: float
    """Longest time for one file, with everything."""

    @classmethod
    def of(cls, settings: Settings) -> "Rules":
        """Return the rules of a site."""
        return cls(
            settings.recording_hosts,
            settings.recording_networks,
            settings.upload_max_mb * 1_000_000,
            settings.fetch_timeout_s,
        )


@dataclass(frozen=True, slots=True)
class Fetched:
    """A file that has come."""

    size_bytes: int
    sha256: str


def resolve(host: str, port: int) -> list[str]:
    """Return the addresses of a host, in the order of the system.

    Raises:
        OSError: If there are none.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(each[4][0]) for each in found))


def may_connect(address: str, networks: Sequence[Network]) -> bool:
    """Tell whether an address is in the public internet or in a network that is allowed."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if ip.is_multicast or ip.is_unspecified or "%" in address:
        return False
    if any(ip.version == network.version and ip in network for network in networks):
        return True
    if isinstance(ip, ipaddress.IPv6Address) and ip not in _GLOBAL_V6:
        return False  # among them ::ffff:10.0.0.1, which is an IPv4 address
    special = any(ip.version == network.version and ip in network for network in _SPECIAL)
    return ip.is_global and not ip.is_reserved and not special


def check(url: str, rules: Rules) -> RecordingUrl:
    """Return a URL that may be fetched as far as can be told without resolving its host.

    Raises:
        FetchError: If it may not.
    """
    at = recording_url.parse(url, rules.hosts)
    try:
        ipaddress.ip_address(at.host)
    except ValueError:
        return at
    if not may_connect(at.host, rules.networks):
        raise _private(at.host)
    return at


def _private(host: str) -> FetchError:
    return FetchError(host, "leads to a private or special address (CALLCORE_RECORDING_NETWORKS)")


class Fetcher:
    """Fetches recordings.

    Args:
        rules: What may be fetched.
        resolve: Returns the addresses of a host; tests pass their own.
        authorities: Certificates to trust; by default the system's and certifi's.
        clock: Seconds, monotonic.
        stopped: Whether the process is ending: a fetch under way is given up.
    """

    def __init__(
        self,
        rules: Rules,
        *,
        resolve: Resolve = resolve,
        authorities: ssl.SSLContext | None = None,
        clock: Callable[[], float] = time.monotonic,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self._rules = rules
        self._resolve = resolve
        self._authorities = authorities
        self._clock = clock
        self._stopped = stopped

    def fetch(self, url: str, target: Path) -> Fetched:
        """Fetch a recording to ``target``, which appears with all of its bytes or not at all.

        Raises:
            FetchError: If it may not be had or did not come; ``retry_s`` tells which.
            OSError: If it cannot be written.
        """
        deadline = _Deadline(self._rules.timeout_s, self._clock, self._stopped)
        at = check(url, self._rules)
        for _ in range(MAX_REDIRECTS + 1):
            with _told(at.host, deadline), self._asked(at, deadline) as answer:
                if answer.status not in _REDIRECTS:
                    self._check(answer, at.host)
                    return self._store(answer, at.host, target)
                at = self._redirected(answer, at)
        raise FetchError(at.host, f"redirected more than {MAX_REDIRECTS} times")

    @contextmanager
    def _asked(self, at: RecordingUrl, deadline: "_Deadline") -> Iterator[httpcore.Response]:
        host = f"[{at.host}]" if ":" in at.host else at.host
        is_default = at.port == recording_url.DEFAULT_PORTS[at.scheme]
        headers: dict[bytes | str, bytes | str] = {
            "Host": host if is_default else f"{host}:{at.port}",
            "User-Agent": "callcore",
            "Accept": "audio/*, application/octet-stream, */*;q=0.1",
            # Unpacking would let a small answer fill the disk.
            "Accept-Encoding": "identity",
        }
        url = httpcore.URL(
            scheme=at.scheme.encode(),
            host=at.host.encode(),
            port=at.port,
            target=(at.path + at.query).encode(),
        )
        backend = _Backend(self._resolve, self._rules.networks, deadline)
        with (
            httpcore.ConnectionPool(
                ssl_context=self._authorities, network_backend=backend, http2=False, retries=0
            ) as pool,
            pool.stream("GET", url, headers=headers) as answer,
        ):
            yield answer

    def _redirected(self, answer: httpcore.Response, at: RecordingUrl) -> RecordingUrl:
        location = _header(answer, b"location")
        if not location:
            raise FetchError(at.host, "redirected to nowhere")
        try:
            to = urljoin(str(at), location)
        except ValueError:
            raise FetchError(at.host, "redirected to what is no URL") from None
        made = check(to, self._rules)
        if at.scheme == "https" and made.scheme != "https":
            raise FetchError(at.host, "redirected from https to http")
        return made

    def _check(self, answer: httpcore.Response, host: str) -> None:
        """Refuse what is no recording, before its first byte is read."""
        status = answer.status
        if status != 200:
            said = f"answered {status}"
            if status in _BUSY or status >= 500:
                raise FetchError(host, said, retry_s=AWAY_S)
            raise FetchError(host, said, retry_s=ABSENT_S if 400 <= status < 500 else 0.0)
        if _header(answer, b"content-encoding").lower() not in {"", "identity"}:
            raise FetchError(host, "sent the file compressed, though asked not to")
        if not _is_recording(_header(answer, b"content-type")):
            raise FetchError(host, "sent something that is no audio by its Content-Type")
        declared = _header(answer, b"content-length")
        if declared.isdecimal() and int(declared) > self._rules.max_bytes:
            raise self._too_large(host)

    def _too_large(self, host: str) -> FetchError:
        most = f"{self._rules.max_bytes / 1e6:g} MB (CALLCORE_UPLOAD_MAX_MB)"
        return FetchError(host, f"sent a file larger than {most}")

    def _store(self, answer: httpcore.Response, host: str, target: Path) -> Fetched:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{uuid.uuid4().hex}.part")
        digest = hashlib.sha256()
        size = 0
        try:
            with partial.open("xb") as file:
                for block in answer.iter_stream():
                    size += len(block)
                    if size > self._rules.max_bytes:
                        raise self._too_large(host)
                    digest.update(block)
                    file.write(block)
                if not size:
                    raise FetchError(host, "sent an empty file", retry_s=ABSENT_S)
                file.flush()
                os.fsync(file.fileno())
            partial.rename(target)
        finally:
            partial.unlink(missing_ok=True)
        folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return Fetched(size, digest.hexdigest())


def _header(answer: httpcore.Response, name: bytes) -> str:
    for key, value in answer.headers:
        if key.lower() == name:
            return str(value.decode("utf-8", "replace")).strip()
    return ""


def _is_recording(content_type: str) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    if _PLAYLIST.search(kind):
        return False
    return not kind or kind in _TYPES or kind.startswith("audio/")


# ---- time


class _Deadline:
    """The end of the time that one file may take."""

    def __init__(
        self, seconds: float, clock: Callable[[], float], stopped: Callable[[], bool]
    ) -> None:
        self.seconds = seconds
        self._clock = clock
        self._stopped = stopped
        self._end = clock() + seconds

    @property
    def is_over(self) -> bool:
        return self._clock() >= self._end

    def left(self, most: float) -> float:
        """Return the seconds that one operation may take.

        Raises:
            httpcore.ReadTimeout: If none are left.
            FetchError: If the process is ending.
        """
        if self._stopped():
            raise FetchError(None, "the worker was stopped meanwhile", retry_s=math.inf)
        left = self._end - self._clock()
        if left <= 0:
            raise httpcore.ReadTimeout
        return min(most, left)


@contextmanager
def _told(host: str, deadline: _Deadline) -> Iterator[None]:
    """Turn what goes wrong on the network into one error that names the host alone."""
    try:
        yield
    except httpcore.TimeoutException:
        message = f"took longer than {deadline.seconds:g} s (CALLCORE_FETCH_TIMEOUT_S)"
        if not deadline.is_over:
            message = "did not answer in time"
        raise FetchError(host, message, retry_s=AWAY_S) from None
    except (httpcore.NetworkError, httpcore.ProtocolError) as error:
        raise FetchError(host, _reason(error), retry_s=AWAY_S) from None


def _reason(error: Exception) -> str:
    # The pool of connections raises the error "from None": its cause is only in its arguments.
    cause = error.args[0] if error.args else None
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"has a certificate that is not trusted ({cause.verify_message})"
    if isinstance(cause, ssl.SSLError):
        return f"does not speak TLS as it should ({cause.reason})"
    if isinstance(error, httpcore.ConnectError):
        return f"cannot be reached ({getattr(cause, 'strerror', None) or 'no connection'})"
    return "broke the connection off, or does not speak HTTP"


# ---- the network


class _Backend(httpcore.NetworkBackend):
    """Connects to checked addresses only, in the time that is left."""

    def __init__(self, resolve: Resolve, networks: Sequence[Network], deadline: _Deadline) -> None:
        self._resolve = resolve
        self._networks = networks
        self._deadline = deadline

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        addresses = self._addresses(host, port)
        allowed = [each for each in addresses if may_connect(each, self._networks)]
        if not allowed:
            raise _private(host)
        failed: Exception | None = None
        for address in allowed[:_MAX_ADDRESSES]:
            left = self._deadline.left(CONNECT_TIMEOUT_S)
            try:
                # An address, not a name: nothing is resolved again.
                stream = httpcore.SyncBackend().connect_tcp(address, port, timeout=left)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failed = error
                continue
            return _Stream(stream, self._deadline)
        assert failed is not None
        raise failed

    def _addresses(self, host: str, port: int) -> Sequence[str]:
        """Resolve in a thread: the system's resolver knows no time limit."""
        answers: queue.SimpleQueue[Sequence[str] | Exception] = queue.SimpleQueue()

        def ask() -> None:
            try:
                answers.put(self._resolve(host, port))
            except (OSError, UnicodeError) as error:
                answers.put(error)

        threading.Thread(target=ask, name="resolve", daemon=True).start()
        try:
            found = answers.get(timeout=self._deadline.left(CONNECT_TIMEOUT_S))
        except queue.Empty:
            raise httpcore.ConnectTimeout from None
        if isinstance(found, Exception) or not found:
            raise FetchError(host, "is not known to the name server", retry_s=AWAY_S)
        return found


class _Stream(httpcore.NetworkStream):
    """A connection whose every operation ends with the deadline, however little it moves."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: _Deadline) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._deadline.left(READ_TIMEOUT_S))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, self._deadline.left(READ_TIMEOUT_S))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        left = self._deadline.left(CONNECT_TIMEOUT_S)
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, left), self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
