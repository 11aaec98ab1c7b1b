"""AudioSocket without I/O: bytes in, events out.

Wire (res_audiosocket.h and res_audiosocket.c of Asterisk 22; app_audiosocket.c for what ends a
call)::

    offset  size  field
    0       1     kind
    1       2     payload length, unsigned, big-endian
    3       n     payload

    kind        direction      payload
    0x00        to Asterisk    hangup, empty; Asterisk itself just closes the connection
    0x01        from Asterisk  the 16 bytes of the stream's UUID; first, and once
    0x03        from Asterisk  DTMF, one ASCII character: 0-9 * # A-D
    0x10        both           audio: signed 16-bit little-endian mono, 8 kHz ("slin")
    0x11..0x18  both           the same at 12, 16, 24, 32, 44.1, 48, 96, 192 kHz
    0xff        both           error, a code of one byte; defined, sent by no released Asterisk

A frame of audio is 20 ms (320 bytes at 8 kHz), but the last frame of a sound file is shorter. In
silence Asterisk sends nothing, so a count of samples is no clock. Unknown kinds are skipped:
later versions may add some. What a peer may not do raises ``RemoteProtocolError``:

* anything but a UUID first, or a second UUID;
* a UUID that is not 16 bytes, a digit that is not one byte;
* more than ``MAX_AUDIO_BYTES`` of audio in one message;
* more than ``MAX_KIND_CHANGES`` changes of the kind of audio: each costs a resampler;
* more than ``MAX_OTHERS`` messages with hardly any audio that no audio has paid for, see there.

There is no other limit on a message: the length field ends at 65535.
"""

import struct
import uuid
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Final

from callcore.errors import LocalProtocolError, RemoteProtocolError


class Kind(IntEnum):
    """First byte of a message."""

    HANGUP = 0x00
    UUID = 0x01
    DTMF = 0x03
    SLIN = 0x10
    SLIN12 = 0x11
    SLIN16 = 0x12
    SLIN24 = 0x13
    SLIN32 = 0x14
    SLIN44 = 0x15
    SLIN48 = 0x16
    SLIN96 = 0x17
    SLIN192 = 0x18
    ERROR = 0xFF


#: Kind of audio to its sampling rate in Hz.
RATES: Final[dict[int, int]] = {
    Kind.SLIN: 8000,
    Kind.SLIN12: 12000,
    Kind.SLIN16: 16000,
    Kind.SLIN24: 24000,
    Kind.SLIN32: 32000,
    Kind.SLIN44: 44100,
    Kind.SLIN48: 48000,
    Kind.SLIN96: 96000,
    Kind.SLIN192: 192000,
}

#: Bytes of kind and length before each payload.
HEADER_BYTES: Final = 3

#: Most audio in one message: twice the 7,680 bytes of 20 ms at 192 kHz, rounded up. A longer one
#: is no telephony but a peer that wants our memory.
MAX_AUDIO_BYTES: Final = 16384

#: Most changes of the kind of audio in one stream: Asterisk makes one where a codec changes.
MAX_KIND_CHANGES: Final = 8

#: Less audio than this in a message, 2 ms at 8 kHz, is hardly any: only the end of a sound file.
MIN_AUDIO_BYTES: Final = 32

#: Most messages with hardly any audio (digits, unknown kinds, tiny frames) that may follow each
#: other: more digits than anybody types into a silent line, and 2 ms of our time.
MAX_OTHERS: Final = 200

#: Bytes of audio that pay for one more of them: 10 ms at 8 kHz. Counted in bytes, because there is
#: no clock here; audio itself cannot run far ahead of the clock (``leg_session.MAX_AHEAD_S``).
BYTES_PER_OTHER: Final = 160

#: The UUID of a stream that is none: it only asks whether somebody answers.
PROBE_UUID: Final = str(uuid.UUID(int=0))

#: Milliseconds of one frame as Asterisk sends and expects it.
FRAME_MS: Final = 20

#: How nearly every message of a call begins: 20 ms at 8 kHz; and its bytes in all.
_USUAL_HEADER: Final = b"\x10\x01\x40"
_USUAL_BYTES: Final = HEADER_BYTES + 320
_USUAL_AUDIO_BYTES: Final = 320


@dataclass(frozen=True, slots=True)
class UuidReceived:
    """The stream says who it is."""

    uuid: str
    """36 characters, lower case."""


class Audio:
    """Samples of one message, or of several that followed each other (``next_batch``)."""

    __slots__ = ("frames", "kind", "rate", "samples")

    def __init__(self, kind: int, rate: int, samples: bytes, frames: int = 1) -> None:
        # No dataclass: a frozen one takes three times as long to make, 50 times a second a leg.
        self.kind = kind
        self.rate = rate
        """Hz."""
        self.samples = samples
        """int16, little-endian, mono; a whole number of samples, maybe none."""
        self.frames = frames
        """Messages it came in."""

    def __eq__(self, other: object) -> bool:
        """Compare by value."""
        if not isinstance(other, Audio):
            return NotImplemented
        return (self.kind, self.samples, self.frames) == (other.kind, other.samples, other.frames)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        """Return the shape, not the samples."""
        return f"Audio(kind={self.kind:#04x}, bytes={len(self.samples)}, frames={self.frames})"


@dataclass(frozen=True, slots=True)
class Dtmf:
    """A digit was pressed."""

    digit: str
    """One printable ASCII character; ``?`` where the byte was none."""


@dataclass(frozen=True, slots=True)
class Hangup:
    """The peer ends the stream by a message; whatever follows is ignored."""


@dataclass(frozen=True, slots=True)
class PeerError:
    """The peer reports an error."""

    code: int | None
    """Its code; None where it sent none."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """A message of a kind that we do not know was skipped."""

    kind: int
    length: int
    """Bytes of its payload."""


class NeedData(Enum):
    """Type of ``NEED_DATA``."""

    NEED_DATA = "NEED_DATA"


#: Nothing more can be told until more bytes come.
NEED_DATA: Final = NeedData.NEED_DATA

Event = UuidReceived | Audio | Dtmf | Hangup | PeerError | Unknown


class Connection:
    """The receiving half of one AudioSocket stream.

    ``receive_data`` only stores. ``next_event`` tells one message at a time; ``next_batch`` tells
    the same, but audio of one kind that lies there in one piece as one event. Call either until
    it returns ``NEED_DATA``. ``take_frame`` is the short way for what nearly all reads bring.
    """

    __slots__ = (
        "_at",
        "_changes",
        "_credit",
        "_data",
        "_error",
        "_finished",
        "_kind",
        "_steady",
        "uuid",
    )

    def __init__(self) -> None:
        self._data = b""
        self._at = 0
        self._finished = False
        self._kind: int | None = None  # of the last audio
        self._changes = 0
        self._credit = MAX_OTHERS * BYTES_PER_OTHER  # what such messages may still cost
        self._error: RemoteProtocolError | None = None
        self._steady = False  # 8 kHz, and all that came was told: a usual frame changes nothing
        self.uuid: str | None = None
        """The stream's UUID, once it was received."""

    def take_frame(self, data: bytes) -> bytes | None:
        """Return the samples if the peer's bytes are one more frame of 20 ms at 8 kHz.

        It tells what ``receive_data`` and ``next_event`` would, in a quarter of the time: there is
        one such read for each frame of each leg. None if the bytes are anything else: then nothing
        was taken, and they are for ``receive_data``.
        """
        if self._steady and len(data) == _USUAL_BYTES and data.startswith(_USUAL_HEADER):
            self._credit += _USUAL_AUDIO_BYTES
            return data[HEADER_BYTES:]
        return None

    def receive_data(self, data: bytes) -> None:
        """Store bytes from the peer."""
        self._steady = False
        if self._finished or self._error is not None:
            return  # whatever comes after the end is not kept
        if self._at == len(self._data):
            self._data = data
        else:  # at most one unfinished message and what came with it: under 66 KB
            self._data = self._data[self._at :] + data
        self._at = 0

    def next_event(self) -> Event | NeedData:
        """Return the next message.

        Raises:
            RemoteProtocolError: If the peer broke the protocol; each later call raises it again.
        """
        return self._next(False)

    def next_batch(self) -> Event | NeedData:
        """Return the next message, or all audio up to the next message that is not its like.

        Raises:
            RemoteProtocolError: As ``next_event``. Audio before the fault is returned first.
        """
        return self._next(True)

    def _next(self, merge: bool) -> Event | NeedData:
        data, at = self._data, self._at
        payload = at + HEADER_BYTES
        if len(data) < payload or self._finished or self._error is not None:
            return self._need_data()
        kind = data[at]
        length = data[at + 1] << 8 | data[at + 2]
        rate = RATES.get(kind)
        if rate is None or self.uuid is None or not MIN_AUDIO_BYTES <= length <= MAX_AUDIO_BYTES:
            return self._next_other(kind, length, payload)
        if kind != self._kind:
            self._change_kind(kind)
        end = payload + length
        if len(data) < end:
            return self._need_data()
        self._at = end
        self._credit += length
        # Half a sample belongs to nothing: the next frame starts with a whole one.
        samples = data[payload : end - (length & 1)]
        if merge and len(data) - end >= HEADER_BYTES and data[end] == kind:
            return self._merge(kind, rate, samples)
        return Audio(kind, rate, samples)

    def _merge(self, kind: int, rate: int, samples: bytes) -> Audio:
        data, at = self._data, self._at
        parts = [samples]
        while len(data) - at >= HEADER_BYTES and data[at] == kind:
            length = data[at + 1] << 8 | data[at + 2]
            payload = at + HEADER_BYTES
            if not MIN_AUDIO_BYTES <= length <= MAX_AUDIO_BYTES or len(data) - payload < length:
                break
            at = payload + length
            parts.append(data[payload : at - (length & 1)])
        self._credit += at - self._at - HEADER_BYTES * (len(parts) - 1)
        self._at = at
        return Audio(kind, rate, b"".join(parts), len(parts))

    def _change_kind(self, kind: int) -> None:
        if self._kind is not None:
            self._changes += 1
        if self._changes > MAX_KIND_CHANGES:
            raise self._broken(f"expected at most {MAX_KIND_CHANGES} changes of the kind of audio")
        self._kind = kind

    def _pay(self) -> None:
        """Count a message with hardly any audio."""
        self._credit = min(self._credit, MAX_OTHERS * BYTES_PER_OTHER) - BYTES_PER_OTHER
        if self._credit < 0:
            raise self._broken("expected audio, got too many messages with hardly any")

    def _broken(self, fault: str) -> RemoteProtocolError:
        self._error = RemoteProtocolError(fault)
        return self._error

    def _need_data(self) -> NeedData:
        if self._error is not None:
            raise self._error
        is_told = self._at == len(self._data) and not self._finished
        self._steady = is_told and self._kind == Kind.SLIN
        return NEED_DATA

    def _next_other(self, kind: int, length: int, payload: int) -> Event | NeedData:
        """Return a message that is not audio as usual; check the header before the payload."""
        fault = self._fault(kind, length)
        if fault is not None:
            raise self._broken(fault)
        if kind in RATES and kind != self._kind:
            self._change_kind(kind)
        if len(self._data) < payload + length:
            return self._need_data()
        if kind != Kind.UUID:
            self._pay()
        self._at = payload + length
        body = self._data[payload : self._at]
        if kind == Kind.UUID:
            self.uuid = str(uuid.UUID(bytes=body))
            return UuidReceived(self.uuid)
        if kind == Kind.DTMF:
            return Dtmf(body.decode("ascii") if 0x20 < body[0] < 0x7F else "?")
        if kind == Kind.HANGUP:
            self._finished = True
            return Hangup()
        if kind == Kind.ERROR:
            return PeerError(body[0] if body else None)
        if kind in RATES:
            return Audio(kind, RATES[kind], body[: length & ~1])
        return Unknown(kind, length)

    def _fault(self, kind: int, length: int) -> str | None:
        if self.uuid is None and kind != Kind.UUID:
            return f"expected a UUID message first, got kind {kind:#04x}"
        if kind == Kind.UUID:
            if self.uuid is not None:
                return "expected one UUID message, got a second one"
            if length != 16:
                return f"expected a UUID of 16 bytes, got {length}"
        if kind == Kind.DTMF and length != 1:
            return f"expected a digit of 1 byte, got {length}"
        if kind in RATES and length > MAX_AUDIO_BYTES:
            return f"expected at most {MAX_AUDIO_BYTES} bytes of audio in a message, got {length}"
        return None


def encode(kind: int, payload: bytes = b"") -> bytes:
    """Return one message as it travels.

    Raises:
        LocalProtocolError: If the payload does not fit into the length field.
    """
    if len(payload) > 0xFFFF:
        raise LocalProtocolError(f"a payload has at most 65535 bytes, not {len(payload)}")
    return struct.pack(">BH", kind, len(payload)) + payload


def frame_bytes(kind: int) -> int:
    """Return the payload bytes of a full frame of an audio kind: 320 for 8 kHz."""
    return RATES[kind] * FRAME_MS // 1000 * 2


def silence_frame(kind: int = Kind.SLIN) -> bytes:
    """Return one frame of silence as a message.

    Args:
        kind: A key of ``RATES``. Send the kind that was received: an older Asterisk takes every
            other one for 8 kHz.
    """
    return encode(kind, bytes(frame_bytes(kind)))
