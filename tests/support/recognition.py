"""Engines, a listener and an inference without a process, for tests of recognition."""

import asyncio
import itertools
import json
import os
import signal
import threading
import wave
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from callcore import resources
from callcore.engines import LIVE_RATE, Hypothesis
from callcore.engines.scripted import ScriptedDetector, ScriptedLiveTranscriber
from callcore.errors import EngineDied, EngineError
from callcore.inference import EngineSpec
from callcore.inference_wire import ATTRIBUTES
from tests.support.require import missing

MODELS = Path(__file__).parents[2] / "var" / "models"


def model(name: str) -> str:
    """Return the folder of a model, or skip."""
    if not (MODELS / name).is_dir():
        missing(f"model {name} is not in {MODELS}; run `callcore models pull`")
    return str(MODELS / name)


def audio(pattern: Iterator[tuple[int, float]] | list[tuple[int, float]]) -> np.ndarray:
    """Return samples of levels, each held for so many seconds: 0 is silence, else a word."""
    parts = [np.full(round(seconds * LIVE_RATE), level, np.int16) for level, seconds in pattern]
    return np.concatenate([np.zeros(0, np.int16), *parts])


@dataclass
class Listener:
    """Remembers what one leg hears, and checks what always holds."""

    finals: list[tuple[int, int, int, Hypothesis]] = field(default_factory=list)
    partials: list[tuple[int, str, int]] = field(default_factory=list)
    lags: list[str] = field(default_factory=list)
    revised: list[bool] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    losses: list[tuple[int, int]] = field(default_factory=list)

    def partial(self, utterance: int, start: int, end: int, text: str, stable: int) -> None:
        assert utterance >= len(self.finals), "a partial after its final"
        assert stable <= len(text.split())
        self.partials.append((utterance, text, stable))

    def final(
        self,
        utterance: int,
        start: int,
        end: int,
        hypothesis: Hypothesis,
        latency: float,
        revised: bool,
    ) -> None:
        assert utterance == len(self.finals), "finals come once and in order"
        assert not self.finals or self.finals[-1][2] <= start, "utterances overlap"
        self.finals.append((utterance, start, end, hypothesis))
        self.latencies.append(latency)
        self.revised.append(revised)

    def lost(self, start: int, end: int, reason: str) -> None:
        self.losses.append((start, end))

    def lag(self, lag_s: float, state: str) -> None:
        self.lags.append(state)

    @property
    def words(self) -> list[str]:
        return [word for *_, final in self.finals for word in final.text.split()]

    @property
    def spans(self) -> list[tuple[int, int, str]]:
        return [(start, end, final.text) for _, start, end, final in self.finals]


class FakeInference:
    """Scripted engines without a process: a test answers calls in any order, or lets it die.

    Calls wait in ``open`` until ``answer`` or ``die``.
    """

    def __init__(self, *, threads: int = 1, live: Any = None, max_batch: int | None = None) -> None:
        self.engines: Mapping[str, EngineSpec] = {
            "vad": EngineSpec("vad"),
            "live": EngineSpec("live", {}, threads, max_batch),
            "live_multilingual": EngineSpec("multilingual", {}, threads, max_batch),
        }
        self.live = live or ScriptedLiveTranscriber()
        self.objects = {
            "vad": ScriptedDetector(),
            "live": self.live,
            "live_multilingual": self.live,
        }
        self.open: list[tuple[Future[Any], str, str, tuple[Any, ...]]] = []
        self.kills = 0
        self.pid: int | None = 1
        self.stopped = False
        """Whether calls stay open, as with a stopped process."""
        self.batches: list[int] = []

    def call(self, engine: str, method: str, *args: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        self.open.append((future, engine, method, args))
        if method == "decode":
            self.batches.append(len(args[0]))
        return future

    def answer(self, index: int = 0) -> None:
        future, engine, method, args = self.open.pop(index)
        try:
            future.set_result(
                {} if method == ATTRIBUTES else getattr(self.objects[engine], method)(*args)
            )
        except Exception as error:
            future.set_exception(error)

    def die(self) -> None:
        lost, self.open = self.open, []
        self.pid = (self.pid or 0) + 1
        for future, engine, *_ in lost:
            future.set_exception(EngineDied(engine, "its process died"))

    def kill(self) -> None:
        self.kills += 1
        self.stopped = False
        self.die()

    async def settle(self, engine: str | bool) -> None:
        """Answer calls in order until there are none; only those of an engine if it is named."""
        for _ in range(10_000):
            await asyncio.sleep(0)
            due = [i for i, each in enumerate(self.open) if engine in (True, each[1])]
            if not due or self.stopped:
                return
            self.answer(due[0])
        raise AssertionError("calls without end")


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


# Engines for a real inference process.


class Echo:
    """Gives back what it gets."""

    name = "echo"

    def __init__(self, suffix: str = "") -> None:
        self.suffix = suffix
        self.loads = next(_loads)

    def same(self, value: Any) -> Any:
        return value

    def thread(self) -> int:
        return threading.get_ident()

    def pid(self) -> int:
        return os.getpid()

    def niceness(self) -> int:
        return os.nice(0)

    def count(self, num: int, wait_at: int = -1, gate: str = "") -> Iterator[int]:
        for i in range(num):
            if i == wait_at:
                wait_for(gate)
            yield i

    def count_and_tell(self, path: str) -> Iterator[int]:
        """Count until the caller stops listening; then write how far it came."""
        i = 0
        try:
            for i in itertools.count():
                yield i
        finally:
            Path(path).write_text(str(i))

    def fail(self) -> None:
        raise KeyError("words of a call")

    def refuse(self) -> None:
        raise EngineError("echo", "no")

    def wait(self, gate: str, ready: str = "") -> str:
        """Return once the file ``gate`` exists; makes the file ``ready`` before."""
        if ready:
            Path(ready).touch()
        wait_for(gate)
        return "done"

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


_loads = itertools.count(1)


class Broken:
    """Cannot be loaded."""

    def __init__(self) -> None:
        raise RuntimeError("there is no model")


class Late(Echo):
    """Can be loaded once a file is there."""

    def __init__(self, file: str) -> None:
        if not Path(file).exists():
            raise RuntimeError("there is no model")
        super().__init__()

    def loaded(self) -> int:
        return self.loads


def wait_for(path: str) -> None:
    """Block until a file exists: the engine's side of an event between processes."""
    pause = threading.Event()
    while not Path(path).exists():
        pause.wait(0.005)


# Sounds that are no speech, at 8 kHz.


def non_speech() -> dict[str, np.ndarray]:
    """Return 12 s each of silence, ringback, busy, DTMF, noise and instrumental music."""
    time = np.arange(12 * LIVE_RATE) / LIVE_RATE
    rng = np.random.default_rng(7)

    def tone(*hertz: float) -> np.ndarray:
        return sum(np.sin(2 * np.pi * each * time) for each in hertz) / len(hertz)

    chords = [(262, 330, 392), (220, 262, 330), (175, 220, 262), (196, 247, 294)]
    bar = (time / 0.75).astype(int) % len(chords)
    pluck = np.exp(-4 * (time % 0.375))
    sounds = {
        "silence": np.zeros(len(time)),
        "ringback": tone(440, 480) * (time % 6 < 2) * 0.3,
        "busy": tone(480, 620) * (time % 1 < 0.5) * 0.3,
        "dtmf": tone(770, 1336) * (time % 0.8 < 0.2) * 0.3,
        "noise": rng.normal(0, 0.01, len(time)),
        "loud noise": rng.normal(0, 0.1, len(time)),
        "music": sum(tone(*chord) * (bar == i) for i, chord in enumerate(chords)) * pluck * 0.4,
    }
    return {name: np.int16(32767 * np.clip(each, -1, 1)) for name, each in sounds.items()}


def sample_leg(sample: str, leg: str, turns: int) -> tuple[np.ndarray, str]:
    """Return the first turns of one leg of a sample call, at 8 kHz, and its words."""
    folder = resources.path("samples")
    truth = json.loads((folder / f"{sample}.json").read_text("utf-8"))
    kept = [turn for turn in truth["turns"] if turn["leg"] == leg][:turns]
    with wave.open(str(folder / f"{sample}.wav")) as file:
        frames = file.readframes(int((kept[-1]["end"] + 0.5) * LIVE_RATE))
    channel = truth["channels"].index(leg)
    samples = np.frombuffer(frames, "<i2").reshape(-1, len(truth["channels"]))[:, channel]
    return samples.copy(), " ".join(turn["text"] for turn in kept)
