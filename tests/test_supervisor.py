"""The Procfile's processes: restarted alone, stopped in order, killed when they do not stop."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from callcore.errors import ConfigError
from callcore.supervisor import Entry, Supervisor, child_environment, parse_procfile


class Lines:
    """Collects what children print and lets a test wait for a line."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []
        self._news = asyncio.Condition()

    def write(self, name: str, line: str) -> None:
        self.seen.append((name, line))
        asyncio.get_running_loop().create_task(self._tell())

    async def _tell(self) -> None:
        async with self._news:
            self._news.notify_all()

    async def wait_for(self, name: str, part: str, count: int = 1) -> list[str]:
        def found() -> list[str]:
            return [line for who, line in self.seen if who == name and part in line]

        async with asyncio.timeout(20), self._news:
            await self._news.wait_for(lambda: len(found()) >= count)
        return found()


def _script(tmp_path: Path, name: str, body: str) -> Entry:
    path = tmp_path / f"{name}.py"
    path.write_text(body)
    return Entry(name, f"{sys.executable} -u {path}")


WAITS = "import os, signal\nprint('pid', os.getpid())\nsignal.pause()\n"


def test_a_procfile_is_read_in_order_without_comments() -> None:
    entries = parse_procfile("# parts\nbroker: callcore broker\n\nweb: python -m web\n")
    assert entries == [Entry("broker", "callcore broker"), Entry("web", "python -m web")]


@pytest.mark.parametrize("text", ["nonsense", "web:", "a: x\na: y"])
def test_a_bad_procfile_names_its_line(text: str) -> None:
    with pytest.raises(ConfigError, match=r"line \d"):
        parse_procfile(text)


def test_children_find_the_programs_of_this_interpreter_first() -> None:
    path = child_environment({"PATH": "/usr/bin"})["PATH"]
    assert path == f"{Path(sys.executable).parent}:/usr/bin"


async def test_a_child_that_dies_is_restarted_alone(tmp_path: Path) -> None:
    lines = Lines()
    entries = [_script(tmp_path, name, WAITS) for name in ("one", "two")]
    supervisor = Supervisor(entries, os.environ, lines.write)
    running = asyncio.create_task(supervisor.run())
    [first] = await lines.wait_for("one", "pid")
    await lines.wait_for("two", "pid")
    os.kill(int(first.split()[1]), signal.SIGKILL)
    await lines.wait_for("one", "ended with -9")
    await lines.wait_for("one", "pid", count=2)
    assert supervisor.restarts == {"one": 1, "two": 0}
    supervisor.stop()
    async with asyncio.timeout(20):
        await running
    assert supervisor.pid("one") is None
    assert supervisor.pid("two") is None


async def test_the_broker_is_stopped_after_the_others_have_ended(tmp_path: Path) -> None:
    farewell = (
        "import signal, sys\n"
        "def end(*_):\n    print('bye'); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end)\nprint('up')\nsignal.pause()\n"
    )
    lines = Lines()
    entries = [_script(tmp_path, name, farewell) for name in ("broker", "worker")]
    supervisor = Supervisor(entries, os.environ, lines.write)
    running = asyncio.create_task(supervisor.run())
    for name in ("broker", "worker"):
        await lines.wait_for(name, "up")
    supervisor.stop()
    async with asyncio.timeout(20):
        await running
    assert [name for name, line in lines.seen if line == "bye"] == ["worker", "broker"]


async def test_a_second_stop_kills_a_child_that_ignores_the_first(tmp_path: Path) -> None:
    stubborn = (
        "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('up')\nwhile True: signal.pause()\n"
    )
    lines = Lines()
    supervisor = Supervisor([_script(tmp_path, "deaf", stubborn)], os.environ, lines.write)
    running = asyncio.create_task(supervisor.run())
    await lines.wait_for("deaf", "up")
    supervisor.stop()
    supervisor.stop()
    async with asyncio.timeout(20):
        await running
    assert supervisor.pid("deaf") is None


async def test_what_a_dead_child_started_does_not_outlive_it(tmp_path: Path) -> None:
    parent = (
        "import os, signal, subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()'])\n"
        "print('grandchild', child.pid)\nsignal.pause()\n"
    )
    lines = Lines()
    supervisor = Supervisor([_script(tmp_path, "parent", parent)], os.environ, lines.write)
    running = asyncio.create_task(supervisor.run())
    [line] = await lines.wait_for("parent", "grandchild")
    grandchild = int(line.split()[1])
    pid = supervisor.pid("parent")
    assert pid is not None
    grandchild_ended = asyncio.Event()
    handle = os.pidfd_open(grandchild)
    asyncio.get_running_loop().add_reader(handle, grandchild_ended.set)
    os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(20):
        await grandchild_ended.wait()
    asyncio.get_running_loop().remove_reader(handle)
    os.close(handle)
    supervisor.stop()
    async with asyncio.timeout(20):
        await running


async def test_a_child_is_restarted_even_where_nobody_reads_its_lines(tmp_path: Path) -> None:
    restarted = asyncio.Event()

    def write_line(name: str, line: str) -> None:
        if "ended with" in line:
            restarted.set()
        raise BrokenPipeError

    entries = [_script(tmp_path, "one", "print('up')\n")]
    supervisor = Supervisor(entries, os.environ, write_line)
    running = asyncio.create_task(supervisor.run())
    async with asyncio.timeout(20):
        await restarted.wait()
    assert supervisor.restarts["one"] >= 1
    supervisor.stop()
    async with asyncio.timeout(20):
        await running


async def test_a_child_that_cannot_be_started_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = Lines()
    supervisor = Supervisor([_script(tmp_path, "one", WAITS)], os.environ, lines.write)
    spawn = asyncio.create_subprocess_exec
    refused: list[str] = []

    async def refuse_once(*arguments: object, **options: object) -> object:
        if not refused:
            refused.append("once")
            raise OSError(24, "Too many open files")
        return await spawn(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", refuse_once)
    running = asyncio.create_task(supervisor.run())
    await lines.wait_for("one", "cannot start (Too many open files)")
    await lines.wait_for("one", "pid")
    supervisor.stop()
    async with asyncio.timeout(20):
        await running


async def test_a_stop_in_the_moment_of_a_start_reaches_the_child(tmp_path: Path) -> None:
    supervisor = Supervisor([_script(tmp_path, "one", WAITS)], os.environ, lambda *_: None)
    running = asyncio.create_task(supervisor.run())
    await asyncio.sleep(0)  # the child is being started, and nobody knows it yet
    supervisor.stop()
    async with asyncio.timeout(20):
        await running
    assert supervisor.pid("one") is None
