"""The doctor in front of a real Asterisk: content with a good site, right about planted faults."""

import json
import shutil
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import pytest

from callcore.calls import CallFacts
from callcore.consent import Consent
from callcore.doctor import pbx
from callcore.doctor.call import NUMBER, CheckedCall, Limits
from callcore.doctor.finding import Finding
from callcore.settings import load
from callcore.storage import Storage
from tests.support.ami_proxy import AmiProxy
from tests.support.asterisk import DIALPLAN, Asterisk
from tests.support.exchange import Exchange
from tests.support.site import MODELS

pytestmark = pytest.mark.slow

Fault = Callable[["Patient", ExitStack, Path], Mapping[str, object]]


class Patient:
    """A whole site, and an Asterisk in front of it that is set up for it."""

    def __init__(self, exchange: Exchange) -> None:
        self.site = exchange.site
        self.asterisk = exchange.asterisk
        self.storage = exchange.storage

    def settings_for(self, asterisk: Asterisk) -> dict[str, str]:
        """Return the settings by which the site asks an Asterisk."""
        return {
            "ami_address": str(asterisk.ami_address),
            "ami_user": "test",
            "ami_secret": "test",
            "spool_dir": str(asterisk.recordings),
            # One model less to read.
            "live_model_multilingual": "tiny.en",
        }

    def doctor(self, *arguments: str, **settings: object) -> "subprocess.CompletedProcess[str]":
        """Run the doctor with other settings than those that the site runs with."""
        given = {**self.settings_for(self.asterisk), **settings}
        environ = {f"CALLCORE_{name.upper()}": str(value) for name, value in given.items()}
        return subprocess.run(
            [sys.executable, "-m", "callcore.cli", "doctor", *arguments],
            env={**self.site.environ, **environ},
            cwd=self.site.state,
            capture_output=True,
            text=True,
            check=False,
        )

    def other(self, stack: ExitStack, folder: Path, **given: Any) -> dict[str, str]:
        """Start another Asterisk and return the settings that ask that one."""
        addresses = {"audiosocket": self.site.audiosocket, "agi": self.site.agi}
        other = stack.enter_context(Asterisk(folder / "pbx", **{**addresses, **given}))
        return self.settings_for(other)

    def judge(self, asterisk: Asterisk, limits: Limits) -> Iterator[Finding]:
        """Place a test call from an Asterisk and yield what is found."""
        ours = {k: v for k, v in self.site.environ.items() if k.startswith("CALLCORE_")}
        call_id = f"doctor-{uuid.uuid4().hex[:12]}"
        with asterisk.ami(events="call") as ami:
            call = CheckedCall(
                load(ours), self.storage, ami, call_id, lambda what, limit_s: None, limits
            )
            yield from call.judge()


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Patient]:
    with Exchange(tmp_path_factory.mktemp("d")) as exchange:
        exchange.site.state.chmod(0o700)
        yield Patient(exchange)


def found_in(done: "subprocess.CompletedProcess[str]") -> dict[str, list[dict[str, Any]]]:
    """Return the findings of ``--json`` by check."""
    assert done.stderr == "" or "..." in done.stderr, done.stderr
    report = json.loads(done.stdout)
    assert report["schema"] == "callcore.doctor/1"
    assert report["ok"] == (done.returncode == 0)
    found: dict[str, list[dict[str, Any]]] = {}
    for each in report["findings"]:
        found.setdefault(each["check"], []).append(each)
    return found


def test_a_good_site_is_well(patient: Patient) -> None:
    done = patient.doctor()
    assert done.returncode == 0, done.stdout
    states = [line.split()[0] for line in done.stdout.splitlines() if line]
    assert "FAILED" not in states
    assert "warning" not in states
    for check in ("manager", "version", "modules", "dialplan", "audiosocket", "agi", "spool"):
        assert f"pbx-{check}" in done.stdout
    assert done.stdout.endswith("\nall is well\n")
    assert "failed" not in patient.asterisk.log().lower()


def test_the_probes_leave_no_call_and_no_cdr(patient: Patient) -> None:
    before = len(patient.asterisk.cdrs())
    assert patient.doctor().returncode == 0
    patient.asterisk.wait_idle()
    assert len(patient.asterisk.cdrs()) == before
    assert patient.storage.calls(None, 10)[0] == []


def _without_chanspy(patient: Patient, stack: ExitStack, folder: Path) -> dict[str, str]:
    return patient.other(stack, folder, without=("app_chanspy",))


def _without_timer(patient: Patient, stack: ExitStack, folder: Path) -> dict[str, str]:
    return patient.other(stack, folder, without=("res_timing_timerfd",))


def _without_dialplan(patient: Patient, stack: ExitStack, folder: Path) -> dict[str, str]:
    (folder / "empty.conf").touch()
    return patient.other(stack, folder, dialplan=folder / "empty.conf")


def _old_dialplan(patient: Patient, stack: ExitStack, folder: Path) -> dict[str, str]:
    text = DIALPLAN.read_text("utf-8")
    (folder / "old.conf").write_text(text.replace("[callcore-doctor]", "[something-else]"))
    return patient.other(stack, folder, dialplan=folder / "old.conf")


def _audiosocket_elsewhere(patient: Patient, stack: ExitStack, folder: Path) -> dict[str, str]:
    return patient.other(stack, folder, audiosocket="127.0.0.1:9")


def _agi_elsewhere(patient: Patient, stack: ExitStack, folder: Path) -> dict[str, str]:
    return patient.other(stack, folder, agi="127.0.0.1:9")


def _audiosocket_is_web(patient: Patient, stack: ExitStack, folder: Path) -> dict[str, str]:
    return patient.other(stack, folder, audiosocket=patient.site.web)


def _audiosocket_without_daemon(patient: Patient, stack: ExitStack, folder: Path) -> dict[str, str]:
    """As HAProxy with nobody behind it: it takes the connection and closes it."""
    proxy = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

    def serve() -> None:
        with suppress(OSError):  # until the test is over
            while True:
                proxy.accept()[0].close()

    threading.Thread(target=serve, daemon=True).start()
    return patient.other(stack, folder, audiosocket=f"127.0.0.1:{proxy.getsockname()[1]}")


def _audiosocket_silent(patient: Patient, stack: ExitStack, folder: Path) -> dict[str, str]:
    """Takes the connection and does nothing more, as a daemon that hangs on another machine."""
    silent = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    return patient.other(stack, folder, audiosocket=f"127.0.0.1:{silent.getsockname()[1]}")


def _audiosocket_hangs(patient: Patient, stack: ExitStack, folder: Path) -> dict[str, str]:
    daemon = patient.site.child("callcore audiosocket")
    daemon.suspend()
    stack.callback(daemon.resume)
    return {}


def _lost_key(patient: Patient, stack: ExitStack, folder: Path) -> dict[str, object]:
    own = load({"CALLCORE_STATE_DIR": str(folder)})
    with closing(Storage(own.database_url)) as storage:
        storage.migrate()
        Consent(storage, own).refuse(CallFacts(uniqueid="1.1", caller="5550177"))
    (folder / "callcore.db").chmod(0o600)
    return {"database_url": own.database_url}


def _agi_hangs(patient: Patient, stack: ExitStack, folder: Path) -> dict[str, str]:
    server = patient.site.child("callcore agi")
    server.suspend()
    stack.callback(server.resume)
    return {}


def _wrong_secret(patient: Patient, stack: ExitStack, folder: Path) -> dict[str, str]:
    return {"ami_secret": "hunter2"}


def _no_manager(patient: Patient, stack: ExitStack, folder: Path) -> dict[str, str]:
    return {"ami_address": "127.0.0.1:9"}


def _not_a_manager(patient: Patient, stack: ExitStack, folder: Path) -> dict[str, str]:
    return {"ami_address": patient.site.web}


def _weak_manager(patient: Patient, stack: ExitStack, folder: Path) -> dict[str, str]:
    manager = patient.asterisk.folder / "etc" / "manager.conf"
    weak = "\n[weak]\nsecret = weak\nread = call\nwrite = command,reporting\n"
    manager.write_text(manager.read_text() + weak)
    patient.asterisk.cli("manager reload")
    return {"ami_user": "weak", "ami_secret": "weak"}


def _spool_away(patient: Patient, stack: ExitStack, folder: Path) -> dict[str, object]:
    return {"spool_dir": folder / "away", "pbx_spool_dir": patient.asterisk.recordings}


def _other_spool(patient: Patient, stack: ExitStack, folder: Path) -> dict[str, object]:
    return {"spool_dir": folder}


def _clock_ahead(patient: Patient, stack: ExitStack, folder: Path) -> dict[str, object]:
    proxy = stack.enter_context(AmiProxy(patient.asterisk.ami_address, ahead_s=3600))
    return {"ami_address": proxy.address}


def _damaged_model(patient: Patient, stack: ExitStack, folder: Path) -> dict[str, object]:
    for model in MODELS.iterdir():
        if model.is_dir():
            (folder / model.name).symlink_to(model)
    (folder / "silero-vad").unlink()
    shutil.copytree(MODELS / "silero-vad", folder / "silero-vad")
    with (folder / "silero-vad" / "silero_vad.onnx").open("r+b") as file:
        file.seek(1000)
        byte = file.read(1)
        file.seek(1000)
        file.write(bytes([byte[0] ^ 1]))
    return {"models_dir": folder}


def _empty_database(patient: Patient, stack: ExitStack, folder: Path) -> dict[str, object]:
    return {"database_url": f"sqlite:///{folder / 'new.db'}"}


def _no_broker(patient: Patient, stack: ExitStack, folder: Path) -> dict[str, object]:
    return {"redis_url": "redis://127.0.0.1:9"}


def _no_daemon(patient: Patient, stack: ExitStack, folder: Path) -> dict[str, object]:
    return {"audiosocket_bind": "127.0.0.1:9"}


def _no_web(patient: Patient, stack: ExitStack, folder: Path) -> dict[str, object]:
    return {"web_bind": "127.0.0.1:9"}


def _open_secret(patient: Patient, stack: ExitStack, folder: Path) -> dict[str, object]:
    secret = folder / "secret"
    secret.write_text("test")
    secret.chmod(0o644)
    return {"token_file": secret}


FAULTS: dict[str, tuple[Fault, str, str, str]] = {
    "a module is missing": (
        _without_chanspy, "pbx-modules", "app_chanspy", "module load app_chanspy.so",
    ),
    "nothing gives the time": (
        _without_timer, "pbx-modules", "timing", "module load res_timing_timerfd.so",
    ),
    "the dialplan is not included": (
        _without_dialplan, "pbx-dialplan", "not loaded", "#include extensions_callcore.conf",
    ),
    "the dialplan is an old one": (
        _old_dialplan, "pbx-dialplan", "callcore-doctor", "dialplan reload",
    ),
    "Asterisk looks for AudioSocket elsewhere": (
        _audiosocket_elsewhere, "pbx-audiosocket", "127.0.0.1:9", "CALLCORE_AUDIOSOCKET = ",
    ),
    "Asterisk looks for FastAGI elsewhere": (
        _agi_elsewhere, "pbx-agi", "127.0.0.1:9", "CALLCORE_AGI = ",
    ),
    "Asterisk's AudioSocket is another service": (
        _audiosocket_is_web, "pbx-audiosocket", "as our daemon does", "CALLCORE_AUDIOSOCKET = ",
    ),
    "AudioSocket is a proxy without a daemon": (
        _audiosocket_without_daemon, "pbx-audiosocket", "as our daemon does", "proxy",
    ),
    "AudioSocket says nothing": (
        _audiosocket_silent, "pbx-audiosocket", "as our daemon does", "callcore audiosocket",
    ),
    "AudioSocket hangs": (
        _audiosocket_hangs, "pbx-audiosocket", "as our daemon does", "callcore audiosocket",
    ),
    "the key of the numbers is lost": (
        _lost_key, "consent", "every call", "CALLCORE_CONSENT_KEY",
    ),
    "FastAGI hangs": (_agi_hangs, "pbx-agi", "does not answer", "callcore agi"),
    "the manager secret is wrong": (
        _wrong_secret, "pbx-manager", "refused", "CALLCORE_AMI_SECRET",
    ),
    "the manager port is closed": (
        _no_manager, "pbx-manager", "127.0.0.1:9", "CALLCORE_AMI_ADDRESS",
    ),
    "the manager port is another program's": (
        _not_a_manager, "pbx-manager", "", "CALLCORE_AMI_ADDRESS",
    ),
    "the manager user may do too little": (
        _weak_manager, "pbx-manager", "originate", "manager.conf",
    ),
    "the spool is not there": (_spool_away, "spool", "does not exist", "CALLCORE_SPOOL_DIR"),
    "the spool is another folder": (
        _other_spool, "pbx-spool", "outside of the watched", "CALLCORE_PBX_SPOOL_DIR=",
    ),
    "the clocks differ": (_clock_ahead, "pbx-clock", "ahead", "timedatectl"),
    "a model's hash is wrong": (
        _damaged_model, "models", "silero-vad", "callcore models pull",
    ),
    "the database is not migrated": (
        _empty_database, "database", "migration", "callcore migrate",
    ),
    "the broker is away": (_no_broker, "broker", "does not answer", "CALLCORE_REDIS_URL"),
    "the daemon is away": (_no_daemon, "audiosocket", "127.0.0.1:9", "callcore up"),
    "the web server is away": (_no_web, "web", "127.0.0.1:9", "callcore up"),
    "a secret is readable": (_open_secret, "permissions", "secret", "chmod 600"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_each_planted_fault_is_named_with_its_remedy_and_nothing_else_is_blamed(
    patient: Patient, tmp_path_factory: pytest.TempPathFactory, fault: str
) -> None:
    plant, check, said, remedy = FAULTS[fault]
    with ExitStack() as stack:
        settings = plant(patient, stack, tmp_path_factory.mktemp("f"))
        done = patient.doctor("--json", **settings)
    assert done.returncode == 1, done.stdout + done.stderr
    found = found_in(done)
    failed = [each for each in found[check] if each["state"] == "failed"]
    assert len(failed) == 1
    assert said in failed[0]["detail"]
    assert remedy in failed[0]["remedy"]
    assert "hunter2" not in done.stdout
    others = {
        name: each["state"] for name, several in found.items() if name != check for each in several
    }
    if fault.endswith(" hangs"):
        # Seen from here too.
        assert others.pop(check.removeprefix("pbx-")) == "failed"
    if check == "pbx-dialplan":
        # Its helper is what asks FastAGI.
        others.pop("pbx-agi")
    assert set(others.values()) == {"ok"}, others


def test_a_dialplan_of_another_release_is_told(
    patient: Patient, tmp_path_factory: pytest.TempPathFactory
) -> None:
    # Fault held off: an old dialplan with contexts of the same names was taken for the current one.
    folder = tmp_path_factory.mktemp("f")
    text = DIALPLAN.read_text("utf-8")
    (folder / "old.conf").write_text(text.replace("Wait(60)", "Wait(59)"))
    with ExitStack() as stack:
        settings = patient.other(stack, folder, dialplan=folder / "old.conf")
        done = patient.doctor("--json", **settings)
    assert done.returncode == 0
    (said,) = found_in(done)["pbx-dialplan"]
    assert said["state"] == "warning"
    assert said["detail"].endswith("it differs in callcore-doctor")
    assert "dialplan reload" in said["remedy"]


def test_a_limit_of_calls_is_told(tmp_path_factory: pytest.TempPathFactory) -> None:
    class Limited(Asterisk):
        def _filled(self, text: str) -> str:
            return super()._filled(text).replace("nocolor = yes", "nocolor = yes\nmaxcalls = 30")

    with Limited(tmp_path_factory.mktemp("f")) as asterisk, asterisk.ami() as ami:
        (said,) = pbx._max_calls(ami)
    assert (said.check, said.state) == ("pbx-limit", "warning")
    assert "30 calls" in said.detail
    assert "maxcalls" in said.remedy


@pytest.mark.parametrize(
    ("module", "untried"),
    [
        ("chan_audiosocket", {"pbx-audiosocket"}),
        ("app_stack", {"pbx-agi"}),
        ("res_agi", {"pbx-agi"}),
        ("func_strings", set()),
    ],
)
def test_what_cannot_be_tried_without_a_module_is_not_blamed(
    patient: Patient,
    tmp_path_factory: pytest.TempPathFactory,
    module: str,
    untried: set[str],
) -> None:
    with ExitStack() as stack:
        folder = tmp_path_factory.mktemp("f")
        settings = patient.other(stack, folder, without=(module,))
        found = found_in(patient.doctor("--json", **settings))
    states = {name: {each["state"] for each in several} for name, several in found.items()}
    assert states.pop("pbx-modules") == {"failed"}
    assert {name for name, each in states.items() if each == {"warning"}} == untried
    assert set().union(*states.values()) <= {"ok", "warning"}


def test_without_a_manager_user_the_doctor_tells_how_to_let_it_ask(patient: Patient) -> None:
    done = patient.doctor("--json", ami_user="")
    found = found_in(done)
    assert done.returncode == 0
    (manager,) = found["pbx-manager"]
    assert manager["state"] == "warning"
    assert "write = command,originate,reporting" in manager["remedy"]
    assert "CALLCORE_AMI_USER" in manager["remedy"]
    assert [name for name in found if name.startswith("pbx-")] == ["pbx-manager"]


def test_without_a_manager_user_no_call_can_be_placed(patient: Patient) -> None:
    done = patient.doctor("--call", ami_user="")
    assert done.returncode == 2
    assert "CALLCORE_AMI_USER" in done.stderr


def test_no_call_is_placed_where_it_cannot_work(patient: Patient) -> None:
    done = patient.doctor("--call", "--json", ami_secret="hunter2")
    assert done.returncode == 1
    (placed,) = found_in(done)["call-placed"]
    assert placed["state"] == "failed"
    assert "pbx-manager" in placed["detail"]


def test_a_test_call_goes_from_asterisk_to_its_document(patient: Patient) -> None:
    done = patient.doctor("--call", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = found_in(done)
    names = [name for name in found if name.startswith("call-")]
    steps = ["placed", "stream", "ended", "words", "recording", "document", "page"]
    assert names == [f"call-{step}" for step in steps]
    assert {each["state"] for name in names for each in found[name]} == {"ok"}
    assert "caller, agent" in found["call-recording"][0]["detail"]
    assert "agi" in found["call-recording"][0]["detail"]
    call_id = json.loads(done.stdout)["call_id"]
    (page,) = found["call-page"]
    own_id = page["detail"].rpartition("/")[2]
    call = patient.site.get(f"/api/calls/{call_id}/")
    assert (call["call_id"], call["caller"]) == (own_id, NUMBER)
    assert patient.site.client.get(f"/calls/{own_id}").status_code == 200


def test_a_call_that_nobody_tells_us_of_is_judged_so(
    patient: Patient, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("c")
    with Asterisk(folder, audiosocket=patient.site.audiosocket, agi="127.0.0.1:9") as asterisk:
        found = list(patient.judge(asterisk, Limits(stream_s=5, recording_s=1)))
    placed, stream, recording = found
    assert placed.state == "ok"
    assert (stream.check, stream.state) == ("call-stream", "failed")
    assert "nobody told us" in stream.detail
    assert "pbx-agi" in stream.remedy
    assert (recording.check, recording.state) == ("call-recording", "failed")
    assert "neither by the hook nor in the spool" in recording.detail
    assert "pbx-spool" in recording.remedy


def test_a_call_whose_audio_does_not_come_is_judged_so(
    patient: Patient, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("c")
    with Asterisk(folder, audiosocket="127.0.0.1:9", agi=patient.site.agi) as asterisk:
        found = patient.judge(asterisk, Limits(stream_s=5))
        placed, stream = next(found), next(found)
    assert placed.state == "ok"
    assert (stream.check, stream.state) == ("call-stream", "failed")
    assert "its audio did not come" in stream.detail
    assert "pbx-audiosocket" in stream.remedy


@pytest.mark.parametrize(
    ("prompt", "state", "said", "remedy"),
    [
        ("silence/10", "failed", "no words", "callcore audiosocket"),
        ("vm-options", "warning", "word error rate", "asterisk-core-sounds-en"),
    ],
)
def test_a_call_of_other_words_is_judged_so(
    patient: Patient,
    tmp_path_factory: pytest.TempPathFactory,
    prompt: str,
    state: str,
    said: str,
    remedy: str,
) -> None:
    folder = tmp_path_factory.mktemp("c")
    text = DIALPLAN.read_text("utf-8")
    assert "Playback(demo-congrats)" in text
    (folder / "other.conf").write_text(text.replace("demo-congrats", prompt))
    with Asterisk(
        folder,
        audiosocket=patient.site.audiosocket,
        agi=patient.site.agi,
        dialplan=folder / "other.conf",
    ) as asterisk:
        judged = patient.judge(asterisk, Limits(words_s=20))
        words = next(each for each in judged if each.check == "call-words")
    assert words.state == state
    assert said in words.detail
    assert remedy in words.remedy


def test_a_context_that_is_not_there_is_a_call_that_cannot_be_placed(
    patient: Patient, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("c")
    (folder / "empty.conf").touch()
    with Asterisk(folder, dialplan=folder / "empty.conf") as asterisk:
        (placed,) = patient.judge(asterisk, Limits())
    assert (placed.check, placed.state) == ("call-placed", "failed")
    assert "log" in placed.remedy
