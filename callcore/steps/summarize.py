"""The call in few words: by default its own words, each with the turn it was said in.

The extractive summary chooses sentences near the middle of what was talked about that do not repeat
each other; it can be dull, and cannot invent. Reason, outcome, actions and open questions are
sentences that rules find, null where they find none. A model that writes in its own words is used
by setting: what it says is held against the transcript, and what the transcript does not bear out
is marked, and left out of the running text.

It works on the original words: evidence must be what was said.
"""

import math
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from callcore import summary_rules
from callcore.engines import Floats
from callcore.errors import EngineError
from callcore.steps import Step, StepContext
from callcore.summary_rules import Found
from callcore.summary_support import Transcript, is_number
from callcore.summary_text import Cues, Sentence, cues, sentences, words_of

#: Languages whose sentence vectors mean something; the words themselves are compared elsewhere.
_EMBEDDED = frozenset({"en"})
#: Content words of a sentence that can stand in a summary.
_LEAST_CONTENT = 3
#: Words of a call for each sentence of its summary.
_WORDS_A_SENTENCE = 120
_MOST_SENTENCES = 8
#: Words of a summary: a share of the call, within bounds.
_SHARE = 0.25
_FEWEST_WORDS, _MOST_WORDS = 40, 200
#: Weights of what makes a sentence worth keeping; they add up to 1.
_CENTRAL, _CALLER, _CUE, _FULL = 0.5, 0.15, 0.25, 0.1
#: Content words of a sentence that is full.
_FULL_WORDS = 8
#: How much worth counts against being like what was chosen (maximal marginal relevance).
_WORTH = 0.7
#: Characters of a headline, and where it is cut rather than between any words.
_HEADLINE = 90
_CLAUSE = re.compile(r"[,;:.!?](?=\s)|(?=\s(?:and|but|because|so|which|that|who|when|while)\s)")
#: Where a headline can begin: not with "that", which belongs to what is before it.
_START = re.compile(r"[,;:.!?](?=\s)|(?=\s(?:and|but|because|so)\s)")
#: Share of the best caller's sentence that an earlier one must be worth to be what it is about.
_CONCERN = 0.9
#: Mean certainty of the words below which a summary carries a caution.
_DOUBTFUL = 0.5
#: Size of the vectors that are made of words.
_WORD_VECTOR = 1024
#: Bytes that a turn takes in a request beside its words and its party.
_TURN = 28
#: Share of the step's time that a model takes.
_MODEL_SHARE = 0.9

_EMBEDDER = "embedder"
_MODEL = "summarizer"
_ABOUT = ("name", "model", "version", "parameters")


@dataclass(frozen=True, slots=True)
class _Call:
    """What a summary is made of."""

    said: Sequence[Sentence]
    language: str | None
    known: Cues
    embed: Callable[[Sequence[str]], Floats] | None
    """Vectors by the engine; None where it does not know the language."""
    about: dict[str, Any]
    """Of that engine."""
    confidence: float | None
    """Mean over the words of the transcript."""


def run(context: StepContext) -> dict[str, Any]:
    """Return a summary in its stored form; of a call without words an empty one."""
    transcript = context.results["transcribe"]
    language = transcript["language"]
    said = sentences(transcript["segments"], language)
    asked = bool(context.settings.summary_url or context.settings.summary_model)
    embed: Callable[[Sequence[str]], Floats] | None = None
    about: dict[str, Any] = dict.fromkeys(_ABOUT)
    if said and language in _EMBEDDED:

        def embed(texts: Sequence[str]) -> Floats:
            vectors: Floats = context.engines.call(_EMBEDDER, "embed", list(texts))
            return vectors

        about = context.engines.attributes(_EMBEDDER, *_ABOUT)
    call = _Call(said, language, cues(language), embed, about, _confidence(transcript))
    if asked and any(each.content for each in said):
        return _by_model(context, call)
    return _extracted(call)


def _confidence(transcript: dict[str, Any]) -> float | None:
    words = [word for segment in transcript["segments"] for word in segment["words"]]
    return round(sum(word["p"] for word in words) / len(words), 3) if words else None


def _parameters(call: _Call, of_engine: dict[str, Any] | None) -> dict[str, Any]:
    """Return what the summary was made with, and how far the words under it are to be trusted."""
    caution = None
    if call.confidence is not None and call.confidence < _DOUBTFUL:
        caution = "most words were heard with little certainty: listen before relying on this"
    return {
        **(of_engine or {}),
        "rules": call.known.version,
        "confidence": call.confidence,
        "caution": caution,
    }


# ---- sentences of the call


def _extracted(call: _Call) -> dict[str, Any]:
    found = _found(call)
    chosen = _chosen(call, found)
    reason: Found | None = found["reason"]
    headline = None
    if reason is not None:
        headline = _headline(reason)
    elif chosen:
        # The caller's concern stands first in what was chosen.
        headline = _cut(call.said[next(iter(chosen))].text)
    source = "embedding" if call.embed else "words"
    version = call.about["version"] if call.embed else call.known.version
    claims = [
        _claim(call.said[row].text, call.said[row].evidence(source, version, chosen[row]))
        for row in sorted(chosen)
    ]
    about = {**call.about, "parameters": None}
    if claims or reason:
        about["parameters"] = _parameters(call, call.about["parameters"])
    return _result(call, "extractive", headline, claims, _fields(call, found), about)


def _found(call: _Call) -> dict[str, Any]:
    """Return what the rules find, by field."""
    reason = summary_rules.reason(call.said, call.known)
    outcome = summary_rules.outcome(call.said, call.known)
    claimed = [each for found in (reason, outcome) if found for each in found.sentences]
    return {
        "reason": reason,
        "outcome": outcome,
        "actions": summary_rules.actions(call.said, call.known, claimed),
        "open_questions": summary_rules.open_questions(call.said, call.known),
    }


def _chosen(call: _Call, found: dict[str, Any]) -> dict[int, float]:
    """Return the rows of the sentences of the summary with their worth, in the order of choice.

    The first is the reason, else the caller's concern, else the best.
    """
    told = [each for one in (found["reason"], found["outcome"]) if one for each in one.sentences]
    rows = [
        row
        for row, each in enumerate(call.said)
        if _substance(each) >= _LEAST_CONTENT or each in told
    ]
    rows = rows or [row for row, each in enumerate(call.said) if each.content]
    if not rows:
        return {}
    vectors = _vectors(call, rows)
    worth = _worth(call, rows, vectors, found)
    num_words = sum(len(words_of(each.text, call.language)) for each in call.said)
    left = min(max(round(_SHARE * num_words), _FEWEST_WORDS), _MOST_WORDS)
    most = min(1 + math.ceil(num_words / _WORDS_A_SENTENCE), _MOST_SENTENCES)
    reason: Found | None = found["reason"]
    first = [at for at, row in enumerate(rows) if reason and call.said[row] in reason.sentences]
    first = first or _concern(call, rows, worth)
    chosen: list[int] = []
    while len(chosen) < most:
        waiting = [at for at in range(len(rows)) if at not in chosen]
        fitting = [at for at in waiting if _length(call, rows[at]) <= left]
        waiting = fitting or (waiting if not chosen else [])
        if not waiting:
            break
        at = next((each for each in first if each in waiting), None)
        if at is None:
            at = max(waiting, key=lambda each: _marginal(worth, vectors, each, chosen))
        chosen.append(at)
        left -= _length(call, rows[at])
    return {rows[at]: float(worth[at]) for at in chosen}


def _concern(call: _Call, rows: Sequence[int], worth: Floats) -> list[int]:
    """Return the place of what a caller says that is worth most, or nearly and earlier."""
    theirs = [at for at, row in enumerate(rows) if call.said[row].leg.startswith("caller")]
    most = max((float(worth[at]) for at in theirs), default=0.0)
    return [at for at in theirs if worth[at] >= _CONCERN * most][:1]


def _substance(sentence: Sentence) -> int:
    """Return how many words say something; a number counts once, however long it is."""
    numbers = sum(is_number(word) for word in sentence.content)
    return len(sentence.content) - max(numbers - 1, 0)


def _length(call: _Call, row: int) -> int:
    return len(words_of(call.said[row].text, call.language))


def _marginal(worth: Floats, vectors: Floats, at: int, chosen: Sequence[int]) -> float:
    if not chosen:
        return float(worth[at])
    repeats = float((vectors[chosen] @ vectors[at]).max())
    return _WORTH * float(worth[at]) - (1 - _WORTH) * repeats


def _worth(call: _Call, rows: Sequence[int], vectors: Floats, found: dict[str, Any]) -> Floats:
    """Return how much each sentence says about the call, 0 to 1."""
    full = np.array([min(len(call.said[row].content) / _FULL_WORDS, 1.0) for row in rows])
    middle = (vectors * full[:, None]).sum(axis=0)
    central = np.maximum(vectors @ middle, 0.0)
    central /= max(float(central.max()), 1e-9)
    cued = {
        each
        for one in (found["reason"], found["outcome"], *found["actions"])
        if one is not None
        for each in one.sentences
    }
    caller = np.array([call.said[row].leg.startswith("caller") for row in rows])
    cue = np.array([call.said[row] in cued for row in rows])
    worth: Floats = (_CENTRAL * central + _CALLER * caller + _CUE * cue + _FULL * full).astype(
        np.float32
    )
    return worth


def _vectors(call: _Call, rows: Sequence[int]) -> Floats:
    """Return a vector of length 1 for each sentence: by the engine, else of its words."""
    if call.embed:
        return call.embed([call.said[row].text for row in rows])
    vectors = np.zeros((len(rows), _WORD_VECTOR), np.float32)
    for at, row in enumerate(rows):
        for word in call.said[row].content:
            vectors[at, zlib.crc32(word[:5].encode()) % _WORD_VECTOR] = 1.0
    # What every sentence says tells little of any of them.
    vectors *= np.log((1 + len(rows)) / (1 + np.count_nonzero(vectors, axis=0))) + 0.1
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Floats = vectors / np.maximum(norms, 1e-9)
    return unit


def _headline(reason: Found) -> str:
    """Return a reason in a headline's length: the words that the rule found, and whose they are."""
    for text in (reason.text, reason.sentences[0].text):
        if len(text) <= _HEADLINE:
            return text
    text, (first, last) = reason.sentences[0].text, reason.point
    if last <= _HEADLINE * 2 // 3:
        return _cut(text)
    begin = max((m.end() for m in _START.finditer(text, 0, first)), default=0)
    return _cut(text[begin:].lstrip(), "… " if begin else "")


def _cut(text: str, begin: str = "") -> str:
    """Return a text of a headline's length, cut after a clause, else between words.

    An ellipsis says where; ``begin`` is that of what was left out before.
    """
    text = begin + text
    if len(text) <= _HEADLINE:
        return text
    head = text[: _HEADLINE - 2]
    clause = max((each.start() for each in _CLAUSE.finditer(head)), default=0)
    space = head.rfind(" ")
    at = next((each for each in (clause, space) if each > _HEADLINE // 2), len(head))
    return head[:at].rstrip(" ,;:-") + " …"


# ---- a model's own words


def _by_model(context: StepContext, call: _Call) -> dict[str, Any]:
    about = context.engines.attributes(_MODEL, *_ABOUT, "max_bytes")
    parts = _parts(call.said, about["max_bytes"])
    num_words = sum(len(words_of(each.text, call.language)) for each in call.said)
    most = min(1 + math.ceil(num_words / _WORDS_A_SENTENCE), _MOST_SENTENCES)
    answers: list[dict[str, Any]] = []
    for number, turns in enumerate(parts, 1):
        request = {
            "language": call.language,
            "turns": turns,
            "max_sentences": max(1, math.ceil(most / len(parts))),
        }
        answers.append(context.engines.call(_MODEL, "summarize", request))
        context.progress(_MODEL_SHARE * number / len(parts))
    answer = _joined(answers)
    check = _Check(call)
    claims = [check.claim(text) for text in answer["sentences"]]
    if not claims:
        raise EngineError(_MODEL, "the model wrote no sentence")
    headline = answer["headline"]
    if headline is not None and not check.claim(headline)["supported"]:
        headline = None  # there is no mark on a headline
    fields = _fields(call, _found(call))
    for name in ("reason", "outcome"):
        if name in answer:
            fields[name] = check.claim(answer[name]) if answer[name] else None
    if "actions" in answer:
        fields["actions"] = [check.action(each) for each in answer["actions"]]
    if "open_questions" in answer:
        fields["open_questions"] = [check.claim(each) for each in answer["open_questions"]]
    about = {name: about[name] for name in _ABOUT}
    about["parameters"] = _parameters(call, about["parameters"])
    return _result(call, "model", headline, claims, fields, about)


def _parts(said: Sequence[Sentence], max_bytes: int) -> list[list[dict[str, str]]]:
    """Return the turns of a call in parts of at most so many bytes of UTF-8.

    Bytes go with the tokens of a model in every script better than characters do.
    """
    parts: list[list[dict[str, str]]] = [[]]
    left = max_bytes
    last: str | None = None
    for each in said:
        for text in _pieces(each.text, max_bytes // 2):
            cost = len(text.encode()) + (1 if each.party == last else len(each.party) + _TURN)
            if cost > left and parts[-1]:
                parts.append([])
                left, last = max_bytes, None
                cost = len(text.encode()) + len(each.party) + _TURN
            if each.party == last:
                parts[-1][-1]["text"] += f" {text}"
            else:
                parts[-1].append({"party": each.party, "text": text})
            left -= cost
            last = each.party
    return parts


def _pieces(text: str, max_bytes: int) -> Iterator[str]:
    """Yield a sentence; one that is too long, where nobody wrote a full stop, in pieces."""
    while len(text.encode()) > max_bytes:
        head = text.encode()[:max_bytes].decode(errors="ignore")
        space = head.rfind(" ")
        head = head[:space] if space > 0 else head
        yield head
        text = text[len(head) :].lstrip()
    yield text


def _joined(answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the answers to the parts of a call as one: fields that no part has are not there."""
    joined: dict[str, Any] = {
        "sentences": [text for each in answers for text in each["sentences"]],
        "headline": next((each["headline"] for each in answers if each.get("headline")), None),
    }
    if any("reason" in each for each in answers):
        joined["reason"] = next((each["reason"] for each in answers if each.get("reason")), None)
    if any("outcome" in each for each in answers):
        outcomes = [each["outcome"] for each in answers if each.get("outcome")]
        joined["outcome"] = outcomes[-1] if outcomes else None
    for name in ("actions", "open_questions"):
        if any(name in each for each in answers):
            joined[name] = [item for each in answers for item in each.get(name) or ()]
    return joined


class _Check:
    """Holds a model's sentences against the call."""

    def __init__(self, call: _Call) -> None:
        self._call = call
        vectors = call.embed([each.text for each in call.said]) if call.embed else None
        self._transcript = Transcript(call.said, vectors, call.language, call.known)
        self._legs = {each.leg for each in call.said}
        self._source = "embedding" if call.embed else "words"
        self._version = call.about["version"] if call.embed else call.known.version

    def claim(self, text: str) -> dict[str, Any]:
        """Return a claim with what bears it out; nothing does where it is unsupported."""
        vector = self._call.embed([text])[0] if self._call.embed else None
        support = self._transcript.support(text, vector)
        evidence = [
            each
            for sentence in support.sentences
            for each in sentence.evidence(self._source, self._version, support.score)
        ]
        return {"text": text, "supported": bool(evidence), "evidence": evidence}

    def action(self, action: dict[str, Any]) -> dict[str, Any]:
        """Return an action; who and when only where they are of this call."""
        owner, due = action.get("owner"), action.get("due")
        claim = self.claim(action["text"])
        spoken = due is not None and claim["supported"] and self._transcript.has_words(due)
        return {
            "text": claim["text"],
            "owner": owner if owner in self._legs - {"mixed"} else None,
            "due": due if spoken else None,
            "supported": claim["supported"],
            "evidence": claim["evidence"],
        }


# ---- the stored form


def _fields(call: _Call, found: dict[str, Any]) -> dict[str, Any]:
    """Return what the rules found as claims."""

    def claim(each: Found) -> dict[str, Any]:
        evidence = [
            quote
            for sentence in each.sentences
            for quote in sentence.evidence(each.rule, call.known.version)
        ]
        return _claim(each.text, evidence)

    return {
        "reason": claim(found["reason"]) if found["reason"] else None,
        "outcome": claim(found["outcome"]) if found["outcome"] else None,
        "actions": [{**claim(e), "owner": e.owner, "due": e.due} for e in found["actions"]],
        "open_questions": [claim(each) for each in found["open_questions"]],
    }


def _claim(text: str, evidence: list[dict[str, Any]]) -> dict[str, Any]:
    return {"text": text, "supported": True, "evidence": evidence}


def _result(
    call: _Call,
    method: str,
    headline: str | None,
    claims: list[dict[str, Any]],
    fields: dict[str, Any],
    about: dict[str, Any],
) -> dict[str, Any]:
    return {
        "method": method,
        "headline": headline,
        "text": " ".join(_ended(each["text"]) for each in claims if each["supported"]),
        "sentences": claims,
        **fields,
        "language": call.language,
        "engine": about["name"],
        "model": about["model"],
        "version": about["version"],
        "parameters": about["parameters"],
    }


def _ended(text: str) -> str:
    """Return a sentence with a full stop where it has no end of its own."""
    text = text.rstrip(" ,;:-")
    return text if text.endswith((".", "?", "!", "…", "。", "？", "！", "؟", "।")) else f"{text}."  # noqa: RUF001


STEP = Step(name="summarize", needs=("transcribe",), result="summary", run=run)
