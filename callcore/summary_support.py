"""Whether a transcript bears out what a model says about it.

A sentence is supported where sentences of the call say the like (their vectors are alike and they
share its content words), every number and name of it was spoken, and it does not turn round what
was said (``summary_meaning``). Not every wrong turn is caught: the evidence beside each sentence is
for people to look at.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from callcore.engines import Floats
from callcore.summary_meaning import Meaning
from callcore.summary_text import Cues, Sentence, content_of, plain, words_of

#: Cosine of the sentence that is most alike.
_ALIKE = 0.4
#: Share of content words that the sentences most alike must have.
_COVERED = 0.6
#: Sentences that are looked at, and that are given as evidence.
_NEAREST = 4
_MOST_EVIDENCE = 3
#: Letters of a word that must agree in languages whose endings we do not know.
_STEM = 5
#: Digits that are looked for within what was spelt out, such as a telephone number.
_SPELT = 3

#: Endings of English words: "scheduled", "scheduling"; "transfer", "transferred".
_ENDING = re.compile(r"(?<=\w{3})(?:ations?|ions?|ings?|ers?|ed|es|ly|e|s)$")
_DOUBLED = re.compile(r"([b-df-hj-np-tv-z])\1$")

_NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")
_NAME = re.compile(r"\b[^\W\d_a-z][^\W_]*(?:['-][^\W_]+)*")
#: What is counted in time: two weeks are not two years.
_UNIT = re.compile(r"\b(second|minute|hour|day|night|week|month|year)s?\b", re.I)
_SENTENCE_START = re.compile(r"(?:^|[.!?:\"]\s+)\W*$")
#: Verbs after which the first word of a sentence is somebody's name.
_DOES = re.compile(r"\s+(?:(?:is|was|has|had|will|said|and|from|at)\b|[a-z]+(?:ed|s)\b|[A-Z])|'s\b")

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_VALUES = {
    **{word: value for value, word in enumerate(_ONES.split())},
    **{word: value * 10 for value, word in enumerate(_TENS.split(), 2)},
    "oh": 0,
}
_SCALES = {"hundred": 100, "thousand": 1000, "million": 1_000_000}


@dataclass(frozen=True, slots=True)
class Support:
    """Sentences that bear out a claim; none where it is not supported."""

    sentences: tuple[Sentence, ...]
    score: float
    """0 to 1: how alike the best of them is, or the share of words where no vectors help."""


class Transcript:
    """A call that claims are held against.

    Args:
        said: Its sentences.
        vectors: One of length 1 for each sentence; None where no engine knows the language.
        language: Of the call.
        known: What is known of that language.
    """

    def __init__(
        self,
        said: Sequence[Sentence],
        vectors: Floats | None,
        language: str | None,
        known: Cues,
    ) -> None:
        self._said = said
        self._vectors = vectors
        self._language = language
        self._known = known
        self._stems = [_stems(words_of(each.text, language), language) for each in said]
        self._words = {word for each in said for word in words_of(each.text)}
        self._all_stems = _stems(self._words, language)
        self._numbers = {number for each in said for number in numbers_of(each.text)}
        self._digits = [_digits(each.text) for each in said]
        self._meaning = Meaning(said, known, lambda words: _stems(words, language))

    def support(self, text: str, vector: Floats | None) -> Support:
        """Return what bears out a claim.

        Args:
            text: The claim.
            vector: Its vector, from the engine of the sentences' vectors.
        """
        nothing = Support((), 0.0)
        content = {
            each.removesuffix("'s") for each in content_of(text, self._language, self._known)
        }
        names = set(self._names(plain(text)))
        # Numbers are looked for by their value; a name that was said proves nothing of the rest.
        words = {each for each in content - self._known.telling if not is_number(each)}
        words = words - names or words
        if not words or not self._numbers_were_said(text):
            return nothing
        if not all(self._was_said(name) for name in names):
            return nothing
        wanted = _stems(words, self._language)
        shares = np.array([len(wanted & stems) / len(wanted) for stems in self._stems], np.float32)
        alike = shares
        if self._vectors is not None and vector is not None:
            alike = (self._vectors @ vector).astype(np.float32)
            if float(alike.max()) < _ALIKE:
                return nothing
        order = np.argsort(-(alike + shares), kind="stable")
        near = [int(row) for row in order[:_NEAREST]]
        covered = wanted & set[str]().union(*(self._stems[row] for row in near))
        if len(covered) < _COVERED * len(wanted) or not self._meaning.fits(text):
            return nothing
        used = [row for row in near if shares[row] > 0][:_MOST_EVIDENCE]
        sentences = tuple(self._said[row] for row in sorted(used))
        return Support(sentences, float(max(alike[row] for row in used)) if used else 0.0)

    def has_words(self, text: str) -> bool:
        """Return whether every word of a text was spoken somewhere."""
        numbers = numbers_of(text)
        return all(
            word in self._words or word in numbers for word in words_of(text)
        ) and self._numbers_were_said(text)

    def _numbers_were_said(self, text: str) -> bool:
        units = {unit.lower() for unit in _UNIT.findall(text)}
        if not all(unit in self._words or f"{unit}s" in self._words for unit in units):
            return False
        return all(
            number in self._numbers
            or (
                len(number) >= _SPELT
                and any(number.replace(".", "") in digits for digits in self._digits)
            )
            for number in numbers_of(text)
        )

    def _names(self, text: str) -> Iterator[str]:
        """Yield the words of a text that are names by their capitals, in lower case."""
        for match in _NAME.finditer(text):
            word = match[0].lower().removesuffix("'s")
            if word in self._known.stopwords or word in self._known.telling or word == "i":
                continue
            starts = _SENTENCE_START.search(text[: match.start()])
            # At the beginning of a sentence any word is capital.
            if not starts or _DOES.match(text[match.end() :]):
                yield from re.split(r"[-']", word)

    def _was_said(self, word: str) -> bool:
        return word in self._words or _stem(word, self._language) in self._all_stems


def is_number(word: str) -> bool:
    """Return whether a word in lower case is a figure or an English number word."""
    return word in _VALUES or word in _SCALES or word.isdigit()


def numbers_of(text: str) -> set[str]:
    """Return the numbers of a text in digits: figures, and English number words.

    "One" alone is no number: it is said of everything.
    """
    found: set[str] = set()
    for match in _NUMBER.finditer(text):
        found.add(_canonical(match[0]))
        found.update(part for part in re.split(r"[.,:]", match[0]) if ":" in match[0])
    run: list[str] = []
    for word in [*re.split(r"[\s\-]+", re.sub(r"[^\w\s\-]", " ", text.lower())), ""]:
        if word in _VALUES or word in _SCALES or (run and word == "and"):
            run.append(word)
            continue
        if run:
            found |= _values(run)
            run = []
    return found - {"one"}


def _canonical(figure: str) -> str:
    """Return a figure without thousands' commas and trailing noughts: 1,250.50 is 1250.5."""
    figure = re.sub(r",(?=\d{3}\b)", "", figure).replace(",", ".")
    if re.fullmatch(r"\d+\.\d+", figure):
        figure = figure.rstrip("0").rstrip(".")
    return figure


def _values(run: Sequence[str]) -> set[str]:
    """Return the values of number words in a row; spelt digits also as one string."""
    words = [word for word in run if word != "and"]
    if len(words) == 1 and words[0] in ("one", "oh"):
        return set()
    if len(words) > 1 and all(_VALUES.get(word, 99) < 10 for word in words):
        return {"".join(str(_VALUES[word]) for word in words)} | {
            str(_VALUES[word]) for word in words
        }
    values: set[str] = set()
    total = part = 0
    last = 0
    for word in words:
        if word in _SCALES:
            scale = _SCALES[word]
            if scale == 100:
                part = max(part, 1) * 100
            else:
                total, part = total + max(part, 1) * scale, 0
            last = scale
            continue
        value = _VALUES[word]
        fits = last == 0 or last >= 100 or (20 <= last < 100 and 0 < value < 10)
        if not fits:
            values.add(str(total + part))
            total = part = 0
        part += value
        last = value
    return values | {str(total + part)}


def _digits(text: str) -> str:
    """Return all digits that are said in a sentence, in a row."""
    words = re.split(r"[\s\-]+", re.sub(r"[^\w\s\-]", " ", text.lower()))
    return "".join(
        str(_VALUES[word]) if word in _VALUES else re.sub(r"\D", "", word) for word in words
    )


def _stem(word: str, language: str | None) -> str:
    if language != "en":
        return word[:_STEM]
    return _DOUBLED.sub(r"\1", _ENDING.sub("", word))


def _stems(words: Iterable[str], language: str | None) -> set[str]:
    return {_stem(word, language) for word in words}
