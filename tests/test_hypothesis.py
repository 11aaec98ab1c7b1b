import pytest
from hypothesis import given
from hypothesis import strategies as st

from callcore.hypothesis import Agreement, num_common, same_word

texts = st.lists(st.sampled_from(["one", "two", "three", "Four,", "four"]), max_size=6).map(
    " ".join
)


def test_the_first_decode_promises_nothing():
    assert Agreement().push("hello there you") == 0


def test_words_that_two_decodes_agree_on_are_stable_and_the_last_is_held_back():
    agreement = Agreement()
    agreement.push("hello there")
    assert agreement.push("hello there you") == 2
    assert agreement.push("hello there you") == 2
    assert agreement.text == "hello there you"


def test_a_disagreement_ends_the_stable_words():
    agreement = Agreement()
    agreement.push("hello there you two")
    assert agreement.push("hello their you two") == 1


def test_case_and_punctuation_are_no_disagreement():
    agreement = Agreement()
    agreement.push("hello, There")
    assert agreement.push("Hello there. You") == 2


def test_a_decode_that_hears_nothing_promises_nothing():
    agreement = Agreement()
    agreement.push("hello there")
    assert agreement.push("") == 0


def test_a_final_that_keeps_the_stable_words_is_no_revision():
    agreement = Agreement()
    agreement.push("hello there")
    agreement.push("hello there you")
    assert not agreement.revised("Hello there, how are you?")


@pytest.mark.parametrize("final", ["hello", "hello their you", ""])
def test_a_final_that_changes_a_stable_word_is_a_revision(final):
    agreement = Agreement()
    agreement.push("hello there")
    agreement.push("hello there you")
    assert agreement.revised(final)


def test_a_stable_word_that_a_later_decode_changed_was_revised_whatever_the_final_says():
    agreement = Agreement()
    for text in ["a b c", "a b c", "a x c", "a x c"]:
        agreement.push(text)
    assert agreement.revised("a x c")
    assert agreement.revised("a b c")


def test_words_after_a_cut_are_the_next_utterances():
    agreement = Agreement()
    for _ in range(2):
        agreement.push("one two three four five")
    assert not agreement.revised("One, two three.", is_cut=True)
    assert agreement.revised("one too three", is_cut=True)
    assert agreement.revised("one two three")


def test_an_utterance_without_partials_cannot_be_revised():
    assert not Agreement().revised("hello")


def test_words_are_the_same_or_not():
    assert same_word("Don't", "dont")
    assert not same_word("two", "too")
    assert num_common(["a", "b"], ["a"]) == 1
    assert num_common([], ["a"]) == 0


@given(st.lists(texts, max_size=8), texts)
def test_stable_words_are_leading_words_of_the_last_two_decodes(decodes, final):
    agreement = Agreement()
    previous: list[str] = []
    promised: list[list[str]] = []
    for text in decodes:
        stable = agreement.push(text)
        words = text.split()
        assert stable <= max(len(words) - 1, 0)
        assert num_common(words[:stable], previous) == stable
        promised.append(words[:stable])
        previous = words
    kept = all(num_common(each, final.split()) == len(each) for each in promised)
    assert agreement.revised(final) is not kept


@given(texts, st.integers(1, 5))
def test_a_decode_that_repeats_itself_and_becomes_final_is_never_revised(text, times):
    agreement = Agreement()
    for _ in range(times):
        agreement.push(text)
    assert not agreement.revised(text)
