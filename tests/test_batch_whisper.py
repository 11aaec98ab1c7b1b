from types import SimpleNamespace

import numpy as np
import pytest
from faster_whisper import WhisperModel

from callcore.audio import StreamingResampler, to_float
from callcore.cli.demo import word_error_rate
from callcore.engines.batch_whisper import BatchWhisper, _kept
from callcore.errors import EngineError, ModelError
from tests.support.recognition import model, non_speech, sample_leg

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def engine():
    return BatchWhisper(model("base"), threads=2)


def wide(samples):
    resampler = StreamingResampler(8000, 16000)
    return to_float(np.concatenate([resampler.push(samples), resampler.flush()]))


def test_a_recording_is_transcribed_with_word_times(engine):
    samples, text = sample_leg("silent-stretch", "caller", 2)
    samples = wide(samples)
    segments = list(engine.transcribe(samples, "en"))
    assert word_error_rate(text, " ".join(segment.text for segment in segments)) <= 0.12
    last = 0.0
    for segment in segments:
        assert segment.text.split() == [word.w for word in segment.words]
        assert last <= segment.start < segment.end <= len(samples) / 16000
        last = segment.start
        for word in segment.words:
            assert segment.start <= word.s <= word.e <= segment.end
    assert {segment.language for segment in segments} == {"en"}


def test_what_is_said_again_and_again_is_written_each_time(engine):
    samples, text = sample_leg("silent-stretch", "caller", 1)
    samples = samples[np.flatnonzero(np.abs(samples) > 1000)[0] :]
    again = np.concatenate([samples, np.zeros(8000, samples.dtype)] * 4)
    assert len(again) < 30 * 8000  # one window: Whisper's own measure is that of all four
    said = " ".join(segment.text for segment in engine.transcribe(wide(again), "en"))
    assert word_error_rate(" ".join([text] * 4), said) <= 0.12


def test_what_is_said_again_in_one_breath_is_written_each_time(engine):
    """A person in danger repeats; a guard once kept the first of such sentences only."""
    samples, text = sample_leg("silent-stretch", "caller", 1)
    loud = np.flatnonzero(np.abs(samples) > 500)
    once = np.append(samples[loud[0] : loud[-1]], np.zeros(1600, samples.dtype))
    again = np.concatenate([once] * 3 + [np.zeros(8000, samples.dtype)])
    said = " ".join(segment.text for segment in engine.transcribe(wide(again), "en"))
    assert word_error_rate(" ".join([text] * 3), said) <= 0.15


ABOUT = SimpleNamespace(language="en", language_probability=1.0)


def written(text, starts, length_s, *, no_speech_prob=0.1, compression_ratio=3.0, p=0.9):
    """Return a segment of faster-whisper's, a word at each start."""
    words = [
        SimpleNamespace(word=f" {word}", start=start, end=start + length_s, probability=p)
        for word, start in zip(text.split(), starts, strict=True)
    ]
    return SimpleNamespace(
        start=starts[0],
        end=starts[-1] + length_s,
        words=words,
        avg_logprob=-0.2,
        no_speech_prob=no_speech_prob,
        compression_ratio=compression_ratio,
    )


def test_a_segment_of_a_window_that_repeats_itself_stays_if_it_can_have_been_said():
    text = "please send somebody now"
    slow = written(text, [0.0, 0.4, 0.7, 1.2], 0.3)
    assert _kept(slow, ABOUT, 30.0).text == text
    squeezed = written(text, [0.0, 0.1, 0.2, 0.3], 0.1)
    assert _kept(squeezed, ABOUT, 30.0) is None
    unsure = written(text, [0.0, 0.4, 0.7, 1.2], 0.3, p=0.4)
    assert _kept(unsure, ABOUT, 30.0) is None
    doubted = written(text, [0.0, 0.4, 0.7, 1.2], 0.3, no_speech_prob=0.7)
    assert _kept(doubted, ABOUT, 30.0) is None


def test_copies_in_a_segment_that_took_no_time_go():
    text = "please send somebody now"
    times = [0.0, 0.4, 0.7, 1.2]
    said = [*times, *(each + 1.6 for each in times)]
    twice = written(f"{text} {text}", said, 0.3, compression_ratio=1.5)
    assert _kept(twice, ABOUT, 30.0).text == f"{text} {text}"
    loop = written(" ".join([text] * 6), [*said, *[3.1] * 16], 0.3)
    for word in loop.words[8:]:
        word.end = word.start
    assert _kept(loop, ABOUT, 30.0).text == f"{text} {text}"


def test_the_language_is_found_where_it_is_not_given(engine):
    samples, _ = sample_leg("silent-stretch", "caller", 1)
    segments = list(engine.transcribe(wide(samples), None))
    assert {segment.language for segment in segments} == {"en"}


def test_what_is_no_speech_gives_no_words(engine):
    samples = np.concatenate(list(non_speech().values()))
    assert list(engine.transcribe(wide(samples), "en")) == []


def test_hotwords_are_not_heard_where_nobody_speaks(engine):
    samples = np.concatenate(list(non_speech().values()))
    assert list(engine.transcribe(wide(samples), "en", "Childline, Nairobi, Wanjiru")) == []


def test_hotwords_are_spelt_as_they_are_given(engine):
    samples, _ = sample_leg("silent-stretch", "caller", 2)
    without = " ".join(s.text for s in engine.transcribe(wide(samples), "en"))
    given = " ".join(s.text for s in engine.transcribe(wide(samples), "en", "Kisumu, Mombasa"))
    assert word_error_rate(without, given) <= 0.1
    assert "Mombasa" not in given


def test_the_language_is_found_without_encoding_its_window_twice(engine, monkeypatch):
    samples, text = sample_leg("silent-stretch", "caller", 1)
    encoded = []
    encode = WhisperModel.encode

    def counted(self, features):
        encoded.append(len(features))
        return encode(self, features)

    monkeypatch.setattr(WhisperModel, "encode", counted)
    found = list(engine.transcribe(wide(samples), None))
    assert len(encoded) == 1
    assert found[0].language_prob > 0.7
    assert word_error_rate(text, " ".join(each.text for each in found)) <= 0.12


def test_translation_is_in_english_and_invents_nothing(engine):
    samples, text = sample_leg("silent-stretch", "caller", 2)
    said = " ".join(each.text for each in engine.translate(wide(samples), "en"))
    assert word_error_rate(text, said) <= 0.2
    assert list(engine.translate(np.zeros(16000, np.float32), None)) == []


def test_a_model_of_english_only_does_not_translate():
    english = BatchWhisper(model("tiny.en"), threads=1)
    with pytest.raises(EngineError, match="no translation"):
        english.translate(np.zeros(16000, np.float32), "es")


def test_nothing_gives_nothing(engine):
    assert list(engine.transcribe(np.zeros(0, np.float32), "en")) == []
    assert list(engine.transcribe(np.zeros(16000, np.float32), None)) == []


def test_it_says_what_it_is(engine):
    assert (engine.name, engine.model) == ("faster-whisper", "base")
    assert engine.version
    assert engine.parameters["beam_size"] == 5


def test_a_folder_without_a_model_is_a_model_error_and_nothing_is_downloaded(tmp_path):
    with pytest.raises(ModelError, match="cannot load"):
        BatchWhisper(str(tmp_path))
    with pytest.raises(ModelError, match="no folder"):
        BatchWhisper("tiny.en")
