import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from callcore.calls import Correction, Media
from callcore.ledger import Ledger
from callcore.webhooks import Webhooks
from tests.support.pages import Pages, segment_of
from tests.support.recordings import write_wav
from web.api_bodies import MAX_JSON_BYTES

#: Nothing listens there: the broker is away.
NOWHERE = "redis://127.0.0.1:1/0"
CATEGORY = {"taxonomy": "generic-support", "category": "payments.bill"}
CORRECTION: dict[str, Any] = {**CATEGORY, "verdict": "right", "texts": ["I want to pay my bill"]}


@pytest.fixture
async def pages(tmp_path: Path) -> AsyncIterator[Pages]:
    environ = {
        "CALLCORE_STEPS": "transcribe,classify",
        "CALLCORE_TAXONOMIES": "generic-support",
        "CALLCORE_WEBHOOK_URLS": "https://crm.example.org/hook?key=1",
        "CALLCORE_WEBHOOK_SECRET": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    }
    pages = Pages(tmp_path, environ=environ, redis_url=NOWHERE)
    yield pages
    pages.close()


@pytest.fixture
async def client(pages: Pages) -> AsyncIterator[httpx.AsyncClient]:
    async with pages.client() as client:
        yield client


@pytest.fixture
def audio_id(pages: Pages) -> str:
    path = write_wav(pages.folder / "a.wav")
    words = [segment_of(7, "caller", 0.0, 1.0, "I want to pay my bill", source="recording")]
    return pages.record("1.2", [Media("mixed", str(path))], words)


async def steps_of(client: httpx.AsyncClient, audio_id: str) -> dict[str, str]:
    status = (await client.get(f"/api/status/{audio_id}/")).json()
    return {step["name"]: step["status"] for step in status["steps"]}


# ---- rerun


async def test_a_step_that_failed_waits_again_after_a_rerun(
    client: httpx.AsyncClient, pages: Pages, audio_id: str
) -> None:
    ledger = Ledger(pages.storage)
    await client.post(f"/api/audio/{audio_id}/rerun", json={"steps": ["classify"]})
    claim = ledger.claim(audio_id, "classify")
    assert claim
    ledger.fail(claim, "the model is missing", {}, final=True)
    assert (await steps_of(client, audio_id))["classify"] == "failed"
    answer = await client.post(f"/api/audio/{audio_id}/rerun")
    assert answer.status_code == 202
    assert answer.json() == {
        "task_id": audio_id,
        "audio_id": audio_id,
        "status": "processing",
        "status_url": f"/api/status/{audio_id}/",
    }
    steps = {"settle": "done", "transcribe": "done", "classify": "pending"}
    assert await steps_of(client, audio_id) == steps


async def test_steps_that_are_named_run_again_with_those_that_read_them(
    client: httpx.AsyncClient, audio_id: str
) -> None:
    answer = await client.post(f"/api/audio/{audio_id}/rerun", json={"steps": ["transcribe"]})
    assert answer.status_code == 202
    steps = {"settle": "done", "transcribe": "pending", "classify": "pending"}
    assert await steps_of(client, audio_id) == steps


@pytest.mark.parametrize(
    ("body", "status", "code", "field"),
    [
        ({"steps": ["dance"]}, 400, "unknown-step", "steps"),
        ({"steps": ["\ud800"]}, 400, "bad-field", "steps"),
        ({"steps": "transcribe"}, 400, "bad-field", "steps"),
        ({"steps": [1]}, 400, "bad-field", "steps"),
        ({"steps": ["transcribe"] * 51}, 400, "bad-field", "steps"),
        ({"step": ["transcribe"]}, 400, "unknown-field", "step"),
    ],
)
async def test_a_rerun_of_what_is_no_step_is_refused(
    client: httpx.AsyncClient, audio_id: str, body: Any, status: int, code: str, field: str
) -> None:
    content = json.dumps(body)  # httpx cannot write a lone surrogate
    headers = {"Content-Type": "application/json"}
    answer = await client.post(f"/api/audio/{audio_id}/rerun", content=content, headers=headers)
    assert answer.status_code == status
    assert answer.json()["error"]["code"] == code
    assert answer.json()["error"]["field"] == field


async def test_a_rerun_of_no_recording_is_not_found(client: httpx.AsyncClient) -> None:
    assert (await client.post("/api/audio/none/rerun")).status_code == 404


# ---- corrections


@pytest.mark.parametrize("verdict", ["right", "wrong", "missing"])
async def test_a_correction_is_on_record_with_its_words(
    client: httpx.AsyncClient, pages: Pages, audio_id: str, verdict: str
) -> None:
    said = {**CORRECTION, "verdict": verdict}
    answer = await client.post(f"/api/audio/{audio_id}/corrections", json=said)
    assert answer.status_code == 201
    assert answer.json() == {"audio_id": audio_id, **said}
    assert pages.storage.corrections() == [
        Correction("generic-support", "payments.bill", verdict, ("I want to pay my bill",))
    ]


@pytest.mark.parametrize(
    ("change", "code", "field"),
    [
        ({"taxonomy": "child-helpline"}, "unknown-taxonomy", "taxonomy"),
        ({"taxonomy": "/etc/passwd"}, "unknown-taxonomy", "taxonomy"),
        ({"category": "silent"}, "unknown-category", "category"),
        ({"category": None}, "bad-field", "category"),
        ({"verdict": "maybe"}, "bad-field", "verdict"),
        ({"texts": ["a"] * 21}, "bad-field", "texts"),
        ({"texts": ["a" * 501]}, "bad-field", "texts"),
        ({"texts": [""]}, "bad-field", "texts"),
        ({"texts": "pay"}, "bad-field", "texts"),
        ({"texts": ["a\0b"]}, "bad-text", "texts"),
        ({"texts": ["\udfff"]}, "bad-text", "texts"),
        ({"made_by": "Ann"}, "unknown-field", "made_by"),
    ],
)
async def test_a_correction_that_cannot_be_used_is_refused_and_the_field_is_named(
    client: httpx.AsyncClient,
    pages: Pages,
    audio_id: str,
    change: dict[str, Any],
    code: str,
    field: str,
) -> None:
    content = json.dumps({**CORRECTION, **change})
    headers = {"Content-Type": "application/json"}
    url = f"/api/audio/{audio_id}/corrections"
    answer = await client.post(url, content=content, headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == code
    assert answer.json()["error"]["field"] == field
    assert "maybe" not in answer.text
    assert pages.storage.corrections() == []


async def test_a_correction_lacks_nothing(client: httpx.AsyncClient, audio_id: str) -> None:
    url = f"/api/audio/{audio_id}/corrections"
    answer = await client.post(url, json=CATEGORY)
    assert (answer.status_code, answer.json()["error"]["field"]) == (400, "verdict")
    answer = await client.post("/api/audio/none/corrections", json=CORRECTION)
    assert answer.status_code == 404


async def test_taxonomies_name_the_categories_that_a_correction_may_name(
    client: httpx.AsyncClient, audio_id: str
) -> None:
    (taxonomy,) = (await client.get("/api/taxonomies/")).json()["taxonomies"]
    assert taxonomy["id"] == "generic-support"
    (category,) = [each for each in taxonomy["categories"] if each["id"] == "payments.bill"]
    assert category["label"]["en"] == "Pay a bill"
    assert category["path"] == ["payments", "payments.bill"]
    assert "silent" in {each["id"] for each in taxonomy["call_types"]}


async def test_a_taxonomy_that_is_being_edited_is_said_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "ours.yaml"
    path.write_text("taxonomy: ours\n", "utf-8")
    pages = Pages(tmp_path, environ={"CALLCORE_TAXONOMIES": str(path)}, redis_url=NOWHERE)
    async with pages.client() as client:
        answer = await client.get("/api/taxonomies/")
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "bad-taxonomy"
        assert "ours.yaml" in answer.json()["error"]["message"]
    pages.close()


# ---- webhooks


async def test_a_test_message_is_noted_and_its_delivery_is_listed(
    client: httpx.AsyncClient, pages: Pages
) -> None:
    assert (await client.get("/api/webhooks/deliveries/")).json() == {"deliveries": []}
    answer = await client.post("/api/webhooks/test")
    assert answer.status_code == 202
    webhooks = Webhooks(pages.storage, pages.settings)
    webhooks.sweep()  # as a worker does; there is no such host
    webhooks.close()
    (delivery,) = (await client.get("/api/webhooks/deliveries/")).json()["deliveries"]
    assert delivery["message_id"] == answer.json()["message_id"]
    assert (delivery["state"], delivery["attempts"]) == ("pending", 1)
    assert delivery["next_at"] > delivery["created_at"]
    assert delivery["error"].startswith("no answer")
    assert "key=1" not in json.dumps(delivery)


async def test_without_endpoints_there_is_nothing_to_test(tmp_path: Path) -> None:
    pages = Pages(tmp_path, redis_url=NOWHERE)
    async with pages.client() as client:
        answer = await client.post("/api/webhooks/test")
        assert answer.status_code == 409
        assert "CALLCORE_WEBHOOK_URLS" in answer.json()["error"]["message"]
    pages.close()


# ---- bodies


POSTS = ["/api/legs/", "/api/recording-done/", "/api/audio/{}/rerun", "/api/audio/{}/corrections"]


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"[]", "application/json", 400),
        (b"null", "application/json", 400),
        (b'"\xff"', "application/json", 400),
        (b"[" * 60_000, "application/json", 400),
        (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "application/json", 400),
        (b'{"\\ud800": 1}', "application/json", 400),
        (b'{"\\u0000": "\\u0000"}', "application/json", 400),
        (b'{"steps": 1' + b"0" * 5000 + b"}", "application/json", 400),
        (b'{"steps": NaN, "uuid": Infinity, "recording_url": 1e999}', "Application/JSON", 400),
        (b'{"started_at": "9999-99-99"}', 'application/json; charset="', 400),
        (b'{"a": "' + b"x" * MAX_JSON_BYTES + b'"}', "application/json", 413),
        (b"{}", "text/plain", 415),
        (b"{}", "application/jsonx", 415),
        (b"{}", "\xe9", 415),
    ],
)
async def test_no_body_breaks_the_server(
    client: httpx.AsyncClient, audio_id: str, path: str, content: bytes, kind: str, status: int
) -> None:
    headers = {"Content-Type": kind.encode("latin-1")}
    answer = await client.post(path.format(audio_id), content=content, headers=headers)
    assert answer.status_code == status, answer.text
