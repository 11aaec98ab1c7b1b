"""How well names, places and ages are found, and what is found in calls of a bank.

    python bench/ner.py --data DIR [--show]

DIR holds ``helpline/conversations.jsonl`` and, if it is there, ``harpervalley/*.json``. A mention
is right if it overlaps one of the same label; a predicted name that overlaps a span of another kind
(VICTIM, PERPETRATOR) counts neither way. Two figures: over all mentions, and with each name or
place once a call, as entities are: the data mark only the first mention of a name in a part of the
calls, so that even the data's own names, marked wherever they come, reach no 1.00 over all mentions
(the line ``ceiling``). The rules were developed on the odd lines.
"""

import argparse
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from callcore import entity_rules, model_store, settings
from callcore.engines.spacy_entities import SpacyEntities
from callcore.entity_rules import Mention

LABELS = ("NAME", "LOCATION", "AGE")
Span = tuple[int, int, str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--show", action="store_true", help="print what is found in bank calls")
    arguments = parser.parse_args()
    site = settings.load(os.environ)
    engine = SpacyEntities({"en": str(model_store.find(site.models_dir, "en_core_web_sm"))})
    helpline(arguments.data / "helpline" / "conversations.jsonl", engine)
    calls = sorted((arguments.data / "harpervalley").glob("[0-9a-f]*.json"))
    if calls:
        bank(calls, engine, arguments.show)


def found(segments: Sequence[dict[str, Any]], engine: SpacyEntities | None) -> list[Mention]:
    """Return what the step finds."""
    words = entity_rules.lexicon("en")
    texts = [entity_rules.cased(segment["text"], words) for segment in segments]
    spans = engine.recognize(texts, "en") if engine else None
    return entity_rules.find(segments, spans, "en")


def segment(text: str, leg: str = "mixed") -> dict[str, Any]:
    return {"text": text, "leg": leg, "language": "en"}


def helpline(file: Path, engine: SpacyEntities) -> None:
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    begun = time.perf_counter()
    cased = [found([segment(row["text"])], engine) for row in rows]
    took = time.perf_counter() - begun
    print(f"helpline: {len(rows)} conversations, {1000 * took / len(rows):.0f} ms each")
    ways = {
        "rules + spaCy": cased,
        "rules alone": [found([segment(row["text"])], None) for row in rows],
        "no capitals": [found([segment(row["text"].lower())], engine) for row in rows],
        "ceiling": [named_in_the_data(row) for row in rows],
    }
    halves: dict[str, Callable[[int], bool]] = {
        "odd": lambda n: n % 2 == 1,
        "even": lambda n: n % 2 == 0,
        "all": lambda n: True,
    }
    for way, mentions in ways.items():
        for half, of in halves.items():
            some = [
                (row, m) for n, (row, m) in enumerate(zip(rows, mentions, strict=True)) if of(n)
            ]
            every = score([(marked(row), spans(m)) for row, m in some])
            once = score([(first_only(row), spans(first_mentions(m))) for row, m in some])
            print(f"{way:14} {half:5} mentions {every}   once a call {once}")


def spans(mentions: Iterable[Mention]) -> list[Span]:
    return [(m.start, m.end, m.label) for m in mentions if m.label in LABELS]


def marked(row: dict[str, Any]) -> list[Span]:
    return [(each["start"], each["end"], each["label"]) for each in row["entities"]]


def first_only(row: dict[str, Any]) -> list[Span]:
    """Return the data's spans, each name once."""
    kept: list[Span] = []
    seen = set()
    for each in sorted(row["entities"], key=lambda each: int(each["start"])):
        name = each["label"] in ("NAME", "VICTIM") and each["text"].lower()
        if not name or name not in seen:
            kept.append((each["start"], each["end"], each["label"]))
        seen.add(name)
    return kept


def first_mentions(mentions: Sequence[Mention]) -> list[Mention]:
    return [entity.mentions[0] for entity in entity_rules.merge(mentions)]


def named_in_the_data(row: dict[str, Any]) -> list[Mention]:
    """Return every place where a name of the data comes."""
    text = row["text"]
    names = {each["text"] for each in row["entities"] if each["label"] in ("NAME", "VICTIM")}
    places = [
        (start, start + len(name))
        for name in names
        for start in range(len(text))
        if text.startswith(name, start)
        and not text[start - 1 : start].isalpha()
        and not text[start + len(name) :][:1].isalpha()
    ]
    return [
        Mention(0, start, end, "NAME", text[start:end], text[start:end], "data")
        for start, end in sorted(places)
    ]


def score(pairs: Iterable[tuple[list[Span], list[Span]]]) -> str:
    """Return precision, recall and F1 by label, judged as the data's own scorer does."""
    right, wrong, missed = Counter[str](), Counter[str](), Counter[str]()
    for gold, predicted in pairs:
        used: set[Span] = set()
        for start, end, label in predicted:
            over = [each for each in gold if each[0] < end and start < each[1]]
            same = [each for each in over if each[2] == label]
            if same:
                right[label] += 1
                used.update(same)
            elif not any(each[2] not in LABELS for each in over):
                wrong[label] += 1
        missed.update(each[2] for each in gold if each[2] in LABELS and each not in used)
    parts = []
    for label in LABELS:
        p = right[label] / max(1, right[label] + wrong[label])
        r = right[label] / max(1, right[label] + missed[label])
        if right[label]:
            parts.append(f"{label} P {p:.2f} R {r:.2f} F1 {2 * p * r / (p + r):.2f}")
    return ", ".join(parts)


def bank(files: Sequence[Path], engine: SpacyEntities, show: bool) -> None:
    """Count what is found in the transcripts of a bank's calls, which have no capitals."""
    counts = Counter[str]()
    num_calls = 0
    for file in files:
        call = json.loads(file.read_text("utf-8"))
        if not isinstance(call, dict) or not call.get("turns"):
            continue
        num_calls += 1
        segments = [segment(turn["text"], turn["speaker"]) for turn in call["turns"]]
        mentions = found(segments, engine)
        entities = entity_rules.merge(mentions)
        counts.update(entity.label for entity in entities)
        people = entity_rules.people(segments, entities, "en")
        counts.update(f"role {person.role}" for person in people)
        if show:
            for m in mentions:
                print(f"  {file.stem[:6]} {m.label:12} {m.text!r} -> {m.normal}  {m.source}",
                      f"| {segments[m.index]['text']}")  # fmt: skip
            for person in people:
                named = person.entity.text if person.entity else None
                print(f"  {file.stem[:6]} {person.role:12} {named} {person.age}")
    found_text = ", ".join(f"{label} {number}" for label, number in sorted(counts.items()))
    print(f"harpervalley: {num_calls} calls: {found_text}")


if __name__ == "__main__":
    main()
