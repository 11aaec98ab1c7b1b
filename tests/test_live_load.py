import pytest
from hypothesis import given
from hypothesis import strategies as st

from callcore.live_load import Admission, LoadMeter

START = 1000.0


def meter(threads: int = 1, *, window_s: float = 8.0, leg_cost: float = 0.05) -> LoadMeter:
    return LoadMeter(threads, START, window_s, leg_cost)


def work(
    load: LoadMeter, seconds: float, *, busy: float, needed: float, legs: int, since: float = 0.0
) -> float:
    """Note work at a steady pace four times a second; return the moment after it."""
    for step in range(1, round(4 * seconds) + 1):
        now = since + step / 4
        load.note(START + now, busy * now, needed * now, legs)
    return START + since + seconds


def test_the_load_is_that_of_the_newest_window_however_often_it_is_asked_for():
    load = meter()
    now = work(load, 60, busy=0.5, needed=0.25, legs=2)
    for _ in range(3):
        load.note(now, 30.0, 15.0, 2)
        assert load.load == pytest.approx(0.5)
        assert load.needed_load == pytest.approx(0.25)
    load.note(now + 8, 30.0, 15.0, 2)
    assert load.load == load.needed_load == 0.0


def test_before_the_first_window_is_over_the_rest_of_it_was_idle():
    load = meter()
    work(load, 2, busy=1.0, needed=1.0, legs=1)
    assert load.load == pytest.approx(2 / 8)


def test_threads_share_the_work():
    load = meter(threads=4)
    work(load, 60, busy=2.0, needed=1.0, legs=10)
    assert (load.load, load.needed_load) == (pytest.approx(0.5), pytest.approx(0.25))
    assert load.leg_cost == pytest.approx(0.1 / 4, rel=0.1)


def test_what_a_leg_costs_is_assumed_then_measured_and_never_nothing():
    load = meter()
    assert load.leg_cost == pytest.approx(0.05)
    now = work(load, 60, busy=0.6, needed=0.6, legs=2)
    assert load.leg_cost == pytest.approx((0.05 * 30 + 36) / (150 - 12), rel=0.02)
    for second in range(1, 121):
        load.note(now + second, 36.0, 36.0, 100)
    assert load.leg_cost == 0.25 * 0.05


def test_a_leg_counts_with_the_part_of_the_window_that_has_not_seen_it():
    load = meter()
    load.note(START, 0.0, 0.0, 0)
    cost = load.leg_cost
    assert load.predicted([]) == pytest.approx(cost)
    assert load.predicted([START, START - 4, START - 8, START - 99]) == pytest.approx(2.5 * cost)


@given(st.floats(0.1, 100), st.floats(0.001, 5), st.integers(1, 64), st.integers(1, 80))
def test_a_burst_is_admitted_up_to_the_limit_and_at_least_one(
    max_load: float, leg_cost: float, threads: int, most: int
) -> None:
    load = meter(threads, leg_cost=leg_cost)
    admission = Admission(load, max_load)
    opened: list[float] = []
    while len(opened) < most and admission.admits(opened):
        opened.append(START)
    room = max_load * threads / leg_cost
    assert opened
    assert len(opened) == 1 or len(opened) <= room * (1 + 1e-6) + 1e-6
    assert len(opened) == most or len(opened) + 1 > room * (1 - 1e-6)
