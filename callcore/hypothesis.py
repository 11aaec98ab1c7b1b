"""What two decodes of one utterance agree on, and what its final changed: pure word lists.

LocalAgreement-2 (Macháček, Dabre and Bojar 2023, "Turning Whisper into Real-Time Transcription
System"): leading words that two successive decodes give alike are stable, all others may still
change. The last word of a decode is held back, because its sound may be cut off. Words are alike
when they differ in case and punctuation only.
"""

import re


def same_word(one: str, other: str) -> bool:
    """Return whether two words differ in case and punctuation only."""
    return one == other or _plain(one) == _plain(other)


def _plain(word: str) -> str:
    return re.sub(r"[\W_]+", "", word.casefold())


def num_common(one: list[str], other: list[str]) -> int:
    """Return how many leading words two texts share."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if not same_word(a, b)), _shorter(one, other))


def _shorter(one: list[str], other: list[str]) -> int:
    return min(len(one), len(other))


class Agreement:
    """The decodes of one utterance, in order."""

    def __init__(self) -> None:
        """Begin with nothing decoded."""
        self.text = ""
        """The newest decode."""
        self._previous: list[str] = []
        self._promised: list[str] = []
        """The longest list of words that was ever called stable."""
        self._broken = False
        """Whether a later stable word contradicts it."""

    def push(self, text: str) -> int:
        """Take the next decode and return how many of its leading words are stable.

        Args:
            text: The whole utterance as far as it was heard; may be empty.
        """
        words = text.split()
        stable = min(num_common(self._previous, words), max(len(words) - 1, 0))
        alike = num_common(self._promised, words[:stable])
        self._broken = self._broken or alike < min(len(self._promised), stable)
        if stable > len(self._promised):
            self._promised = words[:stable]
        self._previous = words
        self.text = text
        return stable

    def revised(self, text: str, *, is_cut: bool = False) -> bool:
        """Return whether the final text changes a word that was called stable.

        Args:
            text: Of the final.
            is_cut: Whether words that were heard after the end of a cut utterance are the next
                one's.
        """
        words = text.split()
        promised = self._promised[: len(words)] if is_cut else self._promised
        return self._broken or num_common(promised, words) < len(promised)
