"""Files that are made to fill a reader's memory, disk or time, or to make it open other things."""

import functools
import io
import os
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from callcore.audio import wav_header


def silent_flac(hours: float, *, says_s: float | None = None, block: int = 4096) -> bytes:
    """Return digital silence at 8 kHz as FLAC (RFC 9639): 14 bytes for each block of samples.

    Args:
        hours: How long it plays.
        says_s: What its header says instead, in seconds.
        block: Samples in a block, at most 65,535.
    """
    num_samples = round((hours * 3600 if says_s is None else says_s) * 8000)
    about = 8000 << 44 | 0 << 41 | 15 << 36 | num_samples  # rate, channels, bits, samples
    info = struct.pack(">HH6sQ16s", block, block, bytes(6), about, bytes(16))
    blocks = []
    for number in range(round(hours * 3600 * 8000 / block)):
        # Size in 16 bits follows, 8 kHz, mono, 16 bits; then the number as in UTF-8.
        head = b"\xff\xf8\x74\x08" + chr(number).encode("utf-8", "surrogatepass")
        head += struct.pack(">H", block - 1)
        frame = head + bytes([_crc(head, 0x07, 8)]) + b"\0\0\0"  # one constant: 0
        blocks.append(frame + struct.pack(">H", _crc(frame, 0x8005, 16)))
    return b"fLaC\x80\0\0\x22" + info + b"".join(blocks)


def silent_opus(hours: float) -> bytes:
    """Return silence as Ogg Opus: packets of 120 ms without content (RFC 6716, 3.1)."""
    num_packets = round(hours * 3600 / 0.12)
    pages = [
        _page(0, 2, 0, [b"OpusHead\x01\x01" + struct.pack("<HIhB", 0, 48_000, 0, 0)]),
        _page(1, 0, 0, [b"OpusTags" + struct.pack("<I4sI", 4, b"test", 0)]),
    ]
    for first in range(0, num_packets, 255):
        number = min(255, num_packets - first)
        end = (first + number) * 5760
        last = 4 * (first + number == num_packets)
        pages.append(_page(len(pages), last, end, [b"\x1b\x02"] * number))
    return b"".join(pages)


def _page(number: int, flags: int, granule: int, packets: list[bytes]) -> bytes:
    head = struct.pack("<4sBBqIII", b"OggS", 0, flags, granule, 1, number, 0)
    page = head + bytes([len(packets), *map(len, packets)]) + b"".join(packets)
    return page[:22] + struct.pack("<I", _crc(page, 0x04C11DB7, 32)) + page[26:]


def _crc(content: bytes, polynomial: int, bits: int) -> int:
    table, crc, mask = _crc_table(polynomial, bits), 0, (1 << bits) - 1
    for byte in content:
        crc = (crc << 8) & mask ^ table[crc >> (bits - 8) ^ byte]
    return crc


@functools.cache
def _crc_table(polynomial: int, bits: int) -> list[int]:
    table = []
    for value in range(256):
        crc = value << (bits - 8)
        for _ in range(8):
            crc = crc << 1 ^ (polynomial | 1 << bits if crc >> (bits - 1) else 0)
        table.append(crc)
    return table


def _zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.wav", bytes(50_000_000))
    return file.getvalue()


def _wav(rate: int, num_channels: int, seconds: float = 1.0) -> bytes:
    num_bytes = round(rate * seconds) * num_channels * 2
    # The file's own bytes a second need not fit its field of 32 bits.
    header = bytearray(wav_header(8000, 1, num_bytes))
    struct.pack_into(
        "<HII", header, 22, num_channels, rate, min(rate * num_channels * 2, 2**32 - 1)
    )
    struct.pack_into("<H", header, 32, num_channels * 2)
    return bytes(header) + bytes(num_bytes)


def _chunks() -> bytes:
    """Return a WAV of 200,000 empty chunks."""
    body = b"junk\0\0\0\0" * 200_000
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WAVE" + body


def _tagged() -> bytes:
    """Return an MP3 tag that says it is 256 MB long, and nothing after it."""
    return b"ID3\x04\0\0\x7f\x7f\x7f\x7f" + bytes(100_000)


def _big_atom() -> bytes:
    """Return an MP4 whose tables say they have four billion entries."""
    table = struct.pack(">I4sIII", 16, b"stsz", 0, 0, 0xFFFFFFFF)
    for name in (b"stbl", b"minf", b"mdia", b"trak", b"moov"):
        table = struct.pack(">I4s", len(table) + 8, name) + table
    return struct.pack(">I4s4sI", 16, b"ftyp", b"M4A ", 0) + table


#: Name of a file, its content, and what the refusal says.
BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "10 hours of silence.flac": (lambda: silent_flac(10), "plays for more than 4.0 hours"),
    "10 hours of silence.ogg": (lambda: silent_opus(10), "plays for more than 4.0 hours"),
    "says 2,000 hours.flac": (lambda: silent_flac(0.1, says_s=7_200_000), "more than 4.0 hours"),
    "zip.wav": (_zip, "no audio in a format"),
    "100 channels.wav": (lambda: _wav(8000, 100), "100 channels; 8 can be read"),
    "32,000 channels.wav": (lambda: _wav(8000, 32_000, 0.01), "without rate or channels"),
    "1 Hz.wav": (lambda: _wav(1, 1, 1_000_000), "rate is 1 Hz"),
    "10 MHz.wav": (lambda: _wav(10_000_000, 1, 0.1), "rate is 10000000 Hz"),
    "zero length.wav": (lambda: b"", "empty"),
    "zeros.mp3": (lambda: bytes(1_000_000), "no audio in a format"),
    "chunks.wav": (_chunks, "no audio in a format"),
    "tag.mp3": (_tagged, "no audio in a format"),
    "big atom.m4a": (_big_atom, "no audio in a format"),
    "noise.sln": (lambda: np.random.default_rng(5).bytes(100_000), "no audio of the kind"),
}


def write(folder: Path) -> Iterator[tuple[Path, str]]:
    """Write the bombs and yield each with what its refusal says."""
    for name, (content, reason) in BOMBS.items():
        path = folder / name
        path.write_bytes(content())
        yield path, reason


def playlists(folder: Path, port: int) -> dict[str, bytes]:
    """Return lists that name a sound file in ``folder`` and an address on this machine."""
    local, remote = folder / "other.wav", f"http://127.0.0.1:{port}/a.wav"
    local.write_bytes(wav_header(8000, 1, 16_000) + os.urandom(16_000))
    head = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n"
    return {
        "local hls": f"{head}file://{local}\n#EXT-X-ENDLIST\n".encode(),
        "plain hls": f"{head}{local.name}\n#EXT-X-ENDLIST\n".encode(),
        "remote hls": f"{head}{remote}\n#EXT-X-ENDLIST\n".encode(),
        "concat": f"ffconcat version 1.0\nfile {local}\nfile {remote}\n".encode(),
        "dash": (
            '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period>'
            f"<AdaptationSet mimeType='audio/wav'><BaseURL>{remote}</BaseURL></AdaptationSet>"
            "</Period></MPD>"
        ).encode(),
        "sdp": b"v=0\nc=IN IP4 127.0.0.1\nm=audio %d RTP/AVP 0\n" % port,
    }
