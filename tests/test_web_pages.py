"""The pages of calls and their analysis, as they come from the server."""

import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.analysed import full, sample, sample_segments, store
from tests.support.pages import Pages
from tests.support.results import entities, segment, transcript

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'"
CALL = "1795370099.12"
#: Between a category and its child.
THEN = "\N{SINGLE RIGHT-POINTING ANGLE QUOTATION MARK}"


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
    """Return what a page says, without its markup."""
    answer = await client.get(path)
    assert answer.status_code == 200
    return " ".join(re.sub(r"<[^>]*>", " ", answer.text).split())


async def test_a_call_that_is_being_transcribed_says_how_many_seconds_are_done(
    client: httpx.AsyncClient, pages: Pages
) -> None:
    store(pages, CALL, sample(), {}, running={"transcribe": 0.5})
    page = await text_of(client, f"/calls/{CALL}")
    assert "Transcribing: 39 of 78 s" in page
    assert "No words yet: the recording is being processed." in page
    piece = await text_of(client, f"/calls/{CALL}/progress")
    assert piece == "Processing Transcribing: 39 of 78 s 7 %"
    listed = await client.get("/calls/")
    assert "data-processing" in listed.text
    assert "Transcribing" in listed.text


async def test_steps_that_run_side_by_side_are_all_named(
    client: httpx.AsyncClient, pages: Pages
) -> None:
    made = {"transcribe": full()["transcribe"]}
    store(pages, CALL, sample(), made, running={"translate": 0.25, "ner": 0.0})
    piece = await text_of(client, f"/calls/{CALL}/progress")
    assert "Translating: 25% · Finding names and numbers…" in piece


async def test_a_recording_nobody_has_begun_says_what_comes_first(
    client: httpx.AsyncClient, pages: Pages
) -> None:
    store(pages, CALL, sample(), {})
    assert "Next: transcribe" in await text_of(client, f"/calls/{CALL}/progress")


async def test_a_part_that_failed_says_why_and_can_run_again_and_the_rest_is_shown(
    client: httpx.AsyncClient, pages: Pages
) -> None:
    made = full()
    del made["classify"]
    audio_id = store(pages, CALL, sample(), made, failed={"classify": f"no model {HOSTILE}"})
    answer = await client.get(f"/calls/{CALL}")
    assert f'data-rerun="{audio_id}"' in answer.text
    assert "no model &lt;script&gt;" in answer.text
    page = await text_of(client, f"/calls/{CALL}")
    assert "Part of the analysis is missing Sort into categories : no model" in page
    assert "A woman is afraid that her husband comes back" in page
    assert 'id="categories"' not in answer.text
    assert 'id="flags"' not in answer.text
    assert 'data-complete="yes"' in answer.text
    assert "Partly done" in await text_of(client, "/calls/")


async def test_an_analysis_that_failed_says_what_else_could_not_be_done(
    client: httpx.AsyncClient, pages: Pages
) -> None:
    store(pages, CALL, sample(), {}, failed={"transcribe": "the model base is missing"})
    page = await text_of(client, f"/calls/{CALL}")
    assert "The analysis failed Transcribe : the model base is missing" in page
    assert "Run again" in page
    assert "No words were recognised in this call." in page
    assert "Failed" in await text_of(client, "/calls/")


async def test_parts_that_are_not_there_are_not_shown(
    client: httpx.AsyncClient, pages: Pages
) -> None:
    store(pages, CALL, sample(), {"transcribe": full()["transcribe"]})
    page = (await client.get(f"/calls/{CALL}")).text
    shown = re.findall(r'class="card(?: \w+)?" id="([\w-]+)"', page)
    assert shown == ["about"]
    assert "data-shows" not in page  # nothing is marked: nothing to switch


async def test_everything_that_was_found_is_shown_with_its_words(
    client: httpx.AsyncClient, pages: Pages
) -> None:
    store(pages, CALL, sample(), full(), caller="+254 700 000 123")
    answer = await client.get(f"/calls/{CALL}")
    shown = set(re.findall(r'class="card(?: \w+)?" id="([\w-]+)"', answer.text))
    assert shown == {
        *("summary", "flags", "timeline", "about", "categories", "safety", "people", "entities"),
        *("talk", "sentiment", "follow-up", "quality"),
    }
    page = await text_of(client, f"/calls/{CALL}")
    for said in (
        "Her brother is with her. not found in the call",
        "Critical priority Somebody was hurt today",
        "Kind of call: A young person about themselves",
        f"Violence {THEN} Physical violence Critical a rule matched, score 0.92",
        "Was this right? ✓ ✗",
        "Child , daughter , female , 9 years old",
        "Names David agent 0:04",
        "Yes Physical violence",
        "No Self-harm",
        "Nothing said of: immediate danger, sexual violence, emotional violence, neglect,",
        "Caller 43 % 30 s, 120 words, 171 a minute; longest 10.0 s",
        "First response 1.0 s Silence 9.8 s On hold 0.0 s Both at once 0.4 s Interruptions 1",
        "Agent interrupts caller 0:26",
        "Follow-up agreed tonight",
        "Certainty of words 94 %",
        "Live words changed, caller 8 %",
        "▲ 2 % clipped",
    ):
        assert said in page, said
    # The critical flag comes before the warning, whatever the order of the rules.
    assert page.index("Critical Door broken in anger") < page.index("Warning Police mentioned")
    assert page.count("not found in the call") == 1


async def test_every_piece_of_evidence_leads_to_a_segment_of_the_page(
    client: httpx.AsyncClient, pages: Pages
) -> None:
    store(pages, CALL, sample(), full())
    page = (await client.get(f"/calls/{CALL}")).text
    targets = set(re.findall(r'class="evidence[^"]*" href="#(s\d+)"', page))
    assert len(targets) > 5
    assert targets <= set(re.findall(r'class="segment" id="(s\d+)"', page))


async def test_what_steps_found_is_text_and_nothing_else(
    client: httpx.AsyncClient, pages: Pages
) -> None:
    made = full(label=HOSTILE)
    made["summarize"] |= {"headline": HOSTILE, "model": HOSTILE}
    made["summarize"]["sentences"][0]["text"] = HOSTILE
    made["ner"]["entities"][0] |= {"text": HOSTILE, "normal": HOSTILE}
    made["ner"]["people"][0] |= {"name": HOSTILE, "relation": HOSTILE}
    made["classify"]["categories"][0] |= {"label": HOSTILE, "path": [HOSTILE, HOSTILE]}
    made["classify"]["priority"]["why"][0]["text"] = HOSTILE
    made["translate"]["segments"][0]["text"] = HOSTILE
    store(pages, CALL, sample(), made)
    for path in (f"/calls/{CALL}", "/calls/"):
        page = (await client.get(path)).text
        assert "<script>alert" not in page, path
        assert "<img" not in page, path
        assert "onerror=alert(2)&gt;&#34;&#39;" in page, path


def mono(speaker_a: str | None, speaker_b: str | None) -> dict[str, Any]:
    said = [
        segment(1, "mixed", 1.0, 2.0, "Hello there", speaker=speaker_a),
        segment(2, "mixed", 2.1, 3.0, "Good morning", speaker=speaker_b),
    ]
    return {"transcribe": transcript(said)}


async def test_speakers_of_a_mono_recording_are_called_a_and_b(
    client: httpx.AsyncClient, pages: Pages
) -> None:
    store(pages, CALL, sample(), mono("A", "B"))
    store(pages, "1795370100.1", sample("support-billing"), mono(None, None))
    page = await text_of(client, f"/calls/{CALL}")
    assert "Speaker A 0:01 Hello there Speaker B 0:02 Good morning" in page
    page = await text_of(client, "/calls/1795370100.1")
    assert "Everyone 0:01 Hello there Good morning" in page


async def test_a_call_whose_names_are_hidden_by_a_wrong_step_still_reads(
    client: httpx.AsyncClient, pages: Pages
) -> None:
    """A result of an older callcore is left out; the page goes on without it."""
    made = {"transcribe": full()["transcribe"], "ner": entities()}
    audio_id = store(pages, CALL, sample(), made)
    with pages.storage.database.transaction():
        pages.storage.database.peewee.execute_sql(
            "UPDATE results SET document = '{}' WHERE audio_id = ? AND step = 'ner'", (audio_id,)
        )
    page = await text_of(client, f"/calls/{CALL}")
    assert "My husband came home very angry again tonight" in page


async def test_the_list_shows_what_calls_were_about(
    client: httpx.AsyncClient, pages: Pages
) -> None:
    store(pages, CALL, sample(), full())
    store(pages, "1795370100.1", sample("support-billing"), mono(None, None))
    page = await text_of(client, "/calls/")
    row = page[page.index(CALL) :]
    assert "Physical violence A woman is afraid that her husband comes back Critical 2" in row
    assert "1:18" in row
    assert row.endswith("Completed")


async def test_an_hour_of_marked_words_is_one_page(client: httpx.AsyncClient, pages: Pages) -> None:
    once = sample_segments()
    said = [
        {
            **each,
            "segment": 1000 + 100 * n + i,
            "start": each["start"] + 78 * n,
            "end": each["end"] + 78 * n,
        }
        for n in range(46)
        for i, each in enumerate(once)
    ]
    store(pages, CALL, sample(), {"transcribe": transcript(said, 3600.0)})
    page = (await client.get(f"/calls/{CALL}")).text
    assert page.count('class="segment"') == 46 * len(once)


async def test_unknown_calls_have_no_progress(client: httpx.AsyncClient) -> None:
    assert (await client.get("/calls/none/progress")).status_code == 404


async def test_a_taxonomy_that_cannot_be_read_leaves_ids_in_place_of_names(tmp_path: Path) -> None:
    pages = Pages(tmp_path, environ={"CALLCORE_TAXONOMIES": str(tmp_path / "none.yaml")})
    store(pages, CALL, sample(), full())
    async with pages.client() as client:
        page = await text_of(client, f"/calls/{CALL}")
    pages.close()
    assert "Kind of call: self" in page
    assert f"violence {THEN} Physical violence" in page
    assert "Add a missing category" not in page
