"""A whole site whose transcription endpoint goes away in the middle of calls: nothing is lost."""

from typing import Any

import pytest
from faster_whisper import WhisperModel

from callcore.audio import read_channels
from tests.support.recognition import model
from tests.support.site import Site
from tests.support.speech import clip, error_rates
from tests.support.transcription_server import Endpoint, Heard, status, transcription_server

pytestmark = [pytest.mark.nightly, pytest.mark.slow, pytest.mark.model, pytest.mark.redis]

#: Every clip is transcribed with less than this when nothing is lost.
WORST_WER = 0.20


def test_calls_wait_are_recorded_and_completed_when_the_endpoint_is_back(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    talk = clip(tmp_path_factory.mktemp("clip"), "support-billing", turns=3)
    whisper = WhisperModel(
        model("tiny.en"), compute_type="int8", cpu_threads=1, local_files_only=True
    )
    with transcription_server() as endpoint:
        endpoint.heard = Heard(whisper, read_channels(talk.path, 16_000, 60.0))
        given = {
            "transcription_url": endpoint.url,
            "transcription_model": "tiny.en",
            "steps": "transcribe",
        }
        with Site(tmp_path_factory.mktemp("s"), **given) as site:
            player = site.play(talk.path, "--stereo")
            [call_id] = site.wait("the call", lambda: _calls(site))
            site.wait("its first final", lambda: _call(site, call_id)["segments"])
            endpoint.always = status(503)
            _until_it_is_away(site, endpoint)
            again = site.play(talk.path, "--stereo")
            [late_id] = site.wait("the second call", lambda: _calls(site) - {call_id})
            assert player.wait(120) == 0
            assert again.wait(120) == 0
            endpoint.always = None
            for each in (call_id, late_id):
                site.wait("its end", lambda each=each: _call(site, each)["state"] == "ended")
            for each in (call_id, late_id):
                call = _call(site, each)
                live = [s for s in call["segments"] if s["source"] == "live"]
                numbers = [segment["segment"] for segment in live]
                assert len(numbers) == len(set(numbers))
                rates = error_rates(talk, live)
                for leg in call["legs"]:
                    # A leg that began while the endpoint rested is only recorded; one that began
                    # between two rests is a trial, whose words wait.
                    if leg["no_text"] is None:
                        assert rates[leg["leg"]] <= WORST_WER
                    else:
                        assert each == late_id
                        assert leg["leg"] not in {segment["leg"] for segment in live}
            for each in (call_id, late_id):
                document = site.wait("its document", lambda each=each: _document(site, each))
                assert max(error_rates(talk, document["segments"]).values()) <= WORST_WER


def _until_it_is_away(site: Site, endpoint: Endpoint) -> None:
    asked = len(endpoint.asked)
    site.wait("a refused piece", lambda: len(endpoint.asked) > asked)


def _calls(site: Site) -> set[str]:
    listed = site.get("/api/calls/")
    return {each["call_id"] for each in listed["calls"]} if listed else set()


def _call(site: Site, call_id: str) -> Any:
    return site.wait("the call", lambda: site.get(f"/api/calls/{call_id}/"))


def _document(site: Site, call_id: str) -> Any:
    recordings = _call(site, call_id)["recordings"]
    if not recordings:
        return None
    audio_id = recordings[0]["audio_id"]
    found = site.get(f"/api/status/{audio_id}/")
    if found and found["status"] == "completed":
        return site.get(f"/api/audio/{audio_id}/")
    return None
