"""When the words of a live leg were seen, beside when they were said: pure lists.

A leg's events, in order, make its utterances; an utterance's partials tell when each word of its
final was first shown, and from when on it was called stable until the end. The final words are
laid beside the reference words, of which it is known when they were said.
"""

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher

import jiwer


@dataclass(frozen=True, slots=True)
class SpokenWord:
    """A word of the reference."""

    text: str
    """As it is written; it has letters or digits."""
    start: float
    """Seconds from the start of the leg."""
    end: float
    timed: bool
    """Whether its times are heard; those of the others are put between its neighbours'."""


@dataclass(frozen=True, slots=True)
class TextEvent:
    """``transcript.partial`` or ``transcript.final`` of one leg."""

    at: float
    """Seconds from the start of the leg until it was on the bus."""
    segment: int
    start: float
    """Seconds from the start of the call, as the event says."""
    end: float
    text: str
    stable: int | None
    """Leading words that are stable; None for a final."""
    latency: float | None = None
    """Finals: seconds since the end of speech, as the daemon says."""


@dataclass(slots=True)
class Utterance:
    """What was published of one utterance."""

    segment: int
    partials: list[TextEvent] = field(default_factory=list)
    finals: list[TextEvent] = field(default_factory=list)
    """More than one only where it was doubled."""

    @property
    def words(self) -> list[str]:
        """Words of the final, as it writes them."""
        return self.finals[0].text.split() if self.finals else []

    def shown_at(self) -> list[float]:
        """Return for each word of the final when it was first shown."""
        final = self.finals[0]
        times = [final.at] * len(self.words)
        for partial in reversed(self.partials):
            for at, _ in _found(partial.text.split(), self.words):
                times[at] = partial.at
        return times

    def committed_at(self) -> list[float]:
        """Return for each word of the final since when it was stable without a break."""
        final = self.finals[0]
        times = [final.at] * len(self.words)
        lasting = set(range(len(self.words)))
        for partial in reversed(self.partials):
            pairs = _found(partial.text.split(), self.words)
            lasting &= {at for at, position in pairs if position < (partial.stable or 0)}
            for at in lasting:
                times[at] = partial.at
        return times

    def promised(self) -> tuple[int, int]:
        """Return how many words were called stable, and how many of them the final has not.

        What a final puts before or between them moves them and changes none. Without a final none
        of them is left.
        """
        longest = max(self.partials, key=lambda each: each.stable or 0, default=None)
        if longest is None or not longest.stable:
            return 0, 0
        words = longest.text.split()[: longest.stable]
        return len(words), len(words) - len(_found(words, self.words))


def token(word: str) -> str:
    """Return what makes two words alike: letters and digits, lower case."""
    return re.sub(r"[\W_]+", "", word.casefold())


def words_of(text: str) -> list[str]:
    """Return the words of a text that have letters or digits."""
    return [word for word in text.split() if token(word)]


def utterances(events: Iterable[TextEvent]) -> list[Utterance]:
    """Return the utterances of one leg in their order."""
    found: dict[int, Utterance] = {}
    for event in events:
        utterance = found.setdefault(event.segment, Utterance(event.segment))
        (utterance.finals if event.stable is None else utterance.partials).append(event)
    return [found[segment] for segment in sorted(found)]


def alike(reference: Sequence[str], heard: Sequence[str]) -> list[tuple[int, int]]:
    """Return the positions of the words that both have, by the fewest errors.

    Args:
        reference: Tokens.
        heard: Tokens.
    """
    if not reference or not heard:
        return []
    pairs: list[tuple[int, int]] = []
    for chunk in jiwer.process_words(" ".join(reference), " ".join(heard)).alignments[0]:
        if chunk.type == "equal":
            ours = range(chunk.ref_start_idx, chunk.ref_end_idx)
            pairs += zip(ours, range(chunk.hyp_start_idx, chunk.hyp_end_idx), strict=True)
    return pairs


@dataclass(frozen=True, slots=True)
class SeenWord:
    """A word that was said and heard: when it was seen, in seconds after it was said."""

    shown: float
    committed: float
    final: float
    ends_final: bool
    """Whether the final ends with it."""


def seen_words(reference: Sequence[SpokenWord], heard: Sequence[Utterance]) -> Iterator[SeenWord]:
    """Yield the words of the reference that the finals have and whose times are known."""
    written: list[tuple[str, float, float, float, bool]] = []
    for utterance in heard:
        if not utterance.finals:
            continue
        shown, committed = utterance.shown_at(), utterance.committed_at()
        words = [(i, token(word)) for i, word in enumerate(utterance.words)]
        spoken = [(i, word) for i, word in words if word]
        final_at = utterance.finals[0].at
        for i, word in spoken:
            written.append((word, shown[i], committed[i], final_at, i == spoken[-1][0]))
    pairs = alike([token(each.text) for each in reference], [each[0] for each in written])
    for ours, theirs in pairs:
        said = reference[ours]
        if said.timed:
            _, shown_at, committed_at, final_at, ends = written[theirs]
            times = (shown_at - said.end, committed_at - said.end, final_at - said.end)
            yield SeenWord(*times, ends_final=ends)


def lost_and_doubled(
    expected: Sequence[tuple[float, float]], heard: Sequence[Utterance]
) -> tuple[int, int]:
    """Return how many utterances have no final, and how many finals say what others say too.

    Args:
        expected: Start and end of the utterances that have words.
        heard: What was published of the leg.
    """
    spans = sorted((final.start, final.end) for each in heard for final in each.finals)
    doubled = sum(_overlap(one, other) for one, other in itertools.pairwise(spans))
    lost = 0
    for span in sorted(expected):
        # A final answers for one utterance: one that is over two has lost the second's words.
        match = next((other for other in spans if _overlap(span, other)), None)
        if match is None:
            lost += 1
        else:
            spans.remove(match)
    return lost, doubled


def _overlap(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Return whether two spans share half of the shorter one."""
    shared = min(one[1], other[1]) - max(one[0], other[0])
    return shared > 0.5 * min(one[1] - one[0], other[1] - other[0])


def _found(partial: Sequence[str], final: Sequence[str]) -> list[tuple[int, int]]:
    """Return (position in the final, position in the partial) of the words both have."""
    ours, theirs = [token(word) for word in final], [token(word) for word in partial]
    blocks = SequenceMatcher(None, ours, theirs, autojunk=False).get_matching_blocks()
    return [(block.a + i, block.b + i) for block in blocks for i in range(block.size)]
