"""Two parties in one stream, without I/O: bytes in, one side each out.

``ChanSpy(D)`` sends both parties as interleaved 16-bit samples (app_chanspy.c)::

    offset  size  field
    0       2     left: the spied channel's party
    2       2     right: the party that it speaks to
    4       ...   the next sample of both

Nothing on the wire says so, and such a frame may be cut anywhere between two messages. Whether a
stream has two channels is known once its registration is found: until then ``EarlyAudio`` keeps
what came.
"""

from collections.abc import Iterator

import numpy as np

from callcore.audiosocket import Audio

#: Bytes of one sample of both parties.
FRAME_BYTES = 4

#: Bytes of audio that are kept until the registration is found: ten seconds of two channels at
#: 8 kHz. Every stream keeps as much, and splitting it holds up the loop; a database needs
#: milliseconds when it is there.
MAX_EARLY_BYTES = 320_000


class Splitter:
    """Takes the bytes of one stream and returns those of its two sides."""

    def __init__(self) -> None:
        self._rest = b""  # of a frame whose end has not come

    def push(self, data: bytes) -> tuple[bytes, bytes]:
        """Return left and right of the frames that are whole now.

        Args:
            data: What follows; any number of bytes.

        Returns:
            int16, little-endian, as many samples of one side as of the other; maybe none.
        """
        data = self._rest + data
        whole = len(data) - len(data) % FRAME_BYTES
        self._rest = data[whole:]
        both = np.frombuffer(data[:whole], "<i2").reshape(-1, 2)
        return both[:, 0].tobytes(), both[:, 1].tobytes()

    def skip(self, num_bytes: int) -> None:
        """Go on after bytes that are lost; what is missing of a frame is silence."""
        self._rest = bytes((len(self._rest) + num_bytes) % FRAME_BYTES)

    def split(self, batch: list[Audio]) -> tuple[list[Audio], list[Audio]]:
        """Return the audio of each side, message by message as it came."""
        left, right = [], []
        for part in batch:
            sides = self.push(part.samples)
            left.append(Audio(part.kind, part.rate, sides[0], part.frames))
            right.append(Audio(part.kind, part.rate, sides[1], part.frames))
        return left, right


class EarlyAudio:
    """Audio of a stream of which nobody knows yet whether it has one channel or two.

    Once the limit is reached nothing more is kept, only counted: what comes after a gap is worth
    less than what came before it.
    """

    def __init__(self, max_bytes: int = MAX_EARLY_BYTES) -> None:
        self._max_bytes = max_bytes
        self._kept: list[tuple[list[Audio], float]] = []
        self._num_bytes = 0
        self.lost_bytes = 0
        """Bytes that were not kept."""
        self.lost_until = 0.0
        """When the last of them came."""

    def keep(self, batch: list[Audio], at: float) -> None:
        """Keep what came at one moment, or count it."""
        num_bytes = sum(len(part.samples) for part in batch)
        if self.lost_bytes or self._num_bytes + num_bytes > self._max_bytes:
            self.lost_bytes += num_bytes
            self.lost_until = at
            return
        self._num_bytes += num_bytes
        self._kept.append((batch, at))

    def __iter__(self) -> Iterator[tuple[list[Audio], float]]:
        """Iterate over what was kept: the audio and the moment when it came."""
        return iter(self._kept)
