"""Words become utterances where people pause, not where a recogniser's window ends."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from callcore.results import Word
from callcore.utterances import LONGEST_S, PAUSE_S, regroup, text_of


def _words(*parts: tuple[str, float, float]) -> list[Word]:
    return [Word(w, s, e, 0.9) for w, s, e in parts]


def _texts(words: list[Word]) -> list[str]:
    return [text_of(part, "en") for part in regroup(words)]


def test_a_long_pause_ends_an_utterance() -> None:
    words = _words(("talk", 1.0, 1.4), ("to", 1.4, 1.5), ("my", 7.0, 7.2), ("husband", 7.2, 7.9))
    assert _texts(words) == ["talk to", "my husband"]


def test_a_short_pause_ends_it_only_after_a_sentence() -> None:
    words = _words(("Yes.", 0.0, 0.4), ("And", 0.8, 1.0), ("then", 1.4, 1.6))
    assert _texts(words) == ["Yes.", "And then"]


def test_a_sentence_without_a_pause_goes_on() -> None:
    assert _texts(_words(("Yes.", 0.0, 0.4), ("Please", 0.5, 0.9))) == ["Yes. Please"]


def test_a_long_monologue_is_cut_at_the_end_of_a_sentence() -> None:
    words = [Word("so." if i == 20 else "so", i * 0.5, i * 0.5 + 0.5, 0.9) for i in range(40)]
    first, second = regroup(words)
    assert first[-1].w == "so."
    assert len(second) == 19


def test_a_single_endless_word_stays_one_utterance() -> None:
    assert _texts(_words(("aaah", 0.0, 60.0))) == ["aaah"]


def test_languages_without_spaces_are_joined_without_them() -> None:
    words = _words(("你", 0.0, 0.2), ("好", 0.2, 0.4))
    assert text_of(words, "zh") == "你好"


def test_silence_has_no_utterances() -> None:
    assert list(regroup([])) == []


_STEPS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b.", "c?", "d"]),
        st.floats(0, 3, allow_nan=False),
        st.floats(0, 20, allow_nan=False),
    ),
    max_size=60,
)


@given(_STEPS)
def test_every_word_stays_once_and_in_order(steps: list[tuple[str, float, float]]) -> None:
    words, at = [], 0.0
    for text, pause, length in steps:
        words.append(Word(text, at + pause, at + pause + length, 0.5))
        at = words[-1].e
    parts = list(regroup(words))
    assert [word for part in parts for word in part] == words
    assert all(parts)
    for part in parts:
        assert len(part) == 1 or part[-1].e - part[0].s <= LONGEST_S
        assert all(b.s - a.e < PAUSE_S for a, b in pairwise(part))
