"""Kill -9 of each process in the middle of its work: nothing is lost, nothing is doubled.

One site under ``callcore up`` with the real models; each test plays a call of its own. Words are
checked by WER against the script with room for recognition errors: a lost or doubled utterance of
these short clips would be far outside it.
"""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from callcore.cli.demo import word_error_rate
from tests.support.require import missing
from tests.support.site import MODELS, Site
from tests.support.speech import Clip, clip, error_rates

pytestmark = [pytest.mark.slow, pytest.mark.model, pytest.mark.redis]

#: Every clip is transcribed with less than this when nothing is lost.
WORST_WER = 0.20


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    if not (MODELS / "base" / "model.bin").is_file():
        missing("the models are not there: run `callcore models pull`")
    with Site(tmp_path_factory.mktemp("s")) as running:
        yield running


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    return clip(tmp_path_factory.mktemp("clip"), "support-billing", turns=3)


def _start_call(site: Site, talk: Clip) -> tuple[Any, str]:
    """Play the clip; return the player and the call's id once the call has its first final."""
    player = site.play(talk.path, "--stereo")

    def spoken() -> Any:
        listed = site.get("/api/calls/")
        if not listed or not listed["calls"]:
            return None
        call = site.get(f"/api/calls/{listed['calls'][0]['call_id']}/")
        return call["call_id"] if call and call["segments"] else None

    return player, site.wait("the first final", spoken)


def _ended(site: Site, call_id: str) -> Any:
    def state() -> Any:
        call = site.get(f"/api/calls/{call_id}/")
        return call if call and call["state"] == "ended" else None

    return site.wait("the end of the call", state)


def _document(site: Site, call_id: str) -> Any:
    """Return the document of the call's one recording once it is completed."""

    def completed() -> Any:
        call = site.get(f"/api/calls/{call_id}/")
        if not call or not call["recordings"]:
            return None
        assert len(call["recordings"]) == 1
        audio_id = call["recordings"][0]["audio_id"]
        status = site.get(f"/api/status/{audio_id}/")
        return audio_id if status and status["status"] == "completed" else None

    audio_id = site.wait("the document", completed)
    return site.get(f"/api/audio/{audio_id}/")


def _assert_right(talk: Clip, segments: list[dict[str, Any]]) -> None:
    numbers = [segment["segment"] for segment in segments]
    assert len(numbers) == len(set(numbers))
    rates = error_rates(talk, segments)
    assert all(rate <= WORST_WER for rate in rates.values()), rates


def test_a_killed_inference_process_costs_no_words_of_the_live_call(site: Site, talk: Clip) -> None:
    player, call_id = _start_call(site, talk)
    daemon = site.child("callcore audiosocket")
    for _ in range(2):
        [engine] = site.wait(
            "the inference process",
            lambda: [c for c in daemon.children() if "callcore.inference_child" in c.cmdline()],
        )
        engine.send_signal(signal.SIGKILL)
        psutil.wait_procs([engine], timeout=30)
    assert player.wait(120) == 0
    call = _ended(site, call_id)
    _assert_right(talk, call["segments"])
    _assert_right(talk, _document(site, call_id)["segments"])


def test_a_killed_daemon_ends_its_call_and_what_it_captured_is_transcribed(
    site: Site, talk: Clip
) -> None:
    player, call_id = _start_call(site, talk)
    site.kill("callcore audiosocket")
    player.wait(120)
    call = _ended(site, call_id)
    assert call["reason"] == "daemon_lost"
    assert {leg["reason"] for leg in call["legs"]} == {"daemon_lost"}
    live = " ".join(segment["text"] for segment in call["segments"])
    document = _document(site, call_id)
    legs = {segment["leg"] for segment in call["segments"]}
    stored = " ".join(s["text"] for s in document["segments"] if s["leg"] in legs)
    # Everything that was live text is in the capture; the capture may hold some words more.
    assert word_error_rate(live, stored[: int(len(live) * 1.2)]) <= 0.4
    assert len(stored) >= 0.8 * len(live)


def test_a_killed_broker_costs_neither_the_call_nor_its_document(site: Site, talk: Clip) -> None:
    player, call_id = _start_call(site, talk)
    site.kill("valkey")
    assert player.wait(120) == 0
    call = _ended(site, call_id)
    _assert_right(talk, call["segments"])
    site.kill("valkey")
    _assert_right(talk, _document(site, call_id)["segments"])


def test_a_worker_killed_in_the_middle_of_a_step_completes_it_once(site: Site, talk: Clip) -> None:
    answer = site.client.post(
        "/api/upload/", files={"file": ("long.wav", talk.path.read_bytes(), "audio/wav")}
    )
    assert answer.status_code == 202
    audio_id = answer.json()["audio_id"]

    def step() -> Any:
        status = site.get(f"/api/status/{audio_id}/")
        rows = {row["name"]: row for row in status["steps"]} if status else {}
        return rows.get("transcribe")

    site.wait("transcribing", lambda: (step() or {}).get("status") == "running")
    site.kill("workers")
    site.wait("done", lambda: (step() or {}).get("status") == "done")
    assert step()["attempts"] == 2
    document = site.get(f"/api/audio/{audio_id}/")
    _assert_right(talk, document["segments"])


def test_the_site_drains_and_comes_back_with_everything(site: Site) -> None:
    before = site.get("/api/audio/")["recordings"]
    assert site.stop() == 0
    site.start()
    after = site.get("/api/audio/")["recordings"]
    assert [r["audio_id"] for r in after] == [r["audio_id"] for r in before]
    assert not any("Traceback" in line for line in site.lines[-200:])


def test_a_second_site_on_the_same_addresses_says_so(site: Site, tmp_path: Path) -> None:
    second = subprocess.run(
        [sys.executable, "-m", "callcore.cli", "up"],
        env=site.environ,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert second.returncode == 2
    assert "CALLCORE_AUDIOSOCKET_BIND" in second.stderr
