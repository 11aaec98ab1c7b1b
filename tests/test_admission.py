"""A disk that runs full, and more uploads than a day may have."""

from datetime import timedelta
from pathlib import Path

import pytest

from callcore import admission, intake
from callcore.calls import CallFacts, Media, now
from callcore.errors import Refused
from callcore.storage import Storage
from tests.support.databases import Clock, clock, database_url, storage
from tests.support.recordings import Works, make_settings, write_wav
from tests.test_chain import accept, status_of

__all__ = ["clock", "database_url", "storage"]

#: More than any disk of ours has.
HUGE_MB = 900_000_000


@pytest.fixture
def works(storage: Storage, clock: Clock, tmp_path: Path) -> Works:
    clock.moment = now() + timedelta(hours=1)
    return Works(storage, make_settings(tmp_path / "state"))


def test_below_the_floor_recordings_wait_and_go_on_by_themselves(
    works: Works, clock: Clock, tmp_path: Path
) -> None:
    full = Works(works.storage, make_settings(works.settings.state_dir, free_floor_mb=HUGE_MB))
    audio_id = accept(full, write_wav(tmp_path / "1700000000.1.wav", seconds=2.0))
    for _ in range(10):
        full.chain.settle(audio_id)
        clock.move(60)
    [settle, _] = works.storage.steps(audio_id)
    assert (settle.status, settle.attempts) == ("pending", 0)
    assert "MB free" in str(settle.error)
    works.run()
    assert set(status_of(works, audio_id).values()) == {"done"}


def test_the_floor_says_how_much_there_is_and_which_setting_it_is(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="CALLCORE_FREE_FLOOR_MB") as caught:
        admission.require_room(make_settings(tmp_path / "not" / "there", free_floor_mb=HUGE_MB))
    assert caught.value.code == "no-room"
    admission.require_room(make_settings(tmp_path, free_floor_mb=0))


def test_the_quota_counts_the_uploads_of_a_day(works: Works, clock: Clock) -> None:
    settings = make_settings(works.settings.state_dir, upload_quota_mb=1)
    path = works.settings.audio_dir / "uploads" / "a.wav"
    write_wav(path, seconds=40.0)  # 0.64 MB
    facts = CallFacts(uniqueid="1700000000.1")
    media = [Media("mixed", str(path))]
    intake.accept_recording(works.storage, settings, facts, "upload", media)
    admission.require_quota(works.storage, settings)
    works.run()
    admission.require_quota(works.storage, settings)  # the copy is counted, what came is gone
    second = write_wav(path.with_name("b.wav"), seconds=40.0, pitch=700.0)
    facts = CallFacts(uniqueid="1700000000.2")
    media = [Media("mixed", str(second))]
    intake.accept_recording(works.storage, settings, facts, "upload", media)
    with pytest.raises(Refused, match="1 MB were uploaded") as caught:
        admission.require_quota(works.storage, settings)
    assert caught.value.code == "quota-used"
    admission.require_quota(works.storage, works.settings)
    clock.move(86_500)
    admission.require_quota(works.storage, settings)
