"""Endings as Asterisk tells them, by the routes ``missed`` and ``hangup``; where files lie."""

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from callcore import settling, tables
from callcore.agi import daemon
from callcore.agi.reports import Reports
from callcore.agi.server import AgiServer
from callcore.calls import CallState, Disposition, RecordingState
from callcore.errors import NotFound
from callcore.storage import Storage
from tests.support.agi import PATIENCE_S, Dialplan, running
from tests.support.databases import Clock, clock, database_url, storage
from tests.support.recordings import Works, make_settings, write_wav
from tests.test_agi_said import packed

__all__ = ["clock", "database_url", "storage"]

ID = "1795362086.75"
LINKED = "1795362086.70"
#: Seconds since 1970 at which LINKED's channel was made.
START = 1795362086


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    folder = tmp_path / "spool"
    folder.mkdir()
    return folder


@pytest.fixture
def works(storage: Storage, tmp_path: Path, spool: Path, clock: Clock) -> Works:
    clock.moment = datetime.fromtimestamp(START + 60, UTC)
    return Works(storage, make_settings(tmp_path / "state", spool_dir=spool))


@pytest.fixture
def reports(works: Works) -> Iterator[Reports]:
    made = Reports(works.waker)
    yield made
    assert made.close(PATIENCE_S)


@asynccontextmanager
async def serving(works: Works, reports: Reports) -> AsyncIterator[AgiServer]:
    routes = daemon.routes(works.storage, works.settings, reports, reports)
    async with running(works.settings, routes) as server:
        yield server


async def tell(server: AgiServer, route: str, query: str) -> list[str]:
    """Report as callcore's dialplan does; return what was asked back."""
    dialplan = await Dialplan.connect(server.address)
    # It comes from a helper channel, whose id and number are not the call's.
    dialplan.greet(route, f"says={packed(query)}", uniqueid="1795362086.99", callerid="tell")
    return await dialplan.told({})


def ends_told(works: Works) -> list[str]:
    rows = works.storage.database.all(tables.Delivery.select())
    return [row["payload"]["data"]["disposition"] for row in rows if row["type"] == "call.ended"]


async def test_a_missed_call_that_was_never_seen_is_on_record_once(
    works: Works, reports: Reports, clock: Clock
) -> None:
    query = (
        f"linkedid={LINKED}&uniqueid={LINKED}&caller=0700111222&callee=6001&queue=help"
        f"&dialstatus=NOANSWER&cdr=NO%20ANSWER&ended_at={START + 25}.5"
    )
    async with serving(works, reports) as server:
        for _ in range(2):
            assert await tell(server, "missed", query) == []
            clock.move(9)
    [call], _ = works.storage.calls(None, 9)
    assert (call.call_id, call.state) == (LINKED, CallState.MISSED)
    assert call.disposition is Disposition.NO_ANSWER
    assert call.started_at == datetime.fromtimestamp(START, UTC)
    assert call.duration_s == 25.5
    assert (call.facts.caller, call.facts.callee, call.facts.queue) == (
        "0700111222",
        "6001",
        "help",
    )
    assert works.storage.recordings(None, 9)[0] == []
    assert ends_told(works) == ["no-answer"]
    with pytest.raises(NotFound):
        works.storage.call("1795362086.99")


async def test_the_route_says_missed_where_the_dialplan_does_not_say_how(
    works: Works, reports: Reports
) -> None:
    async with serving(works, reports) as server:
        await tell(server, "missed", f"uniqueid={ID}")
    call = works.storage.call(ID)
    assert (call.state, call.disposition) == (CallState.MISSED, Disposition.NO_ANSWER)


async def test_an_answered_call_is_not_made_by_the_report_that_it_was_not_missed(
    works: Works, reports: Reports
) -> None:
    async with serving(works, reports) as server:
        await tell(server, "missed", f"uniqueid={ID}&dialstatus=ANSWER")
        await tell(server, "hangup", f"uniqueid={ID}&dialstatus=ANSWER")
    assert works.storage.calls(None, 9)[0] == []


async def test_a_missed_call_without_an_id_is_told_in_the_log(
    works: Works, reports: Reports, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(works, reports) as server:
        await tell(server, "missed", "dialstatus=BUSY&caller=0700111222")
    assert works.storage.calls(None, 9)[0] == []
    assert any("without an id" in record.message for record in caplog.records)
    assert "0700" not in str([vars(record) for record in caplog.records])


async def test_a_hangup_of_a_call_that_nobody_answered_makes_it(
    works: Works, reports: Reports
) -> None:
    async with serving(works, reports) as server:
        await tell(server, "hangup", f"uniqueid={ID}&abandoned=TRUE&cdr=ANSWERED")
    call = works.storage.call(ID)
    assert (call.state, call.disposition) == (CallState.MISSED, Disposition.ABANDONED)


async def test_a_hangup_with_a_recording_tells_the_end_too(
    works: Works, reports: Reports, spool: Path
) -> None:
    write_wav(spool / f"{ID}.wav")
    query = (
        f"linkedid={LINKED}&uniqueid={ID}&file={spool}/{ID}.wav&dialstatus=ANSWER"
        f"&answered_at={START + 5}&ended_at={START + 30}"
    )
    async with serving(works, reports) as server:
        for _ in range(2):
            await tell(server, "hangup", query)
        await tell(server, "missed", f"uniqueid={ID}&dialstatus=BUSY")
    call = works.storage.call(ID)
    assert (call.state, call.disposition) == (CallState.ENDED, Disposition.ANSWERED)
    assert call.answered_at == datetime.fromtimestamp(START + 5, UTC)
    assert call.ended_at == datetime.fromtimestamp(START + 30, UTC)
    assert ends_told(works) == ["answered"]
    assert len(works.storage.recordings(None, 9)[0]) == 1


async def test_a_moment_ahead_of_time_is_none(works: Works, reports: Reports) -> None:
    ahead = START + 3 * 86400
    async with serving(works, reports) as server:
        await tell(
            server, "missed", f"uniqueid={ID}&dialstatus=BUSY&ended_at={ahead}&answered_at={ahead}"
        )
    call = works.storage.call(ID)
    assert (call.ended_at, call.answered_at) == (works.storage.clock(), None)


# ---- where files lie


@pytest.mark.parametrize(
    "path",
    [
        "/mnt/pbx/monitor/2026/11/{ID}.wav",
        "/mnt/pbx//monitor/./2026/11/{ID}.wav",
        "//mnt/pbx/monitor/2026/x/../11/{ID}.wav",
        "2026/11/{ID}.wav",
        "{spool}/2026/11/{ID}.wav",
    ],
)
async def test_a_path_is_read_as_the_pbx_names_it(
    works: Works, reports: Reports, spool: Path, tmp_path: Path, path: str
) -> None:
    works.settings = make_settings(
        tmp_path / "state", spool_dir=spool, pbx_spool_dir="/mnt/pbx/monitor/"
    )
    works.__post_init__()
    write_wav(spool / "2026" / "11" / f"{ID}.wav")
    async with serving(works, reports) as server:
        await tell(server, "hangup", f"uniqueid={ID}&file={path.format(ID=ID, spool=spool)}")
    works.run()
    [recording], _ = works.storage.recordings(None, 9)
    assert recording.state is RecordingState.STORED


@pytest.mark.parametrize(
    "path",
    [
        "/mnt/pbx/monitor-old/{ID}.wav",
        "/mnt/pbx/{ID}.wav",
        "/mnt/pbx/monitor/../secret/{ID}.wav",
        "/mnt/pbx/monitor/link/{ID}.wav",
        "/mnt/pbx/monitor",
        "mnt/pbx/monitor/{ID}.wav",
    ],
)
async def test_a_path_beside_the_pbxs_folder_is_not_read(
    works: Works,
    reports: Reports,
    spool: Path,
    tmp_path: Path,
    path: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    works.settings = make_settings(
        tmp_path / "state", spool_dir=spool, pbx_spool_dir="/mnt/pbx/monitor"
    )
    works.__post_init__()
    write_wav(tmp_path / "secret" / f"{ID}.wav")
    write_wav(spool / f"{ID}.txt")
    (spool / "link").symlink_to(tmp_path / "secret")
    async with serving(works, reports) as server:
        await tell(server, "hangup", f"uniqueid={ID}&file={path.format(ID=ID)}")
    works.run()
    assert works.files() == []
    refused = [r for r in caplog.records if "outside of CALLCORE_SPOOL_DIR" in r.message]
    # A relative path is one below the spool folder, where nothing lies.
    assert len(refused) == (0 if path.startswith("mnt") else 1)
    assert works.storage.call(ID).call_id == ID


async def test_a_file_that_never_comes_is_a_call_with_a_missing_recording_and_the_reason(
    works: Works, reports: Reports, spool: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    query = f"linkedid={LINKED}&uniqueid={ID}&file={spool}/{ID}.wav&dialstatus=ANSWER&caller=070"
    async with serving(works, reports) as server:
        await tell(server, "hangup", query)
    works.run()
    [recording], _ = works.storage.recordings(None, 9)
    assert recording.state is RecordingState.EXPECTED
    clock.move(settling.ABSENT_S + 1)
    works.run()
    [recording] = works.storage.recordings_of(LINKED)
    assert recording.state is RecordingState.MISSING
    assert recording.reason is not None
    assert "no file of this recording can be found" in recording.reason
    call = works.storage.call(LINKED)
    assert (call.state, call.disposition) == (CallState.ENDED, Disposition.ANSWERED)
    # It may come after all.
    write_wav(spool / f"{ID}.wav")
    async with serving(works, reports) as server:
        await tell(server, "hangup", query)
    works.run()
    assert works.storage.recording(recording.audio_id).state is RecordingState.STORED
