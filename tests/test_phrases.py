import pytest

from callcore import phrases


@pytest.mark.parametrize(
    ("phrase", "text", "found"),
    [
        ("on hold", "I was ON HOLD for ages", "ON HOLD"),
        ("on hold", "upon holding it", None),
        ("i|we will call", "then we will call you", "we will call"),
        ("do_not|don't know", "I do not know", "do not know"),
        ("do_not|don't know", "I don\N{RIGHT SINGLE QUOTATION MARK}t know", "don't know"),
        ("no thanks", "no, thanks", "no, thanks"),
        ("i? will call", "i will call", "i will call"),
        ("i|we? will call", "they will call", "will call"),
        ("call|ring you? back", "ring back", "ring back"),
        ("is ... hit you", "is he going to hit you", "is he going to hit you"),
        ("is ... hit you", "is hit you", "is hit you"),
        ("is ... hit you", "is that a b c d e hit you", None),
    ],
)
def test_a_phrase_is_found_as_whole_words(phrase: str, text: str, found: str | None) -> None:
    match = phrases.pattern(phrase).search(phrases.plain(text))
    assert (match and match.group()) == found


@pytest.mark.parametrize("phrase", ["", "  ", None, 3])
def test_what_is_no_phrase_is_refused(phrase: object) -> None:
    with pytest.raises(ValueError, match="expected a phrase"):
        phrases.pattern(phrase)  # type: ignore[arg-type]
