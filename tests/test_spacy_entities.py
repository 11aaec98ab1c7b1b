from pathlib import Path

import pytest

from callcore.engines.spacy_entities import SpacyEntities
from callcore.errors import EngineError, ModelError
from tests.support.recognition import model

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def engine() -> SpacyEntities:
    return SpacyEntities({"en": model("en_core_web_sm")})


def test_spans_have_the_models_labels_and_point_into_their_text(engine: SpacyEntities) -> None:
    text = "My name is Mary Jones and I live in Nairobi."
    found, nothing = engine.recognize([text, "And that is all."], "en")
    assert [(span.label, text[span.start : span.end]) for span in found] == [
        ("PERSON", "Mary Jones"),
        ("GPE", "Nairobi"),
    ]
    assert nothing == []


def test_texts_keep_their_order_and_empty_ones_are_fine(engine: SpacyEntities) -> None:
    assert [len(found) for found in engine.recognize(["", "I met Mary Jones.", ""], "en")] == [
        0,
        1,
        0,
    ]
    assert engine.recognize([], "en") == []


def test_only_what_entities_need_is_loaded(engine: SpacyEntities) -> None:
    assert engine.parameters == {"pipes": {"en": ["ner"]}}
    assert engine.languages() == ["en"]
    assert (engine.name, engine.model.startswith("en_core_web_sm")) == ("spacy", True)
    assert engine.version


def test_a_language_without_a_pipeline_is_an_engine_error(engine: SpacyEntities) -> None:
    with pytest.raises(EngineError, match="no pipeline for language 'sw'"):
        engine.recognize(["Ninaitwa Amina."], "sw")


def test_a_folder_without_a_pipeline_is_a_model_error(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(ModelError, match="no spaCy pipeline"):
            SpacyEntities({"en": str(folder)})


def test_a_pipeline_without_entities_is_a_model_error(tmp_path: Path) -> None:
    import spacy

    spacy.blank("en").to_disk(tmp_path)
    with pytest.raises(ModelError, match="finds no entities"):
        SpacyEntities({"en": str(tmp_path)})
