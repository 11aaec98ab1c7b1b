"""The examples of ``deploy/`` are good for the programs they are for, and name what is there."""

import asyncio
import contextlib
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import httpx
import pytest

from callcore import settings
from callcore.audiosocket import Kind, encode
from callcore.bus import START
from callcore.doctor import pbx, versions
from callcore.storage import Storage
from callcore.supervisor import LAST_STOPPED, STOP_TIMEOUT_S, parse_procfile
from tests.support.pages import Pages, segment_of
from tests.support.require import missing
from tests.support.site import free_port
from tests.support.valkey import Valkey, stopped_valkey, valkey

__all__ = ["stopped_valkey", "valkey"]

CLONE = Path(__file__).parent.parent
DEPLOY = CLONE / "deploy"
GUIDE = (CLONE / "docs" / "asterisk.md").read_text("utf-8")
UNITS = DEPLOY / "systemd"
#: Bound of every wait; nothing here is expected to take a tenth of it.
PATIENCE_S = 60.0
#: Where the examples say that callcore is installed.
PROGRAMS = "/opt/callcore/bin/"
TOKEN = "a-token-of-this-test"

_NAME = re.compile(r"\bCALLCORE_[A-Z][A-Z0-9_]*\b")
_ASSIGNMENT = re.compile(r"#?([A-Z][A-Z0-9_]*)=(.*)")


def tool(name: str) -> str:
    """Return the path of a program; administrators' ones are not on everybody's PATH."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    return found or missing(f"no {name}: .ci/run installs it")


def run(*command: str | Path, **environ: str) -> str:
    """Run a program that must be content, and return what it says."""
    done = subprocess.run(
        command,
        env={**os.environ, **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def certificate(folder: Path) -> tuple[Path, Path]:
    """Return a certificate for this machine and its key."""
    chain, key = folder / "fullchain.pem", folder / "privkey.pem"
    run(
        *(tool("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
        *("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"),
        *("-keyout", key, "-out", chain),
    )
    return chain, key


def replaced(text: str, *pairs: tuple[str, str]) -> str:
    """Replace what must be there."""
    for old, new in pairs:
        assert old in text, f"the example no longer says {old!r}"
        text = text.replace(old, new)
    return text


# ---- what the files name


def deployed() -> list[Path]:
    return [path for path in sorted(DEPLOY.rglob("*")) if path.is_file()]


def known_names() -> set[str]:
    variables = {field.variable for field in settings.FIELDS}
    variables |= {field.variable + "_FILE" for field in settings.FIELDS if field.secret}
    dialplan = (CLONE / "dialplan" / "extensions_callcore.conf").read_text("utf-8")
    return variables | set(_NAME.findall(dialplan))


@pytest.mark.parametrize(
    "path",
    [*deployed(), CLONE / "README.md", *sorted((CLONE / "docs").glob("*.md"))],
    ids=lambda path: str(path.relative_to(CLONE)),
)
def test_every_variable_that_an_admin_reads_of_is_there(path: Path) -> None:
    assert set(_NAME.findall(path.read_text("utf-8"))) <= known_names()


def test_each_line_of_the_example_settings_is_a_good_setting(tmp_path: Path) -> None:
    fields = {field.variable: field for field in settings.FIELDS}
    secrets = {field.variable + "_FILE" for field in settings.FIELDS if field.secret}
    given: dict[str, str] = {}
    for line in (DEPLOY / "etc" / "callcore.env").read_text("utf-8").splitlines():
        match = _ASSIGNMENT.fullmatch(line)
        assert match or not line or line.startswith(("# ", "#\n")) or line == "#", line
        if match is None or match[1] == "FORWARDED_ALLOW_IPS":  # uvicorn's own
            continue
        variable, value = match[1], match[2].strip('"')
        assert (" " in value) == match[2].startswith('"'), line
        if variable in secrets:
            assert value.startswith("/etc/callcore/secrets/"), line
            continue
        assert not fields[variable].secret, f"{variable}: secrets come from files"
        fields[variable].cast(value)
        if not line.startswith("#"):
            given[variable] = value
    loaded = settings.load(given)  # what is not commented out works as it is
    assert loaded.state_dir == Path("/var/lib/callcore")


def test_the_guide_and_the_doctor_know_the_same_limits() -> None:
    for limit in versions.LIMITS:
        since = (limit.since[branch] for branch in versions.BRANCHES)
        cells = ("never" if minor is None else minor for minor in since)
        row = " | ".join(
            cell if cell == "never" else f"{branch}.{cell}"
            for branch, cell in zip(versions.BRANCHES, cells, strict=True)
        )
        assert f"| {limit.without} | {row} |" in GUIDE


def test_the_guide_calls_what_the_dialplan_has() -> None:
    dialplan = (CLONE / "dialplan" / "extensions_callcore.conf").read_text("utf-8")
    contexts = set(re.findall(r"^\[([\w-]+)\]", dialplan, re.MULTILINE))
    examples = [GUIDE, *(path.read_text("utf-8") for path in (DEPLOY / "asterisk").iterdir())]
    for text in examples:
        called = set(re.findall(r"(?:Gosub|U)\((callcore-\w+)", text))
        own = set(re.findall(r"^\[([\w-]+)\]", text, re.MULTILINE))
        assert called <= contexts | own


def test_the_manager_user_may_do_what_the_doctor_asks() -> None:
    lines = (DEPLOY / "asterisk" / "manager.conf").read_text("utf-8").splitlines()
    assert f"read = {','.join(pbx.READ)}" in lines
    assert f"write = {','.join(pbx.WRITE)}" in lines


# ---- systemd


def sections(path: Path) -> dict[str, list[str]]:
    """Return the settings of a unit by section, without comments."""
    found: dict[str, list[str]] = {}
    for line in path.read_text("utf-8").splitlines():
        if line.startswith("["):
            current = found.setdefault(line, [])
        elif line and not line.startswith("#"):
            current.append(line)
    return found


def test_systemd_takes_the_units(tmp_path: Path) -> None:
    program = tool("systemd-analyze")
    folder = shutil.copytree(UNITS, tmp_path / "units")
    for unit in folder.glob("*.service"):
        text = unit.read_text("utf-8")
        assert f"{PROGRAMS}" in text
        unit.write_text(re.sub(re.escape(PROGRAMS) + r"\w+", "/bin/true", text))
    names = [path for path in sorted(folder.iterdir()) if path.is_file() and "@" not in path.name]
    names.append(folder / "callcore-audiosocket@9093.service")
    # The colon: the system's own units beside ours, such as network-online.target.
    said = run(
        program,
        "verify",
        "--man=no",
        "--recursive-errors=no",
        *names,
        SYSTEMD_UNIT_PATH=f"{folder}:",
    )
    assert said == ""


def test_systemd_finds_the_units_well_hardened() -> None:
    # Reads the drop-in too: without it the second one would score 9.
    program = tool("systemd-analyze")
    for unit in ("callcore.service", "callcore-web.service", "callcore-audiosocket@.service"):
        run(program, "security", "--offline=true", "--threshold=25", "--no-pager", UNITS / unit)


def test_the_units_are_the_processes_of_the_procfile() -> None:
    entries = parse_procfile((CLONE / "Procfile").read_text("utf-8"))
    for entry in entries:
        service = sections(UNITS / f"callcore-{entry.name}.service")["[Service]"]
        assert f"ExecStart={PROGRAMS}{entry.command}" in service
    others = {"prepare", "audiosocket@"}
    names = {path.stem.removeprefix("callcore-") for path in UNITS.glob("callcore-*.service")}
    assert names == {entry.name for entry in entries} | others


def test_one_unit_and_many_live_under_the_same_rules() -> None:
    whole = sections(UNITS / "callcore.service")["[Service]"]
    shared = sections(UNITS / "callcore-.service.d" / "common.conf")["[Service]"]
    own = {"Type=exec", f"ExecStart={PROGRAMS}callcore up"}
    assert [line for line in whole if line not in own] == shared


def test_systemd_waits_for_the_supervisors_own_time_outs() -> None:
    (line,) = [
        line
        for line in sections(UNITS / "callcore.service")["[Service]"]
        if line.startswith("TimeoutStopSec=")
    ]
    assert LAST_STOPPED  # it is stopped after the others, with a time-out of its own
    assert int(line.partition("=")[2]) > 2 * STOP_TIMEOUT_S


# ---- logrotate, the script


def test_logrotate_takes_the_example(tmp_path: Path) -> None:
    program = tool("logrotate")
    log = tmp_path / "callcore.log"
    log.write_text("a line\n")
    tmp_path.chmod(0o750)
    text = (DEPLOY / "logrotate" / "callcore").read_text("utf-8")
    example = tmp_path / "example"
    example.write_text(replaced(text, ("/var/log/callcore/*.log", str(log))))
    said = run(program, "--debug", "--state", tmp_path / "state", example)
    assert "error" not in said
    run(program, "--force", "--state", tmp_path / "state", example)
    assert log.read_text() == ""
    assert (tmp_path / "callcore.log.1").read_text() == "a line\n"


def test_the_script_runs_a_command_with_the_services_settings(tmp_path: Path) -> None:
    environment = tmp_path / "callcore.env"
    text = (DEPLOY / "etc" / "callcore.env").read_text("utf-8")
    text = replaced(
        text,
        ("=/var/lib/callcore\n", f"={tmp_path}\n"),
        ("#CALLCORE_HOTWORDS=", "CALLCORE_HOTWORDS="),
    )
    environment.write_text(text)
    script = tmp_path / "callcore"
    shown = "import os; print(os.getcwd(), os.environ['CALLCORE_HOTWORDS'])"
    script.write_text(
        replaced(
            (DEPLOY / "bin" / "callcore").read_text("utf-8"),
            ("!= callcore ]", f'!= "{user_name()}" ]'),
            ("/etc/callcore/callcore.env", str(environment)),
            (PROGRAMS + "callcore", sys.executable),
        )
    )
    assert run("sh", script, "-c", shown) == f"{tmp_path} Amani, Pokot, referral form\n"


def user_name() -> str:
    return run("id", "-un").strip()


# ---- nginx


@contextmanager
def background(*command: str | Path, **environ: str) -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen(command, env={**os.environ, **environ}, cwd=CLONE)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def listening(*ports: int) -> None:
    """Return when somebody listens on each of the ports."""
    async with asyncio.timeout(PATIENCE_S):
        for port in ports:
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    break
                except OSError:
                    await asyncio.sleep(0.05)


def nginx_site(folder: Path, web: int, http: int, https: int) -> Path:
    """Write nginx's configuration with the shipped site in it; return its path."""
    chain, key = certificate(folder)
    site = folder / "site.conf"
    site.write_text(
        replaced(
            (DEPLOY / "nginx" / "callcore.conf").read_text("utf-8"),
            ("127.0.0.1:8000", f"127.0.0.1:{web}"),
            ("    listen [::]:80;\n", ""),
            ("    listen [::]:443 ssl http2;\n", ""),
            ("listen 80;", f"listen 127.0.0.1:{http};"),
            ("listen 443 ssl", f"listen 127.0.0.1:{https} ssl"),
            ("callcore.example.org", "127.0.0.1"),
            ("/etc/ssl/callcore/fullchain.pem", str(chain)),
            ("/etc/ssl/callcore/privkey.pem", str(key)),
            ("/var/log/nginx/", f"{folder}/"),
        )
    )
    temporary = "\n".join(
        f"{kind}_temp_path {folder}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    main = folder / "nginx.conf"
    user = f"user {user_name()};" if os.geteuid() == 0 else ""
    main.write_text(
        f"{user} daemon off; master_process on; worker_processes 1; pid {folder}/nginx.pid;\n"
        f"error_log {folder}/error.log;\nevents {{}}\nhttp {{\n{temporary}\ninclude {site};\n}}\n"
    )
    return main


@pytest.fixture
def pages(tmp_path: Path, valkey: Valkey) -> Iterator[Pages]:
    pages = Pages(tmp_path, valkey.url, TOKEN)
    pages.begin_call("1.2", caller="100")
    yield pages
    pages.close()


@pytest.mark.redis
async def test_pages_log_in_and_live_events_come_through_nginx(
    pages: Pages, tmp_path: Path
) -> None:
    nginx = tool("nginx")
    web, http, https = free_port(), free_port(), free_port()
    main = nginx_site(tmp_path, web, http, https)
    log = ("-e", str(tmp_path / "error.log"))
    said = run(nginx, "-t", "-q", *log, "-c", main)
    assert "emerg" not in said
    environ = {**pages.environ, "CALLCORE_WEB_BIND": f"127.0.0.1:{web}"}
    with (
        background(sys.executable, "-m", "web", **environ),
        background(nginx, *log, "-c", main) as proxy,
    ):
        await listening(web, http, https)
        trusted = ssl.create_default_context(cafile=str(tmp_path / "fullchain.pem"))
        base = f"https://127.0.0.1:{https}"
        async with httpx.AsyncClient(verify=trusted, base_url=base, timeout=30) as client:
            plain = await client.get(f"http://127.0.0.1:{http}/calls")
            assert (plain.status_code, plain.headers["location"]) == (
                301,
                "https://127.0.0.1/calls",
            )
            assert (await client.get("/api/calls/")).status_code == 401
            # As a browser posts the form of the log-in page.
            answer = await client.post("/login", data={"token": TOKEN}, headers={"Origin": base})
            assert answer.status_code == 303
            assert "secure" in answer.headers["set-cookie"].lower()
            assert answer.headers["strict-transport-security"]
            assert (await client.get("/calls/1.2")).status_code == 200
            events = f"/events/calls/1.2?after={START}"
            async with asyncio.timeout(30), client.stream("GET", events) as live:
                assert live.status_code == 200
                lines = live.aiter_lines()
                await until(lines, "event: call.started")
                # It is published only now, and arrives while the answer is open.
                said_now = segment_of(1, "caller", 1.0, 1.5, "words")
                await asyncio.to_thread(pages.say, "1.2", said_now)
                await until(lines, "event: transcript.final")
        # Stopped in order: killed, it would leave its workers behind.
        proxy.send_signal(signal.SIGTERM)
        await asyncio.to_thread(proxy.wait, PATIENCE_S)
    assert "after=" not in (tmp_path / "callcore.log").read_text("utf-8")


async def until(lines: AsyncIterator[str], wanted: str) -> None:
    async for line in lines:
        if line == wanted:
            return
    raise AssertionError(f"the stream ended before {wanted!r}")


# ---- HAProxy


def haproxy_config(folder: Path, front: int, daemons: list[int], agi: list[int]) -> Path:
    config = folder / "haproxy.cfg"
    config.write_text(
        replaced(
            (DEPLOY / "haproxy" / "haproxy.cfg").read_text("utf-8"),
            ("10.0.0.4:9092", f"127.0.0.1:{front}"),
            ("10.0.0.5:9092", f"127.0.0.1:{daemons[0]}"),
            ("10.0.0.6:9092", f"127.0.0.1:{daemons[1]}"),
            ("10.0.0.4:4573", f"127.0.0.1:{agi[2]}"),
            ("10.0.0.5:4573", f"127.0.0.1:{agi[0]}"),
            ("10.0.0.6:4573", f"127.0.0.1:{agi[1]}"),
        )
    )
    return config


def test_haproxy_takes_the_example() -> None:
    run(tool("haproxy"), "-c", "-f", DEPLOY / "haproxy" / "haproxy.cfg")


@asynccontextmanager
async def stream_to(port: int) -> AsyncIterator[asyncio.StreamReader]:
    """Stream as Asterisk would, until the daemon has answered with its first frame."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(encode(Kind.UUID, uuid.uuid4().bytes))
        writer.write(encode(Kind.SLIN, bytes(320)))
        async with asyncio.timeout(PATIENCE_S):
            header = await reader.readexactly(3)
        assert header[0] == Kind.SLIN
        yield reader
    finally:
        writer.close()


async def read_out(reader: asyncio.StreamReader) -> asyncio.StreamReader:
    """Read a stream until it ends, and return it."""
    with contextlib.suppress(ConnectionError):
        while await reader.read(4096):
            pass
    return reader


@pytest.mark.redis
async def test_new_streams_go_to_the_daemon_that_is_left(tmp_path: Path, valkey: Valkey) -> None:
    haproxy = tool("haproxy")
    front, *ports = (free_port() for _ in range(6))
    daemons, agi = ports[:2], ports[2:]
    environ = {**valkey.environ, "CALLCORE_LIVE": "off"}
    site = settings.load(environ)
    storage = Storage(site.database_url)
    storage.migrate()
    storage.close()
    with ExitStack() as stack:
        command = (sys.executable, "-m", "callcore.cli", "audiosocket")
        processes = [
            stack.enter_context(
                background(*command, **environ, CALLCORE_AUDIOSOCKET_BIND=f"127.0.0.1:{port}")
            )
            for port in daemons
        ]
        await listening(*daemons)
        config = haproxy_config(tmp_path, front, daemons, agi)
        stack.enter_context(background(haproxy, "-f", config))
        await listening(front)
        async with stream_to(front) as one, stream_to(front) as other:
            processes[0].kill()
            processes[0].wait()
            # The fewest connections: each daemon had one of the two.
            readers = [asyncio.create_task(read_out(each)) for each in (one, other)]
            over, on = await asyncio.wait(
                readers, timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED
            )
            assert (len(over), len(on)) == (1, 1)
            for reader in on:
                reader.cancel()
            await asyncio.wait(on)
            (left,) = {one, other} - {reader.result() for reader in over}
            async with asyncio.timeout(PATIENCE_S):
                await left.readexactly(320)  # it goes on
            for _ in range(3):
                async with stream_to(front):
                    pass
