"""How calls ended, who refused analysis, two-channel streams, legs without live text."""

from peewee import Field, Model, TextField


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
        migrator.add_column("legs", "right_uuid", TextField(null=True)),
        migrator.add_column("legs", "no_text", TextField(null=True)),
    )
    with db.bind_ctx((OptOut,)):
        db.create_tables((OptOut,), safe=False)


def down(migrator, db):
    with db.bind_ctx((OptOut,)):
        db.drop_tables((OptOut,))
    migrator.migrate(
        migrator.drop_column("legs", "no_text"),
        migrator.drop_column("legs", "right_uuid"),
        migrator.drop_column("calls", "consent"),
        migrator.drop_column("calls", "answered_at"),
        migrator.drop_column("calls", "disposition"),
    )
