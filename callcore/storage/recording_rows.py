"""Recordings, their doors, files, steps and results: each function runs inside a transaction."""

import dataclasses
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from callcore import tables
from callcore.calls import (
    REFUSED,
    CallFacts,
    Media,
    Recording,
    RecordingState,
    StepState,
    StepStatus,
)
from callcore.database import Database, Row
from callcore.errors import NotFound
from callcore.storage import call_rows

#: Order in which the files of a recording are listed; other roles follow by name.
ROLES = ("mixed", "stereo", "caller", "agent")


@dataclass(frozen=True, slots=True)
class Source:
    """A file that a door named, before it is checked and copied."""

    role: str
    path: str
    offset_s: float
    original_name: str | None
    source: str
    """The door."""
    url: str | None = None
    """Where it is fetched from, to ``path``; None for a file that is here."""


@dataclass(frozen=True, slots=True)
class StoredMedia:
    """A checked file in the audio folder."""

    role: str
    path: str
    origin: str
    """The source file it is a copy of."""
    offset_s: float
    sha256: str
    format: str
    num_channels: int
    rate: int
    """Hz."""
    duration_s: float


@dataclass(frozen=True, slots=True)
class Reported:
    """What a door's report led to."""

    audio_id: str
    created: bool
    changed: bool
    """Whether there is something to settle: a new recording, or a file it did not have."""
    unneeded: tuple[str, ...] = ()
    """Files that are not looked at, because the recording has stored others in their place."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a door says about a recording."""

    identity: str | None
    """From ids and file name; None where neither says which recording it is."""
    facts: CallFacts
    source: str
    """The door."""
    media: tuple[Media, ...]
    ids: Sequence[str]
    """Ids of the call, the one to name it by first; empty where none is known."""
    renewed: bool = False
    """Whether the files are known to have changed since they were reported."""
    siblings: tuple[str, ...] = ()
    """Paths whose recording this one belongs to, where ``identity`` does not tell."""
    original_name: str | None = None
    url: str | None = None
    """Where ``settle`` fetches the one file of ``media`` from."""
    backfill: bool = False
    """Whether it gives way to live calls and to new recordings."""
    content_identity: str | None = None
    """With the sha256: what it is if ``identity`` turns out to be that of another file."""
    call_started_at: datetime | None = None
    """When the call began as far as its ids tell, UTC; ``facts`` tell when the recording did."""


# ---- reports of doors


def report(db: Database, said: Report, moment: datetime) -> Reported:
    """Find or make the recording that a door reports, and unite what is known about it."""
    db.serialize(call_rows.CALLS)
    row = _find(db, said)
    if row is not None and said.content_identity and _holds_another(db, row, said.media[0]):
        said = dataclasses.replace(said, identity=said.content_identity)
        row = _find(db, said)
    if row is None:
        audio_id = _insert(db, said, moment)
        _add(db, audio_id, said, said.media)
        return Reported(audio_id, created=True, changed=True)
    audio_id = row["audio_id"]
    _unite(db, row, said, moment)
    # A reason says that a file was not there or not readable when it was looked at: it may be now.
    amiss = row["reason"] is not None
    if said.renewed or amiss or row["state"] != RecordingState.STORED:
        added = _add(db, audio_id, said, said.media, again=amiss)
        changed = said.renewed or bool(added) or (amiss and bool(said.media))
        return Reported(audio_id, created=False, changed=changed)
    stored = {row["role"]: row["origin"] for row in media_rows(db, audio_id)}
    new = [media for media in said.media if media.role not in stored]
    added = _add(db, audio_id, said, new)
    unneeded = tuple(m.path for m in said.media if m.path != stored.get(m.role, m.path))
    return Reported(audio_id, created=False, changed=bool(added), unneeded=unneeded)


def call_of_report(db: Database, said: Report) -> str | None:
    """Return the call of the recording that a door reports, if that recording is known."""
    row = _find(db, said)
    return None if row is None else str(row["call"])


def report_refused(db: Database, said: Report, moment: datetime) -> Reported:
    """Find or make a recording of a call whose caller refused analysis.

    One of a call stands for all: which is which only names of files could tell, and they may hold
    the caller's number. What the door says must not hold it any more.
    """
    db.serialize(call_rows.CALLS)
    call_id = call_rows.claim(db, said.ids, _call_facts(said), moment) if said.ids else None
    recording = tables.Recording
    first = recording.select().where(recording.call == call_id).order_by(recording.created_at)
    row = db.first(first) if call_id is not None else None
    audio_id = _insert(db, said, moment) if row is None else row["audio_id"]
    _add(db, audio_id, said, said.media)
    return Reported(audio_id, created=row is None, changed=False)


def _find(db: Database, said: Report) -> Row | None:
    if said.identity is not None:
        row = db.first(tables.Recording.select().where(tables.Recording.identity == said.identity))
        if row is not None:
            return row
    return _find_by_path(db, said)


def _holds_another(db: Database, row: Row, media: Media) -> bool:
    """Tell whether a recording has, in the place of this file, one that may be another.

    If it is the same after all, settling makes the two one.
    """
    roles = {media.role, "stereo"} if media.role == "mixed" else {media.role}
    stored = [each for each in media_rows(db, row["audio_id"]) if each["role"] in roles]
    if stored:
        return all(each["sha256"] != media.sha256 for each in stored)
    if row["reason"] is not None:
        return False  # one that could not be read may well be replaced
    named = [each.path for each in sources(db, row["audio_id"]) if each.role in roles]
    # The name of an upload tells its content.
    return bool(named) and not any(str(media.sha256) in path for path in named)


def _find_by_path(db: Database, said: Report) -> Row | None:
    """Return a recording without ids that named one of these files and has not read it yet.

    Once it has been read, the same path may hold another call: its sha256 will tell.
    """
    paths = {media.path for media in said.media} | set(said.siblings)
    if not paths:
        return None
    named, recording = tables.RecordingSource, tables.Recording
    query = recording.select().join(named).where(named.path.in_(paths))
    for row in db.all(query.order_by(recording.created_at)):
        if row["identity"] is not None and said.identity is not None:
            continue
        read = {each["origin"] for each in media_rows(db, row["audio_id"])}
        if not read & {media.path for media in said.media}:
            return row
    return None


def _insert(db: Database, said: Report, moment: datetime) -> str:
    audio_id = uuid.uuid4().hex
    call_id = call_rows.claim(db, said.ids or [audio_id], _call_facts(said), moment)
    db.run(
        tables.Recording.insert(
            audio_id=audio_id,
            call=call_id,
            identity=said.identity,
            state=RecordingState.EXPECTED,
            source=said.source,
            sources=[said.source],
            facts=facts_as_json(said.facts),
            created_at=moment,
            backfill=said.backfill,
        )
    )
    return audio_id


def _call_facts(said: Report) -> CallFacts:
    started_at = said.facts.started_at or said.call_started_at
    return dataclasses.replace(said.facts, started_at=started_at)


def _unite(db: Database, row: Row, said: Report, moment: datetime) -> None:
    facts = facts_from_json(row["facts"]).merged(said.facts)
    sources = row["sources"] + [said.source] * (said.source not in row["sources"])
    new = {"facts": facts_as_json(facts), "sources": sources}
    new["backfill"] = row["backfill"] and said.backfill
    if row["identity"] is None and said.identity is not None:
        new["identity"] = said.identity
    recording = tables.Recording
    db.run(recording.update(**new).where(recording.audio_id == row["audio_id"]))
    call_rows.claim(db, [row["call"], *said.ids], _call_facts(said), moment)


def _add(
    db: Database, audio_id: str, said: Report, media: Iterable[Media], *, again: bool = False
) -> list[str]:
    """Remember the files of a report; return the roles of those that are new."""
    if said.url is None:
        return add_files(db, audio_id, media, said.source, said.original_name)
    added = []
    for each in media:
        known = _same_resource(db, audio_id, each)
        if known is None:
            added += add_files(db, audio_id, [each], said.source, said.original_name, url=said.url)
        elif _renew_url(db, known, each.path, said.url, again=again):
            added.append(each.role)
    return added


def _same_resource(db: Database, audio_id: str, media: Media) -> Row | None:
    """Return the row of the same file of a host: its target ends in the same key."""
    named = tables.RecordingSource
    rows = db.all(
        named.select().where(
            (named.recording == audio_id) & (named.role == media.role) & named.url.is_null(False)
        )
    )
    return next((row for row in rows if _key(row["path"]) == _key(media.path)), None)


def _key(path: str) -> str:
    return path.rpartition("-")[2]


def _renew_url(db: Database, known: Row, path: str, url: str, *, again: bool) -> bool:
    """Take over the URL of a repeated report, whose signature may be newer.

    Args:
        db: The record.
        known: The row of the earlier report.
        path: A new target, whose name tells when this report came.
        url: The new URL.
        again: Whether the file could not be had before, so that its time begins anew.

    Returns:
        Whether the URL is another one.
    """
    stored = {row["origin"] for row in media_rows(db, known["recording"])}
    new: Row = {"url": url}
    if again and known["path"] not in stored:
        new["path"] = path
    named = tables.RecordingSource
    db.run(named.update(**new).where(named.id == known["id"]))
    return bool(known["url"] != url)


def add_files(
    db: Database,
    audio_id: str,
    media: Iterable[Media],
    source: str,
    original_name: str | None = None,
    *,
    url: str | None = None,
) -> list[str]:
    """Remember the files that a door names; return the roles of those that are new."""
    added = []
    for each in media:
        values = {
            "recording": audio_id,
            "role": each.role,
            "path": each.path,
            "offset_s": each.offset_s,
            "original_name": original_name,
            "source": source,
            "url": url,
        }
        if db.insert(tables.RecordingSource, values):
            added.append(each.role)
    return added


def forget_sources(db: Database, audio_id: str) -> None:
    """Forget which files doors named."""
    named = tables.RecordingSource
    db.run(named.delete().where(named.recording == audio_id))


def forget_start(db: Database, audio_id: str) -> None:
    """Forget when a recording began."""
    facts = facts_from_json(recording_row(db, audio_id)["facts"])
    recording = tables.Recording
    db.run(
        recording.update(facts=facts_as_json(dataclasses.replace(facts, started_at=None))).where(
            recording.audio_id == audio_id
        )
    )


def sources(db: Database, audio_id: str) -> list[Source]:
    """Return the files that doors named, in the order they came."""
    named = tables.RecordingSource
    rows = db.all(named.select().where(named.recording == audio_id).order_by(named.id))
    keep = [field.name for field in fields(Source)]
    return [Source(**{name: row[name] for name in keep}) for row in rows]


def forget_capture(db: Database, audio_id: str, paths: Sequence[str]) -> None:
    """Forget the recording of what we captured of a call, and that its legs have these files."""
    recording, leg = tables.Recording, tables.Leg
    call_id = call_of(db, audio_id)
    mine = (leg.call == call_id) & leg.capture_path.in_(list(paths))
    db.run(leg.update(capture_path=None).where(mine))
    db.run(recording.delete().where(recording.audio_id == audio_id))


# ---- settling


def find_duplicate(db: Database, audio_id: str, media: Sequence[StoredMedia]) -> str | None:
    """Return the recording that already holds the same audio of the same channel, if one does.

    Equal bytes alone say nothing: two silent calls are equal. So recordings that name different
    channels or different calls never merge, nor do those of which each has a file that the other
    has not.
    """
    row = recording_row(db, audio_id)
    mine = {each.role: each.sha256 for each in media}
    for each in media:
        query = (
            tables.Recording.select()
            .join(tables.Media)
            .where(
                (tables.Media.sha256 == each.sha256)
                & (tables.Media.role == each.role)
                & (tables.Recording.audio_id != audio_id)
                & (tables.Recording.state == RecordingState.STORED)
            )
            .order_by(tables.Recording.created_at, tables.Recording.audio_id)
        )
        for other in db.all(query):
            theirs = {m["role"]: m["sha256"] for m in media_rows(db, other["audio_id"])}
            holds = mine.items() <= theirs.items() or theirs.items() <= mine.items()
            if holds and _may_be_one(row, other):
                return str(other["audio_id"])
    return None


def _may_be_one(row: Row, other: Row) -> bool:
    mine, theirs = facts_from_json(row["facts"]), facts_from_json(other["facts"])
    if not call_rows.ids_of(mine) or not call_rows.ids_of(theirs):
        return True
    if mine.uniqueid and theirs.uniqueid:
        return mine.uniqueid == theirs.uniqueid
    return bool(row["call"] == other["call"])


def merge(db: Database, survivor: str, loser: str, moment: datetime) -> bool:
    """Make two recordings one.

    ``loser`` becomes an alias: whoever holds its id is answered with the survivor. Its copies in
    the audio folder are no longer needed, nor is any file that it named, see the return value.

    Returns:
        Whether ``loser`` named files of roles that the survivor lacks: it must be settled again.
    """
    db.serialize(call_rows.CALLS)
    kept, gone = recording_row(db, survivor), recording_row(db, loser)
    recording, alias = tables.Recording, tables.RecordingAlias
    facts = facts_from_json(kept["facts"]).merged(facts_from_json(gone["facts"]))
    doors = kept["sources"] + [each for each in gone["sources"] if each not in kept["sources"]]
    roles = {row["role"] for row in media_rows(db, survivor)} | {"mixed"}
    lacking = [each for each in sources(db, loser) if each.role not in roles]
    for each in lacking:
        values = {name: getattr(each, name) for name in Source.__slots__}
        db.insert(tables.RecordingSource, {"recording": survivor, **values})
    db.run(alias.update(recording=survivor).where(alias.recording == loser))
    db.run(tables.SpoolFile.update(audio_id=survivor).where(tables.SpoolFile.audio_id == loser))
    correction = tables.Correction
    db.run(correction.update(recording=survivor).where(correction.recording == loser))
    db.run(recording.delete().where(recording.audio_id == loser))
    db.insert(alias, {"known_as": loser, "recording": survivor})
    new: Row = {"facts": facts_as_json(facts), "sources": doors}
    if kept["identity"] is None and gone["identity"] is not None:
        new["identity"] = gone["identity"]
    db.run(recording.update(**new).where(recording.audio_id == survivor))
    if kept["call"] != gone["call"]:
        call_rows.claim(db, [kept["call"], gone["call"]], facts, moment)
    return bool(lacking)


def store(
    db: Database,
    audio_id: str,
    media: Sequence[StoredMedia],
    offset_s: float | None,
    reason: str | None = None,
) -> bool:
    """Put down the checked files, and why others are not among them.

    Returns:
        Whether the audio or its place in the call changed.
    """
    row = recording_row(db, audio_id)
    before = {(m["role"], m["sha256"], m["offset_s"]) for m in media_rows(db, audio_id)}
    after = {(m.role, m.sha256, m.offset_s) for m in media}
    db.run(tables.Media.delete().where(tables.Media.recording == audio_id))
    for each in media:
        values = {name: getattr(each, name) for name in StoredMedia.__slots__}
        db.run(tables.Media.insert(recording=audio_id, **values))
    duration_s = max(each.offset_s + each.duration_s for each in media)
    recording = tables.Recording
    new = {"state": RecordingState.STORED, "reason": reason}
    times = {"offset_s": offset_s, "duration_s": duration_s}
    db.run(recording.update(**new, **times).where(recording.audio_id == audio_id))
    return before != after or row["offset_s"] != offset_s


def offset(db: Database, audio_id: str) -> float | None:
    """Return the seconds from the call's zero to the recording's, None where unknown."""
    row = recording_row(db, audio_id)
    if row["source"] == "capture":
        return 0.0
    call = db.first(tables.Call.select().where(tables.Call.call_id == row["call"]))
    started_at = facts_from_json(row["facts"]).started_at
    if call is None or started_at is None or not call["start_known"]:
        return None
    zero: datetime = call["started_at"]
    return round((started_at - zero).total_seconds(), 3)


def moved(db: Database, audio_id: str) -> list[str]:
    """Return the stored recordings of the same call whose place in it is another one now.

    That happens when two calls turn out to be one.
    """
    call_id = recording_row(db, audio_id)["call"]
    recording = tables.Recording
    where = (recording.call == call_id) & (recording.state == RecordingState.STORED)
    rows = db.all(recording.select().where(where))
    return [r["audio_id"] for r in rows if offset(db, r["audio_id"]) != r["offset_s"]]


def set_state(db: Database, audio_id: str, state: RecordingState, reason: str | None) -> None:
    """Say whether the audio is at hand, and why not."""
    recording = tables.Recording
    db.run(recording.update(state=state, reason=reason).where(recording.audio_id == audio_id))


# ---- reading


def resolve(db: Database, any_id: str) -> str:
    """Return the audio_id behind an audio_id or that of a merged recording.

    Raises:
        NotFound: If there is no such recording.
    """
    if "\0" in any_id:  # PostgreSQL takes it in no text
        raise NotFound("no recording has this id")
    alias = tables.RecordingAlias
    row = db.first(alias.select().where(alias.known_as == any_id))
    return str(recording_row(db, row["recording"] if row else any_id)["audio_id"])


def recording_row(db: Database, audio_id: str) -> Row:
    """Return the row of a recording.

    Raises:
        NotFound: If there is none.
    """
    recording = tables.Recording
    row = db.first(recording.select().where(recording.audio_id == audio_id))
    if row is None:
        raise NotFound("no recording has this id")
    return row


def media_rows(db: Database, audio_id: str) -> list[Row]:
    """Return the rows of a recording's stored files."""
    return db.all(tables.Media.select().where(tables.Media.recording == audio_id))


def stored_media(db: Database, audio_id: str) -> list[StoredMedia]:
    """Return a recording's stored files."""
    keep = StoredMedia.__slots__
    return [StoredMedia(**{name: row[name] for name in keep}) for row in media_rows(db, audio_id)]


def read_many(db: Database, rows: Sequence[Row]) -> list[Recording]:
    """Return the recordings of these rows, each with its stored files."""
    ids = [row["audio_id"] for row in rows]
    media: dict[str, list[Media]] = {audio_id: [] for audio_id in ids}
    query = tables.Media.select().where(tables.Media.recording.in_(ids))
    for row in sorted(db.all(query) if ids else [], key=_by_role):
        media[row["recording"]].append(_media_of(row))
    return [_recording_of(row, media[row["audio_id"]]) for row in rows]


def _by_role(row: Row) -> tuple[int, str]:
    role = str(row["role"])
    return (ROLES.index(role) if role in ROLES else len(ROLES), role)


def _media_of(row: Row) -> Media:
    return Media(**{field.name: row[field.name] for field in fields(Media)})


def _recording_of(row: Row, media: Iterable[Media]) -> Recording:
    return Recording(
        audio_id=row["audio_id"],
        call_id=row["call"],
        state=RecordingState(row["state"]),
        source=row["source"],
        reason=row["reason"],
        facts=facts_from_json(row["facts"]),
        created_at=row["created_at"],
        media=tuple(media),
        offset_s=row["offset_s"],
        duration_s=row["duration_s"],
        sources=tuple(row["sources"]),
    )


def steps(db: Database, audio_id: str) -> list[StepStatus]:
    """Return a recording's steps in their order."""
    job = tables.Job
    query = job.select().where(job.recording == audio_id).order_by(job.position, job.step)
    return [
        StepStatus(
            name=row["step"],
            status=StepState(row["state"]),
            started_at=row["started_at"],
            ms=row["ms"],
            attempts=row["attempts"],
            error=row["error"],
            progress=row["progress"],
        )
        for row in db.all(query)
    ]


def files_of_door(db: Database, source: str, since: datetime) -> list[str]:
    """Return the files that came through a door since then, as they came and as they are stored."""
    named, recording, media = tables.RecordingSource, tables.Recording, tables.Media
    came = named.select(named.path).join(recording)
    came = came.where((named.source == source) & (recording.created_at >= since))
    kept = media.select(media.path).join(recording)
    kept = kept.where((recording.source == source) & (recording.created_at >= since))
    return [row["path"] for query in (came, kept) for row in db.all(query)]


def all_files(db: Database, since: datetime) -> set[str]:
    """Return every path that a recording refers to, or a leg that was not over before then."""
    named, media, leg = tables.RecordingSource, tables.Media, tables.Leg
    found = {row["path"] for model in (named, media) for row in db.all(model.select(model.path))}
    recent = leg.ended_at.is_null() | (leg.ended_at >= since)
    captured = leg.select(leg.capture_path).where(leg.capture_path.is_null(False) & recent)
    return found | {row["capture_path"] for row in db.all(captured)}


def drop_audio(
    db: Database, before: datetime, reason: str, limit: int
) -> tuple[list[str], list[str]]:
    """Forget the files of recordings that came before a moment and have been analysed.

    Returns:
        The paths of our copies, and of the files that doors named.
    """
    recording, media, named = tables.Recording, tables.Media, tables.RecordingSource
    job = tables.Job
    is_open = job.state.in_([StepState.PENDING, StepState.RUNNING])
    open_ids = job.select(job.recording).where(is_open)
    has_files = recording.audio_id.in_(media.select(media.recording)) | recording.audio_id.in_(
        named.select(named.recording)
    )
    call = tables.Call
    old = recording.select(recording.audio_id)
    is_old = (recording.created_at < before) & recording.audio_id.not_in(open_ids)
    # Nothing is kept of who refused analysis, and why must stay on record.
    is_old &= recording.call.not_in(call.select(call.call_id).where(call.consent == REFUSED))
    rows = db.all(old.where(is_old & has_files).order_by(recording.created_at).limit(limit))
    ids = [row["audio_id"] for row in rows]
    found: list[list[str]] = []
    for model in (media, named):
        mine = model.recording.in_(ids)
        found.append([row["path"] for row in db.all(model.select(model.path).where(mine))])
        db.run(model.delete().where(mine))
    if ids:
        gone = {"state": RecordingState.MISSING, "reason": reason}
        db.run(recording.update(**gone).where(recording.audio_id.in_(ids)))
    return found[0], found[1]


def unused(db: Database, audio_id: str, paths: Iterable[str]) -> list[str]:
    """Return those files to which nothing points but the doors of this recording and its call."""
    asked = sorted(set(paths))
    row = recording_row(db, audio_id)
    named, media, leg = tables.RecordingSource, tables.Media, tables.Leg
    others = named.path.in_(asked) & (named.recording != audio_id)
    captured = leg.capture_path.in_(asked) & (leg.call != row["call"])
    used = {each["path"] for each in db.all(named.select(named.path).where(others))}
    used |= {each["path"] for each in db.all(media.select(media.path).where(media.path.in_(asked)))}
    used |= {e["capture_path"] for e in db.all(leg.select(leg.capture_path).where(captured))}
    return [path for path in asked if path not in used]


def call_of(db: Database, audio_id: str) -> str:
    """Return the call of a recording that is there."""
    return str(recording_row(db, audio_id)["call"])


def results(db: Database, audio_id: str) -> dict[str, dict[str, Any]]:
    """Return what each step of a recording made."""
    result = tables.Result
    rows = db.all(result.select().where(result.recording == audio_id))
    return {row["step"]: row["document"] for row in rows}


# ---- facts as stored


def facts_as_json(facts: CallFacts) -> dict[str, Any]:
    """Return what is known, as JSON."""
    known = {field.name: getattr(facts, field.name) for field in fields(CallFacts)}
    known["started_at"] = facts.started_at and facts.started_at.isoformat()
    return {name: value for name, value in known.items() if value is not None}


def facts_from_json(data: dict[str, Any]) -> CallFacts:
    """Return the facts that ``facts_as_json`` described."""
    started_at = data.get("started_at")
    moment = datetime.fromisoformat(started_at) if started_at else None
    return CallFacts(**{**data, "started_at": moment})
