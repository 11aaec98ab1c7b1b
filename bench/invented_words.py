"""Words that are written where nobody speaks, per hour of sound, live and of recordings.

    python bench/invented_words.py --data DIR [--models tiny.en,base] [--seconds 120] [--json]

DIR holds ``nonspeech/`` (hold music, ringback, busy tone, DTMF, silence, noise, hum) with a
``manifest.json``. Each file is looped to ``--seconds``, at a tenth of its level, as it is, and four
times as loud. Live: as legs of the real recogniser in front of a real inference process, as fast as
it can. Of recordings: through the engine of recordings. "Detector off" is how much the guards hold
off alone: pieces of 2, 6 and 14 s go straight to the live engine as if half a second of them were
speech, and recordings are decoded without their speech detector. A language that is not given is
found by the model, where it knows more than English.
"""

import argparse
import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from callcore import audio
from callcore.engines import LIVE_RATE, DecodeJob, Hypothesis
from callcore.engines.batch_whisper import BatchWhisper
from callcore.engines.live_whisper import LiveWhisper
from callcore.inference import EngineSpec, InferenceProcess
from callcore.recognizer import LegRecognition, Recognizer
from callcore.recognizer_config import RecognizerConfig
from callcore.ringbuffer import RingBuffer

GAINS = (0.1, 1.0, 4.0)
PIECES_S = (2.0, 6.0, 14.0)


class Listener:
    """Counts the words of one leg."""

    def __init__(self) -> None:
        self.words = 0
        """Of finals."""
        self.shown = 0
        """Of partials, each that came."""

    def partial(self, utterance: int, start: int, end: int, text: str, stable: int) -> None:
        self.shown += len(text.split())

    def final(
        self,
        utterance: int,
        start: int,
        end: int,
        hypothesis: Hypothesis,
        latency: float,
        revised: bool,
    ) -> None:
        self.words += len(hypothesis.text.split())

    def lag(self, lag_s: float, state: str) -> None:
        pass


class Undetected(BatchWhisper):
    """Decodes everything, as if all of it were speech."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        transcribe = self._model.transcribe
        vars(self._model)["transcribe"] = lambda samples, **asked: transcribe(
            samples, **{**asked, "vad_filter": False}
        )


def sounds(folder: Path, seconds: float) -> Iterator[tuple[str, np.ndarray]]:
    """Yield name and samples at 8 kHz of each file at each level."""
    for entry in json.loads((folder / "manifest.json").read_text("utf-8")):
        floats = audio.read_channels(folder / entry["file"], LIVE_RATE, 3600.0)[0]
        looped = np.resize(floats, max(int(seconds * LIVE_RATE), len(floats)))
        for gain in GAINS:
            samples = np.clip(looped * gain, -1, 1) * 32767
            yield f"{Path(entry['file']).stem} x{gain:g}", samples.astype(np.int16)


async def live(
    models: Path, name: str, language: str | None, quiet: list[tuple[str, np.ndarray]]
) -> dict[str, int]:
    """Return the words of finals and partials of each sound, through the recogniser."""
    role = "live" if language == "en" else "live_multilingual"
    engines = {
        "vad": EngineSpec("callcore.engines.silero:Silero", {"model": str(models / "silero-vad")}),
        role: EngineSpec(
            "callcore.engines.live_whisper:LiveWhisper", {"model": str(models / name)}
        ),
    }
    words = {}
    with InferenceProcess(engines) as inference:
        inference.attributes(role)
        recognizer = Recognizer(inference, config=RecognizerConfig(max_load=1e6))
        await recognizer.start()
        for sound, samples in quiet:
            listener = Listener()
            ring = RingBuffer(len(samples))
            leg = recognizer.open_leg(ring, listener, language=language, spill=None)
            assert isinstance(leg, LegRecognition)
            ring.append(samples.tobytes())
            await leg.finish()
            words[sound] = listener.words + listener.shown
        await recognizer.close()
    return words


def pieces(
    models: Path, name: str, language: str | None, quiet: list[tuple[str, np.ndarray]]
) -> dict[str, int]:
    """Return the words of each sound where the live engine is asked about all of it."""
    engine = LiveWhisper(str(models / name))
    words = {}
    for sound, samples in quiet:
        jobs = []
        begin = 0
        for i in range(len(samples)):
            size = int(PIECES_S[i % len(PIECES_S)] * LIVE_RATE)
            if begin + size > len(samples):
                break
            jobs.append(DecodeJob(samples[begin : begin + size], language, True, 0.5))
            begin += size
        words[sound] = sum(len(engine.decode([job])[0].text.split()) for job in jobs)
    return words


def recordings(
    models: Path,
    name: str,
    language: str | None,
    quiet: list[tuple[str, np.ndarray]],
    *,
    detector: bool,
) -> dict[str, int]:
    """Return the words of each sound as a recording."""
    engine = (BatchWhisper if detector else Undetected)(str(models / name), threads=1)
    words = {}
    for sound, samples in quiet:
        resampler = audio.StreamingResampler(LIVE_RATE, 16000)
        wide = audio.to_float(np.concatenate([resampler.push(samples), resampler.flush()]))
        words[sound] = sum(len(each.words) for each in engine.transcribe(wide, language))
    return words


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--folder", type=Path, default=Path("var/models"), help="of the models")
    parser.add_argument("--models", default="tiny.en,base")
    parser.add_argument("--seconds", type=float, default=120.0, help="of each sound")
    parser.add_argument("--ways", default="live,pieces,recordings,undetected")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    quiet = list(sounds(args.data / "nonspeech", args.seconds))
    hours = sum(len(samples) for _, samples in quiet) / LIVE_RATE / 3600
    rows: list[dict[str, Any]] = []
    for name in args.models.split(","):
        for language in ("en",) if name.endswith(".en") else ("en", None):
            for way in args.ways.split(","):
                began = time.process_time()
                if way == "live":
                    words = asyncio.run(live(args.folder, name, language, quiet))
                elif way == "pieces":
                    words = pieces(args.folder, name, language, quiet)
                else:
                    detector = way == "recordings"
                    words = recordings(args.folder, name, language, quiet, detector=detector)
                row = {
                    "model": name,
                    "language": language or "auto",
                    "way": way,
                    "hours": round(hours, 2),
                    "words": sum(words.values()),
                    "words_per_hour": round(sum(words.values()) / hours, 1),
                    "from": {sound: count for sound, count in words.items() if count},
                    "cpu_s": round(time.process_time() - began, 1),
                }
                rows.append(row)
                if not args.json:
                    print(
                        f"{name:8} {row['language']:5} {way:11} {row['words']:4} words in "
                        f"{hours:.2f} h: {row['words_per_hour']} an hour {row['from'] or ''}",
                        flush=True,
                    )
    if args.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
