"""Missed calls, refused analysis and lost recordings, in the API and on the pages."""

import re
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from callcore.calls import REFUSED, Disposition
from callcore.storage import recording_rows
from tests.support.analysed import full, sample, store
from tests.support.endings import (
    DECLINED,
    GONE,
    TOO_MANY,
    change,
    lost,
    missed,
    refuse,
    without_text,
)
from tests.support.pages import Pages, segment_of
from web.names import LOST, sentence, waited

CALL = "1795370099.12"
NUMBER = "+254 700 000 123"
#: What a row shows where there is nothing to say.
UNKNOWN = "\N{EN DASH}"
BEGAN = datetime(2026, 11, 23, 9, 0, tzinfo=UTC)


@pytest.fixture
def pages(tmp_path: Path) -> Iterator[Pages]:
    pages = Pages(tmp_path)
    yield pages
    pages.close()


@pytest.fixture
async def client(pages: Pages) -> AsyncIterator[httpx.AsyncClient]:
    async with pages.client() as client:
        yield client


async def text_of(client: httpx.AsyncClient, path: str) -> str:
    """Return what a page shows, without its markup and without what is hidden."""
    answer = await client.get(path)
    assert answer.status_code == 200
    shown = re.sub(r"<(\w+)[^>]* hidden>.*?</\1>", " ", answer.text, flags=re.S)
    return " ".join(re.sub(r"<[^>]*>", " ", shown).split())


async def read(client: httpx.AsyncClient, call_id: str = CALL) -> dict[str, Any]:
    answer = await client.get(f"/api/calls/{call_id}/")
    assert answer.status_code == 200
    state: dict[str, Any] = answer.json()
    return state


# ---- the API


async def test_a_call_says_how_it_went_and_how_long_somebody_waited(
    client: httpx.AsyncClient, pages: Pages
) -> None:
    audio_id = store(pages, CALL, sample(), {}, started_at=BEGAN)
    told = {"disposition": None, "answered_at": None, "wait_s": None, "consent": None}
    assert told.items() <= (await read(client)).items()
    change(
        pages,
        CALL,
        disposition=Disposition.ANSWERED,
        answered_at=BEGAN + timedelta(seconds=14),
        ended_at=BEGAN + timedelta(seconds=60),
    )
    told = {"disposition": "answered", "answered_at": "2026-11-23T09:00:14.000Z", "wait_s": 14.0}
    assert told.items() <= (await read(client)).items()
    document = (await client.get(f"/api/audio/{audio_id}/")).json()
    assert {**told, "consent": None}.items() <= document["call"].items()


async def test_who_missed_a_call_sees_how_long_the_caller_waited(
    client: httpx.AsyncClient, pages: Pages
) -> None:
    missed(pages, CALL, Disposition.ABANDONED, BEGAN, 95.5, caller=NUMBER)
    state = await read(client)
    told = {"state": "missed", "disposition": "abandoned", "answered_at": None, "wait_s": 95.5}
    assert told.items() <= state.items()
    assert (state["caller"], state["recordings"]) == (NUMBER, [])


async def test_a_leg_says_why_it_has_no_live_text(client: httpx.AsyncClient, pages: Pages) -> None:
    pages.begin_call(CALL)
    without_text(pages, pages.legs["agent"])
    legs = {leg["leg"]: leg["no_text"] for leg in (await read(client))["legs"]}
    assert legs == {"caller": None, "agent": TOO_MANY}
    (listed,) = (await client.get("/api/calls/")).json()["calls"]
    assert [leg["no_text"] for leg in listed["legs"]] == [None, TOO_MANY]


async def test_nothing_that_a_refused_call_holds_is_told(
    client: httpx.AsyncClient, pages: Pages
) -> None:
    """Whatever is left in the record: words of the last moment, the number of a late report."""
    audio_id = store(pages, CALL, sample(), full(), caller=NUMBER, started_at=BEGAN)
    refuse(pages, CALL)
    change(pages, CALL, consent=None)
    pages.storage.add_live_segment(CALL, segment_of(1, "caller", 1.0, 2.0, "My secret"))
    change(pages, CALL, consent=REFUSED, caller=NUMBER)
    for path in (f"/api/calls/{CALL}/", f"/api/audio/{audio_id}/"):
        answer = await client.get(path)
        assert NUMBER not in answer.text, path
        assert "secret" not in answer.text, path
        assert answer.json()["segments"] == []
    state = await read(client)
    assert (state["consent"], state["caller"]) == ("no", None)
    assert [(r["state"], r["reason"]) for r in state["recordings"]] == [("refused", DECLINED)]
    assert (await client.get(f"/api/audio/{audio_id}/media")).status_code == 404
    for path in ("/calls/", f"/calls/{CALL}", f"/calls/{CALL}/live"):
        page = (await client.get(path)).text
        assert NUMBER not in page, path
        assert "secret" not in page, path


# ---- the list


async def test_the_list_says_of_missed_calls_what_kind_and_how_long_they_waited(
    client: httpx.AsyncClient, pages: Pages
) -> None:
    kinds = (*(d for d in Disposition if d != Disposition.ANSWERED), None)
    for number, kind in enumerate(kinds):
        missed(pages, f"1.{number}", kind, BEGAN + timedelta(seconds=number), 30 + number)
    page = await text_of(client, "/calls/")
    for said in (
        "No answer, waited 30 s",
        "Busy, waited 31 s",
        "Caller hung up, waited 32 s",
        "Could not be reached, waited 33 s",
        "Nobody answered, waited 34 s",
    ):
        assert f"{said} {UNKNOWN} {UNKNOWN} Missed" in page, said


async def test_the_list_of_missed_calls_keeps_to_them_over_its_pages(
    client: httpx.AsyncClient, pages: Pages
) -> None:
    store(pages, CALL, sample(), full(), started_at=BEGAN)
    for number in range(60):
        missed(pages, f"2.{number}", Disposition.BUSY, BEGAN + timedelta(minutes=number), 1)
        pages.storage.add_unregistered_leg(f"0d9ef5e0-a8f5-4b4e-9f27-{number:012}", "d")
    first = (await client.get("/calls/?state=missed")).text
    older = first.split('rel="next" href="')[1].split('"')[0].replace("&amp;", "&")
    second = (await client.get(older)).text
    rows = [re.findall(r"<bdi>(2\.\d+)</bdi></a>", page) for page in (first, second)]
    assert [len(each) for each in rows] == [50, 10]
    assert len({*rows[0], *rows[1]}) == 60
    for page in (first, second):
        assert "<bdi>0d9ef5e0" not in page
        assert CALL not in page
        assert 'href="/calls/?state=missed" aria-current="page">Missed<' in page
    assert 'rel="next"' not in second
    assert '<a href="/calls/?state=missed">Newest</a>' in second
    assert 'href="/calls/" aria-current="page">All<' in (await client.get("/calls/")).text


async def test_a_list_without_missed_calls_says_so_and_an_unknown_one_is_refused(
    client: httpx.AsyncClient, pages: Pages
) -> None:
    store(pages, CALL, sample(), full())
    assert "No call was missed" in await text_of(client, "/calls/?state=missed")
    assert CALL in await text_of(client, "/calls/?state=")
    answer = await client.get("/calls/?state=lost")
    assert answer.status_code == 400
    assert "Expected `missed` or nothing." in answer.text


async def test_a_missed_call_with_a_recording_shows_its_analysis_too(
    client: httpx.AsyncClient, pages: Pages
) -> None:
    store(pages, CALL, sample(), full(), caller=NUMBER, started_at=BEGAN)
    ended = {"state": "missed", "ended_at": BEGAN + timedelta(seconds=40)}
    change(pages, CALL, disposition=Disposition.NO_ANSWER, **ended)
    listed = await text_of(client, "/calls/?state=missed")
    assert "1:18 No answer, waited 40 s Physical violence A woman is afraid" in listed
    assert listed.endswith("Missed Completed")
    page = await text_of(client, f"/calls/{CALL}")
    assert "No answer Nobody answered; the caller waited 40 s." in page
    assert "There is a recording all the same: see below." in page
    assert "Her husband broke the kitchen door." in page
    assert "<audio" in (await client.get(f"/calls/{CALL}")).text


async def test_a_recording_that_is_missing_is_called_so_in_the_list(
    client: httpx.AsyncClient, pages: Pages
) -> None:
    lost(pages, CALL, started_at=BEGAN)
    assert (await text_of(client, "/calls/")).endswith("Recording missing")
    # With another one that is there, the call has an analysis.
    store(pages, CALL, sample(), full())
    assert "Recording missing" not in await text_of(client, "/calls/")


async def test_an_analysis_outlives_the_sound_that_was_deleted(
    client: httpx.AsyncClient, pages: Pages
) -> None:
    audio_id = store(pages, CALL, sample(), full())
    with pages.storage.database.transaction():
        recording_rows.set_state(
            pages.storage.database,
            audio_id,
            recording_rows.RecordingState.MISSING,
            "its audio was deleted after 30 days",
        )
    assert (await text_of(client, "/calls/")).endswith("Completed")
    page = await text_of(client, f"/calls/{CALL}")
    assert "The recording is missing" not in page
    assert "Her husband broke the kitchen door." in page
    assert "its audio was deleted after 30 days" in page


async def test_a_refused_call_is_listed_without_its_number(
    client: httpx.AsyncClient, pages: Pages
) -> None:
    store(pages, CALL, sample(), full(), caller=NUMBER)
    refuse(pages, CALL)
    page = await text_of(client, "/calls/")
    assert "withheld" in page
    assert page.endswith("Analysis refused")
    assert "violence" not in page


# ---- the page of a call


@pytest.mark.parametrize(
    ("disposition", "said"),
    [
        (Disposition.NO_ANSWER, "No answer Nobody answered; the caller waited 2:05 min."),
        (Disposition.BUSY, "Busy The other side was busy; the caller waited 2:05 min."),
        (
            Disposition.ABANDONED,
            "Caller hung up The caller hung up before anybody answered, after 2:05 min.",
        ),
        (
            Disposition.FAILED,
            "Could not be reached The other side could not be reached; the caller waited 2:05 min.",
        ),
        (None, "Nobody answered Nobody answered; the caller waited 2:05 min."),
    ],
)
async def test_the_page_of_a_missed_call_says_how_it_was_missed(
    client: httpx.AsyncClient, pages: Pages, disposition: Disposition | None, said: str
) -> None:
    missed(pages, CALL, disposition, BEGAN, 125, caller=NUMBER)
    page = await text_of(client, f"/calls/{CALL}")
    assert f"{NUMBER} Missed" in page
    assert said in page
    assert "Waited 2:05 min" in page
    assert "Nobody answered, so there is no conversation to show." in page
    assert "A missed call has no recording." in page
    assert "Length" not in page
    assert 'data-complete="yes"' in (await client.get(f"/calls/{CALL}")).text


async def test_the_page_of_a_refused_call_says_what_is_not_kept(
    client: httpx.AsyncClient, pages: Pages
) -> None:
    audio_id = store(pages, CALL, sample(), full(), caller=NUMBER, agent="Amina")
    refuse(pages, CALL)
    answer = await client.get(f"/calls/{CALL}?audio={audio_id}")
    page = await text_of(client, f"/calls/{CALL}")
    assert "The caller refused analysis" in page
    assert "Neither its text nor its sound is kept here" in page
    assert "Caller withheld at the caller's wish Agent Amina" in page
    assert "No text of this call is kept." in page
    for part in ("<audio", "data-rerun", 'class="segment"', 'id="summary"', "The analysis failed"):
        assert part not in answer.text, part
    assert 'data-complete="yes"' in answer.text


async def test_a_refused_call_without_a_recording_awaits_none(
    client: httpx.AsyncClient, pages: Pages
) -> None:
    pages.begin_call(CALL, caller=NUMBER)
    refuse(pages, CALL)
    answer = await client.get(f"/calls/{CALL}")
    assert 'data-complete="no"' in answer.text  # its legs have not ended yet
    assert "Open the live page" not in answer.text
    pages.end_call(CALL)
    answer = await client.get(f"/calls/{CALL}")
    assert 'data-complete="yes"' in answer.text
    assert "No recording of this call is kept." in answer.text


@pytest.mark.parametrize("door", ["spool", "agi", "upload", "capture"])
async def test_the_page_of_a_lost_recording_says_why_and_what_to_do(
    client: httpx.AsyncClient, pages: Pages, door: str
) -> None:
    audio_id = lost(pages, CALL, door)
    answer = await client.get(f"/calls/{CALL}")
    page = await text_of(client, f"/calls/{CALL}")
    advice = LOST[door].replace("'", "&#39;")
    because = sentence(GONE).replace("'", "&#39;")
    assert f"The recording is missing {because} {advice} Look again" in page
    assert f'data-rerun="{audio_id}"' in answer.text
    assert "The analysis failed" not in page
    assert "Recording missing" in page
    assert "No words: the recording is missing, and there was no live text." in page


async def test_a_lost_recording_leaves_the_live_text(
    client: httpx.AsyncClient, pages: Pages
) -> None:
    pages.begin_call(CALL)
    pages.storage.add_live_segment(CALL, segment_of(1, "caller", 1.0, 2.0, "Hello there"))
    without_text(pages, pages.legs["agent"])
    pages.end_call(CALL)
    lost(pages, CALL)
    page = await text_of(client, f"/calls/{CALL}")
    assert "It was written while people spoke; the recording could not be transcribed." in page
    assert "Agent: no live text. Too many calls at once; its text comes from the recording." in page
    assert "Hello there" in page


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(None, ""), (0.0, ""), (0.9, ""), (1.0, "1 s"), (59.0, "59 s"), (125.0, "2:05 min")],
)
def test_a_wait_is_said_as_people_say_it(seconds: float | None, said: str) -> None:
    assert " ".join(waited(seconds).split()) == said
