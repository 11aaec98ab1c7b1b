"""Calls that nobody answered, that were refused, or whose recording is gone: rows as they end up.

The pages read rows. Who writes them (the dialplan's reports, a refusal, ``settle``) has tests of
its own.
"""

from datetime import datetime, timedelta
from typing import Any

from callcore import intake, tables
from callcore.calls import (
    REFUSED,
    SETTLE,
    CallFacts,
    CallState,
    Disposition,
    Media,
    RecordingState,
    StepState,
)
from callcore.ledger import Ledger
from callcore.storage import call_rows, recording_rows
from tests.support.pages import Pages

#: As ``settle`` says it.
GONE = (
    "no file of this recording can be found: was it moved or deleted, or may callcore's user not "
    "look into its folder?"
)
DECLINED = "the caller refused analysis"
TOO_MANY = "too many calls at once; its text comes from the recording"


def change(pages: Pages, call_id: str, **columns: Any) -> None:
    """Set columns of a call."""
    call = tables.Call
    with pages.storage.database.transaction():
        pages.storage.database.run(call.update(**columns).where(call.call_id == call_id))


def missed(
    pages: Pages,
    call_id: str,
    disposition: Disposition | None,
    began: datetime,
    waited_s: float,
    **facts: Any,
) -> None:
    """Make a call that nobody answered."""
    named = CallFacts(call_id=call_id, started_at=began, **facts)
    with pages.storage.database.transaction():
        call_rows.claim(pages.storage.database, [call_id], named, began)
    change(
        pages,
        call_id,
        state=CallState.MISSED,
        disposition=disposition,
        ended_at=began + timedelta(seconds=waited_s),
    )


def refuse(pages: Pages, call_id: str) -> None:
    """Do what a refusal does to a call on record."""
    recording, database = tables.Recording, pages.storage.database
    with database.transaction():
        change(pages, call_id, consent=REFUSED, caller=None)
        database.run(tables.LiveSegment.delete().where(tables.LiveSegment.call == call_id))
        ids = [each.audio_id for each in pages.storage.recordings_of(call_id)]
        gone = {"state": RecordingState.REFUSED, "reason": DECLINED}
        database.run(recording.update(**gone).where(recording.call == call_id))
        for model in (tables.Media, tables.Result, tables.RecordingSource):
            database.run(model.delete().where(model.recording.in_(ids)))
        job = tables.Job
        database.run(job.update(state=StepState.SKIPPED).where(job.recording.in_(ids)))


def lost(pages: Pages, call_id: str, door: str = "spool", **facts: Any) -> str:
    """Make a recording whose file cannot be found; return its audio_id."""
    accepted = intake.accept_recording(
        pages.storage,
        pages.settings,
        CallFacts(call_id=call_id, **facts),
        door,
        [Media("mixed", str(pages.folder / "gone.wav"))],
    )
    needs = {SETTLE: (), **{name: (SETTLE,) for name in pages.settings.steps}}
    ledger = Ledger(pages.storage)
    claim = ledger.claim(accepted.audio_id, SETTLE)
    assert claim
    ledger.fail(claim, GONE, needs, final=True)
    with pages.storage.database.transaction():
        recording_rows.set_state(
            pages.storage.database, accepted.audio_id, RecordingState.MISSING, GONE
        )
    return accepted.audio_id


def without_text(pages: Pages, *uuids: str) -> None:
    """Let legs have no live text."""
    leg = tables.Leg
    with pages.storage.database.transaction():
        pages.storage.database.run(leg.update(no_text=TOO_MANY).where(leg.uuid.in_(uuids)))
