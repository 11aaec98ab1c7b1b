from typing import Any

import pytest

from callcore import insights_document
from callcore.engines import FoundSpan
from callcore.engines.spacy_entities import SpacyEntities
from callcore.settings import load
from callcore.steps.ner import STEP
from tests.support.recognition import model
from tests.support.results import MADE, context, segment


class Recognizer:
    """An engine that finds one word, and remembers what it was given."""

    name, model, version = "scripted", "one-word", "9"
    parameters: dict[str, Any] = {"word": "Amina"}  # noqa: RUF012

    def __init__(self) -> None:
        self.texts: list[str] = []

    def recognize(self, texts: list[str], language: str) -> list[list[FoundSpan]]:
        assert language == "en"
        self.texts += texts
        return [
            [FoundSpan("PERSON", text.index("Amina"), text.index("Amina") + 5)]
            if "Amina" in text
            else []
            for text in texts
        ]


def run(segments: list[dict[str, Any]], engine: Any, language: str | None = "en") -> dict[str, Any]:
    transcript = {**MADE, "segments": segments, "language": language, "duration_s": 60.0}
    made = context({"transcribe": transcript}, engines={"entity_recognizer": engine})
    result = STEP.run(made)
    insights_document.check_result("ner", result)
    return result


def test_every_mention_points_at_its_words_and_their_times() -> None:
    result = run([segment(7, "caller", 10.0, 14.0, "When Amina sleeps all is fine")], Recognizer())
    (entity,) = result["entities"]
    assert (entity["id"], entity["label"], entity["normal"]) == (1, "NAME", "Amina")
    (mention,) = entity["mentions"]
    assert mention["span"] == [5, 10]
    assert mention["quote"] == "Amina"
    assert (mention["leg"], mention["segment"]) == ("caller", 7)
    assert mention["start"] == pytest.approx(10 + 4 / 6, abs=0.01)
    assert mention["end"] == pytest.approx(10 + 2 * 4 / 6, abs=0.01)
    assert (mention["source"], mention["version"]) == ("scripted", "9")
    assert result["engine"] == "scripted"
    assert result["parameters"]["note"] is None


def test_people_carry_what_is_said_of_them_with_its_words() -> None:
    result = run(
        [
            segment(1, "caller", 0.0, 2.0, "My daughter Amina is 7."),
            segment(2, "caller", 3.0, 5.0, "My uncle John beats her."),
        ],
        Recognizer(),
    )
    child, alleged = result["people"]
    assert {key: child[key] for key in ("role", "name", "age", "sex", "relation")} == {
        "role": "child",
        "name": "Amina",
        "age": 7,
        "sex": "female",
        "relation": "daughter",
    }
    assert child["evidence"][0]["quote"].startswith("My daughter Amina")
    assert (alleged["role"], alleged["name"], alleged["relation"]) == ("alleged", "John", "uncle")
    roles = {each["normal"]: each["role"] for each in result["entities"] if each["label"] == "NAME"}
    assert roles == {"Amina": "child", "John": "alleged"}


def test_an_answer_is_understood_by_its_question_in_another_turn() -> None:
    result = run(
        [
            segment(1, "agent", 0.0, 1.0, "What is your name?"),
            segment(2, "caller", 1.5, 2.0, "Zubedina."),
        ],
        Recognizer(),
    )
    assert [(each["label"], each["text"]) for each in result["entities"]] == [("NAME", "Zubedina")]


def test_a_language_without_a_model_has_its_numbers_and_a_note() -> None:
    segments = [segment(1, "caller", 0.0, 2.0, "Ninaitwa Amina, 0722 123 456", language="sw")]
    engine = Recognizer()
    result = run(segments, engine, "sw")
    assert [(each["label"], each["normal"]) for each in result["entities"]] == [
        ("PHONE", "0722123456")
    ]
    assert "sw" in result["parameters"]["note"]
    assert result["engine"] is None
    assert engine.texts == []


def test_a_language_that_only_a_model_knows_has_the_models_names() -> None:
    class French(Recognizer):
        def recognize(self, texts: list[str], language: str) -> list[list[FoundSpan]]:
            assert language == "fr"
            return [
                [FoundSpan("PER", 12, 17), FoundSpan("LOC", 21, 26), FoundSpan("MISC", 0, 2)]
                for _ in texts
            ]

    segments = [
        segment(1, "caller", 0.0, 2.0, "Je suis ici Amina de Paris, 0722123456", language="fr")
    ]
    transcript = {**MADE, "segments": segments, "language": "fr", "duration_s": 60.0}
    chosen = load({"CALLCORE_STATE_DIR": "/nowhere", "CALLCORE_ENTITY_MODELS": "fr=x"})
    made = context(
        {"transcribe": transcript}, engines={"entity_recognizer": French()}, settings=chosen
    )
    result = STEP.run(made)
    assert [(each["label"], each["text"]) for each in result["entities"]] == [
        ("NAME", "Amina"),
        ("LOCATION", "Paris"),
        ("PHONE", "0722123456"),
    ]
    assert result["parameters"]["note"] is None


def test_a_call_in_two_languages_says_which_part_was_searched() -> None:
    result = run(
        [
            segment(1, "caller", 0.0, 2.0, "My name is Amina."),
            segment(2, "caller", 3.0, 5.0, "Ninaitwa Juma.", language="sw"),
        ],
        Recognizer(),
    )
    assert [each["text"] for each in result["entities"]] == ["Amina"]
    assert "sw" in result["parameters"]["note"]
    assert result["engine"] == "scripted"


@pytest.mark.parametrize("language", ["en", None])
def test_a_call_without_words_has_no_entities(language: str | None) -> None:
    result = run([], Recognizer(), language)
    assert (result["entities"], result["people"]) == ([], [])


def test_the_engine_gets_capitals_where_a_text_has_none() -> None:
    engine = Recognizer()
    result = run([segment(1, "caller", 0.0, 2.0, "so amina cries all day")], engine)
    assert engine.texts == ["so Amina cries all day"]
    assert result["entities"][0]["mentions"][0]["quote"] == "amina"


@pytest.mark.model
def test_a_whole_call_with_the_real_model() -> None:
    engine = SpacyEntities({"en": model(dict(load({}).entity_models)["en"])})
    result = run(
        [
            segment(1, "agent", 0.0, 3.0, "Child helpline, this is Wairimu, how can I help you?"),
            segment(2, "caller", 4.0, 8.0, "Hello, my name is Wanjiku from Kitengela, Kajiado."),
            segment(3, "caller", 9.0, 13.0, "It's about my son Baraka. He is nine years old."),
            segment(4, "agent", 14.0, 17.0, "Thank you, Wanjiku. What is your phone number?"),
            segment(5, "caller", 18.0, 24.0, "Oh seven two two, one two three, four five six."),
            segment(6, "caller", 25.0, 28.0, "His teacher hit him on Monday at 2 p.m."),
        ],
        engine,
    )
    found = {(each["label"], each["normal"] or each["text"]) for each in result["entities"]}
    assert found == {
        ("NAME", "Wairimu"),
        ("NAME", "Wanjiku"),
        ("NAME", "Baraka"),
        ("LOCATION", "Kitengela, Kajiado"),
        ("AGE", "9"),
        ("PHONE", "0722123456"),
        ("DATE", "Monday"),
        ("TIME", "14:00"),
    }
    assert [(each["role"], each["name"], each["age"]) for each in result["people"]] == [
        ("agent", "Wairimu", None),
        ("caller", "Wanjiku", None),
        ("child", "Baraka", 9),
        ("alleged", None, None),
    ]
    wanjiku = next(each for each in result["entities"] if each["normal"] == "Wanjiku")
    assert [each["segment"] for each in wanjiku["mentions"]] == [2, 4]
    assert result["model"].startswith("en_core_web_sm")
