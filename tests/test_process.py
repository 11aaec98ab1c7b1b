"""``callcore process``: the whole chain over files, with the real engines."""

import json
import os
import signal
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from callcore.storage import Storage
from tests.support.require import missing
from tests.support.signals import as_from_a_shell
from tests.support.site import MODELS
from tests.support.speech import clip, error_rates

pytestmark = [pytest.mark.slow, pytest.mark.model]

PATIENCE_S = 600


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    for model in ("tiny.en", "minilm", "en_core_web_sm"):
        if not (MODELS / model).is_dir():
            missing(f"model {model} is not there: run `callcore models pull`")
    clean = {k: v for k, v in os.environ.items() if not k.startswith("CALLCORE_")}
    return {
        **clean,
        "CALLCORE_STATE_DIR": str(tmp_path / "state"),
        "CALLCORE_MODELS_DIR": str(MODELS),
        "CALLCORE_MODEL": "tiny.en",
        "TMPDIR": str(tmp_path),
    }


def process(environ: dict[str, str], *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "callcore.cli", "process", *map(str, arguments)],
        env=environ,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def valid(document: dict[str, Any]) -> dict[str, Any]:
    name = "data/schema/callcore.insights-1.json"
    schema = json.loads(resources.files("callcore").joinpath(name).read_text("utf-8"))
    jsonschema.Draft202012Validator(schema).validate(document)
    return document


def test_documents_come_as_lines_of_json_in_the_order_of_the_files(
    environ: dict[str, str], tmp_path: Path
) -> None:
    first = clip(tmp_path, "helpline-distress", 8)
    second = clip(tmp_path, "support-billing", 4)
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"PK\x03\x04" + bytes(5000))
    run = process(environ, first.path, broken, second.path, "--json")
    assert run.returncode == 1, run.stderr
    made = [valid(json.loads(line)) for line in run.stdout.splitlines()]
    assert [each["status"] for each in made] == ["completed", "failed", "completed"]
    for said, document in ((first, made[0]), (second, made[2])):
        assert max(error_rates(said, document["segments"]).values()) < 0.15
        for part in ("summary", "entities", "categories", "insights", "annotation"):
            assert document[part] is not None, part
    assert "broken.wav: failed (settle: " in run.stderr
    assert "Traceback" not in run.stderr
    assert not list(tmp_path.glob("callcore-process-*"))


def test_people_get_words_and_a_site_keeps_what_it_is_told_to_keep(
    environ: dict[str, str], tmp_path: Path
) -> None:
    subprocess.run(
        [sys.executable, "-m", "callcore.cli", "migrate"], env=environ, check=True, timeout=60
    )
    said = clip(tmp_path, "support-billing", 3)
    run = process(environ, said.path, "--store", "--steps", "transcribe")
    assert run.returncode == 0, run.stderr
    assert "agent      Good morning." in run.stdout
    storage = Storage(f"sqlite:///{tmp_path}/state/callcore.db")
    [recording], _ = storage.recordings(None, 10)
    assert [step.name for step in storage.steps(recording.audio_id)] == ["settle", "transcribe"]
    storage.close()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nowhere.wav"], "there is no such file"),
        ([__file__, "--steps", "transcribe,nonsense"], "nonsense"),
        ([__file__, "--language", "English"], "language code"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_begun(
    environ: dict[str, str], arguments: list[str], told: str
) -> None:
    run = process(environ, *arguments)
    assert run.returncode == 2
    assert told in run.stderr
    assert run.stdout == ""
    assert len(run.stderr.splitlines()) <= 2


def test_an_interrupted_run_leaves_nothing_behind(environ: dict[str, str], tmp_path: Path) -> None:
    said = clip(tmp_path, "helpline-distress", 14)
    command = [sys.executable, "-m", "callcore.cli", "process", str(said.path)]
    with subprocess.Popen(
        command,
        env={**environ, "CALLCORE_LOG_LEVEL": "DEBUG"},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=as_from_a_shell,
    ) as run:
        assert run.stderr is not None
        for line in run.stderr:
            if "step=transcribe" in line and "step starts" in line:
                break
        run.send_signal(signal.SIGINT)
        run.stderr.read()
        assert run.wait(PATIENCE_S) == 130
    assert not list(tmp_path.glob("callcore-process-*"))
