"""The live daemon with real Whisper and a real broker, and legs whose samples are known exactly."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid as uuids
import wave
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import redis

from callcore import bus, intake, resources
from callcore.audiosocket import Kind, encode
from callcore.calls import CallFacts
from callcore.engines import LIVE_RATE, DecodeJob, Hypothesis
from callcore.engines.live_whisper import LiveWhisper
from callcore.settings import Address, load, parse_address
from callcore.storage import Storage
from tests.support.recognition import MODELS, model
from tests.support.signals import as_from_a_shell
from tests.support.valkey import ROOT, Valkey, require_program

#: Bound of every wait; nothing here is expected to take a tenth of it.
PATIENCE_S = 240.0

#: Samples of a frame of 20 ms.
FRAME = 160

#: Samples that are sent at once: five frames, so that many legs cost a player little.
_BURST = 5 * FRAME

_COMMAND = ("callcore.cli", "audiosocket")


class EvenWhisper(LiveWhisper):
    """The live engine with the one thing left out that changes finals under load: every doubtful
    final is decoded again, however much waits."""

    def decode(self, jobs: list[DecodeJob]) -> list[Hypothesis]:
        return super().decode([replace(job, redo=True) for job in jobs])


@dataclass(frozen=True, slots=True)
class Final:
    """A final as it was stored, in seconds from the start of its leg."""

    start: float
    end: float
    text: str


class LiveSite:
    """``callcore audiosocket`` and ``callcore broker`` in a folder of their own.

    Nothing runs after the call, and no leg is refused for its load.

    Args:
        folder: Its state folder; short, because a socket's path is limited.
        command: Module and arguments that run the daemon.
        **settings: Settings by their lower-case names.
    """

    def __init__(self, folder: Path, command: tuple[str, ...] = _COMMAND, **settings: str) -> None:
        require_program()
        model("tiny.en")
        values = {
            "audiosocket_bind": "127.0.0.1:0",
            "daemon_name": "daemon-1",
            "language": "en",
            "live_max_load": "100",
            "live_model": "tiny.en",
            "live_model_multilingual": "tiny.en",
            "live_threads": "1",
            "live_transcriber": "tests.support.live_site:EvenWhisper",
            "log_format": "json",
            "models_dir": str(MODELS),
            **settings,
        }
        self.environ = {k: v for k, v in os.environ.items() if not k.startswith("CALLCORE_")} | {
            "CALLCORE_STATE_DIR": str(folder),
            **{f"CALLCORE_{name.upper()}": value for name, value in values.items()},
        }
        self.settings = load(self.environ)
        self.storage = Storage(self.settings.database_url)
        self.lines: list[dict[str, Any]] = []
        """What the daemon has logged."""
        self._command = command
        self._appending = threading.Lock()
        self._valkey = Valkey(folder)
        self._redis = redis.Redis.from_url(self._valkey.url)

    def __enter__(self) -> "LiveSite":
        self.storage.migrate()
        self._valkey.start()
        self._process = subprocess.Popen(
            [sys.executable, "-m", *self._command],
            env=self.environ,
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=as_from_a_shell,
        )
        self.daemon = psutil.Process(self._process.pid)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.address: Address = parse_address(self.logged("listening")[0]["address"])
        return self

    def __exit__(self, *exception: object) -> None:
        if (engine := self.engine()) is not None:
            engine.send_signal(signal.SIGCONT)
        self._process.terminate()
        try:
            self._process.wait(60)
        finally:
            self._process.kill()
            self._process.wait()
            self._reader.join()
            self._redis.close()
            self._valkey.kill()
            self.storage.close()

    def engine(self) -> psutil.Process | None:
        """Return the inference process, None while there is none."""
        try:
            children = self.daemon.children()
            return next(c for c in children if "callcore.inference_child" in c.cmdline())
        except (StopIteration, psutil.NoSuchProcess):
            return None

    def wait(self, what: str, answer: Callable[[], Any]) -> Any:
        """Return the first true value of ``answer``; fail when it does not come in time."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            if value := answer():
                return value
            assert self._process.poll() is None, f"the daemon ended with {self._process.poll()}"
            # Polling another process's state: there is no event of it to wait for.
            time.sleep(0.02)
        said = Counter(line["message"] for line in self.lines)
        raise AssertionError(f"waited {PATIENCE_S:g} s for: {what}; {said}; {self.lines[-10:]}")

    def logged(self, message: str, count: int = 1) -> list[dict[str, Any]]:
        """Return the log lines with this message once there are so many."""

        def found() -> list[dict[str, Any]]:
            lines = [line for line in self.lines if line["message"] == message]
            return lines if len(lines) >= count else []

        lines: list[dict[str, Any]] = self.wait(f"{count} lines {message!r}", found)
        return lines

    def register(self, call_id: str) -> str:
        """Announce a call of one leg and return the leg's UUID."""
        uuid = str(uuids.uuid4())
        intake.register_leg(self.storage, uuid, CallFacts(call_id=call_id, leg="caller"))
        return uuid

    def ended(self, call_ids: list[str]) -> list[dict[str, Any]]:
        """Return what the daemon logged about the legs of calls, once all of them have ended."""

        def found() -> list[dict[str, Any]]:
            lines = {line["call_id"]: line for line in self.lines if line["message"] == "leg ended"}
            return [lines[each] for each in call_ids] if lines.keys() >= set(call_ids) else []

        lines: list[dict[str, Any]] = self.wait("the ends of all legs", found)
        return lines

    def finals(self, call_id: str) -> list[Final]:
        """Return what is stored of a call, ordered by start."""
        segments = self.storage.live_segments(call_id)
        numbers = [each.segment for each in segments]
        assert len(numbers) == len(set(numbers))
        return [Final(round(s.start, 3), round(s.end, 3), s.text) for s in segments]

    def shown(self, call_id: str) -> list[dict[str, Any]]:
        """Return the events of a call's room, once its end is there."""

        def found() -> list[dict[str, Any]]:
            entries: Any = self._redis.xrange(bus.room(call_id))
            events = [json.loads(entry[b"event"]) for _, entry in entries]
            return events if any(each["type"] == "leg.ended" for each in events) else []

        events: list[dict[str, Any]] = self.wait("the events of a call", found)
        return events

    def over(self, call_ids: list[str]) -> None:
        """Return once the daemon has ended the calls, a while after their last legs."""

        def found() -> bool:
            over = {line["call_id"] for line in self.lines if line["message"] == "call ended"}
            return over >= set(call_ids)

        self.wait("the ends of all calls", found)

    def captured(self, uuid: str) -> int:
        """Return how many samples of a live leg are on disk."""
        path = self.settings.audio_dir / "capture" / f"{uuid}.wav"
        return (path.stat().st_size - 44) // 2 if path.exists() else 0

    def forget_lines(self) -> None:
        """Drop what was logged so far: of an hour it is much to look through."""
        with self._appending:
            self.lines.clear()

    def _read(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as pipe:
            for line in pipe:
                with self._appending:
                    self.lines.append(json.loads(line))


async def play(
    address: Address, uuid: str, samples: np.ndarray, *, rate: float = 1.0, lead_s: float = 3.0
) -> None:
    """Send a leg and hang up.

    The audio comes ahead of the clock, so that the daemon never takes a late sender for silence:
    the leg is these samples and nothing else, however busy the machine is.

    Args:
        address: Of the daemon.
        uuid: The leg's.
        samples: Shape (n,), int16, 8 kHz.
        rate: How many times faster than real time.
        lead_s: Seconds of audio that are sent at once.
    """
    reader, writer = await asyncio.open_connection(address.host, address.port)
    dropping = asyncio.create_task(_drop_all(reader))
    loop = asyncio.get_running_loop()
    began = loop.time()
    writer.write(encode(Kind.UUID, uuids.UUID(uuid).bytes))
    for at in range(0, len(samples), _BURST):
        due = began + (at / LIVE_RATE - lead_s) / rate
        await asyncio.sleep(max(0.0, due - loop.time()))
        for start in range(at, min(at + _BURST, len(samples)), FRAME):
            writer.write(encode(Kind.SLIN, samples[start : start + FRAME].tobytes()))
        await writer.drain()
    # What the daemon says to a closed socket would reset it: what it has not read yet were lost.
    writer.write_eof()
    async with asyncio.timeout(PATIENCE_S):
        await dropping
    writer.close()
    await writer.wait_closed()


async def _drop_all(reader: asyncio.StreamReader) -> None:
    while await reader.read(65536):
        pass


def speech(sample: str, leg: str, seconds: float, pause_s: float = 0.8) -> np.ndarray:
    """Return whole turns of one leg of a sample call, without what the other one says.

    The turns come again where the call is too short.

    Args:
        sample: Its name.
        leg: ``caller`` or ``agent``.
        seconds: Length; silence follows the last turn that fits.
        pause_s: Silence after each turn.

    Returns:
        Shape (seconds * 8000,), int16.
    """
    folder = resources.path("samples")
    truth = json.loads((folder / f"{sample}.json").read_text("utf-8"))
    with wave.open(str(folder / f"{sample}.wav")) as file:
        frames = file.readframes(file.getnframes())
    channel = truth["channels"].index(leg)
    heard = np.frombuffer(frames, "<i2").reshape(-1, len(truth["channels"]))[:, channel]
    turns = [
        np.pad(
            heard[round(turn["start"] * LIVE_RATE) : round(turn["end"] * LIVE_RATE)],
            (0, round(pause_s * LIVE_RATE)),
        )
        for turn in truth["turns"]
        if turn["leg"] == leg
    ]
    samples = np.zeros(round(seconds * LIVE_RATE), np.int16)
    at, number = 0, 0
    while at + len(turn := turns[number % len(turns)]) <= len(samples):
        samples[at : at + len(turn)] = turn
        at, number = at + len(turn), number + 1
    assert number, f"{seconds:g} s are too short for the first turn"
    return samples
