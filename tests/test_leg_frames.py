"""The short way of a frame to ring and capture is the long one, whenever frames come."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from callcore import leg_session
from callcore.audiosocket import Audio, Kind
from callcore.leg_session import LegSession
from tests.support.live import Clock, Live, live, new_uuid, ramp


def never(reason: str) -> None:
    raise AssertionError(f"refused: {reason}")


async def two_legs(parts: Live, at: float) -> list[tuple[LegSession, Any]]:
    """Return two legs that started at the same moment, and who reads them."""
    legs = []
    for number in range(2):
        leg = parts.calls.open_leg(new_uuid(), at, never)
        legs.append((leg, await parts.recognizer.leg(number)))
    return legs


@pytest.mark.parametrize("seed", range(3))
async def test_frames_one_by_one_are_heard_like_batches_whatever_the_jitter(
    tmp_path: Path, seed: int
):
    random = np.random.default_rng(seed)
    clock = Clock()
    async with live(tmp_path, clock=clock) as parts:
        (short, one), (long, other) = await two_legs(parts, clock.now)
        at, start = clock.now, 0
        for _ in range(400):
            # In time, late, early, and after a silence that has to be filled.
            at += float(random.choice([0.0, 0.005, 0.02, 0.04, 0.3], p=[0.2, 0.2, 0.4, 0.15, 0.05]))
            samples = ramp(start, start + int(random.choice([160, 160, 160, 80, 16])))
            start += len(samples) // 2
            short.feed_frame(samples, at)
            long.feed([Audio(Kind.SLIN, 8000, samples)], at)
            if random.random() < 0.1:
                parts.calls.tick(at)
        end = one.ring.end
        assert end == other.ring.end > one.ring.start
        held = one.ring.read(one.ring.start, end)
        assert held.tobytes() == other.ring.read(one.ring.start, end).tobytes()
        assert short.filled_samples == long.filled_samples > 0
        assert (short.frames, long.frames) == (400, 400)
        assert short.received_samples == long.received_samples == start
        for leg in (short, long):
            leg.end("hangup")
        await parts.sink.until("leg.ended", 2)
        files = [parts.capture.path_of(leg.uuid).read_bytes() for leg in (short, long)]
        assert files[0] == files[1]
        assert len(files[0]) == 44 + 2 * end


async def test_a_frame_too_far_ahead_of_the_clock_ends_the_leg_on_the_short_way_too(
    tmp_path: Path,
):
    clock = Clock()
    async with live(tmp_path, clock=clock) as parts:
        refused: list[str] = []
        leg = parts.calls.open_leg(new_uuid(), clock.now, refused.append)
        await parts.recognizer.leg()
        for _ in range(50 * leg_session.MAX_AHEAD_S):
            leg.feed_frame(bytes(320), clock.now)
        assert refused == []
        leg.feed_frame(bytes(320), clock.now)
        assert refused == ["too-fast"]
        await parts.sink.until("leg.ended")


async def test_frames_before_the_registration_is_known_are_kept_to_be_split(tmp_path: Path):
    clock = Clock()
    async with live(tmp_path, clock=clock) as parts:
        # Nothing has run since: whether it has one channel or two is not known yet.
        leg = parts.calls.open_leg(new_uuid(), clock.now, never)
        leg.feed_frame(ramp(0, 160), clock.now + 0.02)
        assert leg._early_audio is not None
        assert [batch for batch, _ in leg._early_audio] == [[Audio(Kind.SLIN, 8000, ramp(0, 160))]]
        recognition = await parts.recognizer.leg()
        leg.feed_frame(ramp(160, 320), clock.now + 0.04)
        assert recognition.ring.read(0, 320).tobytes() == ramp(0, 320)
        leg.end("hangup")
        await parts.sink.until("leg.ended")


async def test_a_ring_that_fails_on_the_short_way_costs_the_leg_its_words_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    clock = Clock()
    async with live(tmp_path, clock=clock) as parts:
        leg = parts.calls.open_leg(new_uuid(), clock.now, never)
        recognition = await parts.recognizer.leg()

        def broken(self: object, samples: bytes) -> None:
            raise MemoryError

        with monkeypatch.context() as patch:
            patch.setattr(leg_session.RingBuffer, "append", broken)
            leg.feed_frame(ramp(0, 160), clock.now + 0.02)
        leg.feed_frame(ramp(160, 320), clock.now + 0.04)
        assert recognition.discarded
        leg.end("hangup")
        [ended] = await parts.sink.until("leg.ended")
        assert ended["duration"] == 0.04
        assert parts.capture is not None
        assert parts.capture.path_of(leg.uuid).read_bytes()[44:] == ramp(0, 320)


async def test_a_leg_that_nobody_listens_to_keeps_no_ring(tmp_path: Path):
    async with live(tmp_path, live="off") as parts:
        leg = parts.calls.open_leg(new_uuid(), parts.calls.clock(), never)
        await parts.sink.until("leg.started")
        assert leg._ring is None
        leg.end("hangup")
        await parts.sink.until("leg.ended")
