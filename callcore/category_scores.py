"""How well what was said fits the categories and call types of a taxonomy: numbers only.

Every hint, example and label of a category is a prototype; a stretch of the call is as near to a
category as to its nearest prototype, and the call as the nearest few of its stretches on average.
Words of people join in: utterances of calls that somebody put into a category are prototypes
too, those of calls that are *not* of it keep stretches like them from counting. Rules are a second,
independent witness.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from callcore.calls import Correction
from callcore.category_rules import RuleMatch
from callcore.taxonomies import Taxonomy

Vectors = npt.NDArray[np.float32]

#: Stretches of a call that speak for a category: this share of them, but no more than so many.
#: One sentence may be near to anything; what a call is about is said more than once.
_SHARE = 0.15
_FEWEST_STRETCHES = 2
_MOST_STRETCHES = 5
#: Nearness (cosine) at which a call fits a category as likely as not, and how fast that changes.
_MIDDLE = 0.50
_SLOPE = 0.06
#: Doubt that an utterance in which a rule holds leaves: of a category one word is a weak sign; what
#: kind of contact it is, people say once.
CATEGORY_DOUBT = 0.5
CALL_TYPE_DOUBT = 0.25
#: A stretch that is nearer to a counter-example than this, and than to any example, does not count.
_COUNTER = 0.5
#: Cosine from which two stretches are the same words.
_SAME = 0.97


@dataclass(frozen=True, slots=True)
class Prototypes:
    """What stretches of a call are compared with."""

    texts: tuple[str, ...]
    owners: tuple[str, ...]
    """Id of the category or call type of each text."""
    sources: tuple[str, ...]
    """``embedding`` for hints and labels, ``example``, or ``human`` for words of corrections."""
    counter_texts: tuple[str, ...] = ()
    counter_owners: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Fit:
    """How well a call fits one category or call type."""

    id: str
    score: float
    """0 to 1, words and rules together."""
    source: str
    """What speaks most for it: ``rule``, ``embedding`` (a hint), ``example``, or ``human``.

    It is ``human`` only where somebody said so of these very words; what is merely like words of
    another call that was corrected is ``example``.
    """
    near: tuple[tuple[int, float], ...] = ()
    """Stretches that are nearest to it, with their cosines; the nearest first."""
    matches: tuple[RuleMatch, ...] = ()


def category_prototypes(taxonomy: Taxonomy, corrections: Iterable[Correction]) -> Prototypes:
    """Return the prototypes of a taxonomy's categories, corrections among them."""
    rows: list[tuple[str, str, str]] = []
    for category in taxonomy.categories:
        # A heading such as "Violence", which only holds others together, is no category of calls.
        if category.hints or category.examples:
            rows += [(text, category.id, "embedding") for text in category.hints]
            rows.append((category.label["en"], category.id, "embedding"))
            rows += [(text, category.id, "example") for text in category.examples]
    known = {category.id for category in taxonomy.categories}
    counters: list[tuple[str, str]] = []
    for each in corrections:
        if each.taxonomy == taxonomy.id and each.category in known:
            if each.verdict == "wrong":
                counters += [(text, each.category) for text in each.texts if text.strip()]
            else:
                rows += [(text, each.category, "human") for text in each.texts if text.strip()]
    return _prototypes(rows, counters)


def call_type_prototypes(taxonomy: Taxonomy) -> Prototypes:
    """Return the prototypes of a taxonomy's call types."""
    rows: list[tuple[str, str, str]] = []
    for each in taxonomy.call_types:
        rows += [(text, each.id, "embedding") for text in each.hints]
        rows += [(text, each.id, "example") for text in each.examples]
    return _prototypes(rows, [])


def _prototypes(
    rows: Sequence[tuple[str, str, str]], counters: Sequence[tuple[str, str]]
) -> Prototypes:
    return Prototypes(
        texts=tuple(text for text, _, _ in rows),
        owners=tuple(owner for _, owner, _ in rows),
        sources=tuple(source for _, _, source in rows),
        counter_texts=tuple(text for text, _ in counters),
        counter_owners=tuple(owner for _, owner in counters),
    )


def fits(
    prototypes: Prototypes,
    vectors: Mapping[str, Vectors],
    stretches: Vectors,
    matches: Mapping[str, Sequence[RuleMatch]],
    doubt: float = CATEGORY_DOUBT,
    contradicted: Mapping[str, Iterable[int]] = MappingProxyType({}),
) -> list[Fit]:
    """Return how well a call fits, the best first.

    Args:
        prototypes: What to compare with.
        vectors: The vector of each of their texts, of length 1.
        stretches: Vectors of the call's stretches, shape (n, d); n may be 0.
        matches: Rules that held, by the id of what they speak for.
        doubt: What one utterance in which a rule holds leaves open, 0 to 1.
        contradicted: Stretches whose words deny it, by the id of what they do not speak for.
    """
    cosines = _cosines(prototypes.texts, vectors, stretches)
    counter = _cosines(prototypes.counter_texts, vectors, stretches)
    owners = np.array(prototypes.owners)
    found = []
    for each in dict.fromkeys([*prototypes.owners, *matches]):
        near: tuple[tuple[int, float], ...] = ()
        alike, source = 0.0, "embedding"
        columns = np.flatnonzero(owners == each)
        if len(stretches) and len(columns):
            mine = cosines[:, columns]
            nearest = mine.max(axis=1)
            against = np.flatnonzero(np.array(prototypes.counter_owners) == each)
            if len(against):
                opposed = counter[:, against].max(axis=1)
                nearest = np.where((opposed > _COUNTER) & (opposed >= nearest), 0.0, nearest)
            nearest[list(contradicted.get(each, ()))] = 0.0
            order = np.argsort(-nearest, kind="stable")
            used = order[: _num_stretches(len(stretches))]
            alike = _likely(float(nearest[used].mean()))
            source = prototypes.sources[columns[int(mine[order[0]].argmax())]]
            if source == "human" and nearest[order[0]] < _SAME:
                source = "example"
            near = tuple((int(row), float(nearest[row])) for row in order[:10])
        held = tuple(matches.get(each, ()))
        ruled = rule_score(held, doubt)
        score = 1 - (1 - alike) * (1 - ruled)
        found.append(Fit(each, score, "rule" if ruled > alike else source, near, held))
    return sorted(found, key=lambda fit: -fit.score)


def denied(
    prototypes: Prototypes, vectors: Mapping[str, Vectors], stretches: Vectors, category: str
) -> list[int]:
    """Return the indices of stretches that somebody said are not of this category."""
    columns = [i for i, owner in enumerate(prototypes.counter_owners) if owner == category]
    if not columns:
        return []
    cosines = _cosines([prototypes.counter_texts[i] for i in columns], vectors, stretches)
    return [int(row) for row in np.flatnonzero((cosines >= _SAME).any(axis=1))]


def rule_score(matches: Sequence[RuleMatch], doubt: float) -> float:
    """Return what rules that held say together: more utterances, more certainty."""
    if not matches:
        return 0.0
    places = {span.index for match in matches for span in match.spans}
    return max(match.rule.score for match in matches) * (1 - doubt ** len(places))


def _num_stretches(num: int) -> int:
    return max(min(num, _FEWEST_STRETCHES), min(_MOST_STRETCHES, round(_SHARE * num)))


def _likely(cosine: float) -> float:
    return float(1 / (1 + np.exp(-(cosine - _MIDDLE) / _SLOPE)))


def _cosines(
    texts: Sequence[str], vectors: Mapping[str, Vectors], stretches: Vectors
) -> npt.NDArray[np.float32]:
    if not texts or not len(stretches):
        return np.zeros((len(stretches), len(texts)), np.float32)
    return np.asarray(stretches @ np.stack([vectors[text] for text in texts]).T)
