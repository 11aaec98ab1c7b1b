import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from callcore import intake
from callcore.calls import CallFacts, CallState
from callcore.live_records import Records
from callcore.storage import Storage
from tests.support.live import FakeWaker, new_uuid, settings_for


@pytest.fixture
def waker() -> FakeWaker:
    return FakeWaker()


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Storage]:
    made = Storage(settings_for(tmp_path).database_url)
    made.migrate()
    yield made
    made.close()


@pytest.fixture
def records(tmp_path: Path, storage: Storage, waker: FakeWaker) -> Iterator[Records]:
    made = Records(storage, settings_for(tmp_path, capture="always"), waker)
    yield made
    assert made.close()


def broken(*args: Any) -> Any:
    raise RuntimeError("no")


def captured_call(storage: Storage) -> str:
    """Return a live call whose only leg has ended, with a capture."""
    leg = storage.add_unregistered_leg(new_uuid(), "daemon-1")
    storage.end_leg(leg.uuid, "hangup", "/captures/1.wav")
    return leg.call_id


async def test_the_end_of_a_call_and_its_capture_are_stored_together(
    records: Records, storage: Storage, waker: FakeWaker, monkeypatch: pytest.MonkeyPatch
):
    # Fault held off: a daemon killed between the two left a call that nobody transcribed.
    call_id = captured_call(storage)
    with monkeypatch.context() as patch:
        patch.setattr(intake, "accept_capture", broken)
        with pytest.raises(RuntimeError):
            await records.end_call(call_id, "hangup")
    assert storage.call(call_id).state is CallState.LIVE
    assert await records.end_call(call_id, "hangup") is not None
    [recording] = storage.recordings_of(call_id)
    assert waker.woken == [("settle", recording.audio_id)]
    assert await records.end_call(call_id, "hangup") is None


async def test_a_call_that_ends_by_an_expired_leg_keeps_its_capture(
    records: Records, storage: Storage, monkeypatch: pytest.MonkeyPatch
):
    call_id = captured_call(storage)
    storage.register_leg(new_uuid(), CallFacts(call_id=call_id, leg="agent"), -1.0)
    with monkeypatch.context() as patch:
        patch.setattr(intake, "accept_capture", broken)
        with pytest.raises(RuntimeError):
            await records.expire_legs()
    assert storage.call(call_id).state is CallState.LIVE
    assert [call.call_id for call in await records.expire_legs()] == [call_id]
    assert len(storage.recordings_of(call_id)) == 1


async def test_a_capture_that_comes_after_its_call_was_processed_is_kept_beside(
    records: Records, storage: Storage, tmp_path: Path
):
    call_id = captured_call(storage)
    late = storage.register_leg(new_uuid(), CallFacts(call_id=call_id), 10.0)
    storage.consume_leg(late.uuid, "daemon-2")
    storage.end_leg(late.uuid, "daemon_lost", None)
    await records.end_call(call_id, "hangup")
    await records.adopt_capture(late.uuid, tmp_path / "late.wav")
    assert len(storage.capture_media(call_id)) == 2
    assert len(storage.recordings_of(call_id)) == 1


async def test_other_daemons_are_told_from_this_one(records: Records, storage: Storage):
    for name in ("daemon-1", "daemon-2"):
        storage.add_unregistered_leg(new_uuid(), name)
    await records.note_alive()
    assert await records.other_daemons() == {"daemon-2": None}
    assert len(storage.live_daemons()) == 2


def test_a_database_that_never_answers_does_not_keep_the_daemon(
    tmp_path: Path, storage: Storage, waker: FakeWaker
):
    # Fault held off: a locked SQLite held the end of the daemon for 30 s, and it was killed.
    records = Records(storage, settings_for(tmp_path), waker)
    begun, locked = threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        locked.wait()

    stuck, waiting = records._thread.submit(wait), records._thread.submit(broken)
    try:
        assert begun.wait(20.0)
        assert waiting.cancel()
        assert not records.close(timeout_s=0.0)
        assert records._thread._thread.daemon
    finally:
        locked.set()
    stuck.result(20.0)
    assert records.close(timeout_s=20.0)
    assert waiting.cancelled()
