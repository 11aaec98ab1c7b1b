"""The doors for recordings beside each other: fetched ones, all in any order, and kill -9."""

import contextlib
import dataclasses
import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from callcore import fetch, intake, settling, tables
from callcore.calls import CallFacts, Media, RecordingState, StepState
from callcore.errors import Refused
from callcore.intake import Accepted
from callcore.storage import Storage
from tests.support.databases import Clock, clock, database_url, storage
from tests.support.recording_host import Handler, Host, redirects, sends, serve
from tests.support.recordings import Works, make_settings, write_wav
from tests.support.site import PATIENCE_S, free_port

__all__ = ["clock", "database_url", "storage"]

ROOT = Path(__file__).parents[1]
#: How often the web process is killed; `make nightly` kills it more often.
WEB_KILLS = int(os.environ.get("WEB_KILLS", "30"))
#: In no reason and no log line may this be.
SECRET = "s3cret-0700123456"


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with serve() as host:
        host.paths["/rec/1700000000.12.wav"] = sends(wav(tmp_path))
        yield host


def wav(folder: Path, pitch: float = 440.0) -> bytes:
    path = write_wav(folder / "made" / f"{pitch}.wav", pitch=pitch)
    return path.read_bytes()


@pytest.fixture
def works(storage: Storage, host: Host, tmp_path: Path) -> Works:
    return works_of(storage, host, tmp_path)


def works_of(storage: Storage, host: Host, folder: Path) -> Works:
    given = {
        "recording_hosts": f"127.0.0.1:{host.port},localhost:{host.port}",
        "recording_networks": "127.0.0.0/8",
        "fetch_timeout_s": 20,
    }
    return Works(storage, make_settings(folder / "state", **given))


def report(
    works: Works, host: Host, path: str = "/rec/1700000000.12.wav", **facts: Any
) -> Accepted:
    url = host.url(path, "127.0.0.1")
    known = {"call_id": "crm-1", **facts}
    return intake.accept_url(works.storage, works.settings, CallFacts(**known), url)


def settle_of(works: Works, audio_id: str) -> Any:
    return works.storage.steps(audio_id)[0]


def sources(works: Works) -> list[Any]:
    return works.storage.database.all(tables.RecordingSource.select())


# ---- fetched


def test_a_reported_recording_is_fetched_stored_and_transcribed(works: Works, host: Host) -> None:
    accepted = report(works, host, f"/rec/1700000000.12.wav?token={SECRET}", caller="0700")
    assert (accepted.created, accepted.wake) == (True, True)
    works.run()
    recording = works.storage.recording(accepted.audio_id)
    assert (recording.state, recording.reason) == (RecordingState.STORED, None)
    assert [step.status for step in works.storage.steps(accepted.audio_id)] == [StepState.DONE] * 2
    assert works.files() == [f"{recording.created_at:%Y/%m}/{recording.audio_id}/mixed.wav"]
    assert len(host.asked) == 1


def test_a_repeated_report_fetches_nothing_again(works: Works, host: Host) -> None:
    first = report(works, host)
    again = report(works, host)
    assert (again.audio_id, again.created, again.wake) == (first.audio_id, False, False)
    works.run()
    late = report(works, host)
    assert (late.audio_id, late.created, late.wake) == (first.audio_id, False, False)
    works.run()
    assert len(host.asked) == 1
    assert len(works.engines.calls) == 1


def test_a_newer_signature_in_the_query_is_used(works: Works, host: Host) -> None:
    first = report(works, host, "/rec/1700000000.12.wav?sig=old")
    again = report(works, host, "/rec/1700000000.12.wav?sig=new")
    assert (again.audio_id, again.wake) == (first.audio_id, True)
    works.run()
    assert host.asked == ["/rec/1700000000.12.wav?sig=new"]
    assert len(sources(works)) == 1


def test_the_files_of_the_legs_are_one_recording(works: Works, host: Host, tmp_path: Path) -> None:
    for pitch, leg in ((300, "caller"), (600, "agent")):
        host.paths[f"/x/{leg}"] = host.paths[f"/x/call-{leg}.wav"] = sends(wav(tmp_path, pitch))
    ids = {report(works, host, f"/x/call-{leg}.wav").audio_id for leg in ("caller", "agent")}
    [audio_id] = ids
    works.run()
    assert [m.role for m in works.storage.recording(audio_id).media] == ["caller", "agent"]


def test_files_of_one_name_in_other_folders_or_queries_are_other_recordings(
    works: Works, host: Host, tmp_path: Path
) -> None:
    for number, path in enumerate(("/1/audio.wav", "/2/audio.wav", "/play")):
        host.paths[path] = sends(wav(tmp_path, 300 + 100 * number))
    paths = ("/1/audio.wav", "/2/audio.wav", "/play?id=1", "/play?id=2")
    ids = [report(works, host, path).audio_id for path in paths]
    assert len(set(ids)) == 4
    works.run()
    # The last two are the same bytes of the same call: one recording after all.
    survivors = {works.storage.recording(each).audio_id for each in ids}
    assert len(survivors) == 3
    assert len(works.storage.recordings_of("crm-1")) == 3


@pytest.mark.parametrize("kept", [True, False])
def test_what_was_fetched_is_fetched_again_only_if_it_is_lost(
    works: Works, host: Host, tmp_path: Path, kept: bool
) -> None:
    accepted = report(works, host)
    works.run()
    [media] = works.storage.recording(accepted.audio_id).media
    if not kept:
        Path(media.path).unlink()
    with works.storage.database.transaction():
        works.chain.ledger.restart(accepted.audio_id, ["settle"])
    works.run()
    assert works.storage.recording(accepted.audio_id).state is RecordingState.STORED
    assert len(host.asked) == (1 if kept else 2)


def test_a_file_of_the_spool_is_preferred_and_a_broken_one_replaced(
    works: Works, host: Host, tmp_path: Path
) -> None:
    media = [Media("mixed", str(write_wav(tmp_path / "spool" / "1700000000.12.wav")))]
    accepted = report(works, host)
    intake.accept_recording(works.storage, works.settings, CallFacts(), "spool", media)
    works.run()
    assert host.asked == []
    assert works.storage.recording(accepted.audio_id).state is RecordingState.STORED

    broken = tmp_path / "spool" / "1700000099.12.wav"
    broken.write_bytes(b"nothing to hear" * 100)
    host.paths["/rec/1700000099.12.wav"] = host.paths["/rec/1700000000.12.wav"]
    other = report(works, host, "/rec/1700000099.12.wav", call_id="crm-2")
    media = [Media("mixed", str(broken))]
    intake.accept_recording(works.storage, works.settings, CallFacts(), "spool", media)
    works.run()
    assert host.asked == ["/rec/1700000099.12.wav"]
    assert works.storage.recording(other.audio_id).state is RecordingState.STORED


# ---- not fetched


def test_a_host_that_is_away_is_tried_again_for_a_day(
    works: Works, host: Host, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    good = host.paths["/rec/1700000000.12.wav"]
    host.paths["/rec/1700000000.12.wav"] = sends(b"", status=503)
    accepted = report(works, host, f"/rec/1700000000.12.wav?token={SECRET}")
    works.run()
    settle = settle_of(works, accepted.audio_id)
    assert (settle.status, settle.attempts) == (StepState.PENDING, 0)
    assert "127.0.0.1 answered 503" in settle.error
    for _ in range(100):
        clock.move(3600)
        works.run()
        recording = works.storage.recording(accepted.audio_id)
        if recording.state is not RecordingState.EXPECTED:
            break
    assert recording.state is RecordingState.MISSING
    assert "127.0.0.1 answered 503; report it again" in str(recording.reason)
    assert 20 <= len(host.asked) <= 60
    assert SECRET not in str(recording.reason) + str(settle.error)
    assert not any(SECRET in str(vars(record)) for record in caplog.records)

    # Reported again, it has a day again.
    again = report(works, host, f"/rec/1700000000.12.wav?token={SECRET}")
    assert (again.audio_id, again.wake) == (accepted.audio_id, True)
    works.run()
    assert works.storage.recording(accepted.audio_id).state is not RecordingState.STORED
    clock.move(3600)
    host.paths["/rec/1700000000.12.wav"] = good
    works.run()
    recording = works.storage.recording(accepted.audio_id)
    assert (recording.state, recording.reason) == (RecordingState.STORED, None)
    assert len(works.engines.calls) == 1


def test_a_file_that_is_not_there_yet_is_awaited_for_minutes(
    works: Works, host: Host, clock: Clock
) -> None:
    good = host.paths.pop("/rec/1700000000.12.wav")
    accepted, never = report(works, host), report(works, host, "/never.wav", call_id="crm-2")
    works.run()
    assert settle_of(works, accepted.audio_id).status == StepState.PENDING
    host.paths["/rec/1700000000.12.wav"] = good
    clock.move(5)
    works.run()
    assert works.storage.recording(accepted.audio_id).state is RecordingState.STORED
    clock.move(fetch.ABSENT_S)
    works.run()
    recording = works.storage.recording(never.audio_id)
    assert (recording.state, "answered 404" in str(recording.reason)) == (
        RecordingState.MISSING,
        True,
    )


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (sends(b"<html>log in</html>", "text/html"), "no audio by its Content-Type"),
        (redirects("http://169.254.169.254/latest"), "CALLCORE_RECORDING_HOSTS"),
        (sends(b"", length=10**12), "CALLCORE_UPLOAD_MAX_MB"),
        (sends(b"no sound at all" * 100), ""),
        (sends(b"#EXTM3U\nfile:///etc/passwd\n"), ""),
    ],
)
def test_what_is_refused_is_refused_at_once_and_may_be_reported_again(
    works: Works, host: Host, bad: Any, reason: str
) -> None:
    good = host.paths["/rec/1700000000.12.wav"]
    host.paths["/rec/1700000000.12.wav"] = bad
    accepted = report(works, host)
    works.run()
    recording = works.storage.recording(accepted.audio_id)
    assert recording.state is RecordingState.REFUSED
    assert recording.reason
    assert reason in recording.reason
    assert works.files() == []
    host.paths["/rec/1700000000.12.wav"] = good
    assert report(works, host).wake
    works.run()
    assert works.storage.recording(accepted.audio_id).state is RecordingState.STORED


def test_a_host_that_leads_inside_is_refused_though_it_is_listed(works: Works, host: Host) -> None:
    inside = dataclasses.replace(works.settings, recording_networks=())
    closed = Works(works.storage, inside)
    url = host.url("/rec/1700000000.12.wav", "localhost")
    facts = CallFacts(call_id="crm-1")
    accepted = intake.accept_url(works.storage, inside, facts, url)
    closed.run()
    recording = works.storage.recording(accepted.audio_id)
    assert recording.state is RecordingState.REFUSED
    assert "CALLCORE_RECORDING_NETWORKS" in str(recording.reason)
    assert host.asked == []
    with pytest.raises(Refused) as caught:  # an address is refused at the door
        intake.accept_url(works.storage, inside, facts, host.url(name="127.0.0.1"))
    assert caught.value.field == "recording_url"


def test_a_capture_does_not_wait_a_day_for_a_host_that_is_away(
    works: Works, host: Host, clock: Clock
) -> None:
    leg_id = str(uuid.uuid4())
    intake.register_leg(works.storage, leg_id, CallFacts(call_id="crm-1", leg="caller"))
    intake.open_leg(works.storage, works.settings, leg_id)
    path = write_wav(works.settings.audio_dir / "captures" / f"{leg_id}.wav", pitch=300)
    works.storage.end_leg(leg_id, "hangup", str(path))
    works.storage.end_call_if_idle("crm-1", "hangup")
    host.paths.clear()
    host.paths["/rec/1700000000.12.wav"] = sends(b"", status=503)
    fetched = report(works, host)
    capture = intake.accept_capture(works.storage, works.settings, "crm-1")
    assert capture is not None
    clock.move(works.settings.capture_wait_s + 1)
    works.run()
    assert works.storage.recording(capture.audio_id).state is RecordingState.EXPECTED
    clock.move(700)
    works.run()
    assert works.storage.recording(capture.audio_id).state is RecordingState.STORED
    # The recording is better, whenever it comes.
    host.paths["/rec/1700000000.12.wav"] = sends(wav(path.parent.parent, 500))
    clock.move(3600)
    works.run()
    assert works.storage.recording(capture.audio_id).audio_id == fetched.audio_id
    assert works.storage.recording(fetched.audio_id).state is RecordingState.STORED


# ---- killed

_SETTLE = """
import os, sys
from callcore import settings
from callcore.storage import Storage
from tests.support.recordings import Works
site = settings.load(os.environ)
Works(Storage(site.database_url), site).chain.settle(sys.argv[1])
"""


def test_a_fetch_that_was_killed_half_way_is_done_again(host: Host, tmp_path: Path) -> None:
    body = wav(tmp_path)
    half_sent, go_on = threading.Event(), threading.Event()

    def stops_half_way(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "audio/wav")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[: len(body) // 2])
        handler.wfile.flush()
        folder = tmp_path / "state" / "audio_files" / "fetched"
        while not list(folder.glob(".*.part")) and not go_on.wait(0.02):
            pass  # another process's disk: there is no event of it to wait for
        half_sent.set()
        go_on.wait(60)
        handler.close_connection = True

    good = host.paths["/rec/1700000000.12.wav"]
    host.paths["/rec/1700000000.12.wav"] = stops_half_way
    url = f"sqlite:///{tmp_path / 'callcore.db'}"
    clock = Clock()
    storage = Storage(url)  # the real clock, as the process that is killed
    storage.migrate()
    works = works_of(storage, host, tmp_path)
    accepted = report(works, host)
    environ = {
        **os.environ,
        "CALLCORE_STATE_DIR": str(tmp_path / "state"),
        "CALLCORE_DATABASE_URL": url,
        "CALLCORE_RECORDING_HOSTS": f"127.0.0.1:{host.port}",
        "CALLCORE_RECORDING_NETWORKS": "127.0.0.0/8",
    }
    with subprocess.Popen(
        [sys.executable, "-c", _SETTLE, accepted.audio_id], env=environ, cwd=ROOT
    ) as process:
        assert half_sent.wait(60)
        process.send_signal(signal.SIGKILL)
    go_on.set()
    assert settle_of(works, accepted.audio_id).status == StepState.RUNNING
    [partial] = works.files()
    assert partial.endswith(".part")
    host.paths["/rec/1700000000.12.wav"] = good
    clock.moment = storage.clock()
    clock.move(settling._STALE_S + 60)  # its lease has ended, and what it left is stale
    storage.clock = clock
    works.run()
    recording = storage.recording(accepted.audio_id)
    assert recording.state is RecordingState.STORED
    [media] = recording.media
    assert Path(media.path).read_bytes() == body
    assert works.files() == [f"{recording.created_at:%Y/%m}/{recording.audio_id}/mixed.wav"]
    assert len(host.asked) == 2
    storage.close()


# ---- all doors


DOORS = ("spool", "agi", "webhook", "upload")


class TestEveryOrder:
    """The same recording through every door, in every order."""

    @pytest.mark.parametrize("settles", ["at the end", "after each report"])
    def test_is_one_recording_whose_facts_are_the_union(
        self, works: Works, host: Host, tmp_path: Path, settles: str
    ) -> None:
        for number, order in enumerate(itertools.permutations(DOORS)):
            unique = f"17000{number:05}.12"
            body = wav(tmp_path, 200 + 10 * number)
            host.paths[f"/rec/{unique}.wav"] = sends(body)
            ids = set()
            for door in order:
                accepted = self.report(works, host, door, unique, body, tmp_path / "spool")
                assert accepted.created == (not ids)
                ids.add(accepted.audio_id)
                if settles == "after each report":
                    works.run()
            works.run()
            [audio_id] = ids
            self.check(works, audio_id, unique, order)
        assert not list((works.settings.audio_dir / "uploads").glob("*"))
        assert not list((works.settings.audio_dir / "fetched").glob("*"))
        assert len(works.storage.recordings(None, 50)[0]) == 24
        assert len(works.engines.calls) == 24

    def report(
        self, works: Works, host: Host, door: str, unique: str, body: bytes, spool: Path
    ) -> Accepted:
        spooled = spool / f"{unique}.wav"
        spool.mkdir(exist_ok=True)
        spooled.write_bytes(body)
        linkedid = unique.replace(".12", ".10")
        if door == "webhook":
            facts = {"call_id": f"crm-{unique}", "caller": "0700", "agent": "Ada"}
            return report(works, host, f"/rec/{unique}.wav?token=x", **facts)
        media, name = Media("mixed", str(spooled)), None
        facts = {}
        if door == "agi":
            facts = {"uniqueid": unique, "linkedid": linkedid, "queue": "help", "direction": "in"}
        elif door == "upload":
            path = works.settings.audio_dir / "uploads" / f"{uuid.uuid4()}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(body)
            media, name, facts = Media("mixed", str(path)), f"{unique}.wav", {"language": "sw"}
        return intake.accept_recording(
            works.storage, works.settings, CallFacts(**facts), door, [media], original_name=name
        )

    def check(self, works: Works, audio_id: str, unique: str, order: tuple[str, ...]) -> None:
        recording = works.storage.recording(audio_id)
        assert recording.state is RecordingState.STORED, order
        assert (recording.source, set(recording.sources)) == (order[0], set(DOORS))
        facts = recording.facts
        assert (facts.caller, facts.agent, facts.queue) == ("0700", "Ada", "help")
        assert (facts.uniqueid, facts.language, facts.direction) == (unique, "sw", "in")
        call = works.storage.call(recording.call_id)
        for alias in (f"crm-{unique}", unique, unique.replace(".12", ".10")):
            assert works.storage.call(alias) == call
        assert works.storage.recordings_of(call.call_id) == [recording]
        assert len(works.storage.results(audio_id)["transcribe"]["segments"]) == 1


# ---- R6: the web process is killed right after its answer


class Web:
    """A real web process."""

    def __init__(self, environ: dict[str, str], log: Path) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self.log = log
        with log.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "web"],
                env={**environ, "CALLCORE_WEB_BIND": self.address},
                cwd=ROOT,
                stderr=errors,
            )

    def wait(self) -> None:
        host, _, port = self.address.rpartition(":")
        deadline = time.monotonic() + PATIENCE_S
        while self.process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                socket.create_connection((host, int(port)), 2).close()
                return
            time.sleep(0.02)  # another process's state: there is no event of it to wait for
        raise AssertionError(f"the web process does not serve: {self.log.read_text()}")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def next_web(environ: dict[str, str], folder: Path) -> Iterator[Any]:
    """Yields a function that returns one process after the other; the next one starts ahead."""
    started: list[Web] = [Web(environ, folder / "web-0.log")]

    def take() -> Web:
        started.append(Web(environ, folder / f"web-{len(started)}.log"))
        started[-2].wait()
        return started[-2]

    try:
        yield take
    finally:
        for web in started:
            web.kill()


@pytest.mark.slow
def test_what_was_answered_is_on_record_though_the_web_process_was_killed(
    tmp_path: Path,
) -> None:
    url = f"sqlite:///{tmp_path / 'callcore.db'}"
    storage = Storage(url)
    storage.migrate()
    environ = {
        **{k: v for k, v in os.environ.items() if not k.startswith("CALLCORE_")},
        "CALLCORE_STATE_DIR": str(tmp_path),
        "CALLCORE_DATABASE_URL": url,
        "CALLCORE_REDIS_URL": "redis://127.0.0.1:1/0",  # workers cannot be told: nothing waits
        "CALLCORE_RECORDING_HOSTS": "pbx.example",
    }
    body = wav(tmp_path)
    answered: dict[str, str] = {}
    with next_web(environ, tmp_path) as take:
        for kill in range(WEB_KILLS):
            web = take()
            with httpx.Client(base_url=f"http://{web.address}", trust_env=False) as client:
                unique = f"1700000{kill:03}.12"
                if kill % 2:
                    files = {"file": (f"{unique}.wav", body)}
                    answer = client.post("/api/upload/", files=files, data={"caller": "0700"})
                else:
                    recording_url = f"https://pbx.example/{unique}.wav"
                    given = {"call_id": f"crm-{kill}", "recording_url": recording_url}
                    answer = client.post("/api/recording-done/", json=given)
                web.process.kill()
            assert answer.status_code == 202, web.log.read_text()
            answered[answer.json()["audio_id"]] = unique
    assert len(answered) == WEB_KILLS
    for audio_id, unique in answered.items():
        recording = storage.recording(audio_id)
        assert recording.facts.uniqueid == unique
        steps = storage.steps(audio_id)
        assert (steps[0].name, steps[0].status) == ("settle", StepState.PENDING)
        if recording.source == "upload":
            with storage.database.transaction():
                named = tables.RecordingSource.select().where(
                    tables.RecordingSource.recording == audio_id
                )
                [row] = storage.database.all(named)
            assert Path(row["path"]).read_bytes() == body
    storage.close()
