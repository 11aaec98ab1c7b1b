"""The committed sample calls are what their scripts and the README say."""

import json
import tomllib
import wave
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SAMPLES = Path(__file__).parent.parent / "samples"
IDS = sorted(path.stem for path in SAMPLES.glob("*.toml"))
RATE = 8000


def truth(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((SAMPLES / f"{name}.json").read_text("utf-8"))
    return found


def samples(name: str) -> np.ndarray:
    with wave.open(str(SAMPLES / f"{name}.wav")) as reader:
        assert (reader.getframerate(), reader.getsampwidth()) == (RATE, 2)
        assert reader.getnchannels() == 2
        return np.frombuffer(reader.readframes(reader.getnframes()), "<i2").reshape(-1, 2)


def test_the_three_calls_are_there() -> None:
    assert IDS == ["helpline-distress", "silent-stretch", "support-billing"]


@pytest.mark.parametrize("name", IDS)
def test_the_ground_truth_is_the_scripts_text(name: str) -> None:
    script = tomllib.loads((SAMPLES / f"{name}.toml").read_text("utf-8"))
    spoken = [(turn["leg"], turn["text"]) for turn in truth(name)["turns"]]
    assert spoken == [(turn["leg"], turn["text"]) for turn in script["turns"]]


@pytest.mark.parametrize("name", IDS)
def test_each_turn_is_heard_on_its_own_channel_at_its_time(name: str) -> None:
    audio, about = samples(name), truth(name)
    assert len(audio) / RATE == pytest.approx(about["duration"], abs=0.001)
    spoken = np.zeros(audio.shape, bool)
    for turn in about["turns"]:
        first, last = round(turn["start"] * RATE), round(turn["end"] * RATE)
        channel = about["channels"].index(turn["leg"])
        # The times are rounded to milliseconds.
        spoken[first - RATE // 1000 : last + RATE // 1000, channel] = True
        assert np.abs(audio[first:last, channel]).max() > 3000
    assert np.abs(audio[~spoken]).max() < 300


def test_the_silent_stretch_is_at_least_fifteen_seconds_long() -> None:
    turns = truth("silent-stretch")["turns"]
    assert max(b["start"] - a["end"] for a, b in pairwise(turns)) >= 15


@pytest.mark.parametrize("name", ["helpline-distress", "support-billing"])
def test_the_calls_last_as_long_as_a_demo_should(name: str) -> None:
    assert 60 <= truth(name)["duration"] <= 90
