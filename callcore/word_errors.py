"""Word error rate: how far what was recognised is from what was said."""

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
