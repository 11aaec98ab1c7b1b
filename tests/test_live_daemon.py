"""The daemon as a process: started, stopped, killed."""

import asyncio
import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from callcore import intake, live_daemon
from callcore.audio import decode, wav_needs_repair
from callcore.audiosocket import silence_frame
from callcore.calls import CallFacts, CallState, LegState
from callcore.inference import EngineSpec, InferenceProcess
from callcore.leg_session import NO_TEXT, TEXT_LATER
from callcore.recognizer import RefusedText
from callcore.recognizer_config import RecognizerConfig
from callcore.settings import Address, load, parse_address
from callcore.storage import Storage
from tests.support.live import PATIENCE_S, Wire, new_uuid, on_uvloop, ramp
from tests.support.recognition import MODELS, model, sample_leg


class Process:
    """``callcore audiosocket`` as a process, without recognition and without a broker.

    Args:
        folder: Its state folder.
        **settings: Settings by their lower-case names.
    """

    def __init__(self, folder: Path, **settings: str) -> None:
        self.environ = {k: v for k, v in os.environ.items() if not k.startswith("CALLCORE_")} | {
            "CALLCORE_STATE_DIR": str(folder),
            "CALLCORE_AUDIOSOCKET_BIND": "127.0.0.1:0",
            "CALLCORE_DAEMON_NAME": "daemon-1",
            "CALLCORE_LIVE": "off",
            "CALLCORE_LOG_FORMAT": "json",
            **{f"CALLCORE_{name.upper()}": value for name, value in settings.items()},
        }
        self.settings = load(self.environ)
        self.lines: list[dict[str, Any]] = []

    async def start(self) -> Address:
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "callcore.cli", "audiosocket"),
            env=self.environ,
            stderr=asyncio.subprocess.PIPE,
        )
        return parse_address((await self.until("listening"))["address"])

    async def until(self, message: str) -> dict[str, Any]:
        """Return the next log line with this message."""
        assert self._process.stderr is not None
        async with asyncio.timeout(PATIENCE_S):
            while line := await self._process.stderr.readline():
                self.lines.append(json.loads(line))
                if self.lines[-1]["message"] == message:
                    return self.lines[-1]
        raise AssertionError(f"no line {message!r} in {self.lines[-10:]}")

    async def end(self, signum: signal.Signals) -> int:
        self._process.send_signal(signum)
        async with asyncio.timeout(PATIENCE_S):
            await self._process.communicate()
            return await self._process.wait()


@on_uvloop
async def test_a_stopped_daemon_leaves_every_call_ended_and_every_frame_counted(tmp_path: Path):
    process = Process(tmp_path)
    storage = Storage(process.settings.database_url)
    storage.migrate()
    address = await process.start()
    wire = await Wire.connect(address)
    wire.greet(leg_uuid := new_uuid())
    wire.speak(ramp(0, 16000))
    assert await wire.frame() == silence_frame()
    wire.close()
    ended = await process.until("leg ended")
    assert (ended["frames"], ended["reason"]) == (100, "hangup")
    assert await process.end(signal.SIGTERM) == 0
    call = storage.call(leg_uuid)
    assert (call.state, call.reason) == (CallState.ENDED, "hangup")
    assert len(storage.recordings_of(leg_uuid)) == 1
    storage.close()
    Wire.opened.clear()


@on_uvloop
async def test_a_killed_daemons_calls_are_ended_by_the_next_one_with_their_audio(tmp_path: Path):
    """One that the dialplan announced to nobody, and a stereo stream, which is two legs."""
    process = Process(tmp_path)
    storage = Storage(process.settings.database_url)
    storage.migrate()
    address = await process.start()
    alone, mono = new_uuid(), ramp(0, 16000)
    left = intake.register_leg(storage, new_uuid(), CallFacts(call_id="call-1", leg="stereo"))
    assert left.right_uuid is not None
    sides = {"caller": np.full(8000, 5000, "<i2"), "agent": np.full(8000, -7000, "<i2")}
    stereo = np.stack(list(sides.values()), 1).tobytes()
    wires = []
    for uuid, sound in ((alone, mono), (left.uuid, stereo)):
        wires.append(await Wire.connect(address))
        wires[-1].greet(uuid)
        wires[-1].speak(sound)
    for _ in range(3):
        await process.until("leg started")
    num_bytes = {alone: 32044, left.uuid: 16044, left.right_uuid: 16044}
    async with asyncio.timeout(PATIENCE_S):
        for uuid, size in num_bytes.items():
            path = process.settings.audio_dir / "capture" / f"{uuid}.wav"
            # Another process writes the file: there is no event to wait for. It is longer until the
            # daemon knows that there are two sides.
            while not path.exists() or path.stat().st_size != size:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    await process.end(signal.SIGKILL)
    for wire in wires:
        wire.close()
    live = [leg for call_id in (alone, "call-1") for leg in storage.call(call_id).legs]
    assert [leg.state for leg in live] == [LegState.LIVE] * 3
    await process.start()
    for _ in wires:
        await process.until("call ended")
    assert await process.end(signal.SIGTERM) == 0
    for call_id, num_legs in ((alone, 1), ("call-1", 2)):
        call = storage.call(call_id)
        assert (call.state, call.reason) == (CallState.ENDED, "daemon_lost")
        ends = [(leg.state, leg.reason) for leg in call.legs]
        assert ends == [(LegState.ENDED, "daemon_lost")] * num_legs
    [media] = storage.capture_media(alone)
    assert not wav_needs_repair(media.path)
    assert np.array_equal(heard_in(media.path), np.frombuffer(mono, "<i2"))
    assert len(storage.recordings_of(alone)) == 1
    held = {each.role: each.path for each in storage.capture_media("call-1")}
    for role, samples in sides.items():
        assert np.array_equal(heard_in(held[role]), samples)
    storage.close()
    Wire.opened.clear()


def heard_in(path: Path) -> np.ndarray:
    """Return the samples of a file that are not digital silence."""
    samples = next(decode(path, 8000))
    return np.rint(samples[samples != 0] * 32768).astype("<i2")


@pytest.mark.model
@on_uvloop
async def test_legs_beyond_the_load_are_recorded_and_the_others_keep_their_text(tmp_path: Path):
    model("tiny.en")
    process = Process(
        tmp_path,
        live="on",
        live_max_load="0.1",
        live_threads="1",
        live_model="tiny.en",
        live_model_multilingual="tiny.en",
        language="en",
        models_dir=str(MODELS),
    )
    storage = Storage(process.settings.database_url)
    storage.migrate()
    address = await process.start()
    speech, said = sample_leg("support-billing", "caller", 1)
    wires, uuids = [], []
    for number in range(5):
        uuid = new_uuid()
        intake.register_leg(storage, uuid, CallFacts(call_id=f"call-{number}", leg="caller"))
        wires.append(await Wire.connect(address))
        wires[-1].greet(uuid)
        uuids.append(uuid)
        await process.until("leg started")
    for wire in wires:
        wire.speak(speech.tobytes())
        wire.close()
    for _ in wires:
        await process.until("leg ended")
    assert await process.end(signal.SIGTERM) == 0
    refused = [storage.call(uuid).legs[0].no_text for uuid in uuids]
    busy = NO_TEXT[RefusedText.BUSY] + TEXT_LATER
    assert refused == [None, None, busy, busy, busy]
    texts = [" ".join(each.text for each in storage.live_segments(uuid)) for uuid in uuids]
    assert texts[2:] == [""] * 3
    assert texts[0] == texts[1]
    assert len(texts[0].split()) > len(said.split()) / 2
    assert said not in str(process.lines)
    # Nobody's words are lost: each call has its recording.
    assert all(storage.recordings_of(uuid) for uuid in uuids)
    storage.close()
    Wire.opened.clear()


def test_what_a_leg_costs_is_known_by_its_model():
    never_started = InferenceProcess({"live": EngineSpec("a:B", {}, 1)})
    local = load({"CALLCORE_LIVE_MODEL": "tiny.en", "CALLCORE_LIVE_MAX_LOAD": "0.7"})
    config = live_daemon._recognizer(local, RecognizerConfig(), never_started).config
    assert config.leg_costs == {"live": 0.05, "live_multilingual": 0.12}
    assert (config.remote, config.max_load) == (frozenset(), 0.7)
    url = {"CALLCORE_TRANSCRIPTION_URL": "http://192.0.2.1/v1", "CALLCORE_TRANSCRIPTION_MODEL": "m"}
    config = live_daemon._recognizer(load(url), RecognizerConfig(), never_started).config
    assert config.remote == {"live", "live_multilingual"}
    assert set(config.leg_costs.values()) == {0.2}
    costs = [live_daemon.leg_cost(each) for each in ("/models/my-tiny", "own", "/tiny/small.en")]
    assert costs == [0.05, 0.12, 0.35]


def test_as_many_files_as_the_system_allows_may_be_open():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, before[1]), before[1]))
        live_daemon.raise_file_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
