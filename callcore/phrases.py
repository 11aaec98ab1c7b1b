"""Phrases of data files as patterns: ``i|we will call|ring you back``.

Words are separated by spaces; ``|`` is a choice, ``_`` a space within a choice, and a ``?`` at the
end of a word says that it may be missing. ``...`` stands for up to four words. Between words there
may be a comma, apostrophes may be curly, and case does not matter.
"""

import re
from collections.abc import Iterable

_GAP = r"(?:[\w'-]+,?\s+){0,4}?"


def plain(text: str) -> str:
    """Return the text with straight apostrophes: the same length, so that offsets stay."""
    return text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")


def pattern(phrase: str) -> re.Pattern[str]:
    """Return the pattern of one phrase, for ``plain`` text."""
    return _compiled(_source(phrase))


def any_of(phrases: Iterable[str], then: str = "") -> re.Pattern[str]:
    """Return a pattern that matches where one of the phrases does, the first listed first.

    Args:
        phrases: At least one.
        then: What must follow, as a regular expression; no part of the match.
    """
    return _compiled("|".join(map(_source, phrases)), then)


def _compiled(source: str, then: str = "") -> re.Pattern[str]:
    return re.compile(rf"(?<!\w)(?:{source})(?!\w)(?={then})", re.IGNORECASE)


def _source(phrase: str) -> str:
    if not isinstance(phrase, str) or not phrase.strip():
        raise ValueError("expected a phrase")
    source, between = "", ""
    for word in phrase.split():
        if word == "...":
            source, between = source + between + _GAP, ""
            continue
        optional = word.endswith("?")
        choices = "|".join(
            r"\s+".join(map(re.escape, each.split("_"))) for each in word.rstrip("?").split("|")
        )
        if optional:
            source, between = f"{source}{between}(?:(?:{choices}),?\\s+)?", ""
        else:
            source, between = f"{source}{between}(?:{choices})", r",?\s+"
    return source
