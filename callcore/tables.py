"""The tables, as peewee models that belong to no database: ``database.Database`` runs the queries.

``migrations/`` builds the same tables from frozen copies; a test compares the two.
"""

import json
from datetime import UTC, datetime
from typing import Any

from peewee import (
    SQL,
    BigAutoField,
    BigIntegerField,
    BooleanField,
    CompositeKey,
    DoubleField,
    Field,
    ForeignKeyField,
    IntegerField,
    Model,
    TextField,
)


class MomentField(Field):
    """A UTC instant to the microsecond: ``timestamptz`` in PostgreSQL, ISO text in SQLite."""

    field_type = "TIMESTAMPTZ"

    def db_value(self, value: datetime | None) -> str | None:
        """Return ISO 8601 text of fixed width, which SQLite orders like the instants."""
        if value is None:
            return None
        return value.astimezone(UTC).isoformat(sep=" ", timespec="microseconds")

    def python_value(self, value: datetime | str | None) -> datetime | None:
        """Return the instant with time zone UTC."""
        if value is None:
            return None
        moment = datetime.fromisoformat(value) if isinstance(value, str) else value
        return moment.astimezone(UTC)


class JsonField(TextField):
    """A JSON value, kept as text in both databases."""

    def db_value(self, value: Any) -> str | None:
        """Return compact JSON."""
        if value is None:
            return None
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))

    def python_value(self, value: str | None) -> Any:
        """Return what ``db_value`` was given."""
        return None if value is None else json.loads(value)


class Call(Model):
    """A call; its facts are columns because people search by them."""

    call_id = TextField(primary_key=True)
    session_id = TextField()
    state = TextField()
    reason = TextField(null=True)
    created_at = MomentField()
    started_at = MomentField()
    start_known = BooleanField()
    """Whether ``started_at`` is the start of the call, or only when we first heard of it."""
    ended_at = MomentField(null=True)
    uniqueid = TextField(null=True)
    linkedid = TextField(null=True)
    caller = TextField(null=True)
    callee = TextField(null=True)
    agent = TextField(null=True)
    queue = TextField(null=True)
    direction = TextField(null=True)
    language = TextField(null=True)
    disposition = TextField(null=True)
    answered_at = MomentField(null=True)
    consent = TextField(null=True)
    """``no``: the caller refused analysis; null: nobody asked."""
    consent_due = MomentField(null=True, index=True)
    """Until when the live events of a refused call are forgotten again. Of another call: since when
    its capture waits, because nobody can tell whether its caller refused. Null: neither."""

    class Meta:
        table_name = "calls"
        indexes = (
            (("started_at", "call_id"), False),
            (("state", "started_at", "call_id"), False),
        )


class CallAlias(Model):
    """Every id by which a call is known, its own ``call_id`` included."""

    known_as = TextField(primary_key=True)
    call = ForeignKeyField(Call, column_name="call_id", on_delete="CASCADE")

    class Meta:
        table_name = "call_aliases"


class SegmentBlock(Model):
    """A block of segment numbers. One sequence serves all calls.

    So two calls that turn out to be one never share a number.
    """

    id = BigAutoField()
    call_id = TextField()

    class Meta:
        table_name = "segment_blocks"


class Leg(Model):
    """One AudioSocket connection, expected or there."""

    uuid = TextField(primary_key=True)
    call = ForeignKeyField(Call, column_name="call_id", on_delete="CASCADE")
    leg = TextField()
    state = TextField()
    segment_base = BigIntegerField()
    language = TextField(null=True)
    daemon = TextField(null=True)
    created_at = MomentField()
    expires_at = MomentField(null=True)
    started_at = MomentField(null=True)
    ended_at = MomentField(null=True)
    offset_s = DoubleField()
    reason = TextField(null=True)
    capture_path = TextField(null=True)
    right_uuid = TextField(null=True)
    """The leg that is the right channel of this one's stream; null: the stream has one channel."""
    no_text = TextField(null=True)
    """Why the leg has no live text; null: it has, or nothing kept it from having some."""

    class Meta:
        table_name = "legs"
        indexes = ((("state", "daemon"), False),)


class Daemon(Model):
    """An AudioSocket daemon and its last sign of life."""

    name = TextField(primary_key=True)
    seen_at = MomentField()
    load = DoubleField(null=True)
    """Share of its decoding time that live calls take; null: it recognises nothing."""
    figures = JsonField(null=True)
    """What it counts, as ``LiveFigures``; null: it has told nothing yet."""

    class Meta:
        table_name = "daemons"


class LiveSegment(Model):
    """A final of the live transcript."""

    call = ForeignKeyField(Call, column_name="call_id", on_delete="CASCADE")
    segment = BigIntegerField()
    leg = TextField()
    start_s = DoubleField()
    end_s = DoubleField()
    text = TextField()
    language = TextField(null=True)
    words = JsonField()
    latency = DoubleField(null=True)
    revised = BooleanField()

    class Meta:
        table_name = "live_segments"
        primary_key = CompositeKey("call", "segment")


class Recording(Model):
    """One recording of a call."""

    audio_id = TextField(primary_key=True)
    call = ForeignKeyField(Call, column_name="call_id", on_delete="CASCADE")
    identity = TextField(null=True, unique=True)
    """What ``intake`` computed from ids and file name; null where only the sha256 can tell."""
    state = TextField()
    reason = TextField(null=True)
    source = TextField()
    sources = JsonField()
    facts = JsonField()
    created_at = MomentField()
    offset_s = DoubleField(null=True)
    duration_s = DoubleField(null=True)
    backfill = BooleanField(default=False, constraints=[SQL("DEFAULT FALSE")])
    """Whether it gives way to live calls and to new recordings."""

    class Meta:
        table_name = "recordings"
        indexes = ((("created_at", "audio_id"), False),)


class RecordingAlias(Model):
    """The id of a recording that turned out to be another one."""

    known_as = TextField(primary_key=True)
    recording = ForeignKeyField(Recording, column_name="audio_id", on_delete="CASCADE")

    class Meta:
        table_name = "recording_aliases"


class RecordingSource(Model):
    """A file that a door named, before it is checked and copied."""

    id = BigAutoField()
    recording = ForeignKeyField(Recording, column_name="audio_id", on_delete="CASCADE")
    role = TextField()
    path = TextField()
    offset_s = DoubleField()
    original_name = TextField(null=True)
    source = TextField()
    url = TextField(null=True)
    """Where ``settle`` fetches it from, to ``path``; null for a file that is here."""

    class Meta:
        table_name = "recording_sources"
        indexes = ((("recording", "role", "path"), True),)


class Media(Model):
    """A stored file of a recording."""

    recording = ForeignKeyField(Recording, column_name="audio_id", on_delete="CASCADE")
    role = TextField()
    path = TextField()
    origin = TextField()
    """The source file it was copied from."""
    offset_s = DoubleField()
    sha256 = TextField(index=True)
    format = TextField()
    num_channels = IntegerField()
    rate = IntegerField()
    duration_s = DoubleField()

    class Meta:
        table_name = "media"
        primary_key = CompositeKey("recording", "role")


class Job(Model):
    """One step of one recording: the queue of record."""

    recording = ForeignKeyField(Recording, column_name="audio_id", on_delete="CASCADE")
    step = TextField()
    position = IntegerField()
    """Order in which people read the steps."""
    state = TextField()
    attempts = IntegerField()
    owner = TextField(null=True)
    due = MomentField(null=True)
    """Pending: not before; running: the lease's end; null: waits for other steps."""
    sent_at = MomentField(null=True)
    """When a worker was last told of it."""
    started_at = MomentField(null=True)
    ms = IntegerField(null=True)
    error = TextField(null=True)
    progress = DoubleField()

    class Meta:
        table_name = "jobs"
        primary_key = CompositeKey("recording", "step")
        indexes = ((("state", "due"), False),)


class Result(Model):
    """What a step made."""

    recording = ForeignKeyField(Recording, column_name="audio_id", on_delete="CASCADE")
    step = TextField()
    created_at = MomentField()
    document = JsonField()

    class Meta:
        table_name = "results"
        primary_key = CompositeKey("recording", "step")


class SpoolFile(Model):
    """A file of the spool as it was when it was registered."""

    path = TextField(primary_key=True)
    size = BigIntegerField()
    mtime_ns = BigIntegerField()
    audio_id = TextField(null=True)
    """Null: refused, by us or by the person whose number the path may tell."""

    class Meta:
        table_name = "spool_files"


class Delivery(Model):
    """A message of an outbound webhook to one endpoint: queue and log in one."""

    message_id = TextField()
    """``webhook-id`` of the Standard Webhooks: the same for every try and endpoint."""
    endpoint = TextField()
    """Name of the endpoint in the settings."""
    type = TextField()
    payload = JsonField()
    state = TextField()
    """``pending``, ``delivered`` or ``failed``."""
    attempts = IntegerField()
    due = MomentField(null=True)
    created_at = MomentField()
    ended_at = MomentField(null=True)
    http_status = IntegerField(null=True)
    error = TextField(null=True)

    class Meta:
        table_name = "deliveries"
        primary_key = CompositeKey("message_id", "endpoint")
        indexes = ((("state", "due"), False), (("created_at",), False))


class Correction(Model):
    """What a person said about a category of a recording; its words become examples."""

    id = BigAutoField()
    recording = ForeignKeyField(Recording, column_name="audio_id", on_delete="CASCADE")
    taxonomy = TextField()
    category = TextField()
    verdict = TextField()
    """``right``, ``wrong`` (it is not that) or ``missing`` (it is, and was not found)."""
    texts = JsonField()
    """Utterances that show the category: a list of texts."""
    made_by = TextField(null=True)
    created_at = MomentField()

    class Meta:
        table_name = "corrections"
        indexes = ((("taxonomy", "category"), False),)


class OptOut(Model):
    """The number of somebody who refused analysis, as ``consent`` hashes it."""

    number_hash = TextField(primary_key=True)
    made_at = MomentField()

    class Meta:
        table_name = "opt_outs"


#: Every table, parents first.
ALL: tuple[type[Model], ...] = (
    Call,
    CallAlias,
    SegmentBlock,
    Leg,
    Daemon,
    LiveSegment,
    Recording,
    RecordingAlias,
    RecordingSource,
    Media,
    Job,
    Result,
    SpoolFile,
    Delivery,
    Correction,
    OptOut,
)
