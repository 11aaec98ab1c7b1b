"""How a call felt, party by party, from the scores of its utterances."""

from collections.abc import Mapping, Sequence
from typing import Any

from callcore.evidence import whole
from callcore.talk import party_of

#: Difference between the halves of a call that is a trend, of 10: one clearly worded utterance
#: ("thank you so much", 2) among four neutral ones.
TREND = 0.5
#: Utterances that are shown as evidence for a party's score.
SHOWN = 3
#: Utterances nearer to 0 than this are no evidence of a feeling.
SHOWN_FROM = 1.0

Segment = Mapping[str, Any]


def measure(
    scores: Sequence[tuple[Segment, float]],
    start: float,
    end: float,
    *,
    source: str,
    version: str | None,
) -> dict[str, Any] | None:
    """Return ``document_types.Sentiment``; None where nothing could be scored.

    Args:
        scores: Utterances with -5 to 5.
        start: Of the call, in its seconds.
        end: Of the call.
        source: Name of what scored them.
        version: Version of that.
    """
    if not scores:
        return None
    ordered = sorted(scores, key=lambda each: (each[0]["start"], each[0]["segment"]))
    parties = sorted({party_of(segment) for segment, _ in ordered})
    return {
        "segments": [{"segment": each["segment"], "score": round(s, 2)} for each, s in ordered],
        "parties": {
            party: _party(
                [each for each in ordered if party_of(each[0]) == party],
                (start, end),
                source,
                version,
            )
            for party in parties
        },
    }


def _party(
    scores: Sequence[tuple[Segment, float]],
    span: tuple[float, float],
    source: str,
    version: str | None,
) -> dict[str, Any]:
    by_quarter: list[list[tuple[Segment, float]]] = [[], [], [], []]
    for segment, score in scores:
        by_quarter[_quarter(segment, *span)].append((segment, score))
    felt = [each for each in scores if abs(each[1]) >= SHOWN_FROM]
    # The strongest; of equals the earlier ones.
    strongest = sorted(felt, key=lambda each: -abs(each[1]))[:SHOWN]
    strongest.sort(key=lambda each: (each[0]["start"], each[0]["segment"]))
    return {
        "score": _mean(scores),
        "quarters": [_mean(each) for each in by_quarter],
        "trend": _trend(
            _mean([*by_quarter[0], *by_quarter[1]]), _mean([*by_quarter[2], *by_quarter[3]])
        ),
        "evidence": [whole(each, source=source, version=version) for each, _ in strongest],
    }


def _quarter(segment: Segment, start: float, end: float) -> int:
    middle = (segment["start"] + segment["end"]) / 2
    return min(3, max(0, int(4 * (middle - start) / (end - start)))) if end > start else 0


def _mean(scores: Sequence[tuple[Segment, float]]) -> float | None:
    """Return the mean, by words: a "yes" weighs less than a sentence."""
    weights = [max(1, len(segment["text"].split())) for segment, _ in scores]
    if not weights:
        return None
    total = sum(weight * score for weight, (_, score) in zip(weights, scores, strict=True))
    return round(total / sum(weights), 2)


def _trend(before: float | None, after: float | None) -> str | None:
    if before is None or after is None:
        return None
    change = after - before
    return "rising" if change >= TREND else "falling" if change <= -TREND else "steady"
