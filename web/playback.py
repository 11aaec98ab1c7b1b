"""What a browser plays: the stored file where it can, else a WAV made while it is read.

A recording in one file per party becomes one stereo WAV, caller left and everybody else right, each
file at its offset. Nothing of it is stored: the bytes of any part are computed from the samples
of that part, so that players can seek.
"""

import wave
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from callcore import audio, audio_reading
from callcore.calls import Media, Recording
from web.ranges import Content, FileContent

_MEDIA_TYPES = {
    ".wav": "audio/wav",
    ".mp3": "audio/mpeg",
    ".ogg": "audio/ogg",
    ".opus": "audio/ogg",
    ".flac": "audio/flac",
    ".m4a": "audio/mp4",
}
_HEADER_BYTES = 44
_LOWEST_RATE_HZ = 8000


def media_type(path: str | Path) -> str:
    """Return the type under which a stored file is served: audio or nothing to show."""
    return _MEDIA_TYPES.get(Path(path).suffix.lower(), "application/octet-stream")


def playable(recording: Recording) -> Content:
    """Return what the page's player plays. Opens files: call it off the event loop.

    Raises:
        OSError: If a stored file is not there.
        InvalidRecording: If it cannot be decoded.
    """
    if len(recording.media) == 1 and _plays_as_it_is(Path(recording.media[0].path)):
        path = Path(recording.media[0].path)
        return FileContent(path, media_type(path))
    return Mix(recording.media)


def _plays_as_it_is(path: Path) -> bool:
    if media_type(path) == "application/octet-stream":
        return False
    # A .wav may also hold GSM, which no browser knows.
    return path.suffix.lower() != ".wav" or _Track.pcm_frames(path) is not None


class Mix:
    """A stereo or mono WAV of 16-bit samples, computed from one or more files.

    Args:
        media: Files of one recording.
    """

    media_type = "audio/wav"

    def __init__(self, media: tuple[Media, ...]) -> None:
        self.rate = max([_LOWEST_RATE_HZ, *(each.rate or 0 for each in media)])
        self._tracks = [_Track.of(each, self.rate) for each in media]
        self._num_frames = max((track.end for track in self._tracks), default=0)
        self.size_bytes = _HEADER_BYTES + self._num_frames * 4

    def read(self, start: int, end: int) -> Iterator[bytes]:
        """Yield the bytes from ``start`` to before ``end``."""
        if start < _HEADER_BYTES:
            header = audio.wav_header(self.rate, 2, self._num_frames * 4)
            yield header[start:end]
            start = _HEADER_BYTES
        if start >= end:
            return
        first, skipped = divmod(start - _HEADER_BYTES, 4)
        left = end - start
        for block in self._frames(first, -(-(end - _HEADER_BYTES) // 4)):
            piece = block.tobytes()[skipped : skipped + left]
            skipped = 0
            left -= len(piece)
            yield piece

    def _frames(self, first: int, last: int) -> Iterator[np.ndarray]:
        """Yield int16 of shape (n, 2), together the frames ``first`` to before ``last``."""
        readers = [track.read(first, last, self.rate) for track in self._tracks]
        for at in range(first, last, self.rate):
            size = min(self.rate, last - at)
            mixed = np.zeros((size, 2), dtype=np.int32)
            for reader in readers:
                mixed += next(reader)
            yield np.clip(mixed, -32768, 32767).astype("<i2")


@dataclass(frozen=True, slots=True)
class _Track:
    """One file in the mix."""

    path: Path
    role: str
    begin: int
    """Frame of the mix where the file begins."""
    num_frames: int
    rate: int
    is_pcm: bool
    """Plain 16-bit WAV at the mix's rate: any frame can be read without the ones before."""

    @classmethod
    def of(cls, media: Media, rate: int) -> "_Track":
        path = Path(media.path)
        begin = max(0, round(media.offset_s * rate))
        pcm = cls.pcm_frames(path)
        if pcm and pcm[1] == rate:
            return cls(path, media.role, begin, pcm[0], rate, True)
        seconds = media.duration_s or audio_reading.probe(path).duration_s
        return cls(path, media.role, begin, round(seconds * rate), rate, False)

    @staticmethod
    def pcm_frames(path: Path) -> tuple[int, int] | None:
        """Return (frames, Hz) of a 16-bit PCM WAV, None for everything else."""
        try:
            with wave.open(str(path), "rb") as file:
                if file.getsampwidth() != 2:
                    return None
                return file.getnframes(), file.getframerate()
        except (wave.Error, EOFError):
            return None

    @property
    def end(self) -> int:
        return self.begin + self.num_frames

    def read(self, first: int, last: int, size: int) -> Iterator[np.ndarray]:
        """Yield int16 of shape (size, 2) from mix frame ``first`` on; the last may be shorter."""
        source = _Samples(self._blocks(max(0, first - self.begin)))
        for at in range(first, last, size):
            wanted = min(size, last - at)
            silent = min(wanted, max(0, self.begin - at))
            there = max(0, min(wanted - silent, self.end - max(at, self.begin)))
            block = np.zeros((wanted, 2), dtype=np.int16)
            samples = source.take(there)
            block[silent : silent + len(samples)] = self._panned(samples)
            yield block

    def _panned(self, samples: np.ndarray) -> np.ndarray:
        if samples.shape[1] >= 2:
            return samples[:, :2]
        both = np.repeat(samples, 2, axis=1)
        if self.role.startswith("caller"):
            both[:, 1] = 0
        elif self.role.startswith("agent"):
            both[:, 0] = 0
        return both

    def _blocks(self, first: int) -> Iterator[np.ndarray]:
        """Yield int16 of shape (n, channels) from the file's frame ``first`` on."""
        if self.is_pcm:
            with wave.open(str(self.path), "rb") as file:
                channels = file.getnchannels()
                file.setpos(min(first, file.getnframes()))
                while data := file.readframes(self.rate):
                    yield np.frombuffer(data, dtype="<i2").reshape(-1, channels)
            return
        # No index in the file: what is before ``first`` is decoded and dropped.
        for block in audio_reading.decode(self.path, self.rate):
            if first >= len(block):
                first -= len(block)
                continue
            yield (block[first:].clip(-1, 1) * 32767).astype(np.int16)
            first = 0


class _Samples:
    """Gives out blocks of any size in pieces of the size that is wanted."""

    def __init__(self, blocks: Iterator[np.ndarray]) -> None:
        self._blocks = blocks
        self._rest = np.zeros((0, 1), dtype=np.int16)

    def take(self, size: int) -> np.ndarray:
        """Return up to ``size`` frames; fewer where the file ends early."""
        while len(self._rest) < size and (block := next(self._blocks, None)) is not None:
            self._rest = block if not len(self._rest) else np.concatenate([self._rest, block])
        taken, self._rest = self._rest[:size], self._rest[size:]
        return taken
