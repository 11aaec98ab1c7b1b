"""A caller who refuses analysis: nothing of the call stays but that it was; on both databases."""

import asyncio
import contextlib
import json
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from callcore import consent, intake, reruns, settling, tables
from callcore.agi import daemon as agi_daemon
from callcore.agi import reports as agi_reports
from callcore.agi.reports import Reports
from callcore.audiosocket import silence_frame
from callcore.bus import LOBBY, START, MemoryBus, Publisher, RedisBus, RoomReader, room
from callcore.calls import (
    SETTLE,
    CallFacts,
    CallState,
    Correction,
    Disposition,
    Ending,
    LegState,
    Media,
    RecordingState,
    StepState,
    now,
)
from callcore.consent import Consent, normalised
from callcore.errors import ConfigError, Fenced, NotFound, Refused
from callcore.events import make
from callcore.log import TextFormatter
from callcore.results import Segment
from callcore.settings import Settings
from callcore.spool import Scanner
from callcore.storage import Storage, call_rows, consent_rows, outbox
from tests.support.agi import PATIENCE_S as AGI_PATIENCE_S
from tests.support.agi import Dialplan, running
from tests.support.databases import Clock, clock, database_url, storage
from tests.support.live import PATIENCE_S, Live, Wire, daemon, live, new_uuid, on_uvloop, ramp
from tests.support.recordings import Works, make_settings, write_wav
from tests.support.valkey import Valkey, stopped_valkey, valkey
from tests.test_agi_said import packed
from tests.test_live_daemon import Process

__all__ = ["clock", "database_url", "stopped_valkey", "storage", "valkey"]

ROOT = Path(__file__).parents[1]
CALL = "1700000000.12"
NUMBER = "+447700900123"
#: What is left of it however it is written.
DIGITS = "7700900123"
#: As FreePBX names a recording of a call from that number.
NAMED = f"external-100-{NUMBER}-20231114-221320-{CALL}.wav"
WORDS = "the sun has set over Mombasa"


@pytest.fixture
def works(storage: Storage, clock: Clock, tmp_path: Path) -> Works:
    clock.moment = now() + timedelta(hours=1)  # files have the time stamps of the machine
    return Works(storage, make_settings(tmp_path / "state", capture="always"))


def consent_of(works: Works, **given: Any) -> Consent:
    return Consent(works.storage, works.settings, **given)


def segment(number: int = 1) -> Segment:
    return Segment(number, "caller", 1.0, 2.0, WORDS, "en", (), "live", 0.2)


def accept(
    works: Works, path: Path, facts: CallFacts | None = None, source: str = "spool", **given: Any
) -> intake.Accepted:
    media = [Media("mixed", str(path))]
    known = facts or CallFacts()
    return intake.accept_recording(works.storage, works.settings, known, source, media, **given)


def everything(works: Works, *but: type[Any]) -> str:
    """Return all that is on record, as one text."""
    found = []
    for model in tables.ALL:
        if model not in but:
            found += [str(row) for row in works.storage.database.all(model.select())]
    return "\n".join(found)


def processed(works: Works, path: Path) -> str:
    """Return a recording with all that processing and people leave of one."""
    works.storage.register_leg(new_uuid(), CallFacts(linkedid=CALL, caller=NUMBER), 10.0)
    works.storage.add_live_segment(CALL, segment())
    audio_id = accept(works, path, CallFacts(linkedid=CALL)).audio_id
    works.run()
    works.storage.correct(audio_id, Correction("calls", "a", "missing", (WORDS,)), "Ada")
    database, moment = works.storage.database, works.storage.clock()
    with database.transaction():
        flag = {"call_id": CALL, "audio_id": audio_id, "evidence": [{"text": WORDS}]}
        outbox.note(database, "flag.raised", "1", flag, moment)
        outbox.note(database, "flag.raised", "2", {**flag, "call_id": "1700000000.123"}, moment)
    assert works.storage.results(audio_id)
    assert works.storage.recording(audio_id).media
    return audio_id


# ---- numbers


@pytest.mark.parametrize(
    "written",
    [
        "+44 7700 900123",
        "00447700900123",
        "447700900123",
        "+44 (7700) 900-123",
        "+44 (0)7700 900123",
        "0044(0)7700 900123",
        "+44.7700/900123",
        "tel:+447700900123",
        "sip:+447700900123@pbx.example.org;user=phone",
    ],
)
def test_one_number_is_one_however_it_is_written(written: str) -> None:
    assert normalised(written) == "447700900123"


def test_nothing_national_is_guessed() -> None:
    assert normalised("07700 900123") == "07700900123"


@pytest.mark.parametrize("extension", ["100", "12", "0012", "*97"])
def test_extensions_are_numbers_too(extension: str) -> None:
    assert normalised(extension) == extension


@pytest.mark.parametrize(
    "nobody",
    [
        *(None, "", " ", "anonymous", "Unknown", "<unknown>", "withheld", "alice", "s"),
        *("5", "0", "000", "+", "00", "*", "266696687", "+266696687", "1" * 33, "٤٤٧٧٠٠"),
    ],
)
def test_who_withholds_a_number_is_nobody_in_particular(nobody: str | None) -> None:
    assert normalised(nobody) is None


def test_a_withheld_number_is_not_remembered_and_its_call_refused(works: Works) -> None:
    consent_of(works).refuse(CallFacts(linkedid=CALL, caller="anonymous"))
    assert works.storage.call(CALL).consent == "no"
    assert not consent_of(works).is_refused("anonymous")
    assert not works.storage.database.all(tables.OptOut.select())


# ---- the key


def test_the_key_is_made_once_and_only_when_a_number_is_remembered(works: Works) -> None:
    path = works.settings.state_dir / consent.KEY_FILE
    assert not consent_of(works).is_refused(NUMBER)
    assert not consent_of(works).allow(NUMBER)
    assert not path.exists()
    consent_of(works).refuse(CallFacts(linkedid=CALL, caller=NUMBER))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    key = path.read_text()
    consent_of(works).refuse(CallFacts(linkedid="1700000000.13", caller="100"))
    assert path.read_text() == key
    assert consent_of(works).is_refused(NUMBER)
    assert consent_of(works).is_refused("100")
    assert not consent_of(works).is_refused("101")
    assert DIGITS not in everything(works)


_REFUSE = """
import sys
from pathlib import Path
from callcore.consent import Consent
from callcore.calls import CallFacts
from callcore.storage import Storage
from tests.support.recordings import make_settings
url, state, call_id, number = sys.argv[1:]
consent = Consent(Storage(url), make_settings(Path(state), capture="always"))
print("ready", flush=True)
sys.stdin.readline()
consent.refuse(CallFacts(linkedid=call_id, caller=number))
"""


def start_refusing(
    works: Works, url: str, call_id: str, before: str = ""
) -> "subprocess.Popen[str]":
    """Return a process that refuses a call once it is told to."""
    state = str(works.settings.state_dir)
    process = subprocess.Popen(
        [sys.executable, "-c", before + _REFUSE, url, state, call_id, NUMBER],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_processes_that_make_the_key_at_once_have_the_same(works: Works, database_url: str) -> None:
    processes = [start_refusing(works, database_url, f"1700000000.{n}") for n in range(4)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=60)
        assert process.returncode == 0
    # The number and what tells the key: all four have hashed alike.
    assert len(works.storage.database.all(tables.OptOut.select())) == 2
    assert consent_of(works).is_refused(NUMBER)
    assert [each.name for each in works.settings.state_dir.glob("*consent*")] == [consent.KEY_FILE]


def test_a_key_of_the_settings_needs_no_file(works: Works) -> None:
    given = make_settings(works.settings.state_dir, consent_key="k" * 40)
    Consent(works.storage, given).refuse(CallFacts(linkedid=CALL, caller=NUMBER))
    assert Consent(works.storage, given).is_refused(NUMBER)
    assert not (works.settings.state_dir / consent.KEY_FILE).exists()


@pytest.mark.parametrize("content", [None, "", "short", "f" * 64])
def test_a_key_that_was_lost_is_noticed_and_calls_are_refused_all_the_same(
    works: Works, content: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    # Fault held off: everybody who had refused was analysed again, and nobody knew.
    consent_of(works).refuse(CallFacts(linkedid=CALL, caller=NUMBER))
    path = works.settings.state_dir / consent.KEY_FILE
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match="CALLCORE_CONSENT_KEY") as error:
        consent_of(works).is_refused(NUMBER)
    assert DIGITS not in str(error.value)
    consent_of(works).refuse(CallFacts(linkedid="1700000000.13", caller="100"))
    assert works.storage.call("1700000000.13").consent == "no"
    assert any("remember" in record.message for record in caplog.records)
    # Fault held off: the next refusal made the other key one of ours, and the first was forgotten.
    for number in (NUMBER, "100"):
        with pytest.raises(ConfigError):
            consent_of(works).is_refused(number)


def test_a_call_ends_even_if_nobody_can_tell_whether_its_caller_refused(works: Works) -> None:
    # Fault held off: with the key lost no captured call ended, nor any that came after it.
    consent_of(works).refuse(CallFacts(linkedid="1700000000.13", caller="100"))
    (works.settings.state_dir / consent.KEY_FILE).unlink()
    facts = CallFacts(linkedid=CALL, caller=NUMBER)
    leg = works.storage.register_leg(new_uuid(), facts, 10.0)
    works.storage.consume_leg(leg.uuid, "daemon-1")
    path = write_wav(works.settings.audio_dir / "capture" / f"{leg.uuid}.wav")
    works.storage.end_leg(leg.uuid, "hangup", str(path))
    assert intake.accept_capture(works.storage, works.settings, CALL) is None
    assert path.exists()
    assert works.storage.recordings_of(CALL) == []


@pytest.mark.parametrize("refuses", [False, True])
def test_a_capture_that_had_to_wait_for_the_key_is_taken_with_it(
    works: Works, refuses: bool
) -> None:
    # Fault held off: it was given up for good.
    consent_of(works).refuse(CallFacts(linkedid="1.1", caller=NUMBER if refuses else "100"))
    key = works.settings.state_dir / consent.KEY_FILE
    leg = works.storage.register_leg(new_uuid(), CallFacts(linkedid=CALL, caller=NUMBER), 10.0)
    works.storage.consume_leg(leg.uuid, "daemon-1")
    path = write_wav(works.settings.audio_dir / "capture" / f"{leg.uuid}.wav")
    works.storage.end_leg(leg.uuid, "hangup", str(path))
    lost = key.rename(key.with_name("elsewhere"))
    for _ in range(2):
        assert intake.accept_capture(works.storage, works.settings, CALL) is None
        assert intake.accept_held_captures(works.storage, works.settings) == 0
    lost.rename(key)
    assert intake.accept_held_captures(works.storage, works.settings) == 1
    assert intake.accept_held_captures(works.storage, works.settings) == 0
    [recording] = works.storage.recordings_of(CALL)
    assert (recording.state is RecordingState.REFUSED) == refuses
    assert path.exists() != refuses


async def test_reports_wait_for_the_key_and_let_others_go_first(
    works: Works, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Fault held off: they were dropped.
    monkeypatch.setattr(agi_reports, "RETRY_S", (0.01, 0.2))
    monkeypatch.setattr(agi_reports, "ANSWER_S", 0.05)
    consent_of(works).refuse(CallFacts(linkedid="1.1", caller="100"))
    key = works.settings.state_dir / consent.KEY_FILE
    lost = key.rename(key.with_name("elsewhere"))
    reports = Reports(works.waker)
    ending = Ending(Disposition.NO_ANSWER)

    def report(call_id: str, caller: str | None) -> None:
        facts = CallFacts(linkedid=call_id, caller=caller)
        intake.accept_facts(works.storage, facts, ending, works.settings)

    assert not await reports.put(partial(report, CALL, NUMBER))
    assert not await reports.put(partial(report, "9.1", NUMBER), keep=False)
    assert await reports.put(partial(report, "9.2", None), wait_s=AGI_PATIENCE_S)
    lost.rename(key)
    await until(lambda: len(works.storage.calls(None, 9)[0]) == 3)
    assert works.storage.call(CALL).facts.caller == NUMBER
    with pytest.raises(NotFound):
        works.storage.call("9.1")
    assert await asyncio.to_thread(reports.close, AGI_PATIENCE_S)


# ---- who refuses a call that we made


OUT = CallFacts(linkedid=CALL, caller="100", callee=NUMBER, direction="out")


def test_who_was_called_refuses_not_who_called(works: Works) -> None:
    # Fault held off: the extension that called was opted out, and all its later calls wiped.
    consent_of(works).refuse(OUT)
    assert consent_of(works).is_refused(NUMBER)
    assert not consent_of(works).is_refused("100")
    assert DIGITS not in everything(works)


def test_the_direction_that_the_call_knows_counts(works: Works) -> None:
    works.storage.register_leg(new_uuid(), OUT, 10.0)
    consent_of(works).refuse(CallFacts(linkedid=CALL, caller="100"))
    assert consent_of(works).is_refused(NUMBER)
    assert not consent_of(works).is_refused("100")
    # Said later, or again: it does not come back.
    intake.accept_facts(works.storage, OUT, Ending(Disposition.ANSWERED), works.settings)
    assert works.storage.call(CALL).facts.callee is None
    assert DIGITS not in everything(works)


def test_a_refused_call_that_turns_out_to_be_ours_names_nobody(works: Works) -> None:
    consent_of(works).refuse(CallFacts(linkedid=CALL, callee=NUMBER))
    assert works.storage.call(CALL).facts.callee == NUMBER
    intake.accept_facts(works.storage, CallFacts(linkedid=CALL, direction="out"))
    assert works.storage.call(CALL).facts.callee is None


@pytest.mark.parametrize("door", ["live", "facts", "recording"])
def test_a_call_to_a_number_that_refused_is_refused(
    works: Works, tmp_path: Path, door: str
) -> None:
    consent_of(works).refuse(CallFacts(linkedid="1600000000.1", caller=NUMBER))
    if door == "live":
        with pytest.raises(Refused):
            intake.register_leg(works.storage, new_uuid(), OUT, works.settings)
    elif door == "facts":
        intake.accept_facts(works.storage, OUT, Ending(Disposition.BUSY), works.settings)
    else:
        accept(works, write_wav(tmp_path / f"{CALL}.wav"), OUT)
    assert works.storage.call(CALL).consent == "no"
    assert DIGITS not in everything(works)
    assert not consent_of(works).is_refused("100")


# ---- what was stored of the call


def test_nothing_stays_of_a_refused_call_but_that_it_was(
    works: Works, clock: Clock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "callcore")
    path = write_wav(tmp_path / "spool" / NAMED)
    audio_id = processed(works, path)
    assert works.files()
    assert WORDS in everything(works)
    assert DIGITS in everything(works)
    assert consent_of(works).refuse(CallFacts(uniqueid=CALL, caller=NUMBER)) == CALL
    found = everything(works)
    assert DIGITS not in found
    # The flag of another call, whose id begins alike, is told.
    assert found.count(WORDS) == 1
    assert works.files() == []
    assert path.exists()  # it is the PBX's
    call, recording = works.storage.call(CALL), works.storage.recording(audio_id)
    assert (call.consent, call.facts.caller, call.facts.callee) == ("no", None, "100")
    assert (recording.state, recording.reason) == (RecordingState.REFUSED, consent_rows.REASON)
    assert {step.status for step in works.storage.steps(audio_id)} == {StepState.SKIPPED}
    assert not works.storage.results(audio_id)
    assert not works.storage.live_segments(CALL)
    assert works.storage.corrections() == []
    works.run()
    clock.move(3600)
    works.chain.sweep()
    works.run()
    assert works.files() == []
    logged = "\n".join(TextFormatter().format(record) for record in caplog.records)
    assert DIGITS not in logged
    assert WORDS not in logged


def test_refusing_again_changes_nothing(works: Works, tmp_path: Path) -> None:
    processed(works, write_wav(tmp_path / NAMED))
    consent_of(works).refuse(CallFacts(linkedid=CALL, caller=NUMBER))
    before = everything(works)
    assert consent_of(works).refuse(CallFacts(linkedid=CALL, caller=NUMBER)) == CALL
    assert everything(works) == before


def test_a_call_nobody_knows_yet_is_refused_before_it_begins(works: Works) -> None:
    assert consent_of(works).refuse(CallFacts(linkedid=CALL, caller=NUMBER)) == CALL
    call = works.storage.call(CALL)
    assert (call.consent, call.state, call.legs) == ("no", CallState.ENDED, ())
    with pytest.raises(Refused) as error:
        works.storage.register_leg(new_uuid(), CallFacts(linkedid=CALL, leg="agent"), 10.0)
    assert error.value.code == "consent-refused"


def test_without_an_id_there_is_nothing_to_refuse(works: Works) -> None:
    with pytest.raises(Refused) as error:
        consent_of(works).refuse(CallFacts(caller=NUMBER))
    assert error.value.code == "bad-id"


def test_the_number_that_the_call_knows_is_remembered(works: Works) -> None:
    works.storage.register_leg(new_uuid(), CallFacts(linkedid=CALL, caller=NUMBER), 10.0)
    consent_of(works).refuse(CallFacts(linkedid=CALL))
    assert consent_of(works).is_refused(NUMBER)


def test_the_number_does_not_come_back_with_a_later_report(works: Works) -> None:
    consent_of(works).refuse(CallFacts(linkedid=CALL, caller=NUMBER))
    facts = CallFacts(linkedid=CALL, uniqueid=CALL, caller=NUMBER, agent="Ada")
    ending = Ending(Disposition.ANSWERED)
    assert intake.accept_facts(works.storage, facts, ending, works.settings) == CALL
    assert intake.accept_facts(works.storage, facts, ending) == CALL
    call = works.storage.call(CALL)
    assert (call.facts.agent, call.facts.caller) == ("Ada", None)
    assert DIGITS not in everything(works)


def test_a_step_that_runs_meanwhile_has_lost_it(works: Works, tmp_path: Path) -> None:
    audio_id = accept(works, write_wav(tmp_path / f"{CALL}.wav")).audio_id
    works.chain.settle(audio_id)
    claim = works.chain.ledger.claim(audio_id, "transcribe")
    assert claim is not None
    consent_of(works).refuse(CallFacts(linkedid=CALL))
    with pytest.raises(Fenced):
        works.chain.ledger.finish(claim, {"segments": [WORDS]}, {SETTLE: (), "transcribe": ()})
    assert not works.chain.ledger.renew(claim)
    assert WORDS not in everything(works)


def test_words_that_are_being_recognised_are_not_stored(works: Works, tmp_path: Path) -> None:
    audio_id = accept(works, write_wav(tmp_path / f"{CALL}.wav")).audio_id
    works.chain.settle(audio_id)
    works.engines.proceed = threading.Event()
    step = threading.Thread(target=works.chain.run_step, args=("transcribe", audio_id))
    step.start()
    assert works.engines.entered.wait(30)
    consent_of(works).refuse(CallFacts(linkedid=CALL))
    works.engines.proceed.set()
    step.join(30)
    assert not step.is_alive()
    assert not works.storage.results(audio_id)
    assert "hello" not in everything(works)
    assert [s.status for s in works.storage.steps(audio_id)] == [StepState.SKIPPED] * 2


def test_a_recording_that_is_being_copied_leaves_nothing(
    works: Works, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audio_id = accept(works, write_wav(tmp_path / f"{CALL}.wav")).audio_id
    copied = works.chain._copied

    def refused_meanwhile(audio_id: str) -> Any:
        settled = copied(audio_id)
        consent_of(works).refuse(CallFacts(linkedid=CALL))
        # As if the copy's last file came after that.
        write_wav(Path(settled.media[0].path))
        return settled

    monkeypatch.setattr(works.chain, "_copied", refused_meanwhile)
    works.chain.settle(audio_id)
    assert works.storage.recording(audio_id).state is RecordingState.REFUSED
    assert works.files()
    assert consent_of(works).clean() == 1
    assert works.files() == []
    assert consent_of(works).clean() == 0


def test_a_refused_recording_is_not_analysed_again(works: Works, tmp_path: Path) -> None:
    audio_id = processed(works, write_wav(tmp_path / NAMED))
    consent_of(works).refuse(CallFacts(linkedid=CALL))
    for steps in ((), (SETTLE, "transcribe")):
        with pytest.raises(Refused) as error:
            reruns.rerun(works.storage, works.settings, audio_id, steps)
        assert error.value.code == "consent-refused"
    works.chain.ledger.enqueue(audio_id, ["transcribe", "summarize"])
    consent_of(works).refuse(CallFacts(linkedid=CALL))
    works.run()
    assert not works.storage.results(audio_id)


def test_calls_that_turn_out_to_be_one_are_refused_as_one(works: Works, tmp_path: Path) -> None:
    consent_of(works).refuse(CallFacts(linkedid="1700000000.99"))
    audio_id = processed(works, write_wav(tmp_path / f"{CALL}.wav"))
    intake.accept_facts(works.storage, CallFacts(linkedid="1700000000.99", uniqueid=CALL))
    call = works.storage.call(CALL)
    assert works.storage.call("1700000000.99") == call
    assert (call.consent, call.facts.caller) == ("no", None)
    assert works.storage.recording(audio_id).state is RecordingState.REFUSED
    assert not works.storage.live_segments(CALL)
    assert consent_of(works).clean() > 0
    assert works.files() == []


def test_messages_that_are_sent_later_hold_neither_number_nor_words(
    works: Works, clock: Clock, tmp_path: Path
) -> None:
    processed(works, write_wav(tmp_path / NAMED))
    with works.storage.database.transaction():
        wanted = {"crm": frozenset({"flag.raised", "analysis.ready", "call.ended"})}
        outbox.fan_out(works.storage.database, wanted, works.storage.clock())
    consent_of(works).refuse(CallFacts(linkedid=CALL, caller=NUMBER))
    clock.move(1)
    assert works.storage.expire_legs() == [CALL]
    rows = works.storage.database.all(tables.Delivery.select())
    assert {row["type"] for row in rows} == {"flag.raised", "analysis.ready", "call.ended"}
    told = json.dumps([row["payload"] for row in rows if row["payload"]["data"]["call_id"] == CALL])
    assert DIGITS not in told
    assert WORDS not in told


# ---- a crash between commit and deletion


def test_files_that_a_killed_process_left_go_with_the_next_sweep(
    works: Works, database_url: str, tmp_path: Path
) -> None:
    processed(works, write_wav(tmp_path / NAMED))
    leg = works.storage.add_unregistered_leg(new_uuid(), "daemon-1")
    captured = write_wav(works.settings.audio_dir / "capture" / f"{leg.uuid}.wav")
    works.storage.end_leg(leg.uuid, "hangup", str(captured))
    intake.accept_facts(works.storage, CallFacts(linkedid=CALL, call_id=leg.uuid))
    killed = "import os, pathlib\npathlib.Path.unlink = lambda *a, **k: os.kill(os.getpid(), 9)\n"
    # The key is made beforehand: that unlinks a file too.
    consent_of(works).refuse(CallFacts(linkedid="1700000000.98", caller="100"))
    process = start_refusing(works, database_url, CALL, killed)
    process.communicate("\n", timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert works.storage.call(CALL).consent == "no"
    assert not works.storage.live_segments(CALL)
    assert DIGITS not in everything(works)
    assert len(works.files()) == 2
    assert works.storage.recordings_of(CALL)[0].media == ()
    assert consent_of(works).clean() == 2
    assert works.files() == []
    assert works.storage.database.all(tables.RecordingSource.select()) == []
    assert consent_of(works).clean() == 0


def test_a_file_that_cannot_be_deleted_is_tried_again(
    works: Works, caplog: pytest.LogCaptureFixture
) -> None:
    leg = works.storage.add_unregistered_leg(new_uuid(), "daemon-1")
    path = works.settings.audio_dir / "capture" / f"{leg.uuid}.wav"
    (path / "in the way").mkdir(parents=True)
    works.storage.end_leg(leg.uuid, "hangup", str(path))
    consent_of(works).refuse(CallFacts(call_id=leg.uuid))
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    (path / "in the way").rmdir()
    path.rmdir()
    write_wav(path)
    assert consent_of(works).clean() == 1
    assert works.files() == []


def test_a_file_that_another_call_needs_stays(works: Works, tmp_path: Path) -> None:
    path = write_wav(works.settings.audio_dir / "uploads" / "shared.wav")
    for number, call_id in enumerate((CALL, "1700000000.13")):
        facts = CallFacts(linkedid=call_id)
        accept(works, path, facts, "upload", original_name=f"{number}.wav")
    consent_of(works).refuse(CallFacts(linkedid=CALL))
    assert works.files() == ["uploads/shared.wav"]
    works.run()
    [other] = works.storage.recordings_of("1700000000.13")
    assert other.state is RecordingState.STORED
    named = works.storage.database.all(tables.RecordingSource.select())
    assert {row["recording"] for row in named} == {other.audio_id}


# ---- recordings that come afterwards, by any door


class Doors:
    """Reports of one recording, whose names and facts tell the caller's number."""

    def __init__(self, works: Works, folder: Path) -> None:
        self.works = works
        self.path = write_wav(folder / "spool" / NAMED)

    def spool(self) -> intake.Accepted:
        return accept(self.works, self.path)

    def agi(self) -> intake.Accepted:
        facts = CallFacts(linkedid=CALL, uniqueid=CALL, caller=NUMBER)
        return accept(self.works, self.path, facts, "agi")

    def upload(self) -> intake.Accepted:
        path = write_wav(self.works.settings.audio_dir / "uploads" / f"{new_uuid()}.wav")
        return accept(self.works, path, CallFacts(), "upload", original_name=NAMED)

    def webhook(self) -> intake.Accepted:
        facts = CallFacts(call_id="crm-1", linkedid=CALL, caller=NUMBER)
        url = f"http://recordings.test/{NUMBER}/{NAMED}"
        return intake.accept_url(self.works.storage, self.works.settings, facts, url)

    def capture(self) -> intake.Accepted | None:
        storage = self.works.storage
        leg = storage.add_unregistered_leg(new_uuid(), "daemon-1")
        path = write_wav(self.works.settings.audio_dir / "capture" / f"{leg.uuid}.wav")
        storage.end_leg(leg.uuid, "hangup", str(path))
        facts = CallFacts(linkedid=CALL, call_id=leg.uuid, caller=NUMBER)
        intake.accept_facts(storage, facts)
        return intake.accept_capture(storage, self.works.settings, leg.uuid)


DOORS = ("spool", "agi", "upload", "webhook", "capture")


@pytest.fixture
def doors(works: Works, tmp_path: Path) -> Doors:
    settings = make_settings(
        tmp_path / "state", capture="always", recording_hosts="recordings.test"
    )
    return Doors(Works(works.storage, settings), tmp_path)


@pytest.mark.parametrize("door", DOORS)
def test_a_recording_of_a_number_that_refused_is_not_even_read(doors: Doors, door: str) -> None:
    works = doors.works
    consent_of(works).refuse(CallFacts(linkedid="1600000000.1", caller="0044 7700 900123"))
    accepted = getattr(doors, door)()
    assert accepted is not None
    assert (accepted.created, accepted.wake) == (True, False)
    recording = works.storage.recording(accepted.audio_id)
    assert (recording.state, recording.reason) == (RecordingState.REFUSED, consent_rows.REASON)
    assert (recording.source, recording.facts.caller) == (door, None)
    call = works.storage.call(CALL)
    assert (call.call_id, call.consent) == (recording.call_id, "no")
    assert {step.status for step in works.storage.steps(accepted.audio_id)} == {StepState.SKIPPED}
    works.run()
    assert works.files() == []
    assert doors.path.exists()
    assert DIGITS not in everything(works)
    assert works.waker.woken == []


@pytest.mark.parametrize("door", DOORS)
def test_a_recording_of_a_refused_call_is_not_even_read(doors: Doors, door: str) -> None:
    works = doors.works
    consent_of(works).refuse(CallFacts(linkedid=CALL))
    accepted = getattr(doors, door)()
    works.run()
    consent_of(works).clean()
    assert works.files() == []
    assert DIGITS not in everything(works)
    recordings = works.storage.recordings_of(CALL)
    assert {each.state for each in recordings} <= {RecordingState.REFUSED}
    assert [each.audio_id for each in recordings] == ([accepted.audio_id] if accepted else [])
    assert (accepted is None) == (door == "capture")


def test_all_doors_tell_of_one_refused_recording(doors: Doors) -> None:
    consent_of(doors.works).refuse(CallFacts(linkedid=CALL, caller=NUMBER))
    found = [getattr(doors, door)() for door in ("spool", "agi", "upload", "webhook", "spool")]
    assert len({each.audio_id for each in found}) == 1
    assert [each.created for each in found] == [True, False, False, False, False]
    assert doors.works.files() == []


def test_a_report_of_a_number_that_refused_ends_what_was_begun(
    works: Works, tmp_path: Path
) -> None:
    # Only the hangup tells who called.
    path = write_wav(tmp_path / f"{CALL}.wav")
    audio_id = accept(works, path).audio_id
    works.run()
    assert works.storage.results(audio_id)
    consent_of(works).refuse(CallFacts(linkedid="1600000000.1", caller=NUMBER))
    again = accept(works, path, CallFacts(linkedid=CALL, caller=NUMBER), "agi")
    assert (again.audio_id, again.created, again.wake) == (audio_id, False, False)
    assert not works.storage.results(audio_id)
    assert works.files() == []


def test_a_hangup_without_a_file_ends_what_was_begun(works: Works) -> None:
    leg = works.storage.add_unregistered_leg(new_uuid(), "daemon-1")
    works.storage.add_live_segment(leg.uuid, segment())
    consent_of(works).refuse(CallFacts(linkedid="1600000000.1", caller=NUMBER))
    facts = CallFacts(call_id=leg.uuid, linkedid=CALL, caller=NUMBER)
    intake.accept_facts(works.storage, facts, None, works.settings)
    assert works.storage.call(CALL).consent == "no"
    assert WORDS not in everything(works)
    assert DIGITS not in everything(works)


def test_an_upload_without_ids_is_refused_once(works: Works) -> None:
    consent_of(works).refuse(CallFacts(linkedid=CALL, caller=NUMBER))

    def upload() -> intake.Accepted:
        path = write_wav(works.settings.audio_dir / "uploads" / f"{new_uuid()}.wav")
        media = [Media("mixed", str(path), sha256="0" * 64)]
        name = f"20231114-221320_{NUMBER}-all.wav"
        return intake.accept_recording(
            works.storage, works.settings, CallFacts(), "upload", media, original_name=name
        )

    first, second = upload(), upload()
    assert (first.audio_id, second.created) == (second.audio_id, False)
    assert works.files() == []
    assert DIGITS not in everything(works)


def test_the_spool_is_not_told_again_and_again(works: Works, clock: Clock, tmp_path: Path) -> None:
    consent_of(works).refuse(CallFacts(linkedid="1600000000.1", caller=NUMBER))
    settings = make_settings(works.settings.state_dir, spool_dir=tmp_path / "spool")
    path = write_wav(tmp_path / "spool" / NAMED)
    scanner = Scanner(works.storage, settings, lambda _: None, lambda: clock().timestamp())
    scanner.scan()
    assert list(works.storage.spool_files()) == [str(path)]
    [recording] = works.storage.recordings_of(CALL)
    assert recording.state is RecordingState.REFUSED
    before = everything(works)
    scanner.scan()
    assert everything(works) == before
    # The PBX's own name of its file is kept for as long as the file is there, and nowhere else.
    assert DIGITS not in everything(works, tables.SpoolFile)
    [seen] = works.storage.database.all(tables.SpoolFile.select())
    assert seen["audio_id"] is None
    path.unlink()
    scanner.scan()
    assert DIGITS not in everything(works)


def test_a_refusal_forgets_of_which_call_the_file_was(works: Works, tmp_path: Path) -> None:
    # Fault held off: the name of the PBX's file, with the number, went on telling of which call.
    settings = make_settings(works.settings.state_dir, spool_dir=tmp_path / "spool")
    write_wav(tmp_path / "spool" / NAMED)
    clock = works.storage.clock
    Scanner(works.storage, settings, lambda _: None, lambda: clock().timestamp()).scan()
    consent_of(works).refuse(CallFacts(linkedid=CALL))
    [seen] = works.storage.database.all(tables.SpoolFile.select())
    assert seen["audio_id"] is None


def test_files_stay_where_the_refusal_comes_to_nothing(works: Works) -> None:
    # Fault held off: they were deleted before the commit.
    consent_of(works).refuse(CallFacts(linkedid="1600000000.1", caller=NUMBER))
    path = write_wav(works.settings.audio_dir / "uploads" / "a.wav")
    facts = CallFacts(linkedid=CALL, caller=NUMBER)

    def fail() -> None:
        with works.storage.database.transaction():
            accept(works, path, facts, "upload", original_name="a.wav")
            raise OSError("away")

    with pytest.raises(OSError, match="away"):
        fail()
    assert path.exists()
    accept(works, path, facts, "upload", original_name="a.wav")
    assert not path.exists()


def test_files_found_beside_those_of_a_refused_call_are_not_put_on_record(
    works: Works, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Fault held off: their names, with the number, were kept.
    path = write_wav(tmp_path / NAMED)
    audio_id = accept(works, path).audio_id
    real = settling.with_siblings

    def refused_meanwhile(*given: Any) -> list[Media]:
        consent_of(works).refuse(CallFacts(linkedid=CALL))
        return [*real(*given), Media("agent", str(path.with_name(f"agent-{NAMED}")))]

    monkeypatch.setattr(settling, "with_siblings", refused_meanwhile)
    works.chain.settle(audio_id)
    assert DIGITS not in everything(works, tables.SpoolFile, tables.OptOut)
    assert works.files() == []


def test_what_is_no_call_is_not_said_to_be_allowed(works: Works) -> None:
    with works.storage.database.transaction(), pytest.raises(NotFound):
        consent_rows.is_refused(works.storage.database, "c9")


def test_who_allows_it_again_is_analysed_from_then_on(works: Works, tmp_path: Path) -> None:
    consent_of(works).refuse(CallFacts(linkedid=CALL, caller=NUMBER))
    assert consent_of(works).allow("00447700900123")
    assert not consent_of(works).allow(NUMBER)
    facts = CallFacts(linkedid="1700000000.13", caller=NUMBER)
    audio_id = accept(works, write_wav(tmp_path / "1700000000.13.wav"), facts).audio_id
    works.run()
    assert works.storage.recording(audio_id).state is RecordingState.STORED
    assert works.storage.call(CALL).consent == "no"


def test_finals_of_a_refused_call_are_refused(works: Works) -> None:
    leg = works.storage.add_unregistered_leg(new_uuid(), "daemon-1")
    assert works.storage.add_live_segment(leg.uuid, segment(1))
    consent_of(works).refuse(CallFacts(call_id=leg.uuid))
    with pytest.raises(Refused) as error:
        works.storage.add_live_segment(leg.uuid, segment(2))
    assert error.value.code == "consent-refused"
    assert works.storage.live_segments(leg.uuid) == []


def test_finals_and_a_refusal_at_once_leave_none(works: Works) -> None:
    # Fault held off: a final whose transaction began before the refusal committed after it.
    leg = works.storage.add_unregistered_leg(new_uuid(), "daemon-1")
    begun = threading.Event()

    def say() -> None:
        for number in range(60):
            with contextlib.suppress(Refused):
                works.storage.add_live_segment(leg.uuid, segment(number))
            begun.set()

    speaker = threading.Thread(target=say)
    speaker.start()
    assert begun.wait(30)
    consent_of(works).refuse(CallFacts(call_id=leg.uuid))
    speaker.join(30)
    assert not speaker.is_alive()
    assert works.storage.live_segments(leg.uuid) == []


def test_a_leg_of_a_number_that_refused_cannot_be_announced(works: Works) -> None:
    consent_of(works).refuse(CallFacts(linkedid="1600000000.1", caller=NUMBER))
    facts = CallFacts(linkedid=CALL, caller=NUMBER, leg="caller")
    with pytest.raises(Refused) as error:
        intake.register_leg(works.storage, new_uuid(), facts, works.settings)
    assert error.value.code == "consent-refused"
    other = CallFacts(linkedid=CALL, leg="agent")
    with pytest.raises(Refused):
        intake.register_leg(works.storage, new_uuid(), other, works.settings)
    assert DIGITS not in everything(works)


# ---- live legs


def captures(parts: Live) -> list[Path]:
    assert parts.capture is not None
    return parts.capture.files()


async def until(condition: Any) -> None:
    """Return once something that another thread or process does has been done."""
    async with asyncio.timeout(PATIENCE_S):
        # Another process or thread does it: there is no event to wait for.
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def refuse_call(storage: Storage, settings: Settings, call_id: str) -> None:
    Consent(storage, settings).refuse(CallFacts(call_id=call_id, caller=NUMBER))


@on_uvloop
async def test_both_legs_end_and_nothing_of_them_is_kept(tmp_path: Path) -> None:
    async with daemon(tmp_path, capture="always") as (parts, server):
        wires = []
        for leg in ("caller", "agent"):
            wires.append(wire := await Wire.connect(server.address))
            wire.greet(parts.register("c1", leg, caller=NUMBER))
            wire.speak(ramp(0, 8000))
        recognition = await parts.recognizer.leg(0)
        await parts.recognizer.leg(1)
        recognition.say(0, WORDS)
        await parts.sink.until("transcript.final")
        await until(lambda: len(captures(parts)) == 2)
        await parts.calls.end_refused()
        assert all(server.counts[reason] == 0 for reason in ("consent refused", "hangup"))
        await asyncio.to_thread(refuse_call, parts.storage, parts.settings, "c1")
        recognition.say(1, WORDS)  # it was being decoded
        await parts.calls.end_refused()
        for wire in wires:
            await wire.closed()
        ended = await parts.sink.until("leg.ended", 2)
        assert {each["reason"] for each in ended} == {"consent refused"}
        await parts.sink.until("call.ended")
        assert parts.sink.types == ["call.ended"]
        assert set(parts.sink.forgotten) == {"c1"}
        assert parts.sink.of("call.ended")[0]["reason"] == "consent refused"
        assert all(each.discarded for each in parts.recognizer.legs)
        assert server.counts["consent refused"] == 2
        await until(lambda: not captures(parts))
        call = parts.storage.call("c1")
        assert (call.state, call.reason, call.consent) == (CallState.ENDED, "consent refused", "no")
        assert parts.storage.live_segments("c1") == []
        assert parts.storage.recordings_of("c1") == []
        assert parts.storage.capture_media("c1") == []
        assert parts.waker.woken == []


@on_uvloop
async def test_a_leg_that_comes_later_is_turned_away(tmp_path: Path) -> None:
    async with daemon(tmp_path, capture="always") as (parts, server):
        leg_uuid = parts.register("c1", "agent")
        refuse_call(parts.storage, parts.settings, "c1")
        wire = await Wire.connect(server.address)
        wire.greet(leg_uuid)
        wire.speak(ramp(0, 8000))
        await wire.closed()
        assert server.counts["consent-refused"] == 1
        assert parts.sink.events == []
        assert parts.recognizer.legs == []
        await until(lambda: not captures(parts))
        await parts.calls.sweep()
        [leg] = parts.storage.call("c1").legs
        assert (leg.state, leg.reason) == (LegState.EXPIRED, "consent refused")


@on_uvloop
async def test_a_final_that_finds_its_call_refused_ends_the_leg(tmp_path: Path) -> None:
    async with live(tmp_path, capture="always") as parts:
        ended: list[str] = []
        leg = parts.calls.open_leg(parts.register("c1", "caller"), 1000.0, ended.append)
        recognition = await parts.recognizer.leg()
        refuse_call(parts.storage, parts.settings, "c1")
        recognition.say(0, WORDS)
        await parts.sink.until("leg.ended")
        assert parts.sink.types == ["leg.ended"]
        assert ended == ["consent refused"]
        leg.refuse()
        leg.end("hangup")
        assert captures(parts) == []


@on_uvloop
async def test_both_channels_of_one_stream_end(tmp_path: Path) -> None:
    async with live(tmp_path, capture="always") as parts:
        own = new_uuid()
        intake.register_leg(parts.storage, own, CallFacts(call_id="c1", leg="stereo"))
        ended: list[str] = []
        parts.calls.open_leg(own, 1000.0, ended.append)
        await parts.sink.until("leg.started", 2)
        await parts.recognizer.leg(1)
        refuse_call(parts.storage, parts.settings, "c1")
        await parts.calls.end_refused()
        legs = await parts.sink.until("leg.ended", 2)
        assert {each["reason"] for each in legs} == {"consent refused"}
        assert ended == ["consent refused"]
        await parts.sink.until("call.ended")
        assert all(each.discarded for each in parts.recognizer.legs)
        await until(lambda: not captures(parts))


@on_uvloop
async def test_a_leg_that_is_ending_is_not_kept_either(tmp_path: Path) -> None:
    async with live(tmp_path, capture="always") as parts:
        leg = parts.calls.open_leg(parts.register("c1", "caller"), 1000.0, lambda _: None)
        recognition = await parts.recognizer.leg()
        recognition.last_words = [WORDS]
        refuse_call(parts.storage, parts.settings, "c1")
        leg.end("hangup")
        await parts.calls.end_refused()
        await parts.sink.until("call.ended")
        assert parts.storage.live_segments("c1") == []
        assert parts.storage.recordings_of("c1") == []
        Consent(parts.storage, parts.settings).clean()
        await until(lambda: not captures(parts))


@on_uvloop
async def test_a_leg_that_is_refused_while_it_is_looked_up_never_starts(tmp_path: Path) -> None:
    async with live(tmp_path, capture="always") as parts:
        ended: list[str] = []
        leg = parts.calls.open_leg(parts.register("c1", "caller"), 1000.0, ended.append)
        leg.dtmf("5")
        leg.refuse()
        await parts.sink.until("leg.ended")
        assert parts.sink.types == ["leg.ended"]
        assert ended == ["consent refused"]
        assert parts.recognizer.legs == []
        await until(lambda: not captures(parts))


@on_uvloop
async def test_a_call_that_waits_for_its_legs_ends_with_the_refusal(tmp_path: Path) -> None:
    async with live(tmp_path) as parts:
        leg_uuid = parts.register("c1", "caller")
        bus = MemoryBus()
        bus.publish([make("call.started", "c1", caller=NUMBER), make("call.started", "c2")])
        Consent(parts.storage, parts.settings, bus).refuse(CallFacts(call_id="c1"))
        assert [(e.type, e.call_id) for e in bus.events] == [("call.started", "c2")]
        await parts.calls.sweep()
        call = parts.storage.call(leg_uuid)
        assert (call.state, call.reason) == (CallState.ENDED, "consent refused")
        await parts.sink.until("call.ended")
        assert parts.sink.of("call.ended")[0]["reason"] == "consent refused"


@pytest.mark.parametrize("door", ["facts", "recording", "merge"])
def test_a_call_that_any_door_refuses_ends(
    works: Works, clock: Clock, tmp_path: Path, door: str
) -> None:
    # Fault held off: its legs had expired already, so nobody ended it: it was live for ever.
    works.storage.register_leg(new_uuid(), CallFacts(linkedid=CALL), 10.0)
    facts = CallFacts(linkedid=CALL, caller=NUMBER)
    if door == "merge":
        consent_of(works).refuse(CallFacts(linkedid="1600000000.1"))
        intake.accept_facts(works.storage, replace(facts, uniqueid="1600000000.1"))
    else:
        consent_of(works).refuse(CallFacts(linkedid="1600000000.1", caller=NUMBER))
    if door == "facts":
        intake.accept_facts(works.storage, facts, None, works.settings)
    elif door == "recording":
        accept(works, write_wav(tmp_path / f"{CALL}.wav"), facts)
    clock.move(1)
    [ended] = works.storage.expire_legs()
    call = works.storage.call(ended)
    assert (call.state, call.reason, call.consent) == (CallState.ENDED, "consent refused", "no")


@on_uvloop
async def test_a_call_whose_capture_tells_that_it_is_refused_leaves_no_events(
    tmp_path: Path,
) -> None:
    # Fault held off: the call was read before its capture was accepted, and its room stayed.
    async with live(tmp_path, capture="always") as parts:
        Consent(parts.storage, parts.settings).refuse(CallFacts(call_id="c0", caller=NUMBER))
        leg_uuid = parts.register("c1", "caller", caller=NUMBER)
        leg = parts.calls.open_leg(leg_uuid, 1000.0, lambda _: None)
        (await parts.recognizer.leg()).say(0, WORDS)
        await parts.sink.until("transcript.final")
        leg.end("hangup")
        await parts.sink.until("call.ended")
        assert parts.sink.types == ["call.ended"]
        assert parts.storage.call("c1").consent == "no"


@on_uvloop
async def test_a_real_daemon_notices_by_itself(tmp_path: Path) -> None:
    process = Process(tmp_path)
    storage = Storage(process.settings.database_url)
    storage.migrate()
    address = await process.start()
    wire = await Wire.connect(address)
    wire.greet(leg_uuid := new_uuid())
    wire.speak(ramp(0, 16000))
    assert await wire.frame() == silence_frame()
    path = process.settings.audio_dir / "capture" / f"{leg_uuid}.wav"
    await until(path.exists)
    refuse_call(storage, process.settings, leg_uuid)
    await wire.closed()
    wire.close()
    ended = await process.until("call ended")
    assert ended["reason"] == "consent refused"
    await until(lambda: not path.exists())
    assert await process.end(signal.SIGTERM) == 0
    assert storage.recordings_of(leg_uuid) == []
    storage.close()
    Wire.opened.clear()


@on_uvloop
async def test_what_a_killed_daemon_left_of_a_refused_call_goes_with_the_next(
    tmp_path: Path,
) -> None:
    process = Process(tmp_path)
    storage = Storage(process.settings.database_url)
    storage.migrate()
    address = await process.start()
    wire = await Wire.connect(address)
    wire.greet(leg_uuid := new_uuid())
    wire.speak(ramp(0, 16000))
    folder = process.settings.audio_dir / "capture"
    await until((folder / f"{leg_uuid}.wav").exists)
    await process.end(signal.SIGKILL)
    wire.close()
    # One more that lost its leg before it could be deleted.
    other = storage.add_unregistered_leg(new_uuid(), "daemon-2")
    storage.end_leg(other.uuid, "hangup", None)
    write_wav(folder / f"{other.uuid}.wav")
    for call_id in (leg_uuid, other.uuid):
        refuse_call(storage, process.settings, call_id)
    assert len(list(folder.iterdir())) == 2
    await process.start()
    await process.until("call ended")
    await until(lambda: not list(folder.iterdir()))
    assert await process.end(signal.SIGTERM) == 0
    assert storage.call(leg_uuid).legs[0].reason == "consent refused"
    assert storage.recordings_of(leg_uuid) == []
    storage.close()
    Wire.opened.clear()


# ---- rooms


@pytest.mark.redis
async def test_what_pages_were_told_is_forgotten_and_they_hear_the_end(valkey: Valkey) -> None:
    bus, reader = RedisBus(valkey.url), RoomReader(valkey.url)
    try:
        for number in range(3):
            bus.publish([make("call.started", f"c{number}", caller=NUMBER)])
        bus.publish([make("transcript.final", "c1", text=WORDS)])
        bus.publish([make("call.ended", "c1", reason="hangup")])
        last = await reader.last_id(room("c1"))
        assert last is not None
        bus.forget(["c1", "known-as"])
        assert await reader.after(room("c1"), START) == []
        told = await reader.recent(LOBBY, 10)
        # A page that was away for a moment must hear of the end.
        assert [(each["type"], each["call_id"]) for each in told] == [
            ("call.ended", "c1"),
            ("call.started", "c2"),
            ("call.started", "c0"),
        ]
        assert len(await reader.after(room("c2"), START)) == 1
        assert not await reader.can_resume(room("c1"), last)
        # A page that follows the room reads on where it was.
        bus.publish([make("call.ended", "c1", reason="consent refused")])
        assert [event["type"] for _, event in await reader.after(room("c1"), last)] == [
            "call.ended"
        ]
    finally:
        bus.close()
        await reader.close()


def test_rooms_are_forgotten_whoever_refused_and_whatever_fails(
    works: Works, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    # Fault held off: only the route that was told of the refusal tried it, once.
    class Failing(MemoryBus):
        is_away = True

        def forget(self, call_ids: Sequence[str]) -> None:
            if self.is_away:
                raise OSError("away")
            super().forget(call_ids)

    bus = Failing()
    leg = works.storage.add_unregistered_leg(new_uuid(), "daemon-1")
    said = make("transcript.final", leg.uuid, text=WORDS)
    others = make("transcript.final", "c2", text=WORDS)
    bus.publish([said, others])
    consent_of(works).refuse(CallFacts(linkedid="1600000000.1", caller=NUMBER))
    facts = CallFacts(linkedid=CALL, call_id=leg.uuid, caller=NUMBER)
    intake.accept_facts(works.storage, facts, None, works.settings)
    works.storage.end_leg(leg.uuid, "hangup", None)
    works.storage.end_call_if_idle(leg.uuid, "hangup")
    looks_after = consent_of(works, bus=bus)
    clock.move(3600)
    assert looks_after.forget_rooms() == 0
    assert WORDS not in caplog.text
    bus.is_away = False
    assert looks_after.forget_rooms() == 2
    assert bus.events == [others]
    bus.publish([make("transcript.final", CALL, text=WORDS)])  # it waited somewhere
    clock.move(consent_rows.FORGET_FOR.total_seconds() + 1)
    assert looks_after.forget_rooms() == 2
    assert bus.events == [others]
    assert looks_after.forget_rooms() == 0
    assert consent_of(works).forget_rooms() == 0


def test_what_waits_to_be_published_is_forgotten_in_its_turn() -> None:
    class Gated(MemoryBus):
        gate = threading.Event()
        entered = threading.Event()

        def publish(self, events: Sequence[Any]) -> None:
            self.entered.set()
            assert self.gate.wait(30)
            super().publish(events)

    bus = Gated()
    publisher = Publisher(bus, max_events=3)
    publisher.put(make("call.started", "c1"))
    assert bus.entered.wait(30)
    publisher.put(make("transcript.final", "c1"))
    publisher.put(make("call.started", "c2"))
    publisher.forget("c1")
    for _ in range(4):  # too many: the oldest go, but not what is to be forgotten
        publisher.put(make("call.ended", "c1"))
    bus.gate.set()
    publisher.close()
    assert [(e.type, e.call_id) for e in bus.events] == [("call.ended", "c1")] * 2
    assert publisher.lost == 3


# ---- the dialplan


async def told(works: Works, *arguments: str, bus: MemoryBus | None = None) -> dict[str, str]:
    """Ask the route as a dialplan does; return the variables that it was given."""
    reports = Reports(works.waker)
    routes = agi_daemon.routes(works.storage, works.settings, reports, reports, bus)
    async with running(works.settings, routes) as server:
        dialplan = await Dialplan.connect(server.address)
        dialplan.greet("consent", *arguments)
        commands = await dialplan.told({})
    assert await asyncio.to_thread(reports.close, AGI_PATIENCE_S)
    found = (each.rsplit(" ", 2) for each in commands if each.startswith("SET VARIABLE"))
    return {name: value.strip('"') for _, name, value in found}


async def test_a_no_refuses_the_call_and_is_remembered(
    works: Works, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "callcore")
    bus = MemoryBus()
    bus.publish([make("call.started", CALL, caller=NUMBER)])
    query = f"answer=no&linkedid={CALL}&uniqueid={CALL}&caller=%2B447700900123"
    assert await told(works, f"says={packed(query)}", bus=bus) == {"CALLCORE_CONSENT": "no"}
    assert works.storage.call(CALL).consent == "no"
    assert consent_of(works).is_refused(NUMBER)
    assert bus.events == []
    logged = "\n".join(TextFormatter().format(record) for record in caplog.records)
    assert DIGITS not in logged


async def test_the_dialplan_may_ask_and_take_it_back(works: Works) -> None:
    ids = ("linkedid=1700000000.13", "uniqueid=1700000000.13", f"caller={NUMBER}")
    own = (f"linkedid={CALL}", f"uniqueid={CALL}")
    assert await told(works, "answer=ask", *ids) == {"CALLCORE_CONSENT": ""}
    await told(works, "answer=no", *own, f"caller={NUMBER}")
    assert await told(works, "answer=ask", *ids) == {"CALLCORE_CONSENT": "no"}
    # Without the number the call's own id tells.
    assert await told(works, "answer=ask", *own) == {"CALLCORE_CONSENT": "no"}
    assert await told(works, "answer=yes", *ids) == {"CALLCORE_CONSENT": ""}
    assert await told(works, "answer=ask", *ids) == {"CALLCORE_CONSENT": ""}
    # A call that was refused stays so.
    assert await told(works, "answer=yes", *own) == {"CALLCORE_CONSENT": "no"}


async def test_the_stream_whose_registration_was_lost_is_refused_with_its_call(
    works: Works,
) -> None:
    # Fault held off: a stream that nobody had registered was a call of its own, not refused.
    leg = works.storage.add_unregistered_leg(new_uuid(), "daemon-1")
    works.storage.add_live_segment(leg.uuid, segment())
    await told(works, "answer=no", f"linkedid={CALL}", f"uuid={leg.uuid}")
    assert works.storage.call(leg.uuid) == works.storage.call(CALL)
    assert works.storage.call(CALL).consent == "no"
    assert WORDS not in everything(works)
    assert await told(works, "answer=ask", f"uuid={leg.uuid}") == {"CALLCORE_CONSENT": "no"}
    await told(works, "answer=no", f"linkedid={CALL}", "uuid=../x")
    with pytest.raises(NotFound):
        works.storage.call("../x")


async def test_an_answer_that_is_none_changes_nothing(works: Works) -> None:
    assert await told(works, "answer=9", f"linkedid={CALL}") == {"CALLCORE_CONSENT": ""}
    assert await told(works, f"linkedid={CALL}") == {"CALLCORE_CONSENT": ""}
    with works.storage.database.connection():
        assert not consent_rows.refused_among(works.storage.database, [CALL])


async def test_a_no_is_heard_even_if_the_database_does_not_answer(
    works: Works, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Fault held off: the dialplan went on to stream a call whose caller had just refused.
    tries = []
    claim = call_rows.claim

    def away(*args: Any, **kwargs: Any) -> str:
        tries.append(1)
        if len(tries) == 1:
            raise OSError("away")
        return claim(*args, **kwargs)

    monkeypatch.setattr(call_rows, "claim", away)
    answer = await told(works, "answer=no", f"linkedid={CALL}", f"caller={NUMBER}")
    assert answer == {"CALLCORE_CONSENT": "no"}
    assert len(tries) > 1
    assert works.storage.call(CALL).consent == "no"
