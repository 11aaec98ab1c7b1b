"""What a request says: the same, by whichever way it says it."""

import base64
import logging
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from callcore.agi import said as agi_said
from callcore.agi.protocol import Connection, Environment
from callcore.agi.said import Said, completed, read
from callcore.agi.server import AgiServer, Request
from callcore.calls import CallFacts, Disposition, Ending
from tests.support.agi import Dialplan, running
from tests.support.recordings import make_settings

ID = "1795362086.75"


def request(*arguments: str, script: str = "hangup", **variables: str) -> Request:
    """Return a request that will not be answered."""
    known = {"network_script": script, **variables}
    known |= {f"arg_{n}": text for n, text in enumerate(arguments, 1)}
    nobody: list[None] = [None, None]
    return Request(Environment(known), Connection(), *nobody)  # type: ignore[arg-type]


def packed(query: str) -> str:
    """Return what the dialplan makes of a query: base64 that has lost its padding."""
    return base64.b64encode(query.encode()).decode().rstrip("=")


def test_three_ways_of_saying_it_end_in_the_same() -> None:
    query = "uniqueid=7.5&queue=help%20line&file=/a/b.wav&file-agent=c.wav&dialstatus=BUSY&uuid=x"
    pairs = ["uniqueid=7.5", "queue=help line", "file=/a/b.wav", "file-agent=c.wav"]
    expected = Said(
        CallFacts(uniqueid="7.5", queue="help line"),
        (("mixed", "/a/b.wav"), ("agent", "c.wav")),
        {"dialstatus": "BUSY", "uuid": "x"},
    )
    assert read(request(*pairs, "dialstatus=BUSY", "uuid=x")) == expected
    assert read(request(script=f"hangup?{query}")) == expected
    for relayed in (
        read(request(f"says={packed(query)}")),
        read(request(script=f"hangup?says={packed(query)}")),
    ):
        assert relayed.is_relayed
        assert (relayed.facts, relayed.files) == (expected.facts, expected.files)
        assert relayed.words == expected.words


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60))
@example("\x8300~")  # its base64 ends with a plus
def test_any_text_survives_the_way_through_the_dialplan(text: str) -> None:
    word = packed(f"queue={quote(text, safe='')}")
    for sent in (request(f"says={word}"), request(script=f"x?says={word}")):
        assert read(sent).facts.queue == text


def test_the_channel_that_reports_for_another_is_not_the_call() -> None:
    helper = {"uniqueid": "9.9", "callerid": "0700111222", "dnid": "5"}
    assert read(request(**helper)).facts == CallFacts(
        uniqueid="9.9", caller="0700111222", callee="5"
    )
    assert read(request(f"says={packed('linkedid=7.5')}", **helper)).facts == CallFacts(
        linkedid="7.5"
    )
    assert read(request("says=", **helper)).facts == CallFacts()


@pytest.mark.parametrize("word", ["%%%", "07001", "äöü", "QUJD\0", "x" * 8001])
def test_a_word_that_is_no_base64_is_left_out(word: str, caplog: pytest.LogCaptureFixture) -> None:
    assert read(request(f"says={word}", "queue=help")).facts == CallFacts(queue="help")
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert word not in str(vars(record))


def test_base64_of_anything_is_read_as_far_as_it_goes(caplog: pytest.LogCaptureFixture) -> None:
    word = base64.b64encode(b"\xff\xfe&queue=\xff&=&colour=red&says=cXVldWU9eA").decode()
    assert read(request(f"says={word}")).facts == CallFacts(queue="\ufffd")
    [record] = caplog.records
    assert (record.message, vars(record)["num"]) == (
        "the dialplan passed what is no fact of a call",
        2,
    )
    assert "red" not in str(vars(record))


def test_no_number_shows_in_what_is_logged_of_it() -> None:
    assert repr(read(request(callerid="0700111222"))) == "Said(0 files, 0 words)"


@pytest.mark.parametrize(
    ("words", "disposition"),
    [
        ("dialstatus=ANSWER&cdr=NO ANSWER", Disposition.ANSWERED),
        ("dialstatus=BUSY", Disposition.BUSY),
        ("dialstatus=NOANSWER&cdr=ANSWERED", Disposition.NO_ANSWER),
        ("dialstatus=CANCEL", Disposition.ABANDONED),
        ("dialstatus=CHANUNAVAIL", Disposition.FAILED),
        ("dialstatus=CONGESTION", Disposition.FAILED),
        ("queuestatus=TIMEOUT&cdr=ANSWERED", Disposition.NO_ANSWER),
        ("queuestatus=JOINEMPTY&dialstatus=BUSY", Disposition.FAILED),
        ("queuestatus=FULL", Disposition.FAILED),
        ("queuestatus=TIMEOUT&dialstatus=ANSWER", Disposition.ANSWERED),
        ("queuestatus=CONTINUE&dialstatus=BUSY", Disposition.ANSWERED),
        ("queuestatus=TIMEOUT&abandoned=TRUE", Disposition.NO_ANSWER),
        ("answered=yes&dialstatus=NOANSWER", Disposition.ANSWERED),
        ("answered=yes&queuestatus=TIMEOUT&abandoned=TRUE", Disposition.ANSWERED),
        ("answered=no&dialstatus=BUSY", Disposition.BUSY),
        ("abandoned=TRUE&cdr=ANSWERED", Disposition.ABANDONED),
        ("abandoned=FALSE&cdr=ANSWERED", Disposition.ANSWERED),
        ("cdr=NO ANSWER", Disposition.NO_ANSWER),
        ("cdr=BUSY", Disposition.BUSY),
        ("cdr=FAILED", Disposition.FAILED),
        ("dialstatus=WHATEVER", None),
        ("dialstatus=", None),
        ("", None),
    ],
)
def test_how_a_call_ended_is_read_from_what_asterisk_calls_it(
    words: str, disposition: Disposition | None
) -> None:
    assert read(request(f"says={packed(words)}")).ending == Ending(disposition)


def test_moments_of_the_end_are_read_as_asterisk_writes_them() -> None:
    said = read(request("answered_at=1795362090.25", "ended_at=1795362100", "cdr="))
    assert said.ending == Ending(
        None,
        datetime(2026, 11, 22, 15, 41, 30, 250_000, tzinfo=UTC),
        datetime(2026, 11, 22, 15, 41, 40, tzinfo=UTC),
    )
    assert read(request("answered_at=0.000000", "ended_at=soon")).ending == Ending()


async def test_only_the_calls_own_channel_is_asked(tmp_path: Path) -> None:
    found: list[Said] = []

    async def route(request: Request) -> None:
        found.append(await completed(request, read(request), with_file=True))

    async def asked(server: AgiServer, *arguments: str) -> list[str]:
        dialplan = await Dialplan.connect(server.address)
        dialplan.greet("x", *arguments)
        return await dialplan.told({"linkedid": "7.1", "MIXMONITOR": "/a.wav"})

    async with running(make_settings(tmp_path), {"x": route}) as server:
        assert len(await asked(server)) == 2
        assert await asked(server, f"says={packed('uniqueid=7.5')}") == []
        assert await asked(server, "linkedid=7.4", "file=b.wav") == []
    assert [each.facts.linkedid for each in found] == ["7.1", None, "7.4"]
    assert [each.files for each in found] == [(("mixed", "/a.wav"),), (), (("mixed", "b.wav"),)]


async def test_a_channel_that_is_gone_or_says_nonsense_leaves_what_was_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[Said] = []

    async def route(request: Request) -> None:
        found.append(await completed(request, read(request)))

    monkeypatch.setattr(agi_said, "ASK_S", 0.05)
    async with running(make_settings(tmp_path), {"x": route}) as server:
        for reply in (b"", b"nonsense\n"):
            dialplan = await Dialplan.connect(server.address)
            dialplan.greet("x", "queue=help")
            assert "linkedid" in await dialplan.line()
            dialplan.send(reply)
            await dialplan.closed()
    assert [each.facts for each in found] == [CallFacts(uniqueid=ID, queue="help")] * 2
