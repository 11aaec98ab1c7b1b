import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import IO

import pytest
import redis

from callcore import broker, settings
from callcore.errors import CallcoreError, ConfigError
from tests.support.valkey import Valkey, stopped_valkey, valkey

__all__ = ["stopped_valkey", "valkey"]


def client_of(valkey: Valkey) -> redis.Redis:
    return redis.Redis.from_url(valkey.url)


def read_until(stream: IO[str], words: str) -> str:
    seen = []
    for line in stream:
        seen.append(line)
        if words in line:
            return line
    raise AssertionError(f"{words!r} was never said, but: {''.join(seen)}")


def append_only_file(folder: Path) -> Path:
    (path,) = (folder / broker.DATA_FOLDER).glob("*.incr.aof")
    return path


def test_a_socket_path_that_the_system_cannot_hold_is_a_setting_to_mend(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 120)
    with pytest.raises(ConfigError, match=r"CALLCORE_STATE_DIR.*107 bytes") as raised:
        broker.run(settings.load({"CALLCORE_STATE_DIR": str(folder)}))
    assert raised.value.field == "CALLCORE_STATE_DIR"
    assert not folder.exists()


def test_a_missing_server_program_names_its_variable(tmp_path: Path) -> None:
    environ = {"CALLCORE_STATE_DIR": str(tmp_path), "CALLCORE_BROKER_BIN": "no-such-valkey"}
    with pytest.raises(ConfigError, match="CALLCORE_BROKER_BIN=no-such-valkey"):
        broker.run(settings.load(environ))


def test_waiting_for_a_broker_that_never_comes_says_what_to_do(tmp_path: Path) -> None:
    here = settings.load({"CALLCORE_STATE_DIR": str(tmp_path)})
    with pytest.raises(CallcoreError, match="is `callcore broker` running"):
        broker.wait_ready(here, 0.05)


def test_waiting_in_vain_does_not_show_the_password_of_the_url() -> None:
    here = settings.load({"CALLCORE_REDIS_URL": "redis://:geheim@127.0.0.1:1/0"})
    with pytest.raises(CallcoreError) as raised:
        broker.wait_ready(here, 0.05)
    assert "geheim" not in str(raised.value)


@pytest.mark.redis
def test_the_socket_is_for_its_owner_only_and_there_is_no_port(valkey: Valkey) -> None:
    assert (valkey.folder / "broker.sock").stat().st_mode & 0o777 == 0o700
    with client_of(valkey) as client:
        facts = str(client.config_get("port", "maxmemory-policy", "appendfsync"))
    assert "'port': b'0'" in facts or "'port': '0'" in facts, facts
    assert "noeviction" in facts
    assert "everysec" in facts


@pytest.mark.redis
def test_a_killed_broker_serves_what_it_held(stopped_valkey: Valkey) -> None:
    stopped_valkey.start()
    with client_of(stopped_valkey) as client:
        client.rpush("list", *range(1000))
    stopped_valkey.kill()
    stopped_valkey.start()
    with client_of(stopped_valkey) as client:
        assert client.llen("list") == 1000


@pytest.mark.redis
def test_sigterm_ends_it_with_0_and_keeps_the_data(stopped_valkey: Valkey) -> None:
    process = stopped_valkey.start()
    with client_of(stopped_valkey) as client:
        client.set("key", "value")
    process.terminate()
    assert process.wait(10) == 0
    stopped_valkey.start()
    with client_of(stopped_valkey) as client:
        assert client.get("key") == b"value"


@pytest.mark.redis
@pytest.mark.parametrize("damage", ["middle", "manifest", "base"])
def test_data_that_cannot_be_read_is_set_aside_and_said(
    stopped_valkey: Valkey, damage: str
) -> None:
    stopped_valkey.start()
    with client_of(stopped_valkey) as client:
        client.rpush("list", *range(100))
    stopped_valkey.kill()
    folder = stopped_valkey.folder / broker.DATA_FOLDER
    suffix = {"middle": "*.incr.aof", "manifest": "*.manifest", "base": "*.base.rdb"}[damage]
    (path,) = folder.glob(suffix)
    content = path.read_bytes()
    path.write_bytes(content[:20] + b"\xff GARBAGE \xff" + content[31:])

    process = stopped_valkey.launch()
    assert process.stderr
    said = read_until(process.stderr, "set aside, starting empty")
    broker.wait_ready(stopped_valkey.settings, 30)
    with client_of(stopped_valkey) as client:
        assert client.dbsize() == 0
    (kept,) = stopped_valkey.folder.glob(f"{broker.DATA_FOLDER}.unreadable-*")
    assert kept.name in said
    assert (kept / path.name).exists()


@pytest.mark.redis
def test_a_file_cut_short_costs_its_last_write_only(stopped_valkey: Valkey) -> None:
    stopped_valkey.start()
    with client_of(stopped_valkey) as client:
        for number in range(100):
            client.rpush("list", number)
    stopped_valkey.kill()
    path = append_only_file(stopped_valkey.folder)
    path.write_bytes(path.read_bytes()[:-7])
    stopped_valkey.start()
    with client_of(stopped_valkey) as client:
        assert client.llen("list") == 99
    assert not list(stopped_valkey.folder.glob("*.unreadable-*"))


@pytest.mark.redis
def test_a_server_that_never_starts_does_not_cost_the_data(
    stopped_valkey: Valkey, tmp_path: Path
) -> None:
    stopped_valkey.start()
    stopped_valkey.kill()
    broken = tmp_path / "valkey-server"
    broken.write_text("#!/bin/sh\necho '1:M 1 Jan # no licence'\nexit 1\n")
    broken.chmod(0o755)
    environ = {**stopped_valkey.environ, "CALLCORE_BROKER_BIN": str(broken)}
    with pytest.raises(CallcoreError, match="does not start: no licence"):
        broker.run(settings.load(environ))
    assert append_only_file(stopped_valkey.folder).exists()


@pytest.mark.redis
def test_twenty_starters_at_once_leave_one_broker(stopped_valkey: Valkey) -> None:
    processes = [stopped_valkey.launch() for _ in range(20)]
    broker.wait_ready(stopped_valkey.settings, 60)
    waiting = [p for p in processes if _says_it_waits(p)]
    assert len(waiting) == 19
    (server,) = (p for p in processes if p not in waiting)
    assert all(p.poll() is None for p in processes)
    with client_of(stopped_valkey) as client:
        assert client.info("server")["process_id"] == server.pid
        client.set("key", "value")

    # One that waits takes over, with the data, when the server is killed.
    server.kill()
    server.wait()
    broker.wait_ready(stopped_valkey.settings, 30)
    with client_of(stopped_valkey) as client:
        assert client.get("key") == b"value"
        successor = client.info("server")["process_id"]
    assert successor in {p.pid for p in waiting}
    for process in waiting:
        process.terminate()
    assert {p.wait(10) for p in waiting} == {0}


def _says_it_waits(process: "subprocess.Popen[str]") -> bool:
    """Read the first line that a starter writes: it serves or it waits."""
    assert process.stderr
    line = process.stderr.readline()
    assert "embedded broker" in line, line
    return "waiting" in line


@pytest.mark.redis
def test_with_a_broker_of_the_site_it_says_so_and_waits(stopped_valkey: Valkey) -> None:
    process = stopped_valkey.launch(CALLCORE_REDIS_URL="redis://127.0.0.1:1/0")
    assert process.stderr
    read_until(process.stderr, "no embedded one is started")
    assert not (stopped_valkey.folder / "broker.sock").exists()
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0


@pytest.mark.redis
def test_wait_ready_returns_when_the_broker_comes_later(stopped_valkey: Valkey) -> None:
    waiter = threading.Thread(target=broker.wait_ready, args=(stopped_valkey.settings, 30))
    waiter.start()
    stopped_valkey.launch()
    waiter.join(30)
    assert not waiter.is_alive()


@pytest.mark.redis
def test_a_folder_with_blanks_and_quotes_is_served(
    stopped_valkey: Valkey, tmp_path_factory: pytest.TempPathFactory
) -> None:
    odd = Valkey(tmp_path_factory.mktemp('a "b" ü'))
    try:
        odd.start()
        assert os.path.exists(odd.folder / broker.DATA_FOLDER)
    finally:
        odd.kill()
