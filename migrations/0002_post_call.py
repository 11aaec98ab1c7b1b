"""Recordings from URLs, backfill, the load of daemons, deliveries of webhooks, corrections."""

from peewee import (
    SQL,
    BigAutoField,
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


class Recording(Model):
    audio_id = TextField(primary_key=True)

    class Meta:
        table_name = "recordings"


class Delivery(Model):
    message_id = TextField()
    endpoint = TextField()
    type = TextField()
    payload = TextField()
    state = TextField()
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
    id = BigAutoField()
    recording = ForeignKeyField(Recording, column_name="audio_id", on_delete="CASCADE")
    taxonomy = TextField()
    category = TextField()
    verdict = TextField()
    texts = TextField()
    made_by = TextField(null=True)
    created_at = MomentField()

    class Meta:
        table_name = "corrections"
        indexes = ((("taxonomy", "category"), False),)


TABLES = (Delivery, Correction)


def up(migrator, db):
    # Processes of the version before go on for a while and know no such column.
    backfill = BooleanField(default=False, constraints=[SQL("DEFAULT FALSE")])
    migrator.migrate(
        migrator.add_column("recordings", "backfill", backfill),
        migrator.add_column("recording_sources", "url", TextField(null=True)),
        migrator.add_column("daemons", "load", DoubleField(null=True)),
    )
    with db.bind_ctx((Recording, *TABLES)):
        db.create_tables(TABLES, safe=False)


def down(migrator, db):
    with db.bind_ctx((Recording, *TABLES)):
        db.drop_tables(TABLES)
    migrator.migrate(
        migrator.drop_column("daemons", "load"),
        migrator.drop_column("recording_sources", "url"),
        migrator.drop_column("recordings", "backfill"),
    )
