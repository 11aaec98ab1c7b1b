"""``/docs``: the OpenAPI document as a page for people."""

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from web import openapi
from web.api_operations import EVENTS, FORM, OPERATIONS, PATH_PARTS
from web.site import Site, site_of

_CODE = re.compile(r"`([^`]+)`")
_PART = re.compile(r"{(\w+)}")
_REF = "#/components/schemas/"


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a type, or a parameter."""

    name: str
    kind: Markup
    """Its type, with links to ours."""
    is_needed: bool
    text: Markup


async def page(request: Request) -> Response:
    """``GET /docs``."""
    site = site_of(request)
    html = await run_in_threadpool(_html, request, site)
    return HTMLResponse(html)


def _html(request: Request, site: Site) -> str:
    document = openapi.document(request.app.routes, site.settings)
    base = str(request.base_url).rstrip("/")
    operations = [
        _operation(path, method.upper(), each, base)
        for path, methods in document["paths"].items()
        for method, each in methods.items()
    ]
    order = list(OPERATIONS)
    operations.sort(key=lambda each: order.index((each["method"], each["path"])))
    groups = [
        {
            "id": each["name"].lower(),
            "name": each["name"],
            "text": marked(each["description"]),
            "operations": [known for known in operations if known["group"] == each["name"]],
        }
        for each in document["tags"]
    ]
    schemas = document["components"]["schemas"]
    sent = {each.body.kind.__name__ for each in OPERATIONS.values() if each.body}
    return site.templates.get_template("docs.html").render(
        here="docs",
        show_navigation=True,
        has_token=site.sessions is not None,
        about=marked(document["info"]["description"]),
        access=_access(site),
        groups=groups,
        types=[_type(name, schemas[name], name in sent) for name in sorted(schemas)],
    )


def _access(site: Site) -> Markup:
    if site.sessions is None:
        return marked("No `CALLCORE_TOKEN` is set: this site answers on its own machine only.")
    return marked("Send the site's token: `Authorization: Bearer $CALLCORE_TOKEN`.")


def _operation(path: str, method: str, described: Mapping[str, Any], base: str) -> dict[str, Any]:
    body = described.get("requestBody")
    return {
        "id": described["operationId"],
        "group": described["tags"][0],
        "method": method,
        "path": path,
        "title": described["summary"],
        "text": marked(described.get("description", "")),
        "parameters": [_parameter(each) for each in described.get("parameters", [])],
        "body": _body(body) if body else None,
        "answers": [
            {
                "status": status,
                "text": marked(each["description"]),
                "media": ", ".join(each["content"]),
                "kind": kind_of(next(iter(each["content"].values()))["schema"]),
            }
            for status, each in described["responses"].items()
        ],
        "curl": curl(method, path, base, bool(described["security"])),
    }


def _parameter(described: Mapping[str, Any]) -> Field:
    text = marked(f"In the {described['in']}. {described['description']}")
    kind = kind_of(described["schema"])
    return Field(described["name"], kind, described.get("required", False), text)


def _body(described: Mapping[str, Any]) -> dict[str, Any]:
    ((media, content),) = described["content"].items()
    return {
        "media": media,
        "kind": kind_of(content["schema"]),
        "is_needed": described["required"],
    }


def curl(method: str, path: str, base: str, with_token: bool) -> str:
    """Return the command that tries a call of the API.

    Args:
        method: E.g. ``GET``.
        path: As in the document, with its parts in braces.
        base: Address of the site.
        with_token: Whether the token is needed.
    """
    operation = OPERATIONS[method, path]
    filled = _PART.sub(lambda part: PATH_PARTS[part[1]][1], path)
    medias = [media for answer in operation.answers for media in answer.media]
    words = ["curl", "-sN" if EVENTS in medias else "-s"]
    words += ["-X", method] if method == "POST" and not operation.body else []
    words.append(shlex.quote(base + filled))
    lines = [" ".join(words)]
    if with_token:
        lines.append('-H "Authorization: Bearer $CALLCORE_TOKEN"')
    if operation.body and operation.body.media == FORM:
        lines += [f"-F {shlex.quote(f'{k}={v}')}" for k, v in operation.body.example.items()]
    elif operation.body:
        lines.append("-H 'Content-Type: application/json'")
        lines.append(f"-d {shlex.quote(json.dumps(operation.body.example))}")
    if "audio/*" in medias:
        lines.append("-o call.wav")
    return " \\\n  ".join(lines)


# ---- types


def _type(name: str, schema: Mapping[str, Any], is_sent: bool) -> dict[str, Any]:
    # In answers every field is always there.
    needed = schema.get("required", []) if is_sent else []
    return {
        "name": name,
        "text": marked(schema.get("description", "")),
        "kind": "" if "properties" in schema else kind_of(schema),
        "fields": [
            Field(field, kind_of(each), field in needed, marked(_said_of(each)))
            for field, each in schema.get("properties", {}).items()
        ],
    }


def _said_of(schema: Mapping[str, Any]) -> str:
    """Return the description of a field; of one that may be null, that of its other form."""
    said = schema.get("description")
    if said is None:
        others = (each.get("description") for each in schema.get("anyOf", []))
        said = next((each for each in others if each), "")
    return str(said)


def kind_of(schema: Mapping[str, Any]) -> Markup:
    """Return a schema in few words, with links to the types it names."""
    if "$ref" in schema:
        name = schema["$ref"].removeprefix(_REF)
        return Markup('<a href="#type-{0}">{0}</a>').format(name)
    if "anyOf" in schema:
        return Markup(" or ").join(kind_of(each) for each in schema["anyOf"])
    if "enum" in schema:
        values = (Markup("<code>{}</code>").format(each) for each in schema["enum"] if each != "")
        return Markup(" ").join(values)
    if schema.get("type") == "array":
        return Markup("list of {}").format(kind_of(schema.get("items", {})))
    if schema.get("type") == "object" and isinstance(schema.get("additionalProperties"), dict):
        return Markup("object of {}").format(kind_of(schema["additionalProperties"]))
    return escape(_NAMES.get(schema.get("type", ""), schema.get("type", "bytes")))


_NAMES = {"string": "text", "boolean": "true or false", "integer": "whole number"}


def marked(text: str) -> Markup:
    """Return a text whose words between backticks are code."""
    parts = _CODE.split(text)
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if index % 2 else escape(part)
        for index, part in enumerate(parts)
    )
