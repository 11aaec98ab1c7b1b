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
from callcore.leg_session import NO_TEXT
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
async def test_a_killed_daemons_call_is_ended_by_the_next_one_with_its_audio(tmp_path: Path):
    process = Process(tmp_path)
    storage = Storage(process.settings.database_url)
    storage.migrate()
    address = await process.start()
    wire = await Wire.connect(address)
    wire.greet(leg_uuid := new_uuid())
    wire.speak(ramp(0, 16000))
    await process.until("leg started")
    path = process.settings.audio_dir / "capture" / f"{leg_uuid}.wav"
    async with asyncio.timeout(PATIENCE_S):
        # Another process writes the file: there is no event to wait for.
        while not path.exists() or path.stat().st_size < 32044:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    await process.end(signal.SIGKILL)
    wire.close()
    assert storage.call(leg_uuid).state is CallState.LIVE
    await process.start()
    await process.until("call ended")
    assert await process.end(signal.SIGTERM) == 0
    call = storage.call(leg_uuid)
    assert (call.state, call.reason) == (CallState.ENDED, "daemon_lost")
    [media] = storage.capture_media(leg_uuid)
    assert not wav_needs_repair(media.path)
    samples = next(decode(media.path, 8000))
    assert np.array_equal(
        np.rint(samples[samples != 0] * 32768).astype("<i2"), np.frombuffer(ramp(0, 16000), "<i2")
    )
    assert len(storage.recordings_of(leg_uuid)) == 1
    storage.close()
    Wire.opened.clear()


@on_uvloop
async def test_both_legs_of_a_stereo_stream_outlive_their_killed_daemon(tmp_path: Path):
    process = Process(tmp_path)
    storage = Storage(process.settings.database_url)
    storage.migrate()
    address = await process.start()
    left = intake.register_leg(storage, new_uuid(), CallFacts(call_id="call-1", leg="stereo"))
    assert left.right_uuid is not None
    wire = await Wire.connect(address)
    wire.greet(left.uuid)
    sides = {"caller": np.full(8000, 5000, "<i2"), "agent": np.full(8000, -7000, "<i2")}
    wire.speak(np.stack(list(sides.values()), 1).tobytes())
    for _ in sides:
        await process.until("leg started")
    folder = process.settings.audio_dir / "capture"
    async with asyncio.timeout(PATIENCE_S):
        for uuid in (left.uuid, left.right_uuid):
            path = folder / f"{uuid}.wav"
            # Another process writes the file: there is no event to wait for.
            while not path.exists() or path.stat().st_size < 16044:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    await process.end(signal.SIGKILL)
    wire.close()
    assert {leg.state for leg in storage.call("call-1").legs} == {LegState.LIVE}
    await process.start()
    await process.until("call ended")
    assert await process.end(signal.SIGTERM) == 0
    call = storage.call("call-1")
    assert [(leg.state, leg.reason) for leg in call.legs] == [(LegState.ENDED, "daemon_lost")] * 2
    held = {each.role: each.path for each in storage.capture_media("call-1")}
    for role, samples in sides.items():
        heard = np.rint(next(decode(held[role], 8000)) * 32768)
        assert np.array_equal(heard[heard != 0], samples)
    storage.close()
    Wire.opened.clear()


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
    assert refused == [None, None, NO_TEXT, NO_TEXT, NO_TEXT]
    texts = [" ".join(each.text for each in storage.live_segments(uuid)) for uuid in uuids]
    assert texts[2:] == [""] * 3
    assert texts[0] == texts[1]
    assert len(texts[0].split()) > len(said.split()) / 2
    assert said not in str(process.lines)
    # Nobody's words are lost: each call has its recording.
    assert all(storage.recordings_of(uuid) for uuid in uuids)
    storage.close()
    Wire.opened.clear()


def test_as_many_files_as_the_system_allows_may_be_open():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, before[1]), before[1]))
        live_daemon.raise_file_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
