"""Step transcribe beside plain faster-whisper: words, CPU and wall time.

    python bench/transcribe.py --data DIR [--model base] [--repeat 3] [--sets samples,prompts]

DIR holds ``harpervalley/``, ``prompts/``, ``twoparty/`` and ``nonspeech/``; the sample calls come
from this checkout. Every file goes through the step (decoding, language, guards, utterances;
speaker turns off) and through plain ``WhisperModel.transcribe`` (``vad_filter=True``,
``condition_on_previous_text=False``, beam 5) with the same model and threads, without word times
and with them. The ways take turns file by file, and the median of the repetitions counts, reading
the file included. English is normalised by EnglishTextNormalizer, the rest by BasicTextNormalizer
without diacritics.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jiwer
from faster_whisper import WhisperModel
from whisper_normalizer.basic import BasicTextNormalizer
from whisper_normalizer.english import EnglishTextNormalizer

from callcore import audio, resources, settings
from callcore.calls import Call, CallFacts, Media, Recording
from callcore.engines.batch_whisper import BatchWhisper
from callcore.steps import StepContext, transcribe

_PLAIN: dict[str, Any] = {
    "beam_size": 5,
    "vad_filter": True,
    "condition_on_previous_text": False,
}


@dataclass
class File:
    kind: str
    path: Path
    language: str
    roles: tuple[str, ...]
    texts: tuple[str | None, ...]
    """What is said in each channel, None where nobody has written it down."""
    seconds: float = 0.0
    times: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    heard: dict[str, list[str]] = field(default_factory=dict)


class Local:
    """One engine in this process."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine

    def call(self, engine: str, method: str, *args: Any) -> Any:
        return getattr(self.engine, method)(*args)

    def stream(self, engine: str, method: str, *args: Any) -> Any:
        return getattr(self.engine, method)(*args)

    def attributes(self, engine: str, *names: str) -> dict[str, Any]:
        return {name: getattr(self.engine, name) for name in names}


def corpus(data: Path, sets: list[str]) -> list[File]:
    files = []
    for path in sorted(resources.path("samples").glob("*.wav")):
        turns = json.loads(path.with_suffix(".json").read_text("utf-8"))["turns"]
        texts = [
            " ".join(t["text"] for t in turns if t["leg"] == leg) for leg in ("caller", "agent")
        ]
        files.append(File("samples", path, "en", ("stereo",), tuple(texts)))
    for kind in ("harpervalley", "prompts", "nonspeech"):
        for entry in json.loads((data / kind / "manifest.json").read_text("utf-8")):
            language = entry.get("language") or "en"
            name = f"{kind} {language}" if kind == "prompts" else kind
            text = "" if kind == "nonspeech" else entry["text"]
            files.append(File(name, data / kind / entry["file"], language, ("caller",), (text,)))
    for path in sorted((data / "twoparty").glob("*.flac")):
        files.append(File("twoparty", path, "en", ("stereo",), (None, None)))
    return [each for each in files if each.kind.split()[0] in sets]


def context(site: settings.Settings, file: File, engine: Any) -> StepContext:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    media = tuple(Media(role, str(file.path), duration_s=file.seconds) for role in file.roles)
    facts = CallFacts(language=file.language)
    recording = Recording(
        "audio", "call", "stored", "upload", None, facts, now, media, 0.0, file.seconds
    )
    return StepContext(
        recording=recording,
        call=Call("call", "session", "ended", now, now, None, facts),
        language=file.language,
        settings=site,
        results={},
        engines=Local(engine),
        take_segment_block=lambda: 0,
        live_segments=lambda: [],
        corrections=lambda: [],
        progress=lambda share: None,
    )


def step(site: settings.Settings, engine: Any) -> Callable[[File], list[str]]:
    def run(file: File) -> list[str]:
        segments = transcribe.run(context(site, file, engine))["segments"]
        legs = ["caller", "agent"][: len(file.texts)]
        return [" ".join(s["text"] for s in segments if s["leg"] == leg) for leg in legs]

    return run


def plain(model: WhisperModel, **options: Any) -> Callable[[File], list[str]]:
    def run(file: File) -> list[str]:
        channels = audio.read_channels(file.path, 16_000, 36_000.0)[: len(file.texts)]
        return [
            " ".join(
                segment.text.strip()
                for segment in model.transcribe(x, language=file.language, **_PLAIN, **options)[0]
            )
            for x in channels
        ]

    return run


def errors(files: list[File], way: str) -> str:
    said, heard, num_words = [], [], 0
    for file in files:
        normal = (
            EnglishTextNormalizer()
            if file.language == "en"
            else BasicTextNormalizer(remove_diacritics=True)
        )
        for text, found in zip(file.texts, file.heard[way], strict=True):
            num_words += len(normal(found).split())
            if text:
                said.append(normal(text))
                heard.append(normal(found))
    if not said:
        return f"{num_words} words"
    return f"{100 * jiwer.wer(said, heard):.1f} %"


def seconds(files: list[File], way: str, which: int) -> float:
    return sum(statistics.median(t[which] for t in file.times[way]) for file in files)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", type=Path, default=Path("var/models"))
    parser.add_argument("--model", default="base")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--sets", default="samples,harpervalley,twoparty,prompts,nonspeech")
    args = parser.parse_args()
    site = settings.load({"CALLCORE_SPEAKER_TURNS": "off"})
    folder = str(args.models / args.model)
    model = WhisperModel(folder, compute_type="int8", cpu_threads=args.threads)
    ways = {
        "plain": plain(model),
        "plain, word times": plain(model, word_timestamps=True),
        "callcore": step(site, BatchWhisper(folder, threads=args.threads)),
    }
    files = corpus(args.data, args.sets.split(","))
    for file in files:
        file.seconds = audio.probe(file.path).duration_s
    for _ in range(args.repeat):
        for file in files:
            for way, run in ways.items():
                cpu, wall = time.process_time(), time.perf_counter()
                file.heard[way] = run(file)
                taken = time.process_time() - cpu, time.perf_counter() - wall
                file.times.setdefault(way, []).append(taken)
    head = "| set | audio s | " + " | ".join(f"{way}: CPU s, words" for way in ways)
    print(head + " | callcore / plain: CPU, wall |")
    for kind in [*dict.fromkeys(file.kind for file in files), "all"]:
        some = [file for file in files if kind in (file.kind, "all")]
        audio_s = sum(file.seconds * len(file.texts) for file in some)
        cells = [
            f"{seconds(some, way, 0):.1f}" + ("" if kind == "all" else f", {errors(some, way)}")
            for way in ways
        ]
        ratios = [
            seconds(some, "callcore", which) / seconds(some, "plain", which) for which in (0, 1)
        ]
        print(
            f"| {kind} | {audio_s:.0f} | {' | '.join(cells)} | {ratios[0]:.2f}, {ratios[1]:.2f} |",
            flush=True,
        )
    wall = seconds(files, "callcore", 1)
    print(f"RTF {wall / sum(f.seconds * len(f.texts) for f in files):.3f} per channel")


if __name__ == "__main__":
    main()
