"""Word error rate and CPU of the short encoder window, beside the full window of 30 s.

    python bench/stitched.py --data DIR [--model tiny.en ...] [--sound clean ...] [--set NAME ...]

DIR holds ``harpervalley/`` (caller sides of calls, with their words), ``prompts/`` (telephone
prompts in five languages, with theirs) and ``twoparty/`` (a call without; the words of base in
the full window stand for its text). Each file is cut into utterances by the speech detector, as a
live leg is, on the clean sound. Then every utterance is decoded as a final: in the full window, and
in the short one with the rule that decodes some again. ``--sound`` is ``clean``, ``mulaw`` (there
and back) or ``noise100``, ``noise400`` (white line noise, root mean square of 32768). An English
model sees English only. One thread; CPU seconds, not the clock's.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
from whisper_normalizer.basic import BasicTextNormalizer
from whisper_normalizer.english import EnglishTextNormalizer

from callcore import audio
from callcore.endpointing import Endpointer, SpeechEnded
from callcore.engines import LIVE_RATE, DecodeJob, Samples
from callcore.engines.live_whisper import LiveWhisper
from callcore.engines.silero import Silero

TRAILING_S = 1.0
TWOPARTY = "auto_repairs_40_utc.flac"
ENGLISH = EnglishTextNormalizer()
OTHER = BasicTextNormalizer()


@dataclass
class Recording:
    """One leg, with the utterances that the speech detector finds in it."""

    dataset: str
    name: str
    language: str
    text: str | None
    samples: Samples
    utterances: list[SpeechEnded]


@dataclass
class Row:
    """What one way of decoding made of one set."""

    errors: int = 0
    words: int = 0
    finals: int = 0
    redone: int = 0
    cpu_s: float = 0.0
    audio_s: float = 0.0
    texts: dict[str, str] = field(default_factory=dict)


class Counting(LiveWhisper):
    """Counts the finals that are decoded again."""

    redone = 0

    def _doubts(self, heard):  # type: ignore[no-untyped-def]
        doubts = super()._doubts(heard)
        self.redone += doubts
        return doubts


def read(path: Path, channel: int = 0) -> Samples:
    samples = audio.read_channels(path, LIVE_RATE, 3600.0)[channel]
    trailing = np.zeros(int(TRAILING_S * LIVE_RATE), np.int16)
    return np.concatenate([(samples * 32767).astype(np.int16), trailing])


def cut(samples: Samples, detector: Silero) -> list[SpeechEnded]:
    """Return the utterances of a leg."""
    endpointer, window = Endpointer(), detector.window
    samples = samples[: len(samples) // window * window]
    (probabilities,), _ = detector.probabilities([samples], [detector.initial_state()])
    levels = np.abs(samples.astype(np.float32)).reshape(-1, window).mean(axis=1)
    events = []
    for probability, level in zip(probabilities.tolist(), levels.tolist(), strict=True):
        events += endpointer.push(probability, level)
    events += endpointer.seal(len(samples))
    return [event for event in events if isinstance(event, SpeechEnded)]


def recordings(data: Path, detector: Silero) -> Iterator[Recording]:
    for folder in ("harpervalley", "prompts"):
        for entry in json.loads((data / folder / "manifest.json").read_text("utf-8")):
            if entry["text"]:
                samples = read(data / folder / entry["file"])
                language = entry["language"]
                yield Recording(
                    folder if folder == "harpervalley" else f"{folder} {language}",
                    entry["file"],
                    language,
                    entry["text"],
                    samples,
                    cut(samples, detector),
                )
    for channel in (0, 1):
        samples = read(data / "twoparty" / TWOPARTY, channel)
        name = f"{TWOPARTY} {channel}"
        yield Recording("twoparty", name, "en", None, samples, cut(samples, detector))


def worsened(samples: Samples, sound: str, seed: int) -> Samples:
    """Return the samples as a worse line would bring them."""
    if sound == "clean":
        return samples
    if sound == "mulaw":
        # G.711 mu-law, by its curve: 8 bits between -1 and 1.
        level = np.clip(samples / 32768.0, -1.0, 1.0)
        coded = np.round(np.sign(level) * np.log1p(255 * np.abs(level)) / np.log(256) * 127) / 127
        heard = np.sign(coded) * (256 ** np.abs(coded) - 1) / 255
        return (heard * 32767).astype(np.int16)
    noise = np.random.default_rng(seed).normal(0, int(sound.removeprefix("noise")), len(samples))
    return np.clip(samples + noise, -32768, 32767).astype(np.int16)


def decode(engine: LiveWhisper, recording: Recording, samples: Samples) -> str:
    texts = []
    for each in recording.utterances:
        job = DecodeJob(
            samples[each.start : each.end], recording.language, True, each.num_speech / LIVE_RATE
        )
        texts.append(engine.decode([job])[0].text)
    return " ".join(texts)


def measure(
    engine: LiveWhisper, corpus: list[Recording], sound: str, texts: dict[str, str]
) -> dict[str, Row]:
    """Return a row for each set; ``texts`` are the references by name."""
    rows: dict[str, Row] = {}
    for seed, recording in enumerate(corpus):
        row = rows.setdefault(recording.dataset, Row())
        samples = worsened(recording.samples, sound, seed)
        redone, began = getattr(engine, "redone", 0), time.process_time()
        text = decode(engine, recording, samples)
        row.cpu_s += time.process_time() - began
        row.redone += getattr(engine, "redone", 0) - redone
        row.finals += len(recording.utterances)
        row.audio_s += sum(each.end - each.start for each in recording.utterances) / LIVE_RATE
        row.texts[recording.name] = text
        normalise = ENGLISH if recording.language == "en" else OTHER
        reference = normalise(texts[recording.name])
        if reference:
            found = jiwer.process_words([reference], [normalise(text)])
            row.errors += found.substitutions + found.deletions + found.insertions
            row.words += found.hits + found.substitutions + found.deletions
    return rows


def total(rows: list[Row]) -> Row:
    return Row(
        *(
            sum(getattr(row, name) for row in rows)
            for name in ("errors", "words", "finals", "redone", "cpu_s", "audio_s")
        )
    )


def as_text(line: dict[str, Any]) -> str:
    """Return one row of the table."""
    return (
        f"{line['model']:8} {line['sound']:9} {line['set']:13} {line['words']:5} words"
        f"  full {line['wer_full']:6} %  short {line['wer_short']:6} %"
        f"  again {100 * line['redone']:3.0f} %"
        f"  CPU s per s of speech {line['cpu_full']} / {line['cpu_short']}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", type=Path, default=Path("var/models"))
    parser.add_argument("--model", nargs="+", default=["tiny.en", "base"])
    parser.add_argument("--sound", nargs="+", default=["clean", "noise100", "noise400", "mulaw"])
    parser.add_argument("--set", nargs="+", help="e.g. harpervalley 'prompts fr'")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    detector = Silero(str(args.models / "silero-vad"))
    corpus = [
        each for each in recordings(args.data, detector) if not args.set or each.dataset in args.set
    ]
    texts = {each.name: each.text or "" for each in corpus}
    without = [each for each in corpus if each.text is None]
    if without:
        base = LiveWhisper(str(args.models / "base"), window="full")
        texts |= {each.name: decode(base, each, each.samples) for each in without}
        del base
    report = []
    for model in args.model:
        folder = str(args.models / model)
        known = [each for each in corpus if each.language == "en" or not model.endswith(".en")]
        full, short = LiveWhisper(folder, window="full"), Counting(folder)
        for sound in args.sound:
            pair = [measure(engine, known, sound, texts) for engine in (full, short)]
            names = [*pair[0], "all"]
            for rows in pair:
                rows["all"] = total(list(rows.values()))
            for name in names:
                a, b = (rows[name] for rows in pair)
                line = {
                    "model": model,
                    "sound": sound,
                    "set": name,
                    "words": a.words,
                    "errors_full": a.errors,
                    "errors_short": b.errors,
                    "wer_full": round(100 * a.errors / a.words, 2),
                    "wer_short": round(100 * b.errors / b.words, 2),
                    "redone": round(b.redone / b.finals, 3),
                    "cpu_full": round(a.cpu_s / a.audio_s, 4),
                    "cpu_short": round(b.cpu_s / b.audio_s, 4),
                }
                report.append(line)
                if not args.json:
                    print(as_text(line), flush=True)
    if args.json:
        print(json.dumps(report))


if __name__ == "__main__":
    main()
