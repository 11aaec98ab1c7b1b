"""The record: calls, legs, live words, recordings, their steps and results.

``Storage`` takes and returns the types of ``calls.py`` and ``results.py``. Each method is one
transaction; several inside ``with storage.database.transaction():`` are one together. It may be
used by many threads and many processes at once, and never on an event loop.
"""

import base64
import binascii
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import peewee
from playhouse.migrations import Runner

from callcore import resources, tables
from callcore.calls import (
    Call,
    CallFacts,
    CallState,
    Correction,
    Ending,
    Leg,
    LegState,
    Media,
    Recording,
    StepStatus,
    now,
)
from callcore.database import Database, Row
from callcore.errors import CallcoreError, Refused
from callcore.live_figures import LiveFigures, SiteFigures
from callcore.results import Segment
from callcore.storage import call_rows, consent_rows, figure_rows, recording_rows

#: Seconds for which a daemon's last report of its load counts.
LOAD_VALID_S = 15.0
#: Corrections that a classification takes into account: the newest.
MAX_CORRECTIONS = 5000
#: Number by which PostgreSQL lets one migration run at a time.
_MIGRATIONS = 0x6D696772


class Storage:
    """Queries and transactions.

    Args:
        database_url: ``sqlite:///FILE`` or ``postgresql://...``.
        clock: Returns the present time in UTC.
        migrations: Folder of migrations; by default the one that came with callcore.
    """

    def __init__(
        self,
        database_url: str,
        *,
        clock: Callable[[], datetime] = now,
        migrations: Path | None = None,
    ) -> None:
        self.database = Database(database_url)
        self.clock = clock
        self._migrations = migrations

    def close(self) -> None:
        """Close the connections of all threads."""
        self.database.close()

    # ---- schema

    def migrate(self) -> list[str]:
        """Apply the migrations that are missing; return their names."""
        with self.database.alone(_MIGRATIONS):
            self.database.use_write_ahead_log()
            return list(self._runner().up())

    def check_migrated(self) -> None:
        """Make sure that the database has the tables of this version.

        Raises:
            CallcoreError: If a migration is missing; the message says what to do.
        """
        with self.database.connection():
            missing = [each.name for each in self._runner().status() if not each.applied]
        if missing:
            raise CallcoreError(
                f"the database lacks {len(missing)} migration(s): run `callcore migrate`"
            )

    def _runner(self) -> Any:
        folder = self._migrations or resources.path("migrations")
        runner: Any = Runner  # playhouse has no types
        return runner(self.database.peewee, str(folder))

    # ---- legs

    def register_leg(
        self, uuid: str, facts: CallFacts, valid_s: float, right_uuid: str | None = None
    ) -> Leg:
        """Announce a leg: a stream with this UUID is expected within ``valid_s`` seconds.

        The call is found by any id of ``facts`` or made. A second ``agent`` of a call becomes
        ``agent-2``, and so on.

        Raises:
            Refused: ``uuid-in-use`` if the UUID was registered before.
        """
        moment = self.clock()
        with self.database.transaction():
            expires_at = call_rows.expires(moment, valid_s)
            leg = call_rows.add_leg(self.database, uuid, facts, expires_at, moment)
            if right_uuid is None:
                return leg
            return call_rows.add_right(self.database, leg, right_uuid, facts, expires_at, moment)

    def consume_leg(self, uuid: str, daemon: str, at: datetime | None = None) -> Leg | None:
        """Make an expected leg live, once; None if this UUID was never registered.

        The first leg of a call sets the call's zero. ``at`` is when the stream came, if that is
        not now: the database may have been away. Whether the registration was still valid is
        decided by that moment alone.

        Raises:
            Refused: ``uuid-used`` or ``uuid-expired``.
        """
        with self.database.transaction():
            return call_rows.start_leg(self.database, uuid, daemon, at or self.clock())

    def add_unregistered_leg(self, uuid: str, daemon: str, at: datetime | None = None) -> Leg:
        """Make a call of one live leg ``mixed``, named after the UUID.

        Raises:
            Refused: ``uuid-in-use`` if the UUID is known.
        """
        moment = at or self.clock()
        with self.database.transaction():
            call_rows.add_leg(self.database, uuid, CallFacts(), None, moment)
            leg = call_rows.start_leg(self.database, uuid, daemon, moment)
            assert leg is not None
            return leg

    def note_no_text(self, uuid: str, reason: str) -> None:
        """Say why a leg has no live text; again changes nothing."""
        leg = tables.Leg
        with self.database.transaction():
            self.database.run(leg.update(no_text=reason).where(leg.uuid == uuid))

    def end_leg(self, uuid: str, reason: str, capture_path: str | None) -> None:
        """End a live leg and say where its capture lies; ending it again changes nothing."""
        with self.database.transaction():
            call_rows.end_leg(self.database, uuid, reason, capture_path, self.clock())

    def end_call_if_idle(self, call_id: str, reason: str) -> Call | None:
        """End a live call with no leg live or expected.

        Returns:
            The call if it was ended by this very call of the method, so that one caller
            announces it; else None.
        """
        with self.database.transaction():
            own_id = call_rows.resolve(self.database, call_id)
            if not call_rows.end_if_idle(self.database, own_id, reason, self.clock()):
                return None
            return call_rows.read(self.database, own_id)

    def note_ending(self, call_id: str, ending: Ending) -> None:
        """Unite what the PBX says of a call's end with what is known; again changes nothing.

        Raises:
            NotFound: If no call has this id.
        """
        with self.database.transaction():
            own_id = call_rows.resolve(self.database, call_id)
            call_rows.note_ending(self.database, own_id, ending, self.clock())

    def orphaned_legs(self, daemon: str) -> list[Leg]:
        """Return the live legs of a daemon's name: after its start they have no stream."""
        leg = tables.Leg
        query = leg.select().where((leg.daemon == daemon) & (leg.state == LegState.LIVE))
        return [call_rows.leg_of(row) for row in self.database.all(query.order_by(leg.started_at))]

    def refused_legs(self, daemon: str) -> list[str]:
        """Return the UUIDs of a daemon's live legs whose callers refused analysis."""
        return consent_rows.live_legs(self.database, daemon)

    def refused_among(self, uuids: Sequence[str]) -> set[str]:
        """Return those of these legs whose callers refused analysis."""
        with self.database.connection():
            return consent_rows.legs_among(self.database, uuids)

    def capture_media(self, call_id: str) -> list[Media]:
        """Return the captures of a call's ended legs, offsets from the start of the call.

        The role is the leg's name; a second leg of that name is ``caller.2`` and so on.
        """
        leg = tables.Leg
        with self.database.connection():
            own_id = call_rows.resolve(self.database, call_id)
            query = leg.select().where(
                (leg.call == own_id)
                & (leg.state == LegState.ENDED)
                & leg.capture_path.is_null(False)
            )
            rows = self.database.all(query.order_by(leg.offset_s, leg.uuid))
        counts: dict[str, int] = {}
        media = []
        for row in rows:
            count = counts[row["leg"]] = counts.get(row["leg"], 0) + 1
            role = row["leg"] if count == 1 else f"{row['leg']}.{count}"
            media.append(Media(role, row["capture_path"], row["offset_s"]))
        return media

    def captures_of(self, uuids: Sequence[str]) -> dict[str, tuple[LegState, str | None]]:
        """Return state and capture path of each leg that has one of these UUIDs."""
        with self.database.connection():
            return call_rows.captures_of(self.database, uuids)

    def adopt_capture(self, uuid: str, capture_path: str) -> str | None:
        """Give an ended leg without a capture this one.

        Returns:
            Its call; None if there is no such leg or it has a capture.
        """
        with self.database.transaction():
            return call_rows.adopt_capture(self.database, uuid, capture_path)

    def note_daemon(
        self, name: str, load: float | None = None, figures: LiveFigures | None = None
    ) -> None:
        """Store a sign of life of a daemon.

        Args:
            name: Of the daemon.
            load: Share of its decoding time that live calls take; None if it recognises nothing.
            figures: What it counts.
        """
        with self.database.transaction():
            call_rows.note_daemon(self.database, name, self.clock(), load, figures)

    def figures(self) -> SiteFigures:
        """Return how busy daemons and workers are."""
        moment = self.clock()
        with self.database.connection():
            return SiteFigures(
                figure_rows.daemons(self.database, moment), figure_rows.steps(self.database, moment)
            )

    def live_load(self) -> float:
        """Return the load of the busiest daemon that has been heard of lately, 0 without any."""
        daemon = tables.Daemon
        since = self.clock() - timedelta(seconds=LOAD_VALID_S)
        row = self.database.first(
            daemon.select(peewee.fn.MAX(daemon.load).alias("load")).where(daemon.seen_at >= since)
        )
        return float(row["load"] or 0.0) if row else 0.0

    def live_daemons(self) -> dict[str, datetime | None]:
        """Return each daemon that has live legs, with its last sign of life by its own clock."""
        return call_rows.live_daemons(self.database)

    def expire_legs(self) -> list[str]:
        """Expire registrations whose stream never came; return the calls that ended by it."""
        with self.database.transaction():
            return call_rows.expire(self.database, self.clock())

    def complete_call(self, ids: Sequence[str], facts: CallFacts) -> str | None:
        """Unite facts with the call that has any of these ids; None if there is none."""
        with self.database.transaction():
            return call_rows.complete(self.database, ids, facts, self.clock())

    # ---- live words

    def take_segment_block(self, call_id: str) -> int:
        """Return the first of 100,000 segment numbers that nobody else has."""
        with self.database.transaction():
            return call_rows.take_segment_block(self.database, call_id)

    def add_live_segment(self, call_id: str, segment: Segment) -> bool:
        """Store a final; False if it was stored before.

        Raises:
            Refused: ``consent-refused``.
        """
        with self.database.transaction():
            own_id = call_rows.resolve(self.database, call_id)
            return call_rows.add_segment(self.database, own_id, segment)

    def live_segments(self, call_id: str) -> list[Segment]:
        """Return a call's finals, ordered by start."""
        with self.database.connection():
            return call_rows.segments(self.database, call_rows.resolve(self.database, call_id))

    # ---- reading calls

    def call(self, any_id: str) -> Call:
        """Return the call that has this id or alias.

        Raises:
            NotFound: If there is none.
        """
        with self.database.connection():
            return call_rows.read(self.database, any_id)

    def live_calls(self) -> list[Call]:
        """Return the calls with a stream now or a moment ago, newest first."""
        call, leg = tables.Call, tables.Leg
        heard = leg.select(leg.call).where(leg.started_at.is_null(False))
        query = call.select().where((call.state == CallState.LIVE) & call.call_id.in_(heard))
        with self.database.connection():
            rows = self.database.all(query.order_by(call.started_at.desc(), call.call_id.desc()))
            return call_rows.read_many(self.database, rows)

    def silent_calls(self) -> list[Call]:
        """Return the live calls that had a stream and have none now, newest first.

        All live calls would be a thousand on a busy site, for the few that are wanted.
        """
        call, leg = tables.Call, tables.Leg
        heard = leg.select(leg.call).where(leg.started_at.is_null(False))
        streaming = leg.select(leg.call).where(leg.state == LegState.LIVE)
        query = call.select().where(
            (call.state == CallState.LIVE)
            & call.call_id.in_(heard)
            & call.call_id.not_in(streaming)
        )
        with self.database.connection():
            rows = self.database.all(query.order_by(call.started_at.desc(), call.call_id.desc()))
            return call_rows.read_many(self.database, rows)

    def calls(
        self, before: str | None, limit: int, state: CallState | None = None
    ) -> tuple[list[Call], str | None]:
        """Return a page of calls, newest first.

        Args:
            before: The cursor that the page before returned; None for the first page.
            limit: Most calls to return.
            state: Only calls in this state; None: all.

        Returns:
            The calls, and the cursor of the next page or None after the last.

        Raises:
            Refused: ``bad-cursor``.
        """
        call = tables.Call
        with self.database.connection():
            wanted = None if state is None else call.state == state
            rows, cursor = self._page(call, call.started_at, call.call_id, before, limit, wanted)
            return call_rows.read_many(self.database, rows), cursor

    # ---- reading recordings

    def recordings_of(self, call_id: str) -> list[Recording]:
        """Return a call's recordings, oldest first."""
        recording = tables.Recording
        with self.database.connection():
            own_id = call_rows.resolve(self.database, call_id)
            query = recording.select().where(recording.call == own_id)
            rows = self.database.all(query.order_by(recording.created_at, recording.audio_id))
            return recording_rows.read_many(self.database, rows)

    def recording(self, any_audio_id: str) -> Recording:
        """Return the recording with this id, or the one it was merged into.

        Raises:
            NotFound: If there is none.
        """
        with self.database.connection():
            audio_id = recording_rows.resolve(self.database, any_audio_id)
            row = recording_rows.recording_row(self.database, audio_id)
            return recording_rows.read_many(self.database, [row])[0]

    def recordings(self, before: str | None, limit: int) -> tuple[list[Recording], str | None]:
        """Return a page of recordings, newest first, as ``calls`` does.

        Raises:
            Refused: ``bad-cursor``.
        """
        model = tables.Recording
        with self.database.connection():
            rows, cursor = self._page(model, model.created_at, model.audio_id, before, limit)
            return recording_rows.read_many(self.database, rows), cursor

    def steps(self, audio_id: str) -> list[StepStatus]:
        """Return a recording's steps in their order.

        Raises:
            NotFound: If there is no such recording.
        """
        with self.database.connection():
            own_id = recording_rows.resolve(self.database, audio_id)
            return recording_rows.steps(self.database, own_id)

    def results(self, audio_id: str) -> dict[str, dict[str, Any]]:
        """Return what each finished step of a recording made, by the step's name.

        Raises:
            NotFound: If there is no such recording.
        """
        with self.database.connection():
            own_id = recording_rows.resolve(self.database, audio_id)
            return recording_rows.results(self.database, own_id)

    def is_backfill(self, audio_id: str) -> bool:
        """Tell whether a recording gives way to others; False if there is no such recording."""
        model = tables.Recording
        row = self.database.first(model.select(model.backfill).where(model.audio_id == audio_id))
        return row is not None and bool(row["backfill"])

    # ---- files

    def uploaded_files(self, since: datetime) -> list[str]:
        """Return the paths of what was uploaded since then: as it came, and as it is stored."""
        with self.database.connection():
            return recording_rows.files_of_door(self.database, "upload", since)

    def audio_files(self, since: datetime) -> set[str]:
        """Return the paths of recordings' files, and of captures of legs not over before then."""
        with self.database.connection():
            return recording_rows.all_files(self.database, since)

    def unused_files(self, audio_id: str, paths: Iterable[str]) -> list[str]:
        """Return those files of a settled recording that nothing else refers to."""
        with self.database.connection():
            own_id = recording_rows.resolve(self.database, audio_id)
            return recording_rows.unused(self.database, own_id, paths)

    def drop_audio(self, before: datetime, reason: str, limit: int) -> tuple[list[str], list[str]]:
        """Forget the files of recordings that came before a moment and have been analysed.

        Args:
            before: The moment.
            reason: Why their audio is missing from then on.
            limit: Most recordings at a time.

        Returns:
            The paths of our copies, and of the files that doors named; both empty once there is
            no such recording any more.
        """
        with self.database.transaction():
            return recording_rows.drop_audio(self.database, before, reason, limit)

    # ---- corrections

    def correct(self, audio_id: str, correction: Correction, made_by: str | None) -> None:
        """Keep what a person said about a category of a recording.

        Raises:
            NotFound: If there is no such recording.
        """
        with self.database.transaction():
            own_id = recording_rows.resolve(self.database, audio_id)
            row = {
                "recording": own_id,
                "taxonomy": correction.taxonomy,
                "category": correction.category,
                "verdict": correction.verdict,
                "texts": list(correction.texts),
                "made_by": made_by,
                "created_at": self.clock(),
            }
            self.database.run(tables.Correction.insert(**row))

    def corrections(self) -> list[Correction]:
        """Return the newest corrections, oldest first."""
        model = tables.Correction
        rows = self.database.all(model.select().order_by(model.id.desc()).limit(MAX_CORRECTIONS))
        return [
            Correction(row["taxonomy"], row["category"], row["verdict"], tuple(row["texts"]))
            for row in reversed(rows)
        ]

    # ---- the spool

    def spool_files(self) -> dict[str, tuple[int, int]]:
        """Return size and mtime (ns) of the spool's files when they were registered, by path."""
        rows = self.database.all(tables.SpoolFile.select())
        return {row["path"]: (row["size"], row["mtime_ns"]) for row in rows}

    def remember_spool_files(
        self, files: Iterable[tuple[str, int, int]], audio_id: str | None
    ) -> None:
        """Note path, size and mtime (ns) of files that were registered, or refused: None."""
        model = tables.SpoolFile
        with self.database.transaction():
            for path, size, mtime_ns in files:
                seen = {"size": size, "mtime_ns": mtime_ns, "audio_id": audio_id}
                if not self.database.insert(model, {"path": path, **seen}):
                    self.database.run(model.update(**seen).where(model.path == path))

    def forget_spool_files(self, paths: Iterable[str]) -> None:
        """Forget files that are gone from the spool."""
        gone = list(paths)
        model = tables.SpoolFile
        with self.database.transaction():
            for first in range(0, len(gone), 500):
                batch = gone[first : first + 500]
                self.database.run(model.delete().where(model.path.in_(batch)))

    def _page(
        self,
        model: type[peewee.Model],
        moment: peewee.Field,
        key: peewee.Field,
        before: str | None,
        limit: int,
        wanted: peewee.Expression | None = None,
    ) -> tuple[list[Row], str | None]:
        query = model.select().order_by(moment.desc(), key.desc()).limit(limit + 1)
        if wanted is not None:
            query = query.where(wanted)
        if before is not None:
            at, after = _read_cursor(before)
            query = query.where((moment < at) | ((moment == at) & (key < after)))
        rows = self.database.all(query)
        if len(rows) <= limit:
            return rows, None
        last = rows[limit - 1]
        return rows[:limit], _cursor(last[moment.name], last[key.name])


def _cursor(moment: datetime, key: str) -> str:
    return base64.urlsafe_b64encode(f"{moment.isoformat()} {key}".encode()).decode().rstrip("=")


def _read_cursor(text: str) -> tuple[datetime, str]:
    try:
        padded = text.encode() + b"=" * (-len(text) % 4)
        moment, _, key = base64.urlsafe_b64decode(padded).decode().partition(" ")
        if "\x00" in key:
            raise ValueError(key)
        return datetime.fromisoformat(moment).astimezone(UTC), key
    except (ValueError, OverflowError, binascii.Error):
        raise Refused("bad-cursor", "this is no cursor of a page", "before") from None
