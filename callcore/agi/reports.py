"""What a PBX reports, on its way to the database: in one thread, until the database answers.

A route waits a moment for the commit and lets Asterisk go in any case. What the database did not
take in time is tried again for as long as this process runs; the log says so, because what waits
in memory is lost with the process. So is what must not be stored before somebody can tell who
refused analysis; that lets others go first. What is worth nothing later is not tried again.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from callcore.errors import ConfigError
from callcore.intake import Accepted, Messenger
from callcore.live_records import TRANSIENT, StepWaker
from callcore.log import frames

logger = logging.getLogger(__name__)

#: Seconds that Asterisk is kept waiting for a commit at most. The other party's line stays up for
#: as long; a commit takes milliseconds.
ANSWER_S = 1.0
#: Reports that may wait for the database; some 20 MB, and ten minutes of a very busy PBX.
MAX_WAITING = 10_000
#: Seconds before the first retry, and the longest between two.
RETRY_S = (0.1, 5.0)

Work = Callable[[], Accepted | None]


@dataclass(slots=True, eq=False)
class _Report:
    work: Work
    keep: bool
    stored: "Future[bool]" = field(default_factory=Future)
    is_held: bool = False
    """Whether it had to wait for the key of who refused."""


class Reports:
    """Runs pieces of work that put something on record, one after the other.

    Args:
        waker: Told of recordings that wait for a worker.
    """

    def __init__(self, waker: StepWaker) -> None:
        self._messenger = Messenger(lambda audio_id: waker.wake("settle", audio_id))
        self._waiting: deque[_Report] = deque()
        self._held: list[_Report] = []  # until the key of who refused is back
        self._retry_at = 0.0
        self._changed = threading.Condition()
        self._stopped = False
        self._is_away = False
        # No ThreadPoolExecutor: the interpreter waits for its threads at exit, and a locked
        # database holds one for ``database.BUSY_TIMEOUT_S``.
        self._thread = threading.Thread(target=self._run, name="reports", daemon=True)
        self._thread.start()

    async def put(self, work: Work, *, keep: bool = True, wait_s: float = ANSWER_S) -> bool:
        """Have something put on record.

        Args:
            work: Called in the thread, again if the database is away. Returns the recording that
                is on record now, if it is one.
            keep: Whether it is tried again where the database is away, or not in time.
            wait_s: How long the answer is waited for; nobody's line may hang on more than
                ``ANSWER_S``.

        Returns:
            Whether it is on record. If not, the log says why, and whether it is tried further;
            what was being stored when the time was over may be on record all the same.
        """
        report = _Report(work, keep)
        with self._changed:
            if len(self._waiting) + len(self._held) >= MAX_WAITING or self._stopped:
                logger.error("a report of the PBX is lost: too many wait for the database")
                return False
            self._waiting.append(report)
            self._changed.notify()
        try:
            async with asyncio.timeout(wait_s):
                return await asyncio.shield(asyncio.wrap_future(report.stored))
        except TimeoutError:
            if not keep:
                self._give_up(report)
                return False
            logger.warning(
                "the database does not answer; a report of the PBX waits in memory",
                extra={"num_waiting": len(self._waiting)},
            )
            return False

    def _give_up(self, report: _Report) -> None:
        logger.warning("the database does not answer; a request of the PBX is dropped")
        with self._changed:
            if report in self._waiting and report is not self._waiting[0]:  # which is being done
                self._waiting.remove(report)

    def close(self, timeout_s: float) -> bool:
        """Let waiting reports be stored for so long, then give them up.

        Returns:
            False if the database holds the thread: it is left behind, and so must be its
            connection.
        """
        until = time.monotonic() + timeout_s
        with self._changed:
            while self._waiting and time.monotonic() < until:
                self._changed.wait(until - time.monotonic())
            self._stopped = True
            lost = len(self._waiting) + len(self._held)
            self._changed.notify_all()
        if lost:
            logger.error("reports of the PBX are lost", extra={"num_reports": lost})
        self._thread.join(0.5)
        return not self._thread.is_alive()

    def _run(self) -> None:
        delay_s, longest_s = RETRY_S
        while (report := self._next()) is not None:
            accepted, stored = None, False
            try:
                accepted, stored = report.work(), True
            except TRANSIENT as error:
                self._note_away(type(error).__name__)
                if report.keep:
                    with self._changed:
                        self._changed.wait_for(lambda: self._stopped, delay_s)
                    delay_s = min(2 * delay_s, longest_s)
                    continue
            except ConfigError as error:
                # The message names a setting and a file of ours; nothing of a call is in it.
                if not report.is_held:
                    logger.error("a report of the PBX must wait", extra={"reason": str(error)})
                if report.keep:
                    self._hold(report)
                    continue
            except Exception as error:
                # Tried again, it would fail again; the next report is another one's.
                logger.error("a report of the PBX failed", extra={"error": frames(error)})
            else:
                self._note_back()
            delay_s = RETRY_S[0]
            with self._changed:
                self._waiting.popleft()
                self._changed.notify_all()
            report.stored.set_result(stored)
            if accepted is not None and accepted.wake:
                self._messenger.tell(accepted.audio_id)

    def _hold(self, report: _Report) -> None:
        with self._changed:
            self._waiting.popleft()
            if not self._held:
                self._retry_at = time.monotonic() + RETRY_S[1]
            report.is_held = True
            self._held.append(report)
            self._changed.notify_all()

    def _next(self) -> _Report | None:
        with self._changed:
            while not self._stopped:
                left_s = self._retry_at - time.monotonic() if self._held else None
                if left_s is not None and left_s <= 0:
                    self._waiting.extend(self._held)
                    self._held.clear()
                if self._waiting:
                    return self._waiting[0]
                self._changed.wait(left_s)
            return None

    def _note_away(self, reason: str) -> None:
        if not self._is_away:
            logger.warning("database away", extra={"error": reason})
        self._is_away = True

    def _note_back(self) -> None:
        if self._is_away:
            logger.info("database is back", extra={"num_waiting": len(self._waiting) - 1})
        self._is_away = False
