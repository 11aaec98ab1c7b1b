import pytest
from hypothesis import given
from hypothesis import strategies as st

from callcore.engines.guards import (
    invented,
    normalised,
    num_words_before_loop,
    token_limit,
    words_within,
)
from callcore.results import Word

SURE = {"speech_s": 2.0, "avg_logprob": -0.2, "no_speech_prob": 0.02}


def kept(text, duration_s):
    words = text.split()
    return " ".join(words[: num_words_before_loop(words, duration_s)])


def test_a_phrase_that_repeats_faster_than_anyone_speaks_is_said_once():
    assert kept("Thank you. Thank you. Thank you. Thank you.", 1.0) == "Thank you."
    assert kept("you you you you you you", 0.5) == "you"


def test_a_phrase_that_repeats_at_the_pace_of_speech_was_said():
    assert kept("no no no no", 2.0) == "no no no no"


def test_a_run_of_five_words_that_follows_itself_ends_the_text():
    loop = "well I would like to I would like to pay I would like to pay"
    assert kept(loop, 6.0) == "well I would like to I would like to pay"
    text = "please tell me what it is. Please tell me what it is and more"
    assert kept(text, 9.0) == "please tell me what it is."


def test_a_run_of_four_words_may_follow_itself():
    assert kept("one two three four one two three four", 6.0).endswith("four")
    assert len(kept("one two three four one two three four", 6.0).split()) == 8


@given(st.lists(st.sampled_from("abc"), max_size=30), st.floats(0, 20))
def test_what_is_kept_are_leading_words(words, duration_s):
    assert (num_words_before_loop(words, duration_s) > 0) is bool(words)
    assert num_words_before_loop(words, duration_s) <= len(words)


def test_a_text_that_the_model_is_sure_of_is_believed():
    assert not invented("I lost my card.", **SURE)
    assert not invented("Thank you.", **SURE)


def test_even_a_short_thank_you_is_believed_where_the_model_heard_speech():
    assert not invented("Thank you.", speech_s=0.3, avg_logprob=-0.3, no_speech_prob=0.1)


@pytest.mark.parametrize("text", ["Thank you.", "you", "Gracias."])
def test_what_a_model_says_to_silence_is_not_believed_after_little_speech(text):
    assert invented(text, speech_s=0.1, avg_logprob=-0.5, no_speech_prob=0.5)


def test_credits_are_never_believed():
    assert invented("Thanks for watching!", **SURE)
    assert invented("Subtítulos realizados por la comunidad de Amara.org", **SURE)


def test_scores_alone_can_condemn_a_text():
    assert invented("anything", speech_s=3.0, avg_logprob=-1.7, no_speech_prob=0.0)
    assert invented("anything", speech_s=3.0, avg_logprob=-0.9, no_speech_prob=0.7)
    assert not invented("anything", speech_s=3.0, avg_logprob=-0.9, no_speech_prob=0.5)


def test_punctuation_alone_is_nothing():
    assert invented(" . . .", **SURE)
    assert normalised("Don't!") == "don t"


def test_words_after_the_end_are_dropped_and_the_last_one_is_cut():
    words = [Word("a", 0.0, 0.5, 1.0), Word("b", 0.5, 1.4, 1.0), Word("c", 1.2, 1.5, 1.0)]
    assert [(word.w, word.e) for word in words_within(words, 1.0)] == [("a", 0.5), ("b", 1.0)]


def test_tokens_grow_with_the_audio():
    assert token_limit(0.0, "en") < token_limit(10.0, "en") < 448


def test_languages_that_need_many_tokens_get_them():
    """Ten seconds of Hindi need about 120 tokens; the English limit cut the last third off."""
    assert token_limit(10.0, "hi") > 150
