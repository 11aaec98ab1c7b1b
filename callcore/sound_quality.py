"""How good the sound of a recording is, channel by channel: clipping, silence, doubled channels."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

#: A sample of this size or more counts as clipped. Mu-law, the loudest of which is 32124 of 32768,
#: can reach no more than 0.9803.
FULL_SCALE = 0.98
#: A channel whose greatest sample stays below this is silent: 10 of 32768. Even an idle telephone
#: line coded as A-law toggles between -8 and 8.
SILENT = 10 / 32768
#: Channels of which no sample differs by more than this are one: what a lossy codec may change.
SAME = 1 / 256

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Channel:
    """Where a party's sound lies."""

    leg: str
    role: str
    """Role of the file."""
    index: int | None
    """None: all channels of the file mixed."""


def of_file(blocks: Iterable[Floats], channels: Sequence[Channel]) -> Iterator[dict[str, Any]]:
    """Yield ``document_types.ChannelQuality`` for each channel of one file.

    Args:
        blocks: Shape (n, num_channels), float32 in [-1, 1], at the file's own rate.
        channels: Of that file.
    """
    num_samples = 0
    clipped = np.zeros(len(channels), np.int64)
    peaks = np.zeros(len(channels))
    apart = 0.0
    for block in blocks:
        num_samples += len(block)
        columns = [_column(block, channel) for channel in channels]
        for at, sizes in enumerate(columns):
            # Mixed channels are each looked at: their mean would hide what is clipped in one.
            clipped[at] += int((np.abs(sizes) >= FULL_SCALE).any(axis=1).sum())
            peaks[at] = max(peaks[at], float(np.abs(sizes).max(initial=0.0)))
        if len(columns) == 2:
            apart = max(apart, float(np.abs(columns[0] - columns[1]).max(initial=0.0)))
    same = len(channels) == 2 and num_samples > 0 and apart <= SAME
    for at, channel in enumerate(channels):
        silent = peaks[at] < SILENT
        yield {
            "leg": channel.leg,
            "role": channel.role,
            "clipping": round(float(clipped[at]) / num_samples, 6) if num_samples else 0.0,
            "peak": round(float(peaks[at]), 4),
            "problem": "silent" if silent else "same as another" if same else None,
        }


def _column(block: Floats, channel: Channel) -> Floats:
    """Return a channel as shape (n, 1), or all as they are."""
    return block if channel.index is None else block[:, channel.index : channel.index + 1]
