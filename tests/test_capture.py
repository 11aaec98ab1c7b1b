import asyncio
import os
import threading
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from callcore import capture as capture_module
from callcore.audio import repair_wav, wav_needs_repair
from callcore.capture import Capture

UUID = "3f2504e0-4f89-41d3-9a0c-0305e82c3301"


@pytest.fixture
def capture(tmp_path: Path) -> Iterator[Capture]:
    writer = Capture(tmp_path)
    yield writer
    writer.close()


def ramp(start: int, end: int) -> bytes:
    return np.arange(start, end).astype("<i2").tobytes()


def read_wav(path: Path) -> np.ndarray:
    assert not wav_needs_repair(path)
    with wave.open(str(path)) as file:
        assert file.getframerate() == 8000
        return np.frombuffer(file.readframes(file.getnframes()), "<i2")


class Disk:
    """Stands between capture and ``os.pwrite``: may be full, slow or short."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.room: float = float("inf")
        self.open = threading.Event()
        self.open.set()
        self.waiting = threading.Event()
        self._pwrite = os.pwrite
        monkeypatch.setattr(capture_module.os, "pwrite", self.write)

    def write(self, fd: int, data: bytes, at: int) -> int:
        self.waiting.set()
        self.open.wait()
        if self.room <= 0:
            raise OSError(28, "No space left on device")
        num_bytes = int(min(len(data), self.room))
        self.room -= num_bytes
        return self._pwrite(fd, data[:num_bytes], at)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    disk = Disk(monkeypatch)
    yield disk
    disk.open.set()


async def test_a_leg_is_a_right_wav_after_close(capture: Capture, tmp_path: Path):
    leg = capture.open_leg(UUID, 8000)
    leg.write(ramp(0, 160))
    leg.write_silence(80)
    leg.write(ramp(240, 400))
    await leg.close()
    assert leg.path == tmp_path / "capture" / f"{UUID}.wav"
    samples = read_wav(leg.path)
    assert samples[:160].tolist() == list(range(160))
    assert not samples[160:240].any()
    assert samples[240:].tolist() == list(range(240, 400))


async def test_silence_at_the_end_is_in_the_file(capture: Capture):
    leg = capture.open_leg(UUID, 8000)
    leg.write(ramp(0, 10))
    leg.write_silence(8000)
    await leg.close()
    assert len(read_wav(leg.path)) == 8010


async def test_samples_are_read_back_by_index_before_a_round_and_after_the_close(
    capture: Capture,
):
    leg = capture.open_leg(UUID, 8000)
    leg.write(ramp(0, 100))
    leg.write_silence(50)
    assert (await asyncio.to_thread(leg.read, 90, 110)).tolist() == [*range(90, 100)] + [0] * 10
    with pytest.raises(LookupError):
        leg.read(100, 151)
    await leg.close()
    assert leg.read(0, 3).tolist() == [0, 1, 2]
    assert leg.read(120, 150).tolist() == [0] * 30


async def test_a_killed_daemons_file_can_be_repaired(capture: Capture):
    leg = capture.open_leg(UUID, 8000)
    leg.write(ramp(0, 800))
    leg.read(0, 800)
    left = leg.path.with_name("left.wav")
    left.write_bytes(leg.path.read_bytes())
    assert wav_needs_repair(left)
    repair_wav(left)
    assert read_wav(left).tolist() == list(range(800))


async def test_a_slow_disk_never_blocks_and_the_lost_span_is_told(tmp_path: Path, disk: Disk):
    capture = Capture(tmp_path, max_queued_bytes=1000)
    lost: list[tuple[int, int, str]] = []
    leg = capture.open_leg(UUID, 8000, lost=lambda *span: lost.append(span))
    disk.open.clear()
    leg.write(ramp(0, 100))
    await asyncio.to_thread(disk.waiting.wait)
    for start in range(100, 1000, 100):
        leg.write(ramp(start, start + 100))
    leg.write_silence(50)
    disk.open.set()
    await asyncio.to_thread(leg.read, 0, 500)
    leg.write(ramp(1050, 1100))
    await leg.close()
    capture.close()
    assert lost == [(500, 1050, "disk too slow")]
    samples = read_wav(leg.path)
    assert samples[:500].tolist() == list(range(500))
    assert not samples[500:1050].any()
    assert samples[1050:].tolist() == list(range(1050, 1100))


async def test_a_disk_with_room_again_takes_what_waited(capture: Capture, disk: Disk):
    lost: list[tuple[int, int, str]] = []
    leg = capture.open_leg(UUID, 8000, lost=lambda *span: lost.append(span))
    disk.room = 44 + 2 * 30 + 1
    leg.write(ramp(0, 100))
    leg.write_silence(20)
    leg.write(ramp(120, 200))
    with pytest.raises(LookupError):
        leg.read(0, 100)
    assert leg.read(0, 30).tolist() == list(range(30))
    disk.room = float("inf")
    await leg.close()
    samples = read_wav(leg.path)
    assert samples[:100].tolist() == list(range(100))
    assert samples[120:].tolist() == list(range(120, 200))
    assert lost == []


async def test_what_a_full_disk_never_took_is_told_at_the_close(capture: Capture, disk: Disk):
    lost: list[tuple[int, int, str]] = []
    leg = capture.open_leg(UUID, 8000, lost=lambda *span: lost.append(span))
    leg.write(ramp(0, 100))
    leg.read(0, 100)
    disk.room = 0
    leg.write(ramp(100, 150))
    leg.write_silence(10)
    await leg.close()
    assert lost == [(100, 160, "disk failed")]
    repair_wav(leg.path)
    assert read_wav(leg.path).tolist() == list(range(100))


async def test_one_legs_broken_file_does_not_stop_the_others(capture: Capture, tmp_path: Path):
    (tmp_path / "capture" / "taken").mkdir()
    bad = capture.open_leg("taken/../../gone/x", 8000)
    good = capture.open_leg(UUID, 8000)
    bad.write(ramp(0, 10))
    good.write(ramp(0, 10))
    await bad.close()
    await good.close()
    assert len(read_wav(good.path)) == 10


async def test_an_older_file_of_the_same_uuid_is_kept(capture: Capture):
    for length in (10, 20, 30):
        leg = capture.open_leg(UUID, 8000)
        leg.write(ramp(0, length))
        await leg.close()
        assert len(read_wav(leg.path)) == length
    assert len(read_wav(capture.path_of(UUID))) == 10


async def test_a_discarded_leg_leaves_no_file(capture: Capture):
    never = capture.open_leg(UUID, 8000)
    never.write(ramp(0, 10))
    never.discard()
    begun = capture.open_leg(UUID, 8000)
    begun.write(ramp(0, 10))
    begun.read(0, 10)
    begun.discard()
    await asyncio.to_thread(begun.closed.wait)
    await asyncio.to_thread(never.closed.wait)
    assert not begun.path.exists()
    assert not never.path.exists()


async def test_closing_capture_seals_the_legs_that_are_open(tmp_path: Path):
    capture = Capture(tmp_path)
    leg = capture.open_leg(UUID, 8000)
    leg.write(ramp(0, 10))
    capture.close()
    capture.close()
    assert len(read_wav(leg.path)) == 10


async def test_a_leg_closed_after_capture_does_not_hang(tmp_path: Path):
    capture = Capture(tmp_path)
    leg = capture.open_leg(UUID, 8000)
    capture.close()
    async with asyncio.timeout(5):
        await leg.close()
