"""One recording, however many doors report it, in whatever order."""

import dataclasses
import hashlib
import itertools
import os
import subprocess
import sys
import uuid
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from callcore import intake, settling
from callcore.calls import (
    CallFacts,
    CallState,
    Disposition,
    Ending,
    LegState,
    Media,
    RecordingState,
)
from callcore.errors import NotFound, Refused
from callcore.intake import Accepted
from callcore.results import Segment
from callcore.storage import Storage, call_rows
from tests.support.databases import Clock, clock, database_url, storage
from tests.support.recordings import Works, make_settings, write_wav

__all__ = ["clock", "database_url", "storage"]

ID = "1700000000.12"


@pytest.fixture
def works(storage: Storage, tmp_path: Path) -> Works:
    return Works(storage, make_settings(tmp_path / "state"))


def accept(
    works: Works, facts: CallFacts, source: str, path: Path | str | None, name: str | None = None
) -> Accepted:
    media = [Media("mixed", str(path))] if path else []
    return intake.accept_recording(
        works.storage, works.settings, facts, source, media, original_name=name
    )


class TestFourDoors:
    """Spool, AGI, webhook and upload of one recording."""

    DOORS = ("spool", "agi", "webhook", "upload")

    def report(self, works: Works, door: str, folder: Path, number: int) -> Accepted:
        unique = f"17{number:08}.12"
        path = write_wav(folder / f"{unique}.wav", pitch=200 + number)
        if door == "spool":
            return accept(works, CallFacts(), door, path)
        if door == "agi":
            facts = CallFacts(uniqueid=unique, linkedid=f"17{number:08}.10", queue="help")
            return accept(works, facts, door, path)
        if door == "webhook":
            facts = CallFacts(call_id=f"crm-{number}", caller="0700", agent="Ada")
            return accept(works, facts, door, path)
        ours = works.settings.audio_dir / "incoming" / f"{uuid.uuid4()}.wav"
        write_wav(ours, pitch=200 + number)
        return accept(works, CallFacts(language="sw"), door, ours, f"{unique}.wav")

    @settings(
        max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
    )
    @given(
        order=st.lists(st.sampled_from(DOORS), min_size=4, max_size=7).filter(
            lambda order: len(set(order)) == 4
        ),
        settle_after=st.integers(0, 6),
    )
    def test_any_order_of_doors_is_one_recording_with_all_facts(
        self, works: Works, tmp_path: Path, order: list[str], settle_after: int
    ) -> None:
        self.numbers = getattr(self, "numbers", itertools.count(int(uuid.uuid4().int % 10**7)))
        number = next(self.numbers)
        ids = set()
        for at, door in enumerate(order):
            accepted = self.report(works, door, tmp_path / "spool", number)
            assert accepted.created == (not ids)
            ids.add(accepted.audio_id)
            if at == settle_after:
                works.run()
        works.run()
        [audio_id] = ids
        recording = works.storage.recording(audio_id)
        assert recording.state is RecordingState.STORED
        assert set(recording.sources) == set(self.DOORS)
        assert recording.source == order[0]
        facts = recording.facts
        assert (facts.caller, facts.agent, facts.queue) == ("0700", "Ada", "help")
        assert (facts.uniqueid, facts.language) == (f"17{number:08}.12", "sw")
        call = works.storage.call(recording.call_id)
        for alias in (f"crm-{number}", f"17{number:08}.12", f"17{number:08}.10"):
            assert works.storage.call(alias) == call
        assert call.facts.caller == "0700"
        assert works.storage.recordings_of(call.call_id) == [recording]
        assert [step.attempts for step in works.storage.steps(audio_id)][1:] == [1]
        assert len(works.storage.results(audio_id)["transcribe"]["segments"]) == 1
        assert not list((works.settings.audio_dir / "incoming").glob("*"))


class TestIdentity:
    def test_the_same_report_twice_has_the_same_ids(self, works: Works, tmp_path: Path) -> None:
        path = write_wav(tmp_path / f"{ID}.wav")
        first = accept(works, CallFacts(), "spool", path)
        again = accept(works, CallFacts(), "spool", path)
        assert (first.created, first.wake) == (True, True)
        assert (again.created, again.wake) == (False, False)
        assert first.audio_id == again.audio_id

    def test_the_files_of_the_legs_are_one_recording(self, works: Works, tmp_path: Path) -> None:
        ids = {
            accept(works, CallFacts(), "spool", write_wav(tmp_path / f"{ID}{leg}.wav")).audio_id
            for leg in ("-caller", "-agent", "")
        }
        [audio_id] = ids
        works.run()
        roles = [media.role for media in works.storage.recording(audio_id).media]
        assert roles == ["mixed", "caller", "agent"]

    def test_files_of_legs_without_ids_are_one_recording_too(
        self, works: Works, tmp_path: Path
    ) -> None:
        caller = accept(works, CallFacts(), "spool", write_wav(tmp_path / "x-caller.wav"))
        agent = accept(works, CallFacts(), "spool", write_wav(tmp_path / "x-agent.wav"))
        assert caller.audio_id == agent.audio_id
        other = accept(works, CallFacts(), "spool", write_wav(tmp_path / "y-agent.wav"))
        assert other.audio_id != caller.audio_id

    def test_channels_of_one_call_are_recordings_of_one_call(
        self, works: Works, tmp_path: Path
    ) -> None:
        facts = [CallFacts(linkedid="1700000000.1", uniqueid=f"1700000000.{n}") for n in (1, 2)]
        ids = {
            accept(works, each, "agi", write_wav(tmp_path / f"{each.uniqueid}.wav")).audio_id
            for each in facts
        }
        assert len(ids) == 2
        assert len(works.storage.recordings_of("1700000000.1")) == 2

    def test_another_pbx_may_use_the_same_ids(self, works: Works, tmp_path: Path) -> None:
        path = write_wav(tmp_path / f"{ID}.wav")
        first = accept(works, CallFacts(), "spool", path)
        other = Works(works.storage, dataclasses.replace(works.settings, pbx="other"))
        assert accept(other, CallFacts(), "spool", path).audio_id != first.audio_id

    def test_an_upload_without_ids_is_known_by_its_content(
        self, works: Works, tmp_path: Path
    ) -> None:
        ids = []
        for name in ("one.wav", "two.wav"):
            path = write_wav(works.settings.audio_dir / "incoming" / name)
            media = Media("mixed", str(path), sha256="ab" * 32)
            accepted = intake.accept_recording(
                works.storage, works.settings, CallFacts(), "upload", [media], original_name=name
            )
            ids.append(accepted.audio_id)
        assert ids[0] == ids[1]

    @pytest.mark.parametrize("settled_between", [True, False])
    @pytest.mark.parametrize("name", ["recording.wav", "recording-caller.wav"])
    def test_files_of_one_name_and_other_content_are_recordings_of_one_call(
        self, works: Works, name: str, settled_between: bool
    ) -> None:
        # The second was unlinked and answered as known: lost.
        facts = CallFacts(call_id="crm-1")
        ids = []
        for number in (1, 2, 2):
            path = works.settings.audio_dir / "uploads" / f"{uuid.uuid4()}.wav"
            write_wav(path, pitch=200.0 * number)
            sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
            media = [Media("mixed", str(path), sha256=sha256)]
            accepted = intake.accept_recording(
                works.storage, works.settings, facts, "upload", media, original_name=name
            )
            ids.append(accepted.audio_id)
            if settled_between:
                works.run()
        works.run()
        first, second, again = (works.storage.recording(each) for each in ids)
        assert first.audio_id != second.audio_id
        assert second.audio_id == again.audio_id
        assert {first.call_id, second.call_id} == {"crm-1"}
        hashes = {media.sha256 for each in (first, second) for media in each.media}
        assert len(hashes) == 2
        assert len(works.files()) == 2

    def test_uploaded_legs_of_a_call_are_one_recording(self, works: Works) -> None:
        ids = set()
        for number, leg in enumerate(("caller", "agent")):
            path = works.settings.audio_dir / "uploads" / f"{uuid.uuid4()}.wav"
            write_wav(path, pitch=300.0 + number)
            media = [Media("mixed", str(path), sha256=f"{number:064}")]
            accepted = intake.accept_recording(
                works.storage,
                works.settings,
                CallFacts(call_id="crm-1"),
                "upload",
                media,
                original_name=f"recording-{leg}.wav",
            )
            ids.add(accepted.audio_id)
        assert len(ids) == 1

    def test_facts_of_a_later_door_never_erase_earlier_ones(
        self, works: Works, tmp_path: Path
    ) -> None:
        path = write_wav(tmp_path / f"{ID}.wav")
        accept(works, CallFacts(agent="Ada"), "agi", path)
        accepted = accept(works, CallFacts(agent="Eve", queue="q"), "webhook", path)
        facts = works.storage.recording(accepted.audio_id).facts
        assert (facts.agent, facts.queue) == ("Ada", "q")


class TestDuplicates:
    def test_an_upload_of_a_known_recording_becomes_an_alias(
        self, works: Works, tmp_path: Path
    ) -> None:
        known = accept(works, CallFacts(), "spool", write_wav(tmp_path / f"{ID}.wav"))
        works.run()
        path = write_wav(works.settings.audio_dir / "incoming" / "x.wav")
        upload = accept(works, CallFacts(), "upload", path, "holiday.wav")
        assert upload.audio_id != known.audio_id
        works.run()
        assert works.storage.recording(upload.audio_id).audio_id == known.audio_id
        assert works.storage.steps(upload.audio_id) == works.storage.steps(known.audio_id)
        assert works.storage.call(upload.audio_id).call_id == ID
        assert set(works.storage.recording(known.audio_id).sources) == {"spool", "upload"}
        assert len(works.files()) == 1
        assert len(works.engines.calls) == 1

    def test_an_upload_that_came_first_gives_its_name_up(
        self, works: Works, tmp_path: Path
    ) -> None:
        path = write_wav(works.settings.audio_dir / "incoming" / "x.wav")
        upload = accept(works, CallFacts(), "upload", path, "holiday.wav")
        works.run()
        late = accept(works, CallFacts(), "spool", write_wav(tmp_path / f"{ID}.wav"))
        works.run()
        assert works.storage.recording(late.audio_id).audio_id == upload.audio_id
        assert works.storage.call(upload.audio_id).call_id == ID
        assert len(works.engines.calls) == 1

    def test_equal_silence_of_two_calls_stays_two_recordings(
        self, works: Works, tmp_path: Path
    ) -> None:
        ids = set()
        for name in ("1700000000.1", "1700000000.2"):
            path = write_wav(tmp_path / f"{name}.wav", pitch=0)
            ids.add(accept(works, CallFacts(), "spool", path).audio_id)
        works.run()
        assert {works.storage.recording(each).audio_id for each in ids} == ids
        assert len(works.storage.recordings(None, 10)[0]) == 2

    @pytest.mark.parametrize("other", ["agent", "mixed"])
    def test_one_equal_file_does_not_make_two_recordings_one(
        self, works: Works, tmp_path: Path, other: str
    ) -> None:
        # The silent callers are equal; what else was recorded is not.
        ids = []
        for name, suffix, pitch in (("x", "-agent", 300), ("y", other, 600)):
            suffix = "" if suffix == "mixed" else f"-{suffix.removeprefix('-')}"
            paths = [write_wav(tmp_path / f"{name}-caller.wav", pitch=0)]
            paths.append(write_wav(tmp_path / f"{name}{suffix}.wav", pitch=pitch))
            ids += {accept(works, CallFacts(), "spool", path).audio_id for path in paths}
        works.run()
        assert len(ids) == 2
        assert [works.storage.recording(each).audio_id for each in ids] == ids
        assert all(len(works.storage.recording(each).media) == 2 for each in ids)

    def test_a_recording_of_more_files_is_still_the_same_recording(
        self, works: Works, tmp_path: Path
    ) -> None:
        path = write_wav(works.settings.audio_dir / "incoming" / "x.wav")
        upload = accept(works, CallFacts(), "upload", path, "holiday.wav")
        works.run()
        paths = [write_wav(tmp_path / "z.wav"), write_wav(tmp_path / "z-caller.wav", pitch=300)]
        whole = {accept(works, CallFacts(), "spool", path).audio_id for path in paths}
        works.run()
        assert {works.storage.recording(each).audio_id for each in whole} == {upload.audio_id}
        roles = [media.role for media in works.storage.recording(upload.audio_id).media]
        assert roles == ["mixed", "caller"]

    def test_a_recording_whose_audio_is_gone_swallows_no_other(
        self, works: Works, clock: Clock, tmp_path: Path
    ) -> None:
        path = write_wav(tmp_path / f"{ID}.wav")
        first = accept(works, CallFacts(), "spool", path)
        works.run()
        for lost in (path, Path(works.storage.recording(first.audio_id).media[0].path)):
            lost.unlink()
        media = [Media("mixed", str(path))]
        intake.accept_recording(
            works.storage, works.settings, CallFacts(), "spool", media, renewed=True
        )
        clock.move(settling.ABSENT_S + 1)
        works.run()
        assert works.storage.recording(first.audio_id).state is RecordingState.MISSING
        upload = write_wav(works.settings.audio_dir / "incoming" / "x.wav")
        second = accept(works, CallFacts(), "upload", upload, "holiday.wav")
        works.run()
        recording = works.storage.recording(second.audio_id)
        assert (recording.audio_id, recording.state) == (second.audio_id, RecordingState.STORED)

    def test_a_door_that_names_our_own_copy_does_not_destroy_it(self, works: Works) -> None:
        path = write_wav(works.settings.audio_dir / "incoming" / "x.wav")
        upload = accept(works, CallFacts(), "upload", path, "holiday.wav")
        works.run()
        [copy] = works.storage.recording(upload.audio_id).media
        again = accept(works, CallFacts(), "spool", copy.path)  # its folder lies in another
        works.run()
        assert works.storage.recording(again.audio_id).audio_id == upload.audio_id
        assert Path(copy.path).is_file()


class TestRefusals:
    @pytest.mark.parametrize("name", ["a\0b.wav", "a\udcffb.wav"])
    def test_a_name_that_no_database_takes_is_refused(self, works: Works, name: str) -> None:
        for path, original in ((f"/spool/{name}", None), ("/uploads/x.wav", name)):
            with pytest.raises(Refused) as caught:
                accept(works, CallFacts(), "upload", path, original)
            assert (caught.value.code, caught.value.field) == ("bad-name", "file")
        with pytest.raises(Refused):
            accept(works, CallFacts(call_id="1\0002"), "upload", "/x.wav")
        with pytest.raises(NotFound):
            works.storage.recording("1\0002")

    @pytest.mark.parametrize(
        ("facts", "field"),
        [
            (CallFacts(call_id="../etc/passwd"), "call_id"),
            (CallFacts(call_id="-x"), "call_id"),
            (CallFacts(uniqueid="1\n2"), "uniqueid"),
            (CallFacts(uniqueid="1.2\n"), "uniqueid"),
            (CallFacts(linkedid=""), "linkedid"),
            (CallFacts(call_id="x" * 81), "call_id"),
            (CallFacts(leg="left"), "leg"),
            (CallFacts(language="English"), "language"),
            (CallFacts(direction="up"), "direction"),
            (CallFacts(caller="x" * 201), "caller"),
            (CallFacts(agent="a\nb"), "agent"),
        ],
    )
    def test_a_fact_that_cannot_be_kept_names_its_field(
        self, works: Works, facts: CallFacts, field: str
    ) -> None:
        with pytest.raises(Refused) as caught:
            accept(works, facts, "upload", "/x.wav")
        assert caught.value.field == field
        with pytest.raises(Refused):
            intake.register_leg(works.storage, str(uuid.uuid4()), facts)


class TestMessenger:
    def test_a_broker_that_is_away_is_asked_once_in_a_while(self) -> None:
        # Each report waited out the time limit of a broker whose network drops what it is sent.
        moment = [100.0]
        asked: list[str] = []

        def wake(audio_id: str) -> bool:
            asked.append(audio_id)
            return audio_id == "back"

        messenger = intake.Messenger(wake, lambda: moment[0])
        for audio_id in ("a", "b", "c"):
            messenger.tell(audio_id)
        assert asked == ["a"]
        moment[0] += intake.SILENCE_S
        for _ in range(3):
            messenger.tell("back")
        assert asked == ["a", "back", "back", "back"]


class TestLegs:
    def test_a_registered_stream_opens_its_leg(self, works: Works) -> None:
        own = str(uuid.uuid4())
        intake.register_leg(works.storage, own.upper(), CallFacts(call_id="c", leg="agent"))
        leg = intake.open_leg(works.storage, works.settings, own)
        assert (leg.leg, leg.state, leg.call_id) == ("agent", LegState.LIVE, "c")

    def test_an_unregistered_stream_is_accepted_or_refused_by_setting(self, works: Works) -> None:
        own = str(uuid.uuid4())
        assert intake.open_leg(works.storage, works.settings, own).leg == "mixed"
        strict = dataclasses.replace(works.settings, unregistered="refuse")
        with pytest.raises(Refused) as caught:
            intake.open_leg(works.storage, strict, str(uuid.uuid4()))
        assert caught.value.code == "unregistered"

    @pytest.mark.parametrize("bad", [None, "", "x", "0" * 32, f"{uuid.UUID(int=1)} "])
    def test_a_stream_without_a_uuid_is_refused(self, works: Works, bad: str | None) -> None:
        with pytest.raises(Refused) as caught:
            intake.open_leg(works.storage, works.settings, bad)
        assert caught.value.code == ("no-uuid" if bad is None else "bad-uuid")


class TestCaptures:
    def end_captured_call(self, works: Works, clock: Clock, unique: str = ID) -> str:
        for number, leg in enumerate(("caller", "agent")):
            own = str(uuid.uuid4())
            facts = CallFacts(linkedid=unique, uniqueid=unique, leg=leg)
            intake.register_leg(works.storage, own, facts)
            intake.open_leg(works.storage, works.settings, own)
            path = works.settings.audio_dir / "capture" / f"{own}.wav"
            write_wav(path, pitch=300 + number)
            clock.move(0.5)
            works.storage.end_leg(own, "hangup", str(path))
        works.storage.end_call_if_idle(unique, "hangup")
        return unique

    def test_a_capture_is_the_recording_where_no_other_comes(
        self, works: Works, clock: Clock
    ) -> None:
        call_id = self.end_captured_call(works, clock)
        accepted = intake.accept_capture(works.storage, works.settings, call_id)
        assert accepted is not None
        assert not accepted.wake
        again = intake.accept_capture(works.storage, works.settings, call_id)
        assert again is not None
        assert again.audio_id == accepted.audio_id
        works.run()
        assert works.storage.recording(accepted.audio_id).state is RecordingState.EXPECTED
        clock.move(31)
        works.run()
        recording = works.storage.recording(accepted.audio_id)
        assert (recording.state, recording.offset_s) == (RecordingState.STORED, 0.0)
        assert [(m.role, m.offset_s) for m in recording.media] == [("caller", 0.0), ("agent", 0.5)]
        segments = works.storage.results(recording.audio_id)["transcribe"]["segments"]
        assert [(each["leg"], each["start"]) for each in segments] == [
            ("caller", 0.1),
            ("agent", 0.6),
        ]
        assert not any("capture" in name for name in works.files())

    def test_the_recording_of_the_pbx_replaces_the_capture(
        self, works: Works, clock: Clock, tmp_path: Path
    ) -> None:
        call_id = self.end_captured_call(works, clock)
        capture = intake.accept_capture(works.storage, works.settings, call_id)
        own = accept(works, CallFacts(), "spool", write_wav(tmp_path / f"{ID}.wav"))
        works.run()
        clock.move(31)
        works.run()
        assert capture is not None
        recording = works.storage.recording(capture.audio_id)
        assert recording.audio_id == own.audio_id
        assert set(recording.sources) == {"spool", "capture"}
        assert recording.offset_s is None  # nobody said when the PBX began to record
        assert len(works.engines.calls) == 1
        assert len(works.files()) == 1

    def test_a_recording_that_comes_late_replaces_the_capture_too(
        self, works: Works, clock: Clock, tmp_path: Path
    ) -> None:
        call_id = self.end_captured_call(works, clock)
        capture = intake.accept_capture(works.storage, works.settings, call_id)
        clock.move(31)
        works.run()
        own = accept(works, CallFacts(), "spool", write_wav(tmp_path / f"{ID}.wav"))
        works.run()
        assert capture is not None
        assert works.storage.recording(capture.audio_id).audio_id == own.audio_id
        assert len(works.storage.recordings_of(call_id)) == 1

    def test_a_missing_recording_leaves_the_capture(
        self, works: Works, clock: Clock, tmp_path: Path
    ) -> None:
        call_id = self.end_captured_call(works, clock)
        capture = intake.accept_capture(works.storage, works.settings, call_id)
        accept(works, CallFacts(), "agi", tmp_path / f"{ID}.wav")
        for _ in range(20):
            clock.move(10)
            works.run()
        assert capture is not None
        recording = works.storage.recording(capture.audio_id)
        assert (recording.source, recording.state) == ("capture", RecordingState.STORED)

    def test_a_recording_that_fails_to_settle_leaves_the_capture(
        self, works: Works, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        call_id = self.end_captured_call(works, clock)
        capture = intake.accept_capture(works.storage, works.settings, call_id)
        own = accept(works, CallFacts(), "spool", write_wav(tmp_path / f"{ID}.wav"))
        real = settling._copy_bytes

        def broken(source: Path, target: Path, spool_dir: Path) -> str:
            if source.name == f"{ID}.wav":
                raise ValueError("nobody expected this")
            return real(source, target, spool_dir)

        monkeypatch.setattr(settling, "_copy_bytes", broken)
        for _ in range(10):
            works.run()
            clock.move(10)
        assert works.storage.recording(own.audio_id).state is RecordingState.REFUSED
        assert capture is not None
        recording = works.storage.recording(capture.audio_id)
        assert (recording.source, recording.state) == ("capture", RecordingState.STORED)

    def test_a_capture_that_gives_way_takes_locks_in_the_order_of_all_others(
        self, works: Works, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # In the other order two settlings of one call stop each other in PostgreSQL.
        call_id = self.end_captured_call(works, clock)
        own = accept(works, CallFacts(), "spool", write_wav(tmp_path / f"{ID}.wav"))
        works.run()
        capture = intake.accept_capture(works.storage, works.settings, call_id)
        assert capture is not None
        locked: list[int] = []
        real = works.storage.database.serialize

        def serialize(subject: int) -> None:
            locked.append(subject)
            real(subject)

        clock.move(31)
        monkeypatch.setattr(works.storage.database, "serialize", serialize)
        works.chain.settle(capture.audio_id)
        assert works.storage.recording(capture.audio_id).audio_id == own.audio_id
        assert len(set(locked)) == 2
        assert locked[0] == call_rows.CALLS

    def missed_call(
        self, works: Works, clock: Clock, *, said: str = "", no_text: str = ""
    ) -> tuple[str, str]:
        """Return a call that nobody answered and the recording of its caller's stream."""
        own = str(uuid.uuid4())
        facts = CallFacts(linkedid=ID, uniqueid=ID, leg="caller")
        leg = intake.register_leg(works.storage, own, facts)
        intake.open_leg(works.storage, works.settings, own)
        if said:
            segment = Segment(leg.segment_base, "caller", 0.1, 0.9, said, "en", (), "live")
            works.storage.add_live_segment(leg.call_id, segment)
        if no_text:
            works.storage.note_no_text(own, no_text)
        path = write_wav(works.settings.audio_dir / "capture" / f"{own}.wav")
        works.storage.end_leg(own, "hangup", str(path))
        works.storage.end_call_if_idle(leg.call_id, "hangup")
        accepted = intake.accept_capture(works.storage, works.settings, leg.call_id)
        assert accepted is not None
        clock.move(9)  # how it ended is told while the capture waits
        works.storage.note_ending(leg.call_id, Ending(Disposition.ABANDONED))
        return leg.call_id, accepted.audio_id

    def test_the_capture_of_a_call_that_nobody_answered_is_dropped(
        self, works: Works, clock: Clock
    ) -> None:
        # Every missed call had a recording, of the ringing that its caller heard.
        call_id, _ = self.missed_call(works, clock)
        clock.move(31)
        works.run()
        assert works.storage.call(call_id).state is CallState.MISSED
        assert works.storage.recordings_of(call_id) == []
        assert works.storage.capture_media(call_id) == []
        assert works.files() == []
        assert works.engines.calls == []

    @pytest.mark.parametrize("kept", [{"said": "Please call me back."}, {"no_text": "too many"}])
    def test_who_spoke_to_a_machine_or_was_not_listened_to_is_kept(
        self, works: Works, clock: Clock, kept: dict[str, str]
    ) -> None:
        _, audio_id = self.missed_call(works, clock, **kept)
        clock.move(31)
        works.run()
        assert works.storage.recording(audio_id).state is RecordingState.STORED
        assert len(works.engines.calls) == 1

    def test_a_capture_is_kept_where_nobody_listens_live(
        self, storage: Storage, clock: Clock, tmp_path: Path
    ) -> None:
        works = Works(storage, make_settings(tmp_path / "state", live="off"))
        _, audio_id = self.missed_call(works, clock)
        clock.move(31)
        works.run()
        assert works.storage.recording(audio_id).state is RecordingState.STORED

    def test_the_pbxs_own_recording_of_a_missed_call_still_takes_the_captures_place(
        self, works: Works, clock: Clock, tmp_path: Path
    ) -> None:
        _, audio_id = self.missed_call(works, clock)
        own = accept(works, CallFacts(), "spool", write_wav(tmp_path / f"{ID}.wav"))
        clock.move(31)
        works.run()
        assert works.storage.recording(audio_id).audio_id == own.audio_id

    def test_captures_are_kept_always_or_never_by_setting(self, works: Works, clock: Clock) -> None:
        call_id = self.end_captured_call(works, clock)
        off = dataclasses.replace(works.settings, capture="off")
        assert intake.accept_capture(works.storage, off, call_id) is None
        always = dataclasses.replace(works.settings, capture="always")
        accepted = intake.accept_capture(works.storage, always, call_id)
        assert accepted is not None
        assert accepted.wake

    def test_a_call_without_captures_has_none(self, works: Works) -> None:
        intake.register_leg(works.storage, str(uuid.uuid4()), CallFacts(call_id="c"))
        assert intake.accept_capture(works.storage, works.settings, "c") is None
        with pytest.raises(NotFound):
            intake.accept_capture(works.storage, works.settings, "nobody")


class TestDurability:
    """R6: what was answered is on record, however the process ends."""

    PROGRAM = """
import itertools, os, sys
from callcore import intake, settings
from callcore.calls import CallFacts, Media
from callcore.storage import Storage
site = settings.load(os.environ)
storage = Storage(site.database_url)
for number in itertools.count():
    facts = CallFacts(call_id=f"{sys.argv[1]}-{number}")
    media = [Media("mixed", f"/spool/{sys.argv[1]}-{number}.wav")]
    accepted = intake.accept_recording(storage, site, facts, "upload", media)
    print(accepted.audio_id, flush=True)
"""

    def test_what_was_answered_survives_kill_9(
        self, storage: Storage, database_url: str, tmp_path: Path
    ) -> None:
        environ = {
            **os.environ,
            "CALLCORE_STATE_DIR": str(tmp_path),
            "CALLCORE_DATABASE_URL": database_url,
        }
        answered = []
        for run in range(6):
            with subprocess.Popen(
                [sys.executable, "-c", self.PROGRAM, f"run{run}"],
                stdout=subprocess.PIPE,
                text=True,
                env=environ,
                cwd=Path(__file__).parents[1],
            ) as process:
                assert process.stdout is not None
                for _ in range(1 + 3 * run):
                    answered.append(process.stdout.readline().strip())
                process.kill()
                answered += process.stdout.read().split()
        whole = [each for each in answered if len(each) == 32]  # the last line may be cut off
        assert len(whole) >= 51
        for audio_id in whole:
            assert storage.recording(audio_id).state is RecordingState.EXPECTED
            assert [step.name for step in storage.steps(audio_id)][:2] == ["settle", "transcribe"]


class TestNames:
    """What a name claims, and what becomes of it."""

    NAME = f"q-6001-0700111222-20231114-151320-{ID}"

    def facts(self, works: Works, audio_id: str) -> CallFacts:
        return works.storage.recording(audio_id).facts

    def test_a_door_knows_more_than_a_name_but_which_channel(
        self, works: Works, tmp_path: Path
    ) -> None:
        said = CallFacts(uniqueid="1700000000.99", queue="Help line")
        audio_id = accept(works, said, "agi", tmp_path / f"{self.NAME}.wav").audio_id
        assert self.facts(works, audio_id) == CallFacts(
            uniqueid=ID, caller="0700111222", queue="Help line", direction="in"
        )
        again = accept(works, CallFacts(), "spool", tmp_path / "copy" / f"{self.NAME}.wav")
        assert again.audio_id == audio_id
        assert works.storage.call("1700000000.99") == works.storage.call(ID)

    def test_a_claim_that_cannot_be_used_is_left_out_and_the_file_taken(
        self, works: Works, tmp_path: Path
    ) -> None:
        name = f"in-{'9' * 300}-x\u202ey-20231114-151320-{ID}.wav"
        short = f"in-0800-x\u202ey-20231114-151320-{ID}.wav"
        for each in (name, short):
            accepted = accept(works, CallFacts(), "webhook", tmp_path / each)
            assert self.facts(works, accepted.audio_id).caller is None

    def test_the_call_begins_when_its_first_channel_was_made(
        self, works: Works, clock: Clock, tmp_path: Path
    ) -> None:
        facts = CallFacts(linkedid="1700000000.5")
        path = write_wav(tmp_path / "1700000030.9.wav")
        audio_id = accept(works, facts, "agi", path).audio_id
        call = works.storage.call("1700000000.5")
        assert call.started_at == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
        works.run()
        # When in the call the recording began, nobody has said.
        assert works.storage.recording(audio_id).offset_s is None

    def test_a_number_that_is_no_time_yet_is_no_start(self, works: Works, tmp_path: Path) -> None:
        accept(works, CallFacts(), "spool", tmp_path / "9700000030.9.wav")
        assert works.storage.call("9700000030.9").facts.started_at is None

    def test_backfill_lasts_until_a_door_reports_it_as_new(
        self, works: Works, tmp_path: Path
    ) -> None:
        def report(backfill: bool) -> Accepted:
            media = [Media("mixed", str(tmp_path / f"{ID}.wav"))]
            return intake.accept_recording(
                works.storage, works.settings, CallFacts(), "spool", media, backfill=backfill
            )

        old = report(True)
        assert (old.created, old.wake) == (True, False)
        assert works.storage.is_backfill(old.audio_id)
        report(False)
        assert not works.storage.is_backfill(old.audio_id)
        report(True)
        assert not works.storage.is_backfill(old.audio_id)

    def test_facts_of_a_call_without_a_recording_need_a_call(self, works: Works) -> None:
        assert intake.accept_facts(works.storage, CallFacts(uniqueid=ID, queue="help")) is None
        assert intake.accept_facts(works.storage, CallFacts(queue="help")) is None
        works.storage.register_leg(str(uuid.uuid4()), CallFacts(linkedid=ID), 10.0)
        assert intake.accept_facts(works.storage, CallFacts(uniqueid=ID, queue="help")) == ID
        assert works.storage.call(ID).facts.queue == "help"
        with pytest.raises(Refused, match="printable"):
            intake.accept_facts(works.storage, CallFacts(uniqueid=ID, queue="\n"))
