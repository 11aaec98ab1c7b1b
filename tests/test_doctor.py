"""Single checks of the doctor: what cannot be planted on a real machine, and how it is shown."""

import io
import json
import os
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from callcore import resources
from callcore.doctor import dialplan, pbx_spool, printing, site, versions
from callcore.doctor.call import SAID
from callcore.doctor.finding import Finding
from callcore.settings import Settings, load
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
        ("18.10.0~dfsg+~cs6.10.40431411-2", "ok", "18.10", 5),
        ("18.26.4", "ok", "18.26", 3),
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


# ---- modules and contexts


def test_every_application_and_function_of_the_dialplan_belongs_to_a_module() -> None:
    known = dialplan.BUILT_IN.union(*dialplan.MODULES.values())
    assert dialplan.uses(dialplan.text()) - known == set()


def test_the_modules_that_are_asked_for_have_what_the_dialplan_uses() -> None:
    folder = require() / "bin" / "modules"
    for module, names in dialplan.MODULES.items():
        used = names & dialplan.uses(dialplan.text())
        if used:
            binary = (folder / f"{module}.so").read_bytes()
            assert [name for name in used - {"LOCAL"} if name.encode() not in binary] == []


def test_what_a_dialplan_needs_is_read_from_its_steps_not_from_its_comments() -> None:
    needed = dialplan.needs(
        dialplan._COMMENT.sub(
            "",
            "[callcore-x]\n; Queue(support) and ${RAND(1,2)}\n"
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
    for each in (tmp_path, *tmp_path.parents[:2]):
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
