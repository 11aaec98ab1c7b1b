import threading
from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from callcore.engines import LIVE_RATE, DecodeJob
from callcore.engines.features import (
    FeatureCache,
    complete,
    in_window,
    mel_filters,
    raw_frames,
)

SOUND = np.random.default_rng(7).normal(0, 900, 4 * LIVE_RATE).astype(np.int16)

#: One job after the other on one stream: where it begins, how long it is, whether it is a final.
JOBS = st.lists(
    st.tuples(st.sampled_from([0, 777, 8000]), st.integers(0, 20000), st.booleans()),
    min_size=1,
    max_size=6,
)


def job(start, length, *, words=False, stream=1):
    samples = SOUND[start : start + length]
    return DecodeJob(samples, "en", words, length / LIVE_RATE, stream=stream, start=start)


def log_mel(samples, num_frames, num_mels=80):
    return in_window(raw_frames(samples, num_mels), num_frames)


def by_definition(samples, num_frames):
    """Whisper's features the plain way: each frame by itself, in double precision."""
    audio = np.zeros(num_frames * 80 + 200)
    audio[100 : 100 + len(samples)] = samples / 32768
    audio[:100] = audio[200:100:-1]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(200) / 200)
    mel = np.empty((80, num_frames))
    for i in range(num_frames):
        power = 4 * np.abs(np.fft.rfft(audio[i * 80 : i * 80 + 200] * hann)) ** 2
        mel[:, i] = np.log10(np.maximum(mel_filters(80) @ power, 1e-10))
    return (np.maximum(mel, mel.max() - 8) + 4) / 4


def test_features_are_those_of_the_definition():
    for length in (0, 1, 99, 100, 161, 2560, 7777):
        samples = SOUND[:length]
        np.testing.assert_allclose(log_mel(samples, 120), by_definition(samples, 120), atol=1e-4)


def test_features_of_silence_and_of_nothing_are_finite():
    for samples in (np.zeros(0, np.int16), np.zeros(8000, np.int16)):
        features = log_mel(samples, 200)
        assert features.shape == (80, 200)
        assert np.isfinite(features).all()


def test_samples_beyond_the_window_are_left_out():
    assert log_mel(SOUND, 100).shape == (80, 100)


def test_a_model_may_want_more_rows():
    assert log_mel(SOUND, 100, num_mels=128).shape == (128, 100)


@settings(deadline=None, max_examples=60)
@given(JOBS)
def test_kept_features_are_those_of_a_fresh_computation_to_the_last_bit(jobs):
    cache = FeatureCache(80)
    for start, length, words in jobs:
        asked = job(start, length, words=words)
        assert np.array_equal(cache.frames(asked), raw_frames(asked.samples))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 20000), st.integers(0, 20000))
def test_only_frames_that_later_samples_cannot_change_are_kept(length, more):
    before = complete(raw_frames(SOUND[:length]), length)
    after = raw_frames(SOUND[: length + more])
    assert np.array_equal(before, after[: len(before)])


def test_what_was_kept_is_not_computed_again(monkeypatch):
    from callcore.engines import features

    transformed = []

    def rfft(frames, axis):
        transformed.append(len(frames))
        return numpy_rfft(frames, axis=axis)

    numpy_rfft = np.fft.rfft
    monkeypatch.setattr(features.np.fft, "rfft", rfft)
    cache = FeatureCache(80)
    lengths = [8000, 14400, 20800, 24000]
    for length in lengths:
        cache.frames(job(0, length))
    for fresh, (before, after) in zip(transformed[1:], pairwise(lengths), strict=True):
        # A block at each end more than the new samples.
        assert fresh * 80 <= after - before + 2 * 2560


def test_the_features_of_a_window_do_not_change_what_is_kept():
    cache = FeatureCache(80)
    first = cache.frames(job(0, 8000))
    before = first.copy()
    in_window(first, 300)
    assert np.array_equal(first, before)


def test_what_looked_like_a_final_may_go_on():
    cache = FeatureCache(80)
    cache.frames(job(0, 16000, words=True))
    assert cache._kept[1].start == 0
    cache.frames(job(8000, 4000))
    assert [kept.start for kept in cache._kept.values()] == [8000]


def test_nothing_is_kept_without_a_key():
    cache = FeatureCache(80)
    cache.frames(job(0, 8000, stream=0))
    assert cache.num_bytes == 0


def test_the_memory_has_a_limit_and_the_oldest_stream_goes_first():
    one = complete(raw_frames(SOUND[:16000]), 16000).nbytes
    cache = FeatureCache(80, max_bytes=3 * one)
    for stream in (1, 2, 3, 1, 4):
        cache.frames(job(0, 16000, stream=stream))
        assert cache.num_bytes <= 3 * one
    assert list(cache._kept) == [3, 1, 4]


def test_streams_that_are_over_are_forgotten():
    now = 0.0
    cache = FeatureCache(80, clock=lambda: now)
    for stream in (1, 2, 1):
        cache.frames(job(0, 16000, stream=stream))
        now += 40.0
    assert list(cache._kept) == [2, 1]
    cache.frames(job(0, 8000, stream=3))
    assert list(cache._kept) == [1, 3]
    now += 61.0
    cache.frames(job(0, 8000, stream=4))
    assert list(cache._kept) == [4]
    assert cache.num_bytes == cache._kept[4].raw.nbytes
    small = FeatureCache(80, max_bytes=1)
    small.frames(job(0, 8000))
    assert small.num_bytes == 0


def test_threads_may_share_it():
    cache = FeatureCache(80, max_bytes=200_000)
    wrong = []

    def work(seed):
        random = np.random.default_rng(seed)
        for _ in range(40):
            stream, length = int(random.integers(1, 4)), int(random.integers(0, 16000))
            asked = job(0, length, stream=stream, words=bool(random.integers(2)))
            if not np.array_equal(cache.frames(asked), raw_frames(asked.samples)):
                wrong.append(asked)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert cache.num_bytes == sum(each.raw.nbytes for each in cache._kept.values())
