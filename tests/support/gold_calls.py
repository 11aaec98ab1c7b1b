"""Calls in our own words with what they are about (``tests/data/calls``), and who was right."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from callcore import taxonomies

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = ROOT / "tests" / "data" / "calls"
TAXONOMIES = ("child-helpline", "emergency", "generic-support")


@dataclass(frozen=True, slots=True)
class GoldCall:
    """A call and what three taxonomies should say of it."""

    id: str
    said: tuple[tuple[str, str], ...]
    """Leg and words of each turn."""
    gold: Mapping[str, Mapping[str, Any]]
    """By taxonomy; the keys are explained in dev.yaml."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Where an answer is right."""

    first: bool
    kind: bool
    flags: bool
    priority: bool
    wrongly_named: tuple[str, ...]


def load(name: str) -> list[GoldCall]:
    """Return the calls of ``dev`` or ``held-out``."""
    entries = yaml.safe_load((FOLDER / f"{name}.yaml").read_text("utf-8"))
    return [
        GoldCall(each["id"], tuple(_said(each)), {t: each.get(t, {}) for t in TAXONOMIES})
        for each in entries
    ]


def _said(entry: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if "sample" in entry:
        sample = json.loads((ROOT / "samples" / f"{entry['sample']}.json").read_text("utf-8"))
        yield from ((turn["leg"], turn["text"]) for turn in sample["turns"])
    else:
        yield from (pair for turn in entry["said"] for pair in turn.items())


def judge(taxonomy: str, gold: Mapping[str, Any], answer: Mapping[str, Any]) -> Verdict:
    """Return where the step's answer, by one taxonomy, is as it should be."""
    first: Sequence[str | None] = gold.get("first", [None])
    named = [each["id"] for each in answer["categories"]]
    severities = [each["severity"] for each in answer["flags"]]
    worst = "critical" if "critical" in severities else severities[0] if severities else None
    level = answer["priority"] and answer["priority"]["level"]
    right = {*first, *gold.get("also", [])}
    return Verdict(
        first=(named[0] if named else None) in first,
        kind=_kind_is_right(taxonomy, gold, answer["call_type"]["id"]),
        flags=worst in gold.get("flags", [None]),
        priority=level in gold.get("priority", [None]),
        wrongly_named=tuple(each for each in named if each not in right),
    )


def _kind_is_right(taxonomy: str, gold: Mapping[str, Any], kind: str | None) -> bool:
    if "type" in gold:
        return bool(kind == gold["type"])
    # Where a taxonomy has nothing to say about a call, any kind but an insult will do.
    concern = any(gold.get("first", [None]))
    (known,) = taxonomies.load([taxonomy])
    without = {each.id for each in known.call_types if not each.data}
    return not concern or kind not in without
