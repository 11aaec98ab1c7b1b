"""The sample calls as test material: clips of them, and how well a transcript matches."""

import json
import wave
from dataclasses import dataclass
from pathlib import Path

from callcore import resources
from callcore.cli.demo import word_error_rate


@dataclass(frozen=True)
class Clip:
    """The first seconds of a sample call as a stereo file."""

    path: Path
    seconds: float
    words: dict[str, str]
    """Leg to what it says in that time."""


def clip(folder: Path, sample: str, turns: int) -> Clip:
    """Write the first ``turns`` turns of a sample call into ``folder``."""
    samples = resources.path("samples")
    truth = json.loads((samples / f"{sample}.json").read_text("utf-8"))
    kept = truth["turns"][:turns]
    seconds = kept[-1]["end"] + 1.0
    path = folder / f"{sample}-{turns}.wav"
    with wave.open(str(samples / f"{sample}.wav")) as whole, wave.open(str(path), "wb") as part:
        part.setparams(whole.getparams())
        part.writeframes(whole.readframes(int(seconds * whole.getframerate())))
    words: dict[str, list[str]] = {}
    for turn in kept:
        words.setdefault(turn["leg"], []).append(turn["text"])
    return Clip(path, seconds, {leg: " ".join(texts) for leg, texts in words.items()})


def error_rates(clip: Clip, segments: list[dict]) -> dict[str, float]:  # type: ignore[type-arg]
    """Return the WER of each leg's segments against what it says."""
    return {
        leg: word_error_rate(truth, " ".join(s["text"] for s in segments if s["leg"] == leg))
        for leg, truth in clip.words.items()
    }
