"""Which voice said which word, from vectors made up for the purpose."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from callcore.results import Word
from callcore.speaker_turns import STEP_S, WINDOW_S, speakers, windows

#: (who, how many words of 0.3 s, pause before them in s)
Turns = list[tuple[str, int, float]]
CALL: Turns = [("b", 12, 0.0), ("a", 20, 0.4), ("b", 15, 0.3), ("a", 9, 0.5), ("b", 10, 0.2)]


def spoken(turns: Turns) -> tuple[list[Word], list[str]]:
    words, who, at = [], [], 0.0
    for voice, count, pause in turns:
        at += pause
        for _ in range(count):
            words.append(Word("word", round(at, 3), round(at + 0.3, 3), 0.9))
            who.append(voice)
            at += 0.3
    return words, who


def embedded(words: list[Word], who: list[str], *, alike: float, noise: float = 0.04):
    """Return windows and vectors; the two voices have the cosine ``alike``."""
    rng = np.random.default_rng(1)
    voices = {"a": np.zeros(64), "b": np.zeros(64)}
    voices["a"][0] = 1.0
    voices["b"][:2] = alike, np.sqrt(1 - alike**2)
    spans, vectors = windows(words), []
    for start, end in spans:
        vector = rng.normal(0, noise, 64)
        for word, voice in zip(words, who, strict=True):
            vector += max(0.0, min(end, word.e) - max(start, word.s)) * voices[voice]
        vectors.append(vector / np.linalg.norm(vector))
    return spans, np.array(vectors, np.float32)


def test_each_word_gets_its_speaker_and_a_speaks_first():
    words, who = spoken(CALL)
    found = speakers(words, *embedded(words, who, alike=0.7))
    assert found == ["A" if voice == "b" else "B" for voice in who]


def test_one_voice_stays_one():
    words, who = spoken([("a", count, pause) for _, count, pause in CALL])
    assert speakers(words, *embedded(words, who, alike=0.7)) is None


def test_voices_that_are_almost_the_same_stay_one():
    words, who = spoken(CALL)
    assert speakers(words, *embedded(words, who, alike=0.93, noise=0.02)) is None


def test_a_word_too_short_for_a_turn_of_its_own_goes_with_its_neighbours():
    words, who = spoken([("a", 20, 0.0), ("b", 1, 0.0), ("a", 20, 0.0), ("b", 20, 0.5)])
    found = speakers(words, *embedded(words, who, alike=0.7))
    assert found is not None
    assert set(found[:41]) == {"A"}
    assert set(found[42:]) == {"B"}


def test_who_speaks_rarely_is_still_found():
    words, who = spoken([("a", 60, 0.0), ("b", 8, 0.5), ("a", 60, 0.5)])
    found = speakers(words, *embedded(words, who, alike=0.6))
    assert found is not None
    assert found.count("B") == 8


@pytest.mark.parametrize("count", [0, 1, 3])
def test_too_few_words_have_no_speakers(count):
    words, _ = spoken([("a", count, 0.0)])
    spans = windows(words)
    vectors = np.ones((len(spans), 4), np.float32) / 2
    assert speakers(words, spans, vectors) is None


def test_windows_that_are_all_the_same_have_no_speakers():
    words, _ = spoken(CALL)
    spans = windows(words)
    assert speakers(words, spans, np.full((len(spans), 4), 0.5, np.float32)) is None


def test_no_window_reaches_over_a_pause():
    words, _ = spoken([("a", 5, 0.0), ("a", 5, 0.6)])
    assert all(end <= 1.5 + 1e-9 or start >= 2.1 - 1e-9 for start, end in windows(words))


@given(
    st.lists(
        st.tuples(st.floats(0, 2, allow_nan=False), st.floats(0, 3, allow_nan=False)), max_size=40
    )
)
def test_windows_are_ordered_and_lie_within_the_speech(steps):
    words, at = [], 0.0
    for pause, length in steps:
        words.append(Word("w", at + pause, at + pause + length, 0.5))
        at = words[-1].e
    found = windows(words)
    assert found == sorted(found)
    for start, end in found:
        assert words[0].s <= start < end <= words[-1].e + 1e-9
        assert end - start <= WINDOW_S + 1e-9
    covered = [w for w in words if w.e - w.s >= WINDOW_S]
    for word in covered:
        assert any(start <= word.s + STEP_S for start, end in found if end > word.s)
