"""Which words of a call name people, places and organisations.

Nothing decides alone: each mention of a run of words votes by what stands around it (``my name
is``, ``from``), a model's label and the lists of known names and places vote once, and the whole
call gives each run one label. So a name that was introduced once stays a name wherever it comes
again.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from callcore.engines import FoundSpan
from callcore.entity_rules.lexicon import Lexicon, known_names, known_places
from callcore.entity_rules.texts import Phrase, is_uncased, phrases, words

#: Votes that a run needs to be taken: one clear sign, or two weak ones.
THRESHOLD = 2.0
#: Characters before a run that are looked at.
_BEFORE = 80
#: What a model's label means here, and which vote it gives.
_MODEL_LABELS = {
    "PERSON": "NAME", "PER": "NAME",
    "GPE": "LOCATION", "LOC": "LOCATION", "FAC": "LOCATION",
    "ORG": "ORGANIZATION", "NORP": "",
}  # fmt: skip
#: "from Thika, Kiambu", "Thika in Kiambu": a place goes on.
_SAID = {3: "rule:introduction", 2: "rule:address", 1: "rule:context"}
_CHAIN = re.compile(r"\s*(?:,|, in|in|,? of)\s*$", re.I)
_VOCATIVE = re.compile(r",\s*$")
_SENTENCE_OVER = re.compile(r"^\s*(?:[.?!…]|$)")
_COMMA = re.compile(r"^\s*,")


@dataclass(slots=True)
class Votes:
    """What speaks for the labels of one run of words, over the whole call."""

    by_label: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    sources: dict[str, str] = field(default_factory=dict)
    """By label what said most."""
    strongest: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    unsure: list[tuple[str, float, str]] = field(default_factory=list)
    """Votes of mentions that begin a sentence, where a capital says nothing."""
    organization: bool = False
    """Whether its words are those of an organisation: then lists and models make it no person."""
    inside: bool = False
    """Whether it also comes inside a sentence."""
    models: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """By label how often a model gave it; "" where it gave none."""

    def add(self, label: str, weight: float, source: str) -> None:
        """Count one vote."""
        self.by_label[label] += weight
        if weight > self.strongest[label]:
            self.strongest[label] = weight
            self.sources[label] = source


@dataclass(frozen=True, slots=True)
class Decided:
    """A run of words with its label."""

    phrase: Phrase
    start: int
    end: int
    label: str
    source: str


def names(
    texts: Sequence[str],
    lexicon: Lexicon,
    recognized: Sequence[Sequence[FoundSpan]],
    asked: Sequence[str | None],
    model: str = "spacy",
) -> list[list[Decided]]:
    """Return, for each text, the people, places and organisations in it.

    Args:
        texts: The segments of a call, in order.
        lexicon: The words of their language.
        recognized: What a model found in each text; empty lists without one.
        asked: For each text the label that the question before it asked for.
        model: Source to name where the model said most.
    """
    runs = _trimmed([phrases(text, lexicon) for text in texts])
    votes: dict[str, Votes] = defaultdict(Votes)
    for text, found, spans, wanted in zip(texts, runs, recognized, asked, strict=True):
        _vote(text, found, spans, wanted, lexicon, votes)
    for key, mine in votes.items():
        _once(key, mine, model)
    labels = _labels(votes)
    return [
        _with_repeats(
            text,
            [each for phrase in found for each in _decided(text, phrase, labels, lexicon)],
            labels,
        )
        for text, found in zip(texts, runs, strict=True)
    ]


def names_of_model(
    texts: Sequence[str], recognized: Sequence[Sequence[FoundSpan]], model: str
) -> list[list[Decided]]:
    """Return what a model found, each name with the label that it gave it most often."""
    bare = [
        [each for span in spans for each in _bare(text, span)]
        for text, spans in zip(texts, recognized, strict=True)
    ]
    given: dict[str, Counter[str]] = defaultdict(Counter)
    for text, spans in zip(texts, bare, strict=True):
        for span in spans:
            given[text[span.start : span.end].lower()][_MODEL_LABELS.get(span.label, "")] += 1
    found: list[list[Decided]] = []
    for text, spans in zip(texts, bare, strict=True):
        found.append([])
        for span in spans:
            (label, _), *_rest = given[text[span.start : span.end].lower()].most_common(1)
            if label:
                phrase = Phrase(span.start, span.end, ())
                found[-1].append(Decided(phrase, span.start, span.end, label, model))
    return found


def _bare(text: str, span: FoundSpan) -> Iterator[FoundSpan]:
    """Yield a model's span without white space around it; one that is nothing else is dropped."""
    quoted = text[span.start : span.end]
    start = span.start + len(quoted) - len(quoted.lstrip())
    if quoted.strip():
        yield replace(span, start=start, end=start + len(quoted.strip()))


def _trimmed(runs: list[list[Phrase]]) -> list[list[Phrase]]:
    """Drop the first word of runs that only begin a sentence: "Then Amina", "Poor Otieno"."""
    inside = {phrase.key for found in runs for phrase in found if not phrase.initial}
    trimmed = []
    for found in runs:
        kept = []
        for phrase in found:
            rest = " ".join(word.key for word in phrase.words[1:])
            if (
                phrase.initial
                and any(rest in known for known in (inside, known_names(), known_places()))
                and phrase.words[0].key not in known_names()
                and phrase.key not in known_places()
            ):
                phrase = Phrase(phrase.words[1].start, phrase.end, phrase.words[1:])
            kept.append(phrase)
        trimmed.append(kept)
    return trimmed


def _vote(
    text: str,
    found: Sequence[Phrase],
    spans: Sequence[FoundSpan],
    wanted: str | None,
    lexicon: Lexicon,
    votes: dict[str, Votes],
) -> None:
    """Count what stands around each run of a text."""
    uncased = is_uncased(text)
    place_end: int | None = None  # of the run before, if it names a place
    for number, phrase in enumerate(found):
        mine = votes[phrase.key]
        before = text[max(0, phrase.start - _BEFORE) : phrase.start]
        after = text[phrase.end : phrase.end + _BEFORE]
        organization = lexicon.organization_kinds.match(after)
        if organization and not uncased:
            mine.add("ORGANIZATION", 3, "rule:organization")
            continue
        chained = place_end is not None and _CHAIN.fullmatch(text[place_end : phrase.start])
        if not lexicon.organization_words.isdisjoint(phrase.key.split()):
            mine.organization = True
            continue
        place = _place_vote(before, after, lexicon)
        name, rule = _name_vote(before, after, lexicon)
        if uncased and name < 3 and _organization_follows(after, lexicon):
            mine.organization, name = True, 0.0
        if chained and name < 3:
            place, name = max(place, 2.0), 0.0
        if name < 2 and _place_follows(text, phrase, found[number + 1 : number + 2]):
            place = max(place, 2.0)
        if place >= 2 and name < 3:
            name = 0.0
        if not chained and place < 2 and name < 2:
            previous = found[number - 1 : number]
            vocative = _vocative_vote(before, after, phrase, previous, text, uncased)
            if vocative > name:
                name, rule = vocative, "rule:address"
        if (
            wanted in ("NAME", "LOCATION")
            and phrase.start < 40
            and number == 0
            and not (name >= 2 or place >= 2)
            and (wanted == "LOCATION" or _opens(text, phrase, lexicon))
        ):
            mine.add(wanted, 3, "rule:answer")
        if uncased:  # where every word looks alike, a preposition before it says nothing
            place, name = (weight if weight >= 2 else 0.0 for weight in (place, name))
        if place:
            mine.add("LOCATION", place, "rule:place")
        if name and phrase.initial and rule in ("rule:context", "rule:address"):
            mine.unsure.append(("NAME", name, rule))
        elif name:
            mine.add("NAME", name, rule)
        mine.inside |= not phrase.initial
        mine.models[_model_label(phrase, spans)] += 1
        kind = lexicon.place_kinds.match(text, phrase.end)
        place_end = None if place < 2 else kind.end() if kind else phrase.end


def _opens(text: str, phrase: Phrase, lexicon: Lexicon) -> bool:
    """Whether a run begins an answer and may be a name: "Yes, it's Otieno."."""
    place = phrase.key in known_places() and phrase.key not in known_names()
    return not place and lexicon.answers.fullmatch(text[: phrase.start]) is not None


def _organization_follows(after: str, lexicon: Lexicon) -> bool:
    """Whether a run goes on as that of an organisation: "harper valley national bank"."""
    for word in after.split()[:3]:
        if word in lexicon.organization_words or word in lexicon.kinds_of_organizations:
            return True
        if word in lexicon.not_names_uncased or not word.isalpha():
            return False
    return False


def _place_follows(text: str, phrase: Phrase, following: Sequence[Phrase]) -> bool:
    """Whether a known place follows: "Forest Ranch, California"."""
    if not following or text[phrase.end : following[0].start].strip() != ",":
        return False
    return following[0].key in known_places() and following[0].key not in known_names()


def _name_vote(before: str, after: str, lexicon: Lexicon) -> tuple[float, str]:
    for weight, pattern in lexicon.name_before:
        if pattern.search(before):
            return float(weight), _SAID[weight]
    relation = re.search(rf"\b(?:{lexicon.relation}),?\s+(?:is\s+)?$", before, re.I)
    if relation:
        return 3.0, "rule:relation"
    for weight, pattern in lexicon.name_after:
        if pattern.search(after):
            return float(weight), "rule:introduction" if weight > 1 else "rule:context"
    return 0.0, ""


def _place_vote(before: str, after: str, lexicon: Lexicon) -> float:
    if lexicon.place_kinds.match(after):
        return 3.0
    for weight, pattern in lexicon.place_before:
        if pattern.search(before):
            return float(weight)
    return 0.0


def _vocative_vote(
    before: str,
    after: str,
    phrase: Phrase,
    previous: Sequence[Phrase],
    text: str,
    uncased: bool,
) -> float:
    """Return how much a run looks like somebody who is spoken to: "Thank you, Otieno."."""
    listed = bool(previous) and _CHAIN.fullmatch(text[previous[0].end : phrase.start])
    if listed:
        return 0.0
    if uncased and phrase.key in known_places() and phrase.key not in known_names():
        return 0.0  # a place before it may be unknown: "from gituru, kiambu"
    if _VOCATIVE.search(before):
        return 2.0 if _SENTENCE_OVER.match(after) else 1.5 if _COMMA.match(after) else 0.0
    if phrase.initial and _COMMA.match(after):
        return 1.0
    return 0.0


def _model_label(phrase: Phrase, spans: Sequence[FoundSpan]) -> str:
    for span in spans:
        if span.start < phrase.end and phrase.start < span.end:
            return _MODEL_LABELS.get(span.label, "")
    return ""


def _once(key: str, mine: Votes, model: str) -> None:
    """Let the model and the lists vote, once in a call however often the run comes."""
    if mine.models:
        label = max(mine.models, key=lambda each: mine.models[each])
        if label:
            mine.add(label, 1, model)
    if key.split()[0] in known_names():
        mine.add("NAME", 1, "list:names")
    if key in known_places():
        mine.add("LOCATION", 1.5 if " " in key else 1, "list:places")
    if mine.inside or mine.by_label:
        for label, weight, source in mine.unsure:
            mine.add(label, weight, source)


def _labels(votes: Mapping[str, Votes]) -> dict[str, tuple[str, str]]:
    """Return by run its label and what said so: the most votes, if they are enough."""
    labels: dict[str, tuple[str, str]] = {}
    for key, mine in votes.items():
        if not mine.by_label:
            continue
        label = max(mine.by_label, key=lambda each: mine.by_label[each])
        no_person = label == "NAME" and mine.organization and mine.strongest[label] < 2
        if mine.by_label[label] >= THRESHOLD and not no_person:
            labels[key] = (label, mine.sources[label])
    # A part of a name of several words is the same person: "Mary Jones", then "Mary".
    for key, (label, _) in list(labels.items()):
        if label == "NAME" and " " in key:
            for part in (key.split()[0], key.split()[-1]):
                known = votes.get(part)
                if part not in labels and known is not None and not known.by_label["LOCATION"] > 2:
                    labels[part] = ("NAME", "rule:part")
    return labels


def _with_repeats(
    text: str, found: list[Decided], labels: Mapping[str, tuple[str, str]]
) -> list[Decided]:
    """Add what a text without capitals says again of what the call introduced."""
    if not is_uncased(text):
        return found
    taken = {place for each in found for place in range(each.start, each.end)}
    for word in words(text):
        label, source = labels.get(word.key, ("", ""))
        if word.start not in taken and source in ("rule:introduction", "rule:answer", "rule:part"):
            phrase = Phrase(word.start, word.end, (word,))
            found.append(Decided(phrase, word.start, word.end, label, source))
    return sorted(found, key=lambda each: each.start)


def _decided(
    text: str, phrase: Phrase, labels: Mapping[str, tuple[str, str]], lexicon: Lexicon
) -> list[Decided]:
    whole = labels.get(phrase.key)
    if whole is None and len(phrase.words) > 1:
        # "Hello Njeri": the run is longer than the name that is known from elsewhere.
        parts = [
            Decided(Phrase(word.start, word.end, (word,)), word.start, word.end, *labels[word.key])
            for word in phrase.words
            if word.key in labels
        ]
        return parts[:1] if parts else []
    if whole is None:
        return []
    label, source = whole
    end = phrase.end
    kinds = {"LOCATION": lexicon.place_kinds, "ORGANIZATION": lexicon.organization_kinds}
    if label in kinds:
        more = kinds[label].match(text, phrase.end)
        end = more.end() if more else end
    return [Decided(phrase, phrase.start, end, label, source)]
