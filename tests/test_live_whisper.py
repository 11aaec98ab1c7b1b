import asyncio
from dataclasses import replace

import numpy as np
import pytest

from callcore.cli.demo import word_error_rate
from callcore.engines import LIVE_RATE, DecodeJob, guards
from callcore.engines.features import in_window, mel_filters, raw_frames
from callcore.engines.live_whisper import LiveWhisper
from callcore.errors import ModelError
from callcore.inference import EngineSpec, InferenceProcess
from callcore.recognizer import LegRecognition, Recognizer
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
    ours = in_window(raw_frames(samples), 300)
    # Below 3.4 kHz; the resampler's own filter ends above.
    assert np.abs(ours[:60, 5:295] - reference[:60, 5:295]).mean() < 0.02


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


def noticed(engine, monkeypatch):
    """Return a list that gets the seconds of each window that the engine encodes."""
    encoded = []
    encode = engine._encode

    def notice(raws, num_frames):
        encoded.append(num_frames / 100)
        return encode(raws, num_frames)

    monkeypatch.setattr(engine, "_encode", notice)
    return encoded


@pytest.fixture
def windows(english, monkeypatch):
    return noticed(english, monkeypatch)


def test_a_short_final_goes_into_the_longer_window_at_once(english, windows, turn):
    english.decode([job(turn[0][LIVE_RATE : 2 * LIVE_RATE])])
    assert windows == [15.0]


def test_doubtful_finals_are_decoded_again_in_a_longer_window_together(
    english, windows, turn, monkeypatch
):
    monkeypatch.setattr(english, "_doubtful_logprob", 0.0)
    jobs = [job(turn[0][at : at + 2 * LIVE_RATE]) for at in (0, 4000, 8000)]
    together = english.decode(jobs)
    assert windows == [3.0, 15.0]
    assert [each.text for each in together] == [english.decode([each])[0].text for each in jobs]


def test_a_text_that_repeats_itself_is_decoded_again(english, windows, turn):
    again = np.concatenate([turn[0][: 3 * LIVE_RATE]] * 2)
    (heard,) = english.decode([job(again)])
    assert windows == [7.0, 15.0]
    words = heard.text.split()
    assert len(words) >= 1.7 * len(english.decode([job(again[: 3 * LIVE_RATE])])[0].text.split())


def test_a_text_as_long_as_a_decode_may_be_is_decoded_again(english, windows, turn, monkeypatch):
    monkeypatch.setattr(guards, "token_limit", lambda duration_s, language: 4)
    english.decode([job(turn[0][: 3 * LIVE_RATE])])
    assert windows == [5.0, 15.0]


def test_the_limit_of_a_job_does_not_depend_on_its_neighbours(multilingual, turn, monkeypatch):
    """At the limit: the neighbour is longer, and in a language of many tokens."""
    limit = guards.token_limit
    monkeypatch.setattr(guards, "token_limit", lambda s, language: limit(s, language) // 5)
    short = job(turn[0][: int(2.2 * LIVE_RATE)], words=False)
    longer = job(turn[0][: 4 * LIVE_RATE], words=False)
    hindi = job(turn[0][: 4 * LIVE_RATE], language="hi", words=False)
    (alone,) = multilingual.decode([short])
    assert multilingual.decode([short, longer, hindi])[0] == alone
    assert alone.text


def test_a_long_doubtful_final_is_decoded_again_in_the_full_window(english, windows, monkeypatch):
    monkeypatch.setattr(english, "_doubtful_logprob", 0.0)
    english.decode([job(np.zeros(14 * LIVE_RATE, np.int16))])
    assert windows == [16.0, 30.0]


def test_nothing_is_decoded_again_where_it_must_not_be(english, windows, turn):
    short = turn[0][LIVE_RATE : 2 * LIVE_RATE]
    english.decode([replace(job(short), redo=False)])
    english.decode([job(short, words=False)])
    assert windows == [3.0, 3.0]


def test_a_final_under_overload_has_a_narrow_beam(english, monkeypatch, turn):
    beams = []
    run = english._run

    def notice(jobs, raws, window_s, beam):
        beams.append(beam)
        return run(jobs, raws, window_s, beam)

    monkeypatch.setattr(english, "_run", notice)
    final = job(turn[0])
    for each in (final, replace(final, redo=False), replace(final, words=False)):
        english.decode([each])
    assert beams == [5, 2, 1]


def test_a_sure_final_is_decoded_once(english, windows, turn):
    english.decode([job(turn[0])])
    assert len(windows) == 1


def test_a_final_in_another_language_goes_into_the_longer_window_at_once(
    multilingual, monkeypatch, turn
):
    windows = noticed(multilingual, monkeypatch)
    french = job(turn[0][: 2 * LIVE_RATE], language="fr")
    multilingual.decode([french])
    assert windows == [15.0]
    multilingual.decode([replace(french, words=False), replace(french, redo=False)])
    assert windows == [15.0, 3.0, 3.0]


def test_what_was_kept_of_the_features_changes_no_word(english, turn):
    samples, _ = turn
    second = LIVE_RATE
    jobs = [
        job(samples[: int(1.3 * second)], words=False),
        job(samples[: int(2.1 * second)], words=False),
        job(samples[: int(3.7 * second)], words=False),
        job(samples),
    ]
    plain = [english.decode([each])[0] for each in jobs]
    keyed = [english.decode([replace(each, stream=5, start=0)])[0] for each in jobs]
    assert keyed == plain


def test_a_device_that_is_not_there_is_a_model_error():
    with pytest.raises(ModelError, match="cannot load"):
        LiveWhisper(model("tiny.en"), device="nonsense")


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


async def test_a_call_is_heard_right_and_silence_and_tones_around_it_add_nothing():
    sounds = non_speech()
    samples, text = sample_leg("silent-stretch", "caller", 2)
    samples = np.concatenate([sounds["ringback"], samples, sounds["dtmf"], sounds["music"]])
    listener, ring = Listener(), RingBuffer(len(samples))
    with InferenceProcess(live_engines()) as inference:
        inference.attributes("live")
        recognizer = Recognizer(inference)
        await recognizer.start()
        leg = recognizer.open_leg(ring, listener, language="en", spill=None)
        assert isinstance(leg, LegRecognition)
        # All at once: when samples arrive changes no word (test_same_finals).
        ring.append(samples.tobytes())
        async with asyncio.timeout(120):
            await leg.finish()
        await recognizer.close()
    assert word_error_rate(text, " ".join(listener.words)) <= 0.12
