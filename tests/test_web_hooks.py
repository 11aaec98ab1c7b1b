"""S7: who may report a recording, and what such a report says."""

import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from callcore import tables
from callcore.calls import RecordingState
from tests.support.pages import Pages
from web import hooks
from web.app import create_app
from web.hooks import HUB_SIGNATURE, SIGNATURE, WINDOW_S, plain_fault, timed_fault

PATH = "/api/recording-done/"
NEW, OLD, WRONG = "new secret", "old secret", "another secret"
TOKEN = "correct horse battery staple"
NOW = 1_700_000_000
BODY = b'{"call_id": "1.2", "recording_url": "https://pbx.example/1700000000.12.wav"}'


def digest(signed: bytes, secret: str = NEW) -> str:
    return hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()


def timed(body: bytes, secret: str = NEW, at: float | None = None) -> dict[str, str]:
    moment = int(time.time() if at is None else at)
    return {SIGNATURE: f"t={moment},v1={digest(f'{moment}.'.encode() + body, secret)}"}


def plain(body: bytes, secret: str = NEW) -> dict[str, str]:
    return {HUB_SIGNATURE: f"sha256={digest(body, secret)}"}


@asynccontextmanager
async def client_of(
    pages: Pages, peer: str = "127.0.0.1", host: str = "127.0.0.1:8000"
) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(pages.settings)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False, client=(peer, 4000))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url=f"http://{host}") as client,
    ):
        yield client


Make = Callable[..., Pages]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[Pages] = []

    def pages(token: str = "", **environ: str) -> Pages:
        known = {"RECORDING_HOSTS": "pbx.example,*.calls.example", **environ}
        folder = tmp_path / str(len(made))
        folder.mkdir()
        site = Pages(
            folder,
            "redis://127.0.0.1:1/0",
            token,
            {f"CALLCORE_{name.upper()}": value for name, value in known.items()},
        )
        made.append(site)
        return site

    yield pages
    for site in made:
        site.close()


async def post(
    client: httpx.AsyncClient, body: bytes | dict[str, Any] = BODY, **headers: str
) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    given = {"Content-Type": "application/json", **headers}
    return await client.post(PATH, content=content, headers=given)


def rows(pages: Pages) -> list[dict[str, Any]]:
    return [dict(row) for row in pages.storage.database.all(tables.RecordingSource.select())]


# ---- the signature itself


def test_a_signature_is_good_for_its_time_its_body_and_its_secrets() -> None:
    [header] = timed(BODY, at=NOW).values()
    for now in (NOW, NOW - WINDOW_S, NOW + WINDOW_S):
        assert timed_fault(header, BODY, [OLD, NEW], now) is None
    for now in (NOW - WINDOW_S - 1, NOW + WINDOW_S + 1):
        assert "clock" in str(timed_fault(header, BODY, [NEW], now))
    assert "does not fit" in str(timed_fault(header, BODY + b" ", [NEW], NOW))
    assert "does not fit" in str(timed_fault(header, BODY, [WRONG], NOW))
    later = header.replace(str(NOW), str(NOW + 1))
    assert "does not fit" in str(timed_fault(later, BODY, [NEW], NOW))


def test_a_sender_may_sign_with_two_secrets_at_a_time() -> None:
    signed = f"{NOW}.".encode() + BODY
    header = f"t={NOW}, v1={digest(signed, WRONG)}, v1={digest(signed, OLD)}, v2=ignored"
    assert timed_fault(header, BODY, [NEW, OLD], NOW) is None
    assert timed_fault(header, BODY, [NEW], NOW) is not None


RIGHT = digest(f"{NOW}.".encode() + BODY)


@pytest.mark.parametrize(
    "header",
    [
        "", "t=", "v1=", f"t={NOW}", f"v1={RIGHT}", f"t=,v1={RIGHT}", f"t=x,v1={RIGHT}",
        f"t=-1,v1={RIGHT}",
        f"t={NOW}.0,v1={RIGHT}", f"t={NOW},v1=", f"t={NOW},v1={RIGHT[:-1]}", f"t={NOW},v1={RIGHT}0",
        f"t={NOW},v0={RIGHT}", f"t={NOW},t={NOW},v1={RIGHT}", f"t={NOW};v1={RIGHT}",
        f"T={NOW},V1={RIGHT}",
        f"t={'9' * 400},v1={RIGHT}", f"t={NOW},v1={'g' * 64}", f"t={NOW}" + f",v1={RIGHT}" * 9,
        f"t=\u0661,v1={RIGHT}", f"t={NOW},v1={chr(0xFF11) * 64}", "sha256=" + RIGHT,
    ],
)  # fmt: skip
def test_a_malformed_signature_is_told_from_a_wrong_one(header: str) -> None:
    assert "is not t=" in str(timed_fault(header, BODY, [NEW], NOW))


@given(st.text(), st.binary())
def test_any_header_is_decided_and_none_is_right_by_chance(header: str, body: bytes) -> None:
    assert timed_fault(header, body, [NEW], NOW) is not None
    assert plain_fault(header, body, [NEW]) is not None


def test_neither_form_of_a_signature_passes_as_the_other() -> None:
    signed = f"{NOW}.".encode() + BODY
    # Who has seen a timed signature can send what it covers with it as the plain form: that is
    # no JSON object, so it says nothing.
    assert plain_fault(f"sha256={digest(signed)}", signed, [NEW]) is None
    with pytest.raises(ValueError, match="Extra data"):
        json.loads(signed)


# ---- who may


async def test_a_signed_report_needs_no_token_and_no_loopback_name(make: Make) -> None:
    for token in ("", TOKEN):
        pages = make(token, hook_secrets=f"{NEW},{OLD}")
        async with client_of(pages, host="calls.example") as client:
            for secret in (NEW, OLD):
                assert (await post(client, **timed(BODY, secret))).status_code in {200, 202}
                assert (await post(client, **plain(BODY, secret))).status_code == 200
            # Everything else stays as closed as it was.
            other = await client.get("/api/audio/", headers=timed(b""))
            assert other.status_code == (401 if token else 403)
            assert (await client.get(PATH)).status_code == 405
        assert len(rows(pages)) == 1


REFUSED: dict[str, dict[str, str]] = {
    "unsigned": {},
    "wrong key": timed(BODY, WRONG),
    "wrong key, no clock": plain(BODY, WRONG),
    "tampered": timed(BODY + b" "),
    "tampered, no clock": plain(BODY + b" "),
    "stale": timed(BODY, at=NOW),
    "from the future": timed(BODY, at=NOW * 2),
    "malformed": {SIGNATURE: "v1=x"},
    "malformed, no clock": {HUB_SIGNATURE: "sha1=" + "0" * 40},
    "stale beside one without clock": {**timed(BODY, at=NOW), **plain(BODY)},
    "wrong token": {"Authorization": f"Bearer {TOKEN}x"},
    "own page": {"Sec-Fetch-Site": "same-origin"},
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("token", ["", TOKEN])
async def test_with_a_secret_nothing_else_will_do(make: Make, token: str, case: str) -> None:
    pages = make(token, hook_secrets=NEW)
    async with client_of(pages) as client:
        if token:  # not even a browser that is logged in
            form = {"token": token, "next": "/"}
            assert (await client.post("/login", data=form)).status_code == 303
        answer = await post(client, **REFUSED[case])
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"]["code"] == "not-authenticated"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert rows(pages) == []
    assert NEW not in answer.text


async def test_two_headers_of_one_kind_are_refused(make: Make) -> None:
    pages = make(hook_secrets=NEW)
    async with client_of(pages) as client:
        headers = [("Content-Type", "application/json"), *timed(BODY).items(), *timed(BODY).items()]
        answer = await client.post(PATH, content=BODY, headers=headers)
    assert answer.status_code == 401


async def test_the_bearer_token_will_do_as_well(make: Make) -> None:
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    for secrets in ("", NEW):
        pages = make(TOKEN, hook_secrets=secrets)
        async with client_of(pages, host="calls.example") as client:
            assert (await post(client, **bearer)).status_code == 202
            assert (await post(client)).status_code == 401


async def test_without_secret_and_token_the_report_comes_from_this_machine(make: Make) -> None:
    pages = make()
    async with client_of(pages) as client:
        assert (await post(client)).status_code == 202
        assert (await post(client, Origin="http://evil.example")).status_code == 403
    async with client_of(pages, host="rebound.example") as client:
        # What is not asked for does not help: no secret is set.
        assert (await post(client, **timed(BODY))).status_code == 403


async def test_the_same_report_again_is_the_same_recording(make: Make) -> None:
    pages = make(hook_secrets=NEW)
    headers = timed(BODY)
    async with client_of(pages) as client:
        answers = [await post(client, **headers) for _ in range(3)]
        answers += await asyncio.gather(*(post(client, **headers) for _ in range(5)))
    assert [each.status_code for each in answers] == [202] + [200] * 7
    assert len({each.json()["audio_id"] for each in answers}) == 1
    assert len(rows(pages)) == 1
    jobs = pages.storage.database.all(tables.Job.select().where(tables.Job.step == "settle"))
    assert len(jobs) == 1


@pytest.mark.parametrize(
    ("networks", "peer", "status"),
    [
        ("192.0.2.0/24,2001:db8::/32", "192.0.2.9", 202),
        ("192.0.2.0/24,2001:db8::/32", "::ffff:192.0.2.9", 202),
        ("192.0.2.0/24,2001:db8::/32", "2001:db8::1", 202),
        ("192.0.2.0/24,2001:db8::/32", "192.0.3.9", 403),
        ("192.0.2.0/24,2001:db8::/32", "127.0.0.1", 403),
        ("192.0.2.0/24,2001:db8::/32", "testclient", 403),
        ("", "198.51.100.7", 202),
    ],
)
async def test_reports_come_from_listed_networks_if_some_are_listed(
    make: Make, networks: str, peer: str, status: int
) -> None:
    pages = make(TOKEN, hook_secrets=NEW, hook_peers=networks)
    async with client_of(pages, peer) as client:
        answer = await post(client, **timed(BODY), **{"X-Forwarded-For": "192.0.2.9"})
        assert answer.status_code == status
        bearer = {"Authorization": f"Bearer {TOKEN}"}
        assert (await post(client, **bearer)).status_code == (200 if status == 202 else 403)


def test_behind_a_trusted_proxy_the_peer_is_whom_the_proxy_names(make: Make) -> None:
    pages = make(hook_secrets=NEW, hook_peers="192.0.2.0/24")
    with pages.served() as url, httpx.Client(base_url=url, trust_env=False) as client:
        for forwarded, status in (("192.0.2.9", 202), ("192.0.3.9", 403), (None, 403)):
            headers = {"Content-Type": "application/json", **timed(BODY)}
            if forwarded:
                headers["X-Forwarded-For"] = forwarded
            assert client.post(PATH, content=BODY, headers=headers).status_code == status


# ---- what is reported


async def test_a_report_is_on_record_with_its_facts_and_what_the_name_tells(make: Make) -> None:
    pages = make()
    report = {
        "call_id": "crm-7",
        "recording_url": "https://one.calls.example/x/1700000000.12-agent.wav?sig=%2F",
        "linkedid": "1700000000.10", "caller": "0700", "callee": "116", "agent": "Ada",
        "queue": "help",
        "direction": "in", "language": "sw", "started_at": "2026-01-02T10:11:12Z", "leg": None,
    }  # fmt: skip
    async with client_of(pages) as client:
        answer = await post(client, report)
        assert answer.status_code == 202
        receipt = answer.json()
        assert set(receipt) == {"task_id", "audio_id", "status", "status_url"}
        status = (await client.get(receipt["status_url"])).json()
    assert (receipt["status"], status["status"]) == ("queued", "queued")
    recording = pages.storage.recording(receipt["audio_id"])
    assert (recording.state, recording.source) == (RecordingState.EXPECTED, "webhook")
    facts = recording.facts
    assert (facts.uniqueid, facts.leg, facts.language) == ("1700000000.12", "agent", "sw")
    assert {pages.storage.call(each).call_id for each in ("crm-7", "1700000000.12")} == {
        recording.call_id
    }
    [row] = rows(pages)
    assert (row["role"], row["url"]) == ("agent", report["recording_url"])
    assert Path(row["path"]).parent == pages.settings.audio_dir / "fetched"
    assert pages.settings.audio_dir.exists() is False


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"call_id": None}, "call_id"),
        ({"call_id": ""}, "call_id"),
        ({"call_id": "../etc"}, "call_id"),
        ({"call_id": 7}, "call_id"),
        ({"recording_url": None}, "recording_url"),
        ({"recording_url": ""}, "recording_url"),
        ({"recording_url": ["https://pbx.example/a.wav"]}, "recording_url"),
        ({"recording_url": "https://evil.example/a.wav"}, "recording_url"),
        ({"recording_url": "https://pbx.example:22/a.wav"}, "recording_url"),
        ({"recording_url": "file:///etc/passwd"}, "recording_url"),
        ({"recording_url": "https://u:p@pbx.example/a.wav"}, "recording_url"),
        ({"recording_url": "https://pbx.example/a%00.wav"}, "recording_url"),
        ({"recording_url": "https://pbx.example/\ud800.wav"}, "recording_url"),
        ({"recording_url": "https://pbx.example/" + "x" * 5000}, "recording_url"),
        ({"leg": "boss"}, "leg"),
        ({"started_at": "yesterday"}, "started_at"),
        ({"caler": "1"}, "caler"),
    ],
)
async def test_what_cannot_be_used_is_refused_at_once_with_its_field(
    make: Make, change: dict[str, Any], field: str
) -> None:
    pages = make()
    async with client_of(pages) as client:
        answer = await post(client, {**json.loads(BODY), **change})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["field"] == field
    assert "u:p" not in error["message"]
    assert rows(pages) == []


async def test_without_a_listed_host_the_answer_says_which_setting_is_missing(make: Make) -> None:
    pages = make(recording_hosts="")
    async with client_of(pages) as client:
        error = (await post(client)).json()["error"]
    assert "CALLCORE_RECORDING_HOSTS" in error["message"]


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"[]", "application/json", 400),
        (BODY, "text/plain", 415),
        (b'{"x": "' + b"x" * 70_000, "application/json", 413),
    ],
)
async def test_a_body_that_is_no_small_json_object_is_refused(
    make: Make, body: bytes, kind: str, status: int
) -> None:
    pages = make(hook_secrets=NEW)
    async with client_of(pages) as client:
        answer = await post(client, body, **{**timed(body), "Content-Type": kind})
    assert answer.status_code == status


async def test_a_refused_report_leaves_no_secret_in_the_log(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    pages = make(hook_secrets=NEW)
    async with client_of(pages) as client:
        await post(client, b'{"caller": "0700123456"}', **timed(BODY, WRONG))
    [record] = [each for each in caplog.records if each.name == hooks.__name__]
    assert "does not fit" in str(vars(record)["reason"])
    assert "0700123456" not in str(vars(record))
    assert WRONG not in str(vars(record))
