import os
import struct
import wave
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from callcore.audio import (
    StreamingResampler,
    WavWriter,
    decode,
    probe,
    read_channels,
    repair_wav,
    to_float,
    to_int16,
    wav_header,
    wav_needs_repair,
)
from callcore.errors import AudioError, InvalidRecording


def tone(rate: int, seconds: float, hz: float = 440.0, amplitude: float = 8000.0) -> np.ndarray:
    return (np.sin(np.arange(round(rate * seconds)) * 2 * np.pi * hz / rate) * amplitude).astype(
        np.int16
    )


def write_wav(path: Path, rate: int = 8000, seconds: float = 1.0, num_channels: int = 1) -> Path:
    samples = tone(rate, seconds)
    with WavWriter(path, rate, num_channels) as out:
        out.write(np.repeat(samples, num_channels).tobytes())
    return path


def encode_file(path: Path, codec: str, samples: np.ndarray, rate: int, fmt: str) -> Path:
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="s16", layout="mono")
        frame.sample_rate = rate
        for part in av.AudioResampler(format=fmt, layout="mono", rate=rate).resample(frame):
            for packet in stream.encode(part):
                out.mux(packet)
        for packet in stream.encode(None):
            out.mux(packet)
    return path


def test_to_int16_brings_every_sample_back_and_clips_what_is_too_loud():
    every = np.arange(-32768, 32768, dtype=np.int16)
    assert np.array_equal(to_int16(to_float(every)), every)
    assert to_int16(np.array([-1.5, 1.0], np.float32)).tolist() == [-32768, 32767]


def test_to_float_keeps_full_scale_within_one():
    assert to_float(np.array([-32768, 0, 16384], np.int16)).tolist() == [-1.0, 0.0, 0.5]


@pytest.mark.parametrize("from_hz", [8000, 12000, 16000, 24000, 32000, 44100, 48000, 96000, 192000])
def test_resampling_frame_by_frame_keeps_length_and_tone(from_hz: int):
    resampler = StreamingResampler(from_hz, 8000)
    samples = tone(from_hz, 2.0)
    frame = from_hz // 50
    parts = [resampler.push(samples[i : i + frame]) for i in range(0, len(samples), frame)]
    out = np.concatenate([*parts, resampler.flush()])
    assert abs(len(out) - 16000) <= 8
    expected = tone(8000, 2.0)
    assert np.abs(out[200:15000].astype(int) - expected[200:15000]).max() < 20


def test_what_8_khz_cannot_carry_is_filtered_out():
    resampler = StreamingResampler(16000, 8000)
    out = resampler.push(tone(16000, 1.0, hz=6000))
    assert np.abs(out[200:-200]).max() < 200


def test_pushing_nothing_returns_nothing():
    resampler = StreamingResampler(16000, 8000)
    assert len(resampler.push(np.empty(0, np.int16))) == 0


@pytest.mark.parametrize("num_channels", [1, 2])
def test_a_written_wav_is_read_by_the_standard_library(tmp_path: Path, num_channels: int):
    path = write_wav(tmp_path / "a.wav", 16000, 0.5, num_channels)
    with wave.open(str(path)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getnframes()) == (
            16000,
            num_channels,
            8000,
        )


def test_a_closed_writer_refuses_samples(tmp_path: Path):
    writer = WavWriter(tmp_path / "a.wav", 8000)
    writer.flush()
    writer.close()
    writer.close()
    with pytest.raises(AudioError):
        writer.write(b"ab")


@pytest.mark.parametrize(
    ("name", "codec", "fmt"),
    [
        ("a.flac", "flac", "s16"),
        ("a.mp3", "libmp3lame", "s16p"),
        ("a.ogg", "libopus", "s16"),
        ("a.m4a", "aac", "fltp"),
    ],
)
def test_what_recorders_write_is_probed_and_decoded(
    tmp_path: Path, name: str, codec: str, fmt: str
):
    path = encode_file(tmp_path / name, codec, tone(48000, 3.0), 48000, fmt)
    info = probe(path)
    assert (info.rate, info.num_channels, info.complete) == (48000, 1, True)
    assert info.duration_s == pytest.approx(3.0, abs=0.1)
    assert read_channels(path, 16000, 10).shape[1] == pytest.approx(48000, abs=2000)


def test_probing_a_wav_tells_what_it_is(tmp_path: Path):
    info = probe(write_wav(tmp_path / "a.wav", 8000, 1.5, 2))
    assert (info.format, info.rate, info.num_channels) == ("wav", 8000, 2)
    assert info.duration_s == pytest.approx(1.5)
    assert info.complete


def test_channels_stay_apart(tmp_path: Path):
    left, right = tone(8000, 1.0, 300), tone(8000, 1.0, 1000)
    with WavWriter(tmp_path / "a.wav", 8000, 2) as out:
        out.write(np.stack([left, right], axis=1).tobytes())
    channels = read_channels(tmp_path / "a.wav", 8000, 10)
    assert channels.shape == (2, 8000)
    assert channels.dtype == np.float32
    assert np.abs(channels - to_float(np.stack([left, right]))).max() < 1e-4


@pytest.mark.parametrize("block_s", [0.1, 0.37, 5.0])
def test_blocks_are_whole_but_the_last_and_nothing_is_lost(tmp_path: Path, block_s: float):
    path = write_wav(tmp_path / "a.wav", 8000, 1.0)
    blocks = list(decode(path, 16000, block_s))
    assert all(len(block) == round(block_s * 16000) for block in blocks[:-1])
    assert sum(map(len, blocks)) == pytest.approx(16000, abs=20)


def test_audio_longer_than_allowed_is_refused_before_it_fills_the_memory(tmp_path: Path):
    path = encode_file(tmp_path / "a.flac", "flac", np.zeros(8000 * 120, np.int16), 8000, "s16")
    with pytest.raises(InvalidRecording, match="longer than 45 s"):
        read_channels(path, 16000, 45)


def playlist(folder: Path) -> bytes:
    other = write_wav(folder / "other.wav")
    return (
        f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{other}\n#EXT-X-ENDLIST\n".encode()
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"RIFF", "no audio in a format"),
        (os.urandom(4000), "no audio in a format"),
        (b"%PDF-1.4 " + bytes(2000), "no audio in a format"),
        (wav_header(8000, 1, 0), "no sound that can be decoded"),
    ],
    ids=["empty", "cut", "random", "pdf", "no samples"],
)
def test_what_is_no_recording_is_told_so(tmp_path: Path, content: bytes, reason: str):
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    with pytest.raises(InvalidRecording, match=reason):
        list(decode(path, 16000))


def test_a_playlist_with_the_name_of_a_recording_opens_nothing_else(tmp_path: Path):
    path = tmp_path / "a.wav"
    path.write_bytes(playlist(tmp_path))
    with pytest.raises(InvalidRecording, match="no audio in a format"):
        probe(path)


def test_a_file_that_is_away_is_an_error_of_the_system(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        probe(tmp_path / "none.wav")


def test_a_recording_cut_off_in_the_middle_gives_what_there_is(tmp_path: Path):
    path = encode_file(tmp_path / "a.flac", "flac", tone(8000, 20.0), 8000, "s16")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    assert 8 * 8000 < sum(map(len, decode(path, 8000))) < 12 * 8000


def zero_sizes(data: bytes) -> bytes:
    return data[:4] + bytes(4) + data[8:40] + bytes(4) + data[44:]


BREAK: dict[str, Callable[[bytes], bytes]] = {
    "sizes zero, as a killed Asterisk leaves them": zero_sizes,
    "sizes of an earlier moment": lambda data: wav_header(8000, 1, 2000) + data[44:],
    "sizes too large": lambda data: wav_header(8000, 1, 4_000_000_000) + data[44:],
    "half a sample at the end": lambda data: zero_sizes(data) + b"\1",
}


@pytest.mark.parametrize("fault", BREAK)
def test_a_wav_of_a_killed_writer_is_repaired_from_its_size(tmp_path: Path, fault: str):
    path = write_wav(tmp_path / "a.wav")
    whole = path.read_bytes()
    path.write_bytes(BREAK[fault](whole))
    assert wav_needs_repair(path)
    repair_wav(path)
    assert not wav_needs_repair(path)
    assert path.read_bytes() == whole


def test_a_right_wav_is_left_alone_even_with_chunks_after_the_samples(tmp_path: Path):
    path = write_wav(tmp_path / "a.wav")
    with path.open("ab") as file:
        file.write(b"LIST" + struct.pack("<I", 5) + b"INFOx")
    before = path.read_bytes()
    assert not wav_needs_repair(path)
    assert probe(path).complete
    repair_wav(path)
    assert path.read_bytes() == before


def test_a_repair_finds_the_samples_after_other_chunks(tmp_path: Path):
    path = write_wav(tmp_path / "a.wav")
    data = path.read_bytes()
    path.write_bytes(data[:36] + b"LIST" + struct.pack("<I", 3) + b"abc\0" + b"data" + bytes(4))
    with path.open("ab") as file:
        file.write(data[44:])
    repair_wav(path)
    with wave.open(str(path)) as file_read:
        assert file_read.readframes(9000) == data[44:]


def test_a_file_cut_off_in_its_header_cannot_be_repaired(tmp_path: Path):
    path = tmp_path / "a.wav"
    for content in (wav_header(8000, 1, 0)[:30], b"RIFF", b"ID3" + bytes(100)):
        path.write_bytes(content)
        assert not wav_needs_repair(path)
        with pytest.raises(InvalidRecording):
            repair_wav(path)


@given(st.binary(max_size=200))
def test_no_bytes_upset_the_repair(content: bytes):
    path = Path(f"/dev/shm/callcore-test-{os.getpid()}.wav")
    path.write_bytes(content)
    try:
        if wav_needs_repair(path):
            repair_wav(path)
            assert not wav_needs_repair(path)
    finally:
        path.unlink()
