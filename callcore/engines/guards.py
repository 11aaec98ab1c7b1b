"""Layers that keep invented words out of a transcript: pure functions over text and scores.

Whisper writes something for everything that is not speech, and runs in circles when its window
ends abruptly. The speech detector keeps most of that away; these hold off the rest, cheapest
first. Each number is a trade: it must cost no real word.
"""

import re
from collections.abc import Sequence

from callcore.results import Word

#: Tokens that a decode may give: nobody speaks faster than this.
_TOKENS_FIXED = 10
_TOKENS_PER_S = 7.0
#: Scripts that Whisper's tokens were not made for: Hindi and Tamil need 12 to 14 tokens for a
#: second of ordinary speech, Thai 11, Arabic 8.
_MOST_TOKENS_PER_S = 20.0
#: Languages of which a word is one or two tokens.
_FEW_TOKENS = frozenset({"de", "en", "es", "fr", "it", "nl", "pt", "ru"})

#: Words a second above which a text that is one phrase over and over was not spoken.
_FASTEST_WORDS_PER_S = 4.5

#: Words of a run that, repeated back to back, is a loop and not a speaker.
_LOOP_WORDS = 5

_NO_SPEECH_PROB = 0.6
_NO_SPEECH_LOGPROB = -0.8
_HOPELESS_LOGPROB = -1.6

#: Below this much detected speech, or this logprob, the phrases below are not believed.
_LITTLE_SPEECH_S = 0.6
_DOUBTFUL_LOGPROB = -0.7

#: What Whisper says when it heard nothing: the credits and politeness of its training subtitles.
_PHRASES = frozenset(
    {
        "",
        "bye",
        "bye bye",
        "thank you",
        "thank you very much",
        "thank you for watching",
        "thanks for watching",
        "thank you so much for watching",
        "please subscribe",
        "you",
        "so",
        "i m sorry",
        "silence",
        "music",
        "the end",
        "gracias",
        "gracias por ver el video",
        "subtítulos realizados por la comunidad de amara org",
        "sous titres réalisés par la communauté d amara org",
        "sous titrage société radio canada",
        "merci d avoir regardé cette vidéo",
        "sottotitoli creati dalla comunità amara org",
        "sottotitoli e revisione a cura di qtss",
        "untertitel der amara org community",
        "untertitel im auftrag des zdf für funk 2017",
        "vielen dank",
        "субтитры сделал dimatorzok",
        "продолжение следует",
        "спасибо за просмотр",
    }
)

#: The ones that no caller says to an agent: never believed.
_CREDITS = re.compile(
    r"amara org|dimatorzok|субтитры (сделал|создавал)|редактор субтитров|(thank you|thanks) "
    r"(so much )?for watching|société radio canada|a cura di qtss|im auftrag des zdf|"
    r"gracias por ver el video|merci d avoir regardé cette vidéo|спасибо за просмотр"
)


def normalised(word: str) -> str:
    """Return the word without case and punctuation, for comparing."""
    return re.sub(r"[^\w]+", " ", word.casefold()).strip()


def token_limit(duration_s: float, language: str | None) -> int:
    """Return how many tokens so many seconds can hold."""
    per_s = _TOKENS_PER_S if language in _FEW_TOKENS else _MOST_TOKENS_PER_S
    return int(_TOKENS_FIXED + per_s * duration_s)


def _repeats(words: Sequence[str], period: int) -> bool:
    return all(word == words[i % period] for i, word in enumerate(words))


def num_words_before_loop(words: Sequence[str], duration_s: float) -> int:
    """Return how many leading words to keep: all of them unless the text runs in circles.

    Two kinds of circle: the whole text is one phrase several times, faster than anyone speaks
    ("thank you thank you thank you" in half a second); or a run of five or more words follows
    itself at once, after which nothing is believed.
    """
    plain = [normalised(word) for word in words]
    if len(plain) > 3 and len(plain) > _FASTEST_WORDS_PER_S * max(duration_s, 0.3):
        for period in range(1, len(plain) // 2 + 1):
            if _repeats(plain, period):
                return period
    for begin in range(len(plain)):
        longest = (len(plain) - begin) // 2
        for period in range(_LOOP_WORDS, longest + 1):
            if plain[begin : begin + period] == plain[begin + period : begin + 2 * period]:
                return begin + period
    return len(plain)


def invented(text: str, *, speech_s: float, avg_logprob: float, no_speech_prob: float) -> bool:
    """Return whether the text is what a model writes for something that was not speech.

    Args:
        text: The whole text of an utterance.
        speech_s: Seconds that the speech detector took for speech.
        avg_logprob: Mean log probability of a token.
        no_speech_prob: The model's own doubt, 0 to 1.
    """
    if avg_logprob < _HOPELESS_LOGPROB:
        return True
    if no_speech_prob > _NO_SPEECH_PROB and avg_logprob < _NO_SPEECH_LOGPROB:
        return True
    plain = normalised(text)
    if not plain or _CREDITS.search(plain):
        return True
    doubtful = speech_s < _LITTLE_SPEECH_S or avg_logprob < _DOUBTFUL_LOGPROB
    return doubtful and no_speech_prob > _NO_SPEECH_PROB / 2 and plain in _PHRASES


def words_within(words: Sequence[Word], end_s: float) -> tuple[Word, ...]:
    """Return the words that were spoken before ``end_s``: later ones come from the padding."""
    return tuple(
        Word(word.w, word.s, min(word.e, end_s), word.p) for word in words if word.s < end_s
    )
