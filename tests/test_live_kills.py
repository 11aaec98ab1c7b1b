"""The inference process killed, stopped and overrun under live calls: no word lost, none doubled.

Through the daemon's socket, with real Whisper and a real broker. What a leg's finals are is known
before: the same samples, sent to an undisturbed daemon. ``make nightly`` runs the full sizes.
"""

import asyncio
import contextlib
import functools
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import psutil
import pytest

from callcore.calls import LegState
from callcore.engines import LIVE_RATE
from tests.support.live_site import Final, LiveSite, play, speech

pytestmark = [pytest.mark.slow, pytest.mark.model, pytest.mark.redis]

VOICES = (
    ("helpline-distress", "caller"),
    ("support-billing", "caller"),
    ("silent-stretch", "agent"),
)


@dataclass(frozen=True, slots=True)
class Size:
    """How much of a proof is run."""

    calls: int
    seconds: float
    """Of each call."""
    every_s: float
    """Seconds between two kills, or for which a process is stopped."""


@dataclass(slots=True)
class Expected:
    """What undisturbed calls were heard as."""

    finals: list[list[Final]]
    """Of each voice."""
    cost: float
    """CPU seconds of the inference process per second of audio."""


Undisturbed = Callable[[float], Expected]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveSite]:
    with LiveSite(tmp_path_factory.mktemp("s")) as running:
        # Its first answer: from then on it has its models.
        hear(running, 7.5)
        yield running


@pytest.fixture(scope="module")
def undisturbed(site: LiveSite) -> Undisturbed:
    return functools.cache(lambda seconds: hear(site, seconds))


def say(what: str, **figures: object) -> None:
    """Print what was measured: ``pytest -rP`` shows it."""
    print(what, " ".join(f"{name}={value}" for name, value in figures.items()))


def cpu_s(site: LiveSite) -> float:
    """Return the CPU seconds that the inference process has used."""
    times = site.wait("the inference process", site.engine).cpu_times()
    return float(times.user + times.system)


def legs_of(site: LiveSite, calls: int, seconds: float) -> tuple[list[str], list[str], list]:
    """Register calls; return their ids, their legs' UUIDs and samples, voice after voice."""
    began = time.monotonic_ns()
    ids = [f"call-{began}-{number}" for number in range(calls)]
    voices = [speech(*voice, seconds) for voice in VOICES]
    return ids, [site.register(each) for each in ids], [voices[i % 3] for i in range(calls)]


async def play_all(
    site: LiveSite, uuids: list[str], samples: list[np.ndarray], **pace: float
) -> None:
    async with asyncio.TaskGroup() as legs:
        for uuid, each in zip(uuids, samples, strict=True):
            legs.create_task(play(site.address, uuid, each, **pace))


def hear(site: LiveSite, seconds: float) -> Expected:
    """Hear each voice once, as fast as it goes, and what that costs."""
    ids, uuids, samples = legs_of(site, len(VOICES), seconds)
    before_s = cpu_s(site)
    # A leg that is a minute ahead of the clock is ended.
    asyncio.run(play_all(site, uuids, samples, lead_s=50.0))
    assert {(each["reason"], each["received_s"]) for each in site.ended(ids)} == {
        ("hangup", seconds)
    }
    cost = (cpu_s(site) - before_s) / (len(ids) * seconds)
    expected = Expected([site.finals(each) for each in ids], cost)
    assert all(len(finals) >= max(1, seconds // 10) for finals in expected.finals), expected.finals
    return expected


def check(site: LiveSite, ids: list[str], samples: list[np.ndarray], expected: Expected) -> None:
    """Check that calls were received whole and that each final is there once, and no other."""
    for number, (call_id, ended, sent) in enumerate(
        zip(ids, site.ended(ids), samples, strict=True)
    ):
        assert (ended["reason"], ended["filled_s"]) == ("hangup", 0.0)
        assert ended["received_s"] == pytest.approx(len(sent) / LIVE_RATE, abs=0.001)
        assert site.storage.call(call_id).legs[0].state is LegState.ENDED
        assert site.finals(call_id) == expected.finals[number % len(VOICES)]
        shown = site.shown(call_id)
        finals = [each for each in shown if each["type"] == "transcript.final"]
        assert Counter(each["segment"] for each in finals) == Counter(
            each.segment for each in site.storage.live_segments(call_id)
        )
        over: set[int] = set()
        for each in shown:
            if each["type"] == "transcript.final":
                over.add(each["segment"])
            assert each["type"] != "transcript.partial" or each["segment"] not in over


@pytest.mark.parametrize(
    "size",
    [
        pytest.param(Size(4, 8, 2), id="8s"),
        pytest.param(Size(6, 60, 5), id="60s", marks=pytest.mark.nightly),
    ],
)
def test_an_inference_process_killed_again_and_again_costs_no_word(
    site: LiveSite, undisturbed: Undisturbed, size: Size
) -> None:
    expected = undisturbed(size.seconds)
    ids, uuids, samples = legs_of(site, size.calls, size.seconds)
    kills = 0

    async def kill_it() -> None:
        nonlocal kills
        while True:
            await asyncio.sleep(size.every_s)
            if (engine := site.engine()) is not None:
                engine.kill()
                kills += 1

    async def run() -> None:
        killing = asyncio.create_task(kill_it())
        await play_all(site, uuids, samples)
        killing.cancel()

    asyncio.run(run())
    check(site, ids, samples, expected)
    assert kills >= 2
    finals = [final for call_id in ids for final in site.finals(call_id)]
    say("killed", calls=size.calls, kills=kills, finals=len(finals), lost=0, doubled=0)


@pytest.mark.parametrize(
    "size",
    [
        pytest.param(Size(3, 8, 3), id="3s"),
        pytest.param(Size(6, 75, 60), id="60s", marks=pytest.mark.nightly),
    ],
)
@pytest.mark.parametrize(
    "next_too", [False, pytest.param(True, marks=pytest.mark.nightly)], ids=["one", "each"]
)
def test_a_stopped_inference_process_holds_no_call_up(
    site: LiveSite, undisturbed: Undisturbed, size: Size, next_too: bool
) -> None:
    """A minute is longer than the daemon waits: it replaces the process, and the next one, too.

    Args:
        site: The daemon.
        undisturbed: What is expected.
        size: How long.
        next_too: Whether what the daemon starts in its place is stopped as well.
    """
    expected = undisturbed(size.seconds)
    ids, uuids, samples = legs_of(site, size.calls, size.seconds)
    stopped: list[psutil.Process] = []

    async def stop() -> None:
        await asyncio.sleep(1.0)
        until = time.monotonic() + size.every_s
        while time.monotonic() < until:
            engine = site.engine()
            if engine is not None and engine not in stopped and (next_too or not stopped):
                engine.suspend()
                stopped.append(engine)
            await asyncio.sleep(0.1)
        # All that was sent is out of the socket: the file is written from what was received.
        sent = int((size.every_s + 1.0) * LIVE_RATE)
        site.wait("every frame", lambda: all(site.captured(each) >= sent for each in uuids))
        for engine in stopped:
            with contextlib.suppress(psutil.NoSuchProcess):
                engine.resume()

    async def run() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(stop())
            tasks.create_task(play_all(site, uuids, samples))

    asyncio.run(run())
    check(site, ids, samples, expected)
    finals = [final for call_id in ids for final in site.finals(call_id)]
    say("stopped", seconds=size.every_s, processes=len(stopped), finals=len(finals), lost=0)


@pytest.mark.nightly
def test_twice_the_work_that_can_be_done_costs_no_final(
    site: LiveSite, undisturbed: Undisturbed
) -> None:
    """Calls come so much faster that the one thread has four times the work that it can do.

    Without the partials, which it does not do then, that is twice as much at least. Every change is
    shown the same without a clock, by ``test_overload``.
    """
    calls, seconds = 12, 50.0
    expected = undisturbed(seconds)
    rate = 4.0 / (expected.cost * calls)
    ids, uuids, samples = legs_of(site, calls, seconds)
    before_s = cpu_s(site)
    asyncio.run(play_all(site, uuids, samples, rate=rate))
    check(site, ids, samples, expected)
    shown = [each for call_id in ids for each in site.shown(call_id)]
    say(
        "overload",
        calls=calls,
        rate=round(rate, 1),
        work=round((cpu_s(site) - before_s) / (seconds / rate), 2),
        finals=sum(each["type"] == "transcript.final" for each in shown),
        lost=0,
        partials=sum(each["type"] == "transcript.partial" for each in shown),
        behind=sum(each.get("state") == "behind" for each in shown),
    )
