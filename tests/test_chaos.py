"""The proofs of reliability: kill whatever runs, take the broker away, hand in old files in bulk.

R1 to R4 of the goals are here. The others: R6 in ``test_doors``, R7 in ``test_spool_torture``, R8
in ``test_broker``, R9 in ``test_workers`` and ``test_crash``. ``make nightly`` runs the full sizes.
"""

import random
import shutil
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import redis

from callcore import broker, tables
from callcore.audio import WavWriter
from callcore.calls import RecordingState, StepState, now
from callcore.storage import outbox
from tests.support import triggers
from tests.support.databases import database_url
from tests.support.house import House, kill_group
from tests.support.recording_host import Host, sends, serve
from tests.support.recordings import tone, write_wav
from tests.support.valkey import Valkey, stopped_valkey
from tests.test_doors import Web

__all__ = ["database_url", "stopped_valkey"]

pytestmark = [pytest.mark.redis, pytest.mark.slow]

STEPS = ("transcribe", "translate", "summarize", "ner", "classify", "insights", "annotate")
SCRIPTED = {
    "steps": ",".join(STEPS),
    "transcriber": "tests.support.chaos_engines:FaultyTranscriber",
    "entity_recognizer": "tests.support.chaos_engines:FaultyEntityRecognizer",
    "embedder": "tests.support.chaos_engines:FaultyEmbedder",
    "sentiment": "tests.support.chaos_engines:FaultySentiment",
    "translator": "callcore.engines.scripted:ScriptedTranslator",
}


def all_steps(valkey: Valkey) -> dict[str, str]:
    """Return the settings of a house that runs every step with scripted engines."""
    model = str(valkey.folder / "model")
    return {**SCRIPTED, "embedding_model": model, "entity_models": f"en={model}"}


def say(what: str, **figures: object) -> None:
    """Print what was measured: ``pytest -rP`` shows it."""
    print(what, " ".join(f"{name}={value}" for name, value in figures.items()))


# ---- R1


@dataclass(frozen=True)
class Size:
    recordings: int
    worker_kills: int
    broker_kills: int
    patience_s: float


SMALL = Size(100, 6, 3, 300)
FULL = Size(600, 32, 12, 3600)


def write_call(path: Path, number: int) -> None:
    """Write a recording whose transcript no other has."""
    silence = bytes(round(number % 30 * 0.1 * 8000) * 2)
    path.parent.mkdir(parents=True, exist_ok=True)
    with WavWriter(path, 8000, 1) as writer:
        writer.write(silence + tone(0.4 + number // 30 * 0.1, pitch=200.0 + number))
        writer.write(bytes(16_000) + tone(0.3, pitch=700.0))


def count_effects(house: House) -> None:
    """Have the database itself count the results that were ever committed."""
    run = house.storage.database.peewee.execute_sql
    run("CREATE TABLE effects (audio_id TEXT, step TEXT)")
    note = "INSERT INTO effects VALUES (NEW.audio_id, NEW.step);"
    call = f"BEGIN {note} END"
    if house.storage.database.is_postgres:
        run(
            "CREATE FUNCTION note_effect() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN {note} RETURN NEW; END $$"
        )
        call = "EXECUTE FUNCTION note_effect()"
    run(f"CREATE TRIGGER noted AFTER INSERT ON results FOR EACH ROW {call}")


def effects(house: House) -> Counter[tuple[str, str]]:
    rows = house.storage.database.peewee.execute_sql("SELECT audio_id, step FROM effects")
    return Counter((audio_id, step) for audio_id, step in rows.fetchall())


class Chaos:
    """Kills workers and brokers, evenly over the work that is to be done."""

    def __init__(self, house: House, size: Size) -> None:
        self._house = house
        self._total = size.recordings * (1 + len(STEPS))
        self._chance = random.Random(7)
        self._workers = [house.start_worker() for _ in range(2)]
        kinds: list[tuple[Callable[[], None], int]] = [
            (self._kill_worker, size.worker_kills),
            (self._kill_broker, size.broker_kills),
            (self._flush, 1),
        ]
        self._plan = sorted(
            ((self._total * (n + 0.5) / times, act) for act, times in kinds for n in range(times)),
            key=lambda each: each[0],
        )
        self.killed = len(self._plan)

    def is_over(self) -> bool:
        """Do what is due; return whether all the work is done."""
        done = self._house.num_done()
        while self._plan and self._plan[0][0] <= done:
            self._plan.pop(0)[1]()
        return done == self._total and not self._plan

    def _kill_worker(self) -> None:
        at = self._chance.randrange(len(self._workers))
        kill_group(self._workers[at])
        self._workers[at] = self._house.start_worker()

    def _kill_broker(self) -> None:
        self._house.valkey.kill()
        self._house.valkey.start()

    def _flush(self) -> None:
        with redis.Redis.from_url(self._house.valkey.url) as client:
            client.flushall()


@pytest.fixture
def host() -> Iterator[Host]:
    with serve() as made:
        yield made


@pytest.mark.parametrize(
    "size",
    [pytest.param(SMALL, id="100"), pytest.param(FULL, id="600", marks=pytest.mark.nightly)],
)
def test_chaos_loses_nothing_and_doubles_nothing(
    stopped_valkey: Valkey, database_url: str, host: Host, size: Size
) -> None:
    """R1: four doors report the same recordings while workers and brokers are killed."""
    stopped_valkey.start()
    given = {"recording_hosts": f"127.0.0.1:{host.port}", "recording_networks": "127.0.0.0/8"}
    house = House(stopped_valkey, database_url, **all_steps(stopped_valkey), **given)
    doors: list[subprocess.Popen[bytes]] = []
    try:
        count_effects(house)
        for number in range(size.recordings):
            path = triggers.made(house.settings, number)
            write_call(path, number)
            host.paths[f"/rec/{path.name}"] = sends(path.read_bytes())
        began = time.monotonic()
        url = host.url("", "127.0.0.1")
        doors = [
            house.start("tests.support.triggers", door, "7", str(size.recordings), url)
            for door in triggers.DOORS
        ]
        chaos = Chaos(house, size)
        house.wait_for(chaos.is_over, size.patience_s)
        assert [door.wait(60) for door in doors] == [0] * len(doors)
        house.wait_for(chaos.is_over)  # a report that came last may have had it settled again
        took_s = time.monotonic() - began
        check(house, size)
        jobs = house.storage.database.all(tables.Job.select())
        say(
            "R1",
            database="postgres" if house.storage.database.is_postgres else "sqlite",
            recordings=size.recordings,
            steps_done=len(jobs),
            killed=chaos.killed,
            tried_again=sum(each["attempts"] > 1 for each in jobs),
            seconds=round(took_s, 1),
        )
    finally:
        for door in doors:
            kill_group(door)
        house.close()


def check(house: House, size: Size) -> None:
    """Check that nothing is lost and nothing is doubled."""
    storage = house.storage
    recordings, _ = storage.recordings(None, size.recordings + 1)
    by_id = {each.facts.uniqueid: each for each in recordings}
    assert by_id.keys() == {triggers.uniqueid(number) for number in range(size.recordings)}
    assert len(recordings) == size.recordings
    for number in range(size.recordings):
        recording = by_id[triggers.uniqueid(number)]
        assert recording.state is RecordingState.STORED
        assert set(recording.sources) == set(triggers.DOORS)
        facts = recording.facts
        assert (facts.caller, facts.agent, facts.queue) == ("0700", "Ada", "help")
        assert (facts.direction, facts.language) == ("in", "sw")
        aliases = (f"crm-{number}", triggers.uniqueid(number), triggers.linkedid(number))
        assert {storage.call(each).call_id for each in aliases} == {recording.call_id}
        assert storage.recordings_of(recording.call_id) == [recording]
        [media] = recording.media
        assert Path(media.path).read_bytes() == triggers.made(house.settings, number).read_bytes()
        assert {each.status for each in storage.steps(recording.audio_id)} == {StepState.DONE}
    ids = {each.audio_id for each in recordings}
    assert effects(house) == Counter({(each, step): 1 for each in ids for step in STEPS})
    segments = [
        segment["segment"]
        for each in ids
        for segment in storage.results(each)["transcribe"]["segments"]
    ]
    assert len(set(segments)) == len(segments) == 2 * size.recordings
    model = tables.Delivery
    notes = storage.database.all(model.select().where(model.endpoint == outbox.NOBODY_YET))
    told = Counter((each["type"], each["payload"]["data"]["audio_id"]) for each in notes)
    ready = {each: count for each, count in told.items() if each[0].startswith("analysis")}
    assert ready == {("analysis.ready", each): 1 for each in ids}


# ---- R2


def test_the_step_of_a_killed_worker_begins_again_when_its_lease_ends(
    stopped_valkey: Valkey, tmp_path: Path
) -> None:
    """R2: by its lease, though its broker would wait for half a minute."""
    stopped_valkey.start()
    house = House(stopped_valkey, f"sqlite:///{tmp_path / 'callcore.db'}")
    waits = []
    try:
        first = house.start_worker()
        for _ in range(3):
            house.hold()
            before = house.num_starts()
            audio_id = house.accept()
            house.wait_for(lambda: house.num_starts() == before + 1)  # noqa: B023
            second = house.start_worker()
            other = house.accept()  # the second one is there when it has taken this
            house.wait_for(lambda: house.num_starts() == before + 2)  # noqa: B023
            killed_at = now()
            kill_group(first)
            house.go_on()
            house.wait_for(lambda: all(map(house.is_done, (audio_id, other))))  # noqa: B023
            step = house.storage.steps(audio_id)[1]
            assert step.attempts == 2
            assert step.started_at is not None
            waits.append((step.started_at - killed_at).total_seconds())
            first = second
        say("R2", lease_s=house.settings.lease_s, waits_s=[round(each, 1) for each in waits])
        # Far from what the broker would need; a quiet machine stays below the lease and 5 s.
        assert max(waits) < 30
    finally:
        house.close()


# ---- R3


@pytest.mark.parametrize("away_s", [10, pytest.param(60, marks=pytest.mark.nightly)])
def test_without_a_broker_the_web_still_accepts_and_nothing_is_lost(
    stopped_valkey: Valkey, tmp_path: Path, host: Host, away_s: int
) -> None:
    """R3: the answer does not wait for the broker, and the work begins when it is back."""
    stopped_valkey.start()
    house = House(
        stopped_valkey,
        f"sqlite:///{tmp_path / 'callcore.db'}",
        recording_hosts=f"127.0.0.1:{host.port}",
        recording_networks="127.0.0.0/8",
    )
    web = Web({**house.environ, "PATH": "/usr/bin:/bin"}, tmp_path / "web.log")
    try:
        house.start_worker()
        first = house.accept()
        house.wait_for(lambda: house.is_done(first))
        web.wait()
        house.valkey.kill()
        answers_s, accepted = [], []
        gone_at = time.monotonic()
        with httpx.Client(base_url=f"http://{web.address}", trust_env=False, timeout=30) as client:
            for number in range(10_000):
                if time.monotonic() - gone_at > away_s:
                    break
                name = f"1800{number:06}.1.wav"
                body = write_wav(tmp_path / "made" / name, 0.5, 300 + number % 3000).read_bytes()
                before = time.monotonic()
                if number % 2:
                    answer = client.post("/api/upload/", files={"file": (name, body)})
                else:
                    host.paths[f"/{name}"] = sends(body)
                    report = {
                        "call_id": f"crm-{number}",
                        "recording_url": host.url(f"/{name}", "127.0.0.1"),
                    }
                    answer = client.post("/api/recording-done/", json=report)
                answers_s.append(time.monotonic() - before)
                assert answer.status_code == 202, web.log.read_text()
                accepted.append(answer.json()["audio_id"])
                time.sleep(0.2)  # a few a second, as long as the broker is away
        assert not any(map(house.is_done, accepted))
        house.valkey.start()
        back_at = time.monotonic()
        house.wait_for(lambda: any(house.storage.steps(each)[0].attempts for each in accepted))
        begins_s = time.monotonic() - back_at
        house.wait_for(lambda: all(map(house.is_done, accepted)), 300)
        assert len(set(accepted)) == len(accepted)
        assert house.num_starts() == len(accepted) + 1
        say(
            "R3",
            away_s=away_s,
            accepted=len(accepted),
            median_ms=round(1000 * statistics.median(answers_s)),
            longest_ms=round(1000 * max(answers_s)),
            begins_s=round(begins_s, 1),
            done_s=round(time.monotonic() - back_at, 1),
        )
        assert max(answers_s) < 10  # a generous bound: no answer waited for the broker
    finally:
        web.kill()
        house.close()


# ---- R4


def garble(valkey: Valkey) -> None:
    """Write nonsense into the broker's file."""
    [path] = (valkey.folder / broker.DATA_FOLDER).glob("*.incr.aof")
    content = path.read_bytes()
    path.write_bytes(content[:20] + b"\xff GARBAGE \xff" + content[31:])


def destroy(valkey: Valkey) -> None:
    """Remove the broker's data."""
    shutil.rmtree(valkey.folder / broker.DATA_FOLDER)


@pytest.mark.parametrize("harm", [garble, destroy])
def test_a_broker_whose_data_is_gone_starts_by_itself_and_all_open_work_is_done(
    stopped_valkey: Valkey, tmp_path: Path, harm: Callable[[Valkey], None]
) -> None:
    """R4: the queue of record is the database."""
    stopped_valkey.start()
    house = House(stopped_valkey, f"sqlite:///{tmp_path / 'callcore.db'}")
    try:
        house.hold()
        house.start_worker()
        accepted = [house.accept() for _ in range(20)]
        house.wait_for(
            lambda: all(house.storage.steps(each)[0].status == "done" for each in accepted)
        )
        house.valkey.kill()
        harm(stopped_valkey)
        house.valkey.start()
        back_at = time.monotonic()
        kept = list(stopped_valkey.folder.glob(f"{broker.DATA_FOLDER}.unreadable-*"))
        assert len(kept) == (harm is garble)
        house.go_on()
        house.wait_for(lambda: all(map(house.is_done, accepted)))
        say("R4", harm=harm.__name__, open=20, done_s=round(time.monotonic() - back_at, 1))
        assert house.num_starts() == 20
    finally:
        house.close()


# ---- backfill


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.nightly)])
def test_a_new_recording_overtakes_old_ones_in_bulk(
    stopped_valkey: Valkey, tmp_path: Path, count: int
) -> None:
    """It is done while nearly all of them wait."""
    stopped_valkey.start()
    house = House(
        stopped_valkey, f"sqlite:///{tmp_path / 'callcore.db'}", **all_steps(stopped_valkey)
    )
    try:
        old = [house.accept(backfill=True) for _ in range(count)]
        house.start_worker()
        house.wait_for(lambda: house.num_done() >= 20)
        overtaken, waits_s = [], []
        for _ in range(3):
            before, at = house.num_done(), time.monotonic()
            new = house.accept()
            house.wait_for(lambda new=new: house.is_done(new))  # type: ignore[misc]
            waits_s.append(round(time.monotonic() - at, 1))
            overtaken.append(house.num_done() - before - 1 - len(STEPS))
        done = sum(map(house.is_done, old[:300]))
        say("backfill", count=count, old_steps_meanwhile=overtaken, seconds=waits_s, old_done=done)
        # One step of an old one at a time beside it, never the whole of their queue.
        assert done < 150
        assert max(overtaken) < 20 * (1 + len(STEPS))
    finally:
        house.close()
