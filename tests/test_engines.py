import os

import numpy as np
import pytest

from callcore.engines import LIVE_RATE, DecodeJob, bucket_s, load
from callcore.engines.scripted import (
    Misbehaviour,
    ScriptedDetector,
    ScriptedEmbedder,
    ScriptedEntityRecognizer,
    ScriptedLiveTranscriber,
    ScriptedSentiment,
    ScriptedTranscriber,
    ScriptedTranslator,
)
from callcore.errors import ConfigError, EngineError
from tests.support.recognition import audio


def test_an_engine_is_found_by_its_import_string():
    assert load("callcore.engines.scripted:ScriptedDetector") is ScriptedDetector


@pytest.mark.parametrize("path", ["nothing.here:Engine", "callcore.engines:Nothing", "json", ":x"])
def test_an_import_string_that_leads_nowhere_is_a_configuration_error(path):
    with pytest.raises(ConfigError, match="module:attribute"):
        load(path)


def test_a_bucket_holds_its_samples_and_the_largest_holds_the_rest():
    assert bucket_s(1) == bucket_s(2 * LIVE_RATE) == 2.0
    assert bucket_s(2 * LIVE_RATE + 1) == 4.0
    assert bucket_s(99 * LIVE_RATE) == 15.0


def test_the_scripted_transcriber_hears_levels_as_words():
    samples = audio([(0, 0.1), (1001, 0.2), (0, 0.1), (-1002, 0.1), (1003, 0.01), (0, 0.1)])
    jobs = [DecodeJob(samples, None, words, 0.3) for words in (True, False)]
    final, partial = ScriptedLiveTranscriber().decode(jobs)
    assert final.text == partial.text == "w1001 w1002"
    assert [(word.w, word.s, word.e) for word in final.words] == [
        ("w1001", 0.1, 0.3),
        ("w1002", 0.4, 0.5),
    ]
    assert partial.words == ()


def test_the_scripted_transcriber_hears_nothing_in_nothing():
    empty = DecodeJob(np.zeros(0, np.int16), "en", True, 0.0)
    assert ScriptedLiveTranscriber().decode([empty])[0].text == ""


def test_the_scripted_detector_hears_loudness_and_counts_windows():
    detector = ScriptedDetector()
    samples = audio([(0, 0.064), (1000, 0.064)])[: 4 * 256]
    (probabilities,), (state,) = detector.probabilities([samples], [detector.initial_state()])
    assert probabilities.tolist() == [0, 0, 1, 1]
    assert state.tolist() == [4]


def test_the_scripted_transcriber_of_recordings_hears_loud_stretches():
    samples = np.zeros(4 * 16000, np.float32)
    samples[16000:24000] = samples[28000:32000] = 0.5
    samples[48000:] = -0.5
    segments = list(ScriptedTranscriber().transcribe(samples, None))
    assert [segment.text for segment in segments] == ["sound 1.0 2.0", "sound 3.0 4.0"]
    assert [len(segment.words) for segment in segments] == [3, 3]
    assert list(ScriptedTranscriber().transcribe(samples[:100], None)) == []
    assert ScriptedTranscriber().parameters["gap_s"] > 0


def test_engines_fail_as_often_as_they_are_told():
    engine = ScriptedLiveTranscriber(fail_times=2, delay_s=0.001)
    for _ in range(2):
        with pytest.raises(EngineError):
            engine.decode([])
    assert engine.decode([]) == []


def test_an_engine_crashes_its_process_once_and_never_again(tmp_path, monkeypatch):
    killed = []
    monkeypatch.setattr(os, "kill", lambda pid, signal: killed.append(signal))
    marker = str(tmp_path / "crashed")
    for _ in range(2):
        Misbehaviour(crash_once=marker).misbehave()
    assert len(killed) == 1


def test_the_scripted_translator_marks_words():
    engine = ScriptedTranslator(packages="/nowhere", threads=2)
    assert ("es", "en") in engine.pairs()
    assert engine.translate(["hola Ana", ""], "es", "en") == ["hola-en Ana-en", ""]


def test_the_scripted_entity_recognizer_finds_capitals():
    engine = ScriptedEntityRecognizer(models={"en": "/nowhere"})
    [[ana], none] = engine.recognize(["so Ana said", "nobody"], engine.languages()[0])
    assert (ana.label, ana.start, ana.end, none) == ("PERSON", 3, 6, [])


def test_the_scripted_embedder_finds_texts_of_the_same_words_alike():
    vectors = ScriptedEmbedder(model="/nowhere").embed(["school is out", "Out is school", "rain"])
    likeness = vectors @ vectors.T
    assert np.diag(likeness) == pytest.approx([1] * 3, abs=1e-5)
    assert likeness[0, 1] == pytest.approx(1, abs=1e-5)
    assert likeness[0, 2] < 0.1


def test_the_scripted_sentiment_hears_two_words_of_english():
    engine = ScriptedSentiment()
    assert engine.score(["good", "bad bad", "so so"], "en") == [5, -5, 0]
    assert engine.score(["good"], "sw") == [None]


def test_an_engine_of_texts_can_fail_too():
    with pytest.raises(EngineError, match="failure 1 of 1"):
        ScriptedSentiment(fail_times=1).score(["good"], "en")
