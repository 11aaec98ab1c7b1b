"""The published schema: every document keeps to it, whatever state the analysis is in."""

import copy
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from callcore import document, tables
from callcore.calls import Call, CallFacts, CallState, Media, StepState, StepStatus, now
from callcore.engines.vader import Vader
from callcore.errors import CallcoreError, SchemaError
from callcore.insights_document import (
    RESULTS,
    SCHEMA_FILE,
    check_document,
    check_result,
    json_schema,
    published_schema,
    schema_text,
)
from callcore.results import Segment, Transcript, Word
from callcore.steps.annotate import STEP as ANNOTATE
from callcore.steps.insights import STEP as INSIGHTS
from tests.support.pages import Pages, segment_of
from tests.support.recordings import write_wav
from tests.support.results import (
    categories,
    category,
    context,
    entities,
    entity,
    flag,
    quoted,
    recording_of,
    segment,
    summary,
    transcript,
    translation,
)

Document = dict[str, Any]

MEDIA = (Media("caller", "/nowhere/c.wav", 0.0, "00", 1, 8000, 60.0), Media("agent", "/a.wav"))


def is_accepted(made: Document) -> bool:
    """Whether a stranger's validator accepts the JSON."""
    validator = jsonschema.Draft202012Validator(json_schema())
    return bool(validator.is_valid(json.loads(json.dumps(made))))


def whole_results() -> dict[str, Document]:
    """Return the results of all steps; those of insights and annotate are their own."""
    first = segment(0, "caller", 1, 4, "my uncle Juma beats me", p=[0.9, 0.9, 0.3, 0.9, 0.9])
    second = segment(1, "agent", 3, 8, "please hold, I will refer you to the police")
    person = {
        "role": "alleged",
        "entity": 0,
        "name": "Juma",
        "age": None,
        "sex": "male",
        "relation": "uncle",
        "evidence": [quoted(first, "my uncle Juma")],
    }
    claim = {"text": "He is beaten.", "supported": True, "evidence": [quoted(first, "beats me")]}
    results = {
        "transcribe": transcript([first, second]),
        "translate": translation(
            {"segment": 0, "leg": "caller", "start": 1.0, "end": 4.0, "text": "Juma"}
        ),
        "summarize": {
            **summary(),
            "sentences": [claim],
            "reason": claim,
            "actions": [{**claim, "owner": "agent", "due": None}],
            "open_questions": [claim],
        },
        "ner": {**entities(entity(first, "Juma", "NAME")), "people": [person]},
        "classify": categories(
            category("violence.physical", "rule", quoted(first, "beats me")),
            flags=[flag("danger.now", quoted(first, "beats me"))],
        ),
    }
    given = context(results, recording=recording_of(*MEDIA), engines={"sentiment": Vader()})
    results["insights"] = INSIGHTS.run(given)
    results["annotate"] = ANNOTATE.run(given)
    return results


@pytest.fixture(scope="module")
def results() -> dict[str, Document]:
    return whole_results()


def steps(default: str, **states: str) -> list[StepStatus]:
    named = {name: states.get(name, default) for name in ("settle", *RESULTS)}
    return [
        StepStatus(
            name=name,
            status=StepState(state),
            started_at=now() if state in ("running", "done", "failed") else None,
            ms=12 if state == "done" else None,
            attempts=1,
            error="it broke" if state == "failed" else None,
            progress=0.5 if state == "running" else 0.0,
        )
        for name, state in named.items()
    ]


def call() -> Call:
    facts = CallFacts(call_id="c", caller="100", direction="in", started_at=now())
    return Call("c", "c-1", CallState.ENDED, now(), now(), "hangup", facts)


def assembled(
    rows: list[StepStatus], made: dict[str, Document], live: list[Segment] | None = None
) -> Document:
    return document.assemble(call(), recording_of(*MEDIA), rows, made, live or [])


STATES: list[tuple[str, list[StepStatus], tuple[str, ...]]] = [
    ("queued", steps("pending"), ()),
    ("processing", steps("pending", settle="done", transcribe="running"), ()),
    ("processing", steps("pending", settle="done", transcribe="done"), ("transcribe",)),
    ("partial", steps("done", ner="failed"), tuple(name for name in RESULTS if name != "ner")),
    ("partial", steps("done", annotate="skipped"), ("transcribe", "translate")),
    ("failed", steps("skipped", settle="failed"), ()),
    ("failed", steps("skipped", settle="done", transcribe="failed"), ()),
    ("completed", steps("done"), tuple(RESULTS)),
]


@pytest.mark.parametrize(("state", "rows", "done"), STATES)
def test_a_document_is_valid_in_every_state(
    results: dict[str, Document], state: str, rows: list[StepStatus], done: tuple[str, ...]
) -> None:
    made = assembled(rows, {name: results[name] for name in done})
    assert made["status"] == state
    check_document(made)
    assert is_accepted(made)
    for part, step in document.PARTS.items():
        assert (made[part] is not None) == (step in done)


def test_flags_are_those_of_the_categories(results: dict[str, Document]) -> None:
    assert assembled(steps("done"), results)["flags"] == results["classify"]["flags"]
    assert assembled(steps("pending"), {})["flags"] is None


def test_a_document_of_live_words_only_is_valid() -> None:
    live = [segment_of(1, "caller", 0.0, 2.0, "hello there")]
    made = assembled(steps("pending"), {}, live)
    check_document(made)
    assert is_accepted(made)
    assert (made["source"], made["segments"][0]["speaker"]) == ("live", None)


def test_the_types_of_results_and_of_stored_transcripts_agree() -> None:
    word = Word("hello", 0.0, 1.0, 0.5)
    one = Segment(1, "mixed", 0.0, 1.0, "hello", None, (word,), "recording")
    stored = Transcript((one,), "en", 1.0, "scripted", "none", "1", {}).as_json()
    made = assembled(steps("done"), {"transcribe": stored})
    check_document(made)
    assert made["segments"][0]["text"] == "hello"


def test_a_step_of_ones_own_is_part_of_the_document(results: dict[str, Document]) -> None:
    made = assembled(steps("done"), {**results, "loudness": {"engine": None, "lufs": -23}})
    check_document(made)
    assert is_accepted(made)
    assert made["other"] == {"loudness": {"engine": None, "lufs": -23}}


# ---- faults


def put(*path: Any, value: Any) -> Callable[[Document], None]:
    def fault(made: Document) -> None:
        for key in path[:-1]:
            made = made[key]
        made[path[-1]] = value

    return fault


def without(*path: Any) -> Callable[[Document], None]:
    def fault(made: Document) -> None:
        for key in path[:-1]:
            made = made[key]
        del made[path[-1]]

    return fault


FAULTS = [
    put("schema", value="callcore.insights/2"),
    put("status", value="done"),
    put("more", value=1),
    put("segments", 0, "start", value="0.0"),
    put("segments", 0, "words", 0, "p", value=1.5),
    put("segments", 0, "source", value="dream"),
    put("segments", value=None),
    put("call", "state", value="over"),
    put("call", "disposition", value="lost"),
    put("call", "consent", value="yes"),
    put("call", "wait_s", value=-1.0),
    without("call", "answered_at"),
    put("recording", "media", 0, "rate", value=8000.5),
    put("processing", "progress", value=101),
    put("processing", "steps", 0, "status", value="lost"),
    put("translation", "method", value="guess"),
    put("summary", "sentences", 0, "supported", value="yes"),
    put("entities", "entities", 0, "label", value="PERSON"),
    put("entities", "entities", 0, "mentions", 0, "span", value=[1]),
    put("categories", "priority", "level", value="urgent"),
    put("categories", "categories", 0, "evidence", 0, "quote", value=None),
    put("flags", 0, "severity", value="fatal"),
    put("insights", "sentiment", "parties", "caller", "score", value=-6),
    put("insights", "sentiment", "parties", "caller", "quarters", value=[1, 2, 3]),
    put("insights", "safety", "self_harm", "value", value="maybe"),
    put("insights", "talk", "silence_s", value=-1.0),
    put("annotation", "original", "ents", 0, "kind", value="hunch"),
    without("annotation", "original", "html"),
    without("insights", "quality", "channels_ok"),
    without("categories", "categories", 0, "evidence"),
    without("call"),
    without("flags"),
]


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_refused_by_both(
    results: dict[str, Document], fault: Callable[[Document], None]
) -> None:
    made = json.loads(json.dumps(assembled(steps("done"), results)))
    check_document(made)
    fault(made)
    assert not is_accepted(made)
    with pytest.raises(SchemaError, match="the document breaks the schema"):
        check_document(made)


@pytest.mark.parametrize("step", RESULTS)
def test_each_result_is_checked_before_it_is_stored(
    results: dict[str, Document], step: str
) -> None:
    check_result(step, results[step])
    with pytest.raises(SchemaError, match=f"the result of {step} breaks the schema"):
        check_result(step, {**results[step], "engine": 7})
    with pytest.raises(SchemaError):
        check_result(step, {})


@pytest.mark.parametrize(
    "fault",
    [
        put("entities", 0, "label", value="SECRET name"),
        put("SECRET name", value=1),
        put("entities", 0, "SECRET name", value=1),
        put("entities", 0, "text", value=["SECRET name"]),
        put("entities", 0, "SECRET - at `$.x`\n", value=1),
        put("parameters", value={"SECRET": object()}),
        put("parameters", value={"SECRET": float("nan")}),
    ],
)
def test_a_reason_names_the_place_and_no_words(
    results: dict[str, Document], fault: Callable[[Document], None]
) -> None:
    made = copy.deepcopy(results["ner"])
    fault(made)
    with pytest.raises(CallcoreError) as refused:
        check_result("ner", made)
    assert "SECRET" not in str(refused.value)
    assert "the result of ner" in str(refused.value)


def test_a_reason_says_where(results: dict[str, Document]) -> None:
    made = copy.deepcopy(results["ner"])
    made["entities"][0]["label"] = "PERSON"
    with pytest.raises(SchemaError, match=r"not one of the values - at `\$\.entities\[0\]\.label`"):
        check_result("ner", made)


def test_a_number_that_json_lacks_is_refused() -> None:
    with pytest.raises(SchemaError, match="JSON"):
        check_result("own", {"level": float("inf")})


def test_a_stored_result_that_no_longer_fits_is_left_out(
    results: dict[str, Document], caplog: pytest.LogCaptureFixture
) -> None:
    old = {**results, "ner": {"names": ["Juma"]}}
    with caplog.at_level(logging.WARNING):
        made = assembled(steps("done"), old)
    check_document(made)
    assert made["entities"] is None
    assert made["summary"] is not None
    assert "left out" in caplog.text
    assert "Juma" not in caplog.text


# ---- what is published


def test_the_committed_schema_is_that_of_the_types() -> None:
    assert published_schema().decode() == schema_text(), (
        f"run: python -m callcore.insights_document > callcore/data/schema/{SCHEMA_FILE}"
    )


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema())


@pytest.fixture
def pages(tmp_path: Path) -> Iterator[Pages]:
    pages = Pages(tmp_path, redis_url="redis://127.0.0.1:1/0")
    yield pages
    pages.close()


async def test_the_web_serves_the_schema_and_documents_that_keep_to_it(
    pages: Pages, tmp_path: Path
) -> None:
    media = [Media("mixed", str(write_wav(tmp_path / "m.wav", 2.0)))]
    said = [segment_of(1, "mixed", 0.0, 2.0, "hello there", source="recording", latency=None)]
    audio_id = pages.record("c1", media, said)
    async with pages.client() as client:
        schema = await client.get(f"/api/schema/{SCHEMA_FILE}")
        made = await client.get(f"/api/audio/{audio_id}/")
    assert schema.headers["content-type"].startswith("application/schema+json")
    assert made.json()["source"] == "recording"
    jsonschema.Draft202012Validator(schema.json()).validate(made.json())


def test_a_document_that_breaks_the_schema_is_shown_all_the_same(
    pages: Pages, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    media = [Media("mixed", str(write_wav(tmp_path / "m.wav", 2.0)))]
    audio_id = pages.record("c1", media, [])
    database = pages.storage.database
    with database.transaction():
        database.run(tables.Recording.update(duration_s=-1.0))
    made = document.read(pages.storage, audio_id)
    assert made["recording"]["duration"] == -1.0
    assert "a document breaks its schema" in caplog.text


_AT_ONCE = """
import contextlib, sys, threading
sys.setswitchinterval(1e-6)
from callcore.errors import SchemaError
from callcore.insights_document import check_result

def check():
    for _ in range(20):
        with contextlib.suppress(SchemaError):
            check_result("ner", {"engine": None, "model": None, "version": None, "parameters": {},
                                 "entities": [], "people": []})

threads = [threading.Thread(target=check) for _ in range(8)]
[each.start() for each in threads]
[each.join() for each in threads]
"""


def test_threads_whose_first_checks_meet_do_not_end_the_process():
    # Half of the processes died of it (SIGSEGV in msgspec 0.22) when types were read at first use.
    for _ in range(4):
        done = subprocess.run([sys.executable, "-c", _AT_ONCE], check=False, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
