"""The OpenAPI 3.1 document, made from the routes, the operations and the types of the API."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

import callcore
from callcore.events import FIELDS
from callcore.settings import Settings
from web import api_types as types
from web.api_operations import (
    EVENTS,
    FORM,
    GROUPS,
    JSON,
    OPERATIONS,
    PATH_PARTS,
    Answer,
    Body,
    Operation,
    Parameter,
)
from web.hooks import HUB_SIGNATURE, SIGNATURE
from web.security import COOKIE, HOOK_PATH, is_api
from web.site import site_of

_REF = "#/components/schemas/{name}"
_PART = re.compile(r"{(\w+)}")
_HEADERS = {
    "Accept-Ranges": "`bytes`.",
    "Content-Range": "Which bytes of how many.",
    "Retry-After": "Seconds after which it is worth trying again.",
    "WWW-Authenticate": "`Bearer`.",
}
#: Headers of answers that say no.
_HEADERS_OF_STATUS = {401: ("WWW-Authenticate",), 416: ("Content-Range",)}

_ABOUT = (
    "JSON in and out. Times of calls are float seconds from the start of the call; moments are "
    "ISO 8601 in UTC. What is not known is null. Every answer that says no is "
    '`{"error": {"code", "message", "field"}}`. Every GET answers HEAD too.'
)


async def answer(request: Request) -> Response:
    """``GET /openapi.json``."""
    settings = site_of(request).settings
    return await run_in_threadpool(
        lambda: JSONResponse(document(request.app.routes, settings)),
    )


def document(routes: Iterable[BaseRoute], settings: Settings) -> dict[str, Any]:
    """Return the OpenAPI document of a site.

    Args:
        routes: The site's; those for people are left out.
        settings: Decide who may ask.

    Raises:
        KeyError: If a route for programs is not described in ``api_operations``.
    """
    paths: dict[str, dict[str, Any]] = {}
    for path, method in described(routes):
        operation = OPERATIONS[method, path]
        paths.setdefault(path, {})[method.lower()] = _operation(path, operation, settings)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "callcore",
            "version": callcore.__version__,
            "description": _ABOUT,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": text} for name, text in GROUPS.items()],
        "paths": paths,
        "components": {"schemas": _schemas(), "securitySchemes": _security_schemes()},
    }


def described(routes: Iterable[BaseRoute]) -> Iterator[tuple[str, str]]:
    """Yield path and method of every route for programs; HEAD goes with GET."""
    for route in routes:
        if isinstance(route, Route) and is_api(route.path):
            for method in sorted((route.methods or set()) - {"HEAD"}):
                yield route.path, method


# ---- operations


def _operation(path: str, operation: Operation, settings: Settings) -> dict[str, Any]:
    parameters = [_path_parameter(name) for name in _PART.findall(path)]
    parameters += [_parameter(each) for each in operation.parameters]
    described: dict[str, Any] = {
        "operationId": operation.name,
        "tags": [operation.group],
        "summary": operation.title,
        "security": _security(path, operation, settings),
        "responses": _responses(path, operation, settings),
    }
    if operation.text:
        described["description"] = operation.text
    if parameters:
        described["parameters"] = parameters
    if operation.body:
        described["requestBody"] = _request_body(operation.body)
    return described


def _path_parameter(name: str) -> dict[str, Any]:
    text, example = PATH_PARTS[name]
    return {
        "name": name,
        "in": "path",
        "required": True,
        "description": text,
        "schema": {"type": "string", "minLength": 1},
        "example": example,
    }


def _parameter(parameter: Parameter) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "in": parameter.place,
        "description": parameter.text,
        "schema": dict(parameter.schema),
        "example": parameter.example,
    }


def _request_body(body: Body) -> dict[str, Any]:
    content: dict[str, Any] = {"schema": _reference(body.kind)}
    if body.media != FORM:
        content["example"] = dict(body.example)
    return {"required": body.is_required, "content": {body.media: content}}


def _responses(path: str, operation: Operation, settings: Settings) -> dict[str, Any]:
    given = {str(each.status): _answer(each) for each in operation.answers}
    errors = _errors(path, operation, settings)
    given |= {str(status): _error(status, errors[status]) for status in sorted(errors)}
    return dict(sorted(given.items()))


def _answer(answer: Answer) -> dict[str, Any]:
    made: dict[str, Any] = {
        "description": answer.text,
        "content": {media: {"schema": _schema(answer, media)} for media in answer.media},
    }
    if answer.headers:
        made["headers"] = _headers(answer.headers)
    return made


def _schema(answer: Answer, media: str) -> dict[str, Any]:
    if answer.kind is not None:
        return {"type": "object"} if answer.kind is dict else _reference(answer.kind)
    if media.endswith("json"):
        return {"type": "object"}
    # 3.1 has no word for the events of a stream, and bytes have no schema.
    return {"type": "string"} if media == EVENTS else {}


def _errors(path: str, operation: Operation, settings: Settings) -> dict[int, str]:
    """Return what the operation and the guard say no with, by status."""
    errors = {status: [text] for status, text in operation.errors.items()}
    is_signed = path == HOOK_PATH and bool(settings.hook_secrets)
    guarded = {}
    if not settings.token and not is_signed:
        guarded[403] = "`host-not-allowed`: not under a loopback name, and no token is set."
    if settings.token and not operation.is_open and not is_signed:
        guarded[401] = "`not-authenticated`: the token is missing or wrong."
    if operation.body or operation.name == "testWebhooks":
        crossing = "`cross-site`: a page of another site sent it."
        guarded[403] = f"{guarded[403]} {crossing}" if 403 in guarded else crossing
    guarded[500] = "`failed`: callcore failed; its log says why."
    for status, text in guarded.items():
        errors.setdefault(status, []).append(text)
    return {status: " ".join(texts) for status, texts in errors.items()}


def _error(status: int, text: str) -> dict[str, Any]:
    made: dict[str, Any] = {
        "description": text,
        "content": {JSON: {"schema": _reference(types.ErrorAnswer)}},
    }
    if status in _HEADERS_OF_STATUS:
        made["headers"] = _headers(_HEADERS_OF_STATUS[status])
    return made


def _headers(names: Sequence[str]) -> dict[str, Any]:
    return {name: {"description": _HEADERS[name], "schema": {"type": "string"}} for name in names}


# ---- who may ask


def _security(path: str, operation: Operation, settings: Settings) -> list[dict[str, list[str]]]:
    """Return the ways to be let in, any of which will do; an empty list: everybody is."""
    if path == HOOK_PATH and settings.hook_secrets:
        ways = ["signature", "hubSignature"] + (["token"] if settings.token else [])
    elif settings.token and not operation.is_open:
        ways = ["token", "session"]
    else:
        ways = []
    return [{way: []} for way in ways]


def _security_schemes() -> dict[str, Any]:
    return {
        "token": {
            "type": "http",
            "scheme": "bearer",
            "description": "`CALLCORE_TOKEN`. Without one the site answers on loopback only.",
        },
        "session": {
            "type": "apiKey",
            "in": "cookie",
            "name": COOKIE,
            "description": "What a browser gets at `/login`.",
        },
        "signature": {
            "type": "apiKey",
            "in": "header",
            "name": SIGNATURE,
            "description": "`t=<unix seconds>,v1=<hex>`: HMAC-SHA256 of `<t>.<raw body>` by one "
            "of `CALLCORE_HOOK_SECRETS`. The time may be 300 s off.",
        },
        "hubSignature": {
            "type": "apiKey",
            "in": "header",
            "name": HUB_SIGNATURE,
            "description": "`sha256=<hex>`: HMAC-SHA256 of the raw body.",
        },
    }


# ---- types


def _reference(kind: type) -> dict[str, str]:
    return {"$ref": _REF.format(name=kind.__name__)}


def _schemas() -> dict[str, Any]:
    kinds: list[type] = [types.ErrorAnswer]
    for operation in OPERATIONS.values():
        kinds += [operation.body.kind] if operation.body else []
        kinds += [each.kind for each in operation.answers if each.kind not in (None, dict)]
    _, schemas = msgspec.json.schema_components(dict.fromkeys(kinds), ref_template=_REF)
    return {**schemas, "LiveEvent": _live_event()}


def _live_event() -> dict[str, Any]:
    fields = {kind: ["type", "call_id", "at", *names] for kind, names in FIELDS.items()}
    return {
        "title": "LiveEvent",
        "description": "`data:` of one event of a stream; fields that are not known are null.",
        "type": "object",
        "properties": {
            "type": {"enum": list(FIELDS)},
            "call_id": {"type": "string"},
            "at": {"type": "string", "description": "ISO 8601, UTC."},
        },
        "required": ["type", "call_id", "at"],
        "oneOf": [
            {"properties": {"type": {"const": kind}}, "required": names}
            for kind, names in fields.items()
        ],
    }
