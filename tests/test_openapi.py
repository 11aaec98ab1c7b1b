import functools
from collections.abc import AsyncIterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import schemathesis
from jsonschema import Draft202012Validator
from selenium import webdriver
from starlette.routing import Route

from callcore import events, intake, settings
from callcore.calls import CallFacts
from callcore.errors import Refused
from tests.support.browser import browser, resize
from tests.support.pages import Pages
from web import api_docs, api_types, openapi
from web.api_operations import GROUPS, OPERATIONS, PATH_PARTS
from web.app import ROUTES
from web.security import CONTENT_SECURITY_POLICY, HOOK_PATH, is_api

__all__ = ["browser"]

TOKEN = "a token of this test"
SECRET = "a secret of this test"
NOWHERE = "redis://127.0.0.1:1/0"


def document(**environ: str) -> dict[str, Any]:
    given = {f"CALLCORE_{name}": value for name, value in environ.items()}
    return openapi.document(ROUTES, settings.load({"CALLCORE_STATE_DIR": "/nowhere", **given}))


@functools.cache
def validator(name: str) -> Draft202012Validator:
    made = document()
    return Draft202012Validator(
        {"$ref": f"#/components/schemas/{name}", "components": made["components"]},
        format_checker=Draft202012Validator.FORMAT_CHECKER,
    )


def references(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return own.union(*(references(each) for each in value.values()))
    if isinstance(value, list):
        return set().union(*(references(each) for each in value))
    return set()


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    pages = Pages(tmp_path, redis_url=NOWHERE, token=TOKEN)
    async with pages.client() as client:
        yield client
    pages.close()


# ---- the document


def test_it_is_openapi_3_1() -> None:
    schemathesis.openapi.from_dict(document()).validate()
    assert document()["openapi"] == "3.1.0"


def test_every_route_for_programs_is_described_with_its_methods_and_nothing_else() -> None:
    served = {
        (method, route.path)
        for route in ROUTES
        if isinstance(route, Route) and is_api(route.path)
        for method in (route.methods or set()) - {"HEAD"}
    }
    published = {
        (method.upper(), path)
        for path, methods in document()["paths"].items()
        for method in methods
    }
    assert served == published == set(OPERATIONS)


def test_every_reference_leads_to_a_type_and_every_type_is_led_to() -> None:
    made = document()
    known = {f"#/components/schemas/{name}" for name in made["components"]["schemas"]}
    assert references(made) | {"#/components/schemas/LiveEvent"} == known


def test_names_of_operations_are_told_apart_and_groups_are_known() -> None:
    names = [each.name for each in OPERATIONS.values()]
    assert len(set(names)) == len(names)
    assert {each.group for each in OPERATIONS.values()} == set(GROUPS)


@pytest.mark.parametrize("operation", [each for each in OPERATIONS.values() if each.body])
def test_every_example_is_what_its_type_says(operation: Any) -> None:
    kind, example = operation.body.kind, operation.body.example
    msgspec.convert(example, kind)
    assert list(validator(kind.__name__).iter_errors(dict(example))) == []


def test_every_type_of_facts_has_the_fields_of_a_call() -> None:
    known = {each.name for each in fields(CallFacts)}
    for kind, more in (
        (api_types.Facts, set()),
        (api_types.LegRegistration, {"uuid"}),
        (api_types.RecordingReport, {"recording_url"}),
        (api_types.UploadForm, {"file"}),
    ):
        assert {each.name for each in msgspec.structs.fields(kind)} == known | more


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("call_id", "1795362086.75"),
        ("call_id", "a" * 80),
        ("call_id", "a" * 81),
        ("uniqueid", ".75"),
        ("linkedid", "a b"),
        ("leg", "agent-2"),
        ("leg", "agent-1"),
        ("leg", "mixed-2"),
        ("language", "en"),
        ("language", "en-US"),
        ("direction", "internal"),
        ("direction", "up"),
        ("caller", "x" * 200),
        ("caller", "x" * 201),
        ("agent", "a\x00b"),
        ("queue", "a\nb"),
        ("callee", "Zoë 日本"),
    ],
)
def test_the_patterns_of_facts_are_those_of_the_doors(field: str, value: str) -> None:
    try:
        intake.check_facts(CallFacts(**{field: value}))
        is_taken = True
    except Refused:
        is_taken = False
    assert (
        validator("LegRegistration").is_valid(
            {"uuid": "5f0c6c1e-3f4e-4b6a-9a52-0d9c6a1b2c3d", field: value}
        )
        is is_taken
    )


@pytest.mark.parametrize("event_type", events.FIELDS)
def test_an_event_is_what_its_type_says(event_type: str) -> None:
    event = events.make(event_type, "1.2").as_json()
    assert validator("LiveEvent").is_valid(event)
    del event[events.FIELDS[event_type][0]]
    assert not validator("LiveEvent").is_valid(event)


def test_who_may_ask_is_what_the_site_is_set_to() -> None:
    def ways(made: dict[str, Any], path: str, method: str = "get") -> set[str]:
        return {name for way in made["paths"][path][method]["security"] for name in way}

    def says(made: dict[str, Any], path: str, method: str = "get") -> set[str]:
        return set(made["paths"][path][method]["responses"])

    plain = document()
    assert ways(plain, "/api/audio/") == ways(plain, HOOK_PATH, "post") == set()
    assert "403" in says(plain, "/api/audio/")
    assert "401" not in says(plain, "/api/audio/")
    locked = document(TOKEN=TOKEN)
    assert ways(locked, "/api/audio/") == {"token", "session"}
    assert ways(locked, "/live") == set()
    assert "401" in says(locked, "/api/audio/")
    assert "403" not in says(locked, "/api/audio/")
    signed = document(TOKEN=TOKEN, HOOK_SECRETS=SECRET)
    assert ways(signed, HOOK_PATH, "post") == {"token", "signature", "hubSignature"}
    assert ways(document(HOOK_SECRETS=SECRET), HOOK_PATH, "post") == {"signature", "hubSignature"}


async def test_it_is_served_to_those_who_may_ask(client: httpx.AsyncClient) -> None:
    answer = await client.get("/openapi.json")
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "not-authenticated"
    answer = await client.get("/openapi.json", headers={"Authorization": f"Bearer {TOKEN}"})
    assert answer.json() == document(TOKEN=TOKEN)


STRANGERS: dict[str, dict[str, str]] = {
    "nobody": {},
    "a wrong token": {"Authorization": "Bearer no"},
    "another scheme": {"Authorization": f"Basic {TOKEN}"},
    "a wrong session": {"Cookie": "callcore_session=1.2"},
    "a signature where none is asked for": {"X-Hub-Signature-256": "sha256=" + "0" * 64},
}


@pytest.mark.parametrize("stranger", STRANGERS)
async def test_strangers_are_refused_everywhere_but_at_the_probes(
    client: httpx.AsyncClient, stranger: str
) -> None:
    for (method, path), operation in OPERATIONS.items():
        for name, (_, example) in PATH_PARTS.items():
            path = path.replace(f"{{{name}}}", example)
        answer = await client.request(method, path, headers=STRANGERS[stranger])
        refused = answer.status_code in {401, 403}
        assert refused is not operation.is_open, (method, path)


# ---- the page


async def test_the_page_shows_every_call_of_the_api(client: httpx.AsyncClient) -> None:
    assert (await client.get("/docs")).status_code == 303
    page = await client.get("/docs", headers={"Authorization": f"Bearer {TOKEN}"})
    assert page.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    for operation in OPERATIONS.values():
        assert f'id="{operation.name}"' in page.text
        assert f'href="#{operation.name}"' in page.text
    for name in document()["components"]["schemas"]:
        assert f'id="type-{name}"' in page.text
    assert "<style" not in page.text
    assert "style=" not in page.text
    assert "Authorization: Bearer $CALLCORE_TOKEN" in page.text
    assert TOKEN not in page.text


def test_a_command_can_be_pasted_into_a_shell() -> None:
    made = api_docs.curl("POST", "/api/legs/", "http://127.0.0.1:8000", with_token=True)
    assert made.splitlines()[0] == "curl -s http://127.0.0.1:8000/api/legs/ \\"
    assert '-H "Authorization: Bearer $CALLCORE_TOKEN"' in made
    assert """-d '{"uuid": """ in made
    assert "-F file=@" in api_docs.curl("POST", "/api/upload/", "http://x", with_token=False)
    assert "-sN" in api_docs.curl("GET", "/events/calls", "http://x", with_token=False)
    hostile = api_docs.curl("GET", "/live", "http://x;rm -r ~", with_token=False)
    assert "'http://x;rm -r ~/live'" in hostile


@pytest.mark.browser
@pytest.mark.parametrize(("width", "height"), [(1440, 900), (390, 844)])
def test_the_page_never_scrolls_sideways(
    tmp_path: Path, browser: webdriver.Chrome, width: int, height: int
) -> None:
    pages = Pages(tmp_path, redis_url=NOWHERE)
    with pages.served() as url:
        resize(browser, width, height)
        browser.get(f"{url}/docs#type-LegRegistration")
        wide = browser.execute_script("return document.documentElement.scrollWidth")
        assert wide <= width
        assert "LegRegistration" in browser.find_element("id", "type-LegRegistration").text
    pages.close()
