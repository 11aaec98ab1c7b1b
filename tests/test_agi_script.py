"""The classic AGI script: a real child process between a fake Asterisk and the real server."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import uuid
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from callcore.agi import daemon, script
from callcore.agi.protocol import quoted
from callcore.agi.reports import Reports
from callcore.agi.server import AgiServer, Request, Route
from callcore.calls import CallState, Disposition, RecordingState
from callcore.settings import Address
from callcore.storage import Storage
from tests.support.agi import PATIENCE_S, running
from tests.support.asterisk import Asterisk
from tests.support.recordings import Works, make_settings, write_wav
from tests.test_agi_protocol import read_back

ID = "1795362086.75"
LINKED = "1795362086.70"
#: What the console script of the installed package is made of.
PROGRAM = f"#!{sys.executable}\nfrom callcore.agi.script import main\n\nmain()\n"


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "agi-bin" / "callcore-agi"
    path.parent.mkdir()
    path.write_text(PROGRAM)
    path.chmod(0o755)
    return path


@pytest.fixture
def works(tmp_path: Path) -> Iterator[Works]:
    storage = Storage(f"sqlite:///{tmp_path / 'callcore.db'}")
    storage.migrate()
    yield Works(storage, make_settings(tmp_path / "state", spool_dir=tmp_path / "spool"))
    storage.close()


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


class Child:
    """The script as Asterisk runs it."""

    def __init__(self, process: Process) -> None:
        self.process = process
        assert process.stdin is not None
        assert process.stdout is not None
        self.stdin, self.stdout = process.stdin, process.stdout

    @classmethod
    async def start(
        cls, program: Path, address: Address | str, *arguments: str, **variables: str | bytes
    ) -> "Child":
        """Start it with a channel's environment."""
        environ = {**os.environ, "CALLCORE_AGI_BIND": str(address), "CALLCORE_OF_ANOTHER": "1"}
        process = await asyncio.create_subprocess_exec(
            program, *arguments, stdin=PIPE, stdout=PIPE, stderr=PIPE, env=environ
        )
        child = cls(process)
        known: dict[str, str | bytes] = {
            "request": "callcore-agi",
            "channel": "PJSIP/100-00000001",
            "uniqueid": ID,
            "callerid": "0700111222",
            "enhanced": "0.0",
            **variables,
        }
        known |= {f"arg_{n}": text for n, text in enumerate(arguments, 1)}
        for key, value in known.items():
            data = value if isinstance(value, bytes) else value.encode()
            child.stdin.write(f"agi_{key}: ".encode() + data + b"\n")
        child.stdin.write(b"\n")
        return child

    async def line(self) -> str:
        async with asyncio.timeout(PATIENCE_S):
            return (await self.stdout.readline()).decode().removesuffix("\n")

    async def told(self, answers: dict[str, str], default: str = "200 result=0") -> list[str]:
        """Answer commands by what they contain until it ends; return them."""
        asked = []
        while command := await self.line():
            asked.append(command)
            found = next((v for k, v in answers.items() if k in command), None)
            reply = default if found is None else f"200 result=1 ({found})"
            self.stdin.write(f"{reply}\n".encode())
        return asked

    async def ended(self) -> str:
        """Return what it said on stderr; it always ends well."""
        async with asyncio.timeout(PATIENCE_S):
            assert self.process.stderr is not None
            said = (await self.process.stderr.read()).decode()
            assert await self.process.wait() == 0
        return said


async def test_the_end_of_a_call_is_reported_as_by_fastagi(
    works: Works, reports: Reports, program: Path
) -> None:
    path = write_wav(works.settings.spool_dir / f"{ID}.wav")
    async with serving(works, reports) as server:
        child = await Child.start(
            program, server.address, "hangup", "queue=help line", "dialstatus=ANSWER", "callee="
        )
        asked = await child.told({"linkedid": LINKED, "MIXMONITOR_FILENAME": str(path)})
        assert await child.ended() == ""
        assert server.counts == {"answered": 1}
    assert asked == [
        'GET FULL VARIABLE "${CHANNEL(linkedid)}"',
        'GET VARIABLE "MIXMONITOR_FILENAME"',
    ]
    [recording], _ = works.storage.recordings(None, 9)
    call = works.storage.call(LINKED)
    assert recording.call_id == call.call_id == works.storage.call(ID).call_id
    assert (call.facts.queue, call.facts.caller) == ("help line", "0700111222")
    assert call.disposition is Disposition.ANSWERED


async def test_the_dialplan_gets_its_variables(
    works: Works, reports: Reports, program: Path
) -> None:
    own = str(uuid.uuid4())
    async with serving(works, reports) as server:
        child = await Child.start(
            program, server.address, "live", f"uuid={own}", f"linkedid={LINKED}", "leg=agent"
        )
        asked = await child.told({}, "200 result=1")
        assert await child.ended() == ""
    assert [read_back(each) for each in asked] == [
        ["SET", "VARIABLE", "CALLCORE_UUID", own],
        ["SET", "VARIABLE", "CALLCORE_CALL", LINKED],
        ["SET", "VARIABLE", "CALLCORE_STREAM", "yes"],
        ["SET", "VARIABLE", "CALLCORE_CONSENT", ""],
    ]
    assert works.storage.call(own).state is CallState.LIVE


async def ask(
    tmp_path: Path, program: Path, route: Route, answers: dict[str, str], default: str
) -> tuple[list[str], str]:
    async with running(make_settings(tmp_path / "state"), {"x": route}) as server:
        child = await Child.start(program, server.address, "x")
        asked = await child.told(answers, default)
        return asked, await child.ended()


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("511 Command Not Permitted on a dead channel or intercept routine", 511),
        ("510 Invalid or unknown command", 511),
        ("520-Invalid command syntax.  Proper usage follows:\nUsage\n520 End.", 520),
        ("200 result=-1", 200),
        ("200 result=0", 200),
    ],
)
async def test_what_pyst2_stumbles_over_is_an_answer_like_any_other(
    tmp_path: Path, program: Path, answer: str, code: int
) -> None:
    codes: list[int] = []

    async def route(request: Request) -> None:
        for _ in range(2):
            codes.append((await request.command("GET VARIABLE", "X")).code)

    asked, said = await ask(tmp_path, program, route, {}, answer)
    assert (len(asked), codes, said) == (2, [code] * 2, "")


async def test_quotes_and_backslashes_arrive_as_they_were(tmp_path: Path, program: Path) -> None:
    values = ['a "quoted" b', "back\\slash\\", "it's ${X} (1)", "äöü", ""]
    found: list[str | None] = []

    async def route(request: Request) -> None:
        for value in values:
            await request.command("SET VARIABLE", "X", value)
        found.append((await request.command("GET VARIABLE", "Y")).data)
        await request.command("HANGUP")

    asked, said = await ask(tmp_path, program, route, {'"Y"': 'v "(w) ü'}, "200 result=1")
    assert [read_back(each)[-1] for each in asked[:-1]] == values
    assert found == ['v "(w) ü']
    assert (len(asked), said) == (len(values) + 1, "")  # commands of no route do not get through
    assert quoted(values[0]) == asked[0].split(" ", 3)[3]


async def test_a_name_of_unknown_bytes_goes_on_as_it_came(tmp_path: Path, program: Path) -> None:
    seen: list[str] = []

    async def route(request: Request) -> None:
        seen.extend(request.environment.variables[each] for each in ("calleridname", "arg_1"))

    async with running(make_settings(tmp_path), {"x": route}) as server:
        child = await Child.start(
            program, server.address, "x", "queue=a\nagi_b: c", calleridname=b"J\xfcrgen"
        )
        assert await child.ended() == ""
    assert seen == ["J\ufffdrgen", "queue=a agi_b: c"]


async def test_a_caller_who_hangs_up_meanwhile_stops_nothing(tmp_path: Path, program: Path) -> None:
    """Asterisk sends SIGHUP to a script of a live channel; pyst2 would refuse to go on."""
    found: list[str | None] = []

    async def route(request: Request) -> None:
        for _ in range(2):
            found.append((await request.command("GET VARIABLE", "X")).data)

    async with running(make_settings(tmp_path), {"x": route}) as server:
        child = await Child.start(program, server.address, "x")
        assert await child.line() == 'GET VARIABLE "X"'
        child.process.send_signal(signal.SIGHUP)
        child.stdin.write(b"200 result=1 (one)\n")
        assert await child.told({"X": "two"}) == ['GET VARIABLE "X"']
        assert await child.ended() == ""
    assert found == ["one", "two"]


async def test_an_asterisk_that_closes_its_end_is_no_fault(tmp_path: Path, program: Path) -> None:
    async def route(request: Request) -> None:
        await request.command("GET VARIABLE", "X")

    async with running(make_settings(tmp_path), {"x": route}) as server:
        child = await Child.start(program, server.address, "x")
        assert await child.line() == 'GET VARIABLE "X"'
        child.stdin.close()
        assert await child.ended() == ""


# ---- without a daemon


async def test_a_daemon_that_is_down_costs_nothing_but_a_line(
    program: Path, unused_port: int
) -> None:
    child = await Child.start(program, f"0.0.0.0:{unused_port}", "hangup", "caller=0700111222")
    said = await child.ended()
    assert said == (
        f"callcore-agi: `callcore agi` cannot be reached at 127.0.0.1:{unused_port}: "
        "Connection refused\n"
    )


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


async def test_a_daemon_that_stands_still_holds_no_call(program: Path) -> None:
    """It is stopped like this one: the system takes the connection, and nobody answers."""
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        child = await Child.start(
            program, Address("127.0.0.1", deaf.getsockname()[1]), "hangup", "caller=0700111222"
        )
        said = await child.ended()
    assert re.fullmatch(r"callcore-agi: no answer within 2 s .*\n", said)


@pytest.mark.parametrize(
    ("address", "arguments", "expected"),
    [
        ("nowhere", ["hangup"], "CALLCORE_AGI_BIND=nowhere: expected host:port"),
        ("127.0.0.1:1", [], r"AGI\(callcore-agi,ROUTE"),
    ],
)
async def test_what_is_wrong_with_its_call_is_said(
    program: Path, address: str, arguments: list[str], expected: str
) -> None:
    child = await Child.start(program, address, *arguments)
    said = await child.ended()
    assert re.match(f"callcore-agi: .*{expected}", said)
    assert said.count("\n") == 1


def test_it_needs_asterisk_on_its_stdin(program: Path) -> None:
    done = subprocess.run(
        [program, "hangup"], stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert (done.returncode, "AGI(callcore-agi" in done.stderr) == (0, True)


def test_it_starts_without_the_libraries_of_the_daemons() -> None:
    code = "import sys, callcore.agi.script; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    heavy = {"asyncio", "dramatiq", "httpx", "numpy", "peewee", "redis", "spacy", "starlette"}
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert not loaded & heavy
    ours = {name for name in done.stdout.split() if name.startswith("callcore.")}
    assert ours == {"callcore.agi", "callcore.agi.script", "callcore.errors", "callcore.settings"}


def test_it_is_installed_as_a_command() -> None:
    text = (Path(__file__).parents[1] / "setup.cfg").read_text()
    assert f"callcore-agi = {script.__name__}:main" in text


# ---- on a real Asterisk

DIALPLAN = """
[scripted]
exten => s,1,Answer()
 same => n,Set(CHANNEL(hangup_handler_push)=scripted-hangup,s,1)
 same => n,AGI(callcore-agi,live,leg=caller,queue=help line)
 same => n,Verbose(0,live ${AGISTATUS} ${CALLCORE_STREAM} ${CALLCORE_CALL} of ${CHANNEL(linkedid)})
 same => n,MixMonitor(%SPOOL%/${UNIQUEID}.wav)
 same => n,Wait(0.5)
 same => n,Hangup()

[scripted-hangup]
exten => s,1,StopMixMonitor()
 same => n,AGI(callcore-agi,hangup,dialstatus=ANSWER)
 same => n,Verbose(0,hangup ${AGISTATUS})
 same => n,Return()
"""


@pytest.fixture
def asterisk(
    works: Works, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Asterisk:
    """An Asterisk that is not started, with the script in its place."""
    works.settings.spool_dir.mkdir(parents=True)
    folder = tmp_path_factory.mktemp("a")  # short: the path of its socket is limited
    dialplan = folder / "scripted.conf"
    dialplan.write_text(DIALPLAN.replace("%SPOOL%", str(works.settings.spool_dir)))
    made = Asterisk(folder, dialplan=dialplan)
    (folder / "agi-bin").mkdir()
    (folder / "agi-bin" / "callcore-agi").write_text(PROGRAM)
    (folder / "agi-bin" / "callcore-agi").chmod(0o755)
    return made


def call(asterisk: Asterisk) -> str:
    """Let a call go through the dialplan; return the log."""
    with asterisk, asterisk.ami() as ami:
        ami.action(
            "Originate",
            Channel="Local/s@scripted/n",
            Application="Playback",
            Data="demo-congrats",
            CallerID='"Ann \\"Lee" <5550100>',
            Async="true",
        )
        asterisk.wait("the hangup", lambda: "hangup SUCCESS" in asterisk.log("full"))
        asterisk.wait_idle()
        return asterisk.log("full")


async def test_a_call_on_a_real_asterisk_is_told_by_the_script(
    works: Works, reports: Reports, asterisk: Asterisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(works, reports) as server:
        monkeypatch.setenv("CALLCORE_AGI_BIND", str(server.address))
        log = await asyncio.to_thread(call, asterisk)
        assert server.counts == {"answered": 2}
    told = re.search(r"live SUCCESS yes (\S+) of ([\w.-]+)", log)
    assert told is not None
    assert told[1] == told[2]
    known = works.storage.call(told[1])
    assert [leg.leg for leg in known.legs] == ["caller"]
    assert (known.facts.queue, known.disposition) == ("help line", Disposition.ANSWERED)
    [recording], _ = works.storage.recordings(None, 9)
    assert (recording.call_id, recording.sources) == (known.call_id, ("agi",))
    works.run()
    assert works.storage.recording(recording.audio_id).state is RecordingState.STORED


async def test_a_call_on_a_real_asterisk_goes_on_without_the_daemon(
    works: Works, asterisk: Asterisk, unused_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CALLCORE_AGI_BIND", f"127.0.0.1:{unused_port}")
    log = await asyncio.to_thread(call, asterisk)
    assert re.search(r"live SUCCESS  +of ", log)
    assert asterisk.log("console").count("cannot be reached") == 2
    [file] = works.settings.spool_dir.iterdir()
    assert file.stat().st_size > 44
