"""The same tests on SQLite and on PostgreSQL.

A test file imports ``storage`` and what that needs, and lists them in ``__all__``.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from callcore.storage import Storage
from tests.support.postgres import shared


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.moment = datetime(2026, 3, 4, 10, 11, 12, 345678, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.moment

    def move(self, seconds: float) -> None:
        self.moment += timedelta(seconds=seconds)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of an empty database."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'callcore.db'}"
        return
    server = shared()
    url = server.create_database()
    yield url
    server.drop_database(url)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def storage(database_url: str, clock: Clock) -> Iterator[Storage]:
    """A migrated database with a clock that the test moves."""
    made = Storage(database_url, clock=clock)
    made.migrate()
    yield made
    made.close()
