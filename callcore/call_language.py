"""The language of a leg whose registration names none, found out with the others of its call.

A leg finds out from its own long utterances. What the other legs of its call have shown helps where
it cannot know yet: a caller who only says "sí" now and then is not taken for another language each
time. Nothing that the others say changes what a leg has found itself, so what becomes of its words
does not depend on whose were decoded first, except for short ones before its first long one.
"""

from callcore.engines import Hypothesis

#: Seconds of speech that an utterance needs for its language to be believed ...
_SPEECH_S = 2.0
#: ... with more than this probability; the leg then keeps it ...
_PROB = 0.7
#: ... until two of its finals in a row have a lower mean log probability than this.
_LOGPROB = -1.0


class CallLanguage:
    """What the legs of one call have found."""

    def __init__(self) -> None:
        self.found: str | None = None
        """Language code that a leg found last; None while all are unknown."""


class LegLanguage:
    """What is known of one leg's language."""

    def __init__(self, call: CallLanguage) -> None:
        """Begin without knowing.

        Args:
            call: Shared by the legs of the call.
        """
        self._call = call
        self._own: str | None = None
        self._doubted: str | None = None
        """What it was taken for until its finals were bad."""
        self._bad_finals = 0

    @property
    def found(self) -> str | None:
        """Language code of short utterances; None while it is unknown."""
        shared = self._call.found
        return self._own or (shared if shared != self._doubted else None)

    def of(self, speech_s: float) -> str | None:
        """Return the language that an utterance is decoded in, None to find out from it.

        Args:
            speech_s: Seconds of speech in it.
        """
        return self.found if speech_s < _SPEECH_S else self._own

    def learn(self, hypothesis: Hypothesis, speech_s: float) -> None:
        """Take a final of the leg.

        Args:
            hypothesis: Its text; an empty one says nothing.
            speech_s: Seconds of speech in it.
        """
        if not hypothesis.text:
            return
        self._bad_finals = self._bad_finals + 1 if hypothesis.avg_logprob < _LOGPROB else 0
        if self._bad_finals >= 2:
            self._doubt()
        elif self._own is None and speech_s >= _SPEECH_S and hypothesis.language_prob > _PROB:
            self._own = self._call.found = hypothesis.language
            self._doubted = None

    def _doubt(self) -> None:
        """Find out anew; what another leg has found stays with the others."""
        self._doubted = self.found or self._doubted
        if self._own is not None and self._call.found == self._own:
            self._call.found = None
        self._own = None
