"""How often the right category comes first, or among the first three, by the step as it runs.

    python bench/classify.py --data DIR [--asr CACHE] [--show]
    python bench/classify.py --calls dev|held-out [--show]

DIR holds ``helpline/conversations.jsonl`` (running text of both speakers; taxonomy child-helpline)
and ``harpervalley`` (calls of a bank: taxonomy generic-support). A conversation becomes a
transcript of one leg with an utterance a sentence. Bank calls without a reference, and, beside it,
all of them, are transcribed by model base from the caller's recording; CACHE keeps those words.

The order is what the step answers: the call type first if it is a prank, then the named categories.
Ours are more and finer than the file's: TABLE says which of ours are which of theirs. ``strict``
counts our categories that the file has no word for as wrong places, the other figure leaves them
out. Taxonomy and thresholds were developed on the even lines (counted from 0). Bank calls and a
call to a garage (``twoparty``) hold nothing to alarm a helpline or an emergency number: every flag
is a false one. ``--calls`` asks about the calls of ``tests/data/calls``.
"""

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from callcore import model_store, settings
from callcore.calls import Call, CallFacts, CallState, Recording, RecordingState
from callcore.engines.minilm import MiniLM
from callcore.steps import StepContext, classify
from tests.support import gold_calls

#: Our ids, or beginnings of them, by the file's names.
TABLE: Mapping[str, Sequence[str]] = {
    "academic_pressure": ["education.pressure"],
    "bullying": ["violence.bullying", "online.bullying"],
    "child_labour": ["exploitation.labour"],
    "domestic_violence": ["violence.domestic"],
    "family_conflict": ["family"],
    "friendship_issues": ["peers.friendship"],
    "gender_based_violence": ["violence.gender"],
    "human_trafficking": ["exploitation.trafficking"],
    "learning_difficulties": ["education.learning"],
    "mental_health": ["mental"],
    "neglect": ["violence.neglect"],
    "peer_pressure": ["peers.pressure"],
    "physical_abuse": ["violence.physical"],
    "prank_call": ["prank"],
    "rights_violation": ["rights.violation"],
    "sexual_abuse": ["violence.sexual", "online.sexual", "exploitation.sexual"],
    "check balance": ["account.balance"],
    "get branch hours": ["visit.hours"],
    "order checks": ["cards.cheques"],
    "pay bill": ["payments.bill"],
    "replace card": ["cards.replace"],
    "reset password": ["account.password"],
    "schedule appointment": ["visit.appointment"],
    "transfer money": ["payments.transfer"],
}


class Local:
    """The embedder in this process."""

    def __init__(self, embedder: MiniLM) -> None:
        self._embedder = embedder

    def call(self, engine: str, method: str, *args: Any) -> Any:
        return getattr(self._embedder, method)(*args)

    def attributes(self, engine: str, *names: str) -> dict[str, Any]:
        return {name: getattr(self._embedder, name) for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--calls", choices=("dev", "held-out"))
    parser.add_argument("--asr", type=Path, default=Path("/tmp/harpervalley-base.json"))
    parser.add_argument("--show", action="store_true", help="print what came out wrong (even half)")
    arguments = parser.parse_args()
    site = settings.load(os.environ)
    folder = model_store.find(site.models_dir, site.embedding_model)
    engines = Local(MiniLM(str(folder), threads=os.cpu_count() or 1))
    if arguments.calls:
        own(arguments.calls, engines, arguments.show)
    if not arguments.data:
        return
    helpline(arguments.data / "helpline" / "conversations.jsonl", engines, arguments.show)
    bank(arguments.data / "harpervalley", engines, site, arguments.asr, arguments.show)
    alarms(arguments.data, engines, site, arguments.asr)


def own(name: str, engines: Local, show: bool) -> None:
    """Report what is right in the calls of ``tests/data/calls``, by taxonomy."""
    calls = gold_calls.load(name)
    for taxonomy in gold_calls.TAXONOMIES:
        verdicts = []
        for call in calls:
            answer = run(call.said, taxonomy, engines)
            verdict = gold_calls.judge(taxonomy, call.gold[taxonomy], answer)
            verdicts.append((call, verdict))
            if show and (verdict.wrongly_named or not all(rights(verdict))):
                wrong = [w for w, ok in zip(RIGHTS, rights(verdict), strict=True) if not ok]
                level = answer["priority"] and answer["priority"]["level"]
                print(f"    {taxonomy} {call.id}: wrong {wrong} {verdict.wrongly_named}")
                print("       ", [(e["id"], e["score"]) for e in answer["categories"]])
                print("       ", answer["call_type"]["id"], level)
                for flag in answer["flags"]:
                    print("       ", flag["rule"], [e["quote"] for e in flag["evidence"]])
        shares = [sum(rights(v)[i] for _, v in verdicts) / len(verdicts) for i in range(4)]
        alarmed = sum("flags" not in c.gold[taxonomy] and not v.flags for c, v in verdicts)
        print(
            f"  {name:9s} {taxonomy:16s} n {len(verdicts)}  "
            + "  ".join(f"{w} {share:.2f}" for w, share in zip(RIGHTS, shares, strict=True))
            + f"  wrongly named {sum(len(v.wrongly_named) for _, v in verdicts) / len(calls):.2f}"
            + f"  calls with false flags {alarmed}"
        )


RIGHTS = ("first", "type", "flags", "priority")


def rights(verdict: gold_calls.Verdict) -> tuple[bool, ...]:
    return (verdict.first, verdict.kind, verdict.flags, verdict.priority)


def alarms(data: Path, engines: Local, site: settings.Settings, cache: Path) -> None:
    """Count what is seen in calls of a bank and a garage that is not there."""
    calls = []
    for path in sorted((data / "harpervalley").glob("[0-9a-f]*.json")):
        call = json.loads(path.read_text("utf-8"))
        if call.get("turns"):
            calls.append([(turn["speaker"], turn["text"]) for turn in call["turns"]])
    calls += [
        [("caller", text) for text in said]
        for said in transcripts(data / "harpervalley", site, cache).values()
    ]
    for path in sorted((data / "twoparty").glob("*.flac")):
        store = cache.with_name(f"{cache.stem}-{path.stem}.json")
        if not store.exists():
            store.write_text(json.dumps(channels(path, site)), "utf-8")
        calls.append([(leg, text) for leg, text in json.loads(store.read_text("utf-8"))])
    for taxonomy in ("child-helpline", "emergency"):
        answers = [run(said, taxonomy, engines) for said in calls]
        flags = [
            (f["rule"], e["quote"]) for a in answers for f in a["flags"] for e in f["evidence"]
        ]
        named = [(each["id"], each["score"]) for a in answers for each in a["categories"]]
        urgent = [a["priority"]["level"] for a in answers if a["priority"]]
        print(
            f"alarms: {taxonomy}, {len(calls)} service calls: {len(flags)} flags {flags}, ", end=""
        )
        print(f"{len(named) / len(calls):.2f} categories a call, priorities {urgent}")
        print("   ", named)


def channels(path: Path, site: settings.Settings) -> list[tuple[str, str]]:
    """Return what model base hears in the two channels of a call, in order of time."""
    from callcore import audio
    from callcore.engines.batch_whisper import BatchWhisper

    whisper = BatchWhisper(str(model_store.find(site.models_dir, "base")), threads=2)
    samples = np.concatenate(list(audio.decode(str(path), 16_000)))
    found = [
        (each.start, leg, each.text.strip())
        for column, leg in enumerate(("caller", "agent"))
        for each in whisper.transcribe(np.ascontiguousarray(samples[:, column]), "en")
    ]
    return [(leg, text) for _, leg, text in sorted(found)]


def helpline(file: Path, engines: Local, show: bool) -> None:
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    named = [(number, row) for number, row in enumerate(rows) if row["category"]]
    begun = time.perf_counter()
    found = []
    for number, row in named:
        sentences = re.split(r"(?<=[.!?])\s+", row["text"])
        result = run([("mixed", each) for each in sentences], "child-helpline", engines)
        found.append((number, row["category"], result))
    took = time.perf_counter() - begun
    print(f"helpline: {len(named)} conversations, {1000 * took / len(named):.0f} ms each")
    report("even lines (developed on)", [each for each in found if each[0] % 2 == 0], show)
    report("odd lines", [each for each in found if each[0] % 2 == 1], False)
    report("all", found, False)


def bank(folder: Path, engines: Local, site: settings.Settings, cache: Path, show: bool) -> None:
    calls = [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("[0-9a-f]*.json"))]
    heard = transcripts(folder, site, cache)
    written, recognised = [], []
    for number, call in enumerate(calls):
        asr = [("caller", text) for text in heard[call["sid"]]]
        turns = [(turn["speaker"], turn["text"]) for turn in call.get("turns", ())]
        recognised.append((number, call["task_type"], run(asr, "generic-support", engines)))
        written.append((number, call["task_type"], run(turns or asr, "generic-support", engines)))
    print(f"harpervalley: {len(calls)} calls")
    report("reference where there is one", written, show)
    report("caller's words by base", recognised, show)


def transcripts(folder: Path, site: settings.Settings, cache: Path) -> dict[str, list[str]]:
    """Return the caller's words in utterances, by model base; made once."""
    if not cache.exists():
        from callcore import audio
        from callcore.engines.batch_whisper import BatchWhisper

        whisper = BatchWhisper(str(model_store.find(site.models_dir, "base")), threads=2)
        words: dict[str, list[str]] = {}
        for path in sorted(folder.glob("*.wav")):
            blocks = [block.mean(axis=1) for block in audio.decode(str(path), 16_000)]
            samples = np.concatenate(blocks)
            words[path.stem] = [each.text.strip() for each in whisper.transcribe(samples, "en")]
        cache.write_text(json.dumps(words), "utf-8")
    return dict(json.loads(cache.read_text("utf-8")))


def run(said: Sequence[tuple[str, str]], taxonomy: str, engines: Local) -> dict[str, Any]:
    """Return what the step makes of a conversation."""
    segments = [
        {
            "segment": number,
            "leg": leg,
            "start": float(number),
            "end": number + 1.0,
            "text": text,
            "language": "en",
            "words": [],
        }
        for number, (leg, text) in enumerate(said)
    ]
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    context = StepContext(
        recording=Recording(
            "bench", "bench", RecordingState.STORED, "upload", None, CallFacts(), moment
        ),
        call=Call("bench", "bench", CallState.ENDED, moment, None, None, CallFacts()),
        language="en",
        settings=settings.load({"CALLCORE_TAXONOMIES": taxonomy}),
        results={"transcribe": {"segments": segments, "language": "en"}},
        engines=engines,  # type: ignore[arg-type]
        take_segment_block=lambda: 0,
        live_segments=lambda: [],
        corrections=lambda: [],
        progress=lambda share: None,
    )
    return classify.run(context)


def report(label: str, found: Sequence[tuple[int, str, dict[str, Any]]], show: bool) -> None:
    first = three = strict_first = strict_three = 0
    for number, gold, result in found:
        order = [each["id"] for each in result["categories"]]
        if result["call_type"]["id"] in TABLE["prank_call"]:
            order.insert(0, result["call_type"]["id"])
        theirs = [theirs_of(each) for each in order]
        strict = list(dict.fromkeys(t or o for t, o in zip(theirs, order, strict=True)))
        known = list(dict.fromkeys(each for each in theirs if each))
        first += known[:1] == [gold]
        three += gold in known[:3]
        strict_first += strict[:1] == [gold]
        strict_three += gold in strict[:3]
        if show and known[:1] != [gold]:
            print("   ", number, gold, [(e["id"], e["score"]) for e in result["categories"]][:4])
    num = len(found)
    print(
        f"  {label:30s} n {num:3d}  top-1 {first / num:.3f}  top-3 {three / num:.3f}  "
        f"strict {strict_first / num:.3f} {strict_three / num:.3f}"
    )


def theirs_of(ours: str) -> str | None:
    """Return the file's name of one of our categories."""
    for theirs, begins in TABLE.items():
        if any(ours == begin or ours.startswith(begin + ".") for begin in begins):
            return theirs
    return None


if __name__ == "__main__":
    main()
