"""Calls whose caller refused analysis: each function runs inside a transaction.

What was said is deleted with the transaction that records the refusal. Files outlast it by a
moment: until they are gone from the disk they stay on record, as captures of the call's legs and
as sources of its recordings, so that whoever comes after a crash finds them (``files``).
"""

import functools
import operator
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

import peewee

from callcore import tables
from callcore.calls import (
    GIVING_DOORS,
    OUT,
    REFUSED,
    CallState,
    LegState,
    RecordingState,
    StepState,
)
from callcore.database import Database, Row
from callcore.errors import NotFound, Refused
from callcore.storage import locks

#: Why there is nothing of a call, for people.
REASON = "the caller refused analysis"
#: Code of a leg that may not stream.
CODE = "consent-refused"
#: Why a leg or call ended.
ENDED = "consent refused"
#: For how long live events are forgotten again: one that waited for the broker may come late.
FORGET_FOR = timedelta(minutes=10)
#: Identities of recordings of which nothing but their content is known begin so; all others may
#: hold a number, because names of files do.
CONTENT_IDENTITY = '["sha256"'
_EVENTS_LEFT = (tables.Call.consent == REFUSED) & tables.Call.consent_due.is_null(False)
#: Door of our own copies, once nobody may hear them any more.
_COPY = "copy"


def is_refused(db: Database, call_id: str) -> bool:
    """Tell whether a call's caller refused; waits for a refusal that is under way.

    What the transaction then stores of a call that was not refused, a later refusal deletes.

    Raises:
        NotFound: If no call has this id of its own.
    """
    call = tables.Call
    query = call.select(call.consent).where(call.call_id == call_id)
    share: Any = "FOR SHARE"  # peewee takes it; its types know the default only
    row = db.first(query.for_update(share) if db.is_postgres else query)
    if row is None:
        raise NotFound("no call has this id")
    return bool(row["consent"] == REFUSED)


def check(db: Database, call_id: str) -> None:
    """Make sure that a call may be heard.

    Raises:
        Refused: ``consent-refused``.
        NotFound: If no call has this id of its own.
    """
    if is_refused(db, call_id):
        raise Refused(CODE, REASON)


def refused_among(db: Database, ids: Iterable[str]) -> bool:
    """Tell whether any of these ids is that of a call whose caller refused."""
    call, alias = tables.Call, tables.CallAlias
    query = call.select(call.call_id).join(alias)
    known = alias.known_as.in_(list(ids)) & (call.consent == REFUSED)
    return db.first(query.where(known)) is not None


# ---- refusing


def refuse(db: Database, call_id: str, moment: datetime) -> None:
    """Mark a call as refused and delete what is stored of it, the number too; again is harmless.

    Legs whose stream has not come expire with the next look for such: whoever looks ends the call
    and says so.

    Args:
        db: The database, inside a transaction that holds ``call_rows.CALLS``.
        call_id: The call's own id.
        moment: Now.
    """
    call, leg, live = tables.Call, tables.Leg, tables.LiveSegment
    due = moment + FORGET_FOR
    db.run(call.update(consent=REFUSED, consent_due=due).where(call.call_id == call_id))
    forget_number(db, call_id)
    db.run(live.delete().where(live.call == call_id))
    awaited = (leg.call == call_id) & (leg.state == LegState.EXPECTED)
    db.run(leg.update(reason=ENDED, expires_at=moment).where(awaited))
    recording = tables.Recording
    query = recording.select().where(recording.call == call_id)
    rows = db.all(query.order_by(recording.audio_id))
    for row in rows:
        locks.recording(db, row["audio_id"])
    is_out = (call.call_id == call_id) & (call.direction == OUT)
    private = {"caller", "callee"} if db.first(call.select().where(is_out)) else {"caller"}
    for row in rows:
        _refuse_recording(db, row, private)
    _forget_messages(db, call_id)


def forget_number(db: Database, call_id: str) -> None:
    """Forget the number of who refused: of the caller or, of a call of ours, of who was called."""
    call = tables.Call
    own = call.call_id == call_id
    db.run(call.update(caller=None).where(own))
    db.run(call.update(callee=None).where(own & (call.direction == OUT)))


def _refuse_recording(db: Database, row: Row, private: set[str]) -> None:
    audio_id = row["audio_id"]
    job, result, correction = tables.Job, tables.Result, tables.Correction
    # Whoever runs a step now has lost it: what it brings is not stored.
    skipped = {"state": StepState.SKIPPED, "owner": None, "due": None, "error": REASON}
    db.run(job.update(**skipped).where(job.recording == audio_id))
    db.run(result.delete().where(result.recording == audio_id))
    db.run(correction.delete().where(correction.recording == audio_id))
    media, named = tables.Media, tables.RecordingSource
    for copy in db.all(media.select().where(media.recording == audio_id)):
        place = {"role": copy["role"], "path": copy["path"], "offset_s": copy["offset_s"]}
        db.insert(named, {"recording": audio_id, "source": _COPY, **place})
    db.run(media.delete().where(media.recording == audio_id))
    # Files of the PBX are not ours to delete, and their names may hold the number.
    ours = named.source.in_([_COPY, *sorted(GIVING_DOORS)])
    db.run(named.delete().where((named.recording == audio_id) & ~ours))
    db.run(named.update(original_name=None, url=None).where(named.recording == audio_id))
    # The name of the PBX's file may tell the number: not of which call.
    seen = tables.SpoolFile
    db.run(seen.update(audio_id=None).where(seen.audio_id == audio_id))
    private = private | ({"callee"} if row["facts"].get("direction") == OUT else set())
    facts = {name: value for name, value in row["facts"].items() if name not in private}
    new: Row = {"state": RecordingState.REFUSED, "reason": REASON, "facts": facts}
    if row["identity"] is not None and not row["identity"].startswith(CONTENT_IDENTITY):
        new["identity"] = None
    recording = tables.Recording
    db.run(recording.update(**new).where(recording.audio_id == audio_id))


def _forget_messages(db: Database, call_id: str) -> None:
    """Delete the messages to others that repeat what was said: the evidence of flags."""
    alias, delivery = tables.CallAlias, tables.Delivery
    ids = {row["known_as"] for row in db.all(alias.select().where(alias.call == call_id))}
    text: Any = peewee.Cast(delivery.payload, "TEXT")
    names_it = functools.reduce(operator.or_, (text.contains(each) for each in sorted(ids)))
    flags = delivery.select().where((delivery.type == "flag.raised") & names_it)
    for row in db.all(flags):
        if row["payload"]["data"].get("call_id") in ids:
            is_row = (delivery.message_id == row["message_id"]) & (
                delivery.endpoint == row["endpoint"]
            )
            db.run(delivery.delete().where(is_row))


# ---- live events


def rooms(db: Database) -> list[str]:
    """Return the refused calls whose live events are to be forgotten, perhaps again."""
    call = tables.Call
    rows = db.all(call.select(call.call_id).where(_EVENTS_LEFT))
    return [row["call_id"] for row in rows]


def rooms_forgotten(db: Database, call_ids: Sequence[str], moment: datetime) -> None:
    """Note that events of these calls are forgotten: for good if their time is over."""
    call = tables.Call
    over = _EVENTS_LEFT & (call.consent_due <= moment) & (call.state != CallState.LIVE)
    for batch in _batches(call_ids):
        db.run(call.update(consent_due=None).where(over & call.call_id.in_(batch)))


def forget_later(db: Database, moment: datetime) -> None:
    """Note that live events could not be forgotten: what waits with us comes even later."""
    call = tables.Call
    db.run(call.update(consent_due=moment + FORGET_FOR).where(_EVENTS_LEFT))


# ---- captures of which nobody can tell whether they may be heard


def hold_capture(db: Database, call_id: str, moment: datetime) -> None:
    """Note that a call's capture waits to be accepted."""
    call = tables.Call
    own = (call.call_id == call_id) & call.consent.is_null() & call.consent_due.is_null()
    db.run(call.update(consent_due=moment).where(own))


def held_captures(db: Database) -> list[str]:
    """Return the calls whose capture waits."""
    call = tables.Call
    held = call.consent.is_null() & call.consent_due.is_null(False)
    return [row["call_id"] for row in db.all(call.select(call.call_id).where(held))]


def release_capture(db: Database, call_id: str) -> None:
    """Note that a call's capture does not wait any more."""
    call = tables.Call
    own = (call.call_id == call_id) & call.consent.is_null()
    db.run(call.update(consent_due=None).where(own))


# ---- what is left to be deleted from the disk


def files(db: Database, call_id: str | None = None) -> tuple[list[str], list[str]]:
    """Return the paths of files of refused calls that are still on record.

    Args:
        db: The database.
        call_id: Of this call only.

    Returns:
        Those to delete, and those that a recording of another call needs.
    """
    call, leg, recording = tables.Call, tables.Leg, tables.Recording
    named, media = tables.RecordingSource, tables.Media
    where = call.consent == REFUSED
    if call_id is not None:
        where &= call.call_id == call_id
    sources = named.select(named.path).join(recording).join(call)
    found = {row["path"] for row in db.all(sources.where(where))}
    over = leg.capture_path.is_null(False) & (leg.state == LegState.ENDED)
    captures = leg.select(leg.capture_path).join(call).where(where & over)
    found |= {row["capture_path"] for row in db.all(captures)}
    paths = sorted(found)
    needed: set[str] = set()
    for batch in _batches(paths):
        for model in (named, media):
            query = model.select(model.path).join(recording).join(call)
            others = model.path.in_(batch) & call.consent.is_null()
            needed |= {row["path"] for row in db.all(query.where(others))}
    return [path for path in paths if path not in needed], sorted(needed)


def forget_files(db: Database, paths: Sequence[str]) -> None:
    """Forget files of refused calls that are gone."""
    call, leg, recording = tables.Call, tables.Leg, tables.Recording
    refused = call.select(call.call_id).where(call.consent == REFUSED)
    named = tables.RecordingSource
    theirs = named.recording.in_(
        recording.select(recording.audio_id).where(recording.call.in_(refused))
    )
    for batch in _batches(paths):
        db.run(named.delete().where(named.path.in_(batch) & theirs))
        held = leg.capture_path.in_(batch) & leg.call.in_(refused)
        db.run(leg.update(capture_path=None).where(held))


def recordings(
    db: Database, call_id: str | None = None, since: datetime | None = None
) -> list[tuple[str, datetime]]:
    """Return id and creation of the recordings of refused calls.

    Args:
        db: The database.
        call_id: Of this call only.
        since: Only those that came since then.
    """
    call, recording = tables.Call, tables.Recording
    where = call.consent == REFUSED
    if call_id is not None:
        where &= call.call_id == call_id
    if since is not None:
        where &= recording.created_at >= since
    query = recording.select(recording.audio_id, recording.created_at).join(call)
    return [(row["audio_id"], row["created_at"]) for row in db.all(query.where(where))]


# ---- live legs


def live_legs(db: Database, daemon: str) -> list[str]:
    """Return the UUIDs of a daemon's live legs whose calls were refused."""
    call, leg = tables.Call, tables.Leg
    mine = (leg.daemon == daemon) & (leg.state == LegState.LIVE) & (call.consent == REFUSED)
    return [row["uuid"] for row in db.all(leg.select(leg.uuid).join(call).where(mine))]


def legs_among(db: Database, uuids: Sequence[str]) -> set[str]:
    """Return those of these legs whose calls were refused."""
    call, leg = tables.Call, tables.Leg
    found: set[str] = set()
    for batch in _batches(uuids):
        theirs = leg.uuid.in_(batch) & (call.consent == REFUSED)
        found |= {row["uuid"] for row in db.all(leg.select(leg.uuid).join(call).where(theirs))}
    return found


# ---- numbers


def remember(db: Database, hashes: Iterable[str], moment: datetime) -> None:
    """Keep hashes; those that are known stay as they are."""
    for each in hashes:
        db.insert(tables.OptOut, {"number_hash": each, "made_at": moment})


def forget(db: Database, number_hash: str) -> bool:
    """Forget a hash; tell whether it was known."""
    model = tables.OptOut
    return db.run(model.delete().where(model.number_hash == number_hash)) == 1


def known(db: Database, hashes: Sequence[str]) -> set[str]:
    """Return those of the hashes that are kept."""
    model = tables.OptOut
    rows = db.all(model.select(model.number_hash).where(model.number_hash.in_(list(hashes))))
    return {row["number_hash"] for row in rows}


def has_any(db: Database) -> bool:
    """Tell whether any hash is kept."""
    return db.first(tables.OptOut.select(tables.OptOut.number_hash)) is not None


def _batches(items: Sequence[str]) -> Iterable[Sequence[str]]:
    return (items[first : first + 500] for first in range(0, len(items), 500))
