"""Layers that keep invented words out of a transcript: pure functions over text and scores.

Whisper writes something for everything that is not speech, and runs in circles when its window
ends abruptly. The speech detector keeps most of that away; these hold off the rest, cheapest
first. Each number is a trade: it must cost no real word.
"""

import re
from collections.abc import Iterator, Sequence

from callcore.results import Word

#: Tokens that a decode may give: nobody speaks faster than this.
_TOKENS_FIXED = 10
_TOKENS_PER_S = 7.0
#: Scripts that Whisper's tokens were not made for: Hindi and Tamil need 12 to 14 tokens for a
#: second of ordinary speech, Thai 11, Arabic 8.
_MOST_TOKENS_PER_S = 20.0
#: Languages of which a word is one or two tokens.
_FEW_TOKENS = frozenset({"de", "en", "es", "fr", "it", "nl", "pt", "ru"})

#: Words that, said again by what follows them, make a text one that repeats itself: fewer are
#: everyday speech ("bye bye").
_REPEATED_WORDS = 3

#: Words of a phrase that is looked for: longer ones do not loop, and the search would take long.
_LONGEST_PHRASE = 60

#: Words a second above which a text that repeats itself was not spoken, one word aside whose times
#: are squeezed.
_FASTEST_WORDS_PER_S = 6.0
#: The same for one copy of a phrase by the times of its words: those are not that exact.
_FASTEST_COPY_WORDS_PER_S = 10.0

#: Text that compresses better than this is one phrase over and over: so it is believed only if it
#: is as sure as this, word by word on average, ...
COMPRESSION_RATIO = 2.4
_SURE_WORDS = 0.5
#: ... and not if the model doubts that it heard speech and the words are as few ("thank you").
_FEW_WORDS = 4

#: A word shorter than this (s) was written without being heard: the decoder's attention stood
#: still. One step of the alignment is 0.02 s.
_STANDSTILL_S = 0.03

#: Share of a phrase that has to be written at a standstill for one of its copies to be invented:
#: in hasty speech single words are too.
_STANDSTILL_SHARE = 0.6

#: A phrase of so few words is looked at more closely, a standstill in it may be one word: so many
#: words on end, each shorter than this (s), are more than anyone says. Digits are left alone: of
#: those each counts.
_SHORT_PHRASE = 2
_HASTY_WORDS = 3
_HASTY_S = 0.07
_NUMERALS = """
zero one two three four five six seven eight nine ten double triple null eins zwei zwo drei vier
fünf sechs sieben acht neun zehn cero uno dos tres cuatro cinco seis siete ocho nueve diez zéro
deux trois quatre cinq huit neuf dix tre quattro cinque sei sette otto nove dieci dois três quatro
sete oito dez nul een één twee drie vijf zes zeven negen tien ноль один два три четыре пять шесть
семь восемь девять десять
"""
_NUMBERS = frozenset(_NUMERALS.split())

_NO_SPEECH_PROB = 0.6
_NO_SPEECH_LOGPROB = -0.8
#: A model that doubts more than this that it heard speech is not believed where a few words repeat
#: themselves. Of a clear sentence said three times base doubted 0.55: alone it says little.
_NO_SPEECH_PROB_REPEATED = 0.6
_HOPELESS_LOGPROB = -1.6

#: Below this much detected speech, or this logprob, the phrases below are not believed.
_LITTLE_SPEECH_S = 0.6
_DOUBTFUL_LOGPROB = -0.7

#: What Whisper says when it heard nothing: the credits and politeness of its training subtitles.
_PHRASES = frozenset(
    {
        "",
        "beep",
        "beeping",
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
        "muchas gracias",
        "gracias por ver el video",
        "subtítulos realizados por la comunidad de amara org",
        "sous titres réalisés par la communauté d amara org",
        "sous titrage société radio canada",
        "merci d avoir regardé cette vidéo",
        "sottotitoli creati dalla comunità amara org",
        "sottotitoli e revisione a cura di qtss",
        "untertitel der amara org community",
        "untertitel im auftrag des zdf für funk 2017",
        "merci",
        "merci beaucoup",
        "grazie",
        "grazie a tutti",
        "danke",
        "danke schön",
        "vielen dank",
        "vielen dank fürs zuschauen",
        "субтитры сделал dimatorzok",
        "продолжение следует",
        "спасибо",
        "спасибо за просмотр",
    }
)

#: The ones that no caller says to an agent, never believed: names, wherever they stand, ...
_CREDITS = re.compile(
    r"amara org|dimatorzok|субтитры (сделал|создавал)|редактор субтитров|"
    r"sous titrage (st \d|société radio canada)|a cura di qtss|untertitel im auftrag des zdf|"
    r"untertitelung des zdf|copyright wdr"
)
#: ... and thanks to viewers where nothing else is said: "thanks for watching the kids".
_VIEWERS = re.compile(
    r"(thank you|thanks) (so much |very much )?for watching( (and )?please subscribe)?|"
    r"vielen dank fürs zuschauen|gracias por ver el v[ií]deo|"
    r"merci d avoir regardé cette vidéo|спасибо за просмотр"
)


def normalised(word: str) -> str:
    """Return the word without case and punctuation, for comparing."""
    return re.sub(r"[^\w]+", " ", word.casefold()).strip()


def token_limit(duration_s: float, language: str | None) -> int:
    """Return how many tokens so many seconds can hold."""
    per_s = _TOKENS_PER_S if language in _FEW_TOKENS else _MOST_TOKENS_PER_S
    return int(_TOKENS_FIXED + per_s * duration_s)


def repeats(words: Sequence[str]) -> bool:
    """Return whether a phrase follows itself: said again, or a loop of the model."""
    return next(_stretches([normalised(word) for word in words]), None) is not None


def without_loops(words: Sequence[Word], end_s: float) -> list[int]:
    """Return the indices of the words to keep: all but the copies that a model's loop added.

    Who repeats a sentence takes time for it; a loop writes its copies while the attention stands
    still, so that their words have no length, or lie in the silence after the speech. Pace and
    probabilities tell nothing: a loop is surer of its words with each round.

    Args:
        words: A text with its times, as aligned, before anything was cut off.
        end_s: Where the audio ends; words from there on were not heard.
    """
    kept = list(range(len(words)))
    plain = [normalised(word.w) for word in words]
    # From the end, so that what is left to look at keeps its indices.
    for begin, period, end in reversed(list(_stretches(plain))):
        short = period <= _SHORT_PHRASE
        if short and any(_is_numeral(word) for word in plain[begin : begin + period]):
            continue
        longest_s = _HASTY_S if short else _STANDSTILL_S
        least = _HASTY_WORDS if short else max(2.0, _STANDSTILL_SHARE * period)
        for still, length in reversed(list(_standstills(words[:end], begin, longest_s, end_s))):
            if length < least:
                continue
            # One copy has to stay. Whole copies can go from anywhere, the text is the same: those
            # that took no time go, so that the others keep their times.
            most = (end - begin) // period - 1
            cut = min(max(1, round(length / period)), most) * period
            first = min(still, end - cut)
            del kept[first : first + cut]
            end -= cut
        if not short:
            _drop_hurried(kept, words, begin, period, end)
    return kept


def _is_numeral(plain: str) -> bool:
    return plain in _NUMBERS or plain.replace(" ", "").isdigit()


def _drop_hurried(
    kept: list[int], words: Sequence[Word], begin: int, period: int, end: int
) -> None:
    """Drop from ``kept`` the copies, but one, that come faster than anyone speaks."""
    for first in range(end - (end - begin) % period - period, begin, -period):
        copy = [words[i] for i in kept[first : first + period]]
        if copy[-1].e - copy[0].s < period / _FASTEST_COPY_WORDS_PER_S:
            del kept[first : first + period]


def _stretches(plain: Sequence[str]) -> Iterator[tuple[int, int, int]]:
    """Yield begin, period and end of each stretch of words in which a phrase follows itself."""
    begin = 0
    while begin < len(plain):
        for period in range(1, min((len(plain) - begin) // 2, _LONGEST_PHRASE) + 1):
            end = begin + period
            while end < len(plain) and plain[end] == plain[end - period]:
                end += 1
            if end - begin - period >= max(period, _REPEATED_WORDS):
                yield begin, period, end
                begin = end - 1
                break
        begin += 1


def _standstills(
    words: Sequence[Word], begin: int, longest_s: float, end_s: float
) -> Iterator[tuple[int, int]]:
    """Yield index and length of each run of words, from ``begin`` on, that took no time."""
    length = 0
    for i in range(begin, len(words)):
        if words[i].e - words[i].s < longest_s or words[i].s >= end_s:
            length += 1
        elif length:
            yield i - length, length
            length = 0
    if length:
        yield len(words) - length, length


def without_hurried_loops(words: Sequence[str], speech_s: float) -> list[int]:
    """Return the indices of the words to keep of a text whose words have no times.

    All of them, unless it comes faster than anyone speaks and repeats itself ("thank you thank you
    thank you" in half a second): then one copy stays, and what is around it. Where there are
    times, ``without_loops`` knows better.

    Args:
        words: The text.
        speech_s: Seconds of speech in which all of it was said.
    """
    kept = list(range(len(words)))
    if _is_hurried(len(words), speech_s):
        plain = [normalised(word) for word in words]
        for begin, period, end in reversed(list(_stretches(plain))):
            # Whole copies: what follows the last one may begin like it.
            del kept[begin + period : begin + (end - begin) // period * period]
    return kept


def _is_hurried(num_words: int, speech_s: float) -> bool:
    return num_words > 1 + _FASTEST_WORDS_PER_S * max(speech_s, 0.0)


def said_again(words: Sequence[Word], speech_s: float, no_speech_prob: float) -> bool:
    """Return whether a text that is one phrase over and over sounds like one said again.

    Args:
        words: What is left of it after ``without_loops``.
        speech_s: Seconds in which they were said.
        no_speech_prob: The model's own doubt, 0 to 1.
    """
    sure = sum(word.p for word in words) >= _SURE_WORDS * len(words)
    doubted = no_speech_prob > _NO_SPEECH_PROB_REPEATED and len(words) <= _FEW_WORDS
    return sure and not doubted and not _is_hurried(len(words), speech_s)


def _phrase(plain: Sequence[str]) -> Sequence[str]:
    """Return the phrase that the text is several times, the whole text if it is none."""
    for period in range(1, min(len(plain) // 2, _LONGEST_PHRASE) + 1):
        if all(word == plain[i % period] for i, word in enumerate(plain)):
            return plain[:period]
    return plain


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
    words = plain.split()
    phrase = _phrase(words)
    once = " ".join(phrase)
    if _VIEWERS.fullmatch(once):
        return True
    # A loop is surer of its words with each round: their mean says nothing ("beep beep beep").
    looped = len(phrase) <= _SHORT_PHRASE and len(words) >= len(phrase) + _REPEATED_WORDS
    if no_speech_prob > _NO_SPEECH_PROB_REPEATED and looped:
        return True
    doubtful = speech_s < _LITTLE_SPEECH_S or avg_logprob < _DOUBTFUL_LOGPROB
    return doubtful and no_speech_prob > _NO_SPEECH_PROB / 2 and once in _PHRASES


def words_within(words: Sequence[Word], end_s: float) -> tuple[Word, ...]:
    """Return the words that were spoken before ``end_s``: later ones come from the padding."""
    return tuple(
        Word(word.w, word.s, min(word.e, end_s), word.p) for word in words if word.s < end_s
    )
