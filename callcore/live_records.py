"""What live calls ask of the database: in one thread, again and again until it answers."""

import asyncio
import dataclasses
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import peewee

from callcore import intake
from callcore.calls import Call, CallState, Leg, LegState
from callcore.errors import Refused
from callcore.intake import Accepted
from callcore.live_figures import LiveFigures
from callcore.results import Segment
from callcore.settings import Settings
from callcore.storage import Storage

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: What a database says when it is locked, restarting or away: worth another try.
TRANSIENT = (peewee.OperationalError, peewee.InterfaceError, OSError)


class StepWaker(Protocol):
    """What tells the workers of a new job: ``jobs.Waker``."""

    def wake(self, step: str, audio_id: str) -> object:
        """Say that the step of the recording is due; a broker that is away is no error."""


class Records:
    """The database as live calls need it.

    Args:
        storage: The database.
        settings: For the policies of ``intake`` and the daemon's name.
        waker: Told of accepted captures.
    """

    #: Seconds before the first retry, and the longest between two.
    retry_s = (0.1, 5.0)

    def __init__(self, storage: Storage, settings: Settings, waker: StepWaker) -> None:
        self._storage = storage
        self._settings = settings
        self._waker = waker
        # One thread: SQLite has one writer anyway, and the finals of a leg keep their order.
        self._thread = _Thread("storage")
        self._give_up_at = float("inf")
        self._figures = LiveFigures()

    async def open_leg(self, leg_uuid: str, at: datetime) -> tuple[Leg, Call]:
        """Return the leg of that UUID, now live, and its call.

        Args:
            leg_uuid: 36 characters.
            at: When the UUID came, however late that can be stored.

        Raises:
            Refused: If nobody may stream with that UUID, or somebody did.
        """
        tries = 0

        def work() -> tuple[Leg, Call]:
            nonlocal tries
            tries += 1
            try:
                leg = intake.open_leg(self._storage, self._settings, leg_uuid, at)
            except Refused:
                # A try whose commit was cut off may have used the UUID: then it is ours.
                found = self._own_leg(leg_uuid) if tries > 1 else None
                if found is None:
                    raise
                leg = found
            return leg, self._storage.call(leg.call_id)

        opened = await self._done(work)
        self._figures.legs += 1
        return opened

    async def add_segment(self, call_id: str, segment: Segment) -> None:
        """Store a final.

        Raises:
            Refused: ``consent-refused``.
        """
        await self._done(partial(self._storage.add_live_segment, call_id, segment))
        self._figures.finals += 1

    async def note_no_text(self, leg_uuid: str, reason: str, *, is_down: bool = False) -> None:
        """Store why a leg has no live text, for people.

        Args:
            leg_uuid: 36 characters.
            reason: What people read.
            is_down: Speech recognition does not answer; else it has no room.
        """
        if is_down:
            self._figures.refused_down += 1
        else:
            self._figures.refused += 1
        await self._done(partial(self._storage.note_no_text, leg_uuid, reason))

    async def end_leg(self, leg_uuid: str, reason: str, capture_path: Path | None) -> None:
        """Store that the leg ended; one that another daemon has ended stays as it was."""
        path = str(capture_path) if capture_path is not None else None
        await self._done(partial(self._storage.end_leg, leg_uuid, reason, path))

    async def end_call(self, call_id: str, reason: str) -> Call | None:
        """End the call if no leg of it is live or expected, and accept its capture: both or none.

        Returns:
            The call if this very call of the function ended it.
        """
        tries = 0

        def work() -> tuple[Call | None, Accepted | None]:
            nonlocal tries
            tries += 1
            with self._storage.database.transaction():
                ended = self._storage.end_call_if_idle(call_id, reason)
                accepted = self._accept_capture(call_id) if ended is not None else None
                if ended is not None:
                    ended = self._storage.call(call_id)  # its capture may tell who refused
            if ended is None and tries > 1:  # a try whose commit was cut off may have ended it
                call = self._storage.call(call_id)
                return call if call.state is not CallState.LIVE else None, None
            return ended, accepted

        call, accepted = await self._done(work)
        await self._wake([accepted])
        return call

    async def orphaned_legs(self, daemon: str | None = None) -> list[Leg]:
        """Return the live legs of a daemon's name; by default what an earlier one left of ours."""
        name = daemon or self._settings.daemon_name
        return await self._done(partial(self._storage.orphaned_legs, name))

    async def refused_legs(self) -> list[str]:
        """Return the UUIDs of our live legs whose callers refused analysis."""
        return await self._done(partial(self._storage.refused_legs, self._settings.daemon_name))

    async def refused_among(self, leg_uuids: Sequence[str]) -> set[str]:
        """Return those of these legs whose callers refused analysis."""
        return await self._done(partial(self._storage.refused_among, leg_uuids))

    async def captures_of(self, leg_uuids: Sequence[str]) -> dict[str, tuple[LegState, str | None]]:
        """Return state and capture path of each leg that has one of these UUIDs."""
        return await self._done(partial(self._storage.captures_of, leg_uuids))

    async def adopt_capture(self, leg_uuid: str, path: Path) -> None:
        """Give an ended leg without a capture this one; accept it if the call has ended."""

        def work() -> Accepted | None:
            with self._storage.database.transaction():
                call_id = self._storage.adopt_capture(leg_uuid, str(path))
                if call_id is None or self._storage.call(call_id).state is CallState.LIVE:
                    return None
                recordings = self._storage.recordings_of(call_id)
                if any(each.source == intake.CAPTURE for each in recordings):
                    return None  # other legs of it were processed without this one
                return self._accept_capture(call_id)

        await self._wake([await self._done(work)])

    async def expire_legs(self) -> list[Call]:
        """Give up legs that were announced and never came; return the calls that end by it."""

        def work() -> tuple[list[Call], list[Accepted | None]]:
            with self._storage.database.transaction():
                ended = self._storage.expire_legs()
                accepted = [self._accept_capture(call_id) for call_id in ended]
                return [self._storage.call(call_id) for call_id in ended], accepted

        calls, accepted = await self._done(work)
        await self._wake(accepted)
        return calls

    async def silent_calls(self) -> list[Call]:
        """Return the live calls that have no stream on any daemon now."""
        return await self._done(self._storage.silent_calls)

    async def note_alive(
        self, load: float | None = None, behind_s: float = 0.0, shed: int = 0
    ) -> None:
        """Store a sign of life of this daemon, and how busy live calls keep its decoder.

        Args:
            load: Share of the decoder's time; None if nothing is recognised.
            behind_s: As in ``LiveFigures``.
            shed: As in ``LiveFigures``.
        """
        self._figures.behind_s, self._figures.shed = round(behind_s, 3), shed
        told = dataclasses.replace(self._figures)  # it is stored in another thread
        name = self._settings.daemon_name
        await self._done(partial(self._storage.note_daemon, name, load, told))

    async def other_daemons(self) -> dict[str, datetime | None]:
        """Return the other daemons that have live legs, each with its last sign of life."""
        daemons = await self._done(self._storage.live_daemons)
        daemons.pop(self._settings.daemon_name, None)
        return daemons

    def give_up_after(self, timeout_s: float) -> None:
        """Let tries that fail after this many seconds raise: the daemon is ending."""
        self._give_up_at = time.monotonic() + timeout_s

    def close(self, timeout_s: float = 1.0) -> bool:
        """End the thread once it has done what it was asked.

        Returns:
            False if the database holds it: it is left behind, and so must be its connection.
        """
        return self._thread.close(timeout_s)

    def _own_leg(self, leg_uuid: str) -> Leg | None:
        own = self._storage.orphaned_legs(self._settings.daemon_name)
        return next((leg for leg in own if leg.uuid == leg_uuid), None)

    def _accept_capture(self, call_id: str) -> Accepted | None:
        return intake.accept_capture(self._storage, self._settings, call_id)

    async def _wake(self, accepted: Sequence[Accepted | None]) -> None:
        for each in accepted:
            if each is not None and each.wake:
                await self._done(partial(self._waker.wake, "settle", each.audio_id))

    async def _done(self, work: Callable[[], T]) -> T:
        delay_s, longest_s = self.retry_s
        tries = 0
        while True:
            try:
                result = await asyncio.wrap_future(self._thread.submit(work))
            except TRANSIENT as error:
                tries += 1
                if time.monotonic() >= self._give_up_at:
                    raise
                if tries == 1:
                    logger.warning("database away", extra={"error": type(error).__name__})
            else:
                if tries:
                    logger.info("database is back", extra={"tries": tries + 1})
                return result
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, longest_s)


class _Thread:
    """Does what it is asked, one after the other.

    No ThreadPoolExecutor: the interpreter waits for its threads at exit, and a locked database
    holds one for ``database.BUSY_TIMEOUT_S``, longer than a daemon may take to end.
    """

    def __init__(self, name: str) -> None:
        self._work: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]
        self._work = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        self._work.put((future, work))
        return future

    def close(self, timeout_s: float) -> bool:
        self._work.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (item := self._work.get()) is not None:
            _do(*item)
            del item  # a result may be large, and the next wait long


def _do(future: Future[T], work: Callable[[], T]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(work())
    except BaseException as error:
        # Raised where it was asked for; the thread serves all calls.
        future.set_exception(error)
