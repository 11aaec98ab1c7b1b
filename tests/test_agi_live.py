"""The routes ``live`` and ``ping``: who will speak, told before the stream; nobody waits for it."""

import logging
import threading
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import peewee
import pytest

from callcore import intake
from callcore.agi import daemon
from callcore.agi import reports as agi_reports
from callcore.agi.reports import Reports
from callcore.agi.server import AgiServer
from callcore.calls import CallFacts, CallState, LegState
from callcore.consent import KEY_FILE, Consent
from callcore.errors import Refused
from callcore.storage import Storage
from tests.support.agi import PATIENCE_S, Dialplan, running
from tests.support.databases import Clock, clock, database_url, storage
from tests.support.recordings import Works, make_settings
from tests.test_agi_said import packed

__all__ = ["clock", "database_url", "storage"]

LINKED = "1795362086.70"


@pytest.fixture
def works(storage: Storage, tmp_path: Path) -> Works:
    return Works(storage, make_settings(tmp_path / "state"))


@pytest.fixture
def registrations(works: Works) -> Iterator[Reports]:
    made = Reports(works.waker)
    yield made
    assert made.close(PATIENCE_S)


@asynccontextmanager
async def serving(works: Works, registrations: Reports) -> AsyncIterator[AgiServer]:
    routes = daemon.routes(works.storage, works.settings, registrations, registrations)
    async with running(works.settings, routes) as server:
        yield server


def unquoted(command: str) -> tuple[str, str]:
    verb, name, value = command.rsplit(" ", 2)
    assert verb == "SET VARIABLE"
    return name, value.strip('"')


async def announce(server: AgiServer, *arguments: str, script: str = "live") -> dict[str, str]:
    """Ask as a dialplan does; return the variables that it was given."""
    dialplan = await Dialplan.connect(server.address)
    dialplan.greet(script, *arguments)
    asked = await dialplan.told({})
    return dict(unquoted(each) for each in asked if each.startswith("SET"))


async def test_a_leg_is_registered_and_its_stream_taken(
    works: Works, registrations: Reports
) -> None:
    own = str(uuid.uuid4())
    query = (
        f"uuid={own}&leg=caller&linkedid={LINKED}&uniqueid={LINKED}&caller=0700111222&callee=6001"
        "&queue=help%20line&agent=Ada&language=sw&direction=in"
    )
    async with serving(works, registrations) as server:
        found = await announce(server, f"says={packed(query)}")
    assert found == {
        "CALLCORE_UUID": own,
        "CALLCORE_CALL": LINKED,
        "CALLCORE_STREAM": "yes",
        "CALLCORE_CONSENT": "",
    }
    call = works.storage.call(own)
    facts = call.facts
    assert (call.call_id, call.state) == (LINKED, CallState.LIVE)
    assert (facts.caller, facts.callee, facts.agent) == ("0700111222", "6001", "Ada")
    assert (facts.queue, facts.direction, facts.language) == ("help line", "in", "sw")
    leg = intake.open_leg(works.storage, works.settings, own)
    assert (leg.leg, leg.state) == ("caller", LegState.LIVE)


async def test_a_uuid_is_made_and_the_linkedid_asked_for(
    works: Works, registrations: Reports
) -> None:
    async with serving(works, registrations) as server:
        dialplan = await Dialplan.connect(server.address)
        dialplan.greet("live?leg=agent")
        asked = await dialplan.told({"linkedid": LINKED})
    assert asked[0] == 'GET FULL VARIABLE "${CHANNEL(linkedid)}"'
    own = dict(unquoted(each) for each in asked[1:])["CALLCORE_UUID"]
    assert str(uuid.UUID(own)) == own
    assert works.storage.call(LINKED).legs[0].uuid == own


async def test_the_legs_of_a_call_are_told_apart(works: Works, registrations: Reports) -> None:
    async with serving(works, registrations) as server:
        for name in ("caller", "agent", "agent", "caller"):
            found = await announce(server, f"leg={name}", f"linkedid={LINKED}")
            assert found["CALLCORE_CALL"] == LINKED
    names = sorted(leg.leg for leg in works.storage.call(LINKED).legs)
    assert names == ["agent", "agent-2", "caller", "caller"]


async def test_a_stream_of_both_parties_is_two_legs(works: Works, registrations: Reports) -> None:
    async with serving(works, registrations) as server:
        found = await announce(server, "leg=stereo", f"linkedid={LINKED}")
    legs = {leg.leg: leg for leg in works.storage.call(LINKED).legs}
    assert legs["caller"].uuid == found["CALLCORE_UUID"]
    assert legs["caller"].right_uuid == legs["agent"].uuid


@pytest.mark.parametrize("own", ["not-a-uuid", "0" * 32])
async def test_what_is_no_uuid_gets_no_stream(
    works: Works, registrations: Reports, own: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(works, registrations) as server:
        found = await announce(server, f"uuid={own}", f"linkedid={LINKED}")
    assert (found["CALLCORE_STREAM"], found["CALLCORE_CALL"]) == ("no", "")
    assert works.storage.calls(None, 9)[0] == []
    reasons = [vars(record).get("reason") for record in caplog.records]
    assert reasons == ["bad-uuid"]


async def test_a_uuid_is_good_for_one_leg(works: Works, registrations: Reports) -> None:
    own = str(uuid.uuid4())
    async with serving(works, registrations) as server:
        answers = [await announce(server, f"uuid={own}", "linkedid=7.1") for _ in range(2)]
    assert [each["CALLCORE_STREAM"] for each in answers] == ["yes", "no"]


async def test_facts_that_cannot_be_used_cost_no_stream(
    works: Works, registrations: Reports, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(works, registrations) as server:
        found = await announce(server, "linkedid=../x", "language=klingon", "leg=nobody", "queue=q")
    assert found["CALLCORE_STREAM"] == "yes"
    [leg] = works.storage.call(found["CALLCORE_UUID"]).legs
    assert leg.leg == "mixed"
    assert "klingon" not in str([vars(record) for record in caplog.records])


async def test_a_caller_who_refused_analysis_is_not_streamed(
    works: Works, registrations: Reports
) -> None:
    Consent(works.storage, works.settings).refuse(
        CallFacts(linkedid="1795362000.1", caller="0700111222")
    )
    async with serving(works, registrations) as server:
        streams = [str(uuid.uuid4()) for _ in range(2)]
        by_number = await announce(
            server, f"uuid={streams[0]}", f"linkedid={LINKED}", "caller=0700111222"
        )
        # The agent's leg of the same call comes without the number.
        by_call = await announce(server, "leg=agent", f"uuid={streams[1]}", f"linkedid={LINKED}")
        other = await announce(server, "leg=caller", "uniqueid=8.8", "caller=0700333444")
    for each in (by_number, by_call):
        assert (each["CALLCORE_STREAM"], each["CALLCORE_CONSENT"]) == ("no", "no")
        assert each["CALLCORE_CALL"] == LINKED
    call = works.storage.call(LINKED)
    assert (call.legs, call.consent, call.facts.caller) == ((), "no", None)
    # Streams that come all the same are of this call, and not heard.
    for each in streams:
        assert works.storage.call(each) == call
        with pytest.raises(Refused) as error:
            intake.open_leg(works.storage, works.settings, each)
        assert error.value.code == "consent-refused"
    assert (other["CALLCORE_STREAM"], other["CALLCORE_CONSENT"]) == ("yes", "")


async def test_without_the_key_of_who_refused_nobody_is_streamed(
    works: Works, registrations: Reports, caplog: pytest.LogCaptureFixture
) -> None:
    consent = Consent(works.storage, works.settings)
    consent.refuse(CallFacts(linkedid="1795362000.1", caller="0700111222"))
    (works.settings.state_dir / KEY_FILE).unlink()
    async with serving(works, registrations) as server:
        found = await announce(server, f"linkedid={LINKED}", "caller=0700111222")
    assert (found["CALLCORE_STREAM"], found["CALLCORE_CONSENT"]) == ("no", "")
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "CALLCORE_CONSENT_KEY" in vars(record)["reason"]


@pytest.mark.parametrize(("unregistered", "stream"), [("accept", "yes"), ("refuse", "no")])
@pytest.mark.parametrize("fault", ["away", "stuck"])
async def test_a_database_that_is_away_decides_nothing_and_gets_nothing_later(
    works: Works,
    registrations: Reports,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    unregistered: str,
    stream: str,
    fault: str,
) -> None:
    works.settings = make_settings(tmp_path / "state", unregistered=unregistered)
    monkeypatch.setattr(agi_reports, "ANSWER_S", 0.1)
    real = works.storage.register_leg
    tries: list[str] = []
    proceed = threading.Event()

    def register_leg(*given: object) -> object:
        tries.append(fault)
        if fault == "away":
            raise peewee.OperationalError("connection refused for 0700123456")
        assert proceed.wait(PATIENCE_S)
        return real(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(works.storage, "register_leg", register_leg)
    async with serving(works, registrations) as server:
        # The first holds the thread, the others wait behind it in vain.
        for number in range(3):
            found = await announce(server, f"uniqueid=7.{number}", "leg=caller")
            assert (found["CALLCORE_STREAM"], found["CALLCORE_CALL"]) == (stream, "")
            assert found["CALLCORE_UUID"]
        monkeypatch.setattr(works.storage, "register_leg", real)
        proceed.set()
        monkeypatch.setattr(agi_reports, "ANSWER_S", PATIENCE_S)
        assert (await announce(server, "uniqueid=8.1"))["CALLCORE_STREAM"] == "yes"
    known = {call.call_id for call in works.storage.calls(None, 9)[0]}
    assert known == ({"8.1"} if fault == "away" else {"7.0", "8.1"})
    assert len(tries) == (3 if fault == "away" else 1)
    assert "0700" not in str([vars(record) for record in caplog.records])
    assert {record.levelno for record in caplog.records} <= {logging.WARNING, logging.INFO}


async def test_a_ping_is_answered_and_leaves_nothing(works: Works, registrations: Reports) -> None:
    async with serving(works, registrations) as server:
        dialplan = await Dialplan.connect(server.address)
        dialplan.greet("ping")
        assert await dialplan.closed() == b""
        assert server.counts == {"answered": 1}
    assert works.storage.calls(None, 9)[0] == []


async def test_registrations_do_not_wait_behind_reports_that_wait(
    works: Works, registrations: Reports, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the PBX reported while the database was away is tried again for ever."""
    monkeypatch.setattr(agi_reports, "ANSWER_S", 0.05)
    reports = Reports(works.waker)
    back = threading.Event()

    def away() -> None:
        if not back.is_set():
            raise ConnectionError("away")

    assert not await reports.put(away)
    monkeypatch.setattr(agi_reports, "ANSWER_S", PATIENCE_S)
    routes = daemon.routes(works.storage, works.settings, reports, registrations)
    async with running(works.settings, routes) as server:
        found = await announce(server, f"linkedid={LINKED}")
    assert found["CALLCORE_STREAM"] == "yes"
    back.set()
    assert reports.close(PATIENCE_S)
