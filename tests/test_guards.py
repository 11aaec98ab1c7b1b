"""Each layer on what a real model wrote: what it holds off, and that it costs no word.

The constants were chosen with these decodes in view: they guard against regressions and prove
nothing about other speech.
"""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callcore.engines import guards
from callcore.engines.guards import (
    invented,
    normalised,
    repeats,
    said_again,
    token_limit,
    without_hurried_loops,
    without_loops,
    words_within,
)
from callcore.results import Word

SURE = {"speech_s": 2.0, "avg_logprob": -0.2, "no_speech_prob": 0.02}

DECODES = Path(__file__).parent / "data/decodes/whisper.jsonl"
RECORDED = [json.loads(line) for line in DECODES.read_text("utf-8").splitlines()]


def recorded(kind):
    return [each for each in RECORDED if each["kind"] == kind]


def words_of(decode):
    return [Word(text, start, end, p) for text, start, end, p in decode["words"]]


def plain(text):
    return normalised(text.replace("|", " ")).split()


def heard(decode):
    """Return the words that are left of a decode: the guards in the order of the engines."""
    words = words_of(decode)
    words = [words[i] for i in without_loops(words, decode["duration_s"])]
    scores = {name: decode[name] for name in ("speech_s", "avg_logprob", "no_speech_prob")}
    if invented("".join(word.w for word in words).strip(), **scores):
        return []
    within = words_within(words, decode["duration_s"])
    return [part for word in within for part in plain(word.w)]


def num_invented():
    return sum(len(heard(each)) for each in recorded("no speech"))


# The whole: what was said stays, what was not goes.


@pytest.mark.parametrize("decode", recorded("repeated"), ids=lambda each: each["source"])
def test_what_is_said_again_stays_word_for_word(decode):
    assert heard(decode) == plain(decode["said"])


@pytest.mark.parametrize("decode", recorded("loop"), ids=lambda each: each["source"])
def test_a_loop_leaves_the_sentence_once(decode):
    said = plain(decode["said"])
    assert len(plain("".join(word.w for word in words_of(decode)))) >= 1.7 * len(said)
    left = heard(decode)
    assert left[: len(said)] == said
    assert len(left) <= len(said) + 3


def test_a_copy_that_a_model_adds_to_those_that_were_said_goes():
    (decode,) = recorded("one copy too many")
    assert decode["said"].count("|") == 2
    assert len(decode["words"]) == 4 * 6
    assert " ".join(heard(decode)).count("your message") == 3


def test_nothing_is_left_of_what_was_written_to_music_and_tones():
    assert sum(len(each["words"]) for each in recorded("no speech")) > 70
    assert num_invented() == 0


# Layer by layer.


def test_the_limit_of_tokens_holds_what_people_say_and_ends_a_loop():
    for decode in recorded("repeated") + recorded("one copy too many"):
        assert decode["num_tokens"] < token_limit(decode["duration_s"], "en")
    at_limit = [
        each
        for each in recorded("loop")
        if each["num_tokens"] >= token_limit(each["duration_s"], "en")
    ]
    assert len(at_limit) >= len(recorded("loop")) // 2


def test_languages_that_need_many_tokens_get_them():
    """Ten seconds of Hindi need about 120 tokens; the English limit cut the last third off."""
    assert token_limit(10.0, "hi") > 150


def test_only_a_text_that_repeats_itself_is_looked_at_for_loops():
    for kind in ("repeated", "loop", "one copy too many"):
        for decode in recorded(kind):
            assert repeats([word.w for word in words_of(decode)]), decode["source"]
    for text in ("I lost my card. Can you send me a new one? My debit card.", "bye bye"):
        assert not repeats(text.split())
    assert repeats(["Help", "me!", "Help", "me!", "Help", "me!"])


def test_without_word_times_a_phrase_that_comes_faster_than_anyone_speaks_is_said_once():
    def kept(text, duration_s):
        words = text.split()
        return " ".join(words[i] for i in without_hurried_loops(words, duration_s))

    assert kept("Thank you. Thank you. Thank you. Thank you.", 1.0) == "Thank you."
    assert kept("you you you you you you", 0.5) == "you"
    assert kept("no no no no", 2.0) == "no no no no"
    for again in ("please send somebody now", "please tell me what it is"):
        assert kept(f"{again} {again}", 3.0) == f"{again} {again}"
    assert kept("send help now send help now send somebody", 0.5) == "send help now send somebody"
    fast = "no no no no I did not order that my address is twelve main street"
    assert kept(fast, 2.8) == fast
    assert kept(fast, 1.0) == fast.removeprefix("no no no ")


def test_copies_that_took_no_time_go_and_the_others_keep_their_times():
    """Attention stood still in the midst of three sentences; the fourth copy was never said."""
    (decode,) = recorded("one copy too many")
    words = words_of(decode)
    kept = without_loops(words, decode["duration_s"])
    gone = [word for i, word in enumerate(words) if i not in kept]
    assert max(word.e - word.s for word in gone) < 0.4
    assert sum(word.e - word.s < 0.03 for word in gone) >= len(gone) - 2


def test_a_short_word_that_took_no_time_stays():
    words = [Word(w, s, e, 0.9) for w, s, e in (("no", 0, 0.3), ("no", 0.3, 0.3), ("no", 0.3, 1))]
    assert len(without_loops([*words, *words], 9.0)) == 6


def evenly(texts, step_s):
    return [Word(w, i * step_s, (i + 1) * step_s, 0.9) for i, w in enumerate(texts)]


@pytest.mark.parametrize("text", ["five five five five two", "0 0 0 0 0 0 0", "no no no no wait"])
def test_a_word_that_is_said_again_in_haste_stays_as_often_as_it_was_said(text):
    words = evenly(text.split(), 0.12)
    assert len(without_loops(words, 9.0)) == len(words)


def test_of_digits_each_counts_however_badly_they_are_timed():
    words = evenly(["seven", "seven", "seven", "seven", "one"], 0.02)
    assert len(without_loops(words, 9.0)) == 5


def test_copies_that_come_faster_than_anyone_speaks_go_though_each_word_took_time():
    said = ["can", "you", "send", "me", "a", "new", "one"]
    loop = [Word(w, 2.0 + i * 0.04, 2.04 + i * 0.04, 0.9) for i, w in enumerate(said * 4)]
    words = [*evenly(said, 0.3), *loop]
    assert without_loops(words, 9.0) == list(range(7))
    assert len(without_loops(evenly(said * 3, 0.15), 9.0)) == 21


def test_whether_a_phrase_was_said_again_tells_its_pace_its_sureness_and_for_few_words_doubt():
    words = evenly(["please", "call", "back", "soon"] * 4, 0.2)
    assert said_again(words, 3.2, 0.61)
    assert not said_again(words, 2.0, 0.1)
    assert not said_again([Word(w.w, w.s, w.e, 0.4) for w in words], 3.2, 0.1)
    assert not said_again(words[:4], 3.2, 0.61)
    assert said_again(words[:4], 0.5, 0.1)  # four words in half a second: one of them is squeezed


def test_a_long_text_without_repetition_is_looked_through_in_a_moment(monkeypatch):
    """All lengths of a phrase at all places are a minute of work for 30,000 words."""
    compared = 0

    class Compared(str):
        def __eq__(self, other):
            nonlocal compared
            compared += 1
            return str.__eq__(self, other)

        __hash__ = str.__hash__

    monkeypatch.setattr(guards, "normalised", Compared)
    num_words = 1000
    assert not repeats([str(i) for i in range(num_words)])
    assert compared < 100 * num_words


timed = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([0.0, 0.02, 0.3])), max_size=30)


@given(timed, st.floats(0, 10))
def test_each_phrase_stays_at_least_once_and_in_order(pairs, end_s):
    words, at = [], 0.0
    for text, length in pairs:
        words.append(Word(text, at, at + length, 0.9))
        at += length
    kept = without_loops(words, end_s)
    assert kept == sorted(set(kept))
    assert {words[i].w for i in kept} == {word.w for word in words}
    if not repeats([word.w for word in words]):
        assert kept == list(range(len(words)))


@pytest.mark.parametrize(
    ("layer", "off"),
    [
        ("_NO_SPEECH_PROB", 2.0),
        ("_NO_SPEECH_PROB_REPEATED", 1.0),
        ("_PHRASES", frozenset()),
    ],
)
def test_each_layer_holds_off_words_that_no_other_does(monkeypatch, layer, off):
    monkeypatch.setattr(guards, layer, off)
    assert num_invented() > 0


def test_a_model_that_doubts_that_it_heard_speech_is_believed_where_it_was_sure_of_the_words():
    assert invented("anything", speech_s=3.0, avg_logprob=-0.9, no_speech_prob=0.7)
    assert not invented("anything", speech_s=3.0, avg_logprob=-0.5, no_speech_prob=0.7)
    assert not invented("anything", speech_s=3.0, avg_logprob=-0.9, no_speech_prob=0.5)
    assert invented("anything", speech_s=3.0, avg_logprob=-1.7, no_speech_prob=0.0)


def test_a_loop_is_surer_with_each_round_so_that_its_mean_says_nothing():
    assert invented("beep beep beep beep", speech_s=3.0, avg_logprob=-0.1, no_speech_prob=0.7)
    assert not invented("help me help me help me", **SURE)
    for decode in recorded("repeated"):
        assert decode["no_speech_prob"] < guards._NO_SPEECH_PROB_REPEATED / 1.5
    for sentence in (
        "please send somebody now please send somebody now",
        "No, no, no, no, please send an ambulance to twelve Main Street.",
    ):
        assert not invented(sentence, speech_s=3.0, avg_logprob=-0.2, no_speech_prob=0.7)


def test_a_text_that_the_model_is_sure_of_is_believed():
    assert not invented("I lost my card.", **SURE)
    assert not invented("Thank you.", **SURE)


def test_even_a_short_thank_you_is_believed_where_the_model_heard_speech():
    assert not invented("Thank you.", speech_s=0.3, avg_logprob=-0.3, no_speech_prob=0.1)


@pytest.mark.parametrize("text", ["Thank you.", "you", "Gracias.", "Thank you. Thank you."])
def test_what_a_model_says_to_silence_is_not_believed_after_little_speech(text):
    assert invented(text, speech_s=0.1, avg_logprob=-0.5, no_speech_prob=0.5)


@pytest.mark.parametrize("thanks", ["Merci.", "Gracias.", "Grazie!", "Vielen Dank.", "Спасибо."])
def test_thanks_in_other_languages_are_believed_unless_the_model_doubts(thanks):
    assert not invented(thanks, **SURE)
    assert invented(thanks, speech_s=1.0, avg_logprob=-0.75, no_speech_prob=0.5)


def test_credits_are_never_believed():
    assert invented("Untertitelung des ZDF, 2020", **SURE)
    assert invented("Sous-titrage ST' 501", **SURE)
    assert invented("Thanks for watching!", **SURE)
    assert invented("Subtítulos realizados por la comunidad de Amara.org", **SURE)


@pytest.mark.parametrize(
    "text",
    [
        "Thanks for watching the kids, I will pay you tomorrow.",
        "J'appelle la société Radio-Canada.",
        "Ich rufe im Auftrag des ZDF an.",
    ],
)
def test_a_sentence_that_holds_words_of_credits_is_believed(text):
    assert not invented(text, **SURE)


def test_punctuation_alone_is_nothing():
    assert invented(" . . .", **SURE)
    assert normalised("Don't!") == "don t"


def test_words_in_the_padding_are_dropped_and_the_last_one_is_cut():
    words = [Word("a", 0.0, 0.5, 1.0), Word("b", 0.5, 1.4, 1.0), Word("c", 1.2, 1.5, 1.0)]
    assert [(word.w, word.e) for word in words_within(words, 1.0)] == [("a", 0.5), ("b", 1.0)]
    past_the_end = [
        word
        for decode in recorded("loop")
        for word in words_of(decode)
        if word.s >= decode["duration_s"]
    ]
    assert past_the_end
    for decode in recorded("repeated"):
        words = words_of(decode)
        assert len(words_within(words, decode["duration_s"])) == len(words)
