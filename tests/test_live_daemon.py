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

from callcore import live_daemon
from callcore.audio import decode, wav_needs_repair
from callcore.audiosocket import silence_frame
from callcore.calls import CallState
from callcore.settings import Address, load, parse_address
from callcore.storage import Storage
from tests.support.live import PATIENCE_S, Wire, new_uuid, on_uvloop, ramp


class Process:
    """``callcore audiosocket`` as a process, without recognition and without a broker."""

    def __init__(self, folder: Path) -> None:
        self.environ = {k: v for k, v in os.environ.items() if not k.startswith("CALLCORE_")} | {
            "CALLCORE_STATE_DIR": str(folder),
            "CALLCORE_AUDIOSOCKET_BIND": "127.0.0.1:0",
            "CALLCORE_DAEMON_NAME": "daemon-1",
            "CALLCORE_LIVE": "off",
            "CALLCORE_LOG_FORMAT": "json",
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


def test_as_many_files_as_the_system_allows_may_be_open():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, before[1]), before[1]))
        live_daemon.raise_file_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
