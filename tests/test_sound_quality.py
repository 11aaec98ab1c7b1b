import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from callcore.sound_quality import Channel, of_file

LEFT, RIGHT = Channel("caller", "stereo", 0), Channel("agent", "stereo", 1)
MIXED = Channel("mixed", "mixed", None)


def sound(*channels: list[float]) -> npt.NDArray[np.float32]:
    return np.array(channels, np.float32).T


def test_clipped_samples_are_counted_by_channel() -> None:
    left, right = of_file([sound([1.0, 0.5, -1.0, 0.0], [0.1, 0.2, 0.97, 0.0])], [LEFT, RIGHT])
    assert (left["clipping"], left["peak"]) == (0.5, 1.0)
    assert (right["clipping"], right["peak"], right["problem"]) == (0.0, 0.97, None)


def test_the_loudest_mu_law_sample_is_clipped() -> None:
    (only,) = of_file([sound([32124 / 32768, 0.0])], [MIXED])
    assert only["clipping"] == 0.5


def test_clipping_in_one_of_the_mixed_channels_counts() -> None:
    (only,) = of_file([sound([1.0, 0.0], [-1.0, 0.0])], [MIXED])
    assert (only["clipping"], only["problem"]) == (0.5, None)


def test_an_idle_line_is_silent() -> None:
    (only,) = of_file([sound([8 / 32768, -8 / 32768])], [MIXED])
    assert only["problem"] == "silent"


def test_no_sound_at_all_is_silent_and_not_clipped() -> None:
    left, right = of_file([], [LEFT, RIGHT])
    assert (left["clipping"], left["problem"]) == (0.0, "silent")
    assert right["problem"] == "silent"


@given(
    st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=40),
    st.integers(1, 40),
)
def test_blocks_do_not_change_the_figures(samples: list[float], size: int) -> None:
    whole = sound(samples, samples[::-1])
    parts = [whole[at : at + size] for at in range(0, len(whole), size)]
    assert list(of_file(parts, [LEFT, RIGHT])) == list(of_file([whole], [LEFT, RIGHT]))


@pytest.mark.parametrize(("change", "problem"), [(0.001, "same as another"), (0.1, None)])
def test_channels_that_are_one_are_told(change: float, problem: str | None) -> None:
    left = [0.5, -0.5, 0.25]
    found = of_file([sound(left, [each + change for each in left])], [LEFT, RIGHT])
    assert [each["problem"] for each in found] == [problem, problem]
