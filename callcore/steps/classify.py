"""What a call is about: its type, categories, urgency and flags, each with the words that say so.

Two witnesses: sentences are compared with a taxonomy's hints and examples (an embedding: English
text, so another language is read in its English translation), and rules look for words, in the
original and in the translation. A silent, abusive, prank or mistaken call is an answer like any
other. What nothing speaks for is left out.
"""

import itertools
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from callcore import category_rules, category_scores, evidence, taxonomies
from callcore.category_rules import RuleMatch, Span
from callcore.category_scores import Fit, Prototypes, Vectors
from callcore.steps import Step, StepContext
from callcore.taxonomies import CallType, Category, Taxonomy

_ENGINE = "embedder"
#: Language that the embedding knows.
_ENGLISH = "en"

#: Score from which a category is named.
NAMED_FROM = 0.3
#: Score from which a critical category is named if no rule and no person speaks for it.
_CRITICAL_FROM = 0.6
#: Share of the best category's score from which another that no rule speaks for is named beside it.
_BESIDE = 0.5
#: Score from which a category makes a call urgent.
_URGENT_FROM = 0.5
#: Score from which likeness alone makes a call critical; below, it is of high urgency at most.
_SURE_FROM = 0.8
#: Score from which a call is taken for a prank, abusive or a mistake, if no category beats it.
_NO_DATA_FROM = 0.5
#: Score from which a call type with data is named.
_TYPE_FROM = 0.4
#: Categories that are named of one taxonomy.
_MOST_CATEGORIES = 8
#: Pieces of evidence of one claim.
_MOST_EVIDENCE = 5
#: Cosine from which a sentence is evidence: below, it only leans that way.
_EVIDENCE_FROM = 0.35
#: Words of a sentence that is compared alone; shorter ones count with their neighbour.
_FEWEST_WORDS = 4
#: Seconds within which a rule that matches again belongs to the same flag.
_SAME_FLAG_S = 60.0
_FLAGGED = ("warning", "critical")

#: Texts that one call of the engine takes: it stays killable, and progress can be told.
_BLOCK = 128
#: Vectors of prototypes that are kept: the same few hundred for every call.
_MOST_KEPT = 20_000
_kept: dict[tuple[str, str, str], Vectors] = {}

_SENTENCE = re.compile(r"\S.*?(?:[.!?…]+(?=\s|$)|$)", re.DOTALL)

_FLAG_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "callcore:flag")

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Utterance:
    """What is searched: an utterance in the original or in translation."""

    leg: str
    text: str
    segments: tuple[Mapping[str, Any], ...]
    """The segments of the transcript that say it."""
    translated: bool = False

    def quote(self, first: int, last: int, source: str, version: str, score: float) -> list[Json]:
        """Return the evidence that a stretch of the text is: exact words at their times.

        Of a translation it is the whole original utterance: its words stand elsewhere there.
        """
        about: Any = {"source": source, "version": version, "score": score}
        if self.translated:
            return [evidence.whole(segment, **about) for segment in self.segments]
        return [evidence.quote(self.segments[0], first, last, **about)]


@dataclass(frozen=True, slots=True)
class Stretch:
    """A sentence, or two that follow each other: what is compared with a taxonomy."""

    sentences: tuple[str, ...]
    utterance: int
    """Index of the utterance, of the first sentence's where there are two."""
    first: int
    """Index in the utterance's text of the first character that can be shown."""
    last: int
    alone: bool
    """Whether it is one sentence, which can be shown as evidence."""


@dataclass(frozen=True, slots=True)
class Heard:
    """A call made ready to be classified."""

    utterances: tuple[Utterance, ...]
    """The original ones, then the translated."""
    english: range
    """Those of them that are in English."""
    num_words: int
    """Words of the caller, of everybody where legs do not tell."""


def run(context: StepContext) -> Json:
    """Return call type, categories, priority and flags of the call."""
    transcript = context.results["transcribe"]
    translation = context.results.get("translate")
    heard = hear(transcript, translation)
    known = taxonomies.load(context.settings.taxonomies)
    corrections = context.corrections()
    stretches = _stretches(heard)
    compared = bool(stretches)
    about: Json = {"name": None, "model": None, "version": None, "parameters": {}}
    vectors: dict[str, Vectors] = {}
    matrix = np.zeros((0, 1), np.float32)
    prototypes = {
        taxonomy.id: (
            category_scores.category_prototypes(taxonomy, corrections),
            category_scores.call_type_prototypes(taxonomy),
        )
        for taxonomy in known
    }
    if compared:
        about = context.engines.attributes(_ENGINE, "name", "model", "version", "parameters")
        matrix = _embed(context, [stretch.sentences for stretch in stretches])
        vectors = _prototype_vectors(context, about, prototypes.values())
    views = [
        _View(taxonomy, heard, stretches, matrix, vectors, prototypes[taxonomy.id], about)
        for taxonomy in known
    ]
    return {
        "taxonomies": [{"id": each.id, "version": each.version} for each in known],
        "call_type": next((view.call_type() for view in views if view.taxonomy.call_types), None),
        "categories": [category for view in views for category in view.categories()],
        "priority": _most_urgent([view.priority() for view in views]),
        "flags": sorted(
            (flag for view in views for flag in view.flags(context.call.call_id)),
            key=lambda flag: (flag["at_s"], flag["rule"]),
        ),
        # Which text was compared with hints and examples; rules read the original as well.
        "text": _text_used(heard, translation) if compared else None,
        "engine": about["name"],
        "model": about["model"],
        "version": about["version"],
        "parameters": {**about["parameters"], "named_from": NAMED_FROM} if compared else {},
    }


def hear(transcript: Mapping[str, Any], translation: Mapping[str, Any] | None) -> Heard:
    """Return what was said, with its English translation where there is one.

    Args:
        transcript: Result of the step ``transcribe``.
        translation: Result of the step ``translate``; None where it has none.
    """
    segments = [each for each in transcript["segments"] if each["text"].strip()]
    said = [Utterance(each["leg"], each["text"], (each,)) for each in segments]
    by_caller = [u for u in said if category_rules.role_of(u.leg) != "agent"]
    num_words = sum(len(u.text.split()) for u in by_caller)
    language = transcript.get("language")
    if language in (None, _ENGLISH):
        return Heard(tuple(said), range(len(said)), num_words)
    translated: list[Utterance] = []
    if translation and translation.get("target") == _ENGLISH and translation.get("method"):
        for each in translation["segments"]:
            originals = _originals(each, segments)
            if each["text"].strip() and originals:
                translated.append(Utterance(each["leg"], each["text"], originals, True))
    english = range(len(said), len(said) + len(translated))
    return Heard((*said, *translated), english, num_words)


def _originals(
    translated: Mapping[str, Any], segments: Sequence[Mapping[str, Any]]
) -> tuple[Mapping[str, Any], ...]:
    """Return the segments that a translated one says, by number or else by time."""
    if translated.get("segment") is not None:
        return tuple(each for each in segments if each["segment"] == translated["segment"])
    return tuple(
        each
        for each in segments
        if each["leg"] == translated["leg"]
        and each["start"] < translated["end"]
        and each["end"] > translated["start"]
    )


def _text_used(heard: Heard, translation: Mapping[str, Any] | None) -> Json:
    translated = heard.utterances[heard.english.start].translated
    return {
        "from": "translate" if translated else "transcribe",
        "language": _ENGLISH,
        "method": translation.get("method") if translated and translation else None,
    }


def _stretches(heard: Heard) -> list[Stretch]:
    """Return the sentences of the English text, each with the one after it, long utterances."""
    sentences = [
        Stretch((hit.group().strip(),), index, hit.start(), hit.end(), alone=True)
        for index in heard.english
        # "Does he hit you?" says nothing of what happened: where legs tell, only callers count.
        if category_rules.role_of(heard.utterances[index].leg) != "agent"
        for hit in _SENTENCE.finditer(heard.utterances[index].text)
    ]
    pairs = [
        Stretch(one.sentences + two.sentences, one.utterance, one.first, one.last, alone=False)
        for one, two in itertools.pairwise(sentences)
    ]
    alone = [each for each in sentences if len(each.sentences[0].split()) >= _FEWEST_WORDS]
    return [*alone, *pairs, *_long_utterances(heard, sentences)] or sentences


def _long_utterances(heard: Heard, sentences: Sequence[Stretch]) -> list[Stretch]:
    """Return the utterances of more than two sentences: a correction names whole utterances."""
    found = []
    for index, group in itertools.groupby(sentences, key=lambda each: each.utterance):
        parts = tuple(each.sentences[0] for each in group)
        if len(parts) > 2:
            found.append(Stretch(parts, index, 0, len(heard.utterances[index].text), alone=False))
    return found


def _split(text: str) -> tuple[str, ...]:
    return tuple(hit.group().strip() for hit in _SENTENCE.finditer(text))


def _embed(context: StepContext, texts: Sequence[tuple[str, ...]]) -> Vectors:
    """Return a vector for each text: the mean of its sentences', weighted by their lengths.

    The model's own vectors are means over words, so two sentences need no run of their own; every
    different sentence goes to the engine once.
    """
    different = list(dict.fromkeys(sentence for text in texts for sentence in text))
    blocks = []
    for first in range(0, len(different), _BLOCK):
        blocks.append(context.engines.call(_ENGINE, "embed", different[first : first + _BLOCK]))
        context.progress(min(1.0, (first + _BLOCK) / len(different)) * 0.9)
    vectors = np.concatenate(blocks)
    row = {sentence: index for index, sentence in enumerate(different)}
    sums = np.stack(
        [
            np.average(
                vectors[[row[sentence] for sentence in text]],
                axis=0,
                weights=[len(sentence) for sentence in text],
            )
            for text in texts
        ]
    )
    lengths = np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-9)
    return np.asarray(sums / lengths, np.float32)


def _prototype_vectors(
    context: StepContext, about: Json, prototypes: Iterable[tuple[Prototypes, Prototypes]]
) -> dict[str, Vectors]:
    engine = (f"{about['name']} {about['version']}", str(about["model"]))
    wanted = dict.fromkeys(
        text for pair in prototypes for each in pair for text in (*each.texts, *each.counter_texts)
    )
    found = {text: _kept.get((*engine, text)) for text in wanted}
    missing = [text for text, vector in found.items() if vector is None]
    if missing:
        fresh = dict(zip(missing, _embed(context, [_split(each) for each in missing]), strict=True))
        if len(_kept) + len(fresh) > _MOST_KEPT:
            _kept.clear()
        _kept.update({(*engine, text): vector for text, vector in fresh.items()})
        found.update(fresh)
    return {text: vector for text, vector in found.items() if vector is not None}


class _View:
    """A call as one taxonomy sees it."""

    def __init__(
        self,
        taxonomy: Taxonomy,
        heard: Heard,
        stretches: Sequence[Stretch],
        matrix: Vectors,
        vectors: Mapping[str, Vectors],
        prototypes: tuple[Prototypes, Prototypes],
        about: Json,
    ) -> None:
        self.taxonomy = taxonomy
        self._heard = heard
        self._stretches = stretches
        self._engine_version = f"{about['model']} {about['version']}"
        said = [(each.leg, each.text) for each in heard.utterances]
        self._matches = category_rules.match(taxonomy.rules, said)
        by_category = {
            category: self._believed(matches, prototypes[0], vectors, matrix, category)
            for category, matches in _by(self._matches, lambda match: match.rule.category).items()
        }
        by_type = _by(self._matches, lambda match: match.rule.call_type)
        self._fits = category_scores.fits(
            prototypes[0], vectors, matrix, by_category, contradicted=self._contradicted(said)
        )
        self._type_fits = category_scores.fits(
            prototypes[1], vectors, matrix, by_type, category_scores.CALL_TYPE_DOUBT
        )
        self._serious = any(match.rule.severity in _FLAGGED for match in self._matches)

    def _contradicted(self, said: Sequence[tuple[str | None, str]]) -> dict[str, list[int]]:
        """Return the stretches that deny a category: "nobody hits me" is much like "he hits me".

        What denies one kind of violence speaks for no other kind of it either.
        """
        found: dict[str, list[int]] = {}
        for match in category_rules.denials(self.taxonomy.rules, said):
            if match.rule.category is None:
                continue
            top = match.rule.category.partition(".")[0]
            rows = [
                row
                for row, stretch in enumerate(self._stretches)
                for span in match.spans
                if stretch.utterance == span.index
                and stretch.first <= span.last
                and span.first <= stretch.last
            ]
            for category in self.taxonomy.categories:
                if category.path[0] == top:
                    found.setdefault(category.id, []).extend(rows)
        return found

    def _believed(
        self,
        matches: Iterable[RuleMatch],
        prototypes: Prototypes,
        vectors: Mapping[str, Vectors],
        matrix: Vectors,
        category: str,
    ) -> list[RuleMatch]:
        """Return the matches without those in words that somebody said are not of the category."""
        rows = category_scores.denied(prototypes, vectors, matrix, category)
        denied = {
            segment["segment"]
            for row in rows
            for segment in self._heard.utterances[self._stretches[row].utterance].segments
        }
        return [
            match
            for match in matches
            if not any(
                segment["segment"] in denied
                for span in match.spans
                for segment in self._heard.utterances[span.index].segments
            )
        ]

    def call_type(self) -> Json:
        """Return what kind of contact the call is; all null where nothing tells."""
        types = {each.id: each for each in self.taxonomy.call_types}
        best = self._fits[0].score if self._fits else 0.0
        for fit in self._type_fits:
            no_data = not types[fit.id].data and types[fit.id].max_words is None
            # Likeness alone takes no call that is about something for one that is about nothing.
            beaten = best >= (max(fit.score, NAMED_FROM) if fit.matches else NAMED_FROM)
            if no_data and fit.score >= _NO_DATA_FROM and not beaten and not self._serious:
                return self._type(fit)
        short = self._too_short(types.values())
        if short and (not self._heard.num_words or (best < NAMED_FROM and not self._serious)):
            return {"id": short.id, "score": 1.0, "source": "words", "evidence": self._all_said()}
        for fit in self._type_fits:
            if types[fit.id].data and fit.score >= _TYPE_FROM:
                return self._type(fit)
        plain = [each for each in types.values() if each.data and not self._is_described(each)]
        if plain and best >= NAMED_FROM:
            # A type that nothing describes is what is left: any call with a concern.
            return {"id": plain[0].id, "score": None, "source": "default", "evidence": []}
        return {"id": None, "score": None, "source": None, "evidence": []}

    def _is_described(self, call_type: CallType) -> bool:
        ruled = any(rule.call_type == call_type.id for rule in self.taxonomy.rules)
        return bool(ruled or call_type.hints or call_type.examples)

    def _too_short(self, types: Iterable[CallType]) -> CallType | None:
        """Return the type of calls with as few words, the narrowest of them."""
        limits = [
            (each.max_words, each)
            for each in types
            if each.max_words is not None and self._heard.num_words <= each.max_words
        ]
        return min(limits, key=lambda limit: limit[0])[1] if limits else None

    def _all_said(self) -> list[Json]:
        """Return the few words that a caller said before they hung up."""
        return [
            piece
            for each in self._heard.utterances
            if not each.translated and category_rules.role_of(each.leg) != "agent"
            for piece in each.quote(0, len(each.text), "words", self.taxonomy.version, 1.0)
        ][:_MOST_EVIDENCE]

    def _type(self, fit: Fit) -> Json:
        score, shown = round(fit.score, 3), self._evidence(fit)
        return {"id": fit.id, "score": score, "source": fit.source, "evidence": shown}

    def categories(self) -> list[Json]:
        """Return the categories that the call is about, the best first."""
        known = {each.id: each for each in self.taxonomy.categories}
        named: list[Json] = []
        for fit in self._named():
            category = known[fit.id]
            named.append(
                {
                    "taxonomy": self.taxonomy.id,
                    "id": category.id,
                    "label": category.label["en"],
                    "path": list(category.path),
                    "score": round(fit.score, 3),
                    "rank": len(named) + 1,
                    "source": fit.source,
                    "severity": category.severity,
                    "evidence": self._evidence(fit),
                }
            )
        return named

    def _named(self) -> list[Fit]:
        known = {each.id: each for each in self.taxonomy.categories}
        named: list[Fit] = []
        for fit in self._fits:
            if fit.score < NAMED_FROM or len(named) == _MOST_CATEGORIES:
                break
            critical = known[fit.id].severity == "critical"
            enough = max(_BESIDE * self._fits[0].score, _CRITICAL_FROM if critical else 0.0)
            if not fit.matches and fit.source != "human" and fit.score < enough:
                continue
            # "Violence" says nothing more where "Physical violence" is named already.
            if not any(_is_below(known[each.id], fit.id) for each in named):
                named.append(fit)
        return named

    def priority(self) -> Json | None:
        """Return how urgent the call is and why; None where nothing tells."""
        matches = _by(self._matches, lambda match: match.rule.id)
        paths = {each.id: each.path for each in self.taxonomy.categories}
        urgent = [fit for fit in self._named() if fit.score >= _URGENT_FROM]
        reasons: list[tuple[str, float, Json]] = []
        for each in self.taxonomy.priorities:
            held = [match for rule in each.rules for match in matches.get(rule, ())]
            about = [fit for fit in urgent if set(each.categories) & set(paths[fit.id])]
            if not held and not about:
                continue
            sure = held or any(fit.matches or fit.score >= _SURE_FROM for fit in about)
            level = each.level if sure or each.level != "critical" else "high"
            score = max([*(match.rule.score for match in held), *(fit.score for fit in about)])
            shown = [*self._quotes(held), *(e for fit in about for e in self._evidence(fit))]
            why = {"text": each.why["en"], "evidence": _different(shown)}
            reasons.append((level, round(score, 3), why))
        if not reasons:
            return None
        best = min((level for level, _, _ in reasons), key=taxonomies.LEVELS.index)
        chosen = [(score, why) for level, score, why in reasons if level == best]
        return {
            "level": best,
            "score": max(score for score, _ in chosen),
            "why": [why for _, why in chosen],
        }

    def flags(self, call_id: str) -> list[Json]:
        """Return the rules with severity warning or critical that matched, per leg and minute."""
        flags: list[Json] = []
        last: dict[tuple[str, str], Json] = {}
        for match in self._matches:
            if match.rule.severity not in _FLAGGED:
                continue
            shown = self._quotes([match])
            first = min(shown, key=lambda piece: piece["start"])
            key = (match.rule.id, first["leg"])
            flag = last.get(key)
            if flag and first["start"] <= flag["evidence"][-1]["end"] + _SAME_FLAG_S:
                flag["evidence"] = _different([*flag["evidence"], *shown], most=20)
                continue
            at_s = first["start"]
            name = f"{call_id}:{match.rule.id}:{first['leg']}:{int(at_s)}"
            last[key] = {
                "flag_id": str(uuid.uuid5(_FLAG_NAMESPACE, name)),
                "rule": match.rule.id,
                "rule_version": self.taxonomy.version,
                "severity": match.rule.severity,
                "label": match.rule.label.get("en", match.rule.id),
                "leg": first["leg"],
                "at_s": at_s,
                "evidence": shown,
                "state": "open",
            }
            flags.append(last[key])
        return flags

    def _evidence(self, fit: Fit) -> list[Json]:
        """Return the words of rules first, then the sentences that are nearest."""
        shown = self._quotes(fit.matches)[: _MOST_EVIDENCE - 2]
        for index, cosine in fit.near:
            stretch = self._stretches[index]
            if stretch.alone and cosine >= _EVIDENCE_FROM:
                shown += self._heard.utterances[stretch.utterance].quote(
                    stretch.first, stretch.last, "embedding", self._engine_version, cosine
                )
        return _different(shown)

    def _quotes(self, matches: Iterable[RuleMatch]) -> list[Json]:
        version = self.taxonomy.version
        return [
            piece
            for match in matches
            for span in _merged(match.spans)
            for piece in self._heard.utterances[span.index].quote(
                span.first, span.last, f"rule:{match.rule.id}", version, match.rule.score
            )
        ]


def _by(matches: Iterable[RuleMatch], key: Any) -> dict[str, list[RuleMatch]]:
    found: dict[str, list[RuleMatch]] = {}
    for match in matches:
        if key(match) is not None:
            found.setdefault(key(match), []).append(match)
    return found


def _is_below(category: Category, ancestor: str) -> bool:
    return ancestor in category.path and category.id != ancestor


def _merged(spans: Sequence[Span]) -> list[Span]:
    """Return spans of which none overlap: what several patterns found is shown once."""
    merged: list[Span] = []
    for span in spans:
        if merged and merged[-1].index == span.index and span.first < merged[-1].last:
            last = max(span.last, merged[-1].last)
            merged[-1] = Span(span.index, merged[-1].first, last)
        else:
            merged.append(span)
    return merged


def _different(shown: Iterable[Json], most: int = _MOST_EVIDENCE) -> list[Json]:
    """Return the first pieces that are not the same words again."""
    found: dict[tuple[Any, ...], Json] = {}
    for piece in shown:
        found.setdefault((piece["segment"], piece["start"], piece["end"]), piece)
    return list(found.values())[:most]


def _most_urgent(priorities: Iterable[Json | None]) -> Json | None:
    known = [each for each in priorities if each]
    return min(known, key=lambda each: taxonomies.LEVELS.index(each["level"]), default=None)


STEP = Step(
    name="classify", needs=("transcribe",), result="categories", run=run, after=("translate",)
)
