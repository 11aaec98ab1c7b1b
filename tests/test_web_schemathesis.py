"""Generated requests, fit and unfit, against a real server over a real database.

Nothing may fail, and every answer must be what ``/openapi.json`` says of it.
"""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import schemathesis

from callcore import settings
from callcore.audio import WavWriter
from callcore.calls import Disposition, Media, now
from callcore.ledger import Ledger
from tests.support import results
from tests.support.endings import missed, refuse, without_text
from tests.support.pages import Pages, segment_of
from web import openapi
from web.__main__ import make_server
from web.app import ROUTES
from web.security import HOOK_PATH

#: Nothing listens there: the broker is away, and streams of events say so.
NOWHERE = "redis://127.0.0.1:1/0"

#: Stands for the id of a recording that there is.
AUDIO_ID = "9f0c2b7e-5c1d-4d0a-8c39-6f3e0c2a1b4d"
_ACCEPTED = ["2xx", "3xx", "401", "403", "404", "409"]
_MAY_BE_REFUSED = {"positive_data_acceptance": {"expected-statuses": [*_ACCEPTED, "400"]}}
CONFIG = {
    "generation": {"deterministic": True, "max-examples": 10, "database": "none"},
    "operations": [
        # No schema can tell cursors, names of steps, listed hosts and what is printable.
        {"include-path": path, "checks": _MAY_BE_REFUSED}
        for path in (
            "/api/legs/",
            "/api/upload/",
            "/api/audio/",
            "/api/audio/{audio_id}/rerun",
            "/api/audio/{audio_id}/corrections",
            HOOK_PATH,
        )
    ]
    + [
        # There is no broker here, and that is what it says.
        {
            "include-path": "/ready",
            "checks": {"not_a_server_error": {"expected-statuses": ["2xx", "4xx", "503"]}},
        }
    ],
}
#: More forms of a moment are taken than RFC 3339 knows, so what is not one is left to other tests.
MOMENTS = ["2026-01-02T10:11:12Z", "2026-01-02 10:11:12.5+03:00", "20260102T101112-0300", ""]


@contextmanager
def served(folder: Path, token: str = "") -> Iterator[tuple[Pages, str]]:
    """Serve a site with a few calls; its streams of events end at once."""
    environ = {
        "CALLCORE_UPLOAD_MAX_MB": "1",
        "CALLCORE_RECORDING_HOSTS": "*.example.org",
        "CALLCORE_WEBHOOK_URLS": "https://crm.example.org/hook",
        "CALLCORE_WEBHOOK_SECRET": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "CALLCORE_FREE_FLOOR_MB": "1",
        "CALLCORE_STEPS": "transcribe,translate,summarize,ner,classify",
    }
    pages = Pages(folder, environ=environ, redis_url=NOWHERE, token=token)
    server = make_server(pages.settings)
    server.config.app.state.site.rooms.close()  # type: ignore[union-attr]
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield pages, f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()
        pages.close()


def fill(pages: Pages) -> str:
    """Make calls of every kind, and a recording with every result; return its audio_id."""
    pages.redis_url = ""
    pages.begin_call("1.2", caller="100", agent="Ann")
    pages.storage.add_live_segment("1.2", segment_of(1, "caller", 1.0, 2.0, "Hello there"))
    pages.begin_call("1.3", ("mixed",))
    pages.end_call("1.3")
    missed(pages, "1.4", Disposition.ABANDONED, now(), 32.5, caller="100")
    pages.begin_call("1.5", ("caller",), caller="100")
    without_text(pages, *pages.legs.values())
    refuse(pages, "1.5")
    path = pages.folder / "a.wav"
    with WavWriter(path, 8000, 2) as writer:
        writer.write(b"\0\0\1\0" * 8000)
    audio_id = pages.record("1.2", [Media("stereo", str(path))])
    said = results.segment(7, "caller", 0.0, 1.0, "I want to pay my bill")
    made = {
        "transcribe": results.transcript([said], 1.0),
        "translate": results.translation(),
        "summarize": results.summary(),
        "ner": results.entities(results.entity(said, "bill", "ORGANIZATION")),
        "classify": results.categories(
            results.category("payments.bill", "embedding", results.quoted(said, "pay my bill")),
            flags=[results.flag("test", results.quoted(said, "bill"))],
        ),
    }
    ledger = Ledger(pages.storage)
    needs = {"settle": [], **{step: ["settle"] for step in pages.settings.steps}}
    ledger.rerun(audio_id, made, needs)
    for step, result in made.items():
        claim = ledger.claim(audio_id, step)
        assert claim, step
        ledger.finish(claim, result, needs)
    return audio_id


def described(token: str = "") -> Any:
    """Return what a site says of its API, with ids that there are.

    Without them nothing but 404 would ever be seen.
    """
    environ = {"CALLCORE_STATE_DIR": "/nowhere", "CALLCORE_TOKEN": token}
    document = openapi.document(ROUTES, settings.load(environ))
    ids = {"call_id": ["1.2", "1.3"], "audio_id": [AUDIO_ID], "task_id": [AUDIO_ID]}
    for methods in document["paths"].values():
        for operation in methods.values():
            for each in operation.get("parameters", []):
                if each["in"] == "path":
                    each["schema"] = {"anyOf": [{"enum": ids[each["name"]]}, each["schema"]]}
    for kind in ("LegRegistration", "RecordingReport", "UploadForm"):
        fields = document["components"]["schemas"][kind]["properties"]
        fields["started_at"] = {"enum": MOMENTS if kind == "UploadForm" else [*MOMENTS, None]}
    config = schemathesis.Config.from_dict(CONFIG)
    return schemathesis.openapi.from_dict(document, config=config)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Yield the address and the audio_id of a site with calls."""
    with served(tmp_path_factory.mktemp("site")) as (pages, url):
        yield url, fill(pages)


api = described()


@api.parametrize()
def test_no_request_breaks_the_server_or_the_description(
    case: schemathesis.Case, site: tuple[str, str]
) -> None:
    url, audio_id = site
    for name, value in case.path_parameters.items():
        case.path_parameters[name] = audio_id if value == AUDIO_ID else value
    case.call_and_validate(base_url=url)
