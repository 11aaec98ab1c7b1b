"""Calls, their ids, their legs and their live words: each function runs inside a transaction."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from peewee import JOIN, fn

from callcore import tables
from callcore.calls import (
    OUT,
    REFUSED,
    Call,
    CallFacts,
    CallState,
    Disposition,
    Ending,
    Leg,
    LegState,
    iso,
    session_id,
)
from callcore.database import Database, Row
from callcore.errors import NotFound, Refused
from callcore.live_figures import LiveFigures
from callcore.results import Segment, Word
from callcore.storage import consent_rows, outbox

#: Transactions that decide which ids belong to one call run one after the other. A few
#: milliseconds each; beyond some hundred registrations a second, lock by id instead.
CALLS = 0x63616C6C
#: Segment numbers of one leg or one transcript: more than anyone says in one.
BLOCK = 100_000
#: Agents of one call that are told apart: after a transfer there are two.
AGENT_LEGS = ("agent", *(f"agent-{number}" for number in range(2, 10)))

#: Facts that a call keeps as columns.
FACT_COLUMNS = (
    "uniqueid",
    "linkedid",
    "caller",
    "callee",
    "agent",
    "queue",
    "direction",
    "language",
)


def ids_of(facts: CallFacts) -> list[str]:
    """Return the ids by which the call is known, the one to name it by first."""
    candidates = (facts.linkedid, facts.uniqueid, facts.call_id)
    return list(dict.fromkeys(each for each in candidates if each))


def resolve(db: Database, any_id: str) -> str:
    """Return the call_id behind any id of a call.

    Raises:
        NotFound: If no call has this id.
    """
    row = db.first(tables.CallAlias.select().where(tables.CallAlias.known_as == any_id))
    if row is None:
        raise NotFound("no call has this id")
    return str(row["call"])


def all_ids(db: Database, call_id: str) -> list[str]:
    """Return every id by which a call is known."""
    alias = tables.CallAlias
    rows = db.all(alias.select(alias.known_as).where(alias.call == call_id))
    return sorted({call_id, *(row["known_as"] for row in rows)})


def claim(db: Database, ids: Sequence[str], facts: CallFacts, moment: datetime) -> str:
    """Return the call that has any of ``ids``; make it if there is none.

    All ``ids`` become its aliases. Calls that turn out to be one are merged.

    Args:
        db: The database, inside a transaction.
        ids: At least one id, the one to name a new call by first.
        facts: Completes what is known about the call.
        moment: Now.
    """
    db.serialize(CALLS)
    found = db.all(
        tables.Call.select()
        .join(tables.CallAlias)
        .where(tables.CallAlias.known_as.in_(ids))
        .distinct()
    )
    if not found:
        _insert_call(db, ids[0], facts, moment)
        call_id = ids[0]
    else:
        # Where audio streamed, a daemon holds the id; a call without an id of the PBX is named
        # after its recording, which tells nobody anything; else the first stays.
        found.sort(
            key=lambda row: (
                not _has_legs(db, row["call_id"]),
                _is_recording(db, row["call_id"]),
                row["created_at"],
                row["call_id"],
            )
        )
        call_id = str(found[0]["call_id"])
        for other in found[1:]:
            merge(db, call_id, str(other["call_id"]), moment)
        complete_facts(db, call_id, facts)
    for each in ids:
        db.insert(tables.CallAlias, {"known_as": each, "call": call_id})
    return call_id


def complete(db: Database, ids: Sequence[str], facts: CallFacts, moment: datetime) -> str | None:
    """Return the call that has any of ``ids``, completed as by ``claim``; None if there is none."""
    db.serialize(CALLS)
    alias = tables.CallAlias
    known = db.first(alias.select().where(alias.known_as.in_(ids))) if ids else None
    return claim(db, ids, facts, moment) if known is not None else None


def _insert_call(db: Database, call_id: str, facts: CallFacts, moment: datetime) -> None:
    started_at = facts.started_at or moment
    db.run(
        tables.Call.insert(
            call_id=call_id,
            session_id=session_id(call_id, started_at),
            state=CallState.ENDED,
            created_at=moment,
            started_at=started_at,
            start_known=facts.started_at is not None,
            **{name: getattr(facts, name) for name in FACT_COLUMNS},
        )
    )


def _is_recording(db: Database, call_id: str) -> bool:
    model, alias = tables.Recording, tables.RecordingAlias
    own = db.first(model.select(model.audio_id).where(model.audio_id == call_id))
    merged = db.first(alias.select(alias.known_as).where(alias.known_as == call_id))
    return own is not None or merged is not None


def _has_legs(db: Database, call_id: str) -> bool:
    return db.first(tables.Leg.select().where(tables.Leg.call == call_id)) is not None


def complete_facts(db: Database, call_id: str, facts: CallFacts) -> None:
    """Fill in what the call did not know; what it knew stays."""
    row = _call_row(db, call_id)
    new = {n: getattr(facts, n) for n in FACT_COLUMNS if row[n] is None and getattr(facts, n)}
    if facts.started_at is not None and not row["start_known"]:
        new |= _start(call_id, facts.started_at)
    if new:
        db.run(tables.Call.update(**new).where(tables.Call.call_id == call_id))
    if row["consent"] == REFUSED:
        consent_rows.forget_number(db, call_id)  # who refused is not named by a later report


def _start(call_id: str, started_at: datetime) -> Row:
    return {
        "started_at": started_at,
        "start_known": True,
        "session_id": session_id(call_id, started_at),
    }


def _call_row(db: Database, call_id: str) -> Row:
    row = db.first(tables.Call.select().where(tables.Call.call_id == call_id))
    if row is None:
        raise NotFound("no call has this id")
    return row


def merge(db: Database, survivor: str, loser: str, moment: datetime) -> None:
    """Make two calls one: all of ``loser`` moves to ``survivor``, its ids become aliases.

    If the caller of one of them refused analysis, what is stored of the other goes too.
    """
    kept, gone = _call_row(db, survivor), _call_row(db, loser)
    known = {name: gone[name] for name in FACT_COLUMNS}
    started_at = gone["started_at"] if gone["start_known"] else None
    complete_facts(db, survivor, CallFacts(**known, started_at=started_at))
    if kept["start_known"] and gone["start_known"]:
        _shift(db, loser, (gone["started_at"] - kept["started_at"]).total_seconds())
    new = _united_ending(kept, gone)
    if CallState.LIVE in (kept["state"], gone["state"]):
        new |= {"state": CallState.LIVE, "ended_at": None, "reason": None}
    db.run(tables.Call.update(**new).where(tables.Call.call_id == survivor))
    for model in (tables.CallAlias, tables.Leg, tables.LiveSegment, tables.Recording):
        db.run(model.update(call=survivor).where(model.call == loser))
    db.run(tables.SegmentBlock.update(call_id=survivor).where(tables.SegmentBlock.call_id == loser))
    db.run(tables.Call.delete().where(tables.Call.call_id == loser))
    if new.get("state") != CallState.LIVE:
        went = _went(db, _call_row(db, survivor))
        db.run(tables.Call.update(**went).where(tables.Call.call_id == survivor))
    if new["consent"] == REFUSED:
        consent_rows.refuse(db, survivor, moment)


def _united_ending(kept: Row, gone: Row) -> Row:
    """Return what two calls that are one say of their end and of the caller's consent."""
    dispositions = (kept["disposition"], gone["disposition"])
    was_answered = Disposition.ANSWERED in dispositions
    new: Row = {
        "disposition": Disposition.ANSWERED if was_answered else dispositions[0] or dispositions[1],
        "answered_at": min(filter(None, (kept["answered_at"], gone["answered_at"])), default=None),
        "consent": kept["consent"] or gone["consent"],
        "consent_due": kept["consent_due"] or gone["consent_due"],
    }
    if kept["ended_at"] is None:
        new |= {"ended_at": gone["ended_at"], "reason": gone["reason"]}
    return new


def _shift(db: Database, call_id: str, delta_s: float) -> None:
    """Move the times of a call's legs and live words onto another zero."""
    leg, live = tables.Leg, tables.LiveSegment
    db.run(leg.update(offset_s=leg.offset_s + delta_s).where(leg.call == call_id))
    for row in db.all(live.select().where(live.call == call_id)):
        words = [{**w, "s": w["s"] + delta_s, "e": w["e"] + delta_s} for w in row["words"]]
        times = {"start_s": row["start_s"] + delta_s, "end_s": row["end_s"] + delta_s}
        where = (live.call == call_id) & (live.segment == row["segment"])
        db.run(live.update(words=words, **times).where(where))


# ---- reading


def read(db: Database, any_id: str) -> Call:
    """Return a call with its legs."""
    return read_many(db, [_call_row(db, resolve(db, any_id))])[0]


def read_many(db: Database, rows: Sequence[Row]) -> list[Call]:
    """Return the calls of these rows, each with its legs."""
    ids = [row["call_id"] for row in rows]
    legs: dict[str, list[Leg]] = {call_id: [] for call_id in ids}
    query = tables.Leg.select().where(tables.Leg.call.in_(ids))
    for row in db.all(query.order_by(tables.Leg.created_at, tables.Leg.uuid)) if ids else []:
        legs[row["call"]].append(leg_of(row))
    return [_call_of(row, legs[row["call_id"]]) for row in rows]


def _call_of(row: Row, legs: Iterable[Leg]) -> Call:
    known: dict[str, Any] = {name: row[name] for name in FACT_COLUMNS}
    started_at = row["started_at"] if row["start_known"] else None
    return Call(
        call_id=row["call_id"],
        session_id=row["session_id"],
        state=CallState(row["state"]),
        started_at=row["started_at"],
        ended_at=row["ended_at"],
        reason=row["reason"],
        facts=CallFacts(call_id=row["call_id"], started_at=started_at, **known),
        legs=tuple(legs),
        disposition=Disposition(row["disposition"]) if row["disposition"] else None,
        answered_at=row["answered_at"],
        consent=row["consent"],
    )


def leg_of(row: Row) -> Leg:
    """Return the leg of a row of ``legs``."""
    return Leg(
        uuid=row["uuid"],
        call_id=row["call"],
        leg=row["leg"],
        state=LegState(row["state"]),
        segment_base=row["segment_base"],
        language=row["language"],
        started_at=row["started_at"],
        ended_at=row["ended_at"],
        offset_s=row["offset_s"],
        reason=row["reason"],
        right_uuid=row["right_uuid"],
        no_text=row["no_text"],
    )


def _leg_row(db: Database, uuid: str) -> Row | None:
    return db.first(tables.Leg.select().where(tables.Leg.uuid == uuid))


# ---- legs


def take_segment_block(db: Database, call_id: str) -> int:
    """Return the first number of a block of segment numbers that nobody else has."""
    return db.insert_numbered(tables.SegmentBlock, {"call_id": call_id}) * BLOCK


def add_leg(
    db: Database, uuid: str, facts: CallFacts, expires_at: datetime | None, moment: datetime
) -> Leg:
    """Insert an expected leg and the call it belongs to.

    A second ``agent`` of a call gets a name of its own: what the two say is told apart. A second
    stream of the caller is the same person.

    Raises:
        Refused: ``uuid-in-use`` or ``consent-refused``.
    """
    db.serialize(CALLS)
    if _leg_row(db, uuid) is not None:
        raise Refused("uuid-in-use", "this UUID has been registered before", "uuid")
    call_id = claim(db, [*ids_of(facts), uuid], facts, moment)
    consent_rows.check(db, call_id)
    call = _call_row(db, call_id)
    first = not _has_legs(db, call_id)
    db.run(
        tables.Leg.insert(
            uuid=uuid,
            call=call_id,
            leg=_free_name(db, call_id, facts.leg or "mixed"),
            state=LegState.EXPECTED,
            segment_base=take_segment_block(db, call_id),
            language=facts.language or call["language"],
            created_at=moment,
            expires_at=expires_at,
            offset_s=0.0,
        )
    )
    if first and call["state"] == CallState.ENDED and call["ended_at"] is None:
        db.run(tables.Call.update(state=CallState.LIVE).where(tables.Call.call_id == call_id))
    row = _leg_row(db, uuid)
    assert row is not None
    return leg_of(row)


def _free_name(db: Database, call_id: str, name: str) -> str:
    if name != AGENT_LEGS[0]:
        return name
    leg = tables.Leg
    known = (leg.call == call_id) & (leg.state != LegState.EXPIRED)
    taken = {row["leg"] for row in db.all(leg.select(leg.leg).where(known))}
    return next((each for each in AGENT_LEGS if each not in taken), AGENT_LEGS[-1])


def add_right(
    db: Database,
    left: Leg,
    uuid: str,
    facts: CallFacts,
    expires_at: datetime | None,
    moment: datetime,
) -> Leg:
    """Insert the agent's leg, which is the right channel of the stream of ``left``.

    Returns:
        The left leg, which now names the right one.

    Raises:
        Refused: ``uuid-in-use``.
    """
    other = replace(facts, leg="agent", call_id=left.call_id)
    right = add_leg(db, uuid, other, expires_at, moment)
    leg = tables.Leg
    db.run(leg.update(right_uuid=right.uuid).where(leg.uuid == left.uuid))
    return replace(left, right_uuid=right.uuid)


def start_leg(db: Database, uuid: str, daemon: str, moment: datetime) -> Leg | None:
    """Make an expected leg live; None if the UUID was never registered.

    A stream that came in time counts even if we learn of it so late that its registration was
    given up: the call lives again.

    Args:
        db: The database, inside a transaction.
        uuid: 36 characters.
        daemon: Name of the daemon that has the stream.
        moment: When the stream came.

    Raises:
        Refused: ``uuid-used``, ``uuid-expired`` or ``consent-refused``.
    """
    db.serialize(CALLS)
    leg = _leg_row(db, uuid)
    if leg is None:
        return None
    if leg["state"] in (LegState.LIVE, LegState.ENDED):
        raise Refused("uuid-used", "this UUID has had its stream already", "uuid")
    consent_rows.check(db, leg["call"])
    if leg["expires_at"] and leg["expires_at"] < moment:
        raise Refused("uuid-expired", "the registration of this UUID has expired", "uuid")
    started_at = _start_call(db, leg["call"], moment)
    started = db.run(
        tables.Leg.update(
            state=LegState.LIVE,
            daemon=daemon,
            started_at=moment,
            ended_at=None,
            reason=None,
            offset_s=max(0.0, (moment - started_at).total_seconds()),
        ).where((tables.Leg.uuid == uuid) & (tables.Leg.state == leg["state"]))
    )
    if started != 1:  # two daemons: one has it, whatever both have read
        raise Refused("uuid-used", "this UUID has had its stream already", "uuid")
    row = _leg_row(db, uuid)
    assert row is not None
    return leg_of(row)


def _start_call(db: Database, call_id: str, moment: datetime) -> datetime:
    """Make the call live and return its zero: the first sample of its first leg."""
    call = _call_row(db, call_id)
    leg, recording = tables.Leg, tables.Recording
    began = db.first(leg.select().where((leg.call == call_id) & leg.started_at.is_null(False)))
    recorded = db.first(recording.select().where(recording.call == call_id))
    new: Row = {"state": CallState.LIVE, "ended_at": None, "reason": None}
    if began is None and not (recorded and call["start_known"]):
        new |= _start(call_id, moment)
    db.run(tables.Call.update(**new).where(tables.Call.call_id == call_id))
    zero: datetime = {**call, **new}["started_at"]
    return zero


def end_leg(db: Database, uuid: str, reason: str, capture: str | None, moment: datetime) -> None:
    """End a live leg; one that has ended stays as it was."""
    leg = tables.Leg
    ended = {"state": LegState.ENDED, "ended_at": moment, "reason": reason}
    db.run(
        leg.update(capture_path=capture, **ended).where(
            (leg.uuid == uuid) & (leg.state == LegState.LIVE)
        )
    )


def captures_of(db: Database, uuids: Sequence[str]) -> dict[str, tuple[LegState, str | None]]:
    """Return state and capture path of each leg that has one of these UUIDs."""
    leg = tables.Leg
    rows: list[Row] = []
    for first in range(0, len(uuids), 500):
        rows += db.all(leg.select().where(leg.uuid.in_(uuids[first : first + 500])))
    return {row["uuid"]: (LegState(row["state"]), row["capture_path"]) for row in rows}


def adopt_capture(db: Database, uuid: str, capture: str) -> str | None:
    """Give an ended leg without a capture this one; return its call, None if it needs none."""
    leg = tables.Leg
    lacks = (leg.uuid == uuid) & (leg.state == LegState.ENDED) & leg.capture_path.is_null()
    if not db.run(leg.update(capture_path=capture).where(lacks)):
        return None
    row = _leg_row(db, uuid)
    assert row is not None
    return str(row["call"])


# ---- daemons


def note_daemon(
    db: Database, name: str, moment: datetime, load: float | None, figures: LiveFigures | None
) -> None:
    """Store that the daemon is alive; forget those that were not for a day."""
    daemon = tables.Daemon
    told = {
        "seen_at": moment,
        "load": load,
        "figures": figures.as_json() if figures is not None else None,
    }
    if not db.insert(daemon, {"name": name, **told}):
        db.run(daemon.update(**told).where(daemon.name == name))
    db.run(daemon.delete().where(daemon.seen_at < moment - timedelta(days=1)))


def live_daemons(db: Database) -> dict[str, datetime | None]:
    """Return each daemon that has live legs, with its last sign of life."""
    leg, daemon = tables.Leg, tables.Daemon
    query = (
        leg.select(leg.daemon, daemon.seen_at)
        .join(daemon, JOIN.LEFT_OUTER, on=(leg.daemon == daemon.name))
        .where(leg.state == LegState.LIVE)
        .distinct()
    )
    return {row["daemon"]: row["seen_at"] for row in db.all(query)}


# ---- the end of calls


def end_if_idle(db: Database, call_id: str, reason: str, moment: datetime) -> bool:
    """End a live call that has no leg live or expected; tell whether this call did it."""
    db.serialize(CALLS)
    call, leg = tables.Call, tables.Leg
    busy = db.first(
        leg.select().where(
            (leg.call == call_id) & leg.state.in_([LegState.LIVE, LegState.EXPECTED])
        )
    )
    if busy is not None:
        return False
    # The call ended with its last audio, not when we gave up waiting for more.
    heard = leg.select(leg.ended_at).where((leg.call == call_id) & leg.started_at.is_null(False))
    last = db.first(heard.order_by(leg.ended_at.desc()))
    ended_at = (last and last["ended_at"]) or moment
    ended = {**_went(db, _call_row(db, call_id)), "ended_at": ended_at, "reason": reason}
    where = (call.call_id == call_id) & (call.state == CallState.LIVE)
    if db.run(call.update(**ended).where(where)) != 1:
        return False
    _tell_end(db, call_id, ended, moment)
    return True


def note_ending(db: Database, call_id: str, said: Ending, moment: datetime) -> None:
    """Unite what the PBX says of a call's end with what is known.

    That somebody answered stays, of all else the last word counts. A call that is live keeps that
    state: ``end_if_idle`` decides. One that has not ended yet, because only its recording or its
    end was told, ends now, and that is told outside.
    """
    if said == Ending():
        return
    db.serialize(CALLS)
    row = _call_row(db, call_id)
    new: Row = {}
    if said.disposition is not None and row["disposition"] != Disposition.ANSWERED:
        new["disposition"] = said.disposition
    if said.answered_at is not None and row["answered_at"] is None:
        new["answered_at"] = said.answered_at
    is_over = row["state"] != CallState.LIVE
    ends = is_over and row["ended_at"] is None
    if is_over:
        new |= _went(db, {**row, **new})
    if ends:
        ended_at = max(said.ended_at or moment, row["started_at"])
        new |= {"ended_at": ended_at, "reason": row["reason"] or "hangup"}
    if new:
        db.run(tables.Call.update(**new).where(tables.Call.call_id == call_id))
    # Who was told that it ended could not know that nobody had answered.
    is_news = row["state"] == CallState.ENDED and new.get("state") == CallState.MISSED
    if ends or is_news:
        _tell_end(db, call_id, {**row, **new}, moment)


def _went(db: Database, row: Row) -> Row:
    """Return how a call went that is over, and the state that makes.

    The party that was called was there if their stream came, whatever the PBX says of its last
    attempt to ring; the PBX's own answer may be that of a menu.
    """
    new: Row = {"disposition": row["disposition"], "state": CallState.ENDED}
    leg = tables.Leg
    legs = db.all(leg.select().where(leg.call == row["call_id"]).order_by(leg.started_at))
    # A stream of both parties is there from the first ring on.
    rights = {each["right_uuid"] for each in legs}
    came = (
        each
        for each in legs
        if each["started_at"] and not each["right_uuid"] and each["uuid"] not in rights
    )
    is_out = row["direction"] == OUT  # the agent dials
    called = ("caller",) if is_out else AGENT_LEGS
    found = next((each for each in came if each["leg"] in called), None)
    if found is not None:
        new["disposition"] = Disposition.ANSWERED
        new["answered_at"] = found["started_at"]
    elif row["disposition"] not in (None, Disposition.ANSWERED):
        new |= {"state": CallState.MISSED, "answered_at": None}
    return new


def _tell_end(db: Database, call_id: str, ended: Row, moment: datetime) -> None:
    told = {
        "call_id": call_id,
        "ended_at": iso(ended["ended_at"]),
        "reason": ended["reason"],
        "disposition": ended["disposition"],
    }
    # Missed after all is another message than ended.
    key = f"{call_id} {iso(ended['ended_at'])} {ended['state']}"
    outbox.note(db, "call.ended", key, told, moment)


def expire(db: Database, moment: datetime) -> list[str]:
    """Expire legs whose stream never came; return the calls that ended by it."""
    leg = tables.Leg
    late = (leg.state == LegState.EXPECTED) & (leg.expires_at < moment)
    rows = db.all(leg.select(leg.uuid, leg.call).where(late))
    if not rows:
        return []
    db.serialize(CALLS)
    reason = "no stream came before the registration expired"
    uuids = [row["uuid"] for row in rows]
    db.run(
        leg.update(
            state=LegState.EXPIRED, reason=fn.COALESCE(leg.reason, reason), ended_at=moment
        ).where(leg.uuid.in_(uuids) & late)
    )
    calls = sorted({row["call"] for row in rows})
    return [each for each in calls if end_if_idle(db, each, _end_reason(db, each), moment)]


def _end_reason(db: Database, call_id: str) -> str:
    if consent_rows.is_refused(db, call_id):
        return consent_rows.ENDED
    leg = tables.Leg
    heard = db.first(leg.select().where((leg.call == call_id) & leg.started_at.is_null(False)))
    return "hangup" if heard else "no audio came"


# ---- live words


def add_segment(db: Database, call_id: str, segment: Segment) -> bool:
    """Store a final; False if it is stored already.

    Raises:
        Refused: ``consent-refused``.
    """
    consent_rows.check(db, call_id)
    values = {
        "call": call_id,
        "segment": segment.segment,
        "leg": segment.leg,
        "start_s": segment.start,
        "end_s": segment.end,
        "text": segment.text,
        "language": segment.language,
        "words": [{"w": w.w, "s": w.s, "e": w.e, "p": w.p} for w in segment.words],
        "latency": segment.latency,
        "revised": segment.revised,
    }
    return db.insert(tables.LiveSegment, values) == 1


def segments(db: Database, call_id: str) -> list[Segment]:
    """Return a call's finals by time."""
    live = tables.LiveSegment
    query = live.select().where(live.call == call_id).order_by(live.start_s, live.segment)
    return [_segment_of(row) for row in db.all(query)]


def _segment_of(row: Row) -> Segment:
    return Segment(
        segment=row["segment"],
        leg=row["leg"],
        start=row["start_s"],
        end=row["end_s"],
        text=row["text"],
        language=row["language"],
        words=tuple(Word(**word) for word in row["words"]),
        source="live",
        latency=row["latency"],
        revised=row["revised"],
    )


def expires(moment: datetime, valid_s: float) -> datetime:
    """Return when a registration of now ends."""
    return moment + timedelta(seconds=valid_s)
