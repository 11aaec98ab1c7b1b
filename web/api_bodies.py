"""What people send to the API: JSON objects of bounded size, checked before they are used."""

import json
import re
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from callcore.filenames import is_storable
from web.answers import ApiError

T = TypeVar("T", bound=msgspec.Struct)

#: A registration is a handful of ids; a correction holds a few utterances.
MAX_JSON_BYTES = 64 * 1024

_PLACE = re.compile(r"`\$\.(\w+)")
_LACKING = re.compile(r"required field `(\w+)`")


async def body_of(request: Request) -> bytes:
    """Return the body.

    Raises:
        ApiError: 413 if it is too large, 400 if the sender hung up.
    """
    body = bytearray()
    try:
        async for block in request.stream():
            body += block
            if len(body) > MAX_JSON_BYTES:
                raise ApiError(413, "too-large", f"the body is larger than {MAX_JSON_BYTES} bytes")
    except ClientDisconnect:
        raise ApiError(400, "bad-json", "the connection ended before the body did") from None
    return bytes(body)


async def json_object(request: Request) -> dict[str, Any]:
    """Return the object that the body is.

    Raises:
        ApiError: 400, 413 or 415.
    """
    return parsed(request, await body_of(request))


async def optional_json_object(request: Request) -> dict[str, Any]:
    """Return the object that the body is; without a body an empty one.

    Raises:
        ApiError: 400, 413 or 415.
    """
    body = await body_of(request)
    return parsed(request, body) if body else {}


def parsed(request: Request, body: bytes) -> dict[str, Any]:
    """Return the object that a body is.

    Raises:
        ApiError: 415 if it is not called JSON, 400 if it is no object.
    """
    said = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if said != "application/json":
        raise ApiError(415, "not-json", "send a JSON object with Content-Type application/json")
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise ApiError(400, "bad-json", "the body is not JSON") from None
    if not isinstance(value, dict):
        raise ApiError(400, "bad-json", "the body is not a JSON object")
    return value


def typed(given: dict[str, Any], kind: type[T]) -> T:
    """Return an object as its type.

    Raises:
        ApiError: 400 with the field at fault; what it held is not repeated.
    """
    known = [field.encode_name for field in msgspec.structs.fields(kind)]
    for name in given:
        if name not in known:
            raise unknown_field(name, known)
    try:
        return msgspec.convert(given, kind)
    except msgspec.ValidationError as error:
        said = str(error)
        at = _PLACE.search(said) or _LACKING.search(said)
        reason = said.partition(" - at ")[0]
        if reason.startswith("Invalid enum value"):
            reason = "not one of the values that it may have"
        message = reason[:1].lower() + reason[1:]
        raise ApiError(400, "bad-field", message, at[1] if at else None) from None


def unknown_field(name: str, known: list[str] | tuple[str, ...]) -> ApiError:
    """Return the answer to a field that is none."""
    expected = ", ".join(known)
    # Escaped: a name may hold what no answer can be written in.
    return ApiError(400, "unknown-field", f"expected only {expected}", ascii(name[:80])[1:-1])


def require_storable(texts: list[str], field: str) -> None:
    """Refuse texts that no database takes.

    Raises:
        ApiError: 400.
    """
    if not all(map(is_storable, texts)):
        raise ApiError(400, "bad-text", "expected text without NUL and lone surrogates", field)
