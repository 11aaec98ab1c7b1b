"""Sound files without a header, as Asterisk writes them: the extension says what the bytes are.

Names and rates are those of Asterisk's formats/format_sln.c, format_pcm.c, format_g722.c and
format_gsm.c; ``raw`` and ``pcm`` are left out, other programs mean other things by them. An
extension is only a claim: bytes that cannot be what it says are refused.
"""

import re
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from callcore.errors import InvalidRecording


@dataclass(frozen=True, slots=True)
class RawFormat:
    """How the bytes of a headerless file are meant."""

    demuxer: str
    """As FFmpeg names it."""
    rate: int
    """Hz."""
    block_bytes: int
    """Bytes that belong together."""
    block_samples: int
    """Samples in them."""

    def duration_s(self, num_bytes: int) -> float:
        """Return how long a file of that size plays."""
        return num_bytes // self.block_bytes * self.block_samples / self.rate


def _slin(khz: int, rate: int | None = None) -> RawFormat:
    return RawFormat("s16le", rate or khz * 1000, 2, 1)


_ULAW, _ALAW = RawFormat("mulaw", 8000, 1, 1), RawFormat("alaw", 8000, 1, 1)

#: By extension, lower case.
RAW_FORMATS: dict[str, RawFormat] = {
    "sln": _slin(8),
    **{f"sln{khz}": _slin(khz) for khz in (8, 12, 16, 24, 32, 48, 96, 192)},
    "sln44": _slin(44, 44_100),
    "gsm": RawFormat("gsm", 8000, 33, 160),
    **dict.fromkeys(("ulaw", "ul", "mu", "ulw"), _ULAW),
    **dict.fromkeys(("alaw", "al", "alw"), _ALAW),
    "g722": RawFormat("g722", 16_000, 1, 2),
}

#: How files begin that are something else, whatever their name: containers of sound, and what
#: sound never begins with. Two bytes would hit samples by chance; these have three or more.
_SIGNATURE = re.compile(
    rb"RIF[FX]|RF64|riff|FORM|fLaC|OggS|ID3|caff|\.snd|\x1aE\xdf\xa3|#!AMR|....ftyp"
    rb"|PK[\x01-\x08][\x02-\x08]|%PDF|\x1f\x8b\x08|\x7fELF|\x89PNG|GIF8|\xff\xd8\xff|7z\xbc\xaf|Rar!",
    re.DOTALL,
)
_TEXT = bytes(range(0x20, 0x7F)) + b"\t\r\n"
_HEAD_BYTES = 1 << 16
#: Frames of GSM begin with the nibble 0xD (libgsm's magic); most must, damage is allowed for.
_GSM_SHARE = 0.9
#: Neighbouring samples of speech are alike (above 0.8 at 8 kHz); those of packed or encrypted data
#: are not, and are as loud as numbers can be.
_LEAST_LIKENESS, _NOISE_RMS = 0.2, 12_000


def raw_format(file: BinaryIO, extension: str) -> RawFormat | None:
    """Return how a headerless file is to be read; None if its content names its own type.

    Args:
        file: Seekable; left at its start.
        extension: Lower case, without the dot.

    Raises:
        InvalidRecording: If the bytes cannot be what the extension says.
    """
    found = RAW_FORMATS.get(extension)
    if found is None:
        return None
    file.seek(0)
    head = file.read(_HEAD_BYTES)
    file.seek(0)
    if _SIGNATURE.match(head):
        return None
    is_text = not head[:512].translate(None, _TEXT)
    if len(head) < found.block_bytes or is_text or not _is_plausible(head, found):
        raise InvalidRecording(f"the file is no audio of the kind that its name says ({extension})")
    return found


def _is_plausible(head: bytes, claimed: RawFormat) -> bool:
    if claimed.demuxer == "gsm":
        firsts = head[: len(head) // 33 * 33 : 33]
        return sum(byte >> 4 == 0xD for byte in firsts) >= _GSM_SHARE * len(firsts)
    if claimed.demuxer == "s16le":
        samples = np.frombuffer(head, "<i2", len(head) // 2).astype(np.float64)
        power = np.square(samples).mean()
        if len(samples) > 1 and power > _NOISE_RMS**2:
            return bool((samples[1:] * samples[:-1]).mean() > _LEAST_LIKENESS * power)
    return True
