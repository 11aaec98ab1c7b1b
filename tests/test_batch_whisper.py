import numpy as np
import pytest

from callcore.audio import StreamingResampler, to_float
from callcore.cli.demo import word_error_rate
from callcore.engines.batch_whisper import BatchWhisper
from callcore.errors import ModelError
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


def test_the_language_is_found_where_it_is_not_given(engine):
    samples, _ = sample_leg("silent-stretch", "caller", 1)
    segments = list(engine.transcribe(wide(samples), None))
    assert {segment.language for segment in segments} == {"en"}


def test_what_is_no_speech_gives_no_words(engine):
    samples = np.concatenate(list(non_speech().values()))
    assert list(engine.transcribe(wide(samples), "en")) == []


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
