"""The whole chain over real recordings, beside plain faster-whisper on the same files.

    python bench/chain.py --data DIR [--models DIR] [--repeat N] [--files N]

Each round transcribes every file with plain faster-whisper (same model, beam, language, threads),
then runs the chain over them: all steps but translate, without speaker turns, engines loaded
before. Every document is checked against the published schema. Prints seconds and ratios.
"""

import argparse
import dataclasses
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jsonschema
import numpy as np
import psutil
from faster_whisper import WhisperModel

from callcore import document, intake, log, model_store, resources, settings
from callcore.audio_reading import decode
from callcore.batch_engines import batch_engines
from callcore.calls import CallFacts, Media
from callcore.engine_pool import EnginePool
from callcore.local_run import LocalRun
from callcore.storage import Storage

STEPS = "transcribe,summarize,ner,classify,insights,annotate"
PLAIN = {"beam_size": 5, "vad_filter": True, "condition_on_previous_text": False}


def files_of(data: Path) -> list[tuple[Path, str]]:
    """Return the recordings with their languages."""
    found = [(path, "en") for path in sorted(resources.path("samples").glob("*.wav"))]
    found += [(path, "en") for path in sorted((data / "harpervalley").glob("*.wav"))]
    found += [(path, "en") for path in sorted((data / "twoparty").glob("*.flac"))]
    for entry in json.loads((data / "prompts" / "manifest.json").read_text("utf-8")):
        found.append((data / "prompts" / entry["file"], entry["language"]))
    return found


def plain(model: WhisperModel, files: list[tuple[Path, str]]) -> None:
    """Transcribe each channel of each file as faster-whisper does by itself."""
    for path, language in files:
        blocks = list(decode(path, 16_000))
        for channel in range(blocks[0].shape[1]):
            samples = np.concatenate([block[:, channel] for block in blocks])
            segments, _ = model.transcribe(samples, language=language, **PLAIN)
            for _ in segments:
                pass


def cpu_s() -> float:
    """Return the CPU seconds of this process and of its children that are there."""
    own = psutil.Process()
    times = [each.cpu_times() for each in (own, *own.children(recursive=True))]
    return sum(each.user + each.system for each in times)


@contextmanager
def measured(into: dict[str, list[tuple[float, float]]], name: str) -> Iterator[None]:
    """Add wall and CPU seconds of the block."""
    before = time.perf_counter(), cpu_s()
    yield
    into.setdefault(name, []).append((time.perf_counter() - before[0], cpu_s() - before[1]))


def chain(engines: EnginePool, site: settings.Settings, files: list[tuple[Path, str]]) -> list:
    """Run the chain over the files and return their documents."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        own = dataclasses.replace(
            site,
            state_dir=folder,
            database_url=f"sqlite:///{folder / 'callcore.db'}",
            audio_dir=folder / "audio",
            spool_dir=folder / "spool",
        )
        storage = Storage(own.database_url)
        storage.migrate()
        ids = [
            intake.accept_recording(
                storage, own, CallFacts(language=language), "spool", [Media("mixed", str(path))]
            ).audio_id
            for path, language in files
        ]
        LocalRun(storage, own, engines).run(ids, lambda steps: None)
        made = [document.read(storage, each) for each in ids]
        storage.close()
    return made


def main() -> int:
    """Print the table; 1 if a document is not complete or not valid."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", type=Path, default=Path("var/models"))
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--files", type=int, help="only so many files, evenly chosen")
    given = parser.parse_args()
    log.configure("ERROR", "text")
    environ = {"CALLCORE_MODELS_DIR": str(given.models), "CALLCORE_STEPS": STEPS}
    environ |= {"CALLCORE_SETTLE_S": "0", "CALLCORE_SPEAKER_TURNS": "off"}
    site = settings.load(environ)
    files = files_of(given.data)
    if given.files:
        files = files[:: max(1, len(files) // given.files)]
    folder = str(model_store.find(site.models_dir, site.model))
    model = WhisperModel(folder, compute_type="int8", cpu_threads=os.cpu_count() or 1)
    engines = EnginePool(batch_engines(site), nice=0)
    for name in ("transcriber", "entity_recognizer", "embedder", "sentiment"):
        engines.attributes(name, "name")
    chain(engines, site, files[:1])  # what is made once, e.g. the taxonomy's vectors
    schema = json.loads(resources_schema())
    spent: dict[str, list[tuple[float, float]]] = {}
    wrong = 0
    for _ in range(given.repeat):
        with measured(spent, "plain faster-whisper"):
            plain(model, files)
        with measured(spent, "chain"):
            made = chain(engines, site, files)
        wrong += sum(each["status"] != "completed" for each in made)
        for each in made:
            jsonschema.Draft202012Validator(schema).validate(each)
    engines.close()
    by_step: dict[str, float] = {}
    for each in made:
        for step in each["processing"]["steps"]:
            by_step[step["name"]] = by_step.get(step["name"], 0.0) + (step["ms"] or 0) / 1000
    print(
        f"{len(files)} files, {sum(e['recording']['duration'] or 0 for e in made):.0f} s of sound"
    )
    base = [statistics.median(each) for each in zip(*spent["plain faster-whisper"], strict=True)]
    for name, rounds in spent.items():
        wall, cpu = (statistics.median(each) for each in zip(*rounds, strict=True))
        ratios = wall / base[0], cpu / base[1]
        print(f"{name:<22} {wall:7.1f} s ({ratios[0]:.2f})  {cpu:7.1f} CPU s ({ratios[1]:.2f})")
    print("last round, seconds in each step (they run side by side):")
    print("  " + ", ".join(f"{name} {seconds:.1f}" for name, seconds in by_step.items()))
    print(f"documents not complete: {wrong}; all of them valid")
    return 1 if wrong else 0


def resources_schema() -> str:
    """Return the published schema."""
    folder = Path(settings.__file__).parent
    return (folder / "data" / "schema" / "callcore.insights-1.json").read_text("utf-8")


if __name__ == "__main__":
    sys.exit(main())
