"""Marked words, turns, pictures and names: what the pages print."""

from typing import Any

import pytest

from callcore.marked_text import Line, Mark, render
from tests.support.analysed import full
from tests.support.results import segment, translation
from web.marks import Marks
from web.names import clock, feeling, percent, seconds, speaker
from web.pictures import quarters, timeline
from web.turns import add_translation, turns_of


def marked(of: dict[str, Any], *marks: Mark) -> dict[str, Any]:
    return render([Line(of["segment"], of["leg"], of["start"], "en", of["text"], marks)])


def printed(marks: Marks, of: dict[str, Any]) -> list[tuple[str, str]]:
    return [(piece.text, piece.classes) for token in marks.tokens(of) for piece in token.pieces]


def test_marks_cut_words_where_they_begin_and_end_and_overlap_as_they_like() -> None:
    said = segment(1, "caller", 1.0, 3.0, "I am Grace, help me.")
    marks = Marks(
        marked(
            said,
            Mark(5, 10, "NAME", "entity", "NAME: Grace"),
            Mark(0, 16, "cry", "flag", "Cry for help"),
            Mark(12, 19, "help", "category", "Help"),
        ),
        [{"rule": "cry", "severity": "warning"}],
    )
    assert printed(marks, said) == [
        ("I", "flag"),
        (" ", "flag"),
        ("am", "flag"),
        (" ", "flag"),
        ("Grace", "flag entity"),
        (",", "flag"),
        (" ", "flag"),
        ("help", "flag category"),
        (" ", "category"),
        ("me", "category"),
        (".", ""),
    ]
    tokens = marks.tokens(said)
    words = [token for token in tokens if token.start is not None]
    assert [(token.start, token.end) for token in words] == [
        (word["s"], word["e"]) for word in said["words"]
    ]
    assert tokens[0].pieces[0].severity == "warning"
    assert tokens[2].pieces[0].severity == ""
    assert tokens[4].pieces[0].title == "Cry for help; NAME: Grace"


def test_without_an_annotation_doubtful_words_are_marked_and_nothing_else() -> None:
    said = segment(1, "caller", 1.0, 3.0, "maybe so", p=[0.4, 0.9])
    assert printed(Marks(None), said) == [("maybe", "low-confidence"), (" ", ""), ("so", "")]


def test_marks_of_another_text_are_not_put_on_this_one() -> None:
    said = segment(1, "caller", 1.0, 3.0, "one two")
    marks = Marks(marked(said, Mark(0, 3, "NAME", "entity", "t")))
    assert printed(marks, {**said, "text": "two one"})[0] == ("two one", "")
    assert printed(marks, {**said, "segment": 2}) == [("one", ""), (" ", ""), ("two", "")]


def test_words_that_are_not_those_of_the_text_make_the_text_one_place_to_click() -> None:
    said = {**segment(1, "caller", 1.0, 3.0, "one two"), "text": "eins zwei"}
    (token,) = Marks(None).tokens(said)
    assert (token.start, token.end, token.pieces[0].text) == (1.0, 3.0, "eins zwei")
    assert Marks(None).tokens({**said, "words": []})[0].pieces[0].text == "eins zwei"


def test_speakers_of_a_mono_recording_have_turns_of_their_own() -> None:
    turns = turns_of(
        [
            segment(1, "mixed", 0.0, 1.0, "one", speaker="A"),
            segment(2, "mixed", 1.1, 2.0, "two", speaker="B"),
            segment(3, "mixed", 2.1, 3.0, "three", speaker="B"),
        ]
    )
    assert [(turn.party, turn.start, turn.end) for turn in turns] == [
        ("A", 0.0, 1.0),
        ("B", 1.1, 3.0),
    ]


def test_a_translation_stands_under_its_turn_by_number_or_by_time() -> None:
    turns = turns_of([segment(1, "caller", 0.0, 2.0, "uno"), segment(2, "agent", 2.0, 4.0, "two")])
    parts = [
        {"segment": 1, "leg": "caller", "start": 0.0, "end": 2.0, "text": "one"},
        {"segment": 2, "leg": "agent", "start": 2.0, "end": 4.0, "text": "two"},
        {"segment": None, "leg": "caller", "start": 1.5, "end": 3.0, "text": "more"},
        {"segment": None, "leg": "agent-2", "start": 1.5, "end": 3.0, "text": "nobody"},
    ]
    add_translation(turns, translation(*parts), Marks(None))
    assert [[p.text for line in turn.translation for p in line] for turn in turns] == [
        ["one", "more"],
        [],  # the same words: said in that language
    ]
    add_translation(turns, translation(*parts, method=None), Marks(None))
    assert len(turns[0].translation) == 2


def document(**changes: Any) -> dict[str, Any]:
    made = full()
    return {
        "segments": made["transcribe"]["segments"],
        "insights": made["insights"],
        "flags": made["classify"]["flags"],
        **changes,
    }


def test_the_timeline_shows_who_spoke_when_with_the_flags_in_place() -> None:
    drawn = timeline(document())
    assert drawn
    assert [lane.party for lane in drawn.lanes] == ["caller", "agent"]
    assert len(drawn.lanes[0].bars) == 6
    first = drawn.lanes[0].bars[0]
    assert float(first.x.rstrip("%")) == pytest.approx(100 * 9.47 / 78.1, abs=0.01)
    assert float(drawn.flags[0].x.rstrip("%")) == pytest.approx(
        100 * drawn.flags[0].flag["at_s"] / 78.1, abs=0.01
    )
    assert [tick.text for tick in drawn.ticks] == ["0:00", "0:15", "0:30", "0:45", "1:00", "1:15"]
    assert (drawn.ticks[0].anchor, drawn.ticks[1].anchor) == ("start", "middle")


def test_there_is_no_timeline_without_words_or_measures() -> None:
    assert timeline(document(segments=[])) is None
    assert timeline(document(insights=None)) is None


def test_quarters_go_up_or_down_from_the_middle() -> None:
    drawn = quarters([2.5, -5.0, None, 0.1])
    assert [(each.y, each.height) for each in drawn] == [
        ("25.00%", "25.00%"),
        ("50.00%", "50.00%"),
        ("50%", "0%"),
        ("48.00%", "2.00%"),
    ]
    assert [each.text[0] for each in drawn] == ["▲", "▼", "\N{EN DASH}", "▬"]
    assert [each.number for each in drawn] == [1, 2, 3, 4]


def test_numbers_read_as_people_say_them() -> None:
    assert [clock(each) for each in (None, 0, 61.9, 3661)] == ["", "0:00", "1:01", "1:01:01"]
    assert [seconds(each) for each in (0.66, 12.4, 125.0)] == ["0.7 s", "12 s", "2:05 min"]
    assert [percent(each) for each in (0, 0.0004, 0.57, 0.9999, 1)] == [
        "0 %",
        "0.1 %",
        "57 %",
        "99.9 %",
        "100 %",
    ]
    assert feeling(-2.04) == "▼ \N{MINUS SIGN}2.0"
    named = [speaker(each) for each in ("caller", "agent-2", "mixed", "A")]
    assert named == ["Caller", "Agent 2", "Everyone", "Speaker A"]
