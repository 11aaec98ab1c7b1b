"""An installed wheel is a whole callcore: built, installed and run outside the clone."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

pytestmark = pytest.mark.slow

CLONE = Path(__file__).parent.parent
#: Seconds that all processes together may take until they answer as ready.
START_S = 90
STOP_S = 30


@dataclass
class Installed:
    """An environment with callcore's wheel in it, and a folder to work in."""

    wheel: Path
    bin: Path
    cwd: Path
    environ: dict[str, str]

    def run(self, *command: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [self.bin / command[0], *command[1:]],
            cwd=self.cwd,
            env=self.environ,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )


def checked(*command: str | Path, cwd: Path) -> None:
    done = subprocess.run(command, cwd=cwd, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def copy_clone(target: Path) -> Path:
    """Copy what git would commit, so that no build of the clone's own is packed."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=CLONE,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in listed.stdout.split("\0"):
        if name and (CLONE / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(CLONE / name, target / name)
    return target


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    root = tmp_path_factory.mktemp("wheel")
    checked(sys.executable, "-m", "venv", root / "venv", cwd=root)
    binaries = root / "venv" / "bin"
    pip = (binaries / "python", "-m", "pip", "--disable-pip-version-check", "--quiet")
    lock = CLONE / "requirements.lock"
    checked(*pip, "install", "--require-hashes", "-r", lock, cwd=root)
    source = copy_clone(root / "source")
    checked(*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", root, source, cwd=root)
    (wheel,) = root.glob("callcore-*.whl")
    checked(*pip, "install", "--no-deps", wheel, cwd=root)
    shutil.rmtree(source)
    cwd = root / "elsewhere"
    cwd.mkdir()
    environ = {
        "PATH": f"{binaries}:/usr/local/bin:/usr/bin:/bin",
        "HOME": str(cwd),
        "CALLCORE_MODELS_DIR": os.environ.get("CALLCORE_MODELS_DIR", str(CLONE / "var" / "models")),
        "CALLCORE_WEB_BIND": f"127.0.0.1:{free_port()}",
        "CALLCORE_AUDIOSOCKET_BIND": f"127.0.0.1:{free_port()}",
        "CALLCORE_AGI_BIND": f"127.0.0.1:{free_port()}",
    }
    return Installed(wheel, binaries, cwd, environ)


@pytest.fixture
def migrated(installed: Installed) -> Installed:
    done = installed.run("callcore", "migrate")
    assert done.returncode == 0, done.stdout
    return installed


@pytest.fixture
def up(migrated: Installed) -> Iterator["subprocess.Popen[bytes]"]:
    log = migrated.cwd / "up.log"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [migrated.bin / "callcore", "up"],
            cwd=migrated.cwd,
            env=migrated.environ,
            stdout=sink,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        print(log.read_text("utf-8", "replace"))  # pytest shows it where the test failed


def test_the_wheel_carries_the_whole_house_and_nothing_of_the_workshop(
    installed: Installed,
) -> None:
    with zipfile.ZipFile(installed.wheel) as archive:
        names = set(archive.namelist())
    bundle = "callcore/_bundle/"
    for tracked in ("Procfile", "deploy", "dialplan", "migrations", "samples"):
        files = [CLONE / tracked] if tracked == "Procfile" else (CLONE / tracked).rglob("*")
        for file in files:
            if file.is_file() and "__pycache__" not in file.parts:
                assert bundle + str(file.relative_to(CLONE)) in names
    for folder in ("callcore", "workers", "web"):
        for file in (CLONE / folder).rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                assert str(file.relative_to(CLONE)) in names
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"callcore", "workers", "web"}


def test_the_installed_callcore_is_the_wheels_and_finds_its_folders(installed: Installed) -> None:
    code = (
        "import callcore, callcore.resources as r; print(callcore.__file__); "
        "[print(r.path(n)) for n in ('Procfile', 'migrations', 'dialplan', 'deploy', 'samples')]"
    )
    done = installed.run("python", "-c", code)
    assert done.returncode == 0, done.stdout
    assert len(done.stdout.splitlines()) == 6
    assert all("site-packages" in line for line in done.stdout.splitlines())


def test_the_lock_agrees_with_setup_cfg_and_stays_under_a_gigabyte(installed: Installed) -> None:
    done = installed.run("python", "-m", "pip", "check")
    assert done.returncode == 0, done.stdout
    venv = installed.bin.parent
    size = sum(path.lstat().st_size for path in venv.rglob("*") if not path.is_dir())
    assert size < 1_000_000_000
    listed = installed.run("python", "-m", "pip", "list", "--format=freeze").stdout.lower()
    assert "torch" not in listed
    assert "nvidia" not in listed


def test_doctor_names_what_does_not_run_and_what_to_do(migrated: Installed) -> None:
    done = migrated.run("callcore", "doctor")
    assert done.returncode == 1, done.stdout
    assert "callcore up" in done.stdout
    assert "Traceback" not in done.stdout


def test_up_starts_every_process_and_doctor_finds_them_well_until_sigterm(
    migrated: Installed, up: "subprocess.Popen[bytes]"
) -> None:
    wait_until(up, lambda: is_ready(migrated), "/ready answers 200")
    # The web's readiness says nothing of the daemon, which loads its models meanwhile.
    wait_until(up, lambda: migrated.run("callcore", "doctor").returncode == 0, "doctor is content")
    up.send_signal(signal.SIGTERM)
    assert up.wait(STOP_S) == 0


def is_ready(installed: Installed) -> bool:
    try:
        ready = httpx.get(f"http://{installed.environ['CALLCORE_WEB_BIND']}/ready", timeout=5)
    except httpx.TransportError:
        return False
    return ready.status_code == httpx.codes.OK


def wait_until(
    process: "subprocess.Popen[bytes]", holds: Callable[[], bool], expected: str
) -> None:
    """Look again and again, and fail at once when the process dies."""
    give_up = time.monotonic() + START_S
    while not holds():
        assert time.monotonic() < give_up, f"not within {START_S} s: {expected}"
        try:
            process.wait(0.25)
        except subprocess.TimeoutExpired:
            continue
        pytest.fail(f"callcore up exited with {process.returncode}")
