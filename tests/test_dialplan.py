"""Our dialplan on a real Asterisk, with a daemon of every kind at the other end."""

import asyncio
import base64
import contextlib
import re
import socket
import struct
import threading
import time
import uuid
import wave
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from urllib.parse import parse_qsl

import numpy as np
import pytest

from callcore.agi.server import AgiServer, Request, Route
from callcore.audiosocket import NEED_DATA, Audio, Connection
from callcore.settings import Address
from tests.support.asterisk import DIALPLAN, PATIENCE_S, Asterisk
from tests.support.recordings import make_settings

pytestmark = pytest.mark.slow

#: What Asterisk complains of although all is well.
ALLOWED = (
    # app_audiosocket.c says so at each hangup by the caller.
    r"app_audiosocket\.c: Failed to receive frame from channel",
    # A call that ends between the look whether it is there and the next step.
    r"func_global\.c: Channel 'test-[\d.]+' not found!  Variable 'CALLCORE_\w+' not set",
)
#: What it complains of besides while callcore is away.
ALLOWED_AWAY = (
    *ALLOWED,
    r"(res_agi|tcptls|res_audiosocket|chan_audiosocket|app_audiosocket|iostream|netsock2)\.c: ",
    r"utils\.c: write\(\) returned error: (Connection reset by peer|Broken pipe)",
    r"callcore did not take the stream",
)


class Daemon:
    """A callcore that notes what it hears; a context manager.

    Args:
        folder: For settings.
        answers: What its routes set, by route.
    """

    def __init__(self, folder: Path, answers: Mapping[str, Mapping[str, str]]) -> None:
        self.answers = {route: dict(each) for route, each in answers.items()}
        self.events: list[tuple[str, str]] = []
        """In their order: route and leg (or answer), ``stream`` and UUID."""
        self.reports: list[tuple[str, dict[str, str]]] = []
        self.streams: dict[str, bytearray] = {}
        self.ended: list[str] = []
        self.lengths: dict[str, int] = {}
        """Frames of each reported file, read when it was reported."""
        self._settings = make_settings(folder)
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._streaming: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),))

    def __enter__(self) -> "Daemon":
        self._thread.start()
        assert self._ready.wait(PATIENCE_S)
        return self

    def __exit__(self, *_exc: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()

    def of(self, route: str) -> list[dict[str, str]]:
        """Return what a route was told."""
        return [facts for each, facts in list(self.reports) if each == route]

    async def _run(self) -> None:
        names = ("live", "consent", "hangup", "missed")
        agi = AgiServer(self._settings, {name: self._route(name) for name in names})
        self.agi = str(await agi.start(Address("127.0.0.1", 0)))
        listener = await asyncio.start_server(self._listen, "127.0.0.1", 0)
        self.audiosocket = f"127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        self._ready.set()
        await self._stop.wait()
        listener.close()
        streaming = list(self._streaming)
        for task in streaming:
            task.cancel()
        await asyncio.gather(*streaming, return_exceptions=True)
        await asyncio.sleep(0)  # their transports close in the loop's next round
        await agi.close(1)

    def _route(self, name: str) -> Route:
        async def answer(request: Request) -> None:
            facts = told(request)
            for key in ("file", "file-caller", "file-agent"):
                if key in facts:
                    with wave.open(facts[key]) as file:
                        self.lengths[key] = file.getnframes()
            self.events.append((name, facts.get("leg") or facts.get("answer") or ""))
            self.reports.append((name, facts))
            for variable, value in self.answers.get(name, {}).items():
                await request.command("SET VARIABLE", variable, value)

        return answer

    async def _listen(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._streaming.add(task)
        connection = Connection()
        try:
            while data := await reader.read(65536):
                connection.receive_data(data)
                self._take(connection)
        except ConnectionError:
            pass  # as good an end as any
        finally:
            writer.close()
            self._streaming.discard(task)
        if connection.uuid is not None:
            self.ended.append(connection.uuid)

    def _take(self, connection: Connection) -> None:
        while (event := connection.next_event()) is not NEED_DATA:
            assert connection.uuid is not None
            if connection.uuid not in self.streams:
                self.streams[connection.uuid] = bytearray()
                self.events.append(("stream", connection.uuid))
            if isinstance(event, Audio):
                self.streams[connection.uuid] += event.samples


def told(request: Request) -> dict[str, str]:
    """Return what the dialplan says in one base64 word."""
    [argument] = request.environment.arguments
    word = argument.removeprefix("says=").rstrip("=")
    query = base64.b64decode(word + "=" * (-len(word) % 4)).decode("utf-8", "replace")
    pairs = parse_qsl(query, strict_parsing=False)
    assert len(dict(pairs)) == len(pairs), "a fact came twice"
    return dict(pairs)


def legs(daemon: Daemon) -> list[dict[str, str]]:
    """Return what was told of the streams, the caller's first."""
    return sorted(daemon.of("live"), key=lambda facts: facts["leg"], reverse=True)


def loudness(samples: bytes) -> float:
    """Return the root mean square of samples, 0 for none."""
    values = np.frombuffer(samples, "<i2").astype(float)
    return float(np.sqrt(np.mean(values**2))) if len(values) else 0.0


LIVE = {"live": {"CALLCORE_STREAM": "yes"}}


@pytest.fixture(scope="module")
def asterisk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asterisk]:
    with Asterisk(tmp_path_factory.mktemp("pbx")) as pbx:
        yield pbx


@pytest.fixture
def daemon(asterisk: Asterisk, tmp_path: Path) -> Iterator[Daemon]:
    with Daemon(tmp_path, LIVE) as each:
        use(asterisk, agi=each.agi, audiosocket=each.audiosocket)
        yield each


@pytest.fixture
def away() -> None:
    """Mark a test in which callcore is away, of which Asterisk may complain."""


@pytest.fixture(autouse=True)
def _quiet(asterisk: Asterisk, request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test in which Asterisk complains of something, or leaves a channel."""
    asterisk.mark()
    yield
    asterisk.wait_idle()
    allowed = ALLOWED_AWAY if "away" in request.fixturenames else ALLOWED
    assert complaints(asterisk.new(), allowed) == []


def complaints(log: str, allowed: tuple[str, ...]) -> list[str]:
    lines = [line for line in log.splitlines() if re.search(r"\] (WARNING|ERROR)\[", line)]
    return [line for line in lines if not any(re.search(each, line) for each in allowed)]


def use(asterisk: Asterisk, *, agi: str, audiosocket: str) -> None:
    """Let the dialplan find its daemon elsewhere."""
    asterisk.cli(f"dialplan set global CALLCORE_AGI {agi}")
    asterisk.cli(f"dialplan set global CALLCORE_AUDIOSOCKET {audiosocket}")


def steps(asterisk: Asterisk) -> str:
    """Return the log of this test's calls."""
    return asterisk.new("full")


def cdrs_of(asterisk: Asterisk, before: int) -> list[str]:
    return asterisk.cdrs()[before:]


# What it is.


def test_it_loads_without_a_complaint(asterisk: Asterisk) -> None:
    assert complaints(asterisk.log(), ()) == []
    shown = asterisk.cli("dialplan show callcore-tap")
    assert "extensions_callcore.conf" in shown
    assert not re.search(r"^\[(globals|general)\]", DIALPLAN.read_text("utf-8"), re.MULTILINE)


def test_each_application_and_function_it_uses_is_there(asterisk: Asterisk) -> None:
    lines = DIALPLAN.read_text("utf-8").splitlines()
    text = "\n".join(line for line in lines if not line.startswith(";"))
    applications = asterisk.cli("core show applications")
    for name in set(re.findall(r"(?:,|\?)([A-Z]\w+)\(", text)):
        assert re.search(rf"^ +{name}:", applications, re.MULTILINE), name
    functions = asterisk.cli("core show functions")
    for name in set(re.findall(r"(?:\$\{|Set\()([A-Z]\w*)\(", text)):
        assert re.search(rf"^{name} ", functions, re.MULTILINE), name


# What it says.


def test_a_call_is_announced_streamed_recorded_and_reported(
    asterisk: Asterisk, daemon: Daemon
) -> None:
    before = len(asterisk.cdrs())
    asterisk.call("5550199", caller_says="vm-goodbye&silence/1", agent_says="silence/5")
    asterisk.wait("the report", lambda: daemon.of("hangup"))
    asterisk.wait("the streams' ends", lambda: len(daemon.ended) == 2)
    caller, agent = legs(daemon)
    for leg in (caller, agent):
        announced = daemon.events.index(("live", leg["leg"]))
        assert announced < daemon.events.index(("stream", leg["uuid"]))
    assert len(daemon.events) == 5
    assert uuid.UUID(caller["uuid"]) != uuid.UUID(agent["uuid"])
    assert caller["caller"] == agent["caller"] == "5550100"
    assert caller["callee"] == agent["callee"] == "5550199"
    assert "agent" not in caller
    assert agent["agent"] == "Local/agent@parties"
    assert caller["linkedid"] == agent["linkedid"]
    # Each stream carries its own party: only the caller speaks.
    assert loudness(daemon.streams[caller["uuid"]]) > 300
    assert loudness(daemon.streams[agent["uuid"]]) < 5
    [report] = daemon.of("hangup")
    assert report["uniqueid"] == caller["uniqueid"]
    assert (report["dialstatus"], report["cdr"]) == ("ANSWER", "ANSWERED")
    assert 0 < float(report["answered_at"]) <= float(report["ended_at"]) + 1
    # Complete when they are reported, and of one length.
    day = time.strftime("%Y%m%d")
    stem = asterisk.recordings / "callcore" / day / report["uniqueid"]
    assert report["file"] == f"{stem}.wav"
    assert report["file-caller"] == f"{stem}-caller.wav"
    assert report["file-agent"] == f"{stem}-agent.wav"
    assert len(daemon.lengths) == 3
    assert len(set(daemon.lengths.values())) == 1
    assert daemon.lengths["file"] > 8000
    asterisk.wait_idle()
    # The caller's telephone, their channel, the agent's telephone: no helper, no spy.
    rows = asterisk.wait("the CDRs", lambda: cdrs_of(asterisk, before))
    assert not [row for row in rows if "callcore" in row or "AudioSocket" in row]


HOSTILE = "55^50,1)00;x|../../etc):2&a=b+c%41\"$[1/0]${SHELL(id)}\\ =  '`id`"


@pytest.mark.parametrize("number", [HOSTILE, "+49 (0)30 5550100", "x" * 80, ")" * 60, "Ön: )):1"])
def test_whatever_a_trunk_sends_arrives_as_it_is_and_does_nothing(
    asterisk: Asterisk, daemon: Daemon, number: str
) -> None:
    def word(text: str) -> str:
        return base64.b64encode(text.encode()).decode()

    asterisk.call(
        "hostile",
        caller_says="beep",
        agent_says="silence/1",
        variables={
            "__FROM_NUMBER": word(number),
            "__FROM_NAME": word('Bob "^,)(${SHELL(id)}; Ön'),
            "__TO_NUMBER": word(number[::-1]),
        },
    )
    asterisk.wait("the report", lambda: daemon.of("hangup"))
    asterisk.wait_idle()
    caller, agent = legs(daemon)
    [report] = daemon.of("hangup")
    for facts in (caller, agent, report):
        assert facts["caller"] == number
        assert facts["callee"] == number[::-1]
        assert facts["uniqueid"].startswith("test-")
    assert re.fullmatch(r"test-[0-9.]+\.wav", Path(report["file"]).name)
    assert {path.suffix for path in asterisk.recordings.rglob("*") if path.is_file()} == {".wav"}


def test_facts_that_a_site_sets_are_passed(asterisk: Asterisk, daemon: Daemon) -> None:
    said = {
        "CALLCORE_CALL": "my (own): id",
        "CALLCORE_CALLEE": "116 111",
        "CALLCORE_QUEUE": "Hälp & care",
        "CALLCORE_LANGUAGE": "sw",
        "CALLCORE_DIRECTION": "in",
        "CALLCORE_AGENT": "Ana + Bo = 2",
    }
    asterisk.call(
        "tapped",
        caller_says="beep",
        agent_says="silence/1",
        variables={f"__{key}": value for key, value in said.items()},
    )
    asterisk.wait("both taps", lambda: len(daemon.of("live")) == 2)
    for facts in daemon.of("live"):
        for key, value in said.items():
            fact = {"CALLCORE_CALL": "call_id"}.get(key, key.removeprefix("CALLCORE_").lower())
            assert facts[fact] == value


def test_of_a_call_to_outside_the_agent_is_who_dialled(asterisk: Asterisk, daemon: Daemon) -> None:
    asterisk.call("outgoing", caller_says="beep", agent_says="silence/1")
    asterisk.wait("both taps", lambda: len(daemon.of("live")) == 2)
    for facts in daemon.of("live"):
        assert (facts["caller"], facts["callee"]) == ("5550100", "outgoing")
    assert legs(daemon)[1]["agent"] == "Local/outgoing@site"


def test_the_agent_alone_knows_who_called(asterisk: Asterisk, daemon: Daemon) -> None:
    asterisk.call("answering", caller_says="beep", agent_says="silence/1")
    asterisk.wait("the tap", lambda: daemon.of("live"))
    [facts] = daemon.of("live")
    assert (facts["caller"], facts["agent"]) == ("5550100", "Local/agent@parties")
    assert "callee" not in facts


def test_one_stream_may_carry_both_parties(asterisk: Asterisk, daemon: Daemon) -> None:
    asterisk.call("stereo", caller_says="vm-goodbye", agent_says="silence/5")
    asterisk.wait("the stream", lambda: daemon.ended)
    [facts] = daemon.of("live")
    assert facts["leg"] == "stereo"
    samples = np.frombuffer(bytes(daemon.streams[facts["uuid"]]), "<i2").reshape(-1, 2)
    assert loudness(samples[:, 0].tobytes()) > 300
    assert loudness(samples[:, 1].tobytes()) < 5


def test_recording_twice_records_once(asterisk: Asterisk, daemon: Daemon) -> None:
    asterisk.call("own", caller_says="beep", agent_says="silence/1")
    asterisk.wait("the report", lambda: daemon.of("hangup"))
    asterisk.wait_idle()
    assert [route for route, _ in daemon.reports] == ["hangup"]
    assert steps(asterisk).count("Executing") > 0
    assert len(re.findall(r"] MixMonitor\(", steps(asterisk))) == 1


def test_a_transferred_caller_gets_a_second_agent(asterisk: Asterisk, daemon: Daemon) -> None:
    asterisk.call(
        "bridged",
        caller_says="silence/3",
        agent_says="silence/9",
        variables={"__AGENT2_SAYS": "silence/9"},
    )
    asterisk.wait("both streams", lambda: len(daemon.streams) == 2)
    channels = asterisk.channels()
    [agent] = [each for each in channels if re.match(r"Local/agent@parties-.*;1", each)]
    with asterisk.ami() as ami:
        ami.action("BlindTransfer", Channel=agent, Context="site", Exten="transfer")
    asterisk.wait("the second agent", lambda: len(daemon.of("live")) == 3)
    asterisk.wait("the report", lambda: daemon.of("hangup"))
    *_, third = daemon.of("live")
    first = legs(daemon)[0]
    assert (third["leg"], third["agent"]) == ("agent", "Local/agent2@parties")
    assert third["linkedid"] == first["linkedid"]
    assert third["caller"] == "5550100"
    assert len(daemon.of("hangup")) == 1


def transfer(asterisk: Asterisk, exten: str) -> None:
    """Let the agent of the one call transfer the caller blindly."""

    def agents() -> list[str]:
        return [each for each in asterisk.channels() if re.match(r"Local/agent@.*;1", each)]

    [agent] = asterisk.wait("the agent", agents)
    with asterisk.ami() as ami:
        ami.action("BlindTransfer", Channel=agent, Context="site", Exten=exten)


def test_who_called_is_told_of_a_call_that_was_seen_late(
    asterisk: Asterisk, daemon: Daemon
) -> None:
    asterisk.call(
        "other",
        caller_says="silence/4",
        agent_says="silence/9",
        variables={"__AGENT2_SAYS": "silence/9"},
    )
    asterisk.wait("the conversation", lambda: "joined 'simple_bridge'" in steps(asterisk))
    transfer(asterisk, "transfer-recorded")
    asterisk.wait("the report", lambda: daemon.of("hangup"))
    [tapped], [report] = daemon.of("live"), daemon.of("hangup")
    for facts in (tapped, report):
        assert (facts["caller"], facts["callee"]) == ("5550177", "transfer-recorded")
    assert tapped["agent"] == "Local/agent2@parties"
    assert report["answered"] == "yes"


def test_a_caller_without_a_number_has_none_in_the_middle_of_the_call_either(
    asterisk: Asterisk, daemon: Daemon
) -> None:
    asterisk.call(
        "withheld",
        caller_says="silence/3",
        agent_says="silence/9",
        variables={"CALLER_THEN": "*9", "CALLER_SAYS_THEN": "silence/1"},
    )
    asterisk.wait("the report", lambda: daemon.of("hangup"))
    assert [facts["answer"] for facts in daemon.of("consent")] == ["no"]
    for _, facts in daemon.reports:
        assert "caller" not in facts


def test_a_device_is_named_without_the_number_of_its_channel(
    asterisk: Asterisk, daemon: Daemon
) -> None:
    asterisk.call("rtp", caller_says="silence/1")
    asterisk.wait("the tap", lambda: daemon.of("live"))
    assert daemon.of("live")[0]["agent"] == "UnicastRTP/127.0.0.1:9"


def test_variables_of_a_site_with_names_as_ours_do_nothing(
    asterisk: Asterisk, daemon: Daemon
) -> None:
    wrong = "^CALLCORE_ROUTE=live"
    asterisk.call(
        "own",
        caller_says="silence/1",
        agent_says="silence/2",
        variables={"__hint": wrong, "__more": wrong},
    )
    asterisk.wait("the report", lambda: daemon.reports)
    assert [route for route, _ in daemon.reports] == ["hangup"]


# The stream of one party.


def test_a_call_may_be_given_to_callcore_alone(asterisk: Asterisk, daemon: Daemon) -> None:
    asterisk.call("stream", caller_says="vm-goodbye")
    asterisk.wait("the report", lambda: daemon.of("hangup"))
    assert [route for route, _ in daemon.events] == ["live", "stream", "hangup"]
    [facts] = daemon.of("live")
    assert facts["leg"] == "caller"
    assert loudness(daemon.streams[facts["uuid"]]) > 300


def test_a_stream_that_callcore_does_not_want_is_not_sent(
    asterisk: Asterisk, daemon: Daemon
) -> None:
    daemon.answers["live"] = {"CALLCORE_STREAM": "no"}
    asterisk.call("stream", caller_says="silence/1", variables={"__STREAM_OVER": "beep"})
    asterisk.call("bridged", caller_says="silence/1", agent_says="silence/1")
    asterisk.wait("the reports", lambda: len(daemon.of("hangup")) == 2)
    assert len(daemon.of("live")) == 3
    assert daemon.streams == {}
    assert "site: stream goes on" in steps(asterisk)


# A daemon that is not as it should be.


@contextlib.contextmanager
def listening(backlog: int) -> Iterator[socket.socket]:
    """Return a listener whose process stands still: connections come up, nobody reads."""
    with socket.socket() as each:
        each.bind(("127.0.0.1", 0))
        each.listen(backlog)
        yield each


@contextlib.contextmanager
def unreachable() -> Iterator[str]:
    """Return an address from which no answer comes: its backlog is full."""
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(listening(0))
        for _ in range(4):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(full.getsockname())
        yield address_of(full)


@contextlib.contextmanager
def refusing() -> Iterator[str]:
    with socket.socket() as bound:  # and does not listen
        bound.bind(("127.0.0.1", 0))
        yield address_of(bound)


@contextlib.contextmanager
def stopped() -> Iterator[str]:
    with listening(128) as each:
        yield address_of(each)


@contextlib.contextmanager
def resetting() -> Iterator[str]:
    """Return an address where each connection is reset when the first byte has come."""

    def serve(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = listener.accept()
                peer.settimeout(2)
                with contextlib.suppress(OSError):
                    peer.recv(1)
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                peer.close()

    with listening(128) as each:
        thread = threading.Thread(target=serve, args=(each,))
        thread.start()
        yield address_of(each)
        each.shutdown(socket.SHUT_RDWR)
        thread.join()


def address_of(listener: socket.socket) -> str:
    return f"127.0.0.1:{listener.getsockname()[1]}"


BAD = {each.__name__: each for each in (refusing, stopped, resetting, unreachable)}


def handler_s(asterisk: Asterisk) -> float:
    """Return how long the hangup handler held the call, by Asterisk's own clock."""
    moments = {}
    for line in steps(asterisk).splitlines():
        if found := re.search(r"Gosub\(callcore-hangup,s,1\) (start|complete)", line):
            moments[found[1]] = datetime.fromisoformat(line[1:24])
    return (moments["complete"] - moments["start"]).total_seconds()


@pytest.mark.usefixtures("away")
@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("part", ["agi", "audiosocket", "both"])
def test_a_bad_daemon_neither_ends_nor_holds_a_call(
    asterisk: Asterisk, tmp_path: Path, kind: str, part: str
) -> None:
    before = len(asterisk.cdrs())
    with contextlib.ExitStack() as stack:
        bad = stack.enter_context(BAD[kind]())
        good = stack.enter_context(Daemon(tmp_path, LIVE))
        use(
            asterisk,
            agi=good.agi if part == "audiosocket" else bad,
            audiosocket=good.audiosocket if part == "agi" else bad,
        )
        asterisk.call("bridged", caller_says="silence/1", agent_says="silence/2")

        def row() -> list[str]:
            return [row for row in cdrs_of(asterisk, before) if ";2" in row and "@site" in row]

        # The CDR is written after the hangup handler; the daemon is as bad as before.
        [call] = asterisk.wait("the call's CDR", row)
        assert '"ANSWERED"' in call
        assert handler_s(asterisk) < 1  # some milliseconds; who waits for callcore takes 2 s
        if kind in ("stopped", "unreachable"):
            # Asterisk has not even noticed yet when the agent's telephone rings.
            before_dial = steps(asterisk).partition('] Dial("')[0]
            if part != "audiosocket":
                assert "] AGI(" in steps(asterisk)
                assert "AGI Script" not in before_dial
            assert not complaints(before_dial, ())
        if part == "agi" and kind in ("refusing", "resetting"):
            # Nobody took the registration; the audio comes all the same.
            asterisk.wait("both streams", lambda: len(good.ended) == 2)
        if part == "audiosocket":
            asterisk.wait("the report", lambda: good.of("hangup"))
            assert len(good.of("live")) == 2
    asterisk.wait_idle()
    held = [row for row in cdrs_of(asterisk, before) if "callcore" in row or "AudioSocket" in row]
    assert held == []


@pytest.mark.usefixtures("away")
@pytest.mark.parametrize("kind", BAD)
def test_a_bad_daemon_does_not_end_a_call_that_was_given_to_it(
    asterisk: Asterisk, tmp_path: Path, kind: str
) -> None:
    with BAD[kind]() as bad, Daemon(tmp_path, LIVE) as good:
        # A stopped one holds the line for as long as the kernel takes its audio.
        audiosocket = good.audiosocket if kind == "stopped" else bad
        use(asterisk, agi=bad, audiosocket=audiosocket)
        asterisk.call("stream", caller_says="silence/6", variables={"__STREAM_OVER": "beep"})
        if kind == "stopped":
            asterisk.wait("the stream", lambda: good.streams)
        else:
            asterisk.wait("the next step", lambda: "site: stream goes on" in steps(asterisk))
        with asterisk.ami() as ami:
            ami.action("Hangup", Channel="/^Local/stream@site-.*$/")


@pytest.mark.usefixtures("away")
def test_a_stopped_daemon_gets_the_report_when_it_goes_on(asterisk: Asterisk) -> None:
    with listening(128) as listener:
        use(asterisk, agi=address_of(listener), audiosocket="127.0.0.1:9")
        asterisk.call("missed-busy")
        asterisk.wait("the report", lambda: "callcore-hangup" in steps(asterisk))
        asterisk.wait_idle()  # the helper has given up, long ago
        listener.settimeout(PATIENCE_S)
        peer, _ = listener.accept()
        with peer, peer.makefile("rb") as lines:
            text = lines.read().decode()
    assert "agi_network_script: missed" in text
    assert "agi_arg_1: says=" in text


# Calls that nobody answers.


@pytest.mark.parametrize(
    ("exten", "variables", "expected"),
    [
        ("missed-noanswer", {}, {"dialstatus": "NOANSWER"}),
        ("missed-busy", {}, {"dialstatus": "BUSY"}),
        ("missed-cancel", {}, {"dialstatus": "CANCEL"}),
    ],
)
def test_a_call_that_nobody_answers_is_reported(
    asterisk: Asterisk,
    daemon: Daemon,
    exten: str,
    variables: dict[str, str],
    expected: dict[str, str],
) -> None:
    asterisk.call(exten, variables=variables)
    if exten == "missed-cancel":
        ringing = asterisk.wait("ringing", lambda: re.findall(r"\S+;1 is ringing", steps(asterisk)))
        assert ringing
        with asterisk.ami() as ami:
            ami.action("Hangup", Channel="/^Local/missed-cancel@site-.*;1$/")
    asterisk.wait("the report", lambda: daemon.of("missed"))
    [(_, facts)] = daemon.reports
    assert facts["caller"] == "5550100"
    assert facts["callee"] == exten
    assert "answered" not in facts
    assert float(facts["ended_at"]) > 0
    assert "answered_at" not in facts
    assert expected.items() <= facts.items()


@pytest.mark.parametrize(
    "exten", ["again-dial-queue", "again-queue-queue", "again-dial-dial", "again-tapped"]
)
def test_that_somebody_answered_is_told_whatever_else_was_tried(
    asterisk: Asterisk, daemon: Daemon, exten: str
) -> None:
    asterisk.call(exten, caller_says="silence/5", agent_says="silence/1")
    asterisk.wait("the report", lambda: daemon.of("hangup"))
    [facts] = daemon.of("hangup")
    assert facts["answered"] == "yes"
    assert 0 < float(facts["answered_at"]) <= float(facts["ended_at"])
    # What the statuses say: the test would prove nothing with others.
    others = {
        "again-dial-queue": {"dialstatus": "NOANSWER"},
        "again-queue-queue": {"queuestatus": "TIMEOUT"},
    }
    assert others.get(exten, {"dialstatus": "BUSY"}).items() <= facts.items()


def test_a_transfer_to_somebody_busy_does_not_undo_the_answer(
    asterisk: Asterisk, daemon: Daemon
) -> None:
    asterisk.call("own", caller_says="silence/5", agent_says="silence/9")
    asterisk.wait("the conversation", lambda: "joined 'simple_bridge'" in steps(asterisk))
    transfer(asterisk, "transfer-busy")
    asterisk.wait("the report", lambda: daemon.of("hangup"))
    [facts] = daemon.of("hangup")
    assert (facts["dialstatus"], facts["answered"]) == ("BUSY", "yes")


def test_an_outgoing_call_that_nobody_answered_is_told_as_that(
    asterisk: Asterisk, daemon: Daemon
) -> None:
    asterisk.call("unanswered", caller_says="silence/3")
    asterisk.wait("the report", lambda: daemon.of("hangup"))
    [tapped], [facts] = daemon.of("live"), daemon.of("hangup")
    assert (tapped["leg"], tapped["direction"]) == ("agent", "out")
    assert facts["dialstatus"] == "BUSY"
    assert "answered" not in facts


def test_no_file_of_a_call_that_was_never_answered_is_reported(
    asterisk: Asterisk, daemon: Daemon
) -> None:
    asterisk.call("missed-recorded")
    asterisk.wait("the report", lambda: daemon.of("hangup"))
    [facts] = daemon.of("hangup")
    assert facts["dialstatus"] == "BUSY"
    assert not any(key.startswith("file") for key in facts)


# Queues.


def test_the_agent_of_a_queue_is_tapped_under_their_name(
    asterisk: Asterisk, daemon: Daemon
) -> None:
    asterisk.call("queue", caller_says="silence/2", agent_says="silence/5")
    asterisk.wait("the report", lambda: daemon.of("hangup"))
    caller, agent = legs(daemon)
    assert (caller["leg"], agent["leg"]) == ("caller", "agent")
    assert (agent["agent"], agent["queue"]) == ("Ana Agent", "support")
    assert daemon.of("hangup")[0]["queue"] == "support"
    assert "abandoned" not in daemon.of("hangup")[0]


@pytest.mark.parametrize(
    ("variables", "expected"),
    [({}, {"abandoned": "TRUE"}), ({"__QUEUE_TIMEOUT": "1"}, {"queuestatus": "TIMEOUT"})],
)
def test_a_caller_whom_no_agent_of_a_queue_answers_is_reported(
    asterisk: Asterisk, daemon: Daemon, variables: dict[str, str], expected: dict[str, str]
) -> None:
    seconds = "silence/4" if variables else "silence/1"
    asterisk.call("queue-nobody", caller_says=seconds, variables=variables)
    asterisk.wait("the report", lambda: daemon.of("hangup"))
    [facts] = daemon.of("hangup")
    assert expected.items() <= facts.items()
    assert "answered" not in facts
    assert [each["leg"] for each in daemon.of("live")] == ["caller"]


def test_the_agent_of_a_queue_is_told_of_a_call_that_is_recorded_only(
    asterisk: Asterisk, daemon: Daemon
) -> None:
    asterisk.call("again-dial-queue", caller_says="silence/3", agent_says="silence/9")
    asterisk.wait("the report", lambda: daemon.of("hangup"))
    [facts] = daemon.of("hangup")
    assert (facts["agent"], facts["queue"]) == ("Ana Agent", "support")


def test_a_queue_taps_its_agents_by_its_own_setting(asterisk: Asterisk, daemon: Daemon) -> None:
    asterisk.call("member", caller_says="silence/2", agent_says="silence/5")
    asterisk.wait("the report", lambda: daemon.of("hangup"))
    [facts] = daemon.of("live")
    assert (facts["leg"], facts["agent"], facts["queue"]) == ("agent", "Ana Agent", "member")
    assert facts["caller"] == "5550100"


# Consent.


@pytest.mark.parametrize(("digit", "pressed"), [("", "w9"), ("*9", "w*")])
def test_a_caller_who_presses_the_digit_is_neither_recorded_nor_streamed(
    asterisk: Asterisk, daemon: Daemon, digit: str, pressed: str
) -> None:
    said = {"CALLER_PRESSES": pressed, "OPT_OUT": digit}
    asterisk.call("consent", caller_says="silence/1", variables=said)
    asterisk.wait("the refusal", lambda: len(daemon.of("consent")) == 2)
    asterisk.wait_idle()
    assert daemon.events == [("consent", "ask"), ("consent", "no")]
    ask, no = daemon.of("consent")
    assert ask["uniqueid"] == no["uniqueid"]
    assert no["caller"] == "5550100"
    assert "] MixMonitor(" not in steps(asterisk)


@pytest.mark.parametrize("digit", ["", "w5"])
def test_a_caller_who_does_not_press_it_is(asterisk: Asterisk, daemon: Daemon, digit: str) -> None:
    asterisk.call("consent", caller_says="silence/3", variables={"CALLER_PRESSES": digit})
    asterisk.wait("the report", lambda: daemon.of("hangup"))
    assert [route for route, _ in daemon.reports] == ["consent", "live", "live", "hangup"]


def test_a_caller_who_refused_before_is_not_asked_again(asterisk: Asterisk, daemon: Daemon) -> None:
    daemon.answers["consent"] = {"CALLCORE_CONSENT": "no"}
    asterisk.call("consent", caller_says="silence/1")
    asterisk.wait("the call", lambda: "] Dial(" in steps(asterisk))
    asterisk.wait_idle()
    assert daemon.events == [("consent", "ask")]
    assert "] Read(" not in steps(asterisk)
    assert "] MixMonitor(" not in steps(asterisk)


def test_a_caller_may_refuse_in_the_middle_of_the_call(asterisk: Asterisk, daemon: Daemon) -> None:
    asterisk.call(
        "consent",
        caller_says="silence/4",
        variables={"CALLER_THEN": "*9", "CALLER_SAYS_THEN": "silence/2"},
    )
    asterisk.wait("the report", lambda: daemon.of("hangup"))
    assert [route for route, _ in daemon.reports] == [
        "consent",
        "live",
        "live",
        "consent",
        "hangup",
    ]
    assert [facts["answer"] for facts in daemon.of("consent")] == ["ask", "no"]
    assert daemon.of("consent")[1]["caller"] == "5550100"
    # The recording ended there and then.
    assert daemon.lengths["file"] < 8000 * 6


def test_who_refused_in_the_middle_is_not_tapped_after_a_transfer(
    asterisk: Asterisk, daemon: Daemon
) -> None:
    asterisk.call(
        "consent",
        caller_says="silence/3",
        agent_says="silence/9",
        variables={
            "CALLER_THEN": "*9",
            "CALLER_SAYS_THEN": "silence/5",
            "__AGENT2_SAYS": "silence/9",
        },
    )
    asterisk.wait("the refusal", lambda: len(daemon.of("consent")) == 2)
    transfer(asterisk, "transfer")
    asterisk.wait("the report", lambda: daemon.of("hangup"))
    assert "Executing [agent2@parties:1]" in steps(asterisk)
    assert len(daemon.of("live")) == 2


def test_the_keys_of_the_caller_are_not_those_of_the_agent(
    asterisk: Asterisk, daemon: Daemon
) -> None:
    asterisk.call(
        "consent",
        caller_says="silence/6",
        agent_says="silence/9",
        variables={"__AGENT_PRESSES": "ww*9"},
    )
    asterisk.wait("the report", lambda: daemon.of("hangup"))
    assert [facts["answer"] for facts in daemon.of("consent")] == ["ask"]


@pytest.mark.usefixtures("away")
def test_consent_waits_for_no_daemon(asterisk: Asterisk) -> None:
    with stopped() as address:
        use(asterisk, agi=address, audiosocket=address)
        asterisk.call("consent", caller_says="silence/4")
        asterisk.wait("the agent", lambda: "] Dial(" in steps(asterisk))
        assert "AGI Script" not in steps(asterisk)


# The doctor's call.


def test_the_doctors_call_is_recorded_and_live(asterisk: Asterisk, daemon: Daemon) -> None:
    with asterisk.ami() as ami:
        ami.action(
            "Originate",
            Channel="Local/call@callcore-doctor/n",
            Context="callcore-doctor",
            Exten="says",
            Priority="1",
            Async="true",
            Variable="__CALLCORE_DOCTOR=doctor-1",
        )
        asterisk.wait("speech", lambda: any(loudness(each) > 300 for each in streams(daemon)))
        ami.action("Hangup", Channel="/^Local/call@callcore-doctor-.*$/")
    asterisk.wait("the report", lambda: daemon.of("hangup"))
    assert [facts["call_id"] for _, facts in daemon.reports] == ["doctor-1", "doctor-1"]
    assert daemon.lengths["file"] > 0


def streams(daemon: Daemon) -> list[bytes]:
    return [bytes(each) for each in list(daemon.streams.values())]
