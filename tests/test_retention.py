"""Old audio goes, its text stays; on both databases."""

import os
from datetime import timedelta
from pathlib import Path

import pytest

from callcore import document, intake
from callcore.calls import CallFacts, Media, RecordingState, now
from callcore.consent import Consent
from callcore.retention import Retention
from callcore.settings import Settings
from callcore.storage import Storage
from tests.support.databases import Clock, clock, database_url, storage
from tests.support.recordings import Works, make_settings, write_wav
from tests.test_chain import accept

__all__ = ["clock", "database_url", "storage"]

DAY = 86_400


@pytest.fixture
def works(storage: Storage, clock: Clock, tmp_path: Path) -> Works:
    clock.moment = now() + timedelta(minutes=1)
    return Works(storage, make_settings(tmp_path / "state", keep_audio_days=30))


def sweep(works: Works, settings: Settings | None = None) -> int:
    return Retention(works.storage, settings or works.settings).sweep()


def age(works: Works, days: float) -> None:
    """Make every file of ours older."""
    for name in works.files():
        path = works.settings.audio_dir / name
        then = path.stat().st_mtime - days * DAY
        os.utime(path, (then, then))


def test_audio_goes_when_its_time_has_come_and_what_was_said_stays(
    works: Works, clock: Clock, tmp_path: Path
) -> None:
    old = accept(works, write_wav(tmp_path / "1700000000.1.wav", seconds=2.0))
    works.run()
    clock.move(20 * DAY)
    new = accept(works, write_wav(tmp_path / "1700000000.2.wav", seconds=2.0, pitch=500))
    works.run()
    assert sweep(works) == 0
    clock.move(11 * DAY)
    assert sweep(works) == 1
    recording = works.storage.recording(old)
    assert recording.state is RecordingState.MISSING
    assert "after 30 days" in str(recording.reason)
    assert recording.media == ()
    assert document.read(works.storage, old)["segments"][0]["text"] == "hello there."
    assert [Path(name).parent.name for name in works.files()] == [new]
    assert sweep(works) == 0


def test_files_of_the_pbx_are_not_touched(works: Works, clock: Clock, tmp_path: Path) -> None:
    path = write_wav(tmp_path / "1700000000.1.wav", seconds=2.0)
    accept(works, path)
    works.run()
    clock.move(31 * DAY)
    sweep(works)
    assert path.exists()


def test_what_failed_goes_too(works: Works, clock: Clock) -> None:
    path = works.settings.audio_dir / "uploads" / "a.wav"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"this is no sound")
    facts = CallFacts(uniqueid="1700000000.1")
    media = [Media("mixed", str(path))]
    intake.accept_recording(works.storage, works.settings, facts, "upload", media)
    works.run()
    clock.move(31 * DAY)
    sweep(works)
    assert works.files() == []


def test_why_a_recording_was_refused_stays_on_record(
    works: Works, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    # After 30 days it said that its audio had been deleted by CALLCORE_KEEP_AUDIO_DAYS.
    path = write_wav(works.settings.audio_dir / "uploads" / "a.wav")
    facts = CallFacts(uniqueid="1700000000.1")
    consent = Consent(works.storage, works.settings)
    with monkeypatch.context() as patch:
        patch.setattr(Consent, "clean", lambda *_: None)  # a disk that was away
        consent.refuse(facts)
        accepted = intake.accept_recording(
            works.storage, works.settings, facts, "upload", [Media("mixed", str(path))]
        )
    before = works.storage.recording(accepted.audio_id)
    assert before.state is RecordingState.REFUSED
    clock.move(31 * DAY)
    sweep(works)
    assert works.storage.recording(accepted.audio_id) == before
    consent.clean(before.call_id)
    assert works.files() == []


def test_files_that_belong_to_nothing_go_when_they_are_old(works: Works, clock: Clock) -> None:
    folder = works.settings.audio_dir
    write_wav(folder / "2026" / "01" / "lost" / "x.wav")
    write_wav(folder / "uploads" / "x.wav")
    clock.move(31 * DAY)
    write_wav(folder / "uploads" / "y.wav")
    os.utime(folder / "uploads" / "y.wav", (clock.moment.timestamp(),) * 2)
    assert sweep(works) == 2
    assert works.files() == ["uploads/y.wav"]


def test_what_a_site_keeps_beside_our_folders_is_not_ours(works: Works, clock: Clock) -> None:
    write_wav(works.settings.audio_dir / "announcements" / "x.wav")
    write_wav(works.settings.audio_dir / "models" / "base" / "model.bin")
    write_wav(works.settings.audio_dir / "x.wav")
    clock.move(31 * DAY)
    assert sweep(works) == 0
    assert len(works.files()) == 3


def test_a_recording_that_waits_for_its_analysis_keeps_its_audio(
    works: Works, clock: Clock, tmp_path: Path
) -> None:
    settled = accept(works, write_wav(tmp_path / "1700000000.1.wav", seconds=2.0))
    works.chain.settle(settled)
    waiting = accept(works, write_wav(tmp_path / "1700000000.2.wav", seconds=2.0, pitch=500))
    clock.move(31 * DAY)
    assert sweep(works) == 0
    works.run()
    for audio_id in (settled, waiting):
        assert document.read(works.storage, audio_id)["segments"]


def test_a_capture_goes_when_its_leg_has_been_over_for_so_long(works: Works, clock: Clock) -> None:
    leg = works.storage.add_unregistered_leg("c7a1f0d2-0000-4000-8000-000000000001", "one")
    path = write_wav(works.settings.audio_dir / "capture" / f"{leg.uuid}.wav")
    clock.move(31 * DAY)  # a leg that is left open, or a very long call
    works.storage.end_leg(leg.uuid, "hangup", str(path))
    assert sweep(works) == 0
    clock.move(31 * DAY)
    assert sweep(works) == 1


def test_files_in_work_are_left_alone_however_short_audio_is_kept(
    works: Works, clock: Clock
) -> None:
    write_wav(works.settings.audio_dir / "capture" / "live.wav")
    clock.move(3600)
    assert sweep(works, make_settings(works.settings.state_dir, keep_audio_days=0.01)) == 0


def test_old_files_that_are_still_needed_stay(works: Works, tmp_path: Path) -> None:
    accept(works, write_wav(tmp_path / "1700000000.1.wav", seconds=2.0))
    works.run()
    age(works, 400)  # a restored backup, or a copied disk
    assert sweep(works) == 0
    assert len(works.files()) == 1


def test_without_the_setting_everything_stays(works: Works, clock: Clock, tmp_path: Path) -> None:
    accept(works, write_wav(tmp_path / "1700000000.1.wav", seconds=2.0))
    works.run()
    clock.move(9999 * DAY)
    assert sweep(works, make_settings(works.settings.state_dir)) == 0


def test_more_than_a_batch_goes_in_one_sweep(
    works: Works, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("callcore.retention._BATCH", 2)
    for number in range(5):
        accept(works, write_wav(tmp_path / f"170000000{number}.1.wav", pitch=300 + 50 * number))
    works.run()
    clock.move(timedelta(days=31).total_seconds())
    assert sweep(works) == 5
