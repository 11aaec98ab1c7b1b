"""Mentions in the segments of a call: the core that live and stored calls share."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from callcore.engines import FoundSpan
from callcore.entity_rules.lexicon import Lexicon, lexicon
from callcore.entity_rules.mentions import Mention
from callcore.entity_rules.names import Decided, names, names_of_model
from callcore.entity_rules.texts import sentences
from callcore.entity_rules.values import values

#: Segments after a question in which its answer is looked for.
_ANSWER_WITHIN = 2
#: Characters of a segment's end in which its question is looked for.
_QUESTION = 120


def find(
    segments: Sequence[Mapping[str, Any]],
    recognized: Sequence[Sequence[FoundSpan]] | None = None,
    language: str | None = "en",
    model: str = "spacy",
) -> list[Mention]:
    """Return what is named in a call, in the order of its words.

    Args:
        segments: Segments of a transcript in their stored form; their ``text``, ``leg`` and
            ``language`` are read, the latter where it is there.
        recognized: What a model found in each segment's text; None without a model.
        language: Language of segments that name none.
        model: Source to name where the model said most.
    """
    texts = [str(segment["text"]) for segment in segments]
    words = [lexicon(segment.get("language") or language) for segment in segments]
    spans = recognized if recognized is not None else [()] * len(texts)
    asked = _asked(segments, texts, words)
    mentions: list[Mention] = []
    for own in {each.language if each else None: each for each in words}.values():
        chosen = [index for index, each in enumerate(words) if each is own]
        said, seen = [texts[i] for i in chosen], [spans[i] for i in chosen]
        if own is None:
            decided = names_of_model(said, seen, model)
        else:
            decided = names(said, own, seen, [asked[i] for i in chosen], model)
        for index, found in zip(chosen, decided, strict=True):
            mentions += _places_joined(index, texts[index], found)
    for index, (text, own_words) in enumerate(zip(texts, words, strict=True)):
        taken = [(m.start, m.end) for m in mentions if m.index == index]
        for each in values(text, own_words, asked[index]):
            if not any(each.start < end and start < each.end for start, end in taken):
                quoted = text[each.start : each.end]
                mentions.append(
                    Mention(
                        index, each.start, each.end, each.label, quoted, each.normal,
                        f"rule:{each.rule}",
                    )
                )  # fmt: skip
    return [
        replace(mention, leg=segments[mention.index]["leg"])
        for mention in sorted(mentions, key=lambda mention: (mention.index, mention.start))
    ]


def _asked(
    segments: Sequence[Mapping[str, Any]], texts: Sequence[str], words: Sequence[Lexicon | None]
) -> list[str | None]:
    """Return, for each segment, what the question before it asked for."""
    asked: list[str | None] = []
    for index in range(len(texts)):
        label: str | None = None
        for back in range(1, _ANSWER_WITHIN + 1):
            if index < back or label is not None:
                break
            own = words[index - back]
            if own is None or not _may_answer(segments[index - back], segments[index]):
                continue
            question = texts[index - back][-_QUESTION:]
            wanted = [each for each, pattern in own.asks.items() if pattern.search(question)]
            label = wanted[0] if len(wanted) == 1 else None
        asked.append(label)
    return asked


def _may_answer(question: Mapping[str, Any], answer: Mapping[str, Any]) -> bool:
    """Whether two segments are of two people, as far as one knows."""
    if question["leg"] != answer["leg"]:
        return True
    speakers = (question.get("speaker"), answer.get("speaker"))
    return answer["leg"] == "mixed" and (None in speakers or speakers[0] != speakers[1])


def _places_joined(index: int, text: str, found: Sequence[Decided]) -> list[Mention]:
    """Return mentions, places that go on (``Thika, Kiambu``, ``Thika in Kiambu``) as one."""
    mentions: list[Mention] = []
    ends = [end for _, end in sentences(text)]
    for each in found:
        last = mentions[-1] if mentions else None
        if last and last.label == each.label == "LOCATION":
            between = text[last.end : each.start].strip()
            if between in (",", "in", ", in", "of") and _same_sentence(ends, last.end, each.start):
                mentions[-1] = Mention(
                    index, last.start, each.end, "LOCATION", text[last.start : each.end],
                    f"{last.normal}, {_plain(text[each.start : each.end])}", last.source,
                )  # fmt: skip
                continue
        quoted = text[each.start : each.end]
        normal = _plain(quoted)
        mentions.append(
            Mention(index, each.start, each.end, each.label, quoted, normal, each.source)
        )
    return mentions


def _same_sentence(ends: Sequence[int], first: int, second: int) -> bool:
    return bisect_left(ends, first) == bisect_left(ends, second)


def _plain(name: str) -> str:
    """Return a name with capitals and single spaces: ``mary jones`` is ``Mary Jones``."""
    return " ".join(
        word[0].upper() + word[1:] if word.islower() and name.islower() else word
        for word in name.split()
    )
