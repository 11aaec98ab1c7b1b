"""A text with marked stretches, as spans and as HTML.

The HTML holds ``<p>``, ``<mark>`` and data attributes only, no style and no script, and every text
from outside is escaped: it can be put into a page as it is. Where stretches overlap, the text is
cut where one begins or ends, and each piece carries the classes of all that cover it; so any
spans give the same well-formed HTML, in whatever order they come.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Any

#: Which kind comes first where several stretches begin at one place.
_KINDS = ("flag", "category", "entity", "low_confidence")


@dataclass(frozen=True, slots=True)
class Mark:
    """A stretch of one line's text."""

    start: int
    """Index of its first character in the line."""
    end: int
    """Index after its last character."""
    label: str
    kind: str
    """``flag``, ``category``, ``entity`` or ``low_confidence``."""
    title: str
    """What a person reads on it."""


@dataclass(frozen=True, slots=True)
class Line:
    """What was said in one segment."""

    segment: int | None
    party: str
    start: float
    """Seconds from the start of the call."""
    language: str | None
    text: str
    marks: tuple[Mark, ...]


def render(lines: Sequence[Line]) -> dict[str, Any]:
    """Return ``document_types.MarkedText``: the lines' texts with line feeds between."""
    at = 0
    ents: list[dict[str, Any]] = []
    places: list[dict[str, Any]] = []
    for line in lines:
        for mark in sound(line):
            ents.append(
                {
                    "start": at + mark.start,
                    "end": at + mark.end,
                    "label": mark.label,
                    "kind": mark.kind,
                    "title": mark.title,
                }
            )
        places.append({"segment": line.segment, "start": at, "end": at + len(line.text)})
        at += len(line.text) + 1
    return {
        "text": "\n".join(line.text for line in lines),
        "ents": ents,
        "html": "\n".join(_paragraph(line) for line in lines),
        "segments": places,
    }


def sound(line: Line) -> list[Mark]:
    """Return the marks that lie in the text, each once, in their order."""
    marks = {mark for mark in line.marks if 0 <= mark.start < mark.end <= len(line.text)}
    return sorted(marks, key=_order)


def _order(mark: Mark) -> tuple[int, int, int, str, str]:
    """Return the key by which marks are sorted: those that hold others come before them."""
    return mark.start, -mark.end, _KINDS.index(mark.kind), mark.label, mark.title


def _paragraph(line: Line) -> str:
    marks = sound(line)
    edges = sorted({0, len(line.text), *(e for m in marks for e in (m.start, m.end))})
    pieces = (
        _piece(line.text[a:b], [m for m in marks if m.start <= a and b <= m.end])
        for a, b in pairwise(edges)
    )
    attributes = {
        "data-party": line.party,
        "data-segment": line.segment,
        "data-start": f"{line.start:.3f}",
        "lang": line.language,
        "dir": "auto",
    }
    return f"<p{_attributes(attributes)}>{''.join(pieces)}</p>"


def _piece(text: str, marks: Iterable[Mark]) -> str:
    covering = list(marks)
    if not covering:
        return escape(text)
    kinds = [kind for kind in _KINDS if any(mark.kind == kind for mark in covering)]
    labels = dict.fromkeys(mark.label for mark in covering)
    titles = dict.fromkeys(mark.title for mark in covering)
    attributes = {
        "class": " ".join(kinds).replace("_", "-"),
        "data-labels": " ".join(labels),
        "title": "; ".join(titles),
    }
    return f"<mark{_attributes(attributes)}>{escape(text)}</mark>"


def _attributes(values: Mapping[str, Any]) -> str:
    return "".join(
        f' {name}="{escape(str(value))}"' for name, value in values.items() if value is not None
    )
