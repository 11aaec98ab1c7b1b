import numpy as np
import pytest

from callcore.endpointing import Endpointer, SpeechEnded
from callcore.errors import ModelError
from tests.support.recognition import model, non_speech, sample_leg

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def detector():
    from callcore.engines.silero import Silero

    return Silero(model("silero-vad"))


@pytest.fixture(scope="module")
def speech():
    samples, _ = sample_leg("silent-stretch", "agent", 1)
    return samples[: len(samples) // 256 * 256]


def test_speech_is_found_where_it_is(detector, speech):
    (probabilities,), _ = detector.probabilities([speech], [detector.initial_state()])
    endpointer = Endpointer()
    events = [event for each in probabilities for event in endpointer.push(float(each), 1.0)]
    ends = [event for event in events + endpointer.seal(len(speech))]
    spoken = [event for event in ends if isinstance(event, SpeechEnded)]
    assert spoken[0].start / 8000 == pytest.approx(0.8, abs=0.4)
    assert spoken[-1].speech_end / 8000 == pytest.approx(4.1, abs=0.4)


def test_how_the_stream_is_split_and_who_else_is_in_the_batch_changes_nothing(detector, speech):
    whole, end_state = detector.probabilities([speech], [detector.initial_state()])
    rng = np.random.default_rng(1)
    other, state, parts = detector.initial_state(), detector.initial_state(), []
    at = 0
    while at < len(speech):
        size = 256 * int(rng.integers(0, 9))
        noise = rng.normal(0, 900, 256 * int(rng.integers(0, 5))).astype(np.int16)
        (_, part), (other, state) = detector.probabilities(
            [noise, speech[at : at + size]], [other, state]
        )
        parts.append(part)
        at += size
    np.testing.assert_allclose(np.concatenate(parts), whole[0], atol=1e-4)
    np.testing.assert_allclose(state, end_state[0], atol=1e-3)


def test_more_streams_than_a_batch_holds_are_all_answered(detector, speech):
    windows = speech[8000 : 8000 + 512]
    results, states = detector.probabilities([windows] * 70, [detector.initial_state()] * 70)
    assert len(results) == len(states) == 70
    np.testing.assert_allclose(np.stack(results), np.stack([results[0]] * 70), atol=1e-4)


def test_the_given_states_are_left_as_they_are(detector, speech):
    state = detector.initial_state()
    detector.probabilities([speech[:512]], [state])
    assert not state.any()


@pytest.mark.parametrize("name", non_speech())
def test_what_is_not_speech_is_not_called_speech(detector, name):
    samples = non_speech()[name]
    (probabilities,), _ = detector.probabilities(
        [samples[: len(samples) // 256 * 256]], [detector.initial_state()]
    )
    assert (probabilities >= 0.5).sum() <= 3


def test_half_a_window_is_refused(detector):
    with pytest.raises(ValueError, match="whole windows"):
        detector.probabilities([np.zeros(100, np.int16)], [detector.initial_state()])


def test_a_file_that_is_no_model_is_a_model_error(tmp_path):
    from callcore.engines.silero import Silero

    (tmp_path / "silero_vad.onnx").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="cannot load"):
        Silero(str(tmp_path))
