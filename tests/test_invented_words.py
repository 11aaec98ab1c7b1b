"""Where nobody speaks nothing is written; what somebody says again is written again."""

import asyncio

import numpy as np
import pytest

from callcore.cli.demo import word_error_rate
from callcore.engines import LIVE_RATE, DecodeJob
from callcore.engines.live_whisper import LiveWhisper
from callcore.inference import EngineSpec, InferenceProcess
from callcore.recognizer import Recognizer
from callcore.recognizer_config import RecognizerConfig
from callcore.ringbuffer import RingBuffer
from tests.support.recognition import Listener, model, non_speech, sample_leg

pytestmark = pytest.mark.model

GAINS = (0.1, 1.0, 4.0)


@pytest.fixture(scope="module")
def english():
    return LiveWhisper(model("tiny.en"))


def louder(samples, gain):
    return np.clip(samples * gain, -32768, 32767).astype(np.int16)


def heard_by(name, engine, language, sounds):
    """Return the listener of each sound, all of which are legs of one recogniser."""

    async def hear():
        engines = {
            "vad": EngineSpec("callcore.engines.silero:Silero", {"model": model("silero-vad")}),
            engine: EngineSpec("callcore.engines.live_whisper:LiveWhisper", {"model": model(name)}),
        }
        listeners = []
        with InferenceProcess(engines) as inference:
            inference.attributes(engine)
            recognizer = Recognizer(inference, config=RecognizerConfig(max_load=1e6))
            await recognizer.start()
            legs = []
            for samples in sounds:
                listeners.append(Listener())
                ring = RingBuffer(len(samples))
                leg = recognizer.open_leg(ring, listeners[-1], language=language, spill=None)
                ring.append(samples.tobytes())
                legs.append(leg)
            async with asyncio.timeout(120):
                await asyncio.gather(*(leg.finish() for leg in legs))
            await recognizer.close()
        return listeners

    return asyncio.run(hear())


@pytest.mark.parametrize(
    ("name", "engine", "language"),
    [
        ("tiny.en", "live", "en"),
        pytest.param("base", "live_multilingual", "en", marks=pytest.mark.nightly),
        pytest.param("base", "live_multilingual", None, marks=pytest.mark.nightly),
    ],
)
def test_no_word_is_written_where_nobody_speaks(name, engine, language):
    sounds = [louder(each, gain) for each in non_speech().values() for gain in GAINS]
    assert sum(len(each) for each in sounds) > 4 * 60 * LIVE_RATE
    for listener in heard_by(name, engine, language, sounds):
        assert listener.words == []
        assert all(text == "" for _, text, _ in listener.partials)


@pytest.mark.parametrize("sound", [name for name in non_speech() if name != "music"])
def test_the_guards_alone_hold_off_what_is_no_speech(english, sound):
    """As if the detector had taken half a second of it for speech."""
    samples = non_speech()[sound]
    for seconds, gain in ((2, 0.1), (4, 4.0)):
        job = DecodeJob(louder(samples[: seconds * LIVE_RATE], gain), "en", True, 0.5)
        assert english.decode([job])[0].text == ""


@pytest.fixture(scope="module")
def sentence():
    """Two sentences of 5 s without the silence around them, and their words."""
    samples, text = sample_leg("silent-stretch", "caller", 1)
    loud = np.flatnonzero(np.abs(samples) > 500)
    return samples[loud[0] : loud[-1]], text


def twice(samples):
    gap = np.zeros(int(0.2 * LIVE_RATE), np.int16)
    again = np.concatenate([samples, gap, samples, gap])
    assert len(again) < 15 * LIVE_RATE
    return again


def test_what_a_caller_says_again_at_once_is_written_again(english, sentence):
    """A guard against loops once ended a text at five words said twice in a row."""
    samples, text = sentence
    again = twice(samples)
    speech_s = 2 * len(samples) / LIVE_RATE
    (final,) = english.decode([DecodeJob(again, "en", True, speech_s)])
    (partial,) = english.decode([DecodeJob(again, "en", False, speech_s)])
    for heard in (final, partial):
        assert word_error_rate(f"{text} {text}", heard.text) <= 0.1
    assert final.words[-1].e > len(again) / LIVE_RATE - 1.0


def test_who_speaks_fast_is_heard_to_the_end(english, sentence):
    """A limit of tokens that was half of what was meant cut fast sentences off."""
    samples, _ = sentence
    # Nearly twice as fast, and higher with it.
    at = np.arange(0, len(samples), 1.8)
    again = twice(np.interp(at, np.arange(len(samples)), samples).astype(np.int16))
    (heard,) = english.decode([DecodeJob(again, "en", True, len(again) / LIVE_RATE)])
    assert heard.text.count("working again") == 2
