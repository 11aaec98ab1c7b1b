"""What was said of danger, violence and neglect: yes, no or unknown, with the words.

"Yes" is what a rule found or a person said, never what is merely alike; "no" is what words deny;
all else is unknown. Where words say both, it is yes: a denial under pressure is no all-clear.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

#: What the source of evidence begins with where a rule found the words.
_RULE = "rule:"
#: Source of a category that a person gave.
_HUMAN = "human"

Evidence = dict[str, Any]


def fields(
    categories: Mapping[str, Any], denials: Callable[[str], list[Evidence]]
) -> dict[str, Any]:
    """Return ``document_types.Safety``.

    Args:
        categories: The result of ``classify``.
        denials: Returns the words that deny a field such as ``violence.physical``.
    """
    found: dict[str, Any] = {}
    for field, names in _table().items():
        said = _distinct(_said(categories, names))
        denied = [] if said else _distinct(denials(field))
        value = "yes" if said else "no" if denied else "unknown"
        group, _, name = field.partition(".")
        place = found.setdefault(group, {}) if name else found
        place[name or group] = {"value": value, "evidence": said or denied}
    return found


def _said(categories: Mapping[str, Any], names: tuple[str, ...]) -> Iterator[Evidence]:
    for category in categories["categories"]:
        if _is_among(category["id"], names):
            # Sentences that are merely alike stand beside what a rule found.
            named = category["source"] == _HUMAN
            yield from (e for e in category["evidence"] if named or e["source"].startswith(_RULE))
    for flag in categories["flags"]:
        if flag["state"] != "wrong" and _is_among(flag["rule"], names):
            yield from flag["evidence"]


def _is_among(name: str, names: tuple[str, ...]) -> bool:
    return any(name == each or name.startswith(f"{each}.") for each in names)


def _distinct(evidence: Iterator[Evidence] | list[Evidence]) -> list[Evidence]:
    """Return each stretch of words once, in order of time."""
    by_words = {(each["segment"], each["start"], each["end"]): each for each in evidence}
    return [by_words[key] for key in sorted(by_words, key=lambda key: (key[1], key[2], key[0]))]


@cache
def _table() -> dict[str, tuple[str, ...]]:
    text = files("callcore").joinpath("data", "safety.yaml").read_text("utf-8")
    return {field: tuple(names) for field, names in yaml.safe_load(text).items()}
