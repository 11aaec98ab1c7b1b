from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.pages import Pages
from web.security import SESSION_S, Sessions, is_loopback_host, is_own_page

TOKEN = "correct horse battery staple"


@pytest.fixture
def open_site(tmp_path: Path) -> Iterator[Pages]:
    """A site without a token."""
    pages = Pages(tmp_path, "redis://127.0.0.1:1/0")
    yield pages
    pages.close()


@pytest.fixture
def closed_site(tmp_path: Path) -> Iterator[Pages]:
    """A site with a token."""
    pages = Pages(tmp_path, "redis://127.0.0.1:1/0", token=TOKEN)
    yield pages
    pages.close()


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:8000", "127.1.2.3", "localhost", "LOCALHOST:1", "[::1]:8000"]
)
def test_loopback_names_are_known(host: str) -> None:
    assert is_loopback_host(host)


@pytest.mark.parametrize(
    "host",
    [
        "",
        "evil.example",
        "127.0.0.1.evil.example",
        "localhost.evil",
        "10.0.0.1",
        "[::1",
        "2130706433",
    ],
)
def test_other_names_are_no_loopback(host: str) -> None:
    assert not is_loopback_host(host)


@given(st.text())
def test_any_host_header_is_decided(host: str) -> None:
    assert is_loopback_host(host) in {True, False}


def test_a_session_ends_with_its_time_and_with_its_token() -> None:
    present = [1000.0]
    sessions = Sessions(TOKEN, clock=lambda: present[0])
    cookie = sessions.issue()
    assert sessions.age_s(cookie) == 0
    present[0] += SESSION_S - 1
    assert sessions.age_s(cookie) == SESSION_S - 1
    present[0] += 1
    assert sessions.age_s(cookie) is None
    assert Sessions("another", clock=lambda: 1000.0).age_s(cookie) is None


@given(st.text())
def test_an_invented_cookie_is_no_session(cookie: str) -> None:
    assert Sessions(TOKEN).age_s(cookie) is None


@pytest.mark.parametrize(
    "path", ["//evil.example", "/\\evil.example", "https://evil", "x", "/a\r\nb"]
)
def test_log_in_leads_to_own_pages_only(path: str) -> None:
    assert not is_own_page(path)
    assert is_own_page("/calls/1.2/live")


async def test_without_a_token_a_foreign_name_for_loopback_is_refused(open_site: Pages) -> None:
    async with open_site.client("rebound.example") as client:
        for path in ("/", "/api/calls/", "/live", "/static/live.js"):
            answer = await client.get(path)
            assert answer.status_code == 403, path
            assert answer.json()["error"]["code"] == "host-not-allowed"
    async with open_site.client() as client:
        assert (await client.get("/api/calls/")).status_code == 200
        assert (await client.get("/login")).headers["location"] == "/"


async def test_with_a_token_everything_but_probes_log_in_and_static_files_needs_it(
    closed_site: Pages,
) -> None:
    async with closed_site.client("calls.example") as client:
        for path in ("/live", "/login", "/static/callcore.css"):
            assert (await client.get(path)).status_code == 200, path
        for path in ("/api/calls/", "/api/audio/x/media", "/events/calls", "/api/nothing"):
            answer = await client.get(path)
            assert answer.status_code == 401, path
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.json()["error"]["code"] == "not-authenticated"
        answer = await client.get("/calls/1.2/live")
        assert (answer.status_code, answer.headers["location"]) == (
            303,
            "/login?next=/calls/1.2/live",
        )
        assert (await client.post("/api/legs/", json={})).status_code == 401


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        (f"Bearer {TOKEN}", 200),
        (f"bearer  {TOKEN}", 200),
        (f"Bearer {TOKEN}x", 401),
        ("Bearer", 401),
        (f"Basic {TOKEN}", 401),
        (TOKEN, 401),
    ],
)
async def test_the_bearer_token_opens_the_api(
    closed_site: Pages, authorization: str, status: int
) -> None:
    async with closed_site.client() as client:
        answer = await client.get("/api/calls/", headers={"Authorization": authorization})
        assert answer.status_code == status


async def test_logging_in_gives_a_cookie_that_scripts_and_other_sites_cannot_use(
    closed_site: Pages,
) -> None:
    async with closed_site.client("calls.example") as client:
        form = {"token": TOKEN, "next": "/calls/1.2"}
        answer = await client.post("/login", data=form, headers={"Origin": "http://calls.example"})
        assert (answer.status_code, answer.headers["location"]) == (303, "/calls/1.2")
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=lax" in cookie
        assert TOKEN not in cookie
        assert (await client.get("/api/calls/")).status_code == 200
        assert "Log out" in (await client.get("/calls/")).text

        # The cookie alone does not let other sites act.
        leg = {"uuid": "0d9ef5e0-a8f5-4b4e-9f27-3c3b0b9a6f00"}
        for headers, status in (
            ({}, 403),
            ({"Origin": "http://evil.example"}, 403),
            ({"Origin": "null"}, 403),
            ({"Sec-Fetch-Site": "cross-site"}, 403),
            ({"Sec-Fetch-Site": "same-site", "Origin": "http://calls.example"}, 403),
            ({"Sec-Fetch-Site": "same-origin"}, 201),
        ):
            answer = await client.post("/api/legs/", json=leg, headers=headers)
            assert answer.status_code == status, headers

        answer = await client.post("/logout", headers={"Origin": "http://calls.example"})
        assert answer.headers["location"] == "/login"
        assert (await client.get("/api/calls/")).status_code == 401


async def test_a_wrong_token_gets_the_form_again(closed_site: Pages) -> None:
    async with closed_site.client() as client:
        answer = await client.post("/login", data={"token": "wrong", "next": "//evil.example"})
        assert answer.status_code == 401
        assert "not the token" in answer.text
        assert "evil.example" not in answer.text
        assert "set-cookie" not in answer.headers


async def test_without_a_token_other_sites_cannot_post_either(open_site: Pages) -> None:
    async with open_site.client() as client:
        leg = {"uuid": "0d9ef5e0-a8f5-4b4e-9f27-3c3b0b9a6f00"}
        answer = await client.post("/api/legs/", json=leg, headers={"Origin": "http://evil"})
        assert answer.status_code == 403
        assert answer.json()["error"]["code"] == "cross-site"
        assert (await client.post("/api/legs/", json=leg)).status_code == 201


@pytest.mark.parametrize("path", ["/", "/api/calls/", "/nothing", "/live", "/static/live.js"])
async def test_every_answer_carries_the_headers_that_bind_browsers(
    open_site: Pages, path: str
) -> None:
    async with open_site.client() as client:
        headers = (await client.get(path)).headers
    assert "default-src 'self'" in headers["content-security-policy"]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] in {"no-referrer", "same-origin"}
    expected = "no-cache" if path.startswith("/static/") else "no-store"
    assert headers["cache-control"] == expected


async def test_a_failure_inside_still_carries_the_headers_and_tells_nothing(
    open_site: Pages, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr("web.api.call_json", fail)
    open_site.storage.add_unregistered_leg("0d9ef5e0-a8f5-4b4e-9f27-3c3b0b9a6f00", "d")
    async with open_site.client() as client:
        answer = await client.get("/api/calls/")
        page = await client.get("/")
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "failed"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert page.status_code == 500
    assert "<h1>Something went wrong</h1>" in page.text
    assert "secret detail" not in answer.text + page.text
