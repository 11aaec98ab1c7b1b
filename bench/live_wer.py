"""Word error rate of live finals, and words invented where nobody speaks.

    python bench/live_wer.py --data DIR [--model tiny.en] [--speed 8] [--json]

DIR holds ``harpervalley/`` (caller sides of calls, with their words) and ``nonspeech/`` (music,
tones, noise), each with a ``manifest.json``. Every file is fed through the real recogniser and a
real inference process as a leg of its own, in frames of 20 ms at ``--speed`` times real time, with
the recogniser's clock running as fast. Beside it the same files go through plain faster-whisper
with the same model (whole file, beam 5, VAD). English text is normalised by whisper-normalizer.
"""

import argparse
import asyncio
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
from faster_whisper import WhisperModel
from whisper_normalizer.english import EnglishTextNormalizer

from callcore import audio
from callcore.engines import LIVE_RATE, Hypothesis
from callcore.inference import EngineSpec, InferenceProcess
from callcore.recognizer import Recognizer, RecognizerConfig
from callcore.ringbuffer import RingBuffer

FRAME = LIVE_RATE // 50
#: Silence after each file, so that its last utterance ends by itself.
TRAILING_S = 1.0


class Listener:
    """Collects what one leg hears."""

    def __init__(self) -> None:
        self.finals: list[Hypothesis] = []
        self.latencies: list[float] = []
        self.num_partials = 0
        self.num_revised = 0

    def partial(self, utterance: int, start: int, end: int, text: str, stable: int) -> None:
        self.num_partials += 1

    def final(
        self,
        utterance: int,
        start: int,
        end: int,
        hypothesis: Hypothesis,
        latency: float,
        revised: bool,
    ) -> None:
        self.finals.append(hypothesis)
        self.num_revised += revised
        if hypothesis.text:
            self.latencies.append(latency)

    def lag(self, lag_s: float, state: str) -> None:
        pass

    @property
    def text(self) -> str:
        return " ".join(final.text for final in self.finals if final.text)


def files(folder: Path) -> Iterator[tuple[str, str | None, np.ndarray]]:
    """Yield name, text (None if there is none) and samples at 8 kHz of each file."""
    for entry in json.loads((folder / "manifest.json").read_text("utf-8")):
        samples = audio.read_channels(folder / entry["file"], LIVE_RATE, 3600.0)[0]
        yield entry["file"], entry.get("text"), (samples * 32767).astype(np.int16)


async def hear(
    recognizer: Recognizer, samples: np.ndarray, clock: Callable[[], float], language: str
) -> Listener:
    """Return what the recogniser hears when the samples arrive one frame after the other."""
    listener = Listener()
    samples = np.concatenate([samples, np.zeros(int(TRAILING_S * LIVE_RATE), np.int16)])
    ring = RingBuffer(len(samples))
    leg = recognizer.open_leg(ring, listener, language=language, spill=None)
    began = clock()
    while ring.end < len(samples):
        due = int((clock() - began) * LIVE_RATE) // FRAME * FRAME
        ring.append(samples[ring.end : min(due, len(samples))])
        await asyncio.sleep(0.005)
    await leg.finish()
    return listener


async def live(args: argparse.Namespace, corpus: list[Any], quiet: list[Any]) -> dict[str, Any]:
    transcriber = EngineSpec(
        "callcore.engines.live_whisper:LiveWhisper",
        {"model": str(args.models / args.model), "threads": args.threads},
        args.threads,
    )
    detector = EngineSpec(
        "callcore.engines.silero:Silero", {"model": str(args.models / "silero-vad")}
    )
    # Seconds of the clock that measure the machine, not the call, are as much longer.
    usual = RecognizerConfig()
    config = RecognizerConfig(
        tick_s=usual.tick_s / args.speed,
        overloaded_s=usual.overloaded_s * args.speed,
        relaxed_s=usual.relaxed_s * args.speed,
        stalled_s=usual.stalled_s * args.speed,
    )

    def clock() -> float:
        return time.monotonic() * args.speed

    with InferenceProcess({"vad": detector, "live": transcriber}) as inference:
        inference.attributes("live")
        recognizer = Recognizer(inference, clock=clock, config=config)
        await recognizer.start()
        heard = [await hear(recognizer, x, clock, "en") for _, _, x in corpus]
        invented = {name: await hear(recognizer, x, clock, "en") for name, _, x in quiet}
        await recognizer.close()
    latencies = [each for listener in heard for each in listener.latencies]
    return {
        "texts": [listener.text for listener in heard],
        "finals": sum(len(listener.finals) for listener in heard),
        "partials": sum(listener.num_partials for listener in heard),
        "revised": sum(listener.num_revised for listener in heard),
        "latency_p50_s": round(float(np.median(latencies)), 3) if args.speed == 1 else None,
        "invented": {name: len(each.text.split()) for name, each in invented.items()},
    }


def plain(args: argparse.Namespace, corpus: list[Any]) -> list[str]:
    """Return the text of plain faster-whisper for each file."""
    model = WhisperModel(str(args.models / args.model), compute_type="int8", cpu_threads=2)
    texts = []
    for _, _, samples in corpus:
        resampler = audio.StreamingResampler(LIVE_RATE, 16000)
        wide = np.concatenate([resampler.push(samples), resampler.flush()])
        segments, _ = model.transcribe(
            audio.to_float(wide),
            language="en",
            beam_size=5,
            vad_filter=True,
            condition_on_previous_text=False,
        )
        texts.append(" ".join(segment.text for segment in segments))
    return texts


def score(references: list[str], texts: list[str]) -> dict[str, Any]:
    normalise = EnglishTextNormalizer()
    result = jiwer.process_words(
        [normalise(each) for each in references], [normalise(each) for each in texts]
    )
    return {
        "wer": round(100 * result.wer, 2),
        "substitutions": result.substitutions,
        "deletions": result.deletions,
        "insertions": result.insertions,
        "words": result.hits + result.substitutions + result.deletions,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", type=Path, default=Path("var/models"))
    parser.add_argument("--model", default="tiny.en")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--speed", type=float, default=8.0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    corpus = [each for each in files(args.data / "harpervalley") if each[1]]
    quiet = list(files(args.data / "nonspeech"))
    heard = asyncio.run(live(args, corpus, quiet))
    references = [text for _, text, _ in corpus]
    report = {
        "model": args.model,
        "files": len(corpus),
        "live": score(references, heard.pop("texts")),
        "plain": score(references, plain(args, corpus)),
        **heard,
    }
    if args.json:
        print(json.dumps(report))
        return
    for name in ("live", "plain"):
        row = report[name]
        print(
            f"{name:5}  WER {row['wer']:5.2f} %  of {row['words']} words: {row['substitutions']} "
            f"changed, {row['deletions']} missing, {row['insertions']} added"
        )
    print(
        f"{report['finals']} finals, {report['revised']} revised a stable word; "
        f"{report['partials']} partials"
    )
    words = sum(report["invented"].values())
    print(f"{words} words invented on {len(quiet)} files without speech")


if __name__ == "__main__":
    main()
