"""Answers with Range: players seek by asking for the bytes from a place on (RFC 9110, 14)."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from starlette.concurrency import iterate_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from web.answers import ApiError

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
_BLOCK_BYTES = 64 * 1024


class Content(Protocol):
    """Bytes of a known number that can be read from any place."""

    media_type: str
    size_bytes: int

    def read(self, start: int, end: int) -> Iterator[bytes]:
        """Yield the bytes from ``start`` to before ``end``; blocking."""


class FileContent:
    """A file as it is."""

    def __init__(self, path: Path, media_type: str) -> None:
        self._path = path
        self.media_type = media_type
        self.size_bytes = path.stat().st_size

    def read(self, start: int, end: int) -> Iterator[bytes]:
        """Yield the bytes from ``start`` to before ``end``."""
        with self._path.open("rb") as file:
            file.seek(start)
            while start < end and (block := file.read(min(_BLOCK_BYTES, end - start))):
                start += len(block)
                yield block


def ranged(request: Request, content: Content) -> Response:
    """Return the content, or the part of it that the request asks for.

    Raises:
        ApiError: 416 if the part begins after the end.
    """
    size = content.size_bytes
    asked = _range(request.headers.get("range", ""), size)
    start, end = asked or (0, size)
    headers = {"Accept-Ranges": "bytes", "Content-Length": str(end - start)}
    if asked:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    status = 206 if asked else 200
    if request.method == "HEAD":
        return Response(None, status, headers, content.media_type)
    body = iterate_in_threadpool(content.read(start, end))
    return StreamingResponse(body, status, headers, content.media_type)


def _range(header: str, size: int) -> tuple[int, int] | None:
    """Return (start, end) of the one range asked for; None for the whole.

    Several ranges, other units and malformed ones are answered with the whole, as the RFC allows.
    """
    match = _RANGE.fullmatch(header.strip())
    if not match or not any(match.groups()):
        return None
    first, last = match.groups()
    if first:
        start, end = int(first), min(int(last) + 1, size) if last else size
        if last and int(last) < start:
            return None
    else:
        start, end = max(0, size - int(last)), size
    if start >= size or start == end:
        raise ApiError(
            416,
            "range-not-satisfiable",
            f"the recording has {size} bytes",
            headers={"Content-Range": f"bytes */{size}"},
        )
    return start, end
