"""What a transcription endpoint answered, as segments with words: pure functions over its JSON.

The form is OpenAI's: ``{"text", "language", "segments": [{"start", "end", "text", "avg_logprob",
"no_speech_prob", "compression_ratio", "words"?}], "words": [{"word", "start", "end",
"probability"?}]}``. Servers leave out what they do not know: words (vLLM), numbers of a segment
(null, or -1 for all of them), everything but the text (``response_format=json``). Words that come
without times are spread over their segment by their letters. Nothing here is believed yet: that is
for ``guards``.
"""

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from callcore.engines import guards
from callcore.results import Word
from callcore.utterances import UNSPACED

#: Bounds of what is taken over: nobody says more, and looking for repetitions takes its time.
_LONGEST_TEXT, _MOST_SEGMENTS = 60_000, 2_000
_MOST_WORDS, _MOST_WORDS_PER_S = 50, 20.0

#: OpenAI's own endpoint names languages in English, others by code.
_NAMES = """
af:afrikaans am:amharic ar:arabic as:assamese az:azerbaijani ba:bashkir be:belarusian
bg:bulgarian bn:bengali bo:tibetan br:breton bs:bosnian ca:catalan cs:czech cy:welsh da:danish
de:german el:greek en:english es:spanish et:estonian eu:basque fa:persian fi:finnish fo:faroese
fr:french gl:galician gu:gujarati ha:hausa haw:hawaiian he:hebrew hi:hindi hr:croatian
hu:hungarian hy:armenian id:indonesian is:icelandic it:italian ja:japanese jw:javanese ka:georgian
kk:kazakh km:khmer kn:kannada ko:korean la:latin lb:luxembourgish ln:lingala lo:lao lt:lithuanian
lv:latvian mg:malagasy mi:maori mk:macedonian ml:malayalam mn:mongolian mr:marathi ms:malay
mt:maltese my:myanmar ne:nepali nl:dutch nn:nynorsk no:norwegian oc:occitan pa:punjabi pl:polish
ps:pashto pt:portuguese ro:romanian ru:russian sa:sanskrit sd:sindhi si:sinhala sk:slovak
sl:slovenian sn:shona so:somali sq:albanian sr:serbian su:sundanese sv:swedish sw:swahili ta:tamil
te:telugu tg:tajik th:thai tk:turkmen tl:tagalog tr:turkish tt:tatar uk:ukrainian ur:urdu uz:uzbek
vi:vietnamese yi:yiddish yo:yoruba yue:cantonese zh:chinese
"""
_CODES = {name: code for code, name in (pair.split(":") for pair in _NAMES.split())}


@dataclass(frozen=True, slots=True)
class Said:
    """A span that the endpoint returned."""

    start: float
    """Seconds from the first sample sent."""
    end: float
    text: str
    words: tuple[Word, ...]
    """In order, within the span; their texts joined are ``text``."""
    avg_logprob: float
    """0 where it is not told."""
    no_speech_prob: float
    """0 where it is not told."""
    timed: bool = True
    """Whether the times of its words are the endpoint's."""


@dataclass(frozen=True, slots=True)
class Answer:
    """All that the endpoint said about one piece of audio."""

    language: str | None
    """Code; None where it is not told."""
    segments: tuple[Said, ...]
    times_words: bool = False
    """Whether times of words came with it."""

    @property
    def text(self) -> str:
        """Return the text of all segments."""
        return _joined([each.text for each in self.segments], self.language)

    @property
    def words(self) -> tuple[Word, ...]:
        """Return the words of all segments."""
        return tuple(word for each in self.segments for word in each.words)

    @property
    def avg_logprob(self) -> float:
        """Return the mean over all words."""
        weights = sum(len(each.words) for each in self.segments)
        total = sum(each.avg_logprob * len(each.words) for each in self.segments)
        return total / weights if weights else 0.0

    @property
    def no_speech_prob(self) -> float:
        """Return the doubt about the least doubted segment."""
        return min((each.no_speech_prob for each in self.segments), default=0.0)


def read(found: Any, duration_s: float, language: str | None) -> Answer:
    """Return what an endpoint answered.

    Args:
        found: Its JSON.
        duration_s: Seconds of audio that were sent: no word is outside.
        language: The language that was asked for; None: the endpoint's own finding counts.

    Raises:
        ValueError: If that is no transcription.
    """
    if not isinstance(found, Mapping) or not isinstance(found.get("text"), str):
        raise ValueError("no text")
    language = language or _code(found.get("language"))
    segments = _mappings(found.get("segments"), _MOST_SEGMENTS)
    most = left = int(_MOST_WORDS + _MOST_WORDS_PER_S * duration_s)
    words = _mappings(found.get("words"), most)
    if not segments:
        segments = [{"text": found["text"], **_span(words, duration_s)}]
    spans: list[tuple[Mapping[str, Any], str, float, float]] = []
    last = 0.0
    for each in segments:
        text = each.get("text")
        text, num_words = _cut(text, left, language) if isinstance(text, str) else ("", 0)
        if not text:
            continue
        left -= num_words
        start = _within(each.get("start"), last, duration_s, default=last)
        end = _within(each.get("end"), start, duration_s, default=duration_s)
        spans.append((each, text, start, end))
        last = start
    shared = _by_segment(words, [end for _, _, _, end in spans])
    return Answer(
        language,
        tuple(
            _said(each, text, start, end, _mappings(each.get("words"), most) or own, language)
            for (each, text, start, end), own in zip(spans, shared, strict=True)
        ),
        times_words=bool(words) or any(_mappings(each.get("words"), 1) for each in segments),
    )


def _cut(text: str, most: int, language: str | None) -> tuple[str, int]:
    """Return the text, to so many words at most, and how many they are."""
    text = _storable(text)
    pieces = list(_pieces(text[:_LONGEST_TEXT], language))
    if len(pieces) <= most and len(text) <= _LONGEST_TEXT:
        return " ".join(text.split()), len(pieces)
    return _joined(pieces[:most], language), min(len(pieces), most)


def _storable(text: str) -> str:
    """Return a text without half characters and NUL, which JSON may hold and no table takes."""
    return text.encode("utf-8", "replace").decode("utf-8").replace("\0", "")


def _joined(words: Sequence[str], language: str | None) -> str:
    return ("" if language in UNSPACED else " ").join(words)


def _code(value: Any) -> str | None:
    if not isinstance(value, str):
        return None
    name = value.strip().lower()
    if name in _CODES:
        return _CODES[name]
    code = name.partition("-")[0]
    return code if code in _CODES.values() else None


def _mappings(value: Any, most: int) -> list[Mapping[str, Any]]:
    found = value[:most] if isinstance(value, list) else []
    return [each for each in found if isinstance(each, Mapping)]


def _span(words: Sequence[Mapping[str, Any]], duration_s: float) -> dict[str, float]:
    """Return where the only segment is: where its words are, else everywhere."""
    if not words:
        return {"start": 0.0, "end": duration_s}
    start = _within(words[0].get("start"), 0.0, duration_s, default=0.0)
    return {
        "start": start,
        "end": _within(words[-1].get("end"), start, duration_s, default=duration_s),
    }


def _number(value: Any) -> float | None:
    """Return a finite number, also one that came as text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _within(value: Any, low: float, high: float, *, default: float) -> float:
    number = _number(value)
    return min(max(default if number is None else number, low), high)


def _by_segment(
    words: Sequence[Mapping[str, Any]], ends: Sequence[float]
) -> list[list[Mapping[str, Any]]]:
    """Return the words of each segment, by the times of their middles."""
    shared: list[list[Mapping[str, Any]]] = [[] for _ in ends]
    at = 0
    for word in words:
        start, end = _number(word.get("start")), _number(word.get("end"))
        if start is None or end is None or not ends:
            continue
        while at < len(ends) - 1 and (start + end) / 2 > ends[at]:
            at += 1
        shared[at].append(word)
    return shared


def _said(
    each: Mapping[str, Any],
    text: str,
    start: float,
    end: float,
    words: Sequence[Mapping[str, Any]],
    language: str | None,
) -> Said:
    ratio = _number(each.get("compression_ratio"))
    logprob = _number(each.get("avg_logprob"))
    doubt = _number(each.get("no_speech_prob"))
    # vLLM's first versions wrote -1 for each of the three that they did not know.
    told = ratio is None or ratio >= 0
    logprob = min(logprob, 0.0) if logprob is not None and told else 0.0
    probability = math.exp(logprob)
    timed = list(_timed(words, start, end, probability, language))
    pieces = list(_pieces(text, language))
    came = bool(timed)
    if len(timed) == len(pieces):
        # Some servers leave the punctuation out of their words, none out of the text.
        timed = [Word(w, word.s, word.e, word.p) for w, word in zip(pieces, timed, strict=True)]
    else:
        timed = list(_aligned(pieces, timed, start, end, probability))
    return Said(
        start=start,
        end=end,
        text=text,
        words=tuple(timed),
        avg_logprob=logprob,
        no_speech_prob=min(max(doubt or 0.0, 0.0), 1.0),
        timed=came,
    )


def _aligned(
    pieces: Sequence[str], timed: Sequence[Word], start: float, end: float, probability: float
) -> Iterator[Word]:
    """Yield all words of a text, those that came without times between their neighbours."""
    matcher = SequenceMatcher(
        None,
        [guards.normalised(piece) for piece in pieces],
        [guards.normalised(word.w) for word in timed],
        autojunk=False,
    )
    last = start
    for same, i, after, j, rest in matcher.get_opcodes():
        if same == "equal":
            for piece, word in zip(pieces[i:after], timed[j:rest], strict=True):
                yield Word(piece, word.s, word.e, word.p)
        elif i < after:
            begins = timed[j].s if j < rest else last
            next_at = timed[rest].s if rest < len(timed) else end
            ends = max(word.e for word in timed[j:rest]) if j < rest else next_at
            yield from _spread(pieces[i:after], begins, max(begins, ends), probability)
        if j < rest:
            last = max(last, timed[rest - 1].s if rest < len(timed) else timed[rest - 1].e)


def _ratio(text: str) -> float:
    data = text.encode()
    return len(data) / len(zlib.compress(data))


def _timed(
    words: Sequence[Mapping[str, Any]],
    start: float,
    end: float,
    probability: float,
    language: str | None,
) -> Iterator[Word]:
    """Yield words that came with times, none before the one before it."""
    last = start
    for each in words:
        text = each.get("word")
        text = _storable(text).strip() if isinstance(text, str) else ""
        if not text or _number(each.get("start")) is None or _number(each.get("end")) is None:
            continue
        begins = _within(each.get("start"), last, end, default=last)
        ends = _within(each.get("end"), begins, max(end, begins), default=begins)
        said = _within(each.get("probability"), 0.0, 1.0, default=probability)
        yield from _spread(list(_pieces(text, language)), begins, ends, said)
        last = begins


def _pieces(text: str, language: str | None) -> Iterator[str]:
    """Yield the words of a text; of one without spaces its characters, punctuation with them."""
    if language not in UNSPACED:
        yield from text.split()
        return
    piece = ""
    for character in text:
        if piece and character.isalnum():
            yield piece
            piece = ""
        piece += character if not character.isspace() else ""
    if piece:
        yield piece


def _spread(pieces: Sequence[str], start: float, end: float, probability: float) -> Iterator[Word]:
    """Yield words with times by their share of the letters."""
    total = sum(len(piece) + 1 for piece in pieces)
    done = 0
    for piece in pieces:
        begins = start + (end - start) * done / total
        done += len(piece) + 1
        yield Word(piece, begins, start + (end - start) * done / total, probability)


def believed(said: Said, *, speech_s: float, end_s: float, language: str | None) -> Said | None:
    """Return a segment without what was invented, None if all of it was.

    Args:
        said: What the endpoint returned.
        speech_s: Seconds of it that were speech.
        end_s: Seconds after which no word is believed.
        language: Code of its language.
    """
    if said.timed:
        kept = guards.without_loops(said.words, end_s)
    else:
        kept = guards.without_hurried_loops([word.w for word in said.words], speech_s)
    words = guards.words_within([said.words[i] for i in kept], end_s)
    whole = len(words) == len(said.words)
    text = said.text if whole else _joined([word.w for word in words], language)
    if _ratio(text) > guards.COMPRESSION_RATIO and not guards.said_again(
        words, speech_s, said.no_speech_prob
    ):
        return None
    if not words or guards.invented(
        text,
        speech_s=speech_s,
        avg_logprob=said.avg_logprob,
        no_speech_prob=said.no_speech_prob,
    ):
        return None
    return Said(
        start=words[0].s,
        end=words[-1].e,
        text=text,
        words=words,
        avg_logprob=said.avg_logprob,
        no_speech_prob=said.no_speech_prob,
        timed=said.timed,
    )
