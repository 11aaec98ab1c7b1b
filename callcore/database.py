"""One database: pooled connections, transactions, and running queries of unbound models.

SQLite is opened so that a commit survives a power cut (WAL, synchronous=FULL) and a writing
transaction takes its lock at once (BEGIN IMMEDIATE): otherwise two readers that both want to
write stop each other. PostgreSQL works by psycopg 3 at READ COMMITTED.
"""

import contextlib
import fcntl
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import peewee
from playhouse.pool import PooledPostgresqlDatabase, PooledSqliteDatabase

from callcore.errors import CallcoreError, ConfigError

#: Seconds that a writer waits for another one, and a thread for a free connection.
BUSY_TIMEOUT_S = 30.0
#: Seconds between two looks at a lock that another writer holds.
_TURN_S = 0.003
#: Connections of one process; more threads than that wait for each other.
MAX_CONNECTIONS = 32

Row = dict[str, Any]


class Database:
    """Runs queries, each in a connection of its own thread.

    Args:
        url: ``sqlite:///FILE`` or ``postgresql://...`` as libpq reads it.

    Raises:
        ConfigError: If the URL is of another kind.
        CallcoreError: If PostgreSQL is asked for and psycopg is not installed.
    """

    def __init__(self, url: str) -> None:
        if url.startswith("sqlite:///"):
            self.is_postgres = False
            self.peewee: Any = _open_sqlite(unquote(url.removeprefix("sqlite:///")))
        elif url.startswith(("postgresql://", "postgres://")):
            self.is_postgres = True
            self.peewee = _open_postgres(url)
        else:
            raise ConfigError("CALLCORE_DATABASE_URL", "<hidden>", "sqlite:/// or postgresql://")
        self._local = threading.local()
        self._broken = _driver_errors() if self.is_postgres else ()

    def close(self) -> None:
        """Close the connections of all threads."""
        self.peewee.close_all()

    @contextlib.contextmanager
    def connection(self) -> Iterator[None]:
        """Keep one connection for the queries inside."""
        with self.peewee.connection_context():
            if not getattr(self._local, "held", False):
                self._revive()
                self._local.held = True
                try:
                    yield
                finally:
                    self._local.held = False
            else:
                yield

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit what happens inside as a whole, or nothing of it; an inner one joins the outer."""
        if getattr(self._local, "in_transaction", False):
            yield
            return
        kind = () if self.is_postgres else ("IMMEDIATE",)
        later: list[Callable[[], object]] = []
        with self.connection(), self.peewee.atomic(*kind):
            self._local.in_transaction, self._local.later = True, later
            try:
                yield
            finally:
                self._local.in_transaction = False
        for work in later:
            work()

    def after_commit(self, work: Callable[[], object]) -> None:
        """Do something that must not precede the commit; never if the transaction comes to nothing.

        Outside of a transaction it is done at once.
        """
        if getattr(self._local, "in_transaction", False):
            self._local.later.append(work)
        else:
            work()

    def _revive(self) -> None:
        """Replace a pooled connection whose server was restarted meanwhile."""
        if not self.is_postgres:
            return
        try:
            self.peewee.execute_sql("SELECT 1")
        except self._broken:
            self.peewee.manual_close()
            self.peewee.close_idle()
            self.peewee.connect()

    def serialize(self, subject: int) -> None:
        """Let no other transaction that says the same number run beside this one.

        A transaction of SQLite is alone anyway.
        """
        if self.is_postgres:
            self.peewee.execute_sql("SELECT pg_advisory_xact_lock(%s)", (subject,))

    @contextlib.contextmanager
    def alone(self, subject: int) -> Iterator[None]:
        """Let no other process that says the same number run beside this one; no transaction.

        Migrations of SQLite switch foreign keys off, which no transaction allows.
        """
        with self.connection():
            if self.is_postgres:
                self.peewee.execute_sql("SELECT pg_advisory_lock(%s)", (subject,))
                try:
                    yield
                finally:
                    self.peewee.execute_sql("SELECT pg_advisory_unlock(%s)", (subject,))
                return
            # A file of its own: closing any handle of the database file drops SQLite's locks.
            with open(f"{self.peewee.database}.lock", "wb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield

    def all(self, query: peewee.Query) -> list[Row]:
        """Return the rows of a SELECT, keyed by the models' field names."""
        with self.connection():
            return list(query.dicts().execute(self.peewee))

    def first(self, query: peewee.Query) -> Row | None:
        """Return the first row of a SELECT, or None."""
        rows = self.all(query.limit(1))
        return rows[0] if rows else None

    def run(self, query: Any) -> int:
        """Return how many rows an INSERT, UPDATE or DELETE changed."""
        if isinstance(query, peewee.Insert):
            query = query.as_rowcount()
        with self.connection():
            return int(query.execute(self.peewee))

    def insert(self, model: type[peewee.Model], values: Row) -> int:
        """Insert a row unless one with the same key is there; return 1 or 0."""
        return self.run(model.insert(**values).on_conflict_ignore())

    def insert_numbered(self, model: type[peewee.Model], values: Row) -> int:
        """Insert a row and return the number that the database gave it."""
        query = model.insert(**values)
        with self.connection():
            if not self.is_postgres:
                return int(query.execute(self.peewee))
            rows = query.returning(model._meta.primary_key).tuples().execute(self.peewee)
            return int(next(iter(rows))[0])

    def use_write_ahead_log(self) -> None:
        """Switch an SQLite file to WAL; it stays so."""
        if not self.is_postgres:
            with self.connection():
                self.peewee.execute_sql("PRAGMA journal_mode=wal")


_Pooled: Any = PooledSqliteDatabase  # playhouse has no types


class _Sqlite(_Pooled):  # type: ignore[misc]
    def begin(self, lock_type: str | None = None) -> None:
        """Begin, waiting for other writers.

        SQLite itself looks at a held lock ten times a second: beside busy writers that is hardly
        ever the moment at which it is free, and some waited for seconds.
        """
        deadline = time.monotonic() + BUSY_TIMEOUT_S
        self.execute_sql("PRAGMA busy_timeout=0")
        try:
            while True:
                try:
                    super().begin(lock_type)
                    return
                except peewee.OperationalError as error:
                    if "locked" not in str(error) or time.monotonic() >= deadline:
                        raise
                time.sleep(_TURN_S * random.uniform(0.5, 1.5))
        finally:
            self.execute_sql(f"PRAGMA busy_timeout={round(BUSY_TIMEOUT_S * 1000)}")


def _open_sqlite(path: str) -> peewee.Database:
    if path != ":memory:":
        Path(path).absolute().parent.mkdir(parents=True, exist_ok=True)
    pragmas = {
        "busy_timeout": round(BUSY_TIMEOUT_S * 1000),
        "synchronous": "full",
        "foreign_keys": 1,
        "temp_store": "memory",
    }
    database: peewee.Database = _Sqlite(
        path,
        pragmas=pragmas,
        max_connections=MAX_CONNECTIONS,
        timeout=BUSY_TIMEOUT_S,
        # A connection goes back to the pool and may serve another thread next; never two at once.
        check_same_thread=False,
    )
    return database


def _driver_errors() -> tuple[type[Exception], ...]:
    import psycopg

    # peewee wraps the errors of the standard, and lets PostgreSQL's own through.
    return (peewee.PeeweeException, psycopg.Error)


def _open_postgres(url: str) -> peewee.Database:
    try:
        import psycopg  # noqa: F401  (peewee falls back to psycopg2 without a word)
    except ImportError:
        raise CallcoreError(
            "PostgreSQL needs psycopg: install it by `pip install 'callcore[postgres]'`"
        ) from None
    pooled: Any = PooledPostgresqlDatabase
    database: peewee.Database = pooled(
        "postgresql://" + url.partition("://")[2],
        prefer_psycopg3=True,
        max_connections=MAX_CONNECTIONS,
        timeout=BUSY_TIMEOUT_S,
    )
    return database
