"""Words, sentences and capitals of a segment's text."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from callcore.entity_rules.lexicon import Lexicon, known_names, known_places

_WORD = re.compile(r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*")
#: Characters of the longest sentence: what is looked for in one is never further apart.
_LONGEST = 600
#: Characters before a word in which an introduction is looked for.
_BEFORE = 80
_POSSESSIVE = re.compile(r"['\u2019]s$")
#: A run of marks is tried once, from its first one, so that long runs take no longer than others.
_SENTENCE_END = re.compile(
    r"(?<![.?!…])(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bDr)[.?!…]++[\"'”\u2019)]*+(?=\s|$)"
)
#: Capitals that say nothing: the pronoun, and what begins a sentence.
_PRONOUN = re.compile(r"I(?:['\u2019]\w+)?$")
#: Words that may stand inside a name of capitalised words.
_INSIDE = frozenset({"es", "of", "la", "wa", "ya", "al", "el", "bin", "binti", "de"})


@dataclass(frozen=True, slots=True)
class Word:
    """A word of letters."""

    text: str
    """Without a possessive ending."""
    start: int
    end: int
    initial: bool
    """Whether it begins a sentence."""

    @property
    def key(self) -> str:
        """The word in small letters."""
        return self.text.lower().replace("\u2019", "'")

    @property
    def capital(self) -> bool:
        """Whether it begins with a capital and is no acronym."""
        return self.text[0].isupper() and not (len(self.text) > 1 and self.text.isupper())


@dataclass(frozen=True, slots=True)
class Phrase:
    """One or several words in a row that may be a name."""

    start: int
    end: int
    words: tuple[Word, ...]

    @property
    def key(self) -> str:
        """The words in small letters with single spaces."""
        return " ".join(word.key for word in self.words)

    @property
    def initial(self) -> bool:
        """Whether it begins a sentence."""
        return self.words[0].initial


def sentences(text: str) -> Iterator[tuple[int, int]]:
    """Yield start and end of each sentence; one without an end is cut at ``_LONGEST``."""
    start = 0
    for end in (*(match.end() for match in _SENTENCE_END.finditer(text)), len(text)):
        while end - start > _LONGEST:
            cut = max(text.rfind(" ", start, start + _LONGEST), start + _LONGEST // 2)
            yield start, cut
            start = cut
        if text[start:end].strip():
            yield start, end
        start = end


def words(text: str) -> list[Word]:
    """Return the words of letters, without possessive endings."""
    begins = set()
    for start, end in sentences(text):
        first = _WORD.search(text, start, end)
        if first:
            begins.add(first.start())
    found = []
    for match in _WORD.finditer(text):
        bare = _POSSESSIVE.sub("", match[0])
        initial = match.start() in begins
        found.append(Word(bare, match.start(), match.start() + len(bare), initial))
    return found


def is_uncased(text: str) -> bool:
    """Whether a text has no capitals that would show its names."""
    found = words(text)
    return bool(found) and not any(
        word.text[0].isupper() and not _PRONOUN.match(word.text) for word in found
    )


def phrases(text: str, lexicon: Lexicon) -> list[Phrase]:
    """Return the runs of words that may be names: capitalised, or known where there are none.

    In a text without capitals a run is one of known names and places, or what follows an
    introduction (``my name is``).
    """
    found = words(text)
    if is_uncased(text):
        return _known_runs(text, found, lexicon)
    runs: list[list[Word]] = []
    for word in found:
        joined = bool(runs) and _joined(text, runs[-1][-1], word)
        letter = len(word.text) == 1 and word.text.isupper() and word.text != "I"
        if joined and letter:  # "Buru Buru B"
            runs[-1].append(word)
        elif (
            not word.capital
            or word.key in lexicon.not_names
            or (joined and word.key in lexicon.kinds)
        ):
            continue
        elif joined:
            runs[-1].append(word)
        else:
            runs.append([word])
    return [Phrase(run[0].start, run[-1].end, tuple(run)) for run in runs]


def _joined(text: str, before: Word, after: Word) -> bool:
    """Whether two capitalised words belong together: ``Dar es Salaam``, ``Mary Jones``."""
    between = text[before.end : after.start]
    return not between.strip() or between.strip() in _INSIDE


def _known_runs(text: str, found: list[Word], lexicon: Lexicon) -> list[Phrase]:
    introduced = lexicon.introduces
    by_name = False  # whether the open run was introduced: then its next word is a family name
    runs: list[list[Word]] = []
    open_run = False
    index = 0
    while index < len(found):
        place = _longest_place(text, found, index)
        if place:
            runs.append(place)
            index += len(place)
            open_run = False
            continue
        word = found[index]
        if _lived_in(text, word, lexicon):
            runs.append([word])
            index += 1
            open_run = False
            continue
        plain = word.key in lexicon.not_names_uncased or len(word.key) < 3
        follows = open_run and not text[runs[-1][-1].end : word.start].strip()
        known = word.key in known_names()
        before = text[max(0, word.start - _BEFORE) : word.start]
        if not plain and follows and (known or (by_name and len(runs[-1]) == 1)):
            runs[-1].append(word)
        elif not plain and (known or introduced.search(before)):
            by_name = bool(introduced.search(before))
            runs.append([word])
            open_run = True
        else:
            open_run = False
        index += 1
    return [Phrase(run[0].start, run[-1].end, tuple(run)) for run in runs]


def _lived_in(text: str, word: Word, lexicon: Lexicon) -> bool:
    """Whether somebody says to live there: "i live in kibera", wherever no list knows it."""
    return (
        len(word.key) > 3
        and word.key not in lexicon.not_names_uncased
        and word.key not in lexicon.not_places
        and lexicon.lives.search(text[max(0, word.start - _BEFORE) : word.start]) is not None
        and lexicon.after_lives.match(text, word.end) is not None
    )


def _longest_place(text: str, found: list[Word], index: int) -> list[Word]:
    """Return the words of a known place of several words that begins here, else none."""
    for length in (4, 3, 2):
        run = found[index : index + length]
        if len(run) == length and " ".join(word.key for word in run) in known_places():
            return run
    word = found[index]
    single = word.key in known_places() and word.key not in known_names() and len(word.key) > 3
    return [word] if single else []


def cased(text: str, lexicon: Lexicon | None) -> str:
    """Return a text of the same length for a model that goes by capitals.

    What may be a name in a text without capitals gets them; other texts stay as they are.
    """
    if lexicon is None or not is_uncased(text):
        return text
    letters = list(text)
    for phrase in phrases(text, lexicon):
        for word in phrase.words:
            letters[word.start] = letters[word.start].upper()
    return "".join(letters)
