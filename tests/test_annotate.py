"""Spans and HTML of the transcript, whatever was said and however spans lie."""

import html.parser
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callcore.insights_document import check_result
from callcore.marked_text import Line, Mark, render
from callcore.steps.annotate import STEP
from tests.support.results import (
    categories,
    category,
    context,
    entities,
    entity,
    flag,
    quoted,
    segment,
    transcript,
    translation,
)


def annotate(segments: list[dict[str, Any]], **results: Any) -> dict[str, Any]:
    found = STEP.run(context({"transcribe": transcript(segments), **results}))
    check_result("annotate", found)
    return found


def marked(text: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [(e["kind"], e["label"], text["text"][e["start"] : e["end"]]) for e in text["ents"]]


class Reader(html.parser.HTMLParser):
    """Reads what a browser would: tags, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.names: set[str] = set()
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.names |= {name for name, _ in attrs}
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


HOSTILE = "<script>alert(1)</script> \"><img src=x onerror=alert(1)> & ' </p></mark>"


def test_entities_flags_categories_and_doubtful_words_are_marked() -> None:
    first = segment(0, "caller", 0, 4, "I am Amina from Nairobi", p=[0.9, 0.9, 0.9, 0.3, 0.2])
    second = segment(1, "caller", 5, 8, "he beats me")
    found = annotate(
        [second, first],
        ner=entities(entity(first, "Amina", "NAME"), entity(first, "Nairobi", "LOCATION", 1)),
        classify=categories(
            category("violence.physical", "rule", quoted(second, "beats me")),
            flags=[flag("risk.beaten", quoted(second, "he beats me"))],
        ),
    )
    original = found["original"]
    assert original["text"] == "I am Amina from Nairobi\nhe beats me"
    assert marked(original) == [
        ("entity", "NAME", "Amina"),
        ("low_confidence", "low confidence", "from Nairobi"),
        ("entity", "LOCATION", "Nairobi"),
        ("flag", "risk.beaten", "he beats me"),
        ("category", "violence.physical", "beats me"),
    ]
    assert original["segments"] == [
        {"segment": 0, "start": 0, "end": 23},
        {"segment": 1, "start": 24, "end": 35},
    ]
    assert '<mark class="entity low-confidence"' in original["html"]
    assert 'title="&lt;b&gt;risk.beaten&lt;/b&gt;"' in original["html"]


def test_no_word_is_said_to_be_heard_with_no_certainty() -> None:
    found = annotate([segment(0, "caller", 0, 2, "come home", p=[0.9, 0.001])])
    (mark,) = found["original"]["ents"]
    assert mark["title"] == "heard with <1% certainty"
    assert "&lt;1%" in found["original"]["html"]


def test_words_that_are_said_twice_are_marked_at_their_time() -> None:
    said = segment(0, "caller", 0, 8, "he beats me yes he beats me")
    words = quoted(said, "beats me")
    again = {**words, "start": 5.5, "end": 7.9}
    found = annotate([said], classify=categories(category("violence", "rule", again)))
    (mark,) = found["original"]["ents"]
    assert mark["start"] == said["text"].rindex("beats me")


def test_evidence_that_is_not_in_the_words_is_not_marked() -> None:
    said = segment(0, "caller", 0, 8, "he beats me")
    elsewhere = {**quoted(said, "beats"), "segment": 77}
    unsaid = {**quoted(said, "beats"), "quote": "kicks"}
    empty = {**quoted(said, "beats"), "quote": ""}
    found = annotate([said], classify=categories(category("v", "rule", elsewhere, unsaid, empty)))
    assert found["original"]["ents"] == []


def test_a_call_without_words_is_an_empty_text() -> None:
    found = annotate([])
    assert found["original"] == {"text": "", "ents": [], "html": "", "segments": []}
    assert found["translation"] is None


def test_the_translation_marks_only_the_very_words() -> None:
    said = segment(0, "caller", 0, 4, "me llamo Ana y vivo en Sevilla", language="es")
    named = entities(entity(said, "Ana", "NAME"), entity(said, "Sevilla", "LOCATION", 1))
    there = {"segment": 0, "leg": "caller", "start": 0.0, "end": 4.0}
    text = "my name is Ana, not Anabel, and I live in Seville"
    found = annotate([said], ner=named, translate=translation({**there, "text": text}))
    assert marked(found["translation"]) == [("entity", "NAME", "Ana")]


def test_a_translation_with_times_of_its_own_is_matched_by_time() -> None:
    said = segment(0, "caller", 0, 4, "me llamo Ana", language="es")
    later = segment(1, "caller", 10, 14, "hola Pedro", language="es")
    named = entities(entity(said, "Ana", "NAME"), entity(later, "Pedro", "NAME", 1))
    heard = translation(
        {"segment": None, "leg": "caller", "start": 1.0, "end": 5.0, "text": "I am Ana Pedro"},
        method="whisper",
    )
    found = annotate([said, later], ner=named, translate=heard)
    assert marked(found["translation"]) == [("entity", "NAME", "Ana")]
    assert found["translation"]["segments"] == [{"segment": None, "start": 0, "end": 14}]


def test_what_was_said_in_the_target_language_has_no_translation() -> None:
    found = annotate([segment(0, "caller", 0, 1)], translate=translation(method=None))
    assert found["translation"] is None


def test_hostile_words_are_text_and_nothing_else() -> None:
    said = segment(0, "caller", 0, 4, HOSTILE)
    evil = entity(said, "<script>alert(1)</script>", "NAME")
    evil["role"] = '"><b onmouseover=alert(1)>'
    found = annotate([{**said, "leg": '"><i>', "language": '"><u>'}], ner=entities(evil))
    reader = Reader(found["original"]["html"])
    assert reader.tags == {"p", "mark"}
    assert reader.names <= {
        "data-party", "data-segment", "data-start", "lang", "dir",
        "class", "data-labels", "title",
    }  # fmt: skip
    assert reader.text == HOSTILE
    assert "style" not in found["original"]["html"]


TEXTS = st.text(st.sampled_from("ab <>&\"'é\n"), max_size=20)
MARKS = st.lists(
    st.builds(
        Mark,
        start=st.integers(-2, 22),
        end=st.integers(-2, 22),
        label=st.sampled_from(["NAME", "<b>"]),
        kind=st.sampled_from(["entity", "flag", "category", "low_confidence"]),
        title=TEXTS,
    ),
    max_size=8,
)


@given(TEXTS, MARKS, st.randoms())
def test_spans_however_they_lie_give_well_formed_html_of_the_same_text(
    text: str, marks: list[Mark], random: Any
) -> None:
    def line(given: list[Mark]) -> Line:
        return Line(7, "caller", 1.5, "en", text, tuple(given))

    found = render([line(marks)])
    reader = Reader(found["html"])
    assert not reader.open
    assert reader.text == text
    assert reader.tags <= {"p", "mark"}
    shuffled = list(marks)
    random.shuffle(shuffled)
    assert render([line(shuffled)]) == found
    for each in found["ents"]:
        assert 0 <= each["start"] < each["end"] <= len(text)


@given(st.lists(TEXTS, max_size=5))
def test_offsets_of_segments_lead_to_their_words(texts: list[str]) -> None:
    lines = [Line(n, "caller", float(n), None, text, ()) for n, text in enumerate(texts)]
    found = render(lines)
    for place, text in zip(found["segments"], texts, strict=True):
        assert found["text"][place["start"] : place["end"]] == text


@pytest.mark.parametrize(
    ("text", "words", "found"),
    [
        ("one two", ["one", "two"], ["two"]),
        ("onetwo", ["one", "two"], ["two"]),  # scripts without spaces
        ("one, TWO", ["one", "two"], []),  # the text was written anew
        ("one", ["", "two"], []),
    ],
)
def test_doubtful_words_are_found_in_the_text(
    text: str, words: list[str], found: list[str]
) -> None:
    said = segment(0, "caller", 0, 1, "x")
    said["text"] = text
    said["words"] = [
        {"w": word, "s": 0.0, "e": 1.0, "p": 0.9 if at == 0 else 0.1}
        for at, word in enumerate(words)
    ]
    original = annotate([said])["original"]
    assert [words for _, _, words in marked(original)] == found
    assert not re.search("style|script", original["html"])
