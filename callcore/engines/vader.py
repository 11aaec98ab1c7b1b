"""How an utterance feels, by VADER's lexicon and our cues for telephone calls; English only.

VADER (Hutto & Gilbert 2014) sums the valences of words, with negation and emphasis. It knows posts
on the web: calls for help such as "nobody helped me" score 0, and "credit card" is good news. So
``callcore/data/sentiment/en.yaml`` corrects words and adds phrases, each of which is put into the
text as one made-up word with a valence of its own.
"""

import re
from importlib.metadata import version
from importlib.resources import files
from typing import Any

import yaml
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from callcore import phrases
from callcore.errors import ModelError

#: Ends of the scale; VADER's own is -1 to 1.
SCALE = 5.0

#: Words longer than this are no words; VADER's time grows with the square of what it gets.
_LONGEST = 5000

#: VADER takes a "not" for one of the three words after it, across commas and full stops. So many
#: marks between keep it where it was said: "I could not cope, he hit me".
_CLAUSE_END = re.compile(r"[,.;:!?](?=\s)")
_APART = r"\g<0> , , ,"


class Vader:
    """Scores utterances -5 to 5."""

    name = "vader"

    def __init__(self, cues: bool = True) -> None:
        """Load the lexicon and the cues.

        Args:
            cues: Whether our cues count too; without them it is VADER as published.

        Raises:
            ModelError: If the file of cues is not as it should be.
        """
        self.model = "vader_lexicon"
        self.version = version("vaderSentiment")
        self.parameters: dict[str, Any] = {"cues": None}
        self._analyzer = SentimentIntensityAnalyzer()
        self._answer: re.Pattern[str] | None = None
        self._phrases: list[tuple[re.Pattern[str], str]] = []
        if cues:
            self._load_cues(files("callcore").joinpath("data", "sentiment", "en.yaml").read_text())

    def _load_cues(self, text: str) -> None:
        try:
            cues = yaml.safe_load(text)
            self.parameters = {"cues": str(cues["version"])}
            lexicon = self._analyzer.lexicon
            lexicon.update({word: float(valence) for word, valence in cues["words"].items()})
            listed = [(p, float(v)) for v, said in cues["phrases"].items() for p in said]
            after_no = "|".join(map(re.escape, cues["after_no"]))
        except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise ModelError("sentiment/en.yaml", type(error).__name__) from error
        opening = r"(?:^|[.?!])\W*(?:(?:uh|um|oh|well|okay)\W+)?"
        self._answer = re.compile(rf"({opening})no\b(?=\W+(?:{after_no})\b)", re.IGNORECASE)
        # Longer ones first: "you too bye" before "you too".
        listed.sort(key=lambda each: -len(each[0].split()))
        for number, (phrase, valence) in enumerate(listed):
            word = f"callcorecue{number}"
            lexicon[word] = valence
            self._phrases.append((phrases.pattern(phrase), word))

    def score(self, texts: list[str], language: str) -> list[float | None]:
        """Return -5 to 5 for each text; None for all in another language than English."""
        if language.partition("-")[0].lower() != "en":
            return [None] * len(texts)
        return [self._score(text) for text in texts]

    def _score(self, text: str) -> float | None:
        plain = phrases.plain(text[:_LONGEST])
        if not re.search(r"\w", plain):
            return None
        if self._answer:
            plain = self._answer.sub(r"\1", plain)
        for pattern, word in self._phrases:
            plain = pattern.sub(word, plain)
        if self._phrases:
            plain = _CLAUSE_END.sub(_APART, plain)
        return round(SCALE * float(self._analyzer.polarity_scores(plain)["compound"]), 2)
