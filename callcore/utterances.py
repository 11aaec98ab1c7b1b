"""Words of one leg, regrouped into utterances as people read them.

A recogniser cuts its text where its window ends or where its own silence filter joined two
stretches, so one of its segments may hold two turns that lie seconds apart, or half a sentence.
Pauses between words tell better where somebody stopped.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

from callcore.results import Word

#: A pause after which somebody speaks anew, in seconds.
PAUSE_S = 0.8
#: A pause that ends an utterance after the end of a sentence.
SENTENCE_PAUSE_S = 0.3
#: Longest utterance; a longer one is cut at its best place.
LONGEST_S = 15.0

_SENTENCE_ENDS = (".", "?", "!", "…", "。", "？", "！", "؟", "।")  # noqa: RUF001
#: Languages that Whisper writes without spaces between words.
UNSPACED = frozenset({"ja", "lo", "my", "th", "yue", "zh"})


def regroup(words: Iterable[Word]) -> Iterator[tuple[Word, ...]]:
    """Yield the words in utterances.

    Args:
        words: Of one leg, ordered by start.

    Returns:
        Every word once, in order; no utterance is empty.
    """
    current: list[Word] = []
    for word in words:
        if current and _ends(current[-1], word):
            yield from _cut(current)
            current = []
        current.append(word)
    if current:
        yield from _cut(current)


def text_of(words: Sequence[Word], language: str | None) -> str:
    """Return the words as running text."""
    return ("" if language in UNSPACED else " ").join(word.w for word in words)


def _ends(last: Word, following: Word) -> bool:
    pause = following.s - last.e
    return pause >= PAUSE_S or (pause >= SENTENCE_PAUSE_S and last.w.endswith(_SENTENCE_ENDS))


def _cut(words: list[Word]) -> Iterator[tuple[Word, ...]]:
    """Yield an utterance, in parts if it is too long."""
    while words[-1].e - words[0].s > LONGEST_S and len(words) > 1:
        at = _best_cut(words)
        yield tuple(words[:at])
        words = words[at:]
    yield tuple(words)


def _best_cut(words: list[Word]) -> int:
    """Return where to cut, within the first ``LONGEST_S``: a sentence's end, else a pause."""
    candidates = [
        (last.w.endswith(_SENTENCE_ENDS), following.s - last.e, at)
        for at, (last, following) in enumerate(pairwise(words), 1)
        if last.e - words[0].s <= LONGEST_S
    ]
    return max(candidates)[2] if candidates else 1
