"""Who said which word of a recording that holds both parties in one channel.

In: words with times, and vectors of the voice in short windows over them (a speaker encoder's).
Out: a speaker for each word, or the answer that there is one voice only. Windows are clustered in
two; then words are given to the two voices so that speakers change rarely, and rather at a pause or
after a sentence; what that yields tells the voices more purely, and so on, a few times.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from callcore.results import Word

Floats = npt.NDArray[np.float32]

#: Length of a window and steps between windows, in seconds. Longer ones know the voice better, but
#: reach over the change from one speaker to the other.
WINDOW_S, STEP_S = 1.0, 0.25
#: Shortest stretch of speech whose voice is worth asking for.
_LEAST_S = 0.3
#: Windows of at least so much speech tell what the voices are.
_TELLING_S = 0.9
#: A pause that ends a stretch of speech: no window reaches over it.
_PAUSE_S = 0.4

#: Weight of a difference of cosines for a word of 0.3 s, in log odds.
_SHARPNESS = 40.0
#: Windows count for a word by how near their middles are (s).
_NEARNESS_S = 0.25
#: What a change of the speaker costs in log odds: within speech, less per second of pause, less
#: after a sentence, and at least.
_CHANGE, _CHANGE_PER_S, _AFTER_SENTENCE, _LEAST_CHANGE = 3.0, 3.0, 1.5, 0.5
_SENTENCE_ENDS = (".", "?", "!", "…")
_ROUNDS = 5

#: Cosine of two voices below which they are two people, by the seconds that the one who said
#: less spoke: halves of one person's speech are the less alike the shorter they are. Chosen on 100
#: pieces of one speaker and 180 of two (``docs/measurements.md``).
_SPOKEN_S = (0.8, 1.5, 3.0, 5.0, 10.0)
_TWO_BELOW = (0.66, 0.74, 0.79, 0.86, 0.875)


def windows(words: Sequence[Word]) -> list[tuple[float, float]]:
    """Return where to listen for voices: start and end in seconds, ordered.

    Args:
        words: Ordered by start.
    """
    stretches: list[list[float]] = []
    for word in words:
        if stretches and word.s - stretches[-1][1] < _PAUSE_S:
            stretches[-1][1] = max(stretches[-1][1], word.e)
        else:
            stretches.append([word.s, word.e])
    found: list[tuple[float, float]] = []
    for start, end in stretches:
        if end - start < _LEAST_S:
            continue
        last = max(start, end - WINDOW_S)
        num_steps = int((last - start) / STEP_S)
        found += [
            (start + step * STEP_S, min(end, start + step * STEP_S + WINDOW_S))
            for step in range(num_steps + 1)
        ]
        if last - (start + num_steps * STEP_S) > STEP_S / 4:
            found.append((last, end))
    return found


def speakers(
    words: Sequence[Word], spans: Sequence[tuple[float, float]], vectors: Floats
) -> list[str] | None:
    """Return ``A`` or ``B`` for each word, ``A`` who speaks first; None for a single voice.

    Args:
        words: Of one recording, ordered by start.
        spans: Windows in seconds, ordered by start.
        vectors: What the encoder made of each, L2-normalised, shape (len(spans), d).
    """
    if not words or len(spans) < 4:
        return None
    heard = _Heard(words, spans, vectors)
    # What one start leads to may be a bad place: the surest of all is believed.
    splits = [heard.settled(centres) for centres in _starts(vectors[heard.telling])]
    surest = max((each for each in splits if each), key=lambda each: each.sureness, default=None)
    if surest is None or surest.sureness < 0.0:
        return None
    labels = surest.labels
    return ["A" if label == labels[0] else "B" for label in labels]


@dataclass(frozen=True, slots=True)
class _Split:
    """The words given to two voices."""

    labels: npt.NDArray[np.int64]
    """Shape (number of words,), 0 or 1."""
    sureness: float
    """How much less alike the voices are than two halves of one might be: a cosine."""


class _Heard:
    """Words and windows of one recording, and which belong together."""

    def __init__(
        self, words: Sequence[Word], spans: Sequence[tuple[float, float]], vectors: Floats
    ) -> None:
        self.starts = np.array([word.s for word in words])
        self.ends = np.array([max(word.s, word.e) for word in words])
        self.lengths_s = self.ends - self.starts
        self.vectors = vectors
        self.spans = np.array(spans)
        self.telling = self.spans[:, 1] - self.spans[:, 0] >= _TELLING_S
        self.middles = self.spans.mean(axis=1)
        self.changes = np.array([_change_cost(last, word) for last, word in pairwise(words)])

    def settled(self, voices: Floats) -> _Split | None:
        """Return what these voices lead to, round by round; None if one of them gets lost."""
        labels = self.labels(voices)
        for _ in range(_ROUNDS):
            found = self.voices(labels)
            if found is None:
                return None
            voices = found
            before, labels = labels, self.labels(voices)
            if np.array_equal(before, labels):
                break
        spoken_s = min(float(self.lengths_s[labels == voice].sum()) for voice in (0, 1))
        if spoken_s < _SPOKEN_S[0]:
            return None
        two_below = float(np.interp(spoken_s, _SPOKEN_S, _TWO_BELOW))
        return _Split(labels, two_below - float(voices[0] @ voices[1]))

    def labels(self, voices: Floats) -> npt.NDArray[np.int64]:
        """Return the likeliest voice of each word, 0 or 1, with few changes (Viterbi)."""
        odds = self._odds(voices)
        best = np.zeros((len(odds), 2))
        came = np.zeros((len(odds), 2), np.int64)
        for_each = np.stack([odds, -odds], axis=1) / 2
        best[0] = for_each[0]
        for at in range(1, len(odds)):
            stayed = best[at - 1]
            changed = stayed[::-1] - self.changes[at - 1]
            came[at] = np.where(stayed >= changed, (0, 1), (1, 0))
            best[at] = np.maximum(stayed, changed) + for_each[at]
        labels = np.zeros(len(odds), np.int64)
        labels[-1] = best[-1].argmax()
        for at in range(len(odds) - 1, 0, -1):
            labels[at - 1] = came[at, labels[at]]
        return labels

    def _odds(self, voices: Floats) -> npt.NDArray[np.float64]:
        """Return for each word how much rather it is the first voice, in log odds."""
        nearer = (self.vectors @ (voices[0] - voices[1])).astype(np.float64)
        centres = (self.starts + self.ends) / 2
        first = np.searchsorted(self.spans[:, 0], centres - WINDOW_S - STEP_S)
        last = np.searchsorted(self.spans[:, 0], centres, side="right")
        odds = np.zeros(len(centres))
        for at, centre in enumerate(centres):
            near = slice(first[at], last[at])
            weights = np.exp(-0.5 * ((self.middles[near] - centre) / _NEARNESS_S) ** 2)
            weights *= self.spans[near, 1] >= centre
            if (total := float(weights.sum())) > 1e-9:
                odds[at] = float(weights @ nearer[near]) / total
        # A long word is more evidence, up to a point.
        result: npt.NDArray[np.float64] = (
            _SHARPNESS * odds * (np.minimum(self.lengths_s, 0.6) + 0.05) / 0.3
        )
        return result

    def voices(self, labels: npt.NDArray[np.int64]) -> Floats | None:
        """Return the mean of the windows that hold words of one voice only, None if too few."""
        found = []
        owners = self._owners(labels)
        for voice in (0, 1):
            own = self.vectors[self.telling & (owners == voice)]
            if len(own) < 2:
                return None
            found.append(own.mean(axis=0))
        return _normalised(np.stack(found))

    def _owners(self, labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return for each window the voice of all its words, -1 where there are two or none."""
        owners = np.full(len(self.spans), -1, np.int64)
        first = np.searchsorted(self.ends, self.spans[:, 0] + 0.02)
        last = np.searchsorted(self.starts, self.spans[:, 1] - 0.02)
        for at in range(len(owners)):
            within = labels[first[at] : last[at]]
            if len(within) and (within == within[0]).all():
                owners[at] = within[0]
        return owners


def _change_cost(last: Word, word: Word) -> float:
    cost = _CHANGE - _CHANGE_PER_S * min(max(word.s - last.e, 0.0), 1.0)
    if last.w.endswith(_SENTENCE_ENDS):
        cost -= _AFTER_SENTENCE
    return max(cost, _LEAST_CHANGE)


def _starts(vectors: Floats) -> Iterator[Floats]:
    """Yield centres of clusterings in two, shape (2, d); none for too few vectors.

    Spherical 2-means, begun on both sides of the widest direction at four places, so that also a
    voice that is heard rarely is found.
    """
    if len(vectors) < 4:
        return
    centred = vectors - vectors.mean(axis=0)
    widest = np.linalg.eigh(centred.T @ centred)[1][:, -1]
    along = centred @ widest
    for edge in (0.0, *np.percentile(along, (20, 50, 80))):
        sides = along > edge
        if sides.all() or not sides.any():
            continue
        centres = _centres(vectors, sides)
        for _ in range(20):
            sides = vectors @ centres[0] > vectors @ centres[1]
            if sides.all() or not sides.any():
                break
            before, centres = centres, _centres(vectors, sides)
            if np.allclose(before, centres):
                break
        yield centres


def _centres(vectors: Floats, sides: npt.NDArray[np.bool_]) -> Floats:
    return _normalised(np.stack([vectors[sides].mean(axis=0), vectors[~sides].mean(axis=0)]))


def _normalised(vectors: Floats) -> Floats:
    result: Floats = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)
    return result.astype(np.float32, copy=False)
