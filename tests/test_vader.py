import pytest

from callcore.engines.vader import Vader
from callcore.errors import ModelError


@pytest.fixture(scope="module")
def vader() -> Vader:
    return Vader()


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        ("thank you so much, you have been wonderful", 2, 5),
        ("you are useless and I hate this", -5, -2),
        ("seven eight three eleven", 0, 0),
    ],
)
def test_feelings_lie_between_minus_five_and_five(
    vader: Vader, text: str, least: float, most: float
) -> None:
    (score,) = vader.score([text], "en")
    assert score is not None
    assert least <= score <= most


@pytest.mark.parametrize(
    "text",
    [
        "this is the third time i am calling and nobody helped me",
        "I don't know what to do anymore.",
        "I don\N{RIGHT SINGLE QUOTATION MARK}t want to live anymore",
        "my uncle touched me",
        "she locked me in",
        "I ran away from home",
        "I want to speak to your manager",
    ],
)
def test_distress_without_a_word_of_the_lexicon_is_heard(vader: Vader, text: str) -> None:
    (plain,) = Vader(cues=False).score([text], "en")
    (score,) = vader.score([text], "en")
    assert plain is not None
    assert plain > -0.5
    assert score is not None
    assert score <= -2


@pytest.mark.parametrize(
    "text",
    [
        "He will not stop hitting me",
        "He won\N{RIGHT SINGLE QUOTATION MARK}t stop hitting me",
        "I can't stop crying",
        "She never stops, she will never stop hurting me",
        "He promised to love me and then he broke my arm",
        "Nobody is safe here, please help",
        "My arm hurts because he pushed me, my daughter is safe, but she will not stop crying",
        "I took all the pills",
        "I swallowed too many tablets",
        "I am bleeding",
        "he pushed me down the stairs",
        "he choked her",
        "he has a knife",
        "he says he will kill me",
        "he beats my mother",
        "my father hit my brother",
        "it isn't safe at home",
        "he burned my hand",
        "it will not stop bleeding",
        "I could not cope, I took the pills",
    ],
)
def test_violence_and_despair_never_feel_good(vader: Vader, text: str) -> None:
    (score,) = vader.score([text], "en")
    assert score is not None
    assert score <= -1.5


def test_a_not_stays_in_its_clause(vader: Vader) -> None:
    apart, within = vader.score(["I did not, he is bad", "I did not say bad"], "en")
    assert apart is not None
    assert within is not None
    assert apart < 0 < within


@pytest.mark.parametrize(
    "text", ["he does not hit me", "I would never hurt myself, never hurt myself", "nobody hits me"]
)
def test_denied_harm_is_no_joy(vader: Vader, text: str) -> None:
    assert vader.score([text], "en") == [0]


@pytest.mark.parametrize("text", ["my daughter is safe", "are you safe", "is it a safe place"])
def test_safe_says_nothing_of_a_mood(vader: Vader, text: str) -> None:
    assert vader.score([text], "en") == [0]


@pytest.mark.parametrize("text", ["no thank you", "no, that will be all, thank you"])
def test_a_no_that_answers_is_no_bad_mood(vader: Vader, text: str) -> None:
    (score,) = vader.score([text], "en")
    assert score is not None
    assert score > 1


def test_words_of_telephone_calls_are_no_praise(vader: Vader) -> None:
    assert vader.score(["my credit card number", "i feel like a stone"], "en-GB") == [0, 0]


def test_other_languages_are_not_guessed(vader: Vader) -> None:
    assert vader.score(["I hate you", "danke"], "de") == [None, None]
    assert vader.score(["good"], "") == [None]


def test_what_has_no_words_has_no_score(vader: Vader) -> None:
    assert vader.score(["", " ... ", "\N{GRINNING FACE}"], "en") == [None, None, None]


def test_a_text_without_end_is_scored_in_time(vader: Vader) -> None:
    (score,) = vader.score(["i do not know what to do " * 100_000], "en")
    assert score == pytest.approx(-5, abs=0.1)


def test_cues_are_part_of_what_a_result_says_of_its_making(vader: Vader) -> None:
    assert vader.parameters == {"cues": "2"}
    assert Vader(cues=False).parameters == {"cues": None}
    assert vader.version


@pytest.mark.parametrize("text", ["[", "words: {}", "version: 1\nwords: [a]", "null"])
def test_a_broken_file_of_cues_says_so(vader: Vader, text: str) -> None:
    with pytest.raises(ModelError, match=r"sentiment/en\.yaml"):
        Vader(cues=False)._load_cues(text)
