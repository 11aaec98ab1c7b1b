"""What daemons count of their live calls."""

from peewee import TextField


def up(migrator, db):
    migrator.migrate(migrator.add_column("daemons", "figures", TextField(null=True)))


def down(migrator, db):
    migrator.migrate(migrator.drop_column("daemons", "figures"))
