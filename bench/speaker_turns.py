"""How often the right speaker is found in mono recordings of both parties.

    python bench/speaker_turns.py --data DIR [--model base]

Goes the whole way of step transcribe (file, words, voices). DIR holds ``diarization/`` (a FLAC
with its RTTM), ``twoparty/`` (a stereo call, mixed to mono here; the channels' activity is the
truth), ``harpervalley/`` and ``speakers/`` (one voice a file or group of files: no speakers may
be found). The sample calls of this checkout are mixed, too. All at 8 kHz.

Right words and right time count where exactly one party speaks, under the better of the two
mappings. DER counts missed, false and confused speech over all speech, without a collar.
"""

import argparse
import json
import tempfile
import time
import wave
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from transcribe import File, Local, context

from callcore import audio, resources, settings
from callcore.engines.batch_whisper import BatchWhisper
from callcore.engines.ge2e import Ge2e
from callcore.steps import transcribe

RATE = 8000
#: Frames of truth a second.
FRAMES = 50


@dataclass
class Item:
    name: str
    samples: np.ndarray
    truth: np.ndarray | None
    """Shape (2, frames), bool: who speaks; None: one voice."""


class Engines(Local):
    """The transcriber, the encoder, and how long the latter took."""

    def __init__(self, transcriber: Any, encoder: Any) -> None:
        super().__init__(transcriber)
        self.encoder = encoder
        self.took_s = 0.0

    def call(self, engine: str, method: str, *args: Any) -> Any:
        began = time.process_time()
        result = getattr(self.encoder, method)(*args)
        self.took_s += time.process_time() - began
        return result


def frames(spans: list[tuple[int, float, float]], num_frames: int) -> np.ndarray:
    truth = np.zeros((2, num_frames), bool)
    for who, start, end in spans:
        truth[who, round(start * FRAMES) : round(end * FRAMES)] = True
    return truth


def activity(channels: np.ndarray) -> np.ndarray:
    """Return who speaks, by level: within 30 dB of the channel's speech, no echo of the other."""
    hop = RATE // FRAMES
    cut = channels[:, : channels.shape[1] // hop * hop].reshape(2, -1, hop)
    levels = 10 * np.log10(np.square(cut).mean(axis=2) + 1e-10)
    floors = np.maximum(np.percentile(levels, 95, axis=1) - 30, -55)[:, None]
    loud = (levels > floors) & (levels > levels[::-1] - 20)
    return np.stack([closed(each, round(0.3 * FRAMES)) for each in loud])


def closed(active: np.ndarray, longest: int) -> np.ndarray:
    """Return the activity without pauses of up to ``longest`` frames."""
    result = active.copy()
    at = np.flatnonzero(active)
    for last, following in pairwise(at):
        if following - last <= longest:
            result[last:following] = True
    return result


def items(data: Path) -> list[Item]:
    found = []
    for path in sorted((data / "diarization").glob("*.flac")):
        samples = audio.read_channels(path, RATE, 3600.0)[0]
        lines = [line.split() for line in path.with_suffix(".rttm").read_text().splitlines()]
        names = sorted({line[7] for line in lines})
        spans = [(names.index(n[7]), float(n[3]), float(n[3]) + float(n[4])) for n in lines]
        found.append(Item("diarization", samples, frames(spans, len(samples) * FRAMES // RATE + 1)))
    for path in sorted((data / "twoparty").glob("*.flac")):
        channels = audio.read_channels(path, RATE, 3600.0)
        found.append(Item("twoparty", channels.mean(axis=0), activity(channels)))
    for path in sorted(resources.path("samples").glob("*.wav")):
        channels = audio.read_channels(path, RATE, 3600.0)
        turns = json.loads(path.with_suffix(".json").read_text("utf-8"))["turns"]
        spans = [(int(t["leg"] == "agent"), t["start"], t["end"]) for t in turns]
        truth = frames(spans, channels.shape[1] * FRAMES // RATE + 1)
        found.append(Item(path.stem, channels.mean(axis=0), truth))
    for path in sorted((data / "harpervalley").glob("*.wav")):
        found.append(Item("one voice: call", audio.read_channels(path, RATE, 3600.0)[0], None))
    by_speaker: dict[str, list[np.ndarray]] = {}
    for entry in json.loads((data / "speakers" / "manifest.json").read_text("utf-8")):
        clip = audio.read_channels(data / "speakers" / entry["file"], RATE, 3600.0)[0]
        by_speaker.setdefault(entry["speaker"], []).extend([clip, np.zeros(RATE // 2, np.float32)])
    for clips in by_speaker.values():
        found.append(Item("one voice: clips", np.concatenate(clips[:16]), None))
    return found


def transcribed(site: settings.Settings, item: Item, engines: Engines) -> list[dict[str, Any]]:
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        with wave.open(file.name, "wb") as out:
            out.setnchannels(1)
            out.setsampwidth(2)
            out.setframerate(RATE)
            out.writeframes((np.clip(item.samples, -1, 1) * 32767).astype("<i2").tobytes())
        seconds = len(item.samples) / RATE
        about = File(item.name, Path(file.name), "en", ("mixed",), (None,), seconds)
        made = context(site, about, None)
        segments: list[dict[str, Any]] = transcribe.run(
            type(made)(**{n: getattr(made, n) for n in made.__slots__} | {"engines": engines})
        )["segments"]
    return segments


def score(segments: list[dict[str, Any]], truth: np.ndarray) -> tuple[float, float, float]:
    """Return the shares of right words and right time, and the DER, under the better mapping."""
    alone = truth.sum(axis=0) == 1
    said = np.zeros_like(truth)
    words = []
    for segment in segments:
        who = int(segment["speaker"] == "B")
        for word in segment["words"]:
            span = slice(round(word["s"] * FRAMES), round(word["e"] * FRAMES) + 1)
            said[who, span] = True
            middle = min(round((word["s"] + word["e"]) / 2 * FRAMES), truth.shape[1] - 1)
            if alone[middle]:
                words.append((who, middle))
        # A short pause between words belongs to the utterance, as in the truth.
        start, end = (round(segment[key] * FRAMES) for key in ("start", "end"))
        said[who, start:end] = closed(said[who, start:end], round(0.3 * FRAMES))
    best = (0.0, 0.0, 9.9)
    for one in (truth, truth[::-1]):
        right = np.mean([one[who, middle] for who, middle in words])
        told = alone & (said.sum(axis=0) == 1)
        time_right = (said & one)[:, told].any(axis=0).mean()
        num_true, num_said = one.sum(axis=0), said.sum(axis=0)
        errors = np.maximum(num_true, num_said) - (one & said).sum(axis=0)
        best = max(best, (float(right), float(time_right), float(errors.sum() / num_true.sum())))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", type=Path, default=Path("var/models"))
    parser.add_argument("--model", default="base")
    args = parser.parse_args()
    site = settings.load({})
    engines = Engines(BatchWhisper(str(args.models / args.model), threads=2), Ge2e())
    print("| recording | s | speakers found | right words | right time | DER |")
    one: dict[str, list[bool]] = {}
    total_s = 0.0
    for item in items(args.data):
        segments = transcribed(site, item, engines)
        total_s += len(item.samples) / RATE
        found = len({each["speaker"] for each in segments} - {None}) or 1
        if item.truth is None:
            one.setdefault(item.name, []).append(found == 1)
            continue
        words, right, der = score(segments, item.truth)
        shares = f"{100 * words:.1f} % | {100 * right:.1f} % | {100 * der:.1f} %"
        print(f"| {item.name} | {len(item.samples) / RATE:.0f} | {found} | {shares} |", flush=True)
    for name, kept in one.items():
        print(f"| {name} | - | 1 in {sum(kept)} of {len(kept)} | - | - | - |")
    print(f"voices: {engines.took_s / total_s:.3f} CPU s per second of audio")


if __name__ == "__main__":
    main()
