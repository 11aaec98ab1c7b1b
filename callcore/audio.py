"""Samples and sound files: conversion, resampling, decoding in blocks, WAV and its repair.

Files are read with the FFmpeg libraries of PyAV. They get an open file and may open nothing else:
a playlist that names a file or an address is refused (``_FORMATS``, ``_options``). Recordings that
came from outside are read through ``audio_reading``, which does this in a limited process.
"""

import logging
import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import av
import av.error
import numpy as np

from callcore.errors import AudioError, InvalidRecording
from callcore.raw_audio import RawFormat, raw_format

logger = logging.getLogger(__name__)

#: Containers that recordings come in, as FFmpeg names its demuxers. No playlists: hls, concat and
#: dash open whatever address a file names.
_FORMATS = "wav,w64,aiff,au,caf,mp3,ogg,flac,mov,matroska,aac,amr,amrnb,amrwb,gsm"

#: Codings that recordings come in, as FFmpeg names its decoders; a film's pictures are not touched.
_CODECS = ",".join(
    (
        *sorted(name for name in av.codecs_available if name.startswith("pcm_")),
        *("gsm", "gsm_ms", "g722", "g723_1", "g729", "g726", "adpcm_ima_wav", "adpcm_ms"),
        *("mp3", "mp3float", "mp2", "mp2float", "flac", "vorbis", "opus", "libopus", "speex"),
        *("aac", "aac_latm", "alac", "amrnb", "amrwb", "adpcm_ima_qt", "truespeech"),
    )
)

#: Longest recording that is read, in seconds: longer than any shift, and a call is shorter.
MAX_S = 12 * 3600.0
#: What is longer than this must have so many bytes a second: the thriftiest coding of speech (AMR
#: at 4.75 kbit/s) has 600, Opus at its lowest more; packed silence has 30 to 200.
_ANY_SIZE_S, _LEAST_BYTES_PER_S = 4 * 3600.0, 300
#: Most channels that are read: a block of a hundred would fill the memory.
MAX_CHANNELS = 8
#: Rates of recordings: a file of 1 Hz would become 16,000 times as large.
RATES_HZ = (4_000, 384_000)

#: A WAV file with more chunks than this is made to keep readers busy; recorders write a handful.
_MAX_CHUNKS = 1_000

#: Bytes of the header that ``WavWriter`` writes: RIFF, fmt and the start of data.
WAV_HEADER_BYTES = 44


def to_float(samples: np.ndarray) -> np.ndarray:
    """Return int16 samples as float32 in [-1, 1), same shape."""
    return samples.astype(np.float32) / np.float32(32768)


def to_int16(samples: np.ndarray) -> np.ndarray:
    """Return samples in [-1, 1] as int16, same shape; what ``to_float`` made comes back exactly."""
    whole: np.ndarray = np.clip(np.rint(samples * 32768), -32768, 32767).astype("<i2")
    return whole


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
    """Short name of the container such as ``wav`` or ``mp3``; of a file without one its extension
    such as ``sln``."""
    rate: int
    """Hz."""
    num_channels: int
    duration_s: float
    complete: bool
    """Whether the header agrees with the file's size; other containers than WAV always do."""


def longest_s(num_bytes: int) -> float:
    """Return how many seconds a file of that size may last to be read."""
    return min(MAX_S, max(_ANY_SIZE_S, num_bytes / _LEAST_BYTES_PER_S))


def too_long(num_bytes: int) -> InvalidRecording:
    """Return the error for a file that lasts longer than ``longest_s``."""
    limit_s = longest_s(num_bytes)
    if limit_s == MAX_S:
        return InvalidRecording(
            f"the recording lasts more than {MAX_S / 3600:g} hours, the most that is read: split it"
        )
    return InvalidRecording(
        f"the file of {num_bytes / 1e6:.2g} MB plays for more than {limit_s / 3600:.1f} hours:"
        " it holds nothing but silence, or its header is wrong"
    )


def probe(path: Path | str, extension: str | None = None) -> AudioInfo:
    """Return what the file is, without decoding it where its header tells.

    Args:
        path: A sound file.
        extension: What its name claims, which counts only for files without a header; None: that
            of ``path``.

    Raises:
        InvalidRecording: If it is empty, too long or nothing we can read as audio.
        OSError: If it cannot be opened.
    """
    with open(path, "rb") as file:
        return probe_file(file, extension_of(path) if extension is None else extension)


def probe_file(file: BinaryIO, extension: str) -> AudioInfo:
    """Return what an open, seekable file is; see ``probe``."""
    with _opened(file, extension) as sound:
        name = extension if sound.raw else sound.container.format.name.split(",")[0]
        rate, num_channels = int(sound.stream.rate), int(sound.stream.channels)
        duration_s = _duration(sound)
    if duration_s > longest_s(sound.num_bytes):
        raise too_long(sound.num_bytes)
    layout = _wav_layout(file) if name == "wav" else None
    return AudioInfo(name, rate, num_channels, duration_s, layout is None or layout.right)


def extension_of(path: Path | str) -> str:
    """Return the extension of a name, lower case, without the dot."""
    return Path(path).suffix[1:].lower()


def decode(
    path: Path | str, rate: int, block_s: float = 30.0, extension: str | None = None
) -> Iterator[np.ndarray]:
    """Yield the file's audio in blocks.

    A broken spot is left out with a warning; the rest follows.

    Args:
        path: A sound file.
        rate: Rate in Hz that the samples shall have.
        block_s: Length of a block in seconds; the last one is shorter.
        extension: As for ``probe``.

    Yields:
        Shape (n, num_channels), float32 in [-1, 1].

    Raises:
        InvalidRecording: If nothing in it can be decoded, or it turns out too long.
        OSError: If it cannot be opened.
    """
    with open(path, "rb") as file:
        parts = Parts(file, extension_of(path) if extension is None else extension, rate)
        yield from in_blocks(parts, max(1, round(block_s * rate)))
        warn_of(parts.num_broken)


def in_blocks(parts: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Yield arrays joined and cut so that each has ``size`` rows; the last may have fewer."""
    held: list[np.ndarray] = []
    num_held = 0
    for part in parts:
        held.append(part)
        num_held += len(part)
        if num_held >= size:
            joined = np.concatenate(held)
            whole = num_held - num_held % size
            for at in range(0, whole, size):
                yield joined[at : at + size]
            held, num_held = [joined[whole:]], num_held - whole
    if num_held:
        yield np.concatenate(held)


def warn_of(num_broken: int) -> None:
    """Say in the log that so many packets of a file could not be decoded, if any."""
    if num_broken:
        logger.warning("recording is damaged", extra={"broken_packets": num_broken})


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


@dataclass(frozen=True, slots=True)
class _Sound:
    """An open sound file and its first audio stream."""

    container: Any
    stream: Any
    raw: RawFormat | None
    num_bytes: int


@contextmanager
def _opened(file: BinaryIO, extension: str) -> Iterator[_Sound]:
    num_bytes = file.seek(0, os.SEEK_END)
    if not num_bytes:
        raise InvalidRecording("the file is empty")
    raw = raw_format(file, extension)
    file.seek(0)
    demuxer = raw.demuxer if raw else None
    try:
        container = av.open(_Nameless(file), format=demuxer, options=_options(raw))
    except MemoryError:
        raise
    except (av.error.FFmpegError, ValueError) as error:
        raise InvalidRecording("the file is no audio in a format we can read") from error
    with container:
        if not container.streams.audio:
            raise InvalidRecording("the file holds no audio")
        stream = container.streams.audio[0]
        _check(stream)
        yield _Sound(container, stream, raw, num_bytes)


class _Nameless:
    """An open file without its name: FFmpeg would go by the extension; the content shall count."""

    def __init__(self, file: BinaryIO) -> None:
        self.read = file.read
        self.seek = file.seek
        self.tell = file.tell


def _options(raw: RawFormat | None) -> dict[str, str]:
    options = {
        "format_whitelist": raw.demuxer if raw else _FORMATS,
        "codec_whitelist": _CODECS,
        # Not one: what is read comes from the open file.
        "protocol_whitelist": "none",
    }
    if raw is not None and raw.demuxer not in ("gsm", "g722"):  # these know their only rate
        options["sample_rate"] = str(raw.rate)
    return options


def _check(stream: Any) -> None:
    """Refuse what no recording of a call is, before anything is made of its size."""
    rate, num_channels = int(stream.rate or 0), int(stream.channels or 0)
    if stream.codec_context.name not in _CODECS.split(","):
        raise InvalidRecording("the file holds audio in a coding we cannot read")
    if not rate or not num_channels:
        raise InvalidRecording("the file has an audio stream without rate or channels")
    if num_channels > MAX_CHANNELS:
        raise InvalidRecording(f"the file has {num_channels} channels; {MAX_CHANNELS} can be read")
    if not _is_sane(rate):
        low, high = (each / 1000 for each in RATES_HZ)
        raise InvalidRecording(f"the file's rate is {rate} Hz; {low:g} to {high:g} kHz can be read")


def _is_sane(rate: int) -> bool:
    return RATES_HZ[0] <= rate <= RATES_HZ[1]


def _duration(sound: _Sound) -> float:
    if sound.raw is not None:
        return sound.raw.duration_s(sound.num_bytes)
    stream, container = sound.stream, sound.container
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    if container.duration is not None:
        return float(container.duration / av.time_base)
    packets = (packet.duration or 0 for packet in container.demux(stream))
    try:
        return float(sum(packets) * stream.time_base)
    except MemoryError:
        raise
    except av.error.FFmpegError as error:
        raise InvalidRecording("the file is damaged from its start") from error


class Parts:
    """The decoded pieces of an open, seekable file, in the sizes that its packets have.

    Iterating yields at least one array of shape (n, num_channels), float32, or raises
    InvalidRecording; the number of channels never changes.

    Args:
        file: The file.
        extension: What its name claims.
        rate: Hz that the samples shall have.
    """

    def __init__(self, file: BinaryIO, extension: str, rate: int) -> None:
        self.num_broken = 0
        """Packets that could not be decoded, so far."""
        self._file = file
        self._extension = extension
        self._rate = rate

    def __iter__(self) -> Iterator[np.ndarray]:
        """Decode."""
        num_samples = 0
        with _opened(self._file, self._extension) as sound:
            limit = longest_s(sound.num_bytes) * self._rate
            for part in self._resampled(sound):
                num_samples += len(part)
                if num_samples > limit:
                    raise too_long(sound.num_bytes)
                if len(part):
                    yield part
        if not num_samples:
            raise InvalidRecording("the file holds no sound that can be decoded")

    def _resampled(self, sound: _Sound) -> Iterator[np.ndarray]:
        is_float = sound.stream.codec_context.name.startswith("pcm_f")
        for part in self._converted(sound):
            samples = part.to_ndarray().T
            # A float file may hold anything, and what is no number spoils all that is counted.
            yield np.nan_to_num(samples).clip(-1, 1) if is_float else samples

    def _converted(self, sound: _Sound) -> Iterator[Any]:
        layout = kind = resampler = None
        for frame in self._frames(sound):
            if (frame.format.name, frame.layout.name, frame.sample_rate) != kind:
                # Chained Ogg and some MP3 change in the middle; channels are mixed to the first's.
                if resampler is not None:
                    yield from resampler.resample(None)
                layout = layout or frame.layout
                kind = (frame.format.name, frame.layout.name, frame.sample_rate)
                resampler = av.AudioResampler(format="fltp", layout=layout, rate=self._rate)
            frame.pts = None  # time stamps of broken files go backwards; samples do not
            assert resampler is not None
            yield from resampler.resample(frame)
        if resampler is not None:
            yield from resampler.resample(None)

    def _frames(self, sound: _Sound) -> Iterator[Any]:
        for packet in self._packets(sound):
            try:
                frames = packet.decode()
            except MemoryError:
                raise
            except av.error.FFmpegError:
                self.num_broken += 1
                continue
            for frame in frames:
                # Frames have their own headers in some formats: those may lie as well.
                if frame.layout.nb_channels <= MAX_CHANNELS and _is_sane(frame.sample_rate):
                    yield frame
                else:
                    self.num_broken += 1

    def _packets(self, sound: _Sound) -> Iterator[Any]:
        packets = sound.container.demux(sound.stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except MemoryError:
                raise
            except av.error.FFmpegError:  # the container ends in the middle
                self.num_broken += 1
                return
            yield packet


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
        file.write(_size(layout.data_at + held - 8))
        file.seek(layout.data_at - 4)
        file.write(_size(held))
        file.flush()
        os.fsync(file.fileno())


def _size(num_bytes: int) -> bytes:
    # Of a file over 4 GB the sizes are cut: FFmpeg takes the largest for "to the end".
    return struct.pack("<I", min(num_bytes, 0xFFFFFFFF))


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
    file_bytes = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(12)
    if len(head) < 12 or head[:4] != b"RIFF" or head[8:] != b"WAVE":
        return None
    block_bytes = 0
    for _ in range(_MAX_CHUNKS):
        chunk = file.read(8)
        if len(chunk) < 8:
            return None
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
    for _ in range(_MAX_CHUNKS):
        if at >= file_bytes:
            break
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
