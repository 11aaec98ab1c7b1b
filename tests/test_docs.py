"""Documented things are there, and things that are there are documented."""

from pathlib import Path

from starlette.routing import Route

from callcore.events import FIELDS
from web.app import ROUTES

API = (Path(__file__).parent.parent / "docs" / "api.md").read_text("utf-8")


def test_every_event_and_its_fields_are_in_the_api_page() -> None:
    rows = [line for line in API.splitlines() if line.startswith("| `")]
    for event_type, fields in FIELDS.items():
        row = next(row for row in rows if f"`{event_type}`" in row)
        assert all(field in row for field in fields), event_type


def test_every_route_for_programs_is_in_the_api_page() -> None:
    for route in ROUTES:
        if isinstance(route, Route) and route.path.startswith(("/api", "/events", "/ready")):
            path = route.path.replace("{task_id}", "<task_id>")
            for name in ("{call_id}", "{audio_id}"):
                path = path.replace(name, "<id>")
            assert path in API, path
