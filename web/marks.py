"""What was found in the words, as pieces of text that a page can print.

A word is one place to click, and may be cut where a mark begins or ends ("Grace" of "Grace,"); so
marks lie inside words, and between them, and overlap as they like.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

#: Below this a word is doubtful, where step ``annotate`` has not said which are.
_DOUBTFUL_P = 0.5
#: In the order in which their classes are named.
KINDS = ("flag", "category", "entity", "low_confidence")

Stored = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of text that the same marks cover."""

    text: str
    classes: str = ""
    """Classes of ``<mark>``; empty: no mark."""
    title: str = ""
    severity: str = ""
    """Of a flag that begins here."""


@dataclass(frozen=True, slots=True)
class Token:
    """A word with its time, or what stands between words."""

    pieces: tuple[Piece, ...]
    start: float | None = None
    """Second at which the word begins; None: no word."""
    end: float | None = None

    @property
    def plain(self) -> str | None:
        """The text where nothing is marked, as most is; None where something is."""
        return self.pieces[0].text if len(self.pieces) == 1 and not self.pieces[0].classes else None


class Marks:
    """The marks of one marked text, by its lines.

    Args:
        marked: ``document_types.MarkedText`` as stored; None: nothing is marked.
        flags: The flags of the document: they say how severe a mark is.
    """

    def __init__(self, marked: Stored | None, flags: Iterable[Stored] = ()) -> None:
        self._severities = {flag["rule"]: flag["severity"] for flag in flags}
        self._lines: list[tuple[str, list[Stored]]] = []
        self._by_segment: dict[int, int] = {}
        if marked is None:
            return
        places = marked["segments"]
        for index, place in enumerate(places):
            self._lines.append((marked["text"][place["start"] : place["end"]], []))
            if place["segment"] is not None:
                self._by_segment[place["segment"]] = index
        starts = [place["start"] for place in places]
        for ent in marked["ents"]:
            index = bisect_right(starts, ent["start"]) - 1
            at = starts[index]
            here = {**ent, "start": ent["start"] - at, "end": ent["end"] - at}
            self._lines[index][1].append(here)

    def of_segment(self, segment: Stored) -> list[Stored] | None:
        """Return the marks of a segment; None where the text is not the one that was marked."""
        index = self._by_segment.get(segment["segment"])
        return None if index is None else self.of_line(index, segment["text"])

    def of_line(self, index: int, text: str) -> list[Stored] | None:
        """Return the marks of the line with this index, likewise."""
        if index >= len(self._lines) or self._lines[index][0] != text:
            return None
        return self._lines[index][1]

    def tokens(self, segment: Stored) -> list[Token]:
        """Return a segment's text as words and what is between them."""
        marks = self.of_segment(segment)
        text, words = segment["text"], segment["words"]
        places = _places(text, words)
        if places is None:  # the words are not those of the text: one place to click
            return [Token(self._cut(text, 0, len(text), marks), segment["start"], segment["end"])]
        if marks is None:
            marks = list(_doubtful(words, places))
        tokens: list[Token] = []
        at = 0
        for word, (start, end) in zip(words, places, strict=True):
            if at < start:
                tokens.append(Token(self._cut(text, at, start, marks)))
            tokens.append(Token(self._cut(text, start, end, marks), word["s"], word["e"]))
            at = end
        if at < len(text):
            tokens.append(Token(self._cut(text, at, len(text), marks)))
        return tokens

    def line(self, index: int, text: str) -> tuple[Piece, ...]:
        """Return the pieces of a line that has no times of words."""
        return self._cut(text, 0, len(text), self.of_line(index, text))

    def _cut(
        self, text: str, start: int, end: int, marks: Sequence[Stored] | None
    ) -> tuple[Piece, ...]:
        here = [m for m in marks or () if m["start"] < end and m["end"] > start]
        if not here:
            return (Piece(text[start:end]),)
        edges = {start, end, *(e for m in here for e in (m["start"], m["end"]) if start < e < end)}
        return tuple(self._piece(text, a, b, here) for a, b in pairwise(sorted(edges)))

    def _piece(self, text: str, start: int, end: int, marks: Iterable[Stored]) -> Piece:
        covering = [m for m in marks if m["start"] <= start and end <= m["end"]]
        kinds = {m["kind"] for m in covering}
        begins = [m for m in covering if m["kind"] == "flag" and m["start"] == start]
        return Piece(
            text[start:end],
            " ".join(kind.replace("_", "-") for kind in KINDS if kind in kinds),
            "; ".join(dict.fromkeys(m["title"] for m in covering)),
            self._severities.get(begins[0]["label"], "") if begins else "",
        )


def _places(text: str, words: Sequence[Stored]) -> list[tuple[int, int]] | None:
    """Return where each word is in the text; None if one is not there."""
    places: list[tuple[int, int]] = []
    at = 0
    for word in words:
        found = text.find(word["w"], at) if word["w"] else -1
        if found < 0:
            return None
        at = found + len(word["w"])
        places.append((found, at))
    return places or None


def _doubtful(words: Iterable[Stored], places: Iterable[tuple[int, int]]) -> Iterator[Stored]:
    """Yield marks of doubtful words, where nothing else has marked them."""
    for word, (start, end) in zip(words, places, strict=True):
        if word["p"] < _DOUBTFUL_P:
            title = f"heard with {word['p']:.0%} certainty"
            yield {
                "start": start,
                "end": end,
                "label": "low confidence",
                "kind": "low_confidence",
                "title": title,
            }
