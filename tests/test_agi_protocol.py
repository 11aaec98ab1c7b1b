"""The wire: whole, byte by byte, with trailing bytes, and with what no peer should send."""

import contextlib
import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callcore.agi import protocol
from callcore.agi.protocol import (
    MAX_COMMAND,
    MAX_ENVIRONMENT,
    MAX_LINE,
    MAX_REPLY,
    MAX_UNREAD,
    MAX_VARIABLES,
    NEED_DATA,
    Closed,
    Connection,
    Environment,
    Event,
    Hangup,
    Reply,
    quoted,
)
from callcore.errors import LocalProtocolError, RemoteProtocolError

#: As Asterisk 22 sends it from a hangup handler.
HELLO = b"""agi_network: yes
agi_network_script: hangup?x=1
agi_request: agi://127.0.0.1:4573/hangup?x=1
agi_channel: PJSIP/100-00000001
agi_language: en
agi_type: PJSIP
agi_uniqueid: 1795362086.75
agi_version: 22.10.1
agi_callerid: 0700111222
agi_calleridname: J\xf6rg
agi_dnid: 700
agi_rdnis: unknown
agi_context: callcore-hangup
agi_extension: s
agi_priority: 2
agi_enhanced: 0.0
agi_accountcode:\x20
agi_threadid: 139877
agi_arg_1: linkedid=1795362086.70
agi_arg_2: queue=a: b

"""
ASKED = b"GET VARIABLE X\n"

REPLIES: list[tuple[bytes, Reply]] = [
    (b"200 result=0\n", Reply(200, "0")),
    (b"200 result=-1\n", Reply(200, "-1")),
    (b"200 result=\n", Reply(200, "")),
    (b"200 result=1 (a (b) c)\n", Reply(200, "1", "a (b) c")),
    (b"200 result=1 ()\n", Reply(200, "1", "")),
    (b"200 result=1 (two\nlines)\n", Reply(200, "1", "two\nlines")),
    (b"200 result=1 (timeout) endpos=8000\n", Reply(200, "1", "timeout", "endpos=8000")),
    (b"200 result=0 endpos=8000\n", Reply(200, "0", None, "endpos=8000")),
    (
        b"100 result=0 Trying...\n200 result=0 Gosub complete\n",
        Reply(200, "0", None, "Gosub complete"),
    ),
    (b"200\n", Reply(200)),
    (b"510 Invalid or unknown command\n", Reply(510, more="Invalid or unknown command")),
    (
        b"511 Command Not Permitted on a dead channel or intercept routine\n",
        Reply(511, more="Command Not Permitted on a dead channel or intercept routine"),
    ),
    (
        b"520 Invalid command syntax.  Proper usage not available.\n",
        Reply(520, more="Invalid command syntax.  Proper usage not available."),
    ),
    (
        b"520-Invalid command syntax.  Proper usage follows:\n"
        b"Usage: X\n\n  Y\n520 End of proper usage.\n",
        Reply(
            520,
            more="Invalid command syntax.  Proper usage follows:\nUsage: X\n\n  Y\n"
            "520 End of proper usage.",
        ),
    ),
    (
        b"520-Invalid command syntax.  Proper usage follows:\nY520 End of proper usage.\n",
        Reply(
            520,
            more="Invalid command syntax.  Proper usage follows:\nY520 End of proper usage.",
        ),
    ),
]


def drain(connection: Connection) -> list[Event]:
    """Return what is told now, and ask again whenever that is allowed."""
    events: list[Event] = []
    while True:
        if connection.is_ready:
            connection.send("NOOP")
        event = connection.next_event()
        if event is NEED_DATA:
            return events
        assert not isinstance(event, protocol.NeedData)
        events.append(event)


def told(pieces: list[bytes], *, eof: bool = True) -> list[Event]:
    connection = Connection()
    events: list[Event] = []
    for piece in pieces:
        connection.receive_data(piece)
        events += drain(connection)
    if eof:
        connection.receive_eof()
        events += drain(connection)
    return events


def greeted() -> Connection:
    connection = Connection()
    connection.receive_data(HELLO)
    assert isinstance(connection.next_event(), Environment)
    return connection


def test_the_environment_is_told_as_a_whole() -> None:
    [environment] = told([HELLO], eof=False)
    assert isinstance(environment, Environment)
    assert environment.variables["uniqueid"] == "1795362086.75"
    assert environment.variables["network_script"] == "hangup?x=1"
    assert environment.variables["calleridname"] == "J\N{REPLACEMENT CHARACTER}rg"
    assert environment.variables["accountcode"] == ""
    assert environment.arguments == ("linkedid=1795362086.70", "queue=a: b")
    assert "0700" not in repr(environment)


def test_carriage_returns_and_an_environment_of_nothing_are_taken() -> None:
    assert told([b"agi_a: 1\r\n\r\n"]) == [Environment({"a": "1"}), Closed()]
    assert told([b"\n"]) == [Environment({}), Closed()]


@pytest.mark.parametrize(("wire", "reply"), REPLIES)
def test_replies_are_taken_apart(wire: bytes, reply: Reply) -> None:
    connection = greeted()
    assert connection.send("GET VARIABLE", "X") == ASKED
    assert not connection.is_ready
    connection.receive_data(wire)
    assert connection.next_event() == reply
    assert connection.next_event() is NEED_DATA
    assert connection.is_ready


def test_a_hangup_is_told_between_command_and_reply() -> None:
    connection = greeted()
    connection.send("GET VARIABLE", "X")
    connection.receive_data(b"HANGUP\n200 result=1 (HANGUP)\n")
    assert connection.next_event() == Hangup()
    assert connection.next_event() == Reply(200, "1", "HANGUP")
    connection.receive_data(b"HANGUP\n")
    assert connection.next_event() == Hangup()
    assert connection.is_ready


def test_the_end_is_told_once() -> None:
    connection = greeted()
    connection.receive_eof()
    assert connection.next_event() == Closed()
    assert connection.next_event() is NEED_DATA
    assert not connection.is_ready


def test_a_peer_that_says_nothing_is_only_closed() -> None:
    assert told([]) == [Closed()]


STORY = HELLO + b"".join(wire for wire, _ in REPLIES[:6]) + b"HANGUP\n" + REPLIES[13][0]


@given(st.lists(st.integers(0, len(STORY)), max_size=12))
def test_events_do_not_depend_on_how_tcp_splits_them(cuts: list[int]) -> None:
    at = [0, *sorted(cuts), len(STORY)]
    pieces = [STORY[a:b] for a, b in itertools.pairwise(at)]
    assert told(pieces) == told([STORY])


def test_events_do_not_depend_on_bytes_that_come_one_by_one() -> None:
    assert told([bytes([byte]) for byte in STORY]) == told([STORY])


@given(st.lists(st.binary(max_size=200), max_size=20), st.booleans())
def test_arbitrary_bytes_are_events_or_a_remote_error(pieces: list[bytes], greet: bool) -> None:
    with contextlib.suppress(RemoteProtocolError):
        told([HELLO, *pieces] if greet else pieces)


@given(st.text("agi_:HANGUP 0125-result=()\r\n", max_size=300))
def test_bytes_that_look_alike_are_events_or_a_remote_error(text: str) -> None:
    with contextlib.suppress(RemoteProtocolError):
        told([HELLO, text.encode()])


@pytest.mark.parametrize(
    ("wire", "message"),
    [
        (b"GET / HTTP/1.1\r\n", "agi_name: value"),
        (b"agi_: x\n", "agi_name: value"),
        (b"agi_a: 1\nagi_a: 2\n", "twice"),
        (b"agi_a: " + b"x" * MAX_LINE, "a line has more"),
        (b"".join(b"agi_a%d: 1\n" % n for n in range(MAX_VARIABLES + 1)), "the environment has"),
        (
            b"".join(b"agi_a%d: %s\n" % (n, b"x" * 8000) for n in range(9)),
            f"{MAX_ENVIRONMENT} bytes",
        ),
        (b"x" * (MAX_UNREAD + 1), "came unasked"),
        (HELLO + b"nonsense\n", "three digits"),
        (HELLO + b"600 result=0\n", "three digits"),
        (HELLO + b"520-Usage:\n" + b"y" * 100 + b"\n" * MAX_REPLY, "a reply has more"),
    ],
)
def test_what_no_asterisk_sends_is_a_remote_error(wire: bytes, message: str) -> None:
    connection = Connection()
    connection.receive_data(wire)
    for _ in range(2):  # each later call raises it again
        with pytest.raises(RemoteProtocolError, match=message):
            drain(connection)
    connection.receive_data(HELLO)
    assert not connection.is_ready
    assert not connection._data


def test_a_reply_that_nobody_asked_for_is_a_remote_error() -> None:
    connection = greeted()
    connection.receive_data(b"200 result=0\n")
    with pytest.raises(RemoteProtocolError, match="no command"):
        connection.next_event()


@pytest.mark.parametrize("wire", [b"agi_a: 1\n", b"agi", HELLO + b"200 resu", HELLO + b"520-X\n"])
def test_an_end_in_the_middle_is_a_remote_error(wire: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="ended in the middle"):
        told([wire])


def test_commands_wait_for_their_turn() -> None:
    connection = Connection()
    with pytest.raises(LocalProtocolError, match="first"):
        connection.send("NOOP")
    connection = greeted()
    connection.send("NOOP")
    with pytest.raises(LocalProtocolError, match="last reply"):
        connection.send("NOOP")


@pytest.mark.parametrize("words", [(), ("",), ("noop",), ("NOOP\nANSWER",), ("SET  VARIABLE",)])
def test_what_is_no_command_is_a_local_error(words: tuple[str, ...]) -> None:
    with pytest.raises(LocalProtocolError, match="expected a command"):
        greeted().send(*words)


def test_a_command_that_asterisk_would_cut_is_a_local_error() -> None:
    connection = greeted()
    with pytest.raises(LocalProtocolError, match=f"{MAX_COMMAND} bytes"):
        connection.send("VERBOSE", "x" * MAX_COMMAND)
    assert len(connection.send("VERBOSE", "x" * (MAX_COMMAND - 9))) == MAX_COMMAND


def read_back(line: str) -> list[str]:
    """Return the words as ``parse_args`` of res_agi.c reads them."""
    words: list[str] = []
    in_quotes = escaped = False
    is_gap = True
    for char in line:
        if char == '"' and not escaped:
            in_quotes = not in_quotes
            if in_quotes and is_gap:
                words.append("")
                is_gap = False
        elif char in " \t" and not in_quotes and not escaped:
            is_gap = True
        elif char == "\\" and not escaped:
            escaped = True
            continue
        else:
            if is_gap:
                words.append("")
                is_gap = False
            words[-1] += char
        escaped = False
    return words


@given(st.lists(st.text(max_size=40), max_size=5))
def test_arguments_arrive_as_they_were(arguments: list[str]) -> None:
    line = greeted().send("SET VARIABLE", *arguments).decode()
    assert line.endswith("\n")
    assert "\n" not in line[:-1]
    plain = [re.sub("[\n\r]", " ", each).replace("\0", "") for each in arguments]
    assert read_back(line[:-1]) == ["SET", "VARIABLE", *plain]


@pytest.mark.parametrize(
    ("word", "wire"),
    [
        ("X", "X"),
        ("", '""'),
        ('a "b" \\', '"a \\"b\\" \\\\"'),
        ("${CHANNEL(linkedid)}", '"${CHANNEL(linkedid)}"'),
        ("x\nHANGUP", '"x HANGUP"'),
    ],
)
def test_quotes_stand_where_they_are_needed(word: str, wire: str) -> None:
    assert quoted(word) == wire
