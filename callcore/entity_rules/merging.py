"""Entities: what the mentions of a call are mentions of."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from callcore.entity_rules.mentions import LABELS, Mention

#: Labels whose mentions are one entity when one begins or ends with the other's words.
_BY_PARTS = ("NAME", "LOCATION")


@dataclass(slots=True)
class Entity:
    """One person, place or number of a call."""

    id: int
    """From 1, in the order of their first mentions."""
    label: str
    mentions: list[Mention] = field(default_factory=list)

    @property
    def fullest(self) -> Mention:
        """The mention that says most: the longest, of those the first."""
        return max(self.mentions, key=lambda mention: len(mention.text))

    @property
    def text(self) -> str:
        """Its words where they say most."""
        return self.fullest.text

    @property
    def normal(self) -> str | None:
        """Its comparable form."""
        return self.fullest.normal


def merge(mentions: Sequence[Mention]) -> list[Entity]:
    """Return the entities of a call: ``Mary Jones`` and ``Mary`` are one, as is a number twice."""
    order = {(m.index, m.start): n for n, m in enumerate(mentions)}
    groups: list[list[Mention]] = []
    # Long forms first: a short one then joins the one long form that it is part of.
    for mention in sorted(mentions, key=lambda m: (LABELS.index(m.label), -len(_parts(m)))):
        same = [group for group in groups if _same(group[0], mention)]
        if len(same) == 1 or (same and _key(same[0][0]) == _key(mention)):
            same[0].append(mention)
        else:
            groups.append([mention])
    for group in groups:
        group.sort(key=lambda m: (m.index, m.start))
    groups.sort(key=lambda group: order[group[0].index, group[0].start])
    return [Entity(n, group[0].label, group) for n, group in enumerate(groups, 1)]


def _same(one: Mention, other: Mention) -> bool:
    if one.label != other.label:
        return False
    if _key(one) == _key(other):
        return True
    if one.label not in _BY_PARTS or _introduced_by_two(one, other):
        return False
    long, short = _parts(one), _parts(other)
    return len(short) < len(long) and (
        long[: len(short)] == short or (one.label == "NAME" and long[-len(short) :] == short)
    )


def _introduced_by_two(one: Mention, other: Mention) -> bool:
    """Whether two parties said these names first: Linda the agent is not Linda Garcia who calls."""
    introduced = one.source == other.source == "rule:introduction"
    return introduced and one.leg != other.leg and "mixed" not in (one.leg, other.leg)


def _key(mention: Mention) -> str:
    return (mention.normal or mention.text).lower()


def _parts(mention: Mention) -> list[str]:
    """Return the words of a name, the places of ``Thika, Kiambu``."""
    separator = ", " if mention.label == "LOCATION" else " "
    return _key(mention).split(separator)
