"""Word error rate, recall and invented words of live finals that are decoded after a prompt.

    python bench/prompted.py --data DIR [--model tiny.en ...] [--sound clean noise100] [--json]

DIR is as for ``stitched.py``, and has ``nonspeech/``; the sample calls are ours. Utterances are cut
and decoded as a live leg's are; words of base in the full window stand for ``twoparty``'s text.
What is put before the transcript, after ``<|startofprev|>``: nothing; ``carry 1``, ``carry 2``, the
leg's last finals with a log probability over -0.7; ``strange``, the same as ``carry 1`` and at
the beginning of a leg the end of another; ``right``, five words that are said in the set (some are
those that tiny.en misses) and five that are not; ``wrong``, ten that are not. "Recall" is of the
five; "false" are words of ``right`` / ``wrong`` that are written and not said. "silence" is
``nonspeech/`` in pieces of 2, 6 and 14 s as if half a second were speech; the last final is a
caller's, unless words were heard since. One thread; CPU seconds per second; each sound is encoded
once, and counted each time. ``--json``: a line for each leg.
"""

import argparse
import itertools
import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
from invented_words import PIECES_S, sounds
from stitched import ENGLISH, Counting, Recording, cut, decode, read, recordings, worsened

from callcore import resources
from callcore.engines import LIVE_RATE, DecodeJob, Hypothesis, Samples
from callcore.engines.live_whisper import LiveWhisper
from callcore.engines.silero import Silero

LISTS = ("right", "wrong")
WAYS = ("none", "carry 1", "carry 2", "strange", *LISTS)
SAID = {
    "harpervalley": ("Patricia", "Elizabeth", "Mary", "David", "checkbook"),
    "prompts en": ("rerecord", "telemarketers", "unmute", "star", "tone"),
    "twoparty": ("Platinum", "dealership", "mechanics", "autos", "charge"),
    "samples": ("helpline", "taxi", "pump", "account", "paid"),
}
#: The second five sound like words that are said: Davis, Miller, Garcia, Robert, Linda.
UNSAID: tuple[str, ...] = ("Achieng", "Kisumu", "Wanjiku", "Nakuru", "Eldoret")
UNSAID += ("Davies", "Millar", "Garza", "Robertson", "Lynda")
BEFORE_SILENCE = ("Thank you so much.", "Hello? Hello?", "And I would like to pay a bill.")


class Model:
    """CTranslate2's model, with tokens before each prompt; encodes each sound once."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._encoded: dict[bytes, tuple[Any, float]] = {}
        self.before: list[int] = []
        self.saved_s = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def encode(self, view: Any, **options: Any) -> Any:
        key = np.asarray(view).tobytes()
        if key not in self._encoded:
            began = time.process_time()
            states = np.array(self._model.encode(view, **options))
            self._encoded[key] = states, time.process_time() - began
            self.saved_s -= self._encoded[key][1]
        self.saved_s += self._encoded[key][1]
        return self._encoded[key][0]

    def generate(self, view: Any, prompts: list[list[int]], max_length: int, **options: Any) -> Any:
        # The limit of what is written stays: half of this, or what the prompt leaves of it.
        length = max(max_length, max_length // 2 + len(self.before) + len(prompts[0]))
        prompts = [self.before + prompt for prompt in prompts]
        return self._model.generate(view, prompts, max_length=length, **options)


class Prompted(Counting):
    """Decodes finals, one by one, after words that are likely or after what was said."""

    def __init__(self, model: str) -> None:
        super().__init__(model)
        self._model = Model(self._model)
        self.said: list[str] = []

    def open_leg(self, dataset: str, way: str) -> None:
        self._listed = ", ".join(listed(dataset, way) if way in LISTS else ())
        self._carried = {"carry 1": 1, "carry 2": 2, "strange": 1}.get(way, 0)
        self.said = self.said[-1:] if way == "strange" else []
        self.prompted = 0

    def decode(self, jobs: list[DecodeJob]) -> list[Hypothesis]:
        said = self.said[-self._carried :] if self._carried else ()
        text = self._listed or " ".join(filter(None, said))
        tokens = self._tokenizer.encode(f" {text}", add_special_tokens=False).ids
        self._model.before = [self._id("<|startofprev|>"), *tokens[-223:]] if text else []
        self.prompted += bool(text)
        (hypothesis,) = super().decode(jobs)
        self.said.append(hypothesis.text if hypothesis.avg_logprob > -0.7 else "")
        return [hypothesis]


def listed(dataset: str, way: str) -> tuple[str, ...]:
    return UNSAID if way == "wrong" else SAID[dataset] + UNSAID[:5]


def sample_calls(detector: Silero) -> Iterator[Recording]:
    for file in sorted(resources.path("samples").glob("*.json")):
        call = json.loads(file.read_text("utf-8"))
        for channel, leg in enumerate(call["channels"]):
            text = " ".join(turn["text"] for turn in call["turns"] if turn["leg"] == leg)
            samples = read(file.with_suffix(".wav"), channel)
            yield Recording("samples", file.stem + leg, "en", text, samples, cut(samples, detector))


def measure(engine: Prompted, leg: Recording, way: str, samples: Samples) -> tuple[Any, str]:
    """Return the counts of one leg, and its text."""
    engine.open_leg(leg.dataset, way)
    redone, began = engine.redone, time.process_time() + engine._model.saved_s
    heard = decode(engine, leg, samples)
    cpu_s = time.process_time() + engine._model.saved_s - began
    counts = Counter[str](finals=len(leg.utterances), prompted=engine.prompted)
    counts["again"], counts["cpu_ms"] = engine.redone - redone, round(1000 * cpu_s)
    counts["samples"] = sum(each.end - each.start for each in leg.utterances)
    found = jiwer.process_words([ENGLISH(leg.text)], [ENGLISH(heard)])
    spoken, written = Counter(found.references[0]), Counter(found.hypotheses[0])
    counts["words"], counts["inserted"] = spoken.total(), found.insertions
    counts["errors"] = found.substitutions + found.deletions + found.insertions
    five = [ENGLISH(word) for word in SAID[leg.dataset]]
    counts["said"] = sum(spoken[word] for word in five)
    counts["recalled"] = sum(min(spoken[word], written[word]) for word in five)
    for kind in LISTS:
        false = (written[word] - spoken[word] for word in map(ENGLISH, listed(leg.dataset, kind)))
        counts[f"false_{kind}"] = sum(max(0, each) for each in false)
    return counts, heard


def silence(engine: Prompted, folder: Path, seconds: float, way: str) -> dict[str, Any]:
    """Return what is written where nobody speaks."""
    written, pieces = [], 0
    for _, samples in (each for each in sounds(folder, seconds) if each[0].endswith(" x1")):
        engine.open_leg("harpervalley", way)
        begin = 0
        while begin + (size := int(PIECES_S[pieces % 3] * LIVE_RATE)) <= len(samples):
            if not engine.said or not engine.said[-1]:
                engine.said = [BEFORE_SILENCE[(pieces + i) % 3] for i in (1, 0)]
            job = DecodeJob(samples[begin : begin + size], "en", True, 0.5)
            written += engine.decode([job])[0].text.split()
            begin, pieces = begin + size, pieces + 1
    return {"pieces": pieces, "words": len(written), "written": " ".join(written)}


def as_text(row: Counter[str]) -> str:
    return (
        f"{row['words']:4} words {100 * row['errors'] / row['words']:5.2f} %"
        f" {row['inserted']:3} inserted, prompted {row['prompted']:2}/{row['finals']:2}"
        f" again {row['again']:2}  CPU {row['cpu_ms'] / 1000 * LIVE_RATE / row['samples']:.3f}"
        f"  recall {row['recalled']}/{row['said']}  false {row['false_right']}/{row['false_wrong']}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", type=Path, default=Path("var/models"))
    parser.add_argument("--model", nargs="+", default=["tiny.en", "base"])
    parser.add_argument("--sound", nargs="*", default=["clean", "noise100"])
    parser.add_argument("--way", nargs="+", default=WAYS)
    parser.add_argument("--silence", type=float, default=30, help="seconds of each, 0: none")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    detector = Silero(str(args.models / "silero-vad"))
    corpus = [each for each in recordings(args.data, detector) if each.dataset in SAID]
    base = LiveWhisper(str(args.models / "base"), window="full")
    for each in corpus:
        each.text = each.text or decode(base, each, each.samples)
    corpus += sample_calls(detector)
    for model in args.model:
        engine = Prompted(str(args.models / model))
        for sound, way in itertools.product(args.sound, args.way):
            rows: dict[str, Counter[str]] = {}
            for seed, leg in enumerate(corpus):
                row, text = measure(engine, leg, way, worsened(leg.samples, sound, seed))
                for name in (leg.dataset, "all"):
                    rows.setdefault(name, Counter()).update(row)
                line = {"model": model, "sound": sound, "set": leg.dataset, "leg": leg.name}
                if args.json:
                    print(json.dumps({**line, "way": way, **row, "text": text}), flush=True)
            for name, row in rows.items() if not args.json else ():
                print(f"{model:8} {sound:9} {name:12} {way:8} {as_text(row)}", flush=True)
        for way in args.way if args.silence else ():
            line = {"model": model, "sound": "silence", "way": way}
            line |= silence(engine, args.data / "nonspeech", args.silence, way)
            print(json.dumps(line) if args.json else line, flush=True)


if __name__ == "__main__":
    main()
