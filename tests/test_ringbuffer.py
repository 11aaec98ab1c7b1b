import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from callcore.ringbuffer import RingBuffer


def ramp(start: int, end: int) -> np.ndarray:
    return np.arange(start, end).astype(np.int16)


def test_samples_keep_their_absolute_index_after_the_ring_went_round():
    ring = RingBuffer(10)
    for start in range(0, 100, 4):
        ring.append(ramp(start, start + 4).tobytes())
    assert (ring.start, ring.end) == (90, 100)
    assert ring.read(91, 99).tolist() == list(range(91, 99))


def test_what_is_too_old_or_not_yet_there_is_a_lookup_error():
    ring = RingBuffer(10)
    ring.append(ramp(0, 15).tobytes())
    for start, end in ((4, 8), (10, 16), (9, 8), (-1, 0)):
        with pytest.raises(LookupError):
            ring.read(start, end)
    assert ring.read(15, 15).shape == (0,)


def test_half_a_sample_is_refused():
    with pytest.raises(ValueError, match="3 bytes"):
        RingBuffer(10).append(b"abc")


def test_a_read_copy_does_not_change_with_the_ring():
    ring = RingBuffer(4)
    ring.append(ramp(0, 4).tobytes())
    copy = ring.read(0, 4)
    ring.append(ramp(4, 8).tobytes())
    assert copy.tolist() == [0, 1, 2, 3]


def test_bytes_views_and_arrays_are_taken():
    ring = RingBuffer(10)
    ring.append(ramp(0, 2).tobytes())
    ring.append(memoryview(ramp(2, 4).tobytes()))
    ring.append(ramp(4, 6))
    assert ring.read(0, 6).tolist() == [0, 1, 2, 3, 4, 5]


@given(
    capacity=st.integers(1, 40),
    steps=st.lists(st.tuples(st.booleans(), st.integers(0, 100)), max_size=30),
)
def test_the_ring_equals_the_end_of_a_list(capacity: int, steps: list[tuple[bool, int]]):
    ring, everything = RingBuffer(capacity), []
    for silent, count in steps:
        if silent:
            ring.append_silence(count)
            everything += [0] * count
        else:
            samples = ramp(len(everything) + 1, len(everything) + 1 + count)
            ring.append(samples.tobytes())
            everything += samples.tolist()
        assert ring.end == len(everything)
        assert ring.start == max(0, len(everything) - capacity)
        assert ring.read(ring.start, ring.end).tolist() == everything[ring.start :]
