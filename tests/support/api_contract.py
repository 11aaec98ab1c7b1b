"""Holds every answer of the API against the OpenAPI document of the site that gave it."""

import re
from typing import Any

import httpx
from jsonschema import Draft202012Validator

from callcore.settings import Settings
from web import openapi
from web.app import ROUTES
from web.security import is_api

#: Answers to addresses and methods that there are none of.
_UNDESCRIBED = {307, 404, 405}


class Contract:
    """What a site says of its API.

    Args:
        settings: The site's.
    """

    def __init__(self, settings: Settings) -> None:
        self.document = openapi.document(ROUTES, settings)
        self._paths = {
            re.compile(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(path))): described
            for path, described in self.document["paths"].items()
        }

    async def check(self, response: httpx.Response) -> None:
        """Fail if an answer is not what the document says: status, type, headers, body."""
        path, method = response.request.url.path, response.request.method
        if not is_api(path):
            return
        operation = self._operation(path, method)
        media = response.headers.get("content-type", "").partition(";")[0]
        if operation is None:
            assert response.status_code in {400, 401, 403, *_UNDESCRIBED}, (path, method)
            if response.status_code != 307:
                self._validate(await _json(response), "ErrorAnswer")
            return
        said = operation["responses"].get(str(response.status_code))
        assert said is not None, f"{method} {path} says {response.status_code}: not described"
        schema = _of_media(said["content"], media)
        assert schema is not None, f"{method} {path} answers in {media}: not described"
        for header in said.get("headers", {}):
            assert header in response.headers, f"{method} {path} without {header}"
        if media == "application/json" and method != "HEAD":
            self._validate(await _json(response), schema)

    def _operation(self, path: str, method: str) -> dict[str, Any] | None:
        described = [each for pattern, each in self._paths.items() if pattern.fullmatch(path)]
        method = "get" if method == "HEAD" else method.lower()
        return described[0].get(method) if described else None

    def _validate(self, answer: Any, schema: str | dict[str, Any]) -> None:
        named = {"$ref": f"#/components/schemas/{schema}"} if isinstance(schema, str) else schema
        whole = {**named, "components": self.document["components"]}
        found = Draft202012Validator(whole).iter_errors(answer)
        faults = [f"{each.json_path}: {each.message}" for each in found]
        assert faults == []


def _of_media(content: dict[str, Any], media: str) -> dict[str, Any] | None:
    for name in (media, f"{media.partition('/')[0]}/*"):
        if name in content:
            schema: dict[str, Any] = content[name]["schema"]
            return schema
    return None


async def _json(response: httpx.Response) -> Any:
    await response.aread()
    return response.json()
