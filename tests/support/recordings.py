"""Recordings to put through the chain, and parts that need no models and no broker."""

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from callcore import settings, tables
from callcore.audio import WavWriter
from callcore.bus import MemoryBus
from callcore.calls import SETTLE
from callcore.chain import Chain
from callcore.engines import TranscribedSegment
from callcore.errors import EngineError
from callcore.jobs import QUEUES, queue_of
from callcore.ledger import _is_due
from callcore.results import Word
from callcore.settings import Settings
from callcore.storage import Storage


def make_settings(state: Path, **given: object) -> Settings:
    """Return settings whose folders lie under ``state``; files count as complete at once."""
    environ = {
        "STATE_DIR": state,
        "SETTLE_S": 0,
        "CAPTURE_WAIT_S": 30,
        "LEASE_S": 30,
        "STEPS": "transcribe",
        "SPEAKER_TURNS": "off",
        **given,
    }
    return settings.load({f"CALLCORE_{k.upper()}": str(v) for k, v in environ.items()})


def tone(seconds: float, pitch: float = 440.0, rate: int = 8000) -> bytes:
    """Return int16 samples of a tone; another pitch is another recording."""
    at = np.arange(round(seconds * rate)) / rate
    return (8000 * np.sin(2 * np.pi * pitch * at)).astype("<i2").tobytes()


def write_wav(
    path: Path, seconds: float = 1.0, pitch: float = 440.0, num_channels: int = 1
) -> Path:
    """Write a WAV file; of two channels each has its own pitch."""
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = [np.frombuffer(tone(seconds, pitch * (n + 1)), "<i2") for n in range(num_channels)]
    with WavWriter(path, 8000, num_channels) as writer:
        writer.write(np.stack(channels, axis=1).tobytes())
    return path


def write_unfinished_wav(path: Path, seconds: float = 1.0) -> Path:
    """Write what a killed writer leaves: sizes of zero in the header."""
    write_wav(path, seconds)
    content = bytearray(path.read_bytes())
    content[4:8] = content[40:44] = b"\0\0\0\0"
    path.write_bytes(content)
    return path


@dataclass
class FakeEngines:
    """Answers ``transcribe`` with one segment a call, in this process."""

    fail_times: int = 0
    """So many calls fail first."""
    calls: list[int] = field(default_factory=list)
    """Samples of each call."""
    entered: threading.Event = field(default_factory=threading.Event)
    proceed: threading.Event | None = None
    """When given: a call waits for it."""

    def call(self, engine: str, method: str, *args: Any) -> Any:
        raise EngineError(engine, "there is none")

    def stream(self, engine: str, method: str, *args: Any) -> Iterator[Any]:
        samples, language = args[:2]
        self.calls.append(len(samples))
        self.entered.set()
        if self.proceed is not None:
            assert self.proceed.wait(30)
        if len(self.calls) <= self.fail_times:
            raise EngineError(engine, "its process died")
        words = (Word("hello", 0.1, 0.4, 0.9), Word("there.", 0.5, 0.9, 0.8))
        yield TranscribedSegment(0.1, 0.9, "hello there.", words, language or "en", -0.2, 0.01)

    def attributes(self, engine: str, *names: str) -> dict[str, Any]:
        known = {"name": "fake", "model": "none", "version": "1", "parameters": {"beam_size": 5}}
        return {name: known[name] for name in names}


@dataclass
class FakeWaker:
    """Remembers who was woken."""

    woken: list[tuple[str, str]] = field(default_factory=list)
    waiting: dict[str, int] | None = field(default_factory=lambda: dict.fromkeys(QUEUES, 0))
    queues: dict[str, list[str]] = field(default_factory=lambda: {each: [] for each in QUEUES})
    """The recordings of the messages, by queue."""

    def wake(self, step: str, audio_id: str, backfill: bool = False) -> bool:
        self.woken.append((step, audio_id))
        self.queues[queue_of(step, backfill)].append(audio_id)
        return True

    def backlog(self) -> dict[str, int] | None:
        return self.waiting


@dataclass
class Works:
    """A chain with fakes around it."""

    storage: Storage
    settings: Settings
    engines: FakeEngines = field(default_factory=FakeEngines)
    bus: MemoryBus = field(default_factory=MemoryBus)
    waker: FakeWaker = field(default_factory=FakeWaker)

    def __post_init__(self) -> None:
        self.chain = Chain(self.storage, self.settings, self.bus, self.engines, self.waker)

    def run(self) -> None:
        """Run everything that is due now, and what that releases."""
        while due := self._due():
            for audio_id, step in due:
                if step == SETTLE:
                    self.chain.settle(audio_id)
                else:
                    self.chain.run_step(step, audio_id)

    def _due(self) -> list[tuple[str, str]]:
        query = tables.Job.select().where(_is_due(self.storage.clock()))
        return [(row["recording"], row["step"]) for row in self.storage.database.all(query)]

    def events(self) -> list[str]:
        """Return the types of all events with their steps."""
        return [f"{each.type} {each.fields.get('step')}" for each in self.bus.events]

    def files(self) -> list[str]:
        """Return the files in the audio folder."""
        folder = self.settings.audio_dir
        found = (Path(at) / name for at, _, names in os.walk(folder) for name in names)
        return sorted(str(each.relative_to(folder)) for each in found)
