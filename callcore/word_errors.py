"""Word error rate: how far what was recognised is from what was said."""

import importlib
import warnings
from collections.abc import Callable, Collection, Sequence

import jiwer

#: How WER is counted: by words, lower case, without punctuation but for apostrophes.
_NORMALISED = jiwer.Compose(
    [
        jiwer.ToLowerCase(),
        jiwer.SubstituteRegexes({r"[^\w\s']": " "}),
        jiwer.RemoveMultipleSpaces(),
        jiwer.Strip(),
        jiwer.ReduceToListOfListOfWords(),
    ]
)


def word_error_rate(reference: str, hypothesis: str) -> float:
    """Return (substitutions + deletions + insertions) / words of the reference."""
    return float(
        jiwer.wer(
            reference,
            hypothesis,
            reference_transform=_NORMALISED,
            hypothesis_transform=_NORMALISED,
        )
    )


class Scorer:
    """Counts the errors of many texts together.

    English is made alike by Whisper's normaliser (``Dr.`` and ``doctor``, ``24`` and ``twenty
    four``) where the package whisper-normalizer is installed, as published figures are.

    Args:
        languages: Codes of the texts' languages.
    """

    def __init__(self, languages: Collection[str]) -> None:
        self.normaliser = "lower case, no punctuation"
        """What was done to the texts, for people."""
        self._prepare: Callable[[str], str] = str
        if set(languages) == {"en"}:
            try:
                with warnings.catch_warnings():
                    # Its source has an escape that newer Pythons complain about.
                    warnings.simplefilter("ignore", SyntaxWarning)
                    warnings.simplefilter("ignore", DeprecationWarning)
                    english = importlib.import_module("whisper_normalizer.english")
            except ImportError:
                return
            self.normaliser = "Whisper's EnglishTextNormalizer"
            self._prepare = english.EnglishTextNormalizer()

    def error_rate(self, pairs: Sequence[tuple[str, str]]) -> float | None:
        """Return the errors of all texts by the words of all references.

        Args:
            pairs: Reference and what was heard; those without reference do not count.

        Returns:
            None where no reference has a word.
        """
        prepared = [(self._prepare(said), self._prepare(heard)) for said, heard in pairs]
        prepared = [(said, heard) for said, heard in prepared if _NORMALISED(said)[0]]
        if not prepared:
            return None
        return float(
            jiwer.wer(
                [said for said, _ in prepared],
                [heard for _, heard in prepared],
                reference_transform=_NORMALISED,
                hypothesis_transform=_NORMALISED,
            )
        )
