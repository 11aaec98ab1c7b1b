"""How well the sentiment of utterances agrees with a corpus' own emotion scores.

    python bench/sentiment.py --data DIR

DIR is ``harpervalley`` of the shared data: one JSON a call whose turns carry probabilities of
negative, neutral and positive emotion, made by the corpus' own model. Shown is Spearman's rank
correlation of positive minus negative with VADER as published, and with our cues.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from callcore.engines.vader import Vader


def turns(folder: Path) -> list[dict[str, Any]]:
    """Return the turns of all calls that have a reference."""
    calls = [json.loads(file.read_text("utf-8")) for file in sorted(folder.glob("*.json"))]
    return [turn for call in calls if isinstance(call, dict) for turn in call.get("turns") or []]


def ranks(values: list[float]) -> np.ndarray:
    """Return the rank of each value; equal values share the mean of theirs."""
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(sizes) - (sizes + 1) / 2)[group]


def spearman(one: list[float], other: list[float]) -> float:
    """Return the rank correlation."""
    return float(np.corrcoef(ranks(one), ranks(other))[0, 1])


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    data = turns(parser.parse_args().data)
    engines = {"VADER": Vader(cues=False), "with our cues": Vader()}
    print("| party | turns |", " | ".join(engines), "|\n| --- | --- | --- | --- |")
    for party in ("agent", "caller"):
        said = [turn for turn in data if turn["speaker"] == party]
        emotion = [turn["emotion"]["positive"] - turn["emotion"]["negative"] for turn in said]
        texts = [turn["text"] for turn in said]
        found = [
            spearman([score or 0.0 for score in engine.score(texts, "en")], emotion)
            for engine in engines.values()
        ]
        print(f"| {party} | {len(said)} |", " | ".join(f"{rho:.2f}" for rho in found), "|")


if __name__ == "__main__":
    main()
