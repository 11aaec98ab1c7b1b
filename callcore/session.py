"""Live calls of one daemon: which legs are open, and the end of each call.

``LiveCalls`` holds what all legs share; a leg's own life is told in ``leg_session``::

    last leg of the call and ``LINGER_S`` without a new one -> call.ended -> its capture accepted
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from callcore import events
from callcore.call_language import CallLanguage
from callcore.calls import REFUSED, Call, Leg
from callcore.capture import Capture
from callcore.errors import Refused
from callcore.leg_session import EventSink, LegSession, nobody
from callcore.live_records import Records
from callcore.orphans import Orphans
from callcore.recognizer import Recognizer
from callcore.settings import Settings

logger = logging.getLogger(__name__)

#: Seconds after the end of a call's last leg in which a new leg (a transfer) continues the call.
LINGER_S = 2.0


class LiveCalls:
    """All live calls of a daemon.

    Args:
        settings: The daemon's settings.
        records: The database.
        publisher: Where live events go.
        capture: Where legs are kept; None keeps none.
        recognizer: What turns samples into words; None leaves the calls without words.
        clock: Seconds that only go forward.
    """

    def __init__(
        self,
        settings: Settings,
        records: Records,
        publisher: EventSink,
        capture: Capture | None,
        recognizer: Recognizer | None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self.records = records
        self.publisher = publisher
        self.capture = capture
        self.recognizer = recognizer
        self.clock = clock
        self.loop = asyncio.get_running_loop()
        self._orphans = Orphans(records, capture, publisher, self.end_call)
        self._legs: dict[str, LegSession] = {}
        self._calls: dict[str, CallSession] = {}
        self._seen: set[str] | None = set()  # UUIDs since the start, until orphans are sorted out
        self._tasks: set[asyncio.Task[None]] = set()
        self.closing = asyncio.Event()
        """Set once the daemon ends: calls end without waiting for more legs."""

    def open_leg(self, leg_uuid: str, arrived: float, refuse: Callable[[str], None]) -> LegSession:
        """Return the session of a stream that has just said who it is.

        Args:
            leg_uuid: 36 characters.
            arrived: ``clock()`` when the UUID came: sample 0.
            refuse: Called later with the reason why the stream is not wanted, if it is not.

        Raises:
            Refused: If the same UUID streams at this moment.
        """
        if leg_uuid in self._legs:
            raise Refused("uuid-in-use", "another stream has this UUID")
        return self._opened(LegSession(self, leg_uuid, arrived, refuse))

    def open_right(self, left: LegSession, leg_uuid: str) -> LegSession:
        """Return the session of the right channel of a stream; it takes what ``left`` gives it.

        Raises:
            Refused: If a stream of its own has this UUID.
        """
        if leg_uuid in self._legs:
            raise Refused("uuid-in-use", "another stream has this UUID")
        return self._opened(LegSession(self, leg_uuid, left.arrived, nobody, left=left))

    def _opened(self, leg: LegSession) -> LegSession:
        self._legs[leg.uuid] = leg
        if self._seen is not None:
            self._seen.add(leg.uuid)
        self.spawn(leg.run(), lambda: self._legs.pop(leg.uuid, None))
        return leg

    def tick(self, at: float) -> None:
        """Fill legs with silence from which nothing comes; about ten times a second."""
        for leg in self._legs.values():
            leg.tick(at)

    def call_of(self, leg: Leg) -> "CallSession":
        """Return the call of a leg, known from now on."""
        if leg.call_id not in self._calls:
            self._calls[leg.call_id] = CallSession(self, leg.call_id)
        return self._calls[leg.call_id]

    def forget(self, call_id: str) -> None:
        """Drop a call that has no legs here."""
        self._calls.pop(call_id, None)

    def spawn(
        self, work: Coroutine[Any, Any, None], done: Callable[[], object] | None = None
    ) -> None:
        """Run a coroutine beside the others; ``close`` waits for it."""
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(partial(self._finished, done))

    def _finished(self, done: Callable[[], object] | None, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if done is not None:
            done()
        if not task.cancelled() and (error := task.exception()) is not None:
            # One leg's or call's failure must not touch the others.
            logger.error("a live task failed", exc_info=error)

    async def recover(self) -> None:
        """End what an earlier daemon of our name left behind, and hand over its captures."""
        await self.records.note_alive()
        streaming = {*(self._seen or ()), *self._legs}
        orphans = await self.records.orphaned_legs()
        streaming |= {*(self._seen or ()), *self._legs}  # came meanwhile
        self._seen = None
        await self._orphans.end(leg for leg in orphans if leg.uuid not in streaming)
        await self._orphans.adopt_captures(self._legs)

    async def sweep(self, idle_s: float = 10.0) -> None:
        """End calls that nobody else ends: legs that never came, daemons that died.

        Args:
            idle_s: A live call whose last leg ended longer ago than this has lost its daemon.
        """
        if (recognizer := self.recognizer) is None:
            await self.records.note_alive()
        else:
            load, behind_s = recognizer.load(), recognizer.behind_s()
            await self.records.note_alive(load, behind_s, recognizer.shed)
        for call in await self.records.expire_legs():
            self._publish_end(call)
        await self._orphans.end_lost()
        await self._orphans.end_idle(self._calls, idle_s)

    async def end_refused(self) -> None:
        """End the legs of calls whose callers refused analysis; about twice a second."""
        if not self._legs:
            return
        for leg_uuid in await self.records.refused_legs():
            if (leg := self._legs.get(leg_uuid)) is not None:
                leg.refuse()

    async def end_call(self, call_id: str, reason: str) -> bool:
        """End a call if it is idle everywhere, and say so; return whether it ended now."""
        call = await self.records.end_call(call_id, reason)
        if call is not None:
            self._publish_end(call)
        return call is not None

    async def close(self, timeout_s: float) -> None:
        """Seal what is left, legs that were not ended too. Again does nothing."""
        self.closing.set()
        for leg in tuple(self._legs.values()):
            leg.end("daemon_stopped")
        self.records.give_up_after(0.8 * timeout_s)  # so that what follows may still be tried
        deadline = self.loop.time() + timeout_s
        while self._tasks and (left_s := deadline - self.loop.time()) > 0:
            # The end of a leg begins the end of its call: look again.
            await asyncio.wait(self._tasks, timeout=left_s)
        if self._tasks:
            logger.error("calls could not be finished in time", extra={"tasks": len(self._tasks)})
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks)

    def _publish_end(self, call: Call) -> None:
        if call.consent == REFUSED:
            # What was published before the refusal was known here.
            self.publisher.forget(call.call_id)
        duration = call.duration_s
        fields = {
            "duration": None if duration is None else round(duration, 3),
            "reason": call.reason,
        }
        self.publisher.put(events.make("call.ended", call.call_id, **fields))
        logger.info("call ended", extra={"call_id": call.call_id, **fields})


class CallSession:
    """One call as far as this daemon sees it: how many legs are open, and the end."""

    def __init__(self, calls: LiveCalls, call_id: str) -> None:
        self.call_id = call_id
        self.language = CallLanguage()
        """What its legs find out where their registrations name no language."""
        self.behind: set[str] = set()
        """Its legs, by UUID, whose text is late."""
        self._calls = calls
        self._legs = 0
        self._ending = 0  # counts ends that were begun: a new leg makes an older one void

    def joined(self) -> None:
        """Count a leg in."""
        self._legs += 1
        self._ending += 1

    def left(self, reason: str) -> None:
        """Count a leg out; the last one ends the call unless another comes."""
        self._legs -= 1
        if not self._legs:
            self._calls.spawn(self._end(reason, self._ending))

    async def _end(self, reason: str, ending: int) -> None:
        try:
            async with asyncio.timeout(LINGER_S):
                await self._calls.closing.wait()
        except TimeoutError:
            pass
        if ending != self._ending:
            return
        try:
            # A leg that is announced, or live on another daemon, keeps the call: whoever ends
            # that leg, or the sweep, ends the call.
            await self._calls.end_call(self.call_id, reason)
        finally:
            if ending == self._ending:  # if it failed, the sweep tries again
                self._calls.forget(self.call_id)
