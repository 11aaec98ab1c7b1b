"""Who is heard where: nobody's words may be lost for want of a file."""

import wave
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from callcore.calls import Media
from callcore.engines.scripted import ScriptedSpeakerEncoder, ScriptedTranscriber
from callcore.errors import EngineError, InvalidRecording
from callcore.settings import load
from callcore.steps import transcribe
from callcore.steps.transcribe import tracks
from tests.support.results import context, recording_of


@pytest.mark.parametrize(
    ("roles", "heard"),
    [
        ("mixed", "mixed:mixed"),
        ("stereo", "stereo:caller stereo:agent"),
        ("mixed caller agent", "caller:caller agent:agent"),
        ("stereo caller agent", "caller:caller agent:agent"),
        ("caller agent agent-2", "caller:caller agent:agent agent-2:agent-2"),
        ("caller caller.2 agent", "caller:caller caller.2:caller agent:agent"),
        ("caller", "caller:caller"),
        # The other side has no file of its own that can be read.
        ("mixed caller", "mixed:mixed"),
        ("mixed agent agent-2", "mixed:mixed"),
        ("stereo agent", "stereo:caller stereo:agent"),
        # A second stream that nobody registered.
        ("mixed mixed.2", "mixed:mixed mixed.2:mixed"),
    ],
)
def test_whoever_spoke_is_heard_once(roles: str, heard: str) -> None:
    found = tracks(tuple(Media(role, f"/{role}.wav") for role in roles.split()))
    assert " ".join(f"{each.media.role}:{each.leg}" for each in found) == heard


def levels(*parts: tuple[int, float]) -> np.ndarray:
    """Return int16 samples at 8 kHz: levels, each held for so many seconds."""
    return np.concatenate([np.full(round(s * 8000), level, np.int16) for level, s in parts])


def write(path: Path, *channels: np.ndarray) -> str:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(len(channels))
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(np.stack(channels, axis=1).astype("<i2").tobytes())
    return str(path)


class Linguist(ScriptedTranscriber):
    """Finds a language and how sure it is by the level: 1000 is unsure Welsh, 3000 English."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[str | None, str | None]] = []

    def transcribe(self, samples, language, hotwords=None):
        self.asked.append((language, hotwords))
        loud = float(np.abs(samples).max()) * 32768 > 2000
        found, prob = ("en", 0.95) if loud else ("cy", 0.4)
        for each in super().transcribe(samples, language):
            yield replace(each, language=language or found, language_prob=1.0 if language else prob)


def transcribed(media: list[Media], language: str | None = None, **options: Any) -> dict:
    """Return the transcript and what the progress was."""
    engines = {
        "transcriber": options.pop("transcriber", None) or ScriptedTranscriber(),
        "speaker_encoder": ScriptedSpeakerEncoder(),
    }
    shares: list[float] = []
    environment = {f"CALLCORE_{name.upper()}": value for name, value in options.items()}
    recording = replace(recording_of(), media=tuple(media))
    made = context({}, recording=recording, engines=engines, settings=load(environment))
    result = transcribe.run(replace(made, language=language, progress=shares.append))
    assert shares == sorted(shares)
    assert not shares or shares[-1] <= 1.0
    return result


TWO_VOICES = ((0, 0.5), (3000, 3.0), (0, 0.6), (12000, 4.0), (0, 0.6), (3000, 3.0), (0, 0.5))


def test_the_voices_of_a_mono_recording_are_told_apart(tmp_path: Path) -> None:
    path = write(tmp_path / "call.wav", levels(*TWO_VOICES))
    result = transcribed([Media("mixed", path, duration_s=12.2)])
    assert [each["speaker"] for each in result["segments"]] == ["A", "B", "A"]
    assert result["parameters"]["speaker_turns"]["name"] == "scripted"


def test_one_voice_has_no_label(tmp_path: Path) -> None:
    path = write(tmp_path / "call.wav", levels((3000, 3.0), (0, 0.9), (3000, 4.0)))
    result = transcribed([Media("mixed", path, duration_s=7.6)])
    assert [each["speaker"] for each in result["segments"]] == [None, None]


def test_no_voices_are_told_apart_where_the_setting_is_off_or_legs_tell(tmp_path: Path) -> None:
    mono = Media("mixed", write(tmp_path / "call.wav", levels(*TWO_VOICES)), duration_s=12.2)
    off = transcribed([mono], speaker_turns="off")
    legs = transcribed([replace(mono, role="caller")])
    for result in (off, legs):
        assert {each["speaker"] for each in result["segments"]} == {None}
        assert "speaker_turns" not in result["parameters"]


def test_each_leg_finds_its_own_language_and_an_unsure_one_takes_the_others(
    tmp_path: Path,
) -> None:
    caller = levels((0, 1.0), (1000, 0.6), (0, 6.0))
    agent = levels((0, 2.0), (3000, 4.0), (0, 1.6))
    media = Media("stereo", write(tmp_path / "call.wav", caller, agent), duration_s=7.6)
    engine = Linguist()
    result = transcribed([media], transcriber=engine, hotwords="Acme,Nairobi")
    assert {each["language"] for each in result["segments"]} == {"en"}
    assert result["language"] == "en"
    assert engine.asked == [(None, "Acme,Nairobi")] * 2 + [("en", "Acme,Nairobi")]
    assert result["parameters"]["hotwords"] == "Acme,Nairobi"


def test_a_language_that_is_given_is_not_doubted(tmp_path: Path) -> None:
    media = Media("caller", write(tmp_path / "call.wav", levels((1000, 3.0))), duration_s=3.0)
    engine = Linguist()
    result = transcribed([media], "sw", transcriber=engine)
    assert engine.asked == [("sw", None)]
    assert {each["language"] for each in result["segments"]} == {"sw"}


def test_a_file_that_is_no_audio_is_an_invalid_recording(tmp_path: Path) -> None:
    (tmp_path / "call.wav").write_bytes(b"RIFF\x10\x00\x00\x00 no sound in here")
    with pytest.raises(InvalidRecording):
        transcribed([Media("mixed", str(tmp_path / "call.wav"))])


def test_an_encoder_that_fails_lets_the_step_be_tried_again(tmp_path: Path) -> None:
    path = write(tmp_path / "call.wav", levels(*TWO_VOICES))
    engines = {
        "transcriber": ScriptedTranscriber(),
        "speaker_encoder": ScriptedSpeakerEncoder(fail_times=1),
    }
    recording = replace(recording_of(), media=(Media("mixed", path, duration_s=12.2),))
    made = context({}, recording=recording, engines=engines)
    with pytest.raises(EngineError):
        transcribe.run(made)
    assert transcribe.run(made)["segments"][1]["speaker"] == "B"
