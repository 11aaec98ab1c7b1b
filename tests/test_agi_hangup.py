"""What Asterisk says at the end of a call: on record before it goes on, whatever fails."""

import asyncio
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import peewee
import pytest

from callcore import intake
from callcore.agi import reports as agi_reports
from callcore.agi.hangup import HangupRoute
from callcore.agi.reports import Reports
from callcore.agi.server import AgiServer
from callcore.calls import CallFacts, Media, RecordingState
from callcore.errors import NotFound
from callcore.settings import Address
from callcore.storage import Storage
from tests.support.agi import PATIENCE_S, Dialplan, running
from tests.support.databases import Clock, clock, database_url, storage
from tests.support.recordings import Works, make_settings, write_wav
from tests.support.site import free_port

__all__ = ["clock", "database_url", "storage"]

ID = "1795362086.75"
LINKED = "1795362086.70"


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    folder = tmp_path / "spool"
    folder.mkdir()
    return folder


@pytest.fixture
def works(storage: Storage, tmp_path: Path, spool: Path, clock: Clock) -> Works:
    clock.moment = datetime(2026, 11, 22, 21, 30, tzinfo=UTC)
    return Works(storage, make_settings(tmp_path / "state", spool_dir=spool))


@pytest.fixture
def reports(works: Works) -> Iterator[Reports]:
    made = Reports(works.waker)
    yield made
    assert made.close(PATIENCE_S)


@asynccontextmanager
async def serving(works: Works, reports: Reports) -> AsyncIterator[AgiServer]:
    route = HangupRoute(works.storage, works.settings, reports)
    async with running(works.settings, {"hangup": route.answer}) as server:
        yield server


async def hang_up(
    server: AgiServer, *arguments: str, script: str = "hangup", **variables: str
) -> list[str]:
    """Run the hook as a dialplan that knows nothing more; return what it was asked."""
    dialplan = await Dialplan.connect(server.address)
    dialplan.greet(script, *arguments, **variables)
    return await dialplan.told({})


async def test_the_recording_is_on_record_when_asterisk_goes_on(
    works: Works, reports: Reports, spool: Path
) -> None:
    for leg in ("", "-caller", "-agent"):
        write_wav(spool / f"{ID}{leg}.wav")
    async with serving(works, reports) as server:
        asked = await hang_up(
            server,
            f"linkedid={LINKED}",
            f"file={spool}/{ID}.wav",
            f"file-caller={spool}/{ID}-caller.wav",
            "queue=help line",
            "agent=Ada",
            "language=sw",
            "callee=",
            script="hangup?direction=in&queue=other",
            callerid="0700111222",
            dnid="unknown",
            language="en",
            extension="s",
        )
        [recording], _ = works.storage.recordings(None, 9)
    assert asked == []
    assert recording.sources == ("agi",)
    facts = recording.facts
    assert (facts.uniqueid, facts.linkedid) == (ID, LINKED)
    assert (facts.caller, facts.callee, facts.agent) == ("0700111222", None, "Ada")
    assert (facts.queue, facts.direction, facts.language) == ("help line", "in", "sw")
    assert works.storage.call(LINKED).started_at == datetime(2026, 11, 22, 15, 41, 26, tzinfo=UTC)
    assert reports.close(PATIENCE_S)
    assert works.waker.woken == [("settle", recording.audio_id)]
    works.run()
    [stored], _ = works.storage.recordings(None, 9)
    assert [media.role for media in stored.media] == ["mixed", "caller", "agent"]


@pytest.mark.parametrize("has_file", [True, False])
async def test_the_stream_whose_registration_was_lost_is_of_this_call(
    works: Works, reports: Reports, spool: Path, has_file: bool
) -> None:
    # Fault held off: what was heard of the call stood beside it, as a call of its own.
    leg = works.storage.add_unregistered_leg("12345678-1234-4234-8234-123456789012", "daemon-1")
    file = [f"file={write_wav(spool / f'{ID}.wav')}"] if has_file else []
    async with serving(works, reports) as server:
        await hang_up(server, f"linkedid={LINKED}", f"uuid={leg.uuid}", *file)
        await hang_up(server, f"linkedid={LINKED}", "uuid=../x", *file)
    call = works.storage.call(LINKED)
    assert [each.uuid for each in call.legs] == [leg.uuid]
    assert len(works.storage.recordings_of(LINKED)) == has_file
    with pytest.raises(NotFound):
        works.storage.call("../x")


async def test_what_the_dialplan_does_not_pass_is_asked_for(
    works: Works, reports: Reports, spool: Path
) -> None:
    path = write_wav(spool / f"{ID}.wav")
    async with serving(works, reports) as server:
        dialplan = await Dialplan.connect(server.address)
        dialplan.greet("hangup")
        asked = await dialplan.told({"linkedid": LINKED, "MIXMONITOR_FILENAME": str(path)})
    assert asked == [
        'GET FULL VARIABLE "${CHANNEL(linkedid)}"',
        "GET VARIABLE MIXMONITOR_FILENAME",
    ]
    [recording], _ = works.storage.recordings(None, 9)
    assert recording.facts.linkedid == LINKED
    works.run()
    assert works.storage.recording(recording.audio_id).state is RecordingState.STORED


async def test_an_asterisk_that_does_not_answer_is_not_waited_for(
    works: Works, reports: Reports, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("callcore.agi.said.ASK_S", 0.05)
    async with serving(works, reports) as server:
        dialplan = await Dialplan.connect(server.address)
        dialplan.greet("hangup", f"file={ID}.wav")
        assert "linkedid" in await dialplan.line()
        assert await dialplan.closed() == b""
    [recording], _ = works.storage.recordings(None, 9)
    assert recording.facts == CallFacts(uniqueid=ID)


@pytest.mark.parametrize("order", ["agi first", "spool first"])
async def test_the_hook_and_the_spool_bring_one_recording(
    works: Works, reports: Reports, spool: Path, order: str
) -> None:
    name = f"q-6001-0700111222-20261122-202126-{ID}.wav"
    path = write_wav(spool / "2026" / "11" / "22" / name)

    def scan() -> None:
        media = [Media("mixed", str(path))]
        intake.accept_recording(works.storage, works.settings, CallFacts(), "spool", media)

    async with serving(works, reports) as server:
        if order == "spool first":
            scan()
        # The hook runs on another channel of the call than the recorded one.
        await hang_up(server, f"linkedid={LINKED}", f"file={path}", uniqueid="1795362086.99")
        if order == "agi first":
            scan()
    works.run()
    [recording], _ = works.storage.recordings(None, 9)
    assert set(recording.sources) == {"agi", "spool"}
    assert recording.facts.queue == "6001"
    assert works.storage.call("1795362086.99").call_id == works.storage.call(ID).call_id


async def test_files_outside_the_spool_are_not_read_but_the_call_is_told(
    works: Works,
    reports: Reports,
    spool: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    secret = write_wav(tmp_path / "secret" / f"{ID}.wav")
    (spool / "link").symlink_to(secret.parent)
    paths = (str(secret), "/etc/passwd", f"{spool}/../secret/{ID}.wav", f"link/{ID}.wav", ".")
    async with serving(works, reports) as server:
        for number, path in enumerate(paths):
            await hang_up(
                server, f"linkedid=179536208{number}.1", f"file={path}", uniqueid=f"{number}{ID}"
            )
    # Three have the name of one recording.
    assert len(works.storage.recordings(None, 9)[0]) == 3
    works.run()
    assert works.files() == []
    assert {record.levelname for record in caplog.records if "outside" in record.message} == {
        "WARNING"
    }
    assert "secret" not in str([vars(record) for record in caplog.records])
    # The spool finds it under its own path: the same recording.
    inside = write_wav(spool / f"{ID}.wav")
    media = [Media("mixed", str(inside))]
    facts = CallFacts(linkedid="1795362080.1")
    intake.accept_recording(works.storage, works.settings, facts, "spool", media)
    assert len(works.storage.recordings(None, 9)[0]) == 3


async def test_a_spool_that_the_pbx_reaches_over_a_link_is_the_same_folder(
    works: Works, reports: Reports, spool: Path, tmp_path: Path
) -> None:
    write_wav(spool / "x" / f"{ID}.wav")
    (tmp_path / "monitor").symlink_to(spool)
    async with serving(works, reports) as server:
        await hang_up(server, f"linkedid={LINKED}", f"file={tmp_path}/monitor/x/{ID}.wav")
    works.run()
    [recording], _ = works.storage.recordings(None, 9)
    assert recording.state is RecordingState.STORED


async def test_a_call_without_a_recording_gets_its_facts_and_no_recording(
    works: Works, reports: Reports
) -> None:
    leg = "3f2504e0-4f89-41d3-9a0c-0305e82c3301"
    works.storage.add_unregistered_leg(leg, "daemon-1")
    async with serving(works, reports) as server:
        asked = await hang_up(server, leg, f"linkedid={LINKED}", "queue=help", "colour=red")
        assert asked == ["GET VARIABLE MIXMONITOR_FILENAME"]
        await hang_up(server, "linkedid=1795362000.1", uniqueid="1795362000.1")
    call = works.storage.call(leg)
    assert (call.facts.queue, works.storage.call(LINKED)) == ("help", call)
    assert works.storage.recordings(None, 9)[0] == []
    assert [each.call_id for each in works.storage.calls(None, 9)[0]] == [call.call_id]


async def test_facts_that_cannot_be_used_are_left_out(
    works: Works, reports: Reports, spool: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(works, reports) as server:
        await hang_up(
            server,
            "linkedid=../../etc",
            "direction=sideways",
            f"queue={'x' * 300}",
            "agent=A\0B",
            "started_at=yesterday",
            f"file=a\0b/{ID}.wav",
            f"file-nobody={ID}.wav",
        )
    [recording], _ = works.storage.recordings(None, 9)
    assert recording.facts == CallFacts(uniqueid=ID)
    [record] = [record for record in caplog.records if "cannot be used" in record.message]
    assert vars(record)["facts"] == "agent direction linkedid queue"


async def test_a_database_that_is_away_does_not_keep_asterisk_waiting(
    works: Works,
    reports: Reports,
    spool: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(agi_reports, "ANSWER_S", 0.05)
    monkeypatch.setattr(agi_reports, "RETRY_S", (0.01, 0.01))
    real = works.storage.database.transaction
    away = threading.Event()
    away.set()

    def transaction() -> object:
        if away.is_set():
            raise peewee.OperationalError("connection refused for 0700123456")
        return real()

    monkeypatch.setattr(works.storage.database, "transaction", transaction)
    async with serving(works, reports) as server:
        for number in range(3):
            await hang_up(server, f"linkedid={number}{LINKED}", f"file={number}{ID}.wav")
        assert server.counts == {"answered": 3}
        away.clear()
    assert reports.close(PATIENCE_S)
    assert len(works.storage.recordings(None, 9)[0]) == 3
    assert len(works.waker.woken) == 3
    messages = [record.message for record in caplog.records]
    assert messages.count("the database does not answer; a report of the PBX waits in memory") == 3
    assert messages.count("database away") == messages.count("database is back") == 1
    assert "0700" not in str([vars(record) for record in caplog.records])


async def test_what_waits_in_memory_at_the_end_is_counted(
    works: Works, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(agi_reports, "ANSWER_S", 0.01)
    monkeypatch.setattr(agi_reports, "MAX_WAITING", 2)
    reports = Reports(works.waker)

    def away() -> None:
        raise ConnectionError("away")

    assert [await reports.put(away) for _ in range(3)] == [False] * 3
    assert await asyncio.to_thread(reports.close, 0.01)
    assert not await reports.put(away)
    lost = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [vars(record).get("num_reports") for record in lost] == [None, 2, None]


async def test_a_report_that_fails_holds_up_no_other(
    works: Works, reports: Reports, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise ValueError("0700123456")

    assert not await reports.put(fail)
    assert await reports.put(lambda: None)
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "0700" not in str(vars(record))


def test_the_command_commits_before_it_answers_even_if_it_is_killed_then(
    database_url: str, tmp_path: Path
) -> None:
    storage = Storage(database_url)
    storage.migrate()
    address = Address("127.0.0.1", free_port())
    environ = {
        **{k: v for k, v in os.environ.items() if not k.startswith("CALLCORE_")},
        "CALLCORE_STATE_DIR": str(tmp_path),
        "CALLCORE_DATABASE_URL": database_url,
        "CALLCORE_AGI_BIND": str(address),
    }
    command = [sys.executable, "-m", "callcore.cli", "agi"]

    async def report() -> None:
        while True:
            try:
                dialplan = await Dialplan.connect(address)
                break
            except OSError:  # it is starting
                assert time.monotonic() < until
                await asyncio.sleep(0.05)
        dialplan.greet("hangup", f"linkedid={LINKED}", f"file={tmp_path}/spool/{ID}.wav")
        await dialplan.told({})

    until = time.monotonic() + 60
    with subprocess.Popen(command, env=environ) as process:
        asyncio.run(report())
        process.kill()
    assert len(storage.recordings(None, 9)[0]) == 1
    until = time.monotonic() + 60
    with subprocess.Popen(command, env=environ) as process:
        asyncio.run(report())
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert len(storage.recordings(None, 9)[0]) == 1
    storage.close()
