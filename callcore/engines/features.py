"""Whisper's log-mel features of telephone audio, computed once for each stretch of sound.

The log-mel is computed at 8 kHz: a 200-sample frame there has the same 40 Hz bins as Whisper's
400-sample frame at 16 kHz, and the bins above 4 kHz hold nothing.

What depends on the window, Whisper's limit to a range of 8 below the loudest, is applied last. So
the frames before it can be kept: partials, speculation and final of one utterance begin at the same
sample, and each computes only the frames that the one before did not see. Frames are computed in
blocks of one size, with the same operations on arrays of the same shape, whatever was kept: cached
features are those of a fresh computation to the last bit.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from callcore.engines import LIVE_RATE, DecodeJob, Floats, Samples

_FRAME = 200
_HOP = 80
_NUM_BINS = _FRAME // 2 + 1

FRAMES_PER_S = LIVE_RATE // _HOP

#: Frames that are computed together.
_BLOCK = 32
_BLOCK_SAMPLES = _BLOCK * _HOP

#: log10 of the least power that Whisper tells from nothing.
_SILENCE = -10.0

#: What is kept of all streams together: 40 utterances of 15 s, or 150 of 4 s.
_MAX_BYTES = 20_000_000
#: Seconds after which a stream that nobody asked for is silent or over.
_UNUSED_S = 60.0

# Hann, periodic. At 16 kHz twice as many samples add up: twice the amplitude, so that the power
# is four times that of 8 kHz.
_WINDOW = (2.0 * np.hanning(_FRAME + 1)[:-1] / 32768.0).astype(np.float32)


@lru_cache(maxsize=2)
def mel_filters(num_mels: int) -> Floats:
    """Return Whisper's filter bank for bins of 40 Hz below 4 kHz.

    Slaney's mel scale over 0 to 8 kHz, triangles of equal area (librosa.filters.mel, which
    openai/whisper ships as ``mel_filters.npz``), first 101 of 201 bins.

    Returns:
        Shape (num_mels, 101), float32.
    """
    linear_hz, breakpoint_mel, log_step = 200.0 / 3, 15.0, np.log(6.4) / 27.0
    top_mel = breakpoint_mel + np.log(8000.0 / 1000.0) / log_step
    mels = np.linspace(0.0, top_mel, num_mels + 2)
    edges = np.where(
        mels < breakpoint_mel, mels * linear_hz, 1000.0 * np.exp(log_step * (mels - breakpoint_mel))
    )
    bins = np.arange(_NUM_BINS) * (LIVE_RATE / _FRAME)
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    triangles = np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre))
    filters = np.maximum(triangles, 0.0) * 2.0 / (high - low)
    return np.ascontiguousarray(filters, np.float32)


def raw_frames(samples: Samples, num_mels: int = 80, known: Floats | None = None) -> Floats:
    """Return log10 of the mel power of every frame that touches the samples.

    Args:
        samples: Shape (n,), int16, 8 kHz; digital silence follows.
        num_mels: Rows that the model wants: 80, or 128 for large-v3.
        known: What this returned for the beginning of the same samples, cut to the blocks that
            are ``complete``.

    Returns:
        Shape (blocks, num_mels, 32), float32: 32 frames of 10 ms a block.
    """
    first = 0 if known is None else len(known)
    num_blocks = -(-(len(samples) + _FRAME // 2) // _BLOCK_SAMPLES)
    # The first frame's middle is the first sample; what would lie before is mirrored.
    begin, end = first * _BLOCK_SAMPLES - _FRAME // 2, num_blocks * _BLOCK_SAMPLES + _FRAME // 2
    audio = np.zeros(end - begin, np.float32)
    kept = samples[max(begin, 0) : end]
    audio[max(-begin, 0) : max(-begin, 0) + len(kept)] = kept
    if begin < 0:
        audio[:-begin] = audio[-2 * begin : -begin : -1]
    frames = np.lib.stride_tricks.sliding_window_view(audio, _FRAME)[::_HOP]
    spectrum = np.fft.rfft(frames[: (num_blocks - first) * _BLOCK] * _WINDOW, axis=1)
    power = np.square(spectrum.real) + np.square(spectrum.imag)
    power = power.reshape(-1, _BLOCK, _NUM_BINS).transpose(0, 2, 1)
    fresh = np.log10(np.maximum(np.matmul(mel_filters(num_mels), power), 10.0**_SILENCE))
    return fresh if known is None else np.concatenate([known, fresh])


def complete(raw: Floats, num_samples: int) -> Floats:
    """Return the leading blocks of which no frame reaches beyond the samples."""
    return raw[: max(0, (num_samples - _FRAME // 2) // _BLOCK_SAMPLES)]


def in_window(raw: Floats, num_frames: int) -> Floats:
    """Return features as the model takes them, silence after the sound.

    Args:
        raw: What ``raw_frames`` returned.
        num_frames: Frames of 10 ms to return.

    Returns:
        Shape (num_mels, num_frames), float32.
    """
    num_mels = raw.shape[1]
    mel = np.full((num_mels, num_frames), _SILENCE, np.float32)
    sounding = min(num_frames, len(raw) * _BLOCK)
    mel[:, :sounding] = raw.transpose(1, 0, 2).reshape(num_mels, -1)[:, :sounding]
    np.maximum(mel, mel.max(initial=_SILENCE) - 8.0, out=mel)
    mel += 4.0
    mel /= 4.0
    return mel


@dataclass(frozen=True, slots=True)
class _Kept:
    start: int
    raw: Floats
    at: float
    """Clock time of the last use."""


class FeatureCache:
    """The frames of the utterances that are open, by stream. Threads may share it."""

    def __init__(
        self,
        num_mels: int,
        max_bytes: int = _MAX_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin with nothing.

        Args:
            num_mels: Rows that the model wants.
            max_bytes: What is kept of all streams together; the stream that was used longest
                ago is dropped first.
            clock: Seconds, monotonic.
        """
        self._clock = clock
        self._num_mels = num_mels
        self._max_bytes = max_bytes
        self._kept: OrderedDict[int, _Kept] = OrderedDict()
        self._lock = threading.Lock()
        self.num_bytes = 0
        """Kept now."""

    def frames(self, job: DecodeJob) -> Floats:
        """Return ``raw_frames`` of the job's samples.

        They are kept until the stream is asked for another utterance: what looked like a final may
        go on, or be tried again.
        """
        with self._lock:
            kept = self._take(job.stream) if job.stream else None
        known = kept.raw if kept is not None and kept.start == job.start else None
        if known is not None:
            # A job may end before the one that came before it.
            known = complete(known, len(job.samples))
        raw = raw_frames(job.samples, self._num_mels, known)
        if job.stream:
            # A copy: the rest of what it is a part of shall not stay in memory.
            ahead = _Kept(job.start, complete(raw, len(job.samples)).copy(), self._clock())
            with self._lock:
                self._put(job.stream, ahead)
        return raw

    def _take(self, stream: int) -> _Kept | None:
        kept = self._kept.pop(stream, None)
        if kept is not None:
            self.num_bytes -= kept.raw.nbytes
        return kept

    def _put(self, stream: int, kept: _Kept) -> None:
        self._take(stream)
        self._kept[stream] = kept
        self.num_bytes += kept.raw.nbytes
        unused_at = kept.at - _UNUSED_S
        while self._kept:
            oldest = next(iter(self._kept))
            if self.num_bytes <= self._max_bytes and self._kept[oldest].at >= unused_at:
                break
            self._take(oldest)
