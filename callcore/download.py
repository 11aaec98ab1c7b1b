"""Files from the network: resumed where a connection broke, hashed while they are read.

A file lies under its own name only when it is whole and its hash is right; until then it is
``<name>.part`` beside it, which the next try continues.
"""

import hashlib
import os
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TextIO

import httpx
from tqdm import tqdm

from callcore.errors import DownloadError

#: Seconds to wait for a connection: a site without internet learns quickly that it has none.
CONNECT_TIMEOUT_S = 5.0
#: Seconds without a byte after which a connection counts as broken.
READ_TIMEOUT_S = 30.0
#: Seconds to wait before each new try after a connection broke.
BACKOFF_S = (1.0, 2.0, 4.0, 8.0)

_LARGE_BYTES = 10_000_000


class Progress(Protocol):
    """Who is told how a download goes."""

    def start(self, label: str, total: int | None, done: int) -> None:
        """Begin a file: ``total`` bytes if known, ``done`` of them already here."""

    def advance(self, num_bytes: int) -> None:
        """Count bytes of the file that was begun."""

    def finish(self) -> None:
        """End the file, whole or not."""

    def note(self, line: str) -> None:
        """Show one line for people."""


class PlainProgress:
    """Lines for a log or a pipe: one where a file begins, then one a quarter."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._label = ""
        self._total: int | None = None
        self._done = 0

    def start(self, label: str, total: int | None, done: int) -> None:
        """Begin a file."""
        self._label, self._total, self._done = label, total, done
        resumed = f", {size_text(done)} of it already here" if done else ""
        self.note(f"{label}: {size_text(total) if total else 'size unknown'}{resumed}")

    def advance(self, num_bytes: int) -> None:
        """Print a line where another quarter of a large file is done."""
        before, self._done = self._done, self._done + num_bytes
        if not self._total or self._total < _LARGE_BYTES:
            return
        quarter = self._done * 4 // self._total
        if quarter > before * 4 // self._total:
            self.note(f"{self._label}: {quarter * 25} %")

    def finish(self) -> None:
        """End the file; its last quarter has already been printed."""

    def note(self, line: str) -> None:
        """Print ``line``."""
        print(line, file=self._stream, flush=True)


class BarProgress:
    """A bar for a terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._bar: Any = None

    def start(self, label: str, total: int | None, done: int) -> None:
        """Open a bar."""
        self._bar = tqdm(
            desc=label,
            total=total,
            initial=done,
            unit="B",
            unit_scale=True,
            dynamic_ncols=True,
            file=self._stream,
        )

    def advance(self, num_bytes: int) -> None:
        """Move the bar."""
        self._bar.update(num_bytes)

    def finish(self) -> None:
        """Close the bar and leave it on the screen."""
        self._bar.close()

    def note(self, line: str) -> None:
        """Print ``line`` above the bar."""
        tqdm.write(line, file=self._stream)


def progress_for(stream: TextIO = sys.stderr) -> Progress:
    """Return a bar where ``stream`` is a terminal, plain lines elsewhere."""
    return BarProgress(stream) if stream.isatty() else PlainProgress(stream)


def size_text(num_bytes: int) -> str:
    """Return ``75.5 MB`` for 75,537,502."""
    if num_bytes < 1000:
        return f"{num_bytes} B"
    if num_bytes < 1_000_000:
        return f"{num_bytes / 1000:.0f} kB"
    return f"{num_bytes / 1_000_000:.1f} MB"


def open_client(certificates: Path | None = None) -> httpx.Client:
    """Return an HTTP client that trusts the machine's certificates as well as httpx's own.

    httpx alone trusts only certifi's list, which knows no company's own authority. Proxies come
    from the usual variables.

    Args:
        certificates: One more file of authorities in PEM form, e.g. the one pip is told to use.
    """
    context: ssl.SSLContext = httpx.create_ssl_context()
    context.load_default_certs()
    if certificates is not None and certificates.is_file():
        context.load_verify_locations(certificates)
    return httpx.Client(
        verify=context,
        follow_redirects=True,
        timeout=httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
        # A compressed answer could neither be resumed nor counted.
        headers={"Accept-Encoding": "identity", "User-Agent": "callcore"},
    )


def host_of(url: str) -> str:
    """Return the host of ``url``, without any password in it."""
    return httpx.URL(url).host


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def publish(part: Path, target: Path) -> None:
    """Give a finished ``.part`` file its name so that it survives a power cut."""
    with part.open("rb") as stream:
        os.fsync(stream.fileno())
    part.replace(target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def _shown(progress: Progress, label: str, total: int | None, done: int) -> Iterator[None]:
    progress.start(label, total, done)
    try:
        yield
    finally:
        progress.finish()


class Downloader:
    """Downloads files and tells how it goes.

    Args:
        client: Made by ``open_client``.
        progress: Who is told.
        sleep: Waits between tries; tests pass their own.
    """

    def __init__(
        self,
        client: httpx.Client,
        progress: Progress,
        *,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self.client = client
        self._progress = progress
        self._sleep = sleep

    def get(self, url: str, accept: str) -> httpx.Response:
        """Return a small answer such as an index page.

        Raises:
            DownloadError: If the host is not reached or does not answer 200.
        """
        try:
            answer = self.client.get(url, headers={"Accept": accept})
        except httpx.TransportError as error:
            raise _unreachable(url, error) from error
        if answer.status_code != httpx.codes.OK:
            raise DownloadError(host_of(url), f"answered {answer.status_code}")
        return answer

    def file(
        self, url: str, target: Path, label: str, *, size: int | None, sha256: str | None
    ) -> str:
        """Download ``url`` to ``target`` and return its SHA-256.

        Args:
            url: Where it is.
            target: Where it goes; ``<target>.part`` is continued if it is there.
            label: What people are shown.
            size: Bytes it must have, if known.
            sha256: What its hash must be; without one, nothing earlier is continued.

        Raises:
            DownloadError: If it cannot be had or is not what it should be.
            OSError: If it cannot be written.
        """
        part = target.with_name(target.name + ".part")
        if sha256 is None:
            part.unlink(missing_ok=True)
        continued = part.exists()
        digest = self._whole(url, part, label, size)
        if sha256 not in (None, digest) and continued:
            # What lay here was of another version or damaged.
            part.unlink()
            digest = self._whole(url, part, label, size)
        if sha256 not in (None, digest):
            part.unlink()
            raise DownloadError(host_of(url), f"{target.name} is not what its sha256 says")
        publish(part, target)
        return digest

    def _whole(self, url: str, part: Path, label: str, size: int | None) -> str:
        """Fill ``part`` over as many connections as it takes and return its SHA-256."""
        pauses = iter(BACKOFF_S)
        reached = False
        while True:
            before = _size(part)
            try:
                with part.open("ab") as sink:
                    return self._one_connection(url, sink, part, label, size)
            except (httpx.TransportError, _Interrupted) as error:
                unconnected = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
                reached = reached or not unconnected
                if _size(part) > before:
                    pauses = iter(BACKOFF_S)
                pause = next(pauses, None)
                if pause is None or not reached:
                    raise _unreachable(url, error) from error
                self._progress.note(f"{label}: connection lost, trying again in {pause:g} s")
                self._sleep(pause)

    def _one_connection(
        self, url: str, sink: BinaryIO, part: Path, label: str, size: int | None
    ) -> str:
        done = _size(part)
        if done and size is not None and done >= size:
            if done == size:
                return sha256_of(part)
            sink.truncate(0)
            done = 0
        headers = {"Range": f"bytes={done}-"} if done else {}
        with self.client.stream("GET", url, headers=headers) as answer:
            status = answer.status_code
            if status == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE and done:
                sink.truncate(0)
                raise _Interrupted("the part that was here does not fit")
            if status >= 500 or status == httpx.codes.TOO_MANY_REQUESTS:
                raise _Interrupted(f"answered {status}")
            if status not in (httpx.codes.OK, httpx.codes.PARTIAL_CONTENT):
                raise DownloadError(host_of(url), f"answered {status}")
            if status == httpx.codes.OK and done:  # ranges are not supported there
                sink.truncate(0)
                done = 0
            digest = hashlib.sha256()
            if done:
                with part.open("rb") as stream:
                    digest = hashlib.file_digest(stream, "sha256")
            length = answer.headers.get("Content-Length")
            total = size if size is not None else done + int(length) if length else None
            with _shown(self._progress, label, total, done):
                for block in answer.iter_raw():
                    done += len(block)
                    if size is not None and done > size:
                        raise DownloadError(host_of(url), f"sent more than {size} bytes")
                    sink.write(block)
                    digest.update(block)
                    self._progress.advance(len(block))
        if total is not None and done < total:
            raise _Interrupted("closed early")
        return digest.hexdigest()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


class _Interrupted(Exception):
    """A try ended before the file did."""


def _unreachable(url: str, error: Exception) -> DownloadError:
    reason = str(error) or type(error).__name__
    return DownloadError(host_of(url), f"cannot be reached ({reason})", unreachable=True)
