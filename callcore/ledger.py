"""The job rows: which step of which recording waits, runs, is done.

The database is the queue of record. A row is claimed with a lease by one owner; a step finishes in
the transaction that stores its result and releases the steps that waited for it; an owner that has
lost its lease is fenced: its work is rolled back. Messages of the broker only say "look here".
"""

import random
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from callcore import tables
from callcore.calls import SETTLE, StepState
from callcore.database import Row
from callcore.errors import Fenced
from callcore.storage import Storage, locks

#: Seconds after which a worker is told again of a step that nobody has claimed: at least.
RESEND_S = 5.0
#: Seconds before the second try; doubled with each further one.
BACKOFF_S = 2.0
#: Most seconds between two tries.
MAX_BACKOFF_S = 600.0


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to run a step until its lease ends."""

    audio_id: str
    step: str
    owner: str
    attempt: int
    """1 for the first try."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the end of a step led to."""

    state: StepState
    """``done``, ``failed``, or ``pending`` when it is tried again."""
    ms: int
    """Milliseconds since the claim."""
    released: tuple[str, ...] = ()
    """Steps that can run now."""
    over: bool = False
    """Whether no step of the recording is left, and this one was the last."""


class Ledger:
    """Claims, leases, ends.

    Args:
        storage: The record.
        lease_s: Seconds after which the step of a dead worker is taken over.
        max_attempts: Tries before a step has failed.
        after: The steps that must be over, well or not, before each step is released.
        jitter: Returns a number in [0, 1): spreads the tries of many steps.
    """

    def __init__(
        self,
        storage: Storage,
        *,
        lease_s: float = 30.0,
        max_attempts: int = 4,
        after: Mapping[str, Sequence[str]] | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.lease_s = lease_s
        self.max_attempts = max_attempts
        self._after = after or {}
        self._storage = storage
        self._database = storage.database
        self._jitter = jitter

    # ---- entering

    def enqueue(self, audio_id: str, steps: Sequence[str], wait_s: float = 0.0) -> None:
        """Add the rows of a recording: ``settle`` after ``wait_s``, the others when released."""
        moment = self._storage.clock()
        with self._database.transaction():
            for position, step in enumerate((SETTLE, *steps)):
                values = {
                    "recording": audio_id,
                    "step": step,
                    "position": position,
                    "state": StepState.PENDING,
                    "attempts": 0,
                    "progress": 0.0,
                    "due": moment + timedelta(seconds=wait_s) if step == SETTLE else None,
                    # Who enqueues also wakes; the sweep is for when that fails.
                    "sent_at": moment if step == SETTLE and not wait_s else None,
                }
                self._database.insert(tables.Job, values)

    def restart(self, audio_id: str, steps: Iterable[str]) -> None:
        """Let steps run again: ``settle`` at once, others when released."""
        moment = self._storage.clock()
        job = tables.Job
        with self._database.transaction():
            locks.recording(self._database, audio_id)
            for step in steps:
                due = moment if step == SETTLE else None
                self._database.run(
                    job.update(due=due, sent_at=due, **_FRESH).where(_is(audio_id, step))
                )

    def rerun(
        self, audio_id: str, steps: Iterable[str], needs: Mapping[str, Sequence[str]]
    ) -> tuple[str, ...]:
        """Let steps run again; return those that can run now. Whoever runs one now is fenced."""
        with self._database.transaction():
            locks.recording(self._database, audio_id)
            self.restart(audio_id, steps)
            released = self._release(audio_id, needs)
            return (SETTLE, *released) if SETTLE in steps else released

    # ---- running

    def claim(self, audio_id: str, step: str) -> Claim | None:
        """Take a step that is due, or whose owner's lease has ended; None if it is neither.

        The attempt of the claim may exceed ``max_attempts`` by one: then its workers died each
        time, and the caller fails it.
        """
        job = tables.Job
        moment = self._storage.clock()
        owner = uuid.uuid4().hex
        with self._database.transaction():
            taken = self._database.run(
                job.update(
                    state=StepState.RUNNING,
                    attempts=job.attempts + 1,
                    owner=owner,
                    due=moment + timedelta(seconds=self.lease_s),
                    # The message has been taken: when the lease ends, another is due at once.
                    sent_at=None,
                    started_at=moment,
                    ms=None,
                    progress=0.0,
                ).where(_is(audio_id, step) & _is_due(moment))
            )
            if not taken:
                return None
            row = self._row(audio_id, step)
            assert row is not None
            return Claim(audio_id, step, owner, row["attempts"])

    def renew(self, claim: Claim, progress: float | None = None) -> bool:
        """Extend the lease and note the progress (0 to 1); False if the claim is lost."""
        new: Row = {"due": self._storage.clock() + timedelta(seconds=self.lease_s)}
        if progress is not None:
            new["progress"] = min(1.0, max(0.0, progress))
        with self._database.transaction():
            return self._database.run(tables.Job.update(**new).where(_owned(claim))) == 1

    def finish(
        self,
        claim: Claim,
        document: Mapping[str, Any] | None,
        needs: Mapping[str, Sequence[str]],
        *,
        restart: bool = False,
    ) -> Outcome:
        """Store the result, close the step and release those that waited for it.

        Joins the caller's transaction, so that what the caller stored is rolled back too.

        Args:
            claim: What ``claim`` returned.
            document: The result to store, or None.
            needs: The steps that each step needs; those it does not name stay as they are.
            restart: Whether all other steps must run again, because their input changed.

        Raises:
            Fenced: If another worker has the step now.
        """
        with self._database.transaction():
            ms = self._close(claim, StepState.DONE, None)
            if document is not None:
                self._store(claim, document)
            if restart:
                self.restart(claim.audio_id, [step for step in needs if step != claim.step])
            self._unskip(claim)
            released = self._release(claim.audio_id, needs)
            return Outcome(StepState.DONE, ms, released, self._over(claim.audio_id))

    def fail(
        self, claim: Claim, error: str, needs: Mapping[str, Sequence[str]], *, final: bool = False
    ) -> Outcome:
        """Let the step be tried again later, or close it as failed and skip what needs it.

        Args:
            claim: What ``claim`` returned.
            error: The reason, for people.
            needs: The steps that each step needs.
            final: Whether another try cannot help.

        Raises:
            Fenced: If another worker has the step now.
        """
        with self._database.transaction():
            if not final and claim.attempt < self.max_attempts:
                return self._again(claim, self._backoff(claim.attempt), error)
            ms = self._close(claim, StepState.FAILED, error)
            self._skip(claim, needs)
            # A step may need several; what it waits for may have failed just now.
            released = self._release(claim.audio_id, needs)
            return Outcome(StepState.FAILED, ms, released, self._over(claim.audio_id))

    def postpone(self, claim: Claim, wait_s: float, reason: str | None = None) -> Outcome:
        """Give the step back, to be run after ``wait_s``; it does not count as a try.

        Raises:
            Fenced: If another worker has the step now.
        """
        with self._database.transaction():
            return self._again(claim, wait_s, reason, attempts=claim.attempt - 1)

    # ---- the sweep

    def due(
        self,
        steps: Iterable[str],
        limit: int,
        resend_s: float = RESEND_S,
        *,
        backfill: bool | None = None,
    ) -> list[tuple[str, str]]:
        """Return what waits for a worker who has not been told lately: (audio_id, step).

        Each is returned to one caller, and not again within ``resend_s``.

        Args:
            steps: The steps that are asked about.
            limit: Most to return; those that nobody has been told of come first, then those that
                were told of longest ago.
            resend_s: Seconds that count as lately.
            backfill: Whether the recordings are backfilled ones; None: either.
        """
        if limit <= 0:
            return []
        job = tables.Job
        moment = self._storage.clock()
        untold = job.sent_at.is_null() | (job.sent_at <= moment - timedelta(seconds=resend_s))
        query = job.select(job.recording, job.step).where(
            _is_due(moment) & job.step.in_(list(steps)) & untold
        )
        if backfill is not None:
            query = query.join(tables.Recording).where(tables.Recording.backfill == backfill)
        order = (job.sent_at.is_null(False), job.sent_at, job.due)
        rows = self._database.all(query.order_by(*order).limit(limit))
        told: list[tuple[str, str]] = []
        if not rows:
            return told
        with self._database.transaction():
            for row in rows:
                where = _is(row["recording"], row["step"]) & _is_due(moment) & untold
                if self._database.run(job.update(sent_at=moment).where(where)):
                    told.append((str(row["recording"]), str(row["step"])))
        return told

    def untell(self, audio_id: str, step: str) -> None:
        """Have the sweep tell a worker again: one who was told cannot take the step now."""
        with self._database.transaction():
            self._database.run(tables.Job.update(sent_at=None).where(_is(audio_id, step)))

    # ---- inside a transaction

    def _row(self, audio_id: str, step: str) -> Row | None:
        return self._database.first(tables.Job.select().where(_is(audio_id, step)))

    def _close(self, claim: Claim, state: StepState, error: str | None) -> int:
        locks.recording(self._database, claim.audio_id)
        row = self._row(claim.audio_id, claim.step)
        if row is None or row["owner"] != claim.owner or row["state"] != StepState.RUNNING:
            raise Fenced(claim.step, claim.audio_id)
        ms = _ms(row["started_at"], self._storage.clock())
        new: Row = {"state": state, "owner": None, "due": None, "ms": ms, "error": error}
        if state == StepState.DONE:
            new["progress"] = 1.0
        if not self._database.run(tables.Job.update(**new).where(_owned(claim))):
            raise Fenced(claim.step, claim.audio_id)
        return ms

    def _again(
        self, claim: Claim, wait_s: float, error: str | None, attempts: int | None = None
    ) -> Outcome:
        row = self._row(claim.audio_id, claim.step)
        moment = self._storage.clock()
        new: Row = {
            "state": StepState.PENDING,
            "owner": None,
            "due": moment + timedelta(seconds=wait_s),
            "sent_at": None,
            "error": error,
            "attempts": claim.attempt if attempts is None else attempts,
        }
        if not self._database.run(tables.Job.update(**new).where(_owned(claim))):
            raise Fenced(claim.step, claim.audio_id)
        return Outcome(StepState.PENDING, _ms(row["started_at"] if row else None, moment))

    def _backoff(self, attempt: int) -> float:
        longest = min(MAX_BACKOFF_S, BACKOFF_S * 2.0 ** (attempt - 1))
        return longest * (0.5 + self._jitter() / 2)

    def _store(self, claim: Claim, document: Mapping[str, Any]) -> None:
        result = tables.Result
        where = (result.recording == claim.audio_id) & (result.step == claim.step)
        self._database.run(result.delete().where(where))
        self._database.run(
            result.insert(
                recording=claim.audio_id,
                step=claim.step,
                created_at=self._storage.clock(),
                document=dict(document),
            )
        )

    def _states(self, audio_id: str) -> dict[str, Row]:
        job = tables.Job
        rows = self._database.all(job.select().where(job.recording == audio_id))
        return {row["step"]: row for row in rows}

    def _release(self, audio_id: str, needs: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
        """Make due what waits and has all it needs."""
        self._drop_unknown(audio_id, needs)
        rows = self._states(audio_id)
        done = {step for step, row in rows.items() if row["state"] == StepState.DONE}
        open_ = {step for step, row in rows.items() if not StepState(row["state"]).is_over}
        ready = [
            step
            for step, row in rows.items()
            if row["state"] == StepState.PENDING
            and row["due"] is None
            and step in needs
            and done.issuperset(needs[step])
            and open_.isdisjoint(self._after.get(step, ()))
        ]
        moment = self._storage.clock()
        job = tables.Job
        for step in ready:
            where = _is(audio_id, step) & (job.state == StepState.PENDING)
            self._database.run(job.update(due=moment, sent_at=moment).where(where))
        return tuple(ready)

    def _drop_unknown(self, audio_id: str, needs: Mapping[str, Sequence[str]]) -> None:
        """Close steps that the settings no longer name: nobody will ever run them."""
        if not needs:
            return
        job = tables.Job
        unknown = job.step.not_in(list(needs)) & (job.state == StepState.PENDING)
        skipped = {"state": StepState.SKIPPED, "due": None, "error": "it is not among the steps"}
        self._database.run(job.update(**skipped).where((job.recording == audio_id) & unknown))

    def _skip(self, claim: Claim, needs: Mapping[str, Sequence[str]]) -> None:
        """Close what needs the failed step, and what needs that."""
        gone = {claim.step}
        job = tables.Job
        while True:
            blocked = {step for step in needs if gone.intersection(needs[step])} - gone
            if not blocked:
                return
            for step in blocked:
                skipped = {"state": StepState.SKIPPED, "error": _skipped_by(claim)}
                where = _is(claim.audio_id, step) & (job.state == StepState.PENDING)
                self._database.run(job.update(due=None, **skipped).where(where))
            gone |= blocked

    def _unskip(self, claim: Claim) -> None:
        """Let what was skipped because the step had failed wait again: it has not failed now."""
        job = tables.Job
        skipped = (job.state == StepState.SKIPPED) & (job.error == _skipped_by(claim))
        where = (job.recording == claim.audio_id) & skipped
        self._database.run(job.update(due=None, sent_at=None, **_FRESH).where(where))

    def _over(self, audio_id: str) -> bool:
        return all(StepState(row["state"]).is_over for row in self._states(audio_id).values())


_FRESH: Row = {
    "state": StepState.PENDING,
    "attempts": 0,
    "owner": None,
    "started_at": None,
    "ms": None,
    "error": None,
    "progress": 0.0,
}


def _skipped_by(claim: Claim) -> str:
    return f"{claim.step} failed"


def _is(audio_id: str, step: str) -> Any:
    return (tables.Job.recording == audio_id) & (tables.Job.step == step)


def _owned(claim: Claim) -> Any:
    job = tables.Job
    mine = (job.owner == claim.owner) & (job.state == StepState.RUNNING)
    return _is(claim.audio_id, claim.step) & mine


def _is_due(moment: datetime) -> Any:
    job = tables.Job
    return job.state.in_([StepState.PENDING, StepState.RUNNING]) & (job.due <= moment)


def _ms(since: datetime | None, until: datetime) -> int:
    return max(0, round((until - since).total_seconds() * 1000)) if since else 0
