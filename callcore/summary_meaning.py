"""Whether a claim turns the words of a call round: into their denial, or with the parts swapped.

Both are looked at clause by clause. "He did not hit me" bears out no claim that he hit somebody,
and "my husband hit me" none that the caller hit her husband. It goes by words: a denial in other
words ("he kept his hands off me") is not seen, and people behind pronouns and names fit everybody.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from callcore.summary_text import Cues, Sentence, plain, words_of

#: First words of an answer to a question.
_YES = re.compile(r"^\W*(?:yes|yeah|yep|yup|right|correct|i am|i did|he did|she did)\b", re.I)
_NO = re.compile(r"^\W*(?:no|nope|never|not)\b", re.I)
_PASSIVE = re.compile(r"\b(?:was|were|been|being|got|gets?|is|are)\b.*\bby\b", re.I)
#: Who speaks and who is spoken to, where the legs tell.
_SPEAKER = frozenset({"i", "me", "myself", "i'm", "i've", "i'll", "i'd", "we", "us", "we'll"})
_HEARER = frozenset({"you", "you're", "you've", "you'll", "you'd"})
_FEMALE, _MALE = frozenset({"she", "her", "she's"}), frozenset({"he", "him", "he's"})
_ANYBODY = frozenset({"they", "them", "who", "somebody", "someone"})
_OTHER = {"caller": "agent", "agent": "caller"}

#: Returns the stems of words.
Stems = Callable[[Iterable[str]], set[str]]


@dataclass(frozen=True, slots=True)
class _Clause:
    text: str
    words: tuple[str, ...]
    stems: frozenset[str]
    denies: bool | None
    """None: a question that nobody answers with yes or no."""
    leg: str | None


class Meaning:
    """The clauses of a call.

    Args:
        said: Its sentences.
        known: What is known of its language; where that is nothing, every claim fits.
        stems: Makes words comparable.
    """

    def __init__(self, said: Sequence[Sentence], known: Cues, stems: Stems) -> None:
        self._known = known
        self._stems = stems
        self._clauses = [
            clause for row in range(len(said)) for clause in self._clauses_of_call(said, row)
        ]

    def fits(self, claim: str) -> bool:
        """Return whether no clause of a claim is the opposite of what was said."""
        return all(
            self._denied_alike(each) and self._same_parts(each) for each in self._split(claim, None)
        )

    def _clauses_of_call(self, said: Sequence[Sentence], row: int) -> Iterator[_Clause]:
        sentence = said[row]
        leg = sentence.leg if sentence.leg in _OTHER else None
        answer: bool | None = None
        is_question = plain(sentence.text).rstrip().endswith("?")
        if is_question and row + 1 < len(said) and said[row + 1].party != sentence.party:
            text = said[row + 1].text
            answer = True if _NO.match(text) else False if _YES.match(text) else None
        for each in self._split(sentence.text, leg):
            denies = answer if is_question else each.denies
            yield _Clause(each.text, each.words, each.stems, denies, leg)

    def _split(self, text: str, leg: str | None) -> Iterator[_Clause]:
        text = plain(text).lower()
        parts = self._known.clause.split(text) if self._known.clause else [text]
        for part in parts:
            words = tuple(words_of(part))
            content = {each.removesuffix("'s") for each in words} - self._known.stopwords
            if not content:
                continue
            denies = self._known.negations
            rest = self._known.not_denials.sub(" ", part) if self._known.not_denials else part
            is_denied = bool(denies and denies.search(rest))
            yield _Clause(part, words, frozenset(self._stems(content)), is_denied, leg)

    # ---- denials

    def _denied_alike(self, claim: _Clause) -> bool:
        """Return whether what is most like a claim denies where the claim does, and only there."""
        if self._known.negations is None:
            return True
        known = self._known
        idle = known.stopwords | (known.telling - known.calling)
        words = [each.removesuffix("'s") for each in claim.words]
        words = [each for each in words if each not in idle]
        wanted = self._stems(each for each in words if each not in known.people)
        wanted = wanted or self._stems(words)
        if not wanted:
            return True
        best = {True: 0, False: 0}
        for each in self._clauses:
            if each.denies is not None:
                best[each.denies] = max(best[each.denies], len(wanted & each.stems))
        if claim.denies:
            return best[True] > 0 and best[True] >= best[False]
        # A claim that puts several sentences together shares one word with each of them.
        return best[True] == 0 or best[False] > best[True] or 1 < best[False] == best[True]

    # ---- who did it to whom

    def _same_parts(self, claim: _Clause) -> bool:
        people = self._known.people
        places = [place for place, word in enumerate(claim.words) if word in people]
        for first, second in pairwise(places):
            doer, other = claim.words[first], claim.words[second]
            between = claim.words[first + 1 : second]
            if _PASSIVE.search(" ".join(between)):
                doer, other = other, doer
            verbs = self._stems(
                word for word in between if word not in self._known.stopwords | self._known.telling
            )
            if doer != other and not all(self._did(doer, verb, other) for verb in verbs):
                return False
        return True

    def _did(self, doer: str, verb: str, other: str) -> bool:
        """Return whether somebody can have done it; also where nobody speaks of it."""
        seen = [each for each in self._clauses if verb in each.stems]
        return not seen or any(
            self._is(subject, doer) and self._is(object_, other)
            for each in seen
            for subject, object_ in self._parts(each, verb)
        )

    def _parts(self, clause: _Clause, verb: str) -> Iterator[tuple[str | None, str | None]]:
        """Yield who does it and to whom, each None where the clause does not say."""
        who = [self._who(word, clause.leg) for word in clause.words]
        for place, word in enumerate(clause.words):
            if verb not in self._stems([word]):
                continue
            subject = next((each for each in reversed(who[:place]) if each), None)
            object_ = next((each for each in who[place + 1 :] if each), None)
            around = " ".join(clause.words[max(place - 3, 0) :])
            passive = bool(_PASSIVE.search(around))
            yield (object_, subject) if passive else (subject, object_)

    def _who(self, word: str, leg: str | None) -> str | None:
        if word in self._known.people:
            return word
        if word in _SPEAKER:
            return leg or "they"
        if word in _HEARER:
            return _OTHER.get(leg or "", "they")
        return word if word in _FEMALE | _MALE | _ANYBODY else None

    def _is(self, heard: str | None, claimed: str) -> bool:
        if heard is None or heard in _ANYBODY:
            return True
        if heard in _FEMALE:
            return claimed not in self._known.males
        if heard in _MALE:
            return claimed not in self._known.females
        return heard == claimed
