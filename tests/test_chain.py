"""A recording's way through settle and its steps, with fakes around the real files."""

import dataclasses
import errno
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from callcore import document, intake, settling, tables
from callcore.calls import (
    SETTLE,
    CallFacts,
    DocumentState,
    Media,
    Recording,
    RecordingState,
    StepState,
    now,
)
from callcore.chain import BUSY_RESEND_S, ENGINE_AWAY_S, ENGINE_PATIENCE_S, MAX_BACKLOG
from callcore.errors import AudioError, ConfigError, EngineDown
from callcore.ledger import RESEND_S
from callcore.log import TextFormatter
from callcore.reruns import rerun
from callcore.steps import table
from callcore.storage import Storage
from tests.support.databases import Clock, clock, database_url, storage
from tests.support.recordings import (
    FakeEngines,
    Works,
    make_settings,
    tone,
    write_unfinished_wav,
    write_wav,
)

__all__ = ["clock", "database_url", "storage"]

ID = "1700000000.12"


@pytest.fixture
def works(storage: Storage, clock: Clock, tmp_path: Path) -> Works:
    clock.moment = now() + timedelta(hours=1)  # files have the time stamps of the machine
    return Works(storage, make_settings(tmp_path / "state"))


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    folder = tmp_path / "spool"
    folder.mkdir()
    return folder


def accept(works: Works, path: Path, facts: CallFacts | None = None, **given: Any) -> str:
    return intake.accept_recording(
        works.storage,
        works.settings,
        facts or CallFacts(),
        "spool",
        [Media("mixed", str(path))],
        **given,
    ).audio_id


def patient(works: Works, settle_s: float = 2.0) -> Works:
    return Works(works.storage, dataclasses.replace(works.settings, settle_s=settle_s))


def stored(works: Works, audio_id: str) -> Recording:
    recording = works.storage.recording(audio_id)
    assert recording.state is RecordingState.STORED, recording.reason
    return recording


def status_of(works: Works, audio_id: str) -> dict[str, str]:
    return {step.name: str(step.status) for step in works.storage.steps(audio_id)}


def fail_settling(works: Works, audio_id: str, clock: Clock) -> None:
    """Try as often as is tried."""
    for _ in range(4):
        works.chain.settle(audio_id)
        clock.move(60)


@dataclass
class AwayEngines(FakeEngines):
    """Answer nobody."""

    away: bool = True

    def stream(self, engine: str, method: str, *args: Any) -> Iterator[Any]:
        if self.away:
            raise EngineDown(engine, "answered 401: the key is not right", 1.0)
        return super().stream(engine, method, *args)


def _broken(*_: object) -> None:
    raise ValueError("the caller said 4711")


class OnSqlite:
    """What becomes of files does not depend on the database."""

    @pytest.fixture
    def database_url(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path / 'callcore.db'}"


class TestWholeWay:
    def test_a_recording_is_copied_transcribed_and_announced(
        self, works: Works, spool: Path
    ) -> None:
        path = write_wav(spool / f"{ID}.wav", seconds=2.0)
        audio_id = accept(works, path)
        assert document.read(works.storage, audio_id)["status"] == DocumentState.QUEUED
        works.run()
        [media] = stored(works, audio_id).media
        assert path.exists()
        copy = Path(media.path)
        assert copy.read_bytes() == path.read_bytes()
        assert copy.relative_to(works.settings.audio_dir).parts[-2:] == (audio_id, "mixed.wav")
        assert (media.rate, media.num_channels, media.duration_s) == (8000, 1, 2.0)
        assert works.events() == [
            "step.started settle",
            "step.finished settle",
            "step.started transcribe",
            "step.finished transcribe",
            "analysis.ready transcribe",
        ]
        assert {event.call_id for event in works.bus.events} == {ID}
        assert works.waker.woken == [("transcribe", audio_id)]
        made = document.read(works.storage, audio_id)
        assert (made["status"], made["source"]) == (DocumentState.COMPLETED, "recording")
        assert made["processing"]["progress"] == 100
        [segment] = made["segments"]
        assert segment["text"] == "hello there."
        assert [word["w"] for word in segment["words"]] == ["hello", "there."]
        assert made["processing"]["steps"][1]["engine"] == "fake"
        assert made["summary"] is None

    def test_a_stereo_file_has_two_speakers(self, works: Works, spool: Path) -> None:
        audio_id = accept(works, write_wav(spool / f"{ID}.wav", num_channels=2))
        works.run()
        assert [media.role for media in stored(works, audio_id).media] == ["stereo"]
        segments = works.storage.results(audio_id)["transcribe"]["segments"]
        assert {segment["leg"] for segment in segments} == {"caller", "agent"}
        numbers = [segment["segment"] for segment in segments]
        assert numbers == sorted(numbers)
        assert len(set(numbers)) == 2

    def test_files_of_legs_are_preferred_to_the_mix(self, works: Works, spool: Path) -> None:
        for leg in ("", "-caller", "-agent"):
            path = write_wav(spool / f"{ID}{leg}.wav")
        audio_id = accept(works, path)  # the others lie beside it
        works.run()
        assert len(stored(works, audio_id).media) == 3
        segments = works.storage.results(audio_id)["transcribe"]["segments"]
        assert [segment["leg"] for segment in segments] == ["agent", "caller"]

    def test_times_are_those_of_the_call(self, works: Works, spool: Path, clock: Clock) -> None:
        begun = CallFacts(call_id="c", started_at=clock.moment)
        intake.accept_recording(works.storage, works.settings, begun, "agi", [])
        clock.move(12.5)
        facts = CallFacts(call_id="c", uniqueid=ID, started_at=clock.moment)
        audio_id = accept(works, write_wav(spool / f"{ID}.wav"), facts)
        works.run()
        assert stored(works, audio_id).offset_s == 12.5
        [segment] = works.storage.results(audio_id)["transcribe"]["segments"]
        assert (segment["start"], segment["words"][0]["s"]) == (12.6, 12.6)

    def test_a_long_recording_is_cut_where_it_is_quiet(
        self, works: Works, spool: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from callcore.steps import transcribe

        monkeypatch.setattr(transcribe, "PIECE_S", 10.0)
        monkeypatch.setattr(transcribe, "SEARCH_S", 5.0)
        path = write_wav(spool / f"{ID}.wav", seconds=30.0)
        content = bytearray(path.read_bytes())
        quiet = 44 + round(7.0 * 16000)
        content[quiet : quiet + 16000] = bytes(16000)
        path.write_bytes(content)
        audio_id = accept(works, path)
        works.run()
        assert sum(works.engines.calls) == pytest.approx(30 * 16000, abs=64)
        assert 7.0 <= works.engines.calls[0] / 16000 <= 7.5
        segments = works.storage.results(audio_id)["transcribe"]["segments"]
        assert len(segments) == len(works.engines.calls) >= 3
        assert segments[1]["start"] == pytest.approx(works.engines.calls[0] / 16000 + 0.1, abs=1e-3)

    def test_live_words_are_shown_until_the_recording_has_been_transcribed(
        self, works: Works, spool: Path
    ) -> None:
        from tests.test_storage import segment

        leg = works.storage.add_unregistered_leg("0" * 8 + "-0000-4000-8000-" + "0" * 12, "d")
        works.storage.add_live_segment(leg.call_id, segment(leg.segment_base))
        audio_id = accept(works, write_wav(spool / "x.wav"), CallFacts(call_id=leg.call_id))
        made = document.read(works.storage, audio_id)
        assert (made["source"], made["segments"][0]["text"]) == ("live", "hello")
        works.run()
        made = document.read(works.storage, audio_id)
        assert (made["source"], made["segments"][0]["text"]) == ("recording", "hello there.")
        assert len(works.storage.live_segments(leg.call_id)) == 1


class TestCompleteness(OnSqlite):
    def test_a_file_that_changes_is_left_alone(
        self, works: Works, spool: Path, clock: Clock
    ) -> None:
        works = patient(works)
        path = write_wav(spool / f"{ID}.wav")
        clock.moment = now()
        audio_id = accept(works, path)
        works.run()
        [settle, *_] = works.storage.steps(audio_id)
        assert (settle.status, settle.attempts) == (StepState.PENDING, 0)
        assert settle.error == "the file is still changing"
        clock.move(2.1)
        works.run()
        stored(works, audio_id)

    def test_a_header_that_says_unfinished_is_waited_for_then_repaired(
        self, works: Works, spool: Path, clock: Clock
    ) -> None:
        works = patient(works)
        path = write_unfinished_wav(spool / f"{ID}.wav", seconds=2.0)
        before = path.read_bytes()
        clock.moment = now()
        audio_id = accept(works, path)
        for _ in range(7):
            clock.move(4)
            works.run()
            assert works.storage.recording(audio_id).state is RecordingState.EXPECTED
        clock.move(4)
        works.run()
        [media] = stored(works, audio_id).media
        assert media.duration_s == 2.0
        assert path.read_bytes() == before  # the file of the PBX stays as it is

    def test_a_file_that_is_not_there_yet_is_waited_for(
        self, works: Works, spool: Path, clock: Clock
    ) -> None:
        audio_id = accept(works, spool / f"{ID}.wav")
        works.run()
        clock.move(20)
        write_wav(spool / f"{ID}.wav")
        works.run()
        stored(works, audio_id)

    def test_a_file_that_never_comes_is_missing_and_may_come_later(
        self, works: Works, spool: Path, clock: Clock
    ) -> None:
        audio_id = accept(works, spool / f"{ID}.wav")
        clock.move(settling.ABSENT_S + 1)
        works.run()
        recording = works.storage.recording(audio_id)
        assert recording.state is RecordingState.MISSING
        assert recording.reason
        made = document.read(works.storage, audio_id)
        assert (made["status"], made["processing"]["steps"][1]["status"]) == ("failed", "skipped")
        assert works.events()[-1] == "analysis.failed settle"
        assert accept(works, write_wav(spool / "elsewhere" / f"{ID}.wav")) == audio_id
        works.run()
        stored(works, audio_id)
        assert document.read(works.storage, audio_id)["status"] == DocumentState.COMPLETED

    def test_an_announced_leg_that_never_comes_does_not_hold_up_the_others(
        self, works: Works, spool: Path, clock: Clock
    ) -> None:
        media = [Media("caller", str(write_wav(spool / f"{ID}-caller.wav")))]
        media.append(Media("agent", str(spool / f"{ID}-agent.wav")))
        audio_id = intake.accept_recording(
            works.storage, works.settings, CallFacts(), "agi", media
        ).audio_id
        works.run()
        assert works.storage.steps(audio_id)[0].error == "a file is not there yet"
        clock.move(settling.ABSENT_S + 1)
        works.run()
        assert [each.role for each in stored(works, audio_id).media] == ["caller"]

    def test_a_leg_that_comes_late_is_taken_in(self, works: Works, spool: Path) -> None:
        audio_id = accept(works, write_wav(spool / f"{ID}-caller.wav"))
        works.run()
        assert accept(works, write_wav(spool / f"{ID}-agent.wav", pitch=600)) == audio_id
        works.run()
        assert [each.role for each in stored(works, audio_id).media] == ["caller", "agent"]
        legs = [each["leg"] for each in works.storage.results(audio_id)["transcribe"]["segments"]]
        assert sorted(legs) == ["agent", "caller"]

    def test_a_file_that_grew_after_all_is_read_again(self, works: Works, spool: Path) -> None:
        path = write_wav(spool / f"{ID}.wav", seconds=1.0)
        audio_id = accept(works, path)
        works.run()
        write_wav(path, seconds=3.0, num_channels=2)
        assert accept(works, path, renewed=True) == audio_id
        works.run()
        assert stored(works, audio_id).duration_s == 3.0
        assert [name.rpartition("/")[2] for name in works.files()] == ["stereo.wav"]
        assert len(works.engines.calls) == 3
        assert accept(works, path, renewed=True) == audio_id
        works.run()
        assert len(works.engines.calls) == 3  # nothing had changed

    @pytest.mark.parametrize("kind", ["missing", "refused"])
    def test_a_file_that_comes_back_under_its_path_is_taken_in(
        self, works: Works, spool: Path, clock: Clock, kind: str
    ) -> None:
        path = spool / f"{ID}.wav"
        if kind == "refused":
            path.write_bytes(b"rubbish" * 20)
        audio_id = accept(works, path)
        clock.move(settling.ABSENT_S + 1)
        works.run()
        assert str(works.storage.recording(audio_id).state) == kind
        write_wav(path)
        back = intake.accept_recording(
            works.storage, works.settings, CallFacts(), "spool", [Media("mixed", str(path))]
        )
        assert (back.audio_id, back.created, back.wake) == (audio_id, False, True)
        works.run()
        assert stored(works, audio_id).reason is None
        assert document.read(works.storage, audio_id)["status"] == DocumentState.COMPLETED

    def test_what_killed_workers_had_begun_to_copy_is_removed(
        self, works: Works, spool: Path
    ) -> None:
        audio_id = accept(works, write_wav(spool / f"{ID}.wav"))
        folder = settling.folder_of(works.storage.recording(audio_id), works.settings.audio_dir)
        folder.mkdir(parents=True)
        stale, fresh = folder / ".0123.part", folder / ".4567.part"  # the clock is an hour ahead
        for partial, age_s in ((stale, 10), (fresh, -3600)):
            partial.write_bytes(b"half")
            at = now().timestamp() - age_s
            os.utime(partial, (at, at))
        works.run()
        stored(works, audio_id)
        assert not stale.exists()
        assert fresh.exists()  # another worker may be writing it

    def test_a_path_that_leaves_the_audio_folder_again_is_not_ours(self, works: Works) -> None:
        audio_dir = works.settings.audio_dir
        assert settling.is_ours(f"{audio_dir}/a/b.wav", audio_dir)
        assert not settling.is_ours(f"{audio_dir}/../b.wav", audio_dir)


class TestUnreadable(OnSqlite):
    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("empty.wav", b""),
            ("text.wav", b"this is no audio at all" * 10),
            ("header.wav", None),
        ],
    )
    def test_a_file_that_is_no_recording_is_refused_at_once(
        self, works: Works, spool: Path, name: str, content: bytes | None
    ) -> None:
        path = spool / name
        if content is None:
            write_wav(path, seconds=0)
        else:
            path.write_bytes(content)
        audio_id = accept(works, path)
        works.run()
        recording = works.storage.recording(audio_id)
        assert recording.state is RecordingState.REFUSED
        assert recording.reason
        [settle, transcribe] = works.storage.steps(audio_id)
        assert (settle.status, settle.attempts) == (StepState.FAILED, 1)
        assert transcribe.status is StepState.SKIPPED
        assert path.exists()
        assert works.files() == []

    def test_an_empty_leg_does_not_spoil_the_others(self, works: Works, spool: Path) -> None:
        write_wav(spool / f"{ID}-agent.wav", seconds=0)
        audio_id = accept(works, write_wav(spool / f"{ID}-caller.wav"))
        works.run()
        recording = stored(works, audio_id)
        assert [each.role for each in recording.media] == ["caller"]
        reason = "the agent file was left out: the file holds no audio"
        assert document.read(works.storage, audio_id)["recording"]["reason"] == reason
        write_wav(spool / f"{ID}-agent.wav")
        accept(works, spool / f"{ID}-agent.wav")  # it was not finished, and is now
        works.run()
        assert [each.role for each in stored(works, audio_id).media] == ["caller", "agent"]
        assert stored(works, audio_id).reason is None

    def test_who_is_only_in_the_mix_is_heard_there(self, works: Works, spool: Path) -> None:
        for leg in ("", "-caller"):
            write_wav(spool / f"{ID}{leg}.wav")
        write_wav(spool / f"{ID}-agent.wav", seconds=0)
        audio_id = accept(works, spool / f"{ID}.wav")
        works.run()
        assert [each.role for each in stored(works, audio_id).media] == ["mixed", "caller"]
        segments = works.storage.results(audio_id)["transcribe"]["segments"]
        assert [segment["leg"] for segment in segments] == ["mixed"]

    def test_a_second_file_stands_in_for_an_unreadable_one(self, works: Works, spool: Path) -> None:
        (spool / f"{ID}.wav").write_bytes(b"rubbish" * 20)
        audio_id = accept(works, spool / f"{ID}.wav")
        accept(works, write_wav(spool / "other" / f"{ID}.wav"))
        works.run()
        assert stored(works, audio_id).duration_s == 1.0

    def test_other_formats_are_taken_if_they_decode(self, works: Works, spool: Path) -> None:
        import av
        import numpy as np

        path = spool / f"{ID}.flac"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("flac", rate=8000)
            stream.layout = "mono"
            samples = np.frombuffer(tone(1.0), np.int16).reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
            frame.sample_rate = 8000
            for packet in [*stream.encode(frame), *stream.encode(None)]:
                container.mux(packet)
        audio_id = accept(works, path)
        works.run()
        [media] = stored(works, audio_id).media
        assert media.path.endswith("/mixed.flac")
        assert media.duration_s == pytest.approx(1.0, abs=0.1)


class TestToldOutside:
    def told(self, works: Works) -> list[str]:
        model = tables.Delivery
        rows = works.storage.database.all(model.select().where(model.endpoint == ""))
        return [f"{row['type']} {row['payload']['data']['status']}" for row in rows]

    def test_an_analysis_that_settling_ends_is_told_of_once(
        self, works: Works, spool: Path, clock: Clock
    ) -> None:
        audio_id = accept(works, write_wav(spool / f"{ID}.wav"))
        works.chain.settle(audio_id)
        works.chain.ledger.restart(audio_id, [SETTLE])  # as by another door's report
        works.chain.run_step("transcribe", audio_id)
        assert self.told(works) == []
        works.chain.settle(audio_id)
        assert self.told(works) == ["analysis.ready completed"]
        for _ in range(2):
            clock.move(10)
            works.chain.ledger.restart(audio_id, [SETTLE])
            works.chain.settle(audio_id)  # finds nothing new
        assert self.told(works) == ["analysis.ready completed"]
        works.chain.ledger.rerun(audio_id, ["transcribe"], {"transcribe": (SETTLE,)})
        works.run()
        assert self.told(works) == ["analysis.ready completed"] * 2


class TestFailures:
    def test_an_engine_that_dies_is_tried_again(
        self, works: Works, spool: Path, clock: Clock
    ) -> None:
        works.engines.fail_times = 2
        audio_id = accept(works, write_wav(spool / f"{ID}.wav"))
        for _ in range(5):
            works.run()
            clock.move(10)
        step = works.storage.steps(audio_id)[1]
        assert (step.status, step.attempts, step.error) == (StepState.DONE, 3, None)
        assert works.events()[-1] == "analysis.ready transcribe"

    def test_an_engine_that_always_dies_fails_the_step(
        self, works: Works, spool: Path, clock: Clock
    ) -> None:
        works.engines.fail_times = 1000
        audio_id = accept(works, write_wav(spool / f"{ID}.wav"))
        for _ in range(20):
            works.run()
            clock.move(60)
        made = document.read(works.storage, audio_id)
        assert made["status"] == DocumentState.FAILED
        step = made["processing"]["steps"][1]
        assert (step["attempts"], step["error"]) == (4, "engine transcriber: its process died")
        assert works.events()[-2:] == ["step.failed transcribe", "analysis.failed transcribe"]
        status = document.status(works.storage.recording(audio_id), works.storage.steps(audio_id))
        assert status["error"] == "transcribe: engine transcriber: its process died"

    def test_an_engine_that_answers_nobody_is_waited_for_a_day(
        self, works: Works, spool: Path, clock: Clock
    ) -> None:
        audio_id = accept(works, write_wav(spool / f"{ID}.wav"))
        clock.move(7 * ENGINE_PATIENCE_S)  # how old the recording is does not count
        engines = AwayEngines()
        since = f"{clock():%Y-%m-%d %H:%M} UTC"
        hours = round(ENGINE_PATIENCE_S / 3600)
        for _ in range(hours):
            Works(works.storage, works.settings, engines).run()  # any worker may be the next
            step = works.storage.steps(audio_id)[1]
            assert (step.status, step.attempts) == (StepState.PENDING, 0)
            said = "engine transcriber: answered 401: the key is not right"
            assert step.error == f"{said}; asked in vain since {since}"
            clock.move(3600)
        last = Works(works.storage, works.settings, engines)
        last.run()
        step = works.storage.steps(audio_id)[1]
        assert step.status == StepState.FAILED
        assert step.error == (
            "engine transcriber: answered 401: the key is not right; it has answered nobody for "
            "24 hours. `callcore doctor` tells what to mend; then run this again"
        )
        assert last.events()[-2:] == ["step.failed transcribe", "analysis.failed transcribe"]
        last.run()
        assert works.storage.steps(audio_id)[1].status == StepState.FAILED

    def test_an_engine_that_stays_away_is_asked_ever_later(
        self, works: Works, spool: Path, clock: Clock
    ) -> None:
        clock.moment = clock.moment.replace(second=0, microsecond=0)  # reasons tell the minute
        accept(works, write_wav(spool / f"{ID}.wav"))
        away = Works(works.storage, works.settings, AwayEngines())
        away.run()
        least_s, most_s = ENGINE_AWAY_S
        for passed_s, wait_s in ((10.0, least_s), (584.5, 60.0), (36_000.0, most_s)):
            clock.move(passed_s)
            away.run()
            asked = len(away.events())
            clock.move(wait_s - 0.5)
            away.run()
            assert len(away.events()) == asked
            clock.move(1.0)
            away.run()
            assert len(away.events()) == asked + 1, "it starts"

    def test_a_step_that_waited_a_day_in_vain_can_be_run_again(
        self, works: Works, spool: Path, clock: Clock
    ) -> None:
        audio_id = accept(works, write_wav(spool / f"{ID}.wav"))
        away = Works(works.storage, works.settings, AwayEngines())
        away.run()
        clock.move(ENGINE_PATIENCE_S + 60)
        away.run()
        assert status_of(works, audio_id)["transcribe"] == "failed"
        assert rerun(works.storage, works.settings, audio_id) == (audio_id, ("transcribe",))
        away.run()
        assert status_of(works, audio_id)["transcribe"] == "pending", "it has a day again"
        away.engines.away = False  # type: ignore[attr-defined]
        clock.move(60)
        away.run()
        step = works.storage.steps(audio_id)[1]
        assert (step.status, step.attempts, step.error) == (StepState.DONE, 1, None)

    def test_a_worker_that_ends_forgets_not_since_when_an_engine_is_away(
        self, works: Works, spool: Path, clock: Clock
    ) -> None:
        audio_id = accept(works, write_wav(spool / f"{ID}.wav"))
        engines = AwayEngines()
        Works(works.storage, works.settings, engines).run()
        known = works.storage.steps(audio_id)[1].error
        for cut_off in (False, True):
            clock.move(600)
            engines.away, engines.fail_times = not cut_off, 1
            ending = Works(works.storage, works.settings, engines)
            ending.chain.stop()
            ending.chain.run_step("transcribe", audio_id)
            step = works.storage.steps(audio_id)[1]
            assert (step.status, step.attempts, step.error) == (StepState.PENDING, 0, known)
            assert len(engines.calls) == cut_off

    def test_a_step_whose_workers_die_each_time_is_given_up(
        self, works: Works, spool: Path, clock: Clock
    ) -> None:
        audio_id = accept(works, write_wav(spool / f"{ID}.wav"))
        for _ in range(4):
            assert works.chain.ledger.claim(audio_id, SETTLE)
            clock.move(31)
        works.run()
        [settle, _] = works.storage.steps(audio_id)
        assert settle.status is StepState.FAILED
        assert settle.error is not None
        assert "its worker died" in settle.error
        assert works.storage.recording(audio_id).state is RecordingState.REFUSED

    def test_a_full_disk_is_waited_out(
        self, works: Works, spool: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        audio_id = accept(works, write_wav(spool / f"{ID}.wav"))
        real = os.fsync

        def full(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        for _ in range(10):
            works.run()
            clock.move(31)
        [settle, _] = works.storage.steps(audio_id)
        assert (settle.status, settle.error) == (
            StepState.PENDING,
            "the disk of the audio folder is full",
        )
        assert works.files() == []
        monkeypatch.setattr(os, "fsync", real)
        works.run()
        stored(works, audio_id)

    def test_an_unexpected_error_is_retried_and_its_words_stay_out_of_the_record(
        self, works: Works, spool: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(settling, "settle", _broken)
        audio_id = accept(works, write_wav(spool / f"{ID}.wav"))
        works.run()
        [settle, _] = works.storage.steps(audio_id)
        assert settle.status is StepState.PENDING
        assert settle.error is not None
        assert "ValueError" in settle.error
        assert "4711" not in settle.error

    def test_a_recording_that_cannot_be_settled_is_refused_with_what_to_do(
        self, works: Works, spool: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = write_wav(spool / f"{ID}.wav")

        def locked(*_: object) -> None:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))

        audio_id = accept(works, path)
        with monkeypatch.context() as patch:
            patch.setattr(settling, "_open", locked)
            fail_settling(works, audio_id, clock)
        recording = works.storage.recording(audio_id)
        reason = (
            "the file cannot be read (Permission denied): "
            "let callcore's user read the file and its folder"
        )
        assert (recording.state, recording.reason) == (RecordingState.REFUSED, reason)
        [settle, transcribe] = works.storage.steps(audio_id)
        assert (settle.attempts, settle.error) == (4, reason)
        assert transcribe.status is StepState.SKIPPED
        accept(works, path)
        works.run()
        assert document.read(works.storage, audio_id)["status"] == DocumentState.COMPLETED

    def test_a_copy_that_cannot_be_written_says_so(
        self, works: Works, spool: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def locked(*_: object, **__: object) -> None:
            raise PermissionError(errno.EACCES, "Permission denied")

        audio_id = accept(works, write_wav(spool / f"{ID}.wav"))
        monkeypatch.setattr(Path, "mkdir", locked)
        works.chain.settle(audio_id)
        [settle, _] = works.storage.steps(audio_id)
        assert (settle.status, settle.error) == (
            StepState.PENDING,
            "its copy cannot be written (Permission denied): "
            "let callcore's user write to the audio folder",
        )

    def test_what_is_stored_stays_stored_when_a_later_file_cannot_be_settled(
        self, works: Works, spool: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        audio_id = accept(works, write_wav(spool / f"{ID}-caller.wav"))
        works.chain.settle(audio_id)
        accept(works, write_wav(spool / f"{ID}-agent.wav"))
        with monkeypatch.context() as patch:
            patch.setattr(settling, "_copy_bytes", _broken)
            fail_settling(works, audio_id, clock)
        assert status_of(works, audio_id) == {SETTLE: "failed", "transcribe": "skipped"}
        recording = stored(works, audio_id)
        assert [each.role for each in recording.media] == ["caller"]
        assert recording.reason is not None
        accept(works, spool / f"{ID}-agent.wav")
        works.run()
        assert status_of(works, audio_id) == {SETTLE: "done", "transcribe": "done"}

    def test_what_was_skipped_runs_when_the_same_audio_is_settled_after_all(
        self, works: Works, spool: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = write_wav(spool / f"{ID}.wav")
        audio_id = accept(works, path)
        works.chain.settle(audio_id)
        accept(works, path, renewed=True)
        with monkeypatch.context() as patch:
            patch.setattr(settling, "_copy_bytes", _broken)
            fail_settling(works, audio_id, clock)
        assert status_of(works, audio_id) == {SETTLE: "failed", "transcribe": "skipped"}
        accept(works, path)
        works.run()
        assert status_of(works, audio_id) == {SETTLE: "done", "transcribe": "done"}

    def test_neither_numbers_nor_words_in_an_error_reach_the_log(
        self,
        works: Works,
        spool: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monkeypatch.setattr(settling, "settle", _broken)
        accept(works, write_wav(spool / f"{ID}.wav"))
        works.run()
        [record] = [each for each in caplog.records if each.levelname == "ERROR"]
        assert "4711" not in TextFormatter().format(record)
        error = str(vars(record)["error"])
        assert error.startswith("ValueError at callcore/chain.py:")
        assert "tests/test_chain.py:" in error

    def test_events_that_cannot_be_published_harm_nothing(
        self, works: Works, spool: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def away(_: object) -> None:
            raise ConnectionError("no broker")

        monkeypatch.setattr(works.bus, "publish", away)
        audio_id = accept(works, write_wav(spool / f"{ID}.wav"))
        works.run()
        assert document.read(works.storage, audio_id)["status"] == DocumentState.COMPLETED

    def test_other_audio_errors_are_retried(
        self, works: Works, spool: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*_: object) -> None:
            raise AudioError("the disk stutters")

        monkeypatch.setattr(settling, "settle", broken)
        audio_id = accept(works, write_wav(spool / f"{ID}.wav"))
        works.run()
        assert status_of(works, audio_id)[SETTLE] == "pending"


class TestManyWorkers:
    def test_messages_that_come_twice_run_a_step_once(self, works: Works, spool: Path) -> None:
        audio_id = accept(works, write_wav(spool / f"{ID}.wav"))
        threads = [threading.Thread(target=works.chain.settle, args=(audio_id,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert works.events().count("step.started settle") == 1
        works.chain.run_step("transcribe", audio_id)
        works.chain.run_step("transcribe", audio_id)
        assert len(works.engines.calls) == 1

    def test_a_worker_that_comes_back_too_late_changes_nothing(
        self, works: Works, spool: Path, clock: Clock
    ) -> None:
        audio_id = accept(works, write_wav(spool / f"{ID}.wav"))
        works.chain.settle(audio_id)
        works.engines.proceed = threading.Event()
        late = threading.Thread(target=works.chain.run_step, args=("transcribe", audio_id))
        late.start()
        assert works.engines.entered.wait(30)
        clock.move(31)  # its lease is over
        heir = Works(works.storage, works.settings)
        heir.chain.run_step("transcribe", audio_id)
        first = works.storage.results(audio_id)["transcribe"]["segments"]
        works.engines.proceed.set()
        late.join(30)
        assert works.storage.results(audio_id)["transcribe"]["segments"] == first
        assert "step.finished transcribe" not in works.events()
        assert heir.events()[-1] == "analysis.ready transcribe"

    def test_a_worker_that_ends_gives_its_step_back_uncounted(
        self, works: Works, spool: Path
    ) -> None:
        audio_id = accept(works, write_wav(spool / f"{ID}.wav"))
        works.chain.settle(audio_id)
        works.engines.fail_times = 1  # its child is closed under it
        works.chain.stop()
        works.chain.run_step("transcribe", audio_id)
        step = works.storage.steps(audio_id)[1]
        assert (step.status, step.attempts) == (StepState.PENDING, 0)
        works.run()
        assert status_of(works, audio_id)["transcribe"] == "done"

    def test_the_lease_is_renewed_while_a_step_runs(
        self, works: Works, spool: Path, clock: Clock
    ) -> None:
        quick = Works(works.storage, dataclasses.replace(works.settings, lease_s=2.0))
        audio_id = accept(works, write_wav(spool / f"{ID}.wav"))
        quick.chain.settle(audio_id)
        quick.engines.proceed = threading.Event()
        renewed = threading.Event()
        real = quick.chain.ledger.renew

        def renew(*args: Any) -> bool:
            answer = real(*args)
            renewed.set()
            return answer

        quick.chain.ledger.renew = renew  # type: ignore[method-assign]
        worker = threading.Thread(target=quick.chain.run_step, args=("transcribe", audio_id))
        worker.start()
        clock.move(1.9)
        assert renewed.wait(30)
        clock.move(1.9)
        assert quick.chain.ledger.claim(audio_id, "transcribe") is None
        quick.engines.proceed.set()
        worker.join(30)
        assert status_of(works, audio_id)["transcribe"] == "done"


class TestSweep:
    def test_what_nobody_took_is_sent_again(self, works: Works, spool: Path, clock: Clock) -> None:
        audio_id = accept(works, write_wav(spool / f"{ID}.wav"))
        assert works.chain.sweep() == 0
        clock.move(RESEND_S)
        assert works.chain.sweep() == 1
        assert works.waker.woken == [(SETTLE, audio_id)]

    def test_a_long_queue_or_an_absent_broker_is_not_fed(
        self, works: Works, spool: Path, clock: Clock
    ) -> None:
        accept(works, write_wav(spool / f"{ID}.wav"))
        clock.move(RESEND_S)
        for waiting in ({"io": 1000, "cpu": 0}, None):
            works.waker.waiting = waiting
            assert works.chain.sweep() == 0
        works.waker.waiting = {"io": 0, "cpu": 1000}
        assert works.chain.sweep() == 1

    def test_a_full_queue_of_long_steps_holds_up_no_settling(
        self, works: Works, spool: Path, clock: Clock
    ) -> None:
        audio_id = accept(works, write_wav(spool / f"{ID}.wav"))
        works.chain.settle(audio_id)
        works.waker.woken.clear()
        late = accept(works, write_wav(spool / "other.wav", pitch=600))
        clock.move(BUSY_RESEND_S)
        works.waker.waiting = {"io": 0, "cpu": MAX_BACKLOG}
        assert works.chain.sweep() == 1
        assert works.waker.woken == [(SETTLE, late)]

    def test_what_most_likely_waits_in_its_queue_is_not_sent_again_and_again(
        self, works: Works, spool: Path, clock: Clock
    ) -> None:
        audio_id = accept(works, write_wav(spool / f"{ID}.wav"))
        works.chain.settle(audio_id)
        works.waker.waiting = {"io": 0, "cpu": 1}
        sent = 0
        for _ in range(int(BUSY_RESEND_S / RESEND_S)):
            sent += works.chain.sweep()
            clock.move(RESEND_S)
        assert sent == 0
        assert works.chain.sweep() == 1  # in case it was lost
        works.waker.waiting = {"io": 0, "cpu": 0}
        clock.move(RESEND_S)
        assert works.chain.sweep() == 1  # then it was lost indeed

    def test_calls_that_never_sent_audio_are_ended_and_announced(
        self, works: Works, clock: Clock
    ) -> None:
        own = "0" * 8 + "-0000-4000-8000-" + "0" * 12
        intake.register_leg(works.storage, own, CallFacts(call_id="c"))
        clock.move(11)
        works.chain.sweep()
        [event] = works.bus.events
        assert (event.type, event.call_id) == ("call.ended", "c")
        assert event.fields["reason"] == "no audio came"


class TestSteps:
    def test_an_unknown_step_names_the_setting(self) -> None:
        with pytest.raises(ConfigError) as caught:
            table(["transcribe", "divine"])
        assert caught.value.field == "CALLCORE_STEPS"
