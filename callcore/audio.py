"""Samples and sound files: conversion, resampling, decoding in blocks, WAV and its repair.

Files are read with the FFmpeg libraries of PyAV. They open a file only, never an address: a
playlist that names one is refused (``_FORMATS``).
"""

import logging
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import av
import av.error
import numpy as np

from callcore.errors import AudioError, InvalidRecording

logger = logging.getLogger(__name__)

#: Containers that recordings come in, as FFmpeg names its demuxers. No playlists: hls, concat and
#: dash open whatever address a file names.
_FORMATS = "wav,w64,aiff,au,caf,mp3,ogg,flac,mov,matroska,aac,amr,amrnb,amrwb,gsm"

#: Bytes of the header that ``WavWriter`` writes: RIFF, fmt and the start of data.
WAV_HEADER_BYTES = 44


def to_float(samples: np.ndarray) -> np.ndarray:
    """Return int16 samples as float32 in [-1, 1), same shape."""
    return samples.astype(np.float32) / np.float32(32768)


class StreamingResampler:
    """Changes the sampling rate of one stream, piece by piece.

    A few milliseconds stay inside until the next piece or ``flush``.

    Args:
        from_hz: Rate of what is pushed.
        to_hz: Rate of what comes back.
    """

    def __init__(self, from_hz: int, to_hz: int) -> None:
        self.from_hz = from_hz
        self.to_hz = to_hz
        self._resampler = av.AudioResampler(format="s16", layout="mono", rate=to_hz)

    def push(self, samples: np.ndarray) -> np.ndarray:
        """Return what can be told of the resampled stream so far.

        Args:
            samples: Shape (n,), int16.

        Returns:
            Shape (m,), int16; in the long run m = n * to_hz / from_hz.
        """
        if self.from_hz == self.to_hz or not len(samples):
            return samples
        frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="s16", layout="mono")
        frame.sample_rate = self.from_hz
        return _joined(self._resampler.resample(frame))

    def flush(self) -> np.ndarray:
        """Return the rest; nothing may be pushed afterwards."""
        return _joined(self._resampler.resample(None)) if self.from_hz != self.to_hz else _EMPTY


_EMPTY = np.empty(0, np.int16)


def _joined(frames: list[Any]) -> np.ndarray:
    parts = [frame.to_ndarray()[0] for frame in frames]
    return np.concatenate(parts) if parts else _EMPTY


@dataclass(frozen=True, slots=True)
class AudioInfo:
    """What a sound file is."""

    format: str
    """Short name of the container such as ``wav`` or ``mp3``."""
    rate: int
    """Hz."""
    num_channels: int
    duration_s: float
    complete: bool
    """Whether the header agrees with the file's size; other containers than WAV always do."""


def probe(path: Path | str) -> AudioInfo:
    """Return what the file is, without decoding it where its header tells.

    Raises:
        InvalidRecording: If it is empty or nothing we can read as audio.
        OSError: If it cannot be opened.
    """
    with _opened(path) as (container, stream):
        rate, num_channels = int(stream.rate or 0), int(stream.channels or 0)
        if not rate or not num_channels:
            raise InvalidRecording("the file has an audio stream without rate or channels")
        duration_s = _duration(container, stream)
        name = container.format.name.split(",")[0]
    complete = not (name == "wav" and wav_needs_repair(path))
    return AudioInfo(name, rate, num_channels, duration_s, complete)


def decode(path: Path | str, rate: int, block_s: float = 30.0) -> Iterator[np.ndarray]:
    """Yield the file's audio in blocks.

    A broken spot is left out with a warning; the rest follows.

    Args:
        path: A sound file.
        rate: Rate in Hz that the samples shall have.
        block_s: Length of a block in seconds; the last one is shorter.

    Yields:
        Shape (n, num_channels), float32 in [-1, 1].

    Raises:
        InvalidRecording: If nothing in it can be decoded.
        OSError: If it cannot be opened.
    """
    block = max(1, round(block_s * rate))
    held: list[np.ndarray] = []
    num_held = 0
    for part in _decoded(path, rate):
        held.append(part)
        num_held += len(part)
        if num_held >= block:
            joined = np.concatenate(held)
            whole = num_held - num_held % block
            for at in range(0, whole, block):
                yield joined[at : at + block]
            held, num_held = [joined[whole:]], num_held - whole
    if num_held:
        yield np.concatenate(held)


def read_channels(path: Path | str, rate: int, max_s: float) -> np.ndarray:
    """Return the whole file, one row a channel.

    Args:
        path: A sound file.
        rate: Rate in Hz that the samples shall have.
        max_s: Longest audio that may be held in memory, in seconds.

    Returns:
        Shape (num_channels, n), float32 in [-1, 1].

    Raises:
        InvalidRecording: If it is longer than ``max_s`` or cannot be decoded.
        OSError: If it cannot be opened.
    """
    blocks, num_samples = [], 0
    for block in decode(path, rate):
        num_samples += len(block)
        # A compressed hour of silence is small on disk: what counts is what is unpacked.
        if num_samples > max_s * rate:
            raise InvalidRecording(f"the recording is longer than {max_s:g} s")
        blocks.append(block)
    return np.ascontiguousarray(np.concatenate(blocks).T)


@contextmanager
def _opened(path: Path | str) -> Iterator[tuple[Any, Any]]:
    """Yield the container and its first audio stream."""
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            raise InvalidRecording("the file is empty")
        try:
            container = av.open(file, options={"format_whitelist": _FORMATS})
        except (av.error.FFmpegError, ValueError) as error:
            raise InvalidRecording("the file is no audio in a format we can read") from error
        with container:
            if not container.streams.audio:
                raise InvalidRecording("the file holds no audio")
            yield container, container.streams.audio[0]


def _duration(container: Any, stream: Any) -> float:
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    if container.duration is not None:
        return float(container.duration / av.time_base)
    packets = (packet.duration or 0 for packet in container.demux(stream))
    try:
        return float(sum(packets) * stream.time_base)
    except av.error.FFmpegError as error:
        raise InvalidRecording("the file is damaged from its start") from error


def _decoded(path: Path | str, rate: int) -> Iterator[np.ndarray]:
    """Yield decoded pieces, shape (n, num_channels), float32; at least one."""
    resampler = av.AudioResampler(format="fltp", rate=rate)
    num_samples = num_broken = 0
    with _opened(path) as (container, stream):
        for frames in _frames(container, stream):
            if frames is None:
                num_broken += 1
                continue
            for frame in frames:
                frame.pts = None  # time stamps of broken files go backwards; samples do not
                for part in resampler.resample(frame):
                    num_samples += part.samples
                    yield part.to_ndarray().T
        if num_samples:
            for part in resampler.resample(None):
                yield part.to_ndarray().T
    if not num_samples:
        raise InvalidRecording("the file holds no sound that can be decoded")
    if num_broken:
        logger.warning("recording is damaged", extra={"broken_packets": num_broken})


def _frames(container: Any, stream: Any) -> Iterator[list[Any] | None]:
    """Yield the frames of each packet; None for one that cannot be decoded."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except av.error.FFmpegError:  # the container ends in the middle
            yield None
            return
        try:
            yield packet.decode()
        except av.error.FFmpegError:
            yield None


def wav_needs_repair(path: Path | str) -> bool:
    """Return whether a WAV header does not tell what the file holds.

    That is what a killed writer leaves: sizes of zero, or of an earlier moment, or of a file that
    was to become longer. False for a file that is no WAV.

    Raises:
        OSError: If it cannot be read.
    """
    with open(path, "rb") as file:
        layout = _wav_layout(file)
    return layout is not None and not layout.right


def repair_wav(path: Path | str) -> None:
    """Rewrite the sizes in a WAV header from the file's size, in place, and sync the file.

    A file whose header is right stays untouched. Half a sample at the end is cut off.

    Raises:
        InvalidRecording: If the file is no WAV, or was cut off within its header.
        OSError: If it cannot be written.
    """
    with open(path, "r+b") as file:
        layout = _wav_layout(file)
        if layout is None:
            raise InvalidRecording("the file is no WAV file with a whole header")
        if layout.right:
            return
        held = layout.file_bytes - layout.data_at
        held -= held % layout.block_bytes
        file.truncate(layout.data_at + held)
        file.seek(4)
        file.write(struct.pack("<I", layout.data_at + held - 8))
        file.seek(layout.data_at - 4)
        file.write(struct.pack("<I", held))
        file.flush()
        os.fsync(file.fileno())


@dataclass(frozen=True, slots=True)
class _WavLayout:
    data_at: int
    """Offset of the first sample."""
    block_bytes: int
    """Bytes of one sample of all channels."""
    file_bytes: int
    right: bool
    """Whether sizes and file agree."""


def _wav_layout(file: BinaryIO) -> _WavLayout | None:
    file_bytes = os.fstat(file.fileno()).st_size
    head = file.read(12)
    if len(head) < 12 or head[:4] != b"RIFF" or head[8:] != b"WAVE":
        return None
    block_bytes = 0
    while len(chunk := file.read(8)) == 8:
        size = int.from_bytes(chunk[4:], "little")
        if chunk[:4] == b"data":
            if not block_bytes:
                return None
            at = file.tell()
            right = _chunks_end(file, at + size + (size & 1), file_bytes, at + size)
            return _WavLayout(at, block_bytes, file_bytes, right)
        body = file.read(min(size, 64))
        if chunk[:4] == b"fmt " and len(body) >= 14:
            block_bytes = max(1, int.from_bytes(body[12:14], "little"))
        file.seek(size - len(body) + (size & 1), os.SEEK_CUR)
    return None


def _chunks_end(file: BinaryIO, at: int, file_bytes: int, unpadded: int) -> bool:
    """Return whether whole chunks from ``at`` on lead exactly to the end of the file."""
    if unpadded == file_bytes:
        return True
    while at < file_bytes:
        file.seek(at)
        chunk = file.read(8)
        if len(chunk) < 8 or not chunk[:4].isascii() or b"\0" in chunk[:4]:
            return False
        size = int.from_bytes(chunk[4:], "little")
        at += 8 + size
        if at == file_bytes:
            return True
        at += size & 1
    return at == file_bytes


def wav_header(rate: int, num_channels: int, data_bytes: int) -> bytes:
    """Return the 44 bytes before ``data_bytes`` of int16 samples.

    Source: Microsoft Multimedia Programming Interface 1.0, "RIFF WAVE"; a 32-bit size, so the
    sizes of a file over 4 GB (37 hours of 16 kHz) are cut, and ``repair_wav`` cannot help it.
    """
    block = 2 * num_channels
    size = min(data_bytes, 0xFFFFFFFF - 36)
    fields = (b"RIFF", 36 + size, b"WAVE", b"fmt ", 16, 1, num_channels, rate, rate * block, block)
    return struct.pack("<4sI4s4sIHHIIHH4sI", *fields, 16, b"data", size)


class WavWriter:
    """Writes an int16 WAV file; the sizes in its header are right after ``close``.

    Args:
        path: File to create; an existing one is replaced.
        rate: Hz.
        num_channels: 1 or 2; two channels are interleaved, left first.
    """

    def __init__(self, path: Path | str, rate: int, num_channels: int = 1) -> None:
        self._file = open(path, "wb")  # noqa: SIM115 - closed by close()
        self._format = (rate, num_channels)
        self._num_bytes = 0
        self._file.write(wav_header(rate, num_channels, 0))

    def __enter__(self) -> "WavWriter":
        """Return the writer."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Close the file."""
        self.close()

    def write(self, samples: bytes) -> None:
        """Add samples: int16, little-endian.

        Raises:
            AudioError: If the file is closed.
        """
        if self._file.closed:
            raise AudioError("the WAV file is closed")
        self._file.write(samples)
        self._num_bytes += len(samples)

    def flush(self) -> None:
        """Hand everything to the operating system."""
        self._file.flush()

    def close(self) -> None:
        """Write the sizes and close; again does nothing."""
        if self._file.closed:
            return
        self._file.seek(0)
        self._file.write(wav_header(*self._format, self._num_bytes))
        self._file.close()
