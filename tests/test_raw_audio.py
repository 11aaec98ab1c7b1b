import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from callcore.audio import decode, probe, wav_header
from callcore.errors import InvalidRecording
from callcore.raw_audio import RAW_FORMATS, raw_format
from tests.test_audio import encode_file, tone


def gsm(samples: np.ndarray) -> bytes:
    """Return samples as frames of GSM: silence of the codec, since FFmpeg does not encode it."""
    return (bytes([0xD8, 0x20, 0xA2, 0xE1, 0x5A, 0x50]) + bytes(27)) * (len(samples) // 160)


def encoded(extension: str, seconds: float) -> bytes:
    claimed = RAW_FORMATS[extension]
    samples = tone(claimed.rate, seconds)
    if claimed.demuxer == "s16le":
        return samples.tobytes()
    if claimed.demuxer == "gsm":
        return gsm(samples)
    return bytes([0xD5, 0x55, 0x5A, 0x12]) * round(seconds * claimed.rate / 4 * claimed.block_bytes)


@pytest.mark.parametrize("extension", sorted(RAW_FORMATS))
def test_a_file_without_a_header_is_what_its_extension_says(tmp_path: Path, extension: str):
    path = tmp_path / f"a.{extension.upper()}"
    path.write_bytes(encoded(extension, 2.0))
    info = probe(path)
    assert (info.format, info.rate, info.num_channels, info.complete) == (
        extension,
        RAW_FORMATS[extension].rate,
        1,
        True,
    )
    seconds = RAW_FORMATS[extension].duration_s(path.stat().st_size)
    assert info.duration_s == seconds
    assert sum(map(len, decode(path, 16000))) == pytest.approx(seconds * 16000, abs=200)


def test_samples_of_a_raw_file_come_out_as_they_went_in(tmp_path: Path):
    samples = tone(8000, 1.0)
    (tmp_path / "a.sln").write_bytes(samples.tobytes())
    (block,) = decode(tmp_path / "a.sln", 8000)
    assert np.abs(block[:, 0] * 32768 - samples).max() < 1


def test_what_is_in_a_file_counts_before_its_name(tmp_path: Path):
    path = encode_file(tmp_path / "a.flac", "flac", tone(8000, 1.0), 8000, "s16")
    path = path.rename(tmp_path / "a.sln")
    assert probe(path).format == "flac"
    assert probe(path, "gsm").format == "flac"


def test_a_name_that_is_given_counts_before_the_path_s(tmp_path: Path):
    path = tmp_path / "copy.part"
    path.write_bytes(tone(16000, 1.0).tobytes())
    with pytest.raises(InvalidRecording):
        probe(path, "")
    assert probe(path, "sln16").duration_s == 1.0


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.wav", bytes(100_000))
    return file.getvalue()


NOISE = np.random.default_rng(3).bytes(100_000)


@pytest.mark.parametrize(
    ("extension", "content"),
    [
        ("gsm", tone(8000, 1.0).tobytes()),
        ("gsm", b"\xd0" * 32),
        ("sln", NOISE),
        ("sln", b"x"),
        ("sln", zipped()),
        ("ulaw", b"#EXTM3U\nhttp://example.org/a.ts\n"),
        ("sln", b"uniqueid,caller,agent\r\n" * 50),
        ("g722", b"%PDF-1.4" + bytes(500)),
    ],
    ids=["tone", "half a frame", "noise", "half a sample", "zip", "playlist", "table", "pdf"],
)
def test_what_cannot_be_what_its_name_says_is_refused(
    tmp_path: Path, extension: str, content: bytes
):
    path = tmp_path / f"a.{extension}"
    path.write_bytes(content)
    with pytest.raises(InvalidRecording):
        probe(path)


def test_silence_and_loud_speech_are_plausible_samples():
    loud = np.clip(tone(8000, 2.0).astype(int) * 40, -32768, 32767).astype("<i2").tobytes()
    for content in (bytes(16000), loud):
        assert raw_format(io.BytesIO(content), "sln") is RAW_FORMATS["sln"]


def test_a_file_with_a_header_needs_no_name():
    file = io.BytesIO(wav_header(8000, 1, 0))
    assert raw_format(file, "wav") is None
    assert raw_format(file, "") is None
    assert raw_format(file, "sln") is None
