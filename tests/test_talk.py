"""Sums hold, order does not matter, and what cannot be heard is null."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callcore.talk import Heard, holds, measure
from tests.support.results import segment

BOTH = frozenset({"caller", "agent"})


def heard(*parties: str, end: float | None = 60.0, start: float = 0.0) -> Heard:
    return Heard(frozenset(parties), start, end)


def talk(*segments: dict[str, Any], of: Heard | None = None) -> dict[str, Any]:
    return measure(segments, of or heard(*BOTH), "en")


LEGS = ["caller", "agent", "agent-2"]
SPOKEN = st.lists(
    st.tuples(
        st.sampled_from(LEGS),
        st.integers(0, 600).map(lambda tenths: tenths / 10),
        st.integers(1, 100).map(lambda tenths: tenths / 10),
        st.integers(0, 9),
    ),
    max_size=25,
)


def segments_of(spoken: list[tuple[str, float, float, int]]) -> list[dict[str, Any]]:
    return [
        segment(number, leg, start, round(start + length, 3), " ".join(["word"] * words))
        for number, (leg, start, length, words) in enumerate(spoken)
    ]


@given(SPOKEN)
def test_talk_and_silence_less_overlap_are_the_whole_call(
    spoken: list[tuple[str, float, float, int]],
) -> None:
    two = [each for each in spoken if each[0] != "agent-2"]
    found = talk(*segments_of(two))
    said = sum(party["talk_s"] for party in found["parties"].values())
    whole = found["end"] - found["start"]
    assert said + found["silence_s"] - found["overlap_s"] == pytest.approx(whole, abs=0.01)


@given(SPOKEN, st.randoms())
def test_the_order_of_segments_does_not_matter(
    spoken: list[tuple[str, float, float, int]], random: Any
) -> None:
    segments = segments_of(spoken)
    shuffled = list(segments)
    random.shuffle(shuffled)
    assert talk(*segments) == talk(*shuffled)


@given(SPOKEN)
def test_every_figure_stays_within_the_call(
    spoken: list[tuple[str, float, float, int]],
) -> None:
    found = talk(*segments_of(spoken), of=heard(*LEGS))
    whole = found["end"] - found["start"] + 0.01
    shares = [party["share"] for party in found["parties"].values()]
    assert 0 <= found["overlap_s"] <= whole
    assert 0 <= found["silence_s"] <= whole
    assert sum(each or 0 for each in shares) <= 1.01
    for party in found["parties"].values():
        assert 0 <= (party["longest_monologue_s"] or 0) <= whole
    for each in found["silences"]:
        assert found["start"] <= each["start"] < each["end"] <= found["end"]
    for each in found["interruptions"]:
        assert each["by"] != each["of"]
        assert each["seconds"] >= 0.5


def test_a_call_of_two_legs() -> None:
    found = talk(
        segment(0, "agent", 1.0, 4.0, "hello how can i help you"),
        segment(1, "caller", 5.0, 15.0, " ".join(["word"] * 20)),
        segment(2, "agent", 13.0, 14.0, "mm-hm"),
        segment(3, "agent", 20.0, 21.0, "i see you now"),
    )
    assert found["parties"]["caller"] == {
        "talk_s": 10.0,
        "share": 0.667,
        "words": 20,
        "wpm": 120.0,
        "longest_monologue_s": 10.0,
    }
    assert found["parties"]["agent"]["talk_s"] == 5.0
    assert found["silences"] == [{"start": 15.0, "end": 20.0}, {"start": 21.0, "end": 60.0}]
    assert found["silence_s"] == pytest.approx(60 - 14)
    assert found["overlap_s"] == 1.0
    assert found["first_response_s"] == 1.0
    assert found["interruptions"] == []  # who only shows that they listen interrupts nobody


def test_who_begins_within_a_turn_interrupts_it() -> None:
    found = talk(
        segment(0, "caller", 0.0, 10.0, " ".join(["word"] * 20)),
        segment(1, "agent", 8.0, 12.0, "let me stop you there"),
    )
    assert found["interruptions"] == [
        {"by": "agent", "of": "caller", "at": 8.0, "seconds": 2.0, "segment": 1}
    ]


def test_a_pause_between_words_is_no_talk() -> None:
    halting = segment(0, "caller", 0.0, 10.0, "one two")
    halting["words"] = [
        {"w": "one", "s": 0.0, "e": 1.0, "p": 0.9},
        {"w": "two", "s": 9.0, "e": 10.0, "p": 0.9},
    ]
    assert talk(halting)["parties"]["caller"]["talk_s"] == 2.0


def test_a_segment_without_words_counts_by_its_times() -> None:
    bare = {**segment(0, "caller", 0.0, 4.0, "hello my dear friend"), "words": []}
    found = talk(bare)["parties"]["caller"]
    assert (found["talk_s"], found["words"]) == (4.0, 4)


def test_a_silent_call_has_two_parties_who_say_nothing() -> None:
    found = talk()
    nothing = {"talk_s": 0, "share": None, "words": 0, "wpm": None, "longest_monologue_s": None}
    assert found["parties"] == {"agent": nothing, "caller": nothing}
    assert found["silences"] == [{"start": 0.0, "end": 60.0}]
    assert found["first_response_s"] is None


def test_of_one_leg_nobody_knows_the_silence() -> None:
    found = talk(segment(0, "caller", 1.0, 3.0), of=heard("caller"))
    for name in ("silence_s", "silences", "overlap_s", "interruptions", "first_response_s"):
        assert found[name] is None
    assert found["parties"]["caller"]["talk_s"] == 2.0


def test_two_agents_are_still_one_side() -> None:
    assert talk(of=heard("agent", "agent-2"))["silence_s"] is None
    assert talk(of=heard("caller", "agent", "agent-2"))["silence_s"] == 60.0


def test_one_stream_of_both_hides_where_they_speak_at_once() -> None:
    found = talk(
        segment(0, "mixed", 0.0, 5.0, speaker="A"),
        segment(1, "mixed", 8.0, 9.0, speaker="B"),
        segment(2, "mixed", 9.0, 10.0),
        of=heard(),
    )
    assert sorted(found["parties"]) == ["A", "B", "mixed"]
    assert (found["overlap_s"], found["interruptions"]) == (None, None)
    assert found["silence_s"] == 53.0
    assert found["parties"]["A"]["longest_monologue_s"] == 5.0
    assert found["parties"]["mixed"]["longest_monologue_s"] is None


def test_a_call_of_unknown_length_ends_with_its_last_word() -> None:
    found = talk(segment(0, "caller", 3.0, 5.0), of=heard(*BOTH, start=2.0, end=None))
    assert (found["start"], found["end"], found["silence_s"]) == (2.0, 5.0, 1.0)


def test_languages_without_spaces_have_no_words_a_minute() -> None:
    found = measure([segment(0, "caller", 0.0, 5.0)], heard(*BOTH), "ja")
    assert found["parties"]["caller"]["wpm"] is None


def test_a_hold_is_a_silence_that_words_announce() -> None:
    silences = [
        {"start": 10.0, "end": 40.0},
        {"start": 50.0, "end": 53.0},
        {"start": 70.0, "end": 90.0},
    ]
    announced = [{"end": 9.0, "quote": "one moment"}, {"end": 49.0, "quote": "hold on"}]
    found = holds(silences, announced)
    assert [(each["start"], each["evidence"]) for each in found] == [(10.0, announced[:1])]
