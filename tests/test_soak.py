"""An hour of calls that come and go: nothing is held that they do not need any more.

``SOAK_S=300 python -m pytest -m nightly -rP tests/test_soak.py`` takes five minutes instead; that
tells leaks of tasks and descriptors, and of memory only large ones.
"""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from statistics import median

import numpy as np
import pytest

from callcore import heap
from callcore.engines import LIVE_RATE
from tests.support.live_site import LiveSite, play, speech

pytestmark = [pytest.mark.nightly, pytest.mark.model, pytest.mark.redis]

SOAK_S = float(os.environ.get("SOAK_S", "3600"))
#: Calls at a time: with tiny.en no more than a half of what one thread decodes.
AT_ONCE = int(os.environ.get("SOAK_CALLS", "6"))
#: Seconds in which calls begin; then all of them end, and what is still held is read.
WAVE_S = 45.0
SHORTEST_S, LONGEST_S = 5.0, 60.0
#: Seconds of a voice in which there is a word: the longest of its turns is 10 s.
LONGEST_WAIT_S = 12.0
#: Part of the time in which buffers and caches still reach their sizes: what the largest decode
#: needs stays with the engine when it first comes (27 MB at once, after 20 minutes; none since).
WARM_UP = 0.5
#: Hours of readings that tell an engine's growth from such steps.
LONG_H = 0.4
#: Bytes an hour that memory at rest may grow.
MAX_SLOPE = 1_000_000
#: Bytes by which two readings of a process at rest differ anyway: what the allocator keeps.
NOISE = 1_000_000


@dataclass(frozen=True, slots=True)
class Held:
    """What the processes hold while there is no call."""

    at_s: float
    rss: int
    """Bytes of the daemon."""
    engine_rss: int
    """Bytes of the inference process."""
    descriptors: int
    engine_descriptors: int
    threads: int
    engine_threads: int
    tasks: int
    """Of the daemon's event loop."""
    blocks: int
    """Pieces of memory that the daemon's Python objects have."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveSite]:
    command = ("tests.support.watched_daemon",)
    with LiveSite(tmp_path_factory.mktemp("s"), command) as running:
        yield running


def held(site: LiveSite, began: float) -> Held:
    """Read what is held, once the calls are over."""
    # Both processes have given back what they do not use.
    time.sleep(heap.EVERY_S + 1)
    engine = site.wait("the inference process", site.engine)
    site.daemon.send_signal(signal.SIGUSR1)
    [line] = site.logged("holds")
    site.forget_lines()
    return Held(
        at_s=round(time.monotonic() - began, 1),
        rss=site.daemon.memory_info().rss,
        engine_rss=engine.memory_info().rss,
        descriptors=site.daemon.num_fds(),
        engine_descriptors=engine.num_fds(),
        threads=site.daemon.num_threads(),
        engine_threads=engine.num_threads(),
        tasks=line["tasks"],
        blocks=line["blocks"],
    )


def slope(times_s: list[float], values: list[int]) -> float:
    """Return the growth per hour: the median of the slopes between all pairs of readings."""
    pairs = [(i, j) for j in range(len(values)) for i in range(j)]
    slopes = [(values[j] - values[i]) / (times_s[j] - times_s[i]) for i, j in pairs]
    return 3600 * median(slopes)


async def wave(
    site: LiveSite, voices: list[np.ndarray], rng: np.random.Generator
) -> dict[str, bool]:
    """Keep so many calls going for a while.

    Returns:
        By the calls' ids whether words are to be expected, once the last has hung up.
    """
    until = time.monotonic() + WAVE_S
    calls: dict[str, bool] = {}

    async def one_after_the_other() -> None:
        while time.monotonic() < until:
            call_id = f"call-{time.monotonic_ns()}"
            num_samples = int(rng.uniform(SHORTEST_S, LONGEST_S) * LIVE_RATE)
            voice = voices[rng.integers(len(voices))]
            start = int(rng.integers(len(voice)))
            samples = np.roll(voice, -start)[:num_samples]
            calls[call_id] = np.count_nonzero(samples) > LONGEST_WAIT_S * LIVE_RATE
            await play(site.address, site.register(call_id), samples)

    async with asyncio.TaskGroup() as slots:
        for _ in range(AT_ONCE):
            slots.create_task(one_after_the_other())
    return calls


def ended(site: LiveSite, calls: dict[str, bool]) -> None:
    """Wait until calls are over for the daemon too, and check how they ended."""
    for line in site.ended(list(calls)):
        assert (line["reason"], line["filled_s"]) == ("hangup", 0.0)
        assert line["finals"] or not calls[line["call_id"]]
    site.over(list(calls))
    site.forget_lines()


def test_calls_that_come_and_go_leave_nothing_behind(site: LiveSite) -> None:
    rng = np.random.default_rng(20)
    voices = [
        speech("helpline-distress", "caller", LONGEST_S),
        speech("support-billing", "agent", LONGEST_S),
        speech("silent-stretch", "agent", LONGEST_S),
        np.zeros(int(LONGEST_S * LIVE_RATE), np.int16),
    ]
    began = time.monotonic()
    # The first wave starts what is only started once: threads, connections, models.
    ended(site, asyncio.run(wave(site, voices[:3], rng)))
    readings = [held(site, began)]
    num_calls = 0
    while len(readings) < 4 or time.monotonic() < began + SOAK_S:
        calls = asyncio.run(wave(site, voices, rng))
        ended(site, calls)
        num_calls += len(calls)
        readings.append(held(site, began))
    warm = [each for each in readings if each.at_s >= WARM_UP * readings[-1].at_s]
    times_s = [each.at_s for each in warm]
    slopes = {
        name: slope(times_s, [getattr(each, name) for each in warm])
        for name in ("rss", "engine_rss", "blocks")
    }
    for each in readings:
        print(" ".join(f"{name}={value}" for name, value in asdict(each).items()))
    print(f"calls={num_calls}", " ".join(f"{n}_per_h={s:.0f}" for n, s in slopes.items()))

    hours = (times_s[-1] - times_s[0]) / 3600
    is_long = hours >= LONG_H
    for name in ("rss", "engine_rss") if is_long else ("rss",):
        assert slopes[name] * hours <= MAX_SLOPE * hours + NOISE * (not is_long), name
    first, last = readings[0], readings[-1]
    assert last.tasks == first.tasks
    assert last.descriptors <= first.descriptors
    assert last.engine_descriptors <= first.engine_descriptors
    # A thread that waits for work is no leak; asyncio's pool begins as many as these at most.
    assert last.threads <= first.threads + (os.cpu_count() or 1) + 4
    assert last.engine_threads <= first.engine_threads
