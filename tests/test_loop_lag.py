import asyncio

import pytest

from callcore.loop_lag import LoopLag


def test_there_is_no_lag_before_the_first_sample() -> None:
    assert LoopLag().percentile_ms(0.99) is None


def test_percentiles_are_those_of_the_samples() -> None:
    lag = LoopLag()
    for number in range(100):
        lag.note(number / 10_000)
    assert lag.percentile_ms(0.5) == pytest.approx(4.9)
    assert lag.percentile_ms(0.99) == pytest.approx(9.8)
    assert lag.percentile_ms(1.0) == pytest.approx(9.9)


def test_a_stall_counts_for_all_that_was_due_in_it() -> None:
    """Else a second of standstill were one sample in fifty and no 99th percentile showed it."""
    lag = LoopLag()
    for _ in range(950):
        lag.note(0.0)
    lag.note(1.0)
    # Then one of 1000 ms, one of 980 ms and so on: what came at the end waited least.
    assert lag.percentile_ms(0.94) == 0.0
    assert lag.percentile_ms(0.98) == pytest.approx(620, abs=40)
    assert lag.percentile_ms(1.0) == 1000.0


def test_what_is_longer_than_the_table_counts_as_its_end() -> None:
    lag = LoopLag()
    lag.note(100.0)
    assert lag.percentile_ms(0.99) == 10_000.0


def test_a_wake_up_before_its_time_is_no_lag() -> None:
    lag = LoopLag()
    lag.note(-0.0004)
    assert lag.percentile_ms(1.0) == 0.0


async def test_a_loop_is_measured_until_it_is_told_to_stop() -> None:
    times = iter((5.0, 5.025, 5.025, 5.5))
    done = asyncio.Event()

    def clock() -> float:
        try:
            return next(times)
        except StopIteration:
            done.set()
            return 6.0

    lag = LoopLag(clock=clock)
    lag.start()
    async with asyncio.timeout(10):
        await done.wait()
    lag.stop()
    lag.stop()
    assert lag.percentile_ms(0.01) == 5.0  # due at 5.020, woken at 5.025
    assert lag.percentile_ms(1.0) == 455.0
