import json
from pathlib import Path

import numpy as np
import pytest

from callcore import audio, resources
from callcore.engines.ge2e import Ge2e
from callcore.errors import EngineError, ModelError


@pytest.fixture(scope="module")
def encoder():
    return Ge2e()


@pytest.fixture(scope="module")
def voices():
    """Two speakers of a sample call: of each a few turns of at least 1.6 s."""
    path = resources.path("samples") / "silent-stretch.wav"
    channels = audio.read_channels(path, 16_000, 600.0)
    turns = json.loads(path.with_suffix(".json").read_text("utf-8"))["turns"]
    found: dict[str, list[np.ndarray]] = {"caller": [], "agent": []}
    for turn in turns:
        begin = round(turn["start"] * 16_000)
        if turn["end"] - turn["start"] > 1.7:
            channel = channels[["caller", "agent"].index(turn["leg"])]
            found[turn["leg"]].append(channel[begin : begin + 25_600])
    return found


def test_one_voice_is_more_like_itself_than_like_another(encoder, voices):
    caller, agent = (encoder.embed(voices[leg]) for leg in ("caller", "agent"))
    assert min(len(caller), len(agent)) >= 2
    assert np.allclose(np.linalg.norm(caller, axis=1), 1.0, atol=1e-5)
    same = min((caller @ caller.T).min(), (agent @ agent.T).min())
    assert same > (caller @ agent.T).max() + 0.1


def test_a_window_gives_the_same_vector_whatever_is_beside_it(encoder, voices):
    windows = [voices["caller"][0], voices["agent"][0][:9000], voices["agent"][1][:300]]
    together = encoder.embed([*windows, *voices["caller"]] * 8)
    for number, window in enumerate(windows):
        assert np.allclose(encoder.embed([window])[0], together[number], atol=1e-4)


def test_loudness_below_that_of_speech_does_not_matter(encoder, voices):
    window = voices["caller"][0]
    quiet, quieter = encoder.embed([window * 0.1, window * 0.02])
    assert quiet @ quieter > 0.999


def test_a_long_window_is_the_mean_of_its_parts(encoder, voices):
    both = np.concatenate([voices["caller"][0], voices["caller"][1]])
    vector = encoder.embed([both])[0]
    assert vector @ encoder.embed([voices["caller"][0]])[0] > 0.8


def test_silence_and_a_single_sample_have_a_vector(encoder):
    vectors = encoder.embed([np.zeros(1600, np.float32), np.ones(1, np.float32)])
    assert vectors.shape == (2, 256)
    assert np.isfinite(vectors).all()


def test_nothing_gives_nothing_and_an_empty_window_is_an_error(encoder):
    assert encoder.embed([]).shape == (0, 256)
    with pytest.raises(EngineError, match="no samples"):
        encoder.embed([np.zeros(0, np.float32)])


def test_weights_that_are_none_are_a_model_error(tmp_path: Path):
    (tmp_path / "w.npz").write_bytes(b"PK\x03\x04 no")
    for name in ("w.npz", "absent.npz"):
        with pytest.raises(ModelError, match="cannot be read"):
            Ge2e(str(tmp_path / name))
    np.savez(tmp_path / "few.npz", **{"linear.bias": np.zeros(256, np.float16)})
    with pytest.raises(ModelError, match="cannot be read"):
        Ge2e(str(tmp_path / "few.npz"))
