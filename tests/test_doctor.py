"""Single checks of the doctor: what cannot be planted on a real machine, and how it is shown."""

import contextlib
import io
import json
import os
import re
import socket
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from callcore import resources
from callcore.calls import SETTLE, CallFacts
from callcore.consent import KEY_FILE, Consent, normalised
from callcore.doctor import dialplan, pbx_spool, printing, site, versions
from callcore.doctor.call import NUMBER, SAID, CheckedCall, Limits
from callcore.doctor.finding import Finding
from callcore.ledger import Ledger
from callcore.settings import Settings, load
from callcore.storage import Storage, recording_rows
from tests.support.asterisk import prompts, require


def settings(state: Path, **given: object) -> Settings:
    environ = {f"CALLCORE_{name.upper()}": str(value) for name, value in given.items()}
    return load({"CALLCORE_STATE_DIR": str(state), **environ})


# ---- versions


@pytest.mark.parametrize(
    ("version", "state", "named", "num_limits"),
    [
        ("22.10.1+dfsg+~cs6.17.60671434-1", "ok", "22.10", 0),
        ("23.4.0", "ok", "23.4", 0),
        ("22.9.0", "ok", "22.9", 1),
        ("20.9.3", "ok", "20.9", 4),
        ("certified/20.7-cert2", "ok", "20.7", 4),
        ("18.10.0~dfsg+~cs6.10.40431411-2", "ok", "18.10", 6),
        ("18.26.4", "ok", "18.26", 4),
        ("21.12.2", "ok", "21.12", 1),
        ("GIT-22-a1b2c3d4", "ok", "22", 0),
        ("16.28.0", "failed", "16.28", 0),
        ("19.8.1", "warning", "19.8", 0),
        ("24.1.0", "warning", "24.1", 0),
        ("UNKNOWN__and_probably_unsupported", "warning", "Asterisk", 0),
    ],
)
def test_a_version_is_judged_by_what_its_branch_is_known_not_to_do(
    version: str, state: str, named: str, num_limits: int
) -> None:
    first, *limits = versions.findings(version)
    assert (first.check, first.state) == ("pbx-version", state)
    assert named in first.detail
    assert bool(first.remedy) == (state != "ok")
    assert [each.state for each in limits] == ["warning"] * num_limits
    assert all(each.remedy for each in limits)


def test_a_limit_names_the_release_that_mends_it() -> None:
    _, crackle, *_rest, digits, _wide, _noise = versions.findings("20.9.3")
    assert "ChanSpy(o)" in crackle.detail
    assert "20.10 and later" in crackle.remedy
    assert "DTMF" in digits.detail
    assert "20.14" in digits.remedy
    _, *old = versions.findings("18.26.0")
    assert "no Asterisk 18" in old[0].remedy
    assert "20.14" in old[0].remedy


def test_the_manual_lists_the_same_limits() -> None:
    manual = (Path(__file__).parents[1] / "docs" / "asterisk.md").read_text("utf-8")
    assert {
        f"| {limit.without} | "
        + " | ".join(
            "never" if minor is None else f"{branch}.{minor}"
            for branch, minor in limit.since.items()
        )
        + " |"
        for limit in versions.LIMITS
    } == set(re.findall(r"^\|.*\| (?:never|23\.\d+) \|$", manual, re.MULTILINE))


# ---- modules and contexts


def test_modules_are_told_for_just_the_applications_and_functions_of_the_dialplan() -> None:
    known = [dialplan.BUILT_IN, *dialplan.MODULES.values()]
    assert sum(map(len, known)) == len(frozenset().union(*known))
    assert dialplan.uses(dialplan.text()) == frozenset().union(*known)


def test_the_modules_that_are_asked_for_have_what_the_dialplan_uses() -> None:
    folder = require() / "bin" / "modules"
    for module, names in dialplan.MODULES.items():
        binary = (folder / f"{module}.so").read_bytes()
        assert [name for name in names - {"LOCAL"} if name.encode() not in binary] == []


def test_what_a_dialplan_needs_is_read_from_its_steps_not_from_its_comments() -> None:
    needed = dialplan.needs(
        dialplan._COMMENT.sub(
            "",
            "[callcore-x]\n; Read(X) and ${URIENCODE(x)}\n"
            "exten => s,1,ExecIf($[1]?MixMonitor(a.wav,r(b.wav)))\n"
            ' same => n,Set(X=${IF($["a" = "b"]?${UUID()}:c)}) ; ${CUT(X,-,1)}\n'
            " same => n,Originate(AudioSocket/${A}/${X},exten,callcore-x,s,1)\n",
        )
    )
    assert set(needed) == {
        "app_exec", "app_mixmonitor", "func_logic", "func_uuid", "app_originate",
        "chan_audiosocket", "res_audiosocket", "format_wav",
    }  # fmt: skip


def test_the_dialplans_own_words_on_modules_agree_with_what_it_needs() -> None:
    said = (resources.path("dialplan") / dialplan.FILE).read_text("utf-8")
    named = set(re.findall(r"\b(?:app|chan|res|func)_\w+", said))
    # Any Asterisk has the format of its own recordings.
    assert set(dialplan.needs(dialplan.text())) - {"format_wav"} == named - {"format_wav"}


def test_the_doctor_knows_what_the_prompt_of_the_test_call_says() -> None:
    assert " ".join(prompts()["demo-congrats"].split()) == SAID


# ---- this machine


@pytest.mark.parametrize(("free", "state"), [(80e9, "ok"), (4.9e9, "warning"), (0.1e9, "failed")])
def test_a_full_disk_is_told_before_it_is_full(free: float, state: str, tmp_path: Path) -> None:
    found = site.disk_finding(tmp_path, int(free))
    assert (found.check, found.state) == ("disk", state)
    assert (str(tmp_path) in found.remedy) == (state != "ok")


def test_a_clock_from_before_the_release_is_wrong() -> None:
    assert site.clock_finding(datetime(1970, 1, 2, tzinfo=UTC)).state == "failed"
    assert "timedatectl" in site.clock_finding(datetime(1970, 1, 2, tzinfo=UTC)).remedy
    assert site.clock_finding(datetime.now(UTC)).state == "ok"


def test_what_others_may_read_is_told_with_the_file(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    own = settings(state)

    def judged(*secrets: Path) -> Finding:
        return site.check_permissions(own, secrets)

    assert judged().state == "ok"
    key = state / "consent.key"
    key.write_text("key")
    key.chmod(0o640)
    assert (judged().state, judged().remedy) == ("failed", f"chmod 600 {key}")
    key.chmod(0o600)
    secret = tmp_path / "token"
    secret.write_text("token")
    secret.chmod(0o640)
    assert judged(secret).state == "ok"
    secret.chmod(0o644)
    assert judged(secret).remedy == f"chmod 600 {secret}"
    state.chmod(0o755)
    assert (judged().state, judged().remedy) == ("warning", f"chmod o= {state}")


def as_nobody(spool: Path) -> Finding:
    """Return what the spool check says to a user without rights: root may read everything."""
    reading, writing = os.pipe()
    own = settings(spool.parent, spool_dir=spool)
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            found = site.check_spool(own)
            os.write(writing, json.dumps([found.state, found.detail, found.remedy]).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, encoding="utf-8") as said:
        state, detail, remedy = json.load(said)
    os.waitpid(child, 0)
    return Finding("spool", state, detail, remedy)


def test_a_spool_that_we_may_not_read_is_told(tmp_path: Path) -> None:
    for each in (tmp_path, *tmp_path.parents[:3]):
        each.chmod(0o755)
    spool = tmp_path / "monitor"
    spool.mkdir()
    spool.chmod(0o755)
    assert as_nobody(spool).state == "ok"
    spool.chmod(0o700 if os.geteuid() == 0 else 0o000)
    found = as_nobody(spool)
    spool.chmod(0o755)
    assert (found.state, found.detail) == ("failed", "the spool folder cannot be read")
    assert "group of Asterisk's user" in found.remedy


def test_a_recording_in_the_spool_that_we_may_not_read_is_told(tmp_path: Path) -> None:
    # Fault held off: only the spool itself was looked at, and calls went unrecorded.
    for each in (tmp_path, *tmp_path.parents[:3]):
        each.chmod(0o755)
    spool = tmp_path / "monitor"
    day = spool / "callcore" / "20261123"
    day.mkdir(parents=True)
    (day / "1.wav").touch()
    os.utime(day / "1.wav", (1, 1))
    (day / "2.wav").touch()
    closed = 0o700 if os.geteuid() == 0 else 0o000
    assert as_nobody(spool).state == "ok"
    (day / "1.wav").chmod(closed & 0o600)  # is none of today's
    assert as_nobody(spool).state == "ok"
    for path in (day / "2.wav", day):
        path.chmod(closed)
        found = as_nobody(spool)
        path.chmod(0o755)
        assert (found.state, found.detail) == ("failed", f"{path} cannot be read")
        assert str(path) in found.remedy


# ---- our daemons on this machine


def listening(answer: bytes | None) -> tuple[socket.socket, str]:
    """Return a listener that answers one connection: with bytes and its end, or never."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        peer, _ = listener.accept()
        with peer:
            peer.recv(1024)
            peer.sendall(answer or b"")

    if answer is not None:
        threading.Thread(target=serve, daemon=True).start()
    return listener, f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize("check", ["audiosocket", "agi"])
@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", None, b""])
def test_who_only_takes_connections_is_none_of_our_daemons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, check: str, answer: bytes | None
) -> None:
    monkeypatch.setattr(site, "TIMEOUT_S", 0.2)
    listener, address = listening(answer)
    own = settings(tmp_path, audiosocket_bind=address, agi_bind=address)
    with listener:
        found = {"audiosocket": site._audiosocket, "agi": site._agi}[check](own)
    if (check, answer) == ("agi", b""):  # all that a route like ping has to say
        assert found.state == "ok"
        return
    assert (found.check, found.state) == (check, "failed")
    assert address in found.detail
    assert f"restart `callcore {check}`" in found.remedy


# ---- consent


def test_a_key_that_is_lost_or_another_ones_is_told(tmp_path: Path) -> None:
    # Fault held off: every caller with a number was refused, and the doctor was content.
    own = settings(tmp_path)
    assert site.check_consent(own) is None  # no database: that is said elsewhere
    with contextlib.closing(Storage(own.database_url)) as storage:
        storage.migrate()
        said = site.check_consent(own)
        assert said is not None
        assert (said.check, said.state) == ("consent", "ok")
        Consent(storage, own).refuse(CallFacts(uniqueid="1.1", caller="5550177"))
    key = tmp_path / KEY_FILE
    right = key.read_text()
    for planted in (None, "0" * 64, "short"):
        key.unlink() if planted is None else key.write_text(planted)
        said = site.check_consent(own)
        assert said is not None
        assert (said.check, said.state) == ("consent", "failed")
        assert str(key) in said.remedy
    key.write_text(right)
    said = site.check_consent(own)
    assert said is not None
    assert said.state == "ok"


def test_the_number_of_the_test_call_is_asked_for_and_is_nobodys() -> None:
    assert normalised(NUMBER) == NUMBER
    assert re.search("[*#]", NUMBER)


# ---- Asterisk's side of the spool


@pytest.mark.parametrize(
    ("mode", "uid", "gids", "may"),
    [
        (0o700, None, set(), True),
        (0o500, None, set(), False),
        (0o070, 4242, None, True),
        (0o770, 4242, {4243}, False),
        (0o757, 4242, None, False),
        (0o703, 4242, {4243}, True),
        (0o702, 4242, {4243}, False),
    ],
)
def test_who_may_write_into_a_folder_is_told_by_owner_and_mode(
    tmp_path: Path, mode: int, uid: int | None, gids: set[int] | None, may: bool
) -> None:
    folder = tmp_path / "monitor"
    folder.mkdir()
    os.chown(folder, 1234 if os.geteuid() == 0 else -1, -1)
    folder.chmod(mode)
    about = folder.stat()
    owner = about.st_uid if uid is None else uid
    assert pbx_spool.may_write(folder, owner, {about.st_gid} if gids is None else gids) == may
    assert pbx_spool.may_write(folder, 0, set())
    folder.chmod(0o755)


def test_whose_folder_it_is_is_never_changed_above_the_recordings(tmp_path: Path) -> None:
    # Fault held off: `chown asterisk /var/spool` was the remedy of a folder that did not exist.
    there = tmp_path / "monitor" / "callcore"
    for made in (False, True):
        if made:
            there.mkdir(parents=True)
        remedy = pbx_spool.how_to_open("asterisk", there)
        assert remedy == f"{'chown' if made else 'install -d -o'} asterisk {there}"


MONITOR = "/var/spool/asterisk/monitor"


@pytest.mark.parametrize(
    ("given", "below"),
    [
        ({"spool_dir": MONITOR}, "callcore"),
        ({"spool_dir": f"{MONITOR}/callcore"}, "."),
        ({"spool_dir": f"{MONITOR}/call"}, None),
        ({"spool_dir": "/mnt/pbx"}, None),
        ({"spool_dir": "/mnt/pbx", "pbx_spool_dir": f"{MONITOR}/"}, "callcore"),
        ({"spool_dir": MONITOR, "pbx_spool_dir": "/data"}, None),
    ],
)
def test_the_pbxs_folder_is_found_in_the_watched_one(
    tmp_path: Path, given: dict[str, str], below: str | None
) -> None:
    own = settings(tmp_path, **given)
    assert pbx_spool.place_below(f"{MONITOR}/callcore", own) == below


def test_a_link_to_the_pbxs_folder_is_that_folder(tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.mkdir()
    (tmp_path / "link").symlink_to(real)
    own = settings(tmp_path / "state", spool_dir=tmp_path / "link")
    assert pbx_spool.place_below(str(real / "callcore"), own) == "callcore"


# ---- the test call's document


@pytest.mark.parametrize(
    ("failing", "said"),
    [
        (SETTLE, "failed: settle: the disk is full"),
        ("insights", "partial: insights: the disk is full"),
        (None, "not complete: the step insights is not done"),
    ],
)
def test_an_analysis_that_is_not_complete_is_told_with_its_step(
    tmp_path: Path, failing: str | None, said: str
) -> None:
    own = settings(tmp_path)
    needs = {SETTLE: (), "transcribe": (SETTLE,), "insights": (SETTLE, "transcribe")}
    with contextlib.closing(Storage(own.database_url)) as storage:
        storage.migrate()
        ledger = Ledger(storage, max_attempts=1)
        report = recording_rows.Report(None, CallFacts(), "agi", (), ("doctor-1",))
        with storage.database.transaction():
            reported = recording_rows.report(storage.database, report, storage.clock())
            ledger.enqueue(reported.audio_id, ("transcribe", "insights"))
        for step in (SETTLE, "transcribe", "insights"):
            claim = ledger.claim(reported.audio_id, step)
            if claim is None or (step == "insights" and failing is None):
                continue
            if step == failing:
                ledger.fail(claim, "the disk is full", needs)
            else:
                ledger.finish(claim, {}, needs)
        ami: Any = None  # by now nobody asks it
        call = CheckedCall(own, storage, ami, "doctor-1", lambda *_: None, Limits(document_s=0))
        found = call._document(storage.recordings_of("doctor-1")[0])
    assert (found.check, found.state) == ("call-document", "failed")
    assert said in found.detail
    assert found.remedy


# ---- printing


def test_a_finding_is_one_line_and_its_remedy_stands_below() -> None:
    out, progress = io.StringIO(), io.StringIO()
    lines = printing.Lines(out, progress)
    found = [
        Finding("disk", "ok", "much"),
        Finding("pbx-audiosocket", "failed", "closed", "do this\nand that"),
        Finding("clock", "warning", "late", "set it"),
    ]
    for each in found:
        lines.show(each)
    lines.wait("the call is to end", 180)
    lines.sum_up(found)
    assert out.getvalue() == (
        "ok       disk             much\n"
        "FAILED   pbx-audiosocket  closed\n"
        "                          -> do this\n"
        "                             and that\n"
        "warning  clock            late\n"
        "                          -> set it\n"
        "\n1 check(s) failed, 1 warning(s)\n"
    )
    assert progress.getvalue() == "         ... the call is to end (at most 180 s)\n"
    report = printing.as_json(found, "doctor-1")
    assert (report["ok"], report["call_id"]) == (False, "doctor-1")
    assert report["findings"][0] == {
        "check": "disk", "state": "ok", "detail": "much", "remedy": None,
    }  # fmt: skip
