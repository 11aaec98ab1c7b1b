"""What lost daemons leave behind: legs that nobody hears any more, calls, and captures."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Container, Iterable, Mapping
from datetime import datetime
from pathlib import Path

from callcore import audio, events, log
from callcore.calls import Call, Leg, LegState, now
from callcore.capture import Capture
from callcore.engines import LIVE_RATE
from callcore.errors import CallcoreError
from callcore.leg_session import EventSink
from callcore.live_records import Records
from callcore.storage import consent_rows

logger = logging.getLogger(__name__)

#: Sweeps without a sign of life after which another daemon is lost: a minute. Counted by who
#: looks, so that neither a clock that is wrong nor a daemon that was stopped itself ends calls.
LOST_AFTER_SWEEPS = 12

_UUID_LENGTH = 36


class Orphans:
    """Ends what daemons that died have left live, and hands over their captures.

    Args:
        records: The database.
        capture: Where legs are kept; None keeps none.
        publisher: Where live events go.
        end_call: Ends a call that is idle everywhere, and says so.
    """

    def __init__(
        self,
        records: Records,
        capture: Capture | None,
        publisher: EventSink,
        end_call: Callable[[str, str], Awaitable[object]],
    ) -> None:
        self._records = records
        self._capture = capture
        self._publisher = publisher
        self._end_call = end_call
        # Other daemons with live legs: their last sign of life, and the sweeps that saw no newer.
        self._signs: dict[str, tuple[datetime | None, int]] = {}

    async def end_lost(self) -> None:
        """End the legs of daemons that have been silent for too long."""
        for name in self._lost_daemons(await self._records.other_daemons()):
            logger.warning("daemon lost", extra={"daemon": name})
            await self.end(await self._records.orphaned_legs(name))

    async def end_idle(self, known: Container[str], idle_s: float) -> None:
        """End live calls that have had no leg for a while.

        Args:
            known: The calls that somebody else ends.
            idle_s: A live call whose last leg ended longer ago than this has lost its daemon.
        """
        for call in await self._records.silent_calls():
            if call.call_id not in known and _idle_s(call) > idle_s:
                await self._end_call(call.call_id, "daemon_lost")

    async def end(self, orphans: Iterable[Leg]) -> None:
        """End legs that have no stream any more, and their calls."""
        calls = []
        orphans = list(orphans)
        refused = await self._records.refused_among([leg.uuid for leg in orphans])
        for leg in orphans:
            with log.call_context(call_id=leg.call_id, leg=leg.leg):
                await self._end_leg(leg, is_refused=leg.uuid in refused)
            calls.append(leg.call_id)
        for call_id in dict.fromkeys(calls):
            await self._end_call(call_id, "daemon_lost")

    async def adopt_captures(self, live: Container[str]) -> None:
        """Hand over captures whose leg another daemon ended, out of reach of the file.

        Args:
            live: UUIDs of the legs that stream here.
        """
        if self._capture is None:
            return
        files = await asyncio.to_thread(self._capture.files)
        by_file = {path: path.stem[:_UUID_LENGTH] for path in files}
        legs = await self._records.captures_of(list(by_file.values()))
        refused = await self._records.refused_among(list(by_file.values()))
        unknown = 0
        for path, leg_uuid in by_file.items():
            state, held = legs.get(leg_uuid, (None, None))
            if state is LegState.LIVE or leg_uuid in live:
                continue
            if leg_uuid in refused:
                await asyncio.to_thread(self._capture.remove, leg_uuid)
                continue
            if held is not None and Path(held).name == path.name:
                continue
            if (
                state is LegState.ENDED
                and held is None
                and await asyncio.to_thread(_repaired_s, path) is not None
            ):
                await self._records.adopt_capture(leg_uuid, path)
            else:
                unknown += 1
        if unknown:
            # What was said in them is nowhere else: people decide.
            logger.warning("captures that no leg names", extra={"files": unknown})

    def _lost_daemons(self, signs: Mapping[str, datetime | None]) -> list[str]:
        before, self._signs = self._signs, {}
        for name, sign in signs.items():
            last, sweeps = before.get(name, (sign, 0))
            self._signs[name] = (sign, sweeps + 1 if sign == last else 0)
        return [name for name, (_, sweeps) in self._signs.items() if sweeps > LOST_AFTER_SWEEPS]

    async def _end_leg(self, leg: Leg, *, is_refused: bool) -> None:
        path = self._capture.path_of(leg.uuid) if self._capture is not None else None
        duration = None
        if self._capture is not None and is_refused:
            await asyncio.to_thread(self._capture.remove, leg.uuid)
        elif path is not None:
            duration = await asyncio.to_thread(_repaired_s, path)
        held = path if duration is not None else None
        reason = consent_rows.ENDED if is_refused else "daemon_lost"
        await self._records.end_leg(leg.uuid, reason, held)
        fields = {"leg": leg.leg, "duration": duration, "reason": reason}
        self._publisher.put(events.make("leg.ended", leg.call_id, **fields))
        logger.warning("leg of a lost daemon ended", extra={"captured_s": duration})


def _idle_s(call: Call) -> float:
    """Return the seconds since the last leg of a call ended; 0 while one is live."""
    if any(leg.state is LegState.LIVE for leg in call.legs):
        return 0.0
    ends = [leg.ended_at for leg in call.legs if leg.ended_at]
    return (now() - max(ends)).total_seconds() if ends else 0.0


def _repaired_s(path: Path) -> float | None:
    """Make the capture of a killed daemon whole; return its seconds, None if there is none."""
    try:
        audio.repair_wav(path)
        return (path.stat().st_size - audio.WAV_HEADER_BYTES) / 2 / LIVE_RATE
    except FileNotFoundError:
        return None
    except (OSError, CallcoreError):
        # Going on loses one capture; stopping would leave the other calls live for ever.
        logger.exception("a capture cannot be repaired", extra={"path": path.name})
        return None
