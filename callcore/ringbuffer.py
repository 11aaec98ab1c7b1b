"""The newest audio of one leg: int16 samples addressed by their absolute index.

The ring knows no clock. Index 0 is the leg's first sample, and an index never changes its sample:
what is too old is gone (LookupError), never something else.
"""

import numpy as np


class RingBuffer:
    """The last ``capacity_samples`` samples of a leg.

    Appending copies memory and does nothing else, so it may run on the event loop. One thread
    appends; the same thread reads.

    Args:
        capacity_samples: How many samples are held, at least 1.
    """

    __slots__ = ("_bytes", "_capacity", "_samples", "_view", "end")

    def __init__(self, capacity_samples: int) -> None:
        if capacity_samples < 1:
            raise ValueError(f"a ring holds at least 1 sample, not {capacity_samples}")
        # A zeroed bytearray costs no memory until it is written to: most calls are short.
        self._bytes = bytearray(2 * capacity_samples)
        self._view = memoryview(self._bytes)
        self._samples = np.frombuffer(self._bytes, "<i2")
        self._capacity = capacity_samples
        self.end = 0
        """Absolute index after the newest sample."""

    @property
    def start(self) -> int:
        """Absolute index of the oldest sample still held."""
        return max(0, self.end - self._capacity)

    def append(self, samples: bytes | memoryview | np.ndarray) -> None:
        """Add samples after the newest one.

        Args:
            samples: int16, little-endian, contiguous; any length.

        Raises:
            ValueError: If there is half a sample.
        """
        if type(samples) is not bytes:
            samples = samples.tobytes()  # type: ignore[union-attr]
        num_bytes = len(samples)
        if num_bytes & 1:
            raise ValueError(f"{num_bytes} bytes are no whole number of int16 samples")
        size = 2 * self._capacity
        at = 2 * self.end % size
        after = at + num_bytes
        self.end += num_bytes >> 1
        if after <= size:
            self._view[at:after] = samples
        else:
            self._append_wrapped(samples, at, num_bytes)

    def append_silence(self, num_samples: int) -> None:
        """Add ``num_samples`` zeros after the newest sample."""
        end = self.end + num_samples
        # More silence than the ring holds overwrites all of it once, however long it was.
        low = max(self.end, end - self._capacity)
        first = low % self._capacity
        last = first + end - low
        self._samples[first:last] = 0
        if last > self._capacity:
            self._samples[: last - self._capacity] = 0
        self.end = end

    def read(self, start: int, end: int) -> np.ndarray:
        """Return a copy of the samples from ``start`` up to, not including, ``end``.

        Returns:
            Shape (end - start,), int16.

        Raises:
            LookupError: If a sample of the span is not held any more or not yet there.
        """
        if not self.start <= start <= end <= self.end:
            raise LookupError(
                f"samples {start} to {end} are not in the ring, it holds {self.start} to {self.end}"
            )
        first = start % self._capacity
        last = first + end - start
        if last <= self._capacity:
            return self._samples[first:last].copy()
        return np.concatenate((self._samples[first:], self._samples[: last - self._capacity]))

    def _append_wrapped(self, samples: bytes, at: int, num_bytes: int) -> None:
        size = 2 * self._capacity
        if num_bytes > size:  # only the newest part survives; it starts later in the ring
            at = (at + num_bytes - size) % size
            samples = samples[num_bytes - size :]
        split = min(size - at, len(samples))
        self._view[at : at + split] = samples[:split]
        self._view[: len(samples) - split] = samples[split:]
