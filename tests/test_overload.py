"""Many legs on a decoder that is too slow, in virtual time: nothing here reads a clock.

Legs, endpointing and the queue are the real ones; what a decode costs is in a table.
"""

import asyncio
import heapq
import itertools
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

from callcore.decode_jobs import Job
from callcore.engines import LIVE_RATE, DecodeJob, bucket_s
from callcore.engines.scripted import ScriptedDetector, ScriptedLiveTranscriber
from callcore.inference import EngineSpec
from callcore.recognizer import Recognizer
from callcore.recognizer_config import RecognizerConfig
from callcore.ringbuffer import RingBuffer
from tests.support.recognition import Listener, audio

#: Milliseconds of one thread, measured with tiny.en in int8 on a two-core machine
#: (docs/measurements.md): the encoder by seconds of window, a token by jobs in the batch.
ENCODER_MS = {2.0: 5.0, 4.0: 10.0, 6.0: 16.0, 8.0: 23.0, 10.0: 31.0, 12.0: 40.0, 15.0: 56.0}
TOKEN_MS = {1: 3.2, 2: 1.85, 3: 1.4, 4: 1.12}
#: Word times of a final, and a second decode of a doubtful one.
ALIGN_MS, REDO_MS = 15.0, 90.0
TOKENS_PER_S, SILENCE_TOKENS = 3.5, 4

TICK_S = RecognizerConfig().tick_s
FRAME = round(TICK_S * LIVE_RATE)


def decode_s(jobs: list[DecodeJob]) -> float:
    """Return what a batch costs: a job that is short is doubtful."""
    window_s = bucket_s(max(len(job.samples) for job in jobs))
    tokens = max(SILENCE_TOKENS + TOKENS_PER_S * job.speech_s for job in jobs)
    ms = len(jobs) * (ENCODER_MS[window_s] + tokens * TOKEN_MS[len(jobs)])
    for job in jobs:
        ms += ALIGN_MS * job.words
        ms += REDO_MS * (job.words and job.redo and job.speech_s < 1.0)
    return ms / 1000


class Machine:
    """Engines whose answers come when their cost has passed.

    Args:
        slowness: Factor of what a decode costs.
        threads: Decodes at once.
    """

    def __init__(self, slowness: float, threads: int = 1) -> None:
        live = EngineSpec("live", {}, threads)
        self.engines = {"vad": EngineSpec("vad"), "live": live, "live_multilingual": live}
        self.now = 1000.0
        self.pid = 1
        self.slowness = slowness
        self.busy_s = 0.0
        self.jobs: list[DecodeJob] = []
        self._objects = {"vad": ScriptedDetector(), "live": ScriptedLiveTranscriber()}
        self._open: list[tuple[float, int, Future[Any], Any]] = []
        self._turns = itertools.count()

    def call(self, engine: str, method: str, *args: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        answer = getattr(self._objects[engine], method)(*args)
        cost_s = decode_s(args[0]) * self.slowness if method == "decode" else 0.0
        self.busy_s += cost_s
        if method == "decode":
            self.jobs += args[0]
        heapq.heappush(self._open, (self.now + cost_s, next(self._turns), future, answer))
        return future

    def kill(self) -> None:
        raise AssertionError("the machine always answers")

    async def run(self, until: float) -> None:
        """Let time pass."""
        while self._open and self._open[0][0] <= until:
            self.now, _, future, answer = heapq.heappop(self._open)
            future.set_result(answer)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        self.now = until


def talk(rng: np.random.Generator, seconds: float) -> np.ndarray:
    """Return one side of a conversation: utterances of 0.3 to 6 s, half of the time."""
    words = itertools.count(1001)
    pieces: list[tuple[int, float]] = [(0, rng.uniform(0.1, 4.0))]
    while (spoken_s := sum(each for _, each in pieces)) < seconds - 7.0:
        for _ in range(int(rng.integers(1, 14))):
            pieces += [(next(words), rng.uniform(0.2, 0.5)), (0, rng.uniform(0.03, 0.1))]
        pieces.append((0, rng.uniform(0.6, 4.5)))
    return audio([*pieces, (0, max(0.0, seconds - spoken_s))])[: round(seconds * LIVE_RATE)]


class Report:
    """What came of a simulation."""

    def __init__(self, machine: Machine, legs: list["SimulatedLeg"], levels: list[int]) -> None:
        self.busy_s = machine.busy_s
        self.jobs = machine.jobs
        self.levels = levels
        """Of the load at each tick while people talked."""
        samples = np.concatenate([leg.samples for leg in legs])
        self.speech_s = np.count_nonzero(samples) / LIVE_RATE
        self.latencies = sorted(each for leg in legs for each in leg.listener.latencies)

    def latency(self, percent: int) -> float:
        return self.latencies[min(len(self.latencies) - 1, len(self.latencies) * percent // 100)]


class SimulatedLeg:
    """A leg that is played as fast as the machine's clock goes."""

    def __init__(self, recognizer: Recognizer, samples: np.ndarray) -> None:
        self.samples = samples
        self.listener = Listener()
        # A ring shorter than the longest wait: late finals are read from the spill.
        self.ring = RingBuffer(16 * LIVE_RATE)
        self.recognition = recognizer.open_leg(
            self.ring,
            self.listener,
            language="en",
            spill=lambda start, end: samples[start:end],
        )

    @property
    def said(self) -> list[str]:
        levels = [int(level) for level, _ in itertools.groupby(self.samples) if level]
        return [f"w{level}" for level in levels]


async def simulate(
    slowness: float,
    *,
    legs: int = 16,
    seconds: float = 26.0,
    seed: int = 1,
    config: RecognizerConfig | None = None,
) -> Report:
    """Play the legs on the machine; every word must come once and in order."""
    machine = Machine(slowness)
    recognizer = Recognizer(machine, clock=lambda: machine.now, config=config)
    queue = recognizer._queue
    rng = np.random.default_rng(seed)
    played = [SimulatedLeg(recognizer, talk(rng, seconds)) for _ in range(legs)]

    async def tick() -> None:
        await machine.run(machine.now + TICK_S)
        recognizer.tick()
        await machine.run(machine.now)
        if queue.fetches:
            await asyncio.gather(*queue.fetches)

    begin, levels = machine.now, list[int]()
    for start in range(0, round(seconds * LIVE_RATE), FRAME):
        for leg in played:
            leg.ring.append(leg.samples[start : start + FRAME].tobytes())
        await tick()
        levels.append(queue.lanes["live"].load.level)
    ends = [asyncio.create_task(leg.recognition.finish()) for leg in played]
    while not all(task.done() for task in ends):
        await tick()
        assert machine.now - begin < 20 * seconds, "finals never come"
    for leg in played:
        assert leg.listener.words == leg.said
    assert not len(queue._waiting)
    return Report(machine, played, levels)


#: So much slower than the table, 16 legs take all of a decoder, partials included.
FULL = 1.7


async def test_up_to_half_load_finals_are_there_when_the_endpoint_is():
    report = await simulate(FULL / 2)
    assert report.latency(95) <= 0.6


async def test_at_half_load_full_batches_and_chance_shed_nothing():
    # Few legs on a slow machine: four finals together take 0.4 s, all that waits waits for them.
    seconds, legs = 40.0, 9
    for seed in (1, 2):
        report = await simulate(1.6, legs=legs, seconds=seconds, seed=seed)
        assert 0.45 <= report.busy_s / seconds <= 0.65
        assert set(report.levels) == {0}
        partials = sum(not job.words for job in report.jobs)
        assert partials >= 1.2 * report.speech_s


async def test_at_nine_tenths_of_the_load_finals_are_in_time():
    report = await simulate(0.9 * FULL)
    assert report.latency(95) <= 1.5


def in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Serve jobs first come, first served."""
    monkeypatch.setattr(Job, "order", property(lambda job: (0, job.since)))


async def test_with_a_third_too_much_finals_come_before_those_of_one_line_that_sheds_as_well(
    monkeypatch: pytest.MonkeyPatch,
):
    served = await simulate(1.3 * FULL)
    in_turn(monkeypatch)
    assert served.latency(95) < (await simulate(1.3 * FULL)).latency(95)


async def test_at_twice_the_load_no_final_is_lost_and_they_come_before_those_of_one_line(
    monkeypatch: pytest.MonkeyPatch,
):
    served = await simulate(2 * FULL)
    assert max(served.levels) >= len(RecognizerConfig().partial_intervals_s)
    in_turn(monkeypatch)
    queued = await simulate(2 * FULL, config=RecognizerConfig(overloaded_s=float("inf")))
    assert served.latency(95) < 0.75 * queued.latency(95)


async def test_where_finals_alone_are_twice_too_much_they_are_late_and_all_there():
    seconds = 24.0
    report = await simulate(20.0, seconds=seconds)
    assert report.busy_s >= 2 * seconds
    assert report.latency(95) > 5.0
    assert any(job.words and not job.redo for job in report.jobs)
