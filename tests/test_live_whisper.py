import os
import signal
import time

import numpy as np
import pytest

from callcore.cli.demo import word_error_rate
from callcore.engines import LIVE_RATE, DecodeJob
from callcore.engines.live_whisper import LiveWhisper, log_mel, mel_filters
from callcore.errors import ModelError
from callcore.inference import EngineSpec, InferenceProcess
from callcore.recognizer import Recognizer
from callcore.ringbuffer import RingBuffer
from tests.support.recognition import Listener, model, non_speech, sample_leg

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def english():
    return LiveWhisper(model("tiny.en"))


@pytest.fixture(scope="module")
def multilingual():
    return LiveWhisper(model("base"))


@pytest.fixture(scope="module")
def turn():
    samples, text = sample_leg("silent-stretch", "caller", 1)
    return samples[int(4.7 * LIVE_RATE) :], text


def job(samples, *, language="en", words=True):
    return DecodeJob(samples, language, words, len(samples) / LIVE_RATE)


def test_the_filters_are_those_of_the_reference():
    from faster_whisper.feature_extractor import FeatureExtractor

    reference = FeatureExtractor(feature_size=80).mel_filters
    np.testing.assert_allclose(mel_filters(80), reference[:, :101], atol=1e-7)


def test_features_at_8_khz_are_those_of_the_reference_at_16_khz(turn):
    from faster_whisper.feature_extractor import FeatureExtractor

    from callcore.audio import StreamingResampler, to_float

    samples, _ = turn
    resampler = StreamingResampler(8000, 16000)
    wide = to_float(np.concatenate([resampler.push(samples), resampler.flush()]))
    reference = FeatureExtractor(feature_size=80)(wide)
    ours = log_mel(samples, 300)
    # Below 3.4 kHz; the resampler's own filter ends above.
    assert np.abs(ours[:60, 5:295] - reference[:60, 5:295]).mean() < 0.02


def test_features_of_silence_and_of_nothing_are_finite():
    for samples in (np.zeros(0, np.int16), np.zeros(8000, np.int16)):
        features = log_mel(samples, 200)
        assert features.shape == (80, 200)
        assert np.isfinite(features).all()


def test_samples_beyond_the_window_are_left_out(turn):
    samples, _ = turn
    features = log_mel(samples, 100)
    assert features.shape == (80, 100)


@pytest.mark.parametrize("window", ["stitched", "full"])
def test_a_sentence_is_heard_with_its_word_times(window, turn):
    samples, text = turn
    engine = LiveWhisper(model("tiny.en"), window=window)
    (heard,) = engine.decode([job(samples)])
    assert word_error_rate(text, heard.text) <= 0.1
    assert " ".join(word.w for word in heard.words) == heard.text
    duration_s = len(samples) / LIVE_RATE
    for word in heard.words:
        assert 0 <= word.s <= word.e <= duration_s
        assert 0 <= word.p <= 1
    starts = [word.s for word in heard.words]
    assert starts == sorted(starts)
    assert heard.words[-1].e > duration_s - 1.5
    assert heard.language == "en"


def test_what_else_is_in_the_batch_changes_no_text(english, turn):
    samples, _ = turn
    second = int(LIVE_RATE)
    jobs = [
        job(samples, words=False),
        job(samples[: 3 * second]),
        job(samples[: 2 * second]),
        job(samples[second : 4 * second]),
        job(samples),
    ]
    together = english.decode(jobs)
    alone = [english.decode([each])[0] for each in jobs]
    assert [each.text for each in together] == [each.text for each in alone]
    assert together[0].words == ()


@pytest.mark.parametrize("name", [name for name in non_speech() if name != "music"])
def test_what_is_no_speech_gives_no_words_even_if_the_detector_errs(english, name):
    # As if the detector had called half a second of it speech.
    for seconds in (1.0, 4.0):
        samples = non_speech()[name][: int(seconds * LIVE_RATE)]
        (heard,) = english.decode([DecodeJob(samples, "en", True, 0.2)])
        assert heard.text == ""
        assert heard.words == ()


def test_the_language_is_found_from_the_same_audio(multilingual, turn):
    samples, text = turn
    (heard,) = multilingual.decode([job(samples, language=None)])
    assert heard.language == "en"
    assert heard.language_prob > 0.7
    assert word_error_rate(text, heard.text) <= 0.15


def test_an_english_model_takes_everything_for_english(english, turn):
    (heard,) = english.decode([job(turn[0], language=None, words=False)])
    assert (heard.language, heard.language_prob) == ("en", 1.0)


def test_letters_of_several_tokens_and_words_without_spaces_stay_whole(multilingual):
    tokenizer = multilingual._tokenizer
    for language, text, words in (
        ("ru", " Съешь ещё булок", [" Съешь", " ещё", " булок"]),
        ("zh", "你好嗎", ["你", "好", "嗎"]),
        ("fr", " l'étoile, oui", [" l'étoile,", " oui"]),
    ):
        tokens = tokenizer.encode(text, add_special_tokens=False).ids
        pieces = multilingual._words(tokens, language)
        assert "".join(piece for piece, _ in pieces) == text
        assert [token for _, piece in pieces for token in piece] == tokens
        if language != "zh":
            assert [piece for piece, _ in pieces] == words


def test_a_folder_without_a_model_is_a_model_error(tmp_path):
    with pytest.raises(ModelError, match="cannot load"):
        LiveWhisper(str(tmp_path))


def live_engines():
    return {
        "vad": EngineSpec("callcore.engines.silero:Silero", {"model": model("silero-vad")}),
        "live": EngineSpec(
            "callcore.engines.live_whisper:LiveWhisper", {"model": model("tiny.en")}
        ),
    }


async def hear(inference, samples, *, speed=1.0, meanwhile=lambda listener: None):
    """Return what the recogniser hears of samples that arrive over real time."""
    import asyncio

    listener = Listener()
    recognizer = Recognizer(inference)
    await recognizer.start()
    ring = RingBuffer(len(samples))
    leg = recognizer.open_leg(ring, listener, language="en", spill=None)
    began = time.monotonic()
    async with asyncio.timeout(120):
        while ring.end < len(samples):
            due = int((time.monotonic() - began) * speed * LIVE_RATE)
            ring.append(samples[ring.end : due].tobytes())
            meanwhile(listener)
            await asyncio.sleep(0.02)
        await leg.finish()
    await recognizer.close()
    return listener


async def test_a_call_is_heard_right_and_silence_and_tones_around_it_add_nothing():
    sounds = non_speech()
    samples, text = sample_leg("silent-stretch", "caller", 2)
    samples = np.concatenate([sounds["ringback"], samples, sounds["dtmf"], sounds["music"]])
    with InferenceProcess(live_engines()) as inference:
        inference.attributes("live")
        heard = await hear(inference, samples, speed=4)
    assert word_error_rate(text, " ".join(heard.words)) <= 0.12


@pytest.mark.slow
async def test_a_process_that_is_killed_again_and_again_costs_no_word():
    samples, _ = sample_leg("silent-stretch", "caller", 3)
    with InferenceProcess(live_engines()) as inference:
        expected = await hear(inference, samples, speed=8)
    kills = []

    with InferenceProcess(live_engines()) as inference:

        def kill(listener):
            # In the middle of work: a fixed while after it proved to be alive.
            proof = (len(listener.finals), len(listener.partials))
            if inference.pid and proof != (kills[-1] if kills else (0, 0)):
                kills.append(proof)
                os.kill(inference.pid, signal.SIGKILL)

        got = await hear(inference, samples, speed=2, meanwhile=kill)
    assert len(kills) >= 2
    assert got.spans == expected.spans
