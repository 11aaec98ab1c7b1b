"""The way of a recording: settle, then its steps, each claimed, run and finished once.

Nothing here knows Dramatiq: workers call ``settle`` and ``run_step`` by recording, and ``sweep``
each second. Any of them may be killed at any moment, and any of them may be called twice.
"""

import contextlib
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Protocol

from callcore import admission, events, insights_document, settling
from callcore.backfill import Backfill
from callcore.bus import EventBus
from callcore.calls import (
    GIVING_DOORS,
    SETTLE,
    Call,
    CallState,
    DocumentState,
    Recording,
    RecordingState,
    StepState,
)
from callcore.document import error_of, state_of
from callcore.errors import (
    AudioError,
    CallcoreError,
    EngineDown,
    Fenced,
    InvalidRecording,
    MissingInput,
    NotFound,
    SchemaError,
)
from callcore.fetch import Fetcher, Rules
from callcore.intake import CAPTURE
from callcore.jobs import BACKFILL, queue_of
from callcore.ledger import RESEND_S, Claim, Ledger, Outcome
from callcore.log import call_context, frames
from callcore.settings import Settings
from callcore.settling import Gone, NotYet, Site
from callcore.steps import Engines, Step, StepContext, table
from callcore.storage import Storage, call_rows, consent_rows, outbox, recording_rows

logger = logging.getLogger(__name__)

#: Seconds between two notes of a step's progress.
PROGRESS_S = 1.0
#: Messages that may wait in one queue: while so many wait, the sweep adds none.
MAX_BACKLOG = 100
#: The same for backfilled recordings: a worker runs one step of them at a time.
MAX_BACKFILL = 10
#: Seconds after which a step is sent again while messages wait in its queue: its own is most
#: likely among them.
BUSY_RESEND_S = 60.0
#: Seconds after which a capture looks again whether the PBX's own recording has been settled.
OTHER_RECORDING_S = 5.0
#: Seconds after its report for which a capture waits for it: one that has to be fetched may take
#: a day to come, and takes the capture over then.
OTHER_PATIENCE_S = 600.0
#: Seconds after which a full disk is tried again.
DISK_FULL_S = 30.0
#: Seconds after which an engine that answers nobody is asked again: at least, and at most. Between
#: them a tenth of the time that it has been waited for, since each try reads the recording first.
ENGINE_AWAY_S = (5.0, 300.0)
#: Seconds for which a step waits for an engine that answers nobody, as for a host that is away
#: (``fetch.AWAY_S``): a night's outage costs nothing, and where the settings are wrong somebody is
#: told of it the day after.
ENGINE_PATIENCE_S = 86_400.0

#: How the reason of a step that waits for an engine tells since when, to the minute. It is what the
#: next try knows of that: any worker may make it, and running the step again forgets it.
_SINCE = "%Y-%m-%d %H:%M"
_ASKED_SINCE = re.compile(r"; asked in vain since (\d{4}-\d\d-\d\d \d\d:\d\d) UTC$")


class WakesWorkers(Protocol):
    """What tells workers that a step waits: ``jobs.Waker``."""

    def wake(self, step: str, audio_id: str, backfill: bool = False) -> bool:
        """Send a message; False if it could not be sent."""
        ...

    def backlog(self) -> Mapping[str, int] | None:
        """Return how many messages wait, by queue; None where that cannot be known."""
        ...


class Chain:
    """Runs the steps of recordings.

    Args:
        storage: The record.
        settings: Folders, waiting times, ``steps``.
        bus: Where ``step.*`` and ``analysis.*`` events go.
        engines: Where the engines of the steps run.
        waker: Tells workers what can run next.
    """

    def __init__(
        self,
        storage: Storage,
        settings: Settings,
        bus: EventBus,
        engines: Engines,
        waker: WakesWorkers,
    ) -> None:
        self.steps: dict[str, Step] = table(settings.steps)
        self.ledger = Ledger(
            storage,
            lease_s=settings.lease_s,
            max_attempts=settings.max_attempts,
            after={step.name: step.after for step in self.steps.values()},
        )
        self._storage = storage
        self._settings = settings
        self._bus = bus
        self._engines = engines
        self._waker = waker
        self._stopping = threading.Event()
        self._backfill = Backfill(storage, settings.backfill_load)
        self._needs = {SETTLE: (), **{s.name: (SETTLE, *s.needs) for s in self.steps.values()}}

    def stop(self) -> None:
        """Give steps that fail from now on back to the ledger: the process is ending."""
        self._stopping.set()

    # ---- one step

    def settle(self, audio_id: str) -> None:
        """Find, check and copy the files of a recording; does nothing unless that is due."""
        self._run(audio_id, SETTLE, self._settle)

    def run_step(self, name: str, audio_id: str) -> None:
        """Run one step of a recording; does nothing unless it is due."""
        step = self.steps[name]
        self._run(audio_id, name, lambda claim: self._run_step(claim, step))

    def _run(self, audio_id: str, name: str, work: Callable[[Claim], Outcome]) -> None:
        with self._backfill.turn(audio_id) as may_run:
            if may_run:
                self._claimed(audio_id, name, work)
            else:
                self.ledger.untell(audio_id, name)

    def _claimed(self, audio_id: str, name: str, work: Callable[[Claim], Outcome]) -> None:
        claim = self.ledger.claim(audio_id, name)
        if claim is None:
            return
        with call_context(audio_id=audio_id, step=name):
            logger.info("step starts", extra={"attempt": claim.attempt})
            self._publish(claim, "step.started")
            try:
                with self._lease(claim):
                    outcome = self._worked(claim, work)
            except (Fenced, NotFound) as error:
                logger.warning("the step's work is void", extra={"reason": str(error)})
                return
            logger.info("step ends", extra={"state": outcome.state, "ms": outcome.ms})
            self._announce(claim, outcome)

    def _worked(self, claim: Claim, work: Callable[[Claim], Outcome]) -> Outcome:
        """Do the work; whatever goes wrong ends in the ledger."""
        if claim.attempt > self.ledger.max_attempts:
            error = f"its worker died in each of {self.ledger.max_attempts} tries"
            return self._refuse(claim, InvalidRecording(error))
        try:
            return work(claim)
        except NotYet as error:
            return self.ledger.postpone(claim, error.wait_s, str(error))
        except (Fenced, NotFound):
            raise
        except AudioError as error:
            return self._refuse(claim, error)
        except SchemaError as error:
            logger.error("a step does not do what the schema says", extra={"reason": str(error)})
            return self._fail(claim, str(error), final=True)
        except EngineDown as error:
            # It answers nobody: the recording is not at fault, and waits until it is back.
            return self._await_engine(claim, error)
        except CallcoreError as error:
            if self._stopping.is_set():
                return self.ledger.postpone(claim, 0.0, self._reason(claim))
            logger.warning("step failed", extra={"reason": str(error)})
            return self._fail(claim, str(error))
        except Exception as error:
            # One recording must not stop the others. The message may hold what people said or
            # their numbers, so it goes neither on record nor into the log.
            logger.error("step failed", extra={"error": frames(error)})
            return self._fail(claim, f"{type(error).__name__}; the log of the worker tells more")

    def _await_engine(self, claim: Claim, error: EngineDown) -> Outcome:
        """Let a step wait for an engine that answers nobody; after a day of that it has failed."""
        moment = self._storage.clock()
        before = _ASKED_SINCE.search(self._reason(claim) or "")
        since = datetime.strptime(before[1], _SINCE).replace(tzinfo=UTC) if before else moment
        waited_s = (moment - since).total_seconds()
        if waited_s >= ENGINE_PATIENCE_S:
            logger.error("an engine is not waited for any longer", extra={"reason": str(error)})
            advice = (
                f"it has answered nobody for {ENGINE_PATIENCE_S / 3600:g} hours. "
                "`callcore doctor` tells what to mend; then run this again"
            )
            return self._fail(claim, f"{error}; {advice}", final=True)
        logger.warning("an engine is away", extra={"reason": str(error)})
        least_s, most_s = ENGINE_AWAY_S
        wait_s = max(error.retry_after_s, least_s, min(waited_s / 10, most_s))
        reason = f"{error}; asked in vain since {since.astimezone(UTC):{_SINCE}} UTC"
        return self.ledger.postpone(claim, 0.0 if self._stopping.is_set() else wait_s, reason)

    def _reason(self, claim: Claim) -> str | None:
        """Return why a step waited before this try, None if it did not."""
        steps = self._storage.steps(claim.audio_id)
        return next((each.error for each in steps if each.name == claim.step), None)

    def _fail(
        self,
        claim: Claim,
        error: str,
        *,
        final: bool = False,
        state: RecordingState = RecordingState.REFUSED,
    ) -> Outcome:
        database = self._storage.database
        with database.transaction():
            outcome = self.ledger.fail(claim, error, self._needs, final=final)
            if claim.step == SETTLE and outcome.state == StepState.FAILED:
                # Nothing may wait for this recording any more; what is stored of it stays.
                stored = recording_rows.stored_media(database, claim.audio_id)
                if stored and all(os.path.isfile(each.path) for each in stored):
                    state = RecordingState.STORED
                recording_rows.set_state(database, claim.audio_id, state, error)
            self._note_end(claim, outcome)
            return outcome

    def _refuse(self, claim: Claim, error: AudioError) -> Outcome:
        final = isinstance(error, (InvalidRecording, Gone))
        state = RecordingState.MISSING if isinstance(error, Gone) else RecordingState.REFUSED
        return self._fail(claim, str(error), final=final, state=state)

    def _run_step(self, claim: Claim, step: Step) -> Outcome:
        recording = self._storage.recording(claim.audio_id)
        document = step.run(self._context(claim, step, recording))
        insights_document.check_result(step.name, document)
        flags = document.get("flags") or []
        with self._storage.database.transaction():
            outcome = self.ledger.finish(claim, document, self._needs)
            for flag in flags:
                self._note("flag.raised", flag["flag_id"], claim, flag)
            self._note_end(claim, outcome)
        named = events.FIELDS["flag.raised"]
        self._send(
            [
                events.make(
                    "flag.raised", recording.call_id, **{name: flag[name] for name in named}
                )
                for flag in flags
            ]
        )
        return outcome

    def _note_end(self, claim: Claim, outcome: Outcome) -> None:
        """Note that an analysis is over, inside the transaction that ended its last step.

        That may be settling, told of another file meanwhile, and it may end more than once with
        nothing new: what is told once is the run that its newest step began.
        """
        if outcome.over:
            steps = recording_rows.steps(self._storage.database, claim.audio_id)
            status = state_of(steps)
            begun = [each.started_at for each in steps if each.started_at and each.name != SETTLE]
            newest = max(begun, default=steps[0].started_at)
            key = f"{claim.audio_id} {newest and newest.isoformat()}"
            data = {"status": status, "error": error_of(steps)}
            self._note(_kind_of(status), key, claim, data)

    def _note(self, kind: str, key: str, claim: Claim, data: Mapping[str, Any]) -> None:
        database = self._storage.database
        call_id = recording_rows.call_of(database, claim.audio_id)
        about = {"call_id": call_id, "audio_id": claim.audio_id, **data}
        outbox.note(database, kind, key, about, self._storage.clock())

    def _context(self, claim: Claim, step: Step, recording: Recording) -> StepContext:
        stored = self._storage.results(claim.audio_id)
        for name in step.needs:
            if name not in stored:
                raise MissingInput(step.name, claim.audio_id, f"{name} has no result")
        call = self._storage.call(recording.call_id)
        return StepContext(
            recording=recording,
            call=call,
            language=self._language(recording, call),
            settings=self._settings,
            results={name: stored[name] for name in (*step.needs, *step.after) if name in stored},
            engines=self._engines,
            take_segment_block=lambda: self._storage.take_segment_block(recording.call_id),
            live_segments=lambda: self._storage.live_segments(recording.call_id),
            corrections=self._storage.corrections,
            progress=_Progress(self.ledger, claim),
        )

    def _language(self, recording: Recording, call: Call) -> str | None:
        said = recording.facts.language or call.facts.language or self._settings.language
        return None if said == "auto" else said

    # ---- settle

    def _settle(self, claim: Claim) -> Outcome:
        """Settle a recording; files that nobody needs are removed once that is on record."""
        unneeded: list[str] = []
        try:
            outcome = self._settled(claim, unneeded)
        except OSError as error:
            recording = self._storage.recording(claim.audio_id)
            later = settling.later(recording, error, self._storage.clock())
            if later is None:
                raise
            raise later from error
        if unneeded:
            unused = self._storage.unused_files(claim.audio_id, unneeded)
            settling.remove(unused, self._settings.audio_dir)
        return outcome

    def _settled(self, claim: Claim, unneeded: list[str]) -> Outcome:
        if lacking := admission.shortage(self._settings):
            raise NotYet(DISK_FULL_S, lacking)
        is_fallback = self._is_fallback(claim.audio_id)
        better = self._own_recording(claim.audio_id) if is_fallback else None
        database = self._storage.database
        if better is not None:
            with database.transaction():
                database.serialize(call_rows.CALLS)  # before the recording's own, as everywhere
                outcome = self.ledger.finish(claim, None, {})
                unneeded += self._merge_capture(better, claim.audio_id)
            return replace(outcome, over=False)
        if is_fallback and (forgotten := self._forgotten(claim)) is not None:
            return forgotten
        settled = self._copied(claim.audio_id)
        media = settled.media
        with database.transaction():
            database.serialize(call_rows.CALLS)
            other = recording_rows.find_duplicate(database, claim.audio_id, media)
            if other is not None:
                return self._merged(claim, other, media, unneeded)
            before = recording_rows.stored_media(database, claim.audio_id)
            offset_s = recording_rows.offset(database, claim.audio_id)
            changed = recording_rows.store(
                database, claim.audio_id, media, offset_s, settled.reason
            )
            outcome = self.ledger.finish(claim, None, self._needs, restart=changed)
            self._note_end(claim, outcome)
            given = self._given_files(claim.audio_id)
            left = given | {each.path for each in before}
            unneeded += left - {each.path for each in media}
            unneeded += self._absorb_captures(claim.audio_id)
        return outcome

    def _copied(self, audio_id: str) -> settling.Settled:
        database = self._storage.database
        recording = self._storage.recording(audio_id)
        audio_dir = self._settings.audio_dir
        named = recording_rows.sources(database, audio_id)
        # Outside of the transaction: a share that is slow must keep nobody from writing.
        beside = settling.with_siblings(named, audio_dir)
        with database.transaction():
            call_id = recording_rows.call_of(database, audio_id)
            if beside and not consent_rows.is_refused(database, call_id):
                recording_rows.add_files(database, audio_id, beside, named[0].source)
            named = recording_rows.sources(database, audio_id)
            stored = recording_rows.stored_media(database, audio_id)
        fetcher = Fetcher(Rules.of(self._settings), stopped=self._stopping.is_set)
        moment = self._storage.clock()
        spool_dir = self._settings.spool_dir
        site = Site(audio_dir, spool_dir, self._settings.settle_s, moment, fetcher)
        try:
            return settling.settle(recording, named, stored, site)
        except OSError as error:
            if error.errno in settling.DISK_FULL:
                raise NotYet(DISK_FULL_S, "the disk of the audio folder is full") from error
            raise

    def _merged(
        self,
        claim: Claim,
        survivor: str,
        media: Sequence[recording_rows.StoredMedia],
        unneeded: list[str],
    ) -> Outcome:
        """Make the recording an alias of the one that holds the same audio."""
        database = self._storage.database
        outcome = self.ledger.finish(claim, None, {})  # while its row is there
        given = self._given_files(claim.audio_id)
        lacks = recording_rows.merge(database, survivor, claim.audio_id, self._storage.clock())
        again = {survivor} if lacks else set()
        for audio_id in again.union(recording_rows.moved(database, survivor)):
            self.ledger.restart(audio_id, [SETTLE])
        unneeded += (given | {each.path for each in media}) - self._files_of(survivor)
        logger.info("the recording is known already", extra={"same_as": survivor})
        return replace(outcome, over=False)

    def _given_files(self, audio_id: str) -> set[str]:
        """Return the paths of files that were handed over to us, not only pointed at."""
        named = recording_rows.sources(self._storage.database, audio_id)
        return {each.path for each in named if each.source in GIVING_DOORS}

    def _files_of(self, audio_id: str) -> set[str]:
        """Return the paths that a recording needs: the files it was made from, and its copies."""
        database = self._storage.database
        named = {each.path for each in recording_rows.sources(database, audio_id)}
        return named | {each.path for each in recording_rows.stored_media(database, audio_id)}

    # ---- captures

    def _is_fallback(self, audio_id: str) -> bool:
        recording = self._storage.recording(audio_id)
        return recording.source == CAPTURE and self._settings.capture == "fallback"

    def _own_recording(self, audio_id: str) -> str | None:
        """Return the PBX's stored recording of the call that we captured, if there is one.

        Raises:
            NotYet: If one has been reported and is not settled.
        """
        capture = self._storage.recording(audio_id)
        for other in self._storage.recordings_of(capture.call_id):
            if other.source == CAPTURE:
                continue
            if other.state == RecordingState.STORED:
                return other.audio_id
            waited_s = (self._storage.clock() - other.created_at).total_seconds()
            if other.state == RecordingState.EXPECTED and waited_s < OTHER_PATIENCE_S:
                raise NotYet(OTHER_RECORDING_S, "the PBX's own recording is being settled")
        return None

    def _forgotten(self, claim: Claim) -> Outcome | None:
        """Forget a capture of a call that nobody answered, with its files; None if it counts."""
        database = self._storage.database
        with database.transaction():
            database.serialize(call_rows.CALLS)
            if not self._is_unanswered(claim.audio_id):
                return None
            outcome = self.ledger.finish(claim, None, {})  # while its row is there
            given = self._given_files(claim.audio_id)
            files = recording_rows.unused(database, claim.audio_id, given)
            recording_rows.forget_capture(database, claim.audio_id, files)
        settling.remove(files, self._settings.audio_dir)
        logger.info("the capture is dropped", extra={"reason": "nobody answered"})
        return replace(outcome, over=False)

    def _is_unanswered(self, audio_id: str) -> bool:
        # A caller who waited in vain was tapped too: ringing and music are no conversation. Only
        # now, when the capture is due, has the PBX had time to tell how the call ended. Who spoke
        # to a machine or a voicemail is kept: that stream may be the only recording of it. So is
        # what nobody listened to live.
        recording = self._storage.recording(audio_id)
        call = self._storage.call(recording.call_id)
        is_new = recording.state == RecordingState.EXPECTED
        was_heard = self._settings.live == "on" and not any(leg.no_text for leg in call.legs)
        if not (is_new and was_heard and call.state == CallState.MISSED):
            return False
        return not self._storage.live_segments(call.call_id)

    def _absorb_captures(self, audio_id: str) -> list[str]:
        """Merge captures of the call into its own recording, which came later than they waited."""
        own = self._storage.recording(audio_id)
        if own.source == CAPTURE or self._settings.capture != "fallback":
            return []
        captures = [
            each.audio_id
            for each in self._storage.recordings_of(own.call_id)
            if each.source == CAPTURE
        ]
        return [path for each in captures for path in self._merge_capture(audio_id, each)]

    def _merge_capture(self, survivor: str, capture: str) -> list[str]:
        """Merge a capture and return its files, which nobody needs any more."""
        database = self._storage.database
        files = self._files_of(capture) - self._files_of(survivor)
        recording_rows.forget_sources(database, capture)
        # The capture began with the call; when the PBX's recording did is another matter.
        recording_rows.forget_start(database, capture)
        recording_rows.merge(database, survivor, capture, self._storage.clock())
        return sorted(files)

    # ---- the sweep

    def sweep(self) -> int:
        """Tell workers of steps that nobody took, and expire registrations; call it each second.

        Returns:
            How many messages were sent.
        """
        self._expire_legs()
        backlog = self._waker.backlog()
        return sum(self._feed(queue, waiting) for queue, waiting in (backlog or {}).items())

    def _feed(self, queue: str, waiting: int) -> int:
        """Send what is due in one queue; a queue that is full holds up no other."""
        backfill = queue == BACKFILL
        if backfill and self._backfill.must_wait():
            return 0
        steps = [step for step in self._needs if queue_of(step, backfill) == queue]
        limit = (MAX_BACKFILL if backfill else MAX_BACKLOG) - waiting
        resend_s = BUSY_RESEND_S if waiting else RESEND_S
        due = self.ledger.due(steps, limit, resend_s, backfill=backfill)
        return sum(self._waker.wake(step, audio_id, backfill) for audio_id, step in due)

    def _expire_legs(self) -> None:
        calls = [self._storage.call(call_id) for call_id in self._storage.expire_legs()]
        self._send(
            [
                events.make(
                    "call.ended", each.call_id, duration=each.duration_s, reason=each.reason
                )
                for each in calls
            ]
        )

    # ---- leases

    @contextlib.contextmanager
    def _lease(self, claim: Claim) -> Iterator[None]:
        """Renew the lease while the work goes on."""
        over = threading.Event()
        thread = threading.Thread(
            target=self._renew, args=(claim, over), name=f"lease-{claim.step}", daemon=True
        )
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _renew(self, claim: Claim, over: threading.Event) -> None:
        while not over.wait(self.ledger.lease_s / 3):
            try:
                if not self.ledger.renew(claim):
                    return  # its work will be rolled back when it tries to finish
            except Exception as error:
                # The database may come back before the lease ends; if not, the step is fenced.
                logger.error("the lease could not be renewed", extra={"error": frames(error)})

    # ---- events

    def _announce(self, claim: Claim, outcome: Outcome) -> None:
        """Publish how a step ended and wake what follows; both may fail without harm."""
        backfill = bool(outcome.released) and self._backfill.concerns(claim.audio_id)
        for step in outcome.released:
            self._waker.wake(step, claim.audio_id, backfill)
        if outcome.state == StepState.DONE:
            self._publish(claim, "step.finished", ms=outcome.ms)
        elif outcome.state == StepState.FAILED:
            self._publish(claim, "step.failed", ms=outcome.ms, error=self._reason(claim))
        if outcome.over:
            steps = self._storage.steps(claim.audio_id)
            self._publish(claim, _kind_of(state_of(steps)), error=error_of(steps))

    def _publish(self, claim: Claim, name: str, **fields: Any) -> None:
        try:
            recording = self._storage.recording(claim.audio_id)
        except NotFound:
            return
        known: Mapping[str, Any] = {"audio_id": recording.audio_id, "step": claim.step, **fields}
        self._send([events.make(name, recording.call_id, **known)])

    def _send(self, made: list[events.Event]) -> None:
        if not made:
            return
        try:
            self._bus.publish(made)
        except Exception:
            # Events are for those who watch; the record does not depend on them.
            logger.warning("events could not be published", extra={"count": len(made)})


def _kind_of(state: DocumentState) -> str:
    return "analysis.failed" if state == DocumentState.FAILED else "analysis.ready"


class _Progress:
    """Notes the progress of a step, at most once a second."""

    def __init__(self, ledger: Ledger, claim: Claim) -> None:
        self._ledger = ledger
        self._claim = claim
        self._noted_at = time.monotonic()

    def __call__(self, share: float) -> None:
        moment = time.monotonic()
        if moment - self._noted_at >= PROGRESS_S:
            self._noted_at = moment
            if not self._ledger.renew(self._claim, share):
                raise Fenced(self._claim.step, self._claim.audio_id)
