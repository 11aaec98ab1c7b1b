"""A multipart upload, written to disk as it arrives: memory stays small whatever its size.

The file goes to a temporary name in the folder where recordings lie and gets its own name, made
by us of chance and content, once all of it is on the disk: whoever finds that name finds the whole
file.
"""

import asyncio
import errno
import hashlib
import os
import re
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request

from web.answers import ApiError

#: A text field is an id, a name or a date.
MAX_FIELD_BYTES = 4096
MAX_FIELDS = 32
#: After so many bytes each the room on the disk is looked at again.
LOOK_EACH_BYTES = 16_000_000
#: RFC 2046, 5.1.1.
_MAX_BOUNDARY_BYTES = 70
#: What the other fields and the boundaries may take beside the file.
_OVERHEAD_BYTES = 256 * 1024
_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,5}")


@dataclass(slots=True)
class Upload:
    """What came."""

    path: Path
    """The file, whole and on the disk; it belongs to the caller now."""
    name: str
    """The sender's name of the file, without folders; may be empty."""
    sha256: str
    size_bytes: int
    fields: dict[str, str] = field(default_factory=dict)
    """The other fields."""


def _no_shortage() -> None:
    return None


async def receive(
    request: Request,
    folder: Path,
    max_bytes: int,
    shortage: Callable[[], str | None] = _no_shortage,
) -> Upload:
    """Store the file of a multipart form.

    Args:
        request: Its body has one part ``file`` and text fields.
        folder: Where the file is stored; made if missing.
        max_bytes: Largest file.
        shortage: Tells what is wrong with the room for recordings; asked again and again while
            the file comes, because others come beside it.

    Raises:
        ApiError: 400 or 415 if it is no such form, 413 if it is too large, 507 if the disk is full
            or has become so.
    """
    boundary = _boundary(request)
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > max_bytes + _OVERHEAD_BYTES:
        raise _too_large(max_bytes)
    name = str(uuid.uuid4())
    partial = folder / f"{name}.part"
    try:
        with await run_in_threadpool(_create, partial) as file:
            form = _Form(boundary, file, max_bytes, shortage)
            await _read(request.stream(), form)
            # The content in the name: a repeated upload is known before the first is settled.
            sha256 = form.sha256.hexdigest()
            path = folder / f"{name}-{sha256}{_suffix(form.name)}"
            await run_in_threadpool(_keep, file, partial, path)
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise ApiError(507, "no-room", "the disk is full: nothing was stored") from None
        raise
    finally:
        # Off the loop: to free gigabytes takes a file system its time. Shielded: a request that is
        # cancelled leaves nothing behind either.
        loop = asyncio.get_running_loop()
        await asyncio.shield(loop.run_in_executor(None, _unlink, partial))
    return Upload(path, form.name, sha256, form.size_bytes, form.fields)


async def _read(stream: AsyncIterator[bytes], form: "_Form") -> None:
    try:
        async for block in stream:
            if block:
                # Parsing, hashing and writing 64 KiB take a millisecond or, on a busy disk, a
                # second: off the loop.
                await run_in_threadpool(form.write, block)
        form.finish()
    except FormParserError as error:
        raise _bad_form(str(error)) from None
    except ClientDisconnect:
        raise _bad_form("the connection ended before the form did") from None


def _boundary(request: Request) -> bytes:
    kind, options = parse_options_header(request.headers.get("content-type"))
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise ApiError(
            415, "not-multipart", "send multipart/form-data with the recording as part `file`"
        )
    if len(boundary) > _MAX_BOUNDARY_BYTES:
        raise _bad_form(f"its boundary is longer than {_MAX_BOUNDARY_BYTES} bytes")
    return boundary


def _bad_form(reason: str) -> ApiError:
    return ApiError(400, "bad-form", f"the multipart form cannot be read: {reason}")


def _too_large(max_bytes: int) -> ApiError:
    return ApiError(
        413,
        "too-large",
        f"the file is larger than {max_bytes / 1e6:g} MB (CALLCORE_UPLOAD_MAX_MB)",
        "file",
    )


def _suffix(name: str) -> str:
    suffix = Path(name).suffix
    return suffix.lower() if _SUFFIX.fullmatch(suffix) else ""


def _create(path: Path) -> BinaryIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("xb")


def _unlink(path: Path) -> None:
    path.unlink(missing_ok=True)


def _keep(file: BinaryIO, partial: Path, path: Path) -> None:
    """Give a written file its name so that it survives a power cut."""
    file.flush()
    os.fsync(file.fileno())
    partial.rename(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class _Form:
    """Takes the parser's callbacks: the file to disk, the fields to memory."""

    def __init__(
        self,
        boundary: bytes,
        file: BinaryIO,
        max_bytes: int,
        shortage: Callable[[], str | None],
    ) -> None:
        self._file = file
        self._max_bytes = max_bytes
        self._shortage = shortage
        self._look_at_bytes = LOOK_EACH_BYTES
        self.sha256 = hashlib.sha256()
        self.size_bytes = 0
        self.name = ""
        self.fields: dict[str, str] = {}
        self._num_parts = 0
        self._complete = False
        self._has_file = False
        self._in_file = False
        self._field = ""
        self._value = bytearray()
        self._header = bytearray()
        self._header_value = bytearray()
        self._disposition = b""
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._part_begins,
                "on_header_field": lambda data, a, b: self._header.extend(data[a:b]),
                "on_header_value": lambda data, a, b: self._header_value.extend(data[a:b]),
                "on_header_end": self._header_ends,
                "on_headers_finished": self._headers_finished,
                "on_part_data": self._part_data,
                "on_part_end": self._part_ends,
                "on_end": self._ends,
            },
        )

    def write(self, block: bytes) -> None:
        self._parser.write(block)

    def finish(self) -> None:
        self._parser.finalize()
        if not self._complete:
            raise _bad_form("it ends in the middle of a part")
        if not self._has_file:
            raise ApiError(400, "no-file", "the form has no part `file`", "file")

    def _part_begins(self) -> None:
        self._num_parts += 1
        if self._num_parts > MAX_FIELDS:
            raise _bad_form(f"more than {MAX_FIELDS} parts")
        self._disposition = b""
        self._value.clear()

    def _header_ends(self) -> None:
        if bytes(self._header).lower() == b"content-disposition":
            self._disposition = bytes(self._header_value)
        self._header.clear()
        self._header_value.clear()

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._field = options.get(b"name", b"").decode("utf-8", "replace")
        self._in_file = self._field == "file"
        if not self._in_file:
            return
        if self._has_file:
            raise ApiError(400, "bad-form", "send one part `file` a request", "file")
        self._has_file = True
        given = options.get(b"filename", b"").decode("utf-8", "replace")
        self.name = re.split(r"[/\\]", given)[-1][:200]

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        part = data[start:end]
        if not self._in_file:
            self._value.extend(part)
            if len(self._value) > MAX_FIELD_BYTES:
                raise _bad_form(f"a field is longer than {MAX_FIELD_BYTES} bytes")
            return
        self.size_bytes += len(part)
        if self.size_bytes > self._max_bytes:
            raise _too_large(self._max_bytes)
        if self.size_bytes > self._look_at_bytes:
            self._look_at_bytes += LOOK_EACH_BYTES
            if lacking := self._shortage():
                raise ApiError(507, "no-room", lacking)
        self.sha256.update(part)
        self._file.write(part)

    def _part_ends(self) -> None:
        if not self._in_file:
            self.fields[self._field] = self._value.decode("utf-8", "replace")

    def _ends(self) -> None:
        self._complete = True
