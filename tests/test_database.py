"""Transactions of SQLite that wait for each other."""

import threading
from pathlib import Path

import peewee
import pytest

from callcore import database
from callcore.database import Database


def test_a_writer_waits_for_another_and_then_has_its_turn(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'x.db'}"
    first, second = Database(url), Database(url)
    order: list[str] = []
    asked = threading.Event()

    def work() -> None:
        asked.set()
        with second.transaction():
            order.append("second")

    with first.transaction():
        thread = threading.Thread(target=work)
        thread.start()
        asked.wait()
        first.peewee.execute_sql("CREATE TABLE x (y INTEGER)")
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    first.close()
    second.close()


def test_a_writer_that_waited_long_enough_says_so_and_can_write_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path / 'x.db'}"
    first, second = Database(url), Database(url)
    monkeypatch.setattr(database, "BUSY_TIMEOUT_S", 0.05)
    locked = pytest.raises(peewee.OperationalError, match="locked")
    with first.transaction(), locked, second.transaction():
        pass
    with second.transaction():
        second.peewee.execute_sql("CREATE TABLE x (y INTEGER)")
    assert second.peewee.get_tables() == ["x"]
    first.close()
    second.close()
