import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from callcore.endpointing import Endpointer, SpeechEnded
from callcore.energy_gate import EnergyGate, GateConfig
from callcore.engines import LIVE_RATE
from tests.support.recognition import model, non_speech, sample_leg

WINDOW = 256
SECOND = LIVE_RATE // WINDOW


def judge(samples, *, config=None, sizes=None):
    """Return for each whole window whether it is heard, and the samples that are."""
    gate = EnergyGate(config)
    samples = samples[: len(samples) // WINDOW * WINDOW]
    heard, kept, at = [], [], 0
    sizes = iter(sizes or [])
    while at < len(samples):
        end = at + WINDOW * next(sizes, len(samples))
        judged = gate.push(samples[at:end])
        heard += judged.heard
        kept += judged.samples
        at = end
    judged = gate.seal()
    heard += judged.heard
    assert not judged.samples
    assert len(heard) == len(samples) // WINDOW
    assert sum(heard) == len(kept)
    return np.array(heard), kept


def windows(*levels_and_seconds):
    """Return samples of constant magnitude, in whole windows."""
    parts = [
        np.full(round(seconds * SECOND) * WINDOW, level, np.int16)
        for level, seconds in levels_and_seconds
    ]
    return np.concatenate(parts)


def test_all_is_heard_until_the_floor_is_known():
    heard, _ = judge(windows((1000, 5.0)))
    assert heard.all()
    heard, _ = judge(windows((0, 5.0)))
    assert heard.all()


def test_silence_after_that_is_not_heard():
    heard, _ = judge(windows((0, 15.0)))
    floor = GateConfig().num_windows(5.0)
    assert heard[:floor].all()
    assert not heard[floor:].any()


def test_a_sound_is_heard_with_what_is_before_and_after_it():
    heard, _ = judge(windows((0, 10.0), (1000, 0.5), (0, 10.0)))
    first, last = np.flatnonzero(heard)[[GateConfig().num_windows(5.0), -1]]
    begin, length = round(10.0 * SECOND), round(0.5 * SECOND)
    # Lead and hold are those of the blocks of four windows that were loud.
    assert 0 <= begin - GateConfig().num_windows(1.0) - first < 4
    assert 0 <= last - (begin + length - 1 + GateConfig().num_windows(1.0)) < 4


def test_what_is_heard_comes_as_it_was_and_in_order():
    samples = windows((0, 10.0), (1000, 0.1), (0, 3.0), (2000, 0.1), (0, 3.0))
    heard, kept = judge(samples)
    np.testing.assert_array_equal(
        np.concatenate(kept), samples.reshape(-1, WINDOW)[heard].reshape(-1)
    )


@pytest.mark.parametrize("rms", [2, 30, 400, 3000])
def test_steady_noise_of_any_strength_is_not_heard(rms):
    noise = np.random.default_rng(5).normal(0, rms, 60 * LIVE_RATE).astype(np.int16)
    heard, _ = judge(noise)
    assert heard[GateConfig().num_windows(5.0) :].mean() < 0.02


def test_speech_quieter_than_the_noise_before_is_heard_once_the_noise_has_gone():
    heard, _ = judge(windows((3000, 20.0), (100, 6.0), (200, 0.2), (100, 5.0)))
    at = round(26.0 * SECOND)
    assert heard[at]


def test_nothing_is_kept_for_ever():
    gate = EnergyGate()
    rising = np.repeat(np.arange(1, 20_000, dtype=np.int16), WINDOW)
    for part in np.split(rising[: 64 * WINDOW * 300], 300):
        gate.push(part)
        assert len(gate._undecided) <= GateConfig().num_windows(1.0) + 4
        assert len(gate._unjudged) <= GateConfig().num_windows(5.0)


@pytest.mark.parametrize("name", ["constant", "hum", "tone"])
def test_steady_sound_is_not_heard(name):
    heard, _ = judge(np.round(disturbance(name, 30 * LIVE_RATE)).astype(np.int16))
    assert heard[GateConfig().num_windows(5.0) :].mean() < 0.02


def disturbance(name, num):
    """Return what a line may add to speech all the time."""
    time = np.arange(num) / LIVE_RATE
    match name:
        case "constant":
            return np.full(num, 600.0)
        case "hum":
            return 3000 * np.sin(2 * np.pi * 50 * time)
        case "tone":
            return 4000 * np.sin(2 * np.pi * 440 * time)
        case _:
            return np.random.default_rng(1).normal(0, 2000, num)


@settings(max_examples=30, deadline=None)
@given(
    offset=st.integers(-3000, 3000),
    hertz=st.floats(20, 3900),
    amplitude=st.integers(0, 12_000),
    rms=st.integers(1, 50),
    at=st.floats(7.0, 9.0),
    seed=st.integers(0, 1000),
)
def test_a_sound_over_steady_ones_is_heard(offset, hertz, amplitude, rms, at, seed):
    """The loudness of the whole hardly changes where hum, a tone or an offset is louder."""
    rng = np.random.default_rng(seed)
    time = np.arange(12 * LIVE_RATE) / LIVE_RATE
    line = offset + amplitude * np.sin(2 * np.pi * hertz * time)
    burst = (time >= at) & (time < at + 0.3)
    sound = rng.normal(0, 1, len(time)) * np.where(burst, 20 * rms, rms)
    heard, _ = judge(np.clip(np.round(line + sound), -32768, 32767).astype(np.int16))
    begin, end = round(at * SECOND), round((at + 0.3) * SECOND)
    assert heard[begin - SECOND // 2 : end].all()


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([0, 1, 3, 20, 25, 40, 800, 9000]), st.floats(0.05, 6.0)),
        min_size=1,
        max_size=10,
    ),
    st.lists(st.integers(1, 70), max_size=60),
)
def test_how_the_audio_is_split_changes_nothing(pieces, sizes):
    samples = windows(*pieces)
    rng = np.random.default_rng(len(samples))
    samples = np.int16(samples * rng.choice([0.1, 1.0, 3.0], len(samples)))
    whole, _ = judge(samples)
    split, _ = judge(samples, sizes=sizes)
    np.testing.assert_array_equal(split, whole)


# ---- with the detector behind it


def utterances(samples, probabilities):
    endpointer = Endpointer()
    levels = np.abs(samples.astype(np.float32)).reshape(-1, WINDOW).mean(axis=1)
    events = []
    for probability, level in zip(probabilities.tolist(), levels.tolist(), strict=True):
        events += endpointer.push(probability, level)
    events += endpointer.seal(len(samples))
    return [event for event in events if isinstance(event, SpeechEnded)]


def with_noise(samples, rms, gain):
    noise = np.random.default_rng(1).normal(0, rms, len(samples)) if rms else 0.0
    return np.clip(np.round(samples * gain + noise), -32768, 32767).astype(np.int16)


@pytest.mark.model
@pytest.mark.parametrize(("rms", "gain"), [(0, 1.0), (30, 0.1)])
def test_utterances_are_found_as_without_a_gate(rms, gain):
    from callcore.engines.silero import Silero

    detector = Silero(model("silero-vad"))
    speech, _ = sample_leg("silent-stretch", "agent", 2)
    samples = with_noise(np.concatenate([speech, np.zeros(8 * LIVE_RATE, np.int16)]), rms, gain)
    samples = samples[: len(samples) // WINDOW * WINDOW]
    heard, kept = judge(samples)
    (without, behind), _ = detector.probabilities(
        [samples, np.concatenate(kept)], [detector.initial_state()] * 2
    )
    behind_gate = np.zeros(len(heard), np.float32)
    behind_gate[heard] = behind
    expected, found = utterances(samples, without), utterances(samples, behind_gate)
    assert heard.mean() < 0.9, "nothing was kept from the detector"
    assert len(found) == len(expected)
    for one, other in zip(expected, found, strict=True):
        # A network that remembers says something else after it has missed silence: this much,
        # half of what is kept before and after speech.
        assert abs(one.start - other.start) <= 4 * WINDOW
        assert abs(one.end - other.end) <= 4 * WINDOW


@pytest.mark.model
@pytest.mark.parametrize(
    ("name", "gain"), [("constant", 0.1), ("hum", 0.3), ("tone", 0.3), ("noise", 0.8)]
)
def test_speech_over_steady_sound_is_found_as_without_a_gate(name, gain):
    from callcore.engines.silero import Silero

    detector = Silero(model("silero-vad"))
    speech, _ = sample_leg("silent-stretch", "agent", 2)
    silence = np.zeros(8 * LIVE_RATE)
    samples = np.concatenate([silence, gain * speech, silence])
    samples = np.clip(samples + disturbance(name, len(samples)), -32768, 32767)
    samples = np.round(samples[: len(samples) // WINDOW * WINDOW]).astype(np.int16)
    heard, kept = judge(samples)
    (without, behind), _ = detector.probabilities(
        [samples, np.concatenate(kept)], [detector.initial_state()] * 2
    )
    assert heard.mean() < 0.9, "nothing was kept from the detector"
    expected = (without >= 0.5).sum()
    assert expected
    assert (behind >= 0.5).sum() >= 0.9 * expected
    assert not (without >= 0.5)[~heard].any()


@pytest.mark.parametrize("name", ["silence", "noise", "loud noise"])
def test_most_of_what_is_steady_never_reaches_the_detector(name):
    heard, _ = judge(np.tile(non_speech()[name], 3))
    assert heard[GateConfig().num_windows(5.0) :].mean() < 0.05
