"""Evidence: the words that a claim rests on, with leg and times.

Every flag, category, entity and summary sentence points at words of the transcript in this form, so
that a click plays the second in which they were said.
"""

import re
from collections.abc import Mapping
from typing import Any

_TOKEN = re.compile(r"\S+")


def quote(
    segment: Mapping[str, Any],
    first: int,
    last: int,
    *,
    source: str,
    version: str | None = None,
    score: float | None = None,
) -> dict[str, Any]:
    """Return the evidence that a stretch of a segment's text is.

    Args:
        segment: A segment of a transcript in its stored form.
        first: Index of the stretch's first character in the segment's text.
        last: Index after its last character.
        source: What found it, e.g. ``rule:threat.kill`` or ``embedding``.
        version: Version of that.
        score: 0 to 1, None where there is none.
    """
    start, end = times_of(segment, first, last)
    return {
        "leg": segment["leg"],
        "segment": segment["segment"],
        "start": start,
        "end": end,
        "quote": segment["text"][first:last],
        "source": source,
        "version": version,
        "score": None if score is None else round(score, 3),
    }


def whole(
    segment: Mapping[str, Any],
    *,
    source: str,
    version: str | None = None,
    score: float | None = None,
) -> dict[str, Any]:
    """Return the evidence that a whole segment is; arguments as for ``quote``."""
    end = len(segment["text"])
    return quote(segment, 0, end, source=source, version=version, score=score)


def times_of(segment: Mapping[str, Any], first: int, last: int) -> tuple[float, float]:
    """Return start and end, in seconds, of the words that lie in a stretch of a segment's text.

    The text of a segment is its words with spaces between them; in scripts without spaces, or where
    words and text differ, the times are shared out by characters.
    """
    words = segment["words"]
    tokens = list(_TOKEN.finditer(segment["text"]))
    if words and len(tokens) == len(words):
        inside = [
            word
            for word, token in zip(words, tokens, strict=True)
            if token.start() < last and token.end() > first
        ]
        if inside:
            return inside[0]["s"], inside[-1]["e"]
    begin, end, length = segment["start"], segment["end"], max(len(segment["text"]), 1)
    share = (end - begin) / length
    return round(begin + share * first, 3), round(begin + share * min(last, length), 3)
