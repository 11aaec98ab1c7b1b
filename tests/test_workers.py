"""Real workers and real Valkey: whatever is killed, each step is done once. See test_chaos."""

import signal
import subprocess
import time
from collections.abc import Iterator

import psutil
import pytest
import redis
from dramatiq.brokers.stub import StubBroker

from callcore.document import read
from callcore.log import TextFormatter
from tests.support.house import PATIENCE_S, House, kill_group
from tests.support.valkey import Valkey, require_program
from workers.actors import declare

pytestmark = pytest.mark.redis


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
    recordings = [house.accept() for _ in range(6)]  # more than a worker has threads for
    house.wait_for(
        lambda: all(house.storage.steps(each)[0].status == "done" for each in recordings)
    )
    house.wait_for(lambda: house.num_starts() >= 1)
    running = [house.storage.steps(each)[1].status for each in recordings]
    assert 1 <= running.count("running") <= 4
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
    house.wait_for(lambda: house.num_starts() >= 1)
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
