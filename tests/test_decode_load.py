"""What is left out under load: how fast, and when again not."""

import itertools
from collections.abc import Callable

from callcore.decode_load import Load
from callcore.recognizer_config import RecognizerConfig


def levels(load: Load, seconds: range, is_late: Callable[[float], bool]) -> list[int]:
    """Let time pass in ticks; return the level after each second."""
    found = []
    for second in seconds:
        for tick in range(16):
            now = second + tick / 16
            load.update(now, is_late(now))
        found.append(load.level)
    return found


def test_load_is_shed_in_steps_and_taken_up_again_in_steps():
    load = Load(RecognizerConfig(), 0.0)
    seen = []

    def is_late(now: float) -> bool:
        seen.append((load.partial_interval_s, load.speculates, load.redoes))
        return True

    levels(load, range(8), is_late)
    assert list(dict.fromkeys(seen)) == [
        (0.6, True, True),
        (0.8, True, True),
        (1.2, True, True),
        (2.0, True, False),
        (None, True, False),
        (None, False, False),
    ]
    assert load.level == load.highest
    fallen = levels(load, range(8, 60), lambda now: False)
    assert fallen[-1] == 0
    assert max(before - after for before, after in itertools.pairwise(fallen)) == 1


def test_a_batch_that_makes_others_wait_now_and_then_is_no_overload():
    load = Load(RecognizerConfig(), 0.0)
    # One second in four, as when the finals of some legs come together.
    assert max(levels(load, range(60), lambda now: now % 4 < 1)) == 0
    load.level = 2
    assert levels(load, range(60, 90), lambda now: now % 10 < 1)[-1] == 0


def test_a_partial_is_late_when_the_next_one_is_due():
    load = Load(RecognizerConfig(), 0.0)
    assert not load.is_late(0.3, 0.5)
    assert load.is_late(0.5, 0.0)
    assert load.is_late(0.0, 0.7)
    load.level = 2
    assert not load.is_late(0.0, 1.1)
