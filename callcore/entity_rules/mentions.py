"""What a rule or a model found: a stretch of a segment's text with a label."""

from dataclasses import dataclass

#: Every label that there is, in the order in which documents list them.
LABELS = (
    "NAME",
    "LOCATION",
    "ORGANIZATION",
    "DATE",
    "TIME",
    "AGE",
    "PHONE",
    "MONEY",
    "ACCOUNT",
)


@dataclass(frozen=True, slots=True)
class Mention:
    """One place in a call where an entity is named."""

    index: int
    """Index of the segment in the list that was searched."""
    start: int
    """Index of its first character in the segment's text."""
    end: int
    """Index after its last character."""
    label: str
    """One of ``LABELS``."""
    text: str
    normal: str | None
    """Comparable form: a phone number's digits, an ISO date, an amount with its currency."""
    source: str
    """What found it, e.g. ``rule:introduction`` or ``spacy``."""
    leg: str = "mixed"
    """Whose segment it is."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a rule found in one text: a ``Mention`` without its segment."""

    start: int
    end: int
    label: str
    normal: str | None
    rule: str
