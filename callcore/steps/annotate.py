"""The transcript with what was found in it: entities, flags, categories and doubtful words.

For the original, and for the translation, where an entity is marked only if the translated segment
holds its very words: where it went in other words nobody knows.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from callcore.evidence import times_of
from callcore.marked_text import Line, Mark, render
from callcore.steps import Step, StepContext
from callcore.steps.insights import LOW_CONFIDENCE
from callcore.talk import party_of

_TOKEN = re.compile(r"\S+")

Stored = Mapping[str, Any]
Marks = Mapping[int, Sequence[Mark]]


def run(context: StepContext) -> dict[str, Any]:
    """Return ``document_types.Annotation``."""
    segments: list[Stored] = sorted(
        context.results["transcribe"]["segments"],
        key=lambda each: (each["start"], each["end"], each["segment"]),
    )
    entities = context.results.get("ner")
    marks: dict[int, list[Mark]] = defaultdict(list)
    for number, mark in (
        *_entities(entities),
        *_categories(context.results.get("classify"), segments),
        *_doubtful(segments),
    ):
        marks[number].append(mark)
    translation = context.results.get("translate")
    # Null as a method: all of it was said in that language already.
    is_other = translation is not None and translation["method"] is not None
    return {
        "engine": None,
        "model": None,
        "version": None,
        "parameters": {"low_confidence": LOW_CONFIDENCE},
        "original": render([_line(each, marks.get(each["segment"], [])) for each in segments]),
        "translation": (
            _translated(translation, segments, entities) if translation and is_other else None
        ),
    }


def _line(segment: Stored, marks: Iterable[Mark]) -> Line:
    return Line(
        segment=segment["segment"],
        party=party_of(segment),
        start=segment["start"],
        language=segment["language"],
        text=segment["text"],
        marks=tuple(marks),
    )


# ---- what is marked in the original


def _entities(entities: Stored | None) -> Iterator[tuple[int, Mark]]:
    for entity in entities["entities"] if entities else ():
        for mention in entity["mentions"]:
            start, end = mention["span"]
            yield mention["segment"], Mark(start, end, entity["label"], "entity", _title(entity))


def _title(entity: Stored) -> str:
    """Return the label, and the whole of what is meant where the words are only part of it."""
    known = entity["normal"] or entity["text"]
    role = f" ({entity['role']})" if entity["role"] else ""
    return f"{entity['label']}: {known}{role}"


def _categories(
    categories: Stored | None, segments: Sequence[Stored]
) -> Iterator[tuple[int, Mark]]:
    if not categories:
        return
    by_number = {each["segment"]: each for each in segments}
    named = [
        *(("flag", each["rule"], each["label"], each["evidence"]) for each in categories["flags"]),
        *(
            ("category", each["id"], each["label"], each["evidence"])
            for each in categories["categories"]
        ),
    ]
    for kind, name, title, evidence in named:
        for words in evidence:
            segment = by_number.get(words["segment"])
            span = _place(segment, words) if segment else None
            if span:
                yield words["segment"], Mark(*span, name, kind, title)


def _place(segment: Stored, words: Stored) -> tuple[int, int] | None:
    """Return where a quote is in its segment; said several times, it is the one at its time."""
    quote, text = words["quote"], segment["text"]
    places: list[tuple[int, int]]
    places = [m.span() for m in re.finditer(re.escape(quote), text)] if quote else []
    if not places:
        return None
    said_at: float = words["start"]
    return min(places, key=lambda span: abs(times_of(segment, *span)[0] - said_at))


def _doubtful(segments: Iterable[Stored]) -> Iterator[tuple[int, Mark]]:
    """Yield the words that the recogniser doubts; neighbours are one mark."""
    for segment in segments:
        words, text = segment["words"], segment["text"]
        places = _words_in(text, words)
        first: int | None = None
        for at, word in enumerate([*words, None]):
            doubtful = word is not None and word["p"] < LOW_CONFIDENCE and places[at] is not None
            if doubtful and first is None:
                first = at
            elif not doubtful and first is not None:
                yield segment["segment"], _doubt(words[first:at], places[first:at])
                first = None


def _doubt(words: Sequence[Stored], places: Sequence[tuple[int, int] | None]) -> Mark:
    start, end = (places[0] or (0, 0))[0], (places[-1] or (0, 0))[1]
    least = min(word["p"] for word in words)
    # Nothing that was written down was heard with no certainty at all.
    share = f"{least:.0%}" if least >= 0.01 else "<1%"
    return Mark(start, end, "low confidence", "low_confidence", f"heard with {share} certainty")


def _words_in(text: str, words: Sequence[Stored]) -> list[tuple[int, int] | None]:
    """Return where each word is in the text, found from left to right; None where it is not."""
    places: list[tuple[int, int] | None] = []
    at = 0
    for word in words:
        found = text.find(word["w"], at) if word["w"] else -1
        if found < 0:
            places.append(None)
            continue
        at = found + len(word["w"])
        places.append((found, at))
    return places


# ---- the translation


def _translated(
    translation: Stored, segments: Sequence[Stored], entities: Stored | None
) -> dict[str, Any]:
    by_number = {each["segment"]: each for each in segments}
    mentions = [
        (mention, entity)
        for entity in (entities["entities"] if entities else ())
        for mention in entity["mentions"]
    ]
    lines = []
    for each in sorted(translation["segments"], key=lambda each: (each["start"], each["end"])):
        here = [(m, entity) for m, entity in mentions if _belongs(m, each)]
        of = by_number.get(each["segment"])
        lines.append(
            Line(
                segment=each["segment"],
                party=party_of(of) if of else each["leg"],
                start=each["start"],
                language=translation["target"],
                text=each["text"],
                marks=tuple(_same_words(each["text"], here)),
            )
        )
    return render(lines)


def _belongs(mention: Stored, translated: Stored) -> bool:
    """Return whether a mention was said in a translated segment: by number, else by time."""
    if translated["segment"] is not None:
        return bool(mention["segment"] == translated["segment"])
    return bool(
        mention["leg"] == translated["leg"]
        and mention["start"] < translated["end"]
        and mention["end"] > translated["start"]
    )


def _same_words(text: str, mentions: Iterable[tuple[Stored, Stored]]) -> Iterator[Mark]:
    for mention, entity in mentions:
        quote = mention["quote"].strip()
        if not quote:
            continue
        for match in re.finditer(rf"(?<!\w){re.escape(quote)}(?!\w)", text):
            yield Mark(*match.span(), entity["label"], "entity", _title(entity))


STEP = Step(
    name="annotate",
    needs=("transcribe",),
    result="annotation",
    run=run,
    after=("translate", "ner", "classify"),
)
