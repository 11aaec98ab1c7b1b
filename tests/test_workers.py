"""Real workers, real Valkey, both databases: whatever is killed, each step is done once."""

import contextlib
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import redis
from dramatiq.brokers.stub import StubBroker

from callcore import intake, settings
from callcore.calls import CallFacts, Media
from callcore.document import read
from callcore.jobs import Waker
from callcore.log import TextFormatter
from callcore.storage import Storage
from tests.support.databases import database_url
from tests.support.recordings import write_wav
from tests.support.slow import make_model
from tests.support.valkey import Valkey, require_program, stopped_valkey
from workers.actors import declare

__all__ = ["database_url", "stopped_valkey"]

pytestmark = pytest.mark.redis

ROOT = Path(__file__).parents[1]
#: Bound of every wait; what is waited for takes a tenth of it on a busy machine.
PATIENCE_S = 90.0


class House:
    """Workers, a broker and a database in one folder."""

    def __init__(self, valkey: Valkey, database_url: str, lease_s: float = 3.0) -> None:
        self.valkey = valkey
        self.model = make_model(valkey.folder / "model")
        (self.model / "starts").touch()
        self.environ = {
            **valkey.environ,
            "CALLCORE_DATABASE_URL": database_url,
            "CALLCORE_TRANSCRIBER": "tests.support.slow:SlowTranscriber",
            "CALLCORE_MODEL": str(self.model),
            "CALLCORE_LEASE_S": str(lease_s),
            "CALLCORE_MAX_ATTEMPTS": "50",
            "CALLCORE_SETTLE_S": "0",
        }
        self.settings = settings.load(self.environ)
        self.storage = Storage(database_url)
        self.storage.migrate()
        self.waker = Waker(self.settings)
        self.workers: list[subprocess.Popen[bytes]] = []
        self._numbers = itertools.count()

    def start_worker(self) -> "subprocess.Popen[bytes]":
        log = (self.valkey.folder / "worker.log").open("ab")
        worker = subprocess.Popen(
            [sys.executable, "-m", "workers"],
            env={**os.environ, **self.environ},
            cwd=ROOT,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        log.close()
        self.workers.append(worker)
        return worker

    def a_worker(self) -> "subprocess.Popen[bytes]":
        """Return a running worker: an earlier test may have left one."""
        running = [each for each in self.workers if each.poll() is None]
        return running[0] if running else self.start_worker()

    def accept(self, wake: bool = True) -> str:
        number = next(self._numbers)
        path = self.valkey.folder / "files" / f"17000000{number:02}.1.wav"
        write_wav(path, seconds=0.5, pitch=200 + 10 * number)
        media = [Media("mixed", str(path))]
        accepted = intake.accept_recording(self.storage, self.settings, CallFacts(), "spool", media)
        if wake and accepted.wake:
            self.waker.wake("settle", accepted.audio_id)
        return accepted.audio_id

    def wait_for(self, condition: Callable[[], bool]) -> None:
        until = time.monotonic() + PATIENCE_S
        while not condition():
            if time.monotonic() > until:
                pytest.fail("waited in vain; the workers said:\n" + self.log())
            time.sleep(0.05)

    def log(self) -> str:
        return (self.valkey.folder / "worker.log").read_text(errors="replace")[-6000:]

    def is_done(self, audio_id: str) -> bool:
        return all(step.status == "done" for step in self.storage.steps(audio_id))

    def num_starts(self) -> int:
        return len((self.model / "starts").read_text().splitlines())

    def hold(self) -> None:
        (self.model / "hold").touch()

    def go_on(self) -> None:
        (self.model / "hold").unlink()

    def close(self) -> None:
        for worker in self.workers:
            kill_group(worker)
        self.waker.close()
        self.storage.close()


def kill_group(worker: "subprocess.Popen[bytes]") -> None:
    """Kill -9 a runner with all of its processes."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()


def children(worker: "subprocess.Popen[bytes]") -> list[psutil.Process]:
    """Return dramatiq's worker processes."""
    return [
        child
        for child in psutil.Process(worker.pid).children()
        if "callcore.inference" not in " ".join(child.cmdline())
    ]


@pytest.fixture(scope="module")
def shared_house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    require_program()
    valkey = Valkey(tmp_path_factory.mktemp("valkey"))
    valkey.start()
    made = House(valkey, f"sqlite:///{valkey.folder / 'callcore.db'}")
    yield made
    made.close()
    valkey.kill()


@pytest.fixture
def house(shared_house: House) -> House:
    """A house on SQLite where nothing is left to do; starting all of it takes seconds."""
    recordings, _ = shared_house.storage.recordings(None, 1000)
    assert all(shared_house.is_done(each.audio_id) for each in recordings)
    (shared_house.model / "starts").write_text("")
    return shared_house


@pytest.fixture
def any_house(stopped_valkey: Valkey, database_url: str) -> Iterator[House]:
    """A house on either database: for what the database decides."""
    stopped_valkey.start()
    made = House(stopped_valkey, database_url)
    yield made
    made.close()


def test_a_recording_goes_all_the_way(house: House) -> None:
    house.a_worker()
    audio_id = house.accept()
    house.wait_for(lambda: house.is_done(audio_id))
    made = read(house.storage, audio_id)
    assert made["status"] == "completed"
    assert [each["text"] for each in made["segments"]] == ["sound 0.0 0.5"]
    assert made["processing"]["steps"][1]["engine"] == "scripted"
    with redis.Redis.from_url(house.valkey.url) as client:
        events = client.xrange(f"room:{made['call_id']}")
        assert len(events) == 5


def test_a_killed_worker_mid_step_costs_a_lease_and_nothing_else(house: House) -> None:
    house.hold()
    first = house.a_worker()
    audio_id = house.accept()
    house.wait_for(lambda: house.num_starts() == 1)
    kill_group(first)
    second = house.start_worker()
    house.wait_for(lambda: house.num_starts() == 2)
    step = house.storage.steps(audio_id)[1]
    assert (step.status, step.attempts) == ("running", 2)
    house.go_on()
    house.wait_for(lambda: house.is_done(audio_id))
    assert len(read(house.storage, audio_id)["segments"]) == 1
    assert second.poll() is None


def test_an_inference_child_that_is_killed_costs_a_try(house: House) -> None:
    house.hold()
    worker = house.a_worker()
    audio_id = house.accept()
    house.wait_for(lambda: house.num_starts() == 1)
    for child in psutil.Process(worker.pid).children(recursive=True):
        if "callcore.inference" in " ".join(child.cmdline()):
            child.kill()
    house.go_on()
    house.wait_for(lambda: house.is_done(audio_id))
    assert house.storage.steps(audio_id)[1].attempts == 2


def test_a_worker_told_to_stop_gives_its_step_back_and_ends(house: House) -> None:
    house.hold()
    worker = house.a_worker()
    audio_id = house.accept()
    house.wait_for(lambda: house.num_starts() == 1)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(PATIENCE_S) == 0
    step = house.storage.steps(audio_id)[1]
    assert (step.status, step.attempts) == ("pending", 0)
    house.go_on()
    house.start_worker()
    house.wait_for(lambda: house.is_done(audio_id))


def test_an_idle_worker_ends_when_told_to(house: House) -> None:
    worker = house.a_worker()
    audio_id = house.accept()
    house.wait_for(lambda: house.is_done(audio_id))
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(PATIENCE_S) == 0


def test_worker_processes_end_with_their_runner(house: House) -> None:
    worker = house.a_worker()
    audio_id = house.accept()
    house.wait_for(lambda: house.is_done(audio_id))
    left = children(worker)
    assert left
    worker.kill()
    worker.wait()
    _, alive = psutil.wait_procs(left, timeout=PATIENCE_S)
    assert not alive


def test_a_long_transcription_holds_up_no_settling(house: House) -> None:
    house.hold()
    house.a_worker()
    recordings = [house.accept() for _ in range(4)]
    house.wait_for(
        lambda: all(house.storage.steps(each)[0].status == "done" for each in recordings)
    )
    house.wait_for(lambda: house.num_starts() == 1)
    running = [house.storage.steps(each)[1].status for each in recordings]
    assert running.count("running") == 1
    house.go_on()
    house.wait_for(lambda: all(map(house.is_done, recordings)))


def test_a_message_that_was_never_sent_is_made_up_for(house: House) -> None:
    house.a_worker()
    audio_id = house.accept(wake=False)
    house.wait_for(lambda: house.is_done(audio_id))


def test_a_broker_that_loses_everything_loses_no_recording(house: House) -> None:
    house.hold()
    house.a_worker()
    recordings = [house.accept() for _ in range(6)]
    house.wait_for(lambda: house.num_starts() == 1)
    with redis.Redis.from_url(house.valkey.url) as client:
        client.flushall()
    house.go_on()
    house.wait_for(lambda: all(map(house.is_done, recordings)))
    assert house.num_starts() == 6


def test_a_broker_that_is_away_delays_and_loses_nothing(house: House) -> None:
    house.a_worker()
    first = house.accept()
    house.wait_for(lambda: house.is_done(first))
    house.valkey.kill()
    before = time.monotonic()
    recordings = [house.accept() for _ in range(4)]
    assert time.monotonic() - before < 20  # a door never waits for the broker
    house.valkey.start()
    house.wait_for(lambda: all(map(house.is_done, recordings)))
    assert house.num_starts() == 5


def test_chaos_loses_nothing_and_doubles_nothing(any_house: House) -> None:
    """R1 in small: workers and broker are killed while recordings keep coming."""
    chance = random.Random(7)
    workers = [any_house.start_worker(), any_house.start_worker()]
    recordings = []
    for number in range(24):
        recordings.append(any_house.accept(wake=chance.random() < 0.8))
        if number % 6 == 5:
            at = chance.randrange(2)
            kill_group(workers[at])
            workers[at] = any_house.start_worker()
        if number == 10:
            any_house.valkey.kill()
            any_house.valkey.start()
        if number == 15:
            with redis.Redis.from_url(any_house.valkey.url) as client:
                client.flushall()
        if number % 6 == 3:  # the kills hit workers that have begun
            any_house.wait_for(lambda begun=number // 2: any_house.num_starts() >= begun)  # type: ignore[misc]
    any_house.wait_for(lambda: all(map(any_house.is_done, recordings)))
    for audio_id in recordings:
        made = read(any_house.storage, audio_id)
        assert made["status"] == "completed"
        assert len(made["segments"]) == 1
    assert len(any_house.storage.recordings(None, 100)[0]) == 24


def test_an_error_that_names_a_person_reaches_neither_dramatiq_nor_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken:
        steps = ("transcribe",)

        def settle(self, audio_id: str) -> None:
            raise ConnectionError("Failing row contains (0700123456)")

        def run_step(self, name: str, audio_id: str) -> None:
            self.settle(audio_id)

    broker = StubBroker()
    declare(broker, Broken())  # type: ignore[arg-type]
    for step in ("settle", "transcribe"):
        broker.get_actor(step)("recording-1")
    assert [vars(each)["audio_id"] for each in caplog.records] == ["recording-1"] * 2
    assert "0700" not in "".join(map(TextFormatter().format, caplog.records))
