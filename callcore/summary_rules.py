"""Why somebody called, how it ended, what is to be done and what stayed open: by rules.

Each rule is a pattern of ``data/summary.yaml``; what it finds is a sentence of the call with its
words. Where no rule finds anything, nothing is claimed.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from callcore.summary_text import Cues, Rule, Sentence, plain

#: Legs that answer for the site: the reason of a call is not theirs.
_AGENT = "agent"
#: Share of the call in which its reason is said, except where somebody says "I'm calling because".
_BEGINNING = 0.6
#: Share of the call after which its outcome can be said.
_MIDDLE = 0.4
#: Share of the call after which a question that nobody answered stays open.
_LATE = 0.5
#: Seconds in which a question is answered.
_ANSWER_S = 15.0
#: Content words that make a sentence worth a claim.
_LEAST_CONTENT = 2
_MOST_ACTIONS = 8
_MOST_QUESTIONS = 5
#: Words with which a sentence goes on with the one before it.
_GOES_ON = ("and ", "because ", "but ", "so ", "it ", "which ")


@dataclass(frozen=True, slots=True)
class Found:
    """A claim: sentences of the call, and the rule that chose them."""

    sentences: tuple[Sentence, ...]
    rule: str
    owner: str | None = None
    """Leg of who is to do it."""
    due: str | None = None
    """The words that say when."""
    point: tuple[int, int] = (0, 0)
    """Where in the text the words are that the rule found."""

    @property
    def text(self) -> str:
        """The words."""
        return " ".join(each.text for each in self.sentences)


def reason(said: Sequence[Sentence], known: Cues) -> Found | None:
    """Return why the call was made, in the words of whoever made it."""
    for number, rule in enumerate(known.reason):
        for place, sentence in enumerate(said):
            explicit = number == 0
            if not explicit and (sentence.leg.startswith(_AGENT) or place > _BEGINNING * len(said)):
                continue
            point = next(_own(sentence, (rule,), known), None)
            if point:
                whole = (sentence, *_rest(said, place))
                return Found(whole, rule.rule, point=point[1].span())
    return None


def _rest(said: Sequence[Sentence], place: int) -> Iterator[Sentence]:
    """Yield the next sentence of the same party where it goes on with the reason."""
    party = said[place].party
    following = next((each for each in said[place + 1 : place + 4] if each.party == party), None)
    if following and plain(following.text).lower().startswith(_GOES_ON) and following.content:
        yield following


def outcome(said: Sequence[Sentence], known: Cues) -> Found | None:
    """Return how the call ended: the last sentence that says so."""
    for place in range(len(said) - 1, -1, -1):
        if place < _MIDDLE * (len(said) - 1) or _is_question(said[place], known):
            continue
        for rule, match in _own(said[place], known.outcome, known):
            if not _is_undone(match, known):
                return Found((said[place],), rule.rule)
    return None


def actions(said: Sequence[Sentence], known: Cues, besides: Sequence[Sentence] = ()) -> list[Found]:
    """Return what somebody is to do, with who and when where the words say so.

    Args:
        said: The call.
        known: What is known of its language.
        besides: Sentences that are claimed as something else: "I need to pay a bill".
    """
    found: list[Found] = []
    parties = list(dict.fromkeys(each.party for each in said))
    for sentence in said:
        text = plain(sentence.text)
        if sentence in besides:
            continue
        if _is_question(sentence, known) or (known.not_actions and known.not_actions.search(text)):
            continue
        offers = known.offers if sentence.leg.startswith(_AGENT) else ()
        promised = next(_own(sentence, (*known.promises, *offers), known), None)
        first = promised or next(_own(sentence, known.requests, known), None)
        if first is None or any(_same(sentence, each) for each in found):
            continue
        rule, match = first
        others = [party for party in parties if party != sentence.party]
        owner = sentence.party if promised else others[0] if len(others) == 1 else None
        due = _due(match, known)
        when = sentence.text[slice(*due)].strip() if due else None
        # A speaker of a mono recording is no leg.
        leg = owner if owner and ":" not in owner and owner != "mixed" else None
        found.append(Found((sentence,), rule.rule, leg, when))
    return found[-_MOST_ACTIONS:]


def open_questions(said: Sequence[Sentence], known: Cues) -> list[Found]:
    """Return questions that were put off, or late in the call not answered at all."""
    found: list[Found] = []
    for place, sentence in enumerate(said):
        if not _is_question(sentence, known) or len(sentence.content) < _LEAST_CONTENT:
            continue
        text = plain(sentence.text)
        if known.not_questions and known.not_questions.search(text):
            continue
        answers = _answers(said, place)
        if any(known.deferrals and known.deferrals.search(plain(a.text)) for a in answers[:2]):
            found.append(Found((sentence,), "rule:summary.question.put-off"))
        elif not answers and place >= _LATE * len(said) and _two_parties(said):
            found.append(Found((sentence,), "rule:summary.question.unanswered"))
    return found[-_MOST_QUESTIONS:]


def _answers(said: Sequence[Sentence], place: int) -> list[Sentence]:
    """Return what others say next, as long as it can be the answer."""
    asked = said[place]
    answers: list[Sentence] = []
    until = asked.end + _ANSWER_S
    for each in said[place + 1 :]:
        if each.start > until:
            break
        if each.party != asked.party:
            answers.append(each)
    return answers


def _two_parties(said: Sequence[Sentence]) -> bool:
    return len({each.party for each in said}) > 1


def _is_question(sentence: Sentence, known: Cues) -> bool:
    text = plain(sentence.text).rstrip(" \"'")
    if text.endswith(("?", "？", "؟")):  # noqa: RUF001
        return True
    if text.endswith((".", "!")) or known.question is None:
        return False
    return bool(known.question.search(text))


def _own(
    sentence: Sentence, rules: Sequence[Rule], known: Cues
) -> Iterator[tuple[Rule, re.Match[str]]]:
    """Yield what rules find in a sentence, except in what it tells of another's words."""
    if len(sentence.content) < _LEAST_CONTENT:
        return
    text = plain(sentence.text)
    for rule in rules:
        for match in rule.pattern.finditer(text):
            if not (known.reported and known.reported.search(text[: match.end()])):
                yield rule, match


def _is_undone(match: re.Match[str], known: Cues) -> bool:
    """Return whether the clause of a match says that it is not so, or not yet."""
    before = match.string[: match.start()]
    if known.clause:
        before = re.split(r"[,;:]|\b(?:and|but)\b", before)[-1]
    return bool(known.undone and known.undone.search(before))


def _due(match: re.Match[str], known: Cues) -> tuple[int, int] | None:
    """Return where it stands until when something is promised: behind its verb, or right before."""
    if known.due is None:
        return None
    text = match.string
    ends = known.due_ends.search(text, match.end()) if known.due_ends else None
    end = ends.start() if ends else len(text)
    for due in known.due.finditer(text, 0, end):
        before, after = text[: due.start()], text[due.end() :]
        leads = not before.strip() and not text[due.end() : match.start()].strip(" ,")
        if due.start() < match.start() and not leads:
            continue
        marked = f"{before}<{due[0].strip()}>{after}"
        if known.not_due is None or not known.not_due.search(marked):
            return due.span()
    return None


def _same(sentence: Sentence, found: Found) -> bool:
    """Return whether a sentence repeats what was found."""
    other = found.sentences[0].content
    shared = len(sentence.content & other)
    return shared >= 0.8 * min(len(sentence.content), len(other))
