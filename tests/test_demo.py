"""`callcore demo --once` from nothing but the models: the main job, end to end, in real time."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.require import missing
from tests.support.site import MODELS, free_port

pytestmark = [pytest.mark.slow, pytest.mark.model, pytest.mark.redis]


def test_the_demo_shows_words_progress_and_result_and_ends_with_0(tmp_path: Path) -> None:
    if not (MODELS / "base" / "model.bin").is_file():
        missing("the models are not there: run `callcore models pull`")
    clean = {k: v for k, v in os.environ.items() if not k.startswith("CALLCORE_")}
    environ = {
        **clean,
        "CALLCORE_STATE_DIR": str(tmp_path),
        "CALLCORE_MODELS_DIR": str(MODELS),
        "CALLCORE_WEB_BIND": f"127.0.0.1:{free_port()}",
        "CALLCORE_AUDIOSOCKET_BIND": f"127.0.0.1:{free_port()}",
        "CALLCORE_AGI_BIND": f"127.0.0.1:{free_port()}",
    }
    run = subprocess.run(
        [sys.executable, "-m", "callcore.cli", "demo", "--once"],
        env=environ,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    logs = "".join(path.read_text() for path in tmp_path.glob("demo/demo.log"))
    assert run.returncode == 0, run.stdout + run.stderr + logs[-5000:]
    rates = dict(re.findall(r"^  (\w+) +WER +([\d.]+)%", run.stdout, re.M))
    assert {leg: float(rate) <= 12 for leg, rate in rates.items()} == {
        "caller": True,
        "agent": True,
    }, run.stdout
    words = re.findall(r"(\d+) words with times", run.stdout)
    assert all(int(count) > 20 for count in words)
    live, _, stored = run.stdout.partition("the stored transcript:")
    assert len(re.findall(r"^\d\d:\d\d\.\d  caller", live, re.M)) >= 3
    assert len(re.findall(r"^\d\d:\d\d\.\d  agent", stored, re.M)) >= 3
    assert "transcribe" in live
    assert "http://" in stored
    assert "Traceback" not in logs
