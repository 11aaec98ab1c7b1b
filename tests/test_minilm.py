import numpy as np
import pytest

from callcore.errors import ModelError
from tests.support.recognition import model

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def embedder():
    from callcore.engines.minilm import MiniLM

    return MiniLM(model("minilm"), threads=2)


def test_sentences_of_one_meaning_are_nearer_than_others(embedder):
    card, plastic, weather = embedder.embed(
        ["I lost my bank card.", "My debit card is missing.", "It will rain tomorrow."]
    )
    assert card @ plastic > 0.6
    assert card @ weather < 0.2


def test_vectors_are_of_length_one_and_in_the_order_of_the_texts(embedder):
    texts = ["short", "a rather longer sentence about nothing at all", "", "middle one", "short"]
    vectors = embedder.embed(texts)
    assert vectors.shape == (5, 384)
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(5), abs=1e-5)
    assert (vectors[0] == vectors[4]).all()
    assert vectors[3] == pytest.approx(embedder.embed(["middle one"])[0], abs=1e-3)


def test_a_vector_hardly_depends_on_the_texts_beside_it(embedder):
    alone = embedder.embed(["please send me a new card"])[0]
    among = embedder.embed(["please send me a new card", *["word " * n for n in range(1, 90)]])[0]
    assert alone @ among > 0.9999


def test_no_texts_give_no_vectors(embedder):
    assert embedder.embed([]).shape == (0, 384)


def test_what_goes_beyond_the_models_limit_is_cut(embedder):
    beginning = "help " * 254
    long, longer = embedder.embed([beginning, beginning + "and a pony " * 200])
    assert long == pytest.approx(longer, abs=1e-5)


def test_a_folder_without_a_model_is_a_model_error(tmp_path):
    from callcore.engines.minilm import MiniLM

    with pytest.raises(ModelError, match="cannot load"):
        MiniLM(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "model.onnx").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="cannot load"):
        MiniLM(str(tmp_path))


def test_it_says_what_it_is(embedder):
    assert (embedder.name, embedder.model) == ("minilm", "minilm")
    assert embedder.version
    assert embedder.parameters["max_tokens"] == 256
