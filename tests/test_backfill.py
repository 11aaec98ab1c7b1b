"""Old recordings in bulk give way to live calls and to new recordings."""

from datetime import timedelta
from pathlib import Path

import pytest

from callcore import tables
from callcore.calls import SETTLE, now
from callcore.storage import Storage
from tests.support.databases import Clock, clock, database_url, storage
from tests.support.recordings import Works, make_settings, write_wav
from tests.test_chain import accept, status_of

__all__ = ["clock", "database_url", "storage"]


@pytest.fixture
def works(storage: Storage, clock: Clock, tmp_path: Path) -> Works:
    clock.moment = now() + timedelta(hours=1)
    return Works(storage, make_settings(tmp_path / "state"))


def add(works: Works, folder: Path, number: int, *, backfill: bool) -> str:
    path = write_wav(folder / f"{1700000000 + number}.1.wav", pitch=300.0 + 10 * number)
    audio_id = accept(works, path)
    model = tables.Recording
    works.storage.database.run(model.update(backfill=backfill).where(model.audio_id == audio_id))
    return audio_id


def test_new_recordings_are_told_of_in_another_queue_than_old_ones(
    works: Works, tmp_path: Path, clock: Clock
) -> None:
    old = [add(works, tmp_path, number, backfill=True) for number in range(30)]
    new = add(works, tmp_path, 99, backfill=False)
    clock.move(10)
    works.chain.sweep()
    assert works.waker.queues["io"] == [new]
    assert set(works.waker.queues["backfill"]) < set(old)


def test_old_recordings_wait_while_live_calls_need_the_decoder(
    works: Works, tmp_path: Path, clock: Clock
) -> None:
    old = add(works, tmp_path, 1, backfill=True)
    new = add(works, tmp_path, 2, backfill=False)
    works.storage.note_daemon("one", 0.1)
    works.storage.note_daemon("two", 0.9)
    for audio_id in (old, new):
        works.chain.settle(audio_id)
    assert status_of(works, new)[SETTLE] == "done"
    assert status_of(works, old)[SETTLE] == "pending"
    clock.move(10)
    works.storage.note_daemon("two", 0.2)
    works.chain.sweep()
    assert old in works.waker.queues["backfill"]
    works.chain.settle(old)
    assert status_of(works, old)[SETTLE] == "done"


def test_a_daemon_that_says_nothing_any_more_holds_up_nobody(
    works: Works, tmp_path: Path, clock: Clock
) -> None:
    old = add(works, tmp_path, 1, backfill=True)
    works.storage.note_daemon("dead", 1.0)
    clock.move(60)
    works.chain.settle(old)
    assert status_of(works, old)[SETTLE] == "done"


def test_a_worker_does_one_step_of_old_recordings_at_a_time(works: Works, tmp_path: Path) -> None:
    first, second = (add(works, tmp_path, number, backfill=True) for number in (1, 2))
    with works.chain._backfill.turn(first) as may_run:
        assert may_run
        works.chain.settle(second)
        assert status_of(works, second)[SETTLE] == "pending"
    works.chain.settle(second)
    assert status_of(works, second)[SETTLE] == "done"
