"""How calls ended, who refused analysis, two-channel streams, legs without live text."""

from peewee import Field, Model, TextField

STATE_INDEX = "call_state_started_at_call_id"


class MomentField(Field):
    field_type = "TIMESTAMPTZ"


class OptOut(Model):
    number_hash = TextField(primary_key=True)
    made_at = MomentField()

    class Meta:
        table_name = "opt_outs"


def up(migrator, db):
    migrator.migrate(
        migrator.add_column("calls", "disposition", TextField(null=True)),
        migrator.add_column("calls", "answered_at", MomentField(null=True)),
        migrator.add_column("calls", "consent", TextField(null=True)),
        migrator.add_column("calls", "consent_due", MomentField(null=True)),
        migrator.add_index("calls", ("consent_due",), name="call_consent_due"),
        migrator.add_column("legs", "right_uuid", TextField(null=True)),
        migrator.add_column("legs", "no_text", TextField(null=True)),
        # Pages of missed calls, newest first; by state alone the new index serves as well.
        migrator.add_index("calls", ("state", "started_at", "call_id"), name=STATE_INDEX),
        migrator.drop_index("calls", "call_state"),
    )
    with db.bind_ctx((OptOut,)):
        db.create_tables((OptOut,), safe=False)


def down(migrator, db):
    with db.bind_ctx((OptOut,)):
        db.drop_tables((OptOut,))
    migrator.migrate(
        migrator.add_index("calls", ("state",), name="call_state"),
        migrator.drop_index("calls", STATE_INDEX),
        migrator.drop_column("legs", "no_text"),
        migrator.drop_column("legs", "right_uuid"),
        migrator.drop_index("calls", "call_consent_due"),
        migrator.drop_column("calls", "consent_due"),
        migrator.drop_column("calls", "consent"),
        migrator.drop_column("calls", "answered_at"),
        migrator.drop_column("calls", "disposition"),
    )
