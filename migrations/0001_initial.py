"""The first tables: frozen copies, independent of callcore.tables."""

from peewee import (
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
    field_type = "TIMESTAMPTZ"


class Call(Model):
    call_id = TextField(primary_key=True)
    session_id = TextField()
    state = TextField()
    reason = TextField(null=True)
    created_at = MomentField()
    started_at = MomentField()
    start_known = BooleanField()
    ended_at = MomentField(null=True)
    uniqueid = TextField(null=True)
    linkedid = TextField(null=True)
    caller = TextField(null=True)
    callee = TextField(null=True)
    agent = TextField(null=True)
    queue = TextField(null=True)
    direction = TextField(null=True)
    language = TextField(null=True)

    class Meta:
        table_name = "calls"
        indexes = ((("started_at", "call_id"), False), (("state",), False))


class CallAlias(Model):
    known_as = TextField(primary_key=True)
    call = ForeignKeyField(Call, column_name="call_id", on_delete="CASCADE")

    class Meta:
        table_name = "call_aliases"


class SegmentBlock(Model):
    id = BigAutoField()
    call_id = TextField()

    class Meta:
        table_name = "segment_blocks"


class Leg(Model):
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

    class Meta:
        table_name = "legs"
        indexes = ((("state", "daemon"), False),)


class Daemon(Model):
    name = TextField(primary_key=True)
    seen_at = MomentField()

    class Meta:
        table_name = "daemons"


class LiveSegment(Model):
    call = ForeignKeyField(Call, column_name="call_id", on_delete="CASCADE")
    segment = BigIntegerField()
    leg = TextField()
    start_s = DoubleField()
    end_s = DoubleField()
    text = TextField()
    language = TextField(null=True)
    words = TextField()
    latency = DoubleField(null=True)
    revised = BooleanField()

    class Meta:
        table_name = "live_segments"
        primary_key = CompositeKey("call", "segment")


class Recording(Model):
    audio_id = TextField(primary_key=True)
    call = ForeignKeyField(Call, column_name="call_id", on_delete="CASCADE")
    identity = TextField(null=True, unique=True)
    state = TextField()
    reason = TextField(null=True)
    source = TextField()
    sources = TextField()
    facts = TextField()
    created_at = MomentField()
    offset_s = DoubleField(null=True)
    duration_s = DoubleField(null=True)

    class Meta:
        table_name = "recordings"
        indexes = ((("created_at", "audio_id"), False),)


class RecordingAlias(Model):
    known_as = TextField(primary_key=True)
    recording = ForeignKeyField(Recording, column_name="audio_id", on_delete="CASCADE")

    class Meta:
        table_name = "recording_aliases"


class RecordingSource(Model):
    id = BigAutoField()
    recording = ForeignKeyField(Recording, column_name="audio_id", on_delete="CASCADE")
    role = TextField()
    path = TextField()
    offset_s = DoubleField()
    original_name = TextField(null=True)
    source = TextField()

    class Meta:
        table_name = "recording_sources"
        indexes = ((("recording", "role", "path"), True),)


class Media(Model):
    recording = ForeignKeyField(Recording, column_name="audio_id", on_delete="CASCADE")
    role = TextField()
    path = TextField()
    origin = TextField()
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
    recording = ForeignKeyField(Recording, column_name="audio_id", on_delete="CASCADE")
    step = TextField()
    position = IntegerField()
    state = TextField()
    attempts = IntegerField()
    owner = TextField(null=True)
    due = MomentField(null=True)
    sent_at = MomentField(null=True)
    started_at = MomentField(null=True)
    ms = IntegerField(null=True)
    error = TextField(null=True)
    progress = DoubleField()

    class Meta:
        table_name = "jobs"
        primary_key = CompositeKey("recording", "step")
        indexes = ((("state", "due"), False),)


class Result(Model):
    recording = ForeignKeyField(Recording, column_name="audio_id", on_delete="CASCADE")
    step = TextField()
    created_at = MomentField()
    document = TextField()

    class Meta:
        table_name = "results"
        primary_key = CompositeKey("recording", "step")


class SpoolFile(Model):
    path = TextField(primary_key=True)
    size = BigIntegerField()
    mtime_ns = BigIntegerField()
    audio_id = TextField(null=True)

    class Meta:
        table_name = "spool_files"


TABLES = (
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
)


def up(migrator, db):
    with db.bind_ctx(TABLES):
        db.create_tables(TABLES, safe=False)


def down(migrator, db):
    with db.bind_ctx(TABLES):
        db.drop_tables(TABLES)
