"""What words say happens in a call: holds, referrals, follow-ups, and what they deny.

The phrases lie in ``callcore/data/cues/<language>.yaml``; of a language without such a file nothing
is said. A wrong "no danger" does harm, a missing one does not: what is in any doubt is left out.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import pairwise
from typing import Any, NamedTuple

import yaml

from callcore import phrases
from callcore.evidence import quote, whole

Segment = Mapping[str, Any]
Evidence = dict[str, Any]

#: Seconds within which an answer follows its question, and a caller takes back what was said.
ANSWER_S = 5.0
#: Seconds by which an answer may overlap its question: times of words are not exact.
OVERLAP_S = 1.0

_SENTENCE_END = re.compile(r"[.?!]+(?=\s|$)")
#: Phrases that only an agent says of the call.
_OF_AGENT = ("referral", "follow_up")


class Found(NamedTuple):
    """A place where a cue is said."""

    segment: Segment
    first: int
    """Index of its first character in the segment's text."""
    last: int
    """Index after its last character."""
    evidence: Evidence


@dataclass(frozen=True, slots=True)
class Denied:
    """What denies a field of ``safety``."""

    said: re.Pattern[str] | None
    """Statements of the caller."""
    asked: re.Pattern[str] | None
    """Questions; a bare "no" denies."""
    unless: re.Pattern[str] | None
    """Words beside it that leave a doubt."""


@dataclass(frozen=True, slots=True)
class Cues:
    """The phrases of one language."""

    version: str
    hold: re.Pattern[str]
    referral: re.Pattern[str]
    follow_up: re.Pattern[str]
    we: re.Pattern[str]
    """What opens a follow-up that an agent must have said."""
    until_time: re.Pattern[str]
    """What may stand between a follow-up and its time."""
    negated: re.Pattern[str]
    """Words before a cue that deny it, or say that it is somebody else's word."""
    reported: re.Pattern[str]
    """Words after a cue that say so."""
    but: re.Pattern[str]
    """Where a new clause begins, to which an earlier "not" does not belong."""
    denied: Mapping[str, Denied]
    unsure: re.Pattern[str]
    """Words before a denial that make it none, beside those of ``negated``."""
    taken_back: re.Pattern[str]
    """Words after a denial that make it none."""
    clause_start: re.Pattern[str]
    """The end of what may stand before a denial."""
    no: re.Pattern[str]
    """The whole of an answer."""

    def find(self, cue: str, segments: Iterable[Segment]) -> list[Found]:
        """Return where ``hold``, ``referral`` or ``follow_up`` is said, in order.

        Referrals and follow-ups are an agent's. Of a segment that may be anybody's only a follow-up
        counts that "we" promise.
        """
        pattern: re.Pattern[str] = getattr(self, cue)
        return [
            Found(segment, *at, quote(segment, *at, source=f"cue:{cue}", version=self.version))
            for segment in in_order(segments)
            for at in _stated(pattern, segment["text"], questions=cue == "hold")
            if cue not in _OF_AGENT or self._is_an_agents(cue, segment, *at)
        ]

    def _is_an_agents(self, cue: str, segment: Segment, first: int, last: int) -> bool:
        text = phrases.plain(segment["text"])
        if not _is_agent(segment):
            ours = cue == "follow_up" and self.we.match(text, first)
            if segment["leg"] == "caller" or not ours:
                return False
        before = self.but.split(_sentence_before(text, first))[-1]
        after = _rest_of_sentence(text[last:])
        return not (self.negated.search(before) or self.reported.search(after))

    def denials(self, field: str, segments: Iterable[Segment]) -> list[Evidence]:
        """Return the words that deny a field of ``safety``: statements, answers to questions.

        Statements are the caller's: where nobody knows whose they are, they deny nothing.
        """
        denied = self.denied.get(field)
        if not denied:
            return []
        ordered = in_order(segments)
        source = f"cue:denied.{field}"
        found: list[Evidence] = []
        for number, segment in enumerate(ordered):
            if segment["leg"] == "caller" and not self._is_taken_back(ordered, number, denied):
                found += [
                    quote(segment, *at, source=source, version=self.version)
                    for at in self._denying(segment["text"], denied)
                ]
        for asked, answer in self._answered(ordered, denied):
            found += [whole(each, source=source, version=self.version) for each in (asked, answer)]
        return found

    def _denying(self, text: str, denied: Denied) -> Iterator[tuple[int, int]]:
        plain = phrases.plain(text)
        said = list(_stated(denied.said, text)) if denied.said else []
        if not said:
            return
        # Once a text: it may say one thing a thousand times.
        doubts = [each.start() for each in denied.unless.finditer(plain)] if denied.unless else []
        taken_back = max((each.start() for each in self.taken_back.finditer(plain)), default=-1)
        for first, last in said:
            doubted = any(not first <= each < last for each in doubts) or taken_back >= last
            if not doubted and self._opens(_sentence_before(plain, first)):
                yield first, last

    def _opens(self, before: str) -> bool:
        """Return whether a clause begins after these words, and they leave it no doubt."""
        unsure = self.negated.search(before) or self.unsure.search(before)
        return not unsure and bool(self.clause_start.search(before))

    def _answered(
        self, ordered: Sequence[Segment], denied: Denied
    ) -> Iterator[tuple[Segment, Segment]]:
        for number, (asked, answer) in enumerate(pairwise(ordered), 1):
            soon = -OVERLAP_S <= answer["start"] - asked["end"] <= ANSWER_S
            another = _speaker(asked) != _speaker(answer)
            of_caller = asked["leg"] != "caller" and not _is_agent(answer)
            denies = self.no.fullmatch(phrases.plain(answer["text"]))
            fits = soon and another and of_caller and denies and self._asks(asked["text"], denied)
            if fits and not self._is_taken_back(ordered, number, denied):
                yield asked, answer

    def _asks(self, text: str, denied: Denied) -> bool:
        """Return whether the last sentence asks: an answer is one to that."""
        plain = phrases.plain(text)
        words = plain.rstrip(" .?!")
        sentence = _sentence_before(words, len(words)) + plain[len(words) :]
        match = denied.asked.search(sentence) if denied.asked else None
        return match is not None and self._opens(sentence[: match.start()])

    def _is_taken_back(self, ordered: Sequence[Segment], number: int, denied: Denied) -> bool:
        """Return whether the speaker goes on with words that leave a doubt."""
        said = ordered[number]
        more = (e for e in ordered[number + 1 :] if _speaker(e) == _speaker(said))
        following = next(more, None)
        if following is None or following["start"] - said["end"] > ANSWER_S:
            return False
        text = phrases.plain(following["text"])
        return any(each and each.search(text) for each in (self.taken_back, denied.unless))


def in_order(segments: Iterable[Segment]) -> list[Segment]:
    """Return the segments as they were said."""
    return sorted(segments, key=lambda each: (each["start"], each["end"], each["segment"]))


def _stated(
    pattern: re.Pattern[str], text: str, *, questions: bool = False
) -> Iterator[tuple[int, int]]:
    """Yield where it is stated; a question states nothing, but may ask somebody to wait."""
    for match in pattern.finditer(phrases.plain(text)):
        if questions or not _rest_of_sentence(text[match.end() :]).endswith("?"):
            yield match.span()


def _rest_of_sentence(text: str) -> str:
    end = _SENTENCE_END.search(text)
    return text[: end.end()] if end else text


def _sentence_before(text: str, first: int) -> str:
    """Return what the sentence of a character has before it."""
    ends = [match.end() for match in _SENTENCE_END.finditer(text, 0, first)]
    return text[ends[-1] if ends else 0 : first]


def _speaker(segment: Segment) -> str:
    return segment.get("speaker") or str(segment["leg"])


def _is_agent(segment: Segment) -> bool:
    leg = str(segment["leg"])
    return leg == "agent" or leg.startswith("agent-")


@cache
def load(language: str | None) -> Cues | None:
    """Return the phrases of a language; None where there are none."""
    code = (language or "").partition("-")[0].lower()
    file = files("callcore").joinpath("data", "cues", f"{code}.yaml")
    if not (code.isalpha() and file.is_file()):
        return None
    told = yaml.safe_load(file.read_text("utf-8"))
    who = told["who"]
    ends = phrases.any_of(told["after_denial"]).pattern
    opens = phrases.any_of(told["before_denial"]).pattern
    between = phrases.any_of(told["until_time"]).pattern
    no = phrases.any_of(told["answers_no"]).pattern

    def listed(of: Mapping[str, list[str]], key: str, then: str = "") -> re.Pattern[str] | None:
        said = [phrase.replace("{who}", who) for phrase in of.get(key, ())]
        return phrases.any_of(said, then) if said else None

    return Cues(
        version=told["version"],
        hold=phrases.any_of(told["hold"]),
        referral=phrases.any_of(told["referral"]),
        follow_up=phrases.any_of(told["follow_up"]),
        we=phrases.any_of(told["we"]),
        until_time=re.compile(rf"\s*(?:{between}\s*)*", re.IGNORECASE),
        negated=phrases.any_of(told["negated"]),
        reported=phrases.any_of(told["reported"]),
        but=phrases.any_of(told["but"]),
        denied={
            field: Denied(
                said=listed(of, "said", rf"\s*(?:$|[,.;!]|{ends})"),
                asked=listed(of, "asked", r"\s*\?+\s*$"),
                unless=listed(of, "unless"),
            )
            for field, of in told["denied"].items()
        },
        unsure=phrases.any_of(told["unsure"]),
        taken_back=phrases.any_of(told["taken_back"]),
        clause_start=re.compile(rf"(?:^|[,;:])\s*(?:{opens}\W*)*$", re.IGNORECASE),
        no=re.compile(rf"\W*(?:{no}\W*)+", re.IGNORECASE),
    )
