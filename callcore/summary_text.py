"""A transcript as sentences, each of one party, with the segments that its words stand in.

An utterance ends at a pause, a sentence does not: a sentence that goes on in the next utterance of
the same party is put together again, and a very long one is cut, always between words.
"""

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml

from callcore import evidence
from callcore.utterances import UNSPACED

#: Seconds between two utterances of a party that can be one sentence.
_LONGEST_PAUSE_S = 2.0
#: Words that another may say meanwhile: "mhm, okay".
_ASIDE_WORDS = 3
#: Words of a sentence; longer ones are cut at a comma.
_LONGEST = 40

_WORD = re.compile(r"[^\W_]+(?:['’\-][^\W_]+)*")  # noqa: RUF001
_END = re.compile(r"""[.!?…؟।]["'”’»)\]]*\s+(?![a-z])|[。！？]\s*""")  # noqa: RUF001
_FINISHED = re.compile(r"""[.!?…؟।。！？]["'”’»)\]]*\s*$""")  # noqa: RUF001
_ABBREVIATION = re.compile(r"\b(?:mr|mrs|ms|dr|vs|[ap] ?\.m|[a-z]\.[a-z])\.\s*$", re.I)
#: Shortest content word of a language that we have no list for.
_SHORTEST = 4


@dataclass(frozen=True, slots=True)
class Rule:
    """A pattern with the name that evidence gives it."""

    rule: str
    pattern: re.Pattern[str]


@dataclass(frozen=True, slots=True)
class Cues:
    """What the data file knows of a language; everything is empty for an unknown one."""

    version: str
    stopwords: frozenset[str] = frozenset()
    telling: frozenset[str] = frozenset()
    negations: re.Pattern[str] | None = None
    not_denials: re.Pattern[str] | None = None
    calling: frozenset[str] = frozenset()
    clause: re.Pattern[str] | None = None
    females: frozenset[str] = frozenset()
    males: frozenset[str] = frozenset()
    people: frozenset[str] = frozenset()
    courtesy: re.Pattern[str] | None = None
    reason: tuple[Rule, ...] = ()
    outcome: tuple[Rule, ...] = ()
    promises: tuple[Rule, ...] = ()
    offers: tuple[Rule, ...] = ()
    requests: tuple[Rule, ...] = ()
    not_actions: re.Pattern[str] | None = None
    reported: re.Pattern[str] | None = None
    undone: re.Pattern[str] | None = None
    due: re.Pattern[str] | None = None
    not_due: re.Pattern[str] | None = None
    due_ends: re.Pattern[str] | None = None
    question: re.Pattern[str] | None = None
    not_questions: re.Pattern[str] | None = None
    deferrals: re.Pattern[str] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Sentence:
    """Words of one party."""

    party: str
    """The leg; in a mono recording with speaker turns ``mixed:A`` or ``mixed:B``."""
    leg: str
    pieces: tuple[tuple[Mapping[str, Any], int, int], ...]
    """Segments with the first and last character that belong to it."""
    text: str
    """Its words as they are written in the segments."""
    content: frozenset[str]
    """Words that say something, lower case; courtesies are not among them."""

    @property
    def start(self) -> float:
        """Seconds in the call."""
        segment, first, last = self.pieces[0]
        return evidence.times_of(segment, first, last)[0]

    @property
    def end(self) -> float:
        """Seconds in the call."""
        segment, first, last = self.pieces[-1]
        return evidence.times_of(segment, first, last)[1]

    def evidence(
        self, source: str, version: str | None, score: float | None = None
    ) -> list[dict[str, Any]]:
        """Return its words as evidence, one for each segment that they stand in."""
        score = None if score is None else min(max(score, 0.0), 1.0)
        return [
            evidence.quote(segment, first, last, source=source, version=version, score=score)
            for segment, first, last in self.pieces
        ]


@functools.cache
def cues(language: str | None) -> Cues:
    """Return what the data file knows of a language."""
    text = resources.files("callcore").joinpath("data/summary.yaml").read_text("utf-8")
    document = yaml.safe_load(text)
    version = str(document["version"])
    known = document["languages"].get(language)
    if known is None:
        return Cues(version)
    return Cues(
        version,
        stopwords=frozenset(known["stopwords"].split()),
        telling=frozenset(known["telling"].split()),
        negations=re.compile(known["negations"], re.I),
        not_denials=re.compile(known["not_denials"], re.I),
        calling=frozenset(known["calling"].split()),
        clause=re.compile(known["clause"], re.I),
        females=frozenset(known["females"].split()),
        males=frozenset(known["males"].split()),
        people=frozenset(f"{known['females']} {known['males']} {known['people']}".split()),
        courtesy=_any_of([rf"\b(?:{each})\b" for each in known["courtesy"]]),
        reason=_rules("reason", known),
        outcome=_rules("outcome", known),
        promises=_rules("promises", known),
        offers=_rules("offers", known),
        requests=_rules("requests", known),
        not_actions=_any_of(known["not_actions"]),
        reported=re.compile(known["reported"], re.I),
        undone=re.compile(known["undone"], re.I),
        due=re.compile(known["due"], re.I),
        not_due=_any_of(known["not_due"]),
        due_ends=re.compile(known["due_ends"], re.I),
        question=re.compile(known["question"], re.I),
        not_questions=_any_of(known["not_questions"]),
        deferrals=_any_of(known["deferrals"]),
    )


def _any_of(patterns: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{each})" for each in patterns), re.I)


def _rules(kind: str, known: Mapping[str, Any]) -> tuple[Rule, ...]:
    return tuple(
        Rule(f"rule:summary.{kind}.{each['id']}", re.compile(each["pattern"], re.I))
        for each in known[kind]
    )


def plain(text: str) -> str:
    """Return a text with straight apostrophes, every character in its place."""
    return text.replace("’", "'")  # noqa: RUF001


def words_of(text: str, language: str | None = None) -> list[str]:
    """Return the words of a text in lower case; characters where words are not spaced."""
    words = [match.lower() for match in _WORD.findall(plain(text))]
    return [part for word in words for part in word] if language in UNSPACED else words


def content_of(text: str, language: str | None, known: Cues) -> frozenset[str]:
    """Return the words of a text that say something."""
    text = plain(text)
    if known.courtesy:
        text = known.courtesy.sub(" ", text)
    words = words_of(text, language)
    if known.stopwords:
        return frozenset(
            w for w in words if w not in known.stopwords and (len(w) > 2 or w.isdigit())
        )
    shortest = 1 if language in UNSPACED else _SHORTEST
    return frozenset(word for word in words if len(word) >= shortest or word.isdigit())


def party_of(segment: Mapping[str, Any]) -> str:
    """Return who speaks: the leg, or a speaker of a mono recording."""
    speaker = segment.get("speaker")
    return f"{segment['leg']}:{speaker}" if speaker else str(segment["leg"])


def sentences(segments: Sequence[Mapping[str, Any]], language: str | None) -> list[Sentence]:
    """Return the sentences of a transcript, ordered by start.

    Args:
        segments: Of a transcript in its stored form.
        language: The main language of the call: its list of words is used.
    """
    known = cues(language)
    whole: list[_Open] = []
    last: dict[str, _Open] = {}
    for segment in sorted(segments, key=lambda each: (each["start"], each["end"])):
        party = party_of(segment)
        spans = list(_spans(segment["text"], language))
        said = len(words_of(segment["text"]))
        for number, (first, end) in enumerate(spans):
            before = last.get(party)
            piece = (segment, first, end)
            if number == 0 and before is not None and before.goes_on(segment, first, end):
                before.pieces.append(piece)
            else:
                last[party] = _Open(party, [piece])
                whole.append(last[party])
        for other, each in last.items():
            if other != party:
                each.aside += said
            elif spans:
                each.aside = 0
    return [each.closed(language, known) for each in whole]


@dataclass(slots=True)
class _Open:
    """A sentence that may go on."""

    party: str
    pieces: list[tuple[Mapping[str, Any], int, int]]
    aside: int = 0
    """Words that others have said since."""

    @property
    def text(self) -> str:
        return " ".join(each["text"][first:last] for each, first, last in self.pieces)

    def goes_on(self, segment: Mapping[str, Any], first: int, last: int) -> bool:
        pause = segment["start"] - self.pieces[-1][0]["end"]
        length = len(words_of(self.text)) + len(words_of(segment["text"][first:last]))
        return (
            pause <= _LONGEST_PAUSE_S
            and self.aside <= _ASIDE_WORDS
            and length <= _LONGEST
            and not _FINISHED.search(self.text)
        )

    def closed(self, language: str | None, known: Cues) -> Sentence:
        leg = str(self.pieces[0][0]["leg"])
        content = content_of(self.text, language, known)
        return Sentence(self.party, leg, tuple(self.pieces), self.text, content)


def _spans(text: str, language: str | None) -> Iterator[tuple[int, int]]:
    """Yield first and last character of each sentence of a text, spaces around it left out."""
    begin = 0
    for end in _END.finditer(text):
        if not _ABBREVIATION.search(text[begin : end.end()]):
            yield from _cut(text, begin, end.end(), language)
            begin = end.end()
    yield from _cut(text, begin, len(text), language)


def _cut(text: str, first: int, last: int, language: str | None) -> Iterator[tuple[int, int]]:
    """Yield a sentence, in parts if it is too long: cut at its last comma, else at a space."""
    while True:
        first += len(text[first:last]) - len(text[first:last].lstrip())
        found = list(_WORD.finditer(text, first, last))
        if language in UNSPACED or len(found) <= _LONGEST:
            break
        window = text[first : found[_LONGEST].start()]
        comma = window.rfind(", ")
        at = first + comma + 1 if comma > len(window) // 3 else found[_LONGEST].start()
        yield first, first + len(text[first:at].rstrip())
        first = at
    stripped = text[first:last].rstrip()
    if stripped:
        yield first, first + len(stripped)
