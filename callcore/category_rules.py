"""Rules over what was said: words and patterns, by whom, and what must not be said beside them.

A rule holds in one utterance (``scope: utterance``), or over the whole call (``scope: call``); what
matched is returned as spans of the utterances, so that it can be shown as evidence. Upper case,
accents, apostrophes and plurals make no difference.

A pattern is words with room for others::

    neighbo*                     words that begin so; (abus|assault)* for several beginnings
    (he|she) is? [num]           alternatives of one or more words, a word that may be left out,
                                 a number in digits or letters
    [word]?                      any word but a denial (not, never, nobody ...)
    knife|gun near/4 (now|here)  at most 4 words between them, in either order
    order not-near/3 drill       the first without the second near it

What is denied was not said: "he never hits me", "nobody hurts me". In a rule with a severity from
``notice`` up, a stretch does not count that has a word such as *not*, *never* or *nobody* at most
three words before it in the same clause; ``unless_negated`` says otherwise for one rule. A rule
without severity names a topic, and a denied topic is one still ("my parcel has not come").
"""

import bisect
import itertools
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: Roles that a condition may ask for.
ROLES = ("caller", "agent")
SCOPES = ("utterance", "call")
SEVERITIES = ("info", "notice", "warning", "critical")

#: Severities of which a rule states a fact: one that is denied is none.
_STATED = ("notice", "warning", "critical")

#: Score that a rule gives its category unless it says so itself.
DEFAULT_SCORE = 0.8

_APOSTROPHES = "'\u2019"
_WORD = re.compile(rf"\w+(?:[{_APOSTROPHES}]\w+)*")
_PATTERN_PART = re.compile(r"\(|\)\*|\)\?|\)|\||\[\w+\]\??|[^\s()|\[\]]+")
_NEAR = re.compile(r"(not-)?near/(\d{1,2})")
_NUMBER = (
    r"(?:\d+|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen"
    r"|fifteen|sixteen|seventeen|eighteen|nineteen|twenty|thirty|forty|fifty) "
)


_NEGATION = (
    "not|never|nobody|none|nothing|neither|nor|without|dont|doesnt|didnt|isnt|arent|wasnt|werent"
    "|wont|wouldnt|cant|cannot|couldnt|havent|hasnt|hadnt|shouldnt|aint"
    # "No, he hits me" answers; "no bruises" and "no one hits me" deny.
    "|no(?: one)?(?! (?:i|he|she|they|it|we|you|my|the) )"
)
#: After these a denial reaches no further: "I do not know why he hits me", "he won't stop it".
_BARRIER = (
    "know|knew|understand|tell|told|say|said|stop|stopped|stand|bear|take|only|just|but|because"
    "|until|unless|since|when|while|if|why|how|that|promise|let|help|sure|care|matter"
)
#: Words between a denial and what it denies.
_REACH = 3
_DENIED = re.compile(rf" (?:{_NEGATION}) (?:(?!(?:{_BARRIER}) )\S+ ){{0,{_REACH}}}$")
_CLAUSE_END = re.compile(r"[.,;:!?\u2026\u2014]|\s-+\s")

#: Bounds of a pattern: with these no text, however long, takes more than a moment to search.
_MOST_NEAR = 2
_FARTHEST = 20
_MOST_OPTIONAL = 10


class RuleError(ValueError):
    """A rule that cannot be compiled; the message says where in it and why."""


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of one utterance."""

    index: int
    """Of the utterance in the sequence that was searched."""
    first: int
    """Index of its first character in the utterance's text."""
    last: int
    """Index after its last character."""


@dataclass(frozen=True, slots=True)
class _Pattern:
    regex: re.Pattern[str]
    """Over folded words, each with a space behind it."""
    without: tuple[tuple[re.Pattern[str], int], ...] = ()
    """What must not be within so many words."""


@dataclass(frozen=True, slots=True)
class _Said:
    """One condition: any of the patterns, said by ``by``."""

    patterns: tuple[_Pattern, ...]
    by: str | None


@dataclass(frozen=True, slots=True)
class _Group:
    """``all``, ``any`` or ``none`` of some conditions; ``given``: all, but no evidence."""

    kind: str
    members: "tuple[_Said | _Group, ...]"


@dataclass(frozen=True, slots=True)
class Rule:
    """A compiled rule."""

    id: str
    label: Mapping[str, str]
    """By language code."""
    groups: tuple[_Group, ...]
    category: str | None = None
    """Category that it speaks for."""
    call_type: str | None = None
    severity: str | None = None
    """``warning`` and ``critical`` raise a flag."""
    score: float = DEFAULT_SCORE
    scope: str = "utterance"
    unless_negated: bool = False
    """Whether what is denied does not count."""
    match: tuple[str, ...] = ()
    """Texts in which it must hold."""
    no_match: tuple[str, ...] = ()
    """Texts in which it must not hold."""


@dataclass(frozen=True, slots=True)
class RuleMatch:
    """A rule that held."""

    rule: Rule
    spans: tuple[Span, ...]
    """What matched, in order; never empty."""


@dataclass(frozen=True, slots=True)
class _Utterance:
    """A text made ready for search."""

    index: int
    role: str | None
    folded: str
    starts: tuple[int, ...]
    """Where each word begins in ``folded``."""
    places: tuple[tuple[int, int], ...]
    """First and last character of each word in the text itself."""
    clauses: tuple[int, ...]
    """Where in ``folded`` the clause of each word begins."""


_GROUPS = ("given", "all", "any", "none")
_KEYS = frozenset(
    [
        *("id", "label", "category", "call_type", "severity", "score", "scope", "by"),
        *("unless_negated", *_GROUPS, "examples"),
    ]
)


def compile_rule(entry: Mapping[str, Any]) -> Rule:
    """Return a rule as written in a file, ready to be matched.

    Raises:
        RuleError: If it is no rule.
    """
    unknown = sorted(set(entry) - _KEYS)
    if unknown:
        raise RuleError(f"has unknown keys: {', '.join(unknown)}")
    examples = entry.get("examples", {})
    by = _choice(entry, "by", (None, *ROLES))
    severity = _choice(entry, "severity", (None, *SEVERITIES))
    unless_negated = entry.get("unless_negated", severity in _STATED)
    if not isinstance(unless_negated, bool):
        raise RuleError("has an `unless_negated` that is neither true nor false")
    groups = tuple(
        # Whoever says what forbids a rule, it is forbidden.
        _group(kind, entry[kind], None if kind == "none" else by)
        for kind in _GROUPS
        if kind in entry
    )
    if not any(group.kind in ("all", "any") for group in groups):
        raise RuleError("has neither `all` nor `any`")
    score = entry.get("score", DEFAULT_SCORE)
    if not isinstance(score, int | float) or not 0 < score <= 1:
        raise RuleError("has a score that is not above 0 and at most 1")
    if not isinstance(examples, Mapping) or set(examples) - {"match", "no_match"}:
        raise RuleError("has examples that are not lists under `match` and `no_match`")
    return Rule(
        id=_text(entry, "id"),
        label=entry.get("label") or {},
        groups=groups,
        category=_text(entry, "category") if "category" in entry else None,
        call_type=_text(entry, "call_type") if "call_type" in entry else None,
        severity=severity,
        score=float(score),
        scope=_choice(entry, "scope", SCOPES, SCOPES[0]) or SCOPES[0],
        unless_negated=unless_negated,
        match=tuple(examples.get("match", ())),
        no_match=tuple(examples.get("no_match", ())),
    )


def match(rules: Sequence[Rule], utterances: Sequence[tuple[str | None, str]]) -> list[RuleMatch]:
    """Return where the rules hold, in the order of the rules, then of the utterances.

    Args:
        rules: Compiled rules.
        utterances: Of each its leg and its text; conditions with ``by`` hold for a leg ``caller``
            or ``agent`` (``agent-2`` ...) and for any leg whose role is not known.
    """
    ready = [_prepare(index, leg, text) for index, (leg, text) in enumerate(utterances)]
    found: list[RuleMatch] = []
    for rule in rules:
        for scope in [ready] if rule.scope == "call" else ([each] for each in ready):
            spans = _hold(rule.groups, scope, rule.unless_negated)
            if spans:
                found.append(RuleMatch(rule, tuple(sorted(spans, key=_place))))
    return found


def denials(rules: Sequence[Rule], utterances: Sequence[tuple[str | None, str]]) -> list[RuleMatch]:
    """Return what rules would have found if it had not been denied; see ``match``."""
    ready = [_prepare(index, leg, text) for index, (leg, text) in enumerate(utterances)]
    found: list[RuleMatch] = []
    for rule in rules:
        if not rule.unless_negated:
            continue
        stated = {span for each in ready for span in _hold(rule.groups, [each], True) or ()}
        for each in ready:
            spans = set(_hold(rule.groups, [each], False) or ()) - stated
            if spans:
                found.append(RuleMatch(rule, tuple(sorted(spans, key=_place))))
    return found


def failed_examples(rule: Rule) -> list[str]:
    """Return the rule's own examples that it does not treat as it says."""
    wrong = [text for text in rule.match if not match([rule], [(None, text)])]
    return wrong + [text for text in rule.no_match if match([rule], [(None, text)])]


def role_of(leg: str | None) -> str | None:
    """Return ``caller`` or ``agent``, None where a leg does not tell."""
    role = (leg or "").partition("-")[0]
    return role if role in ROLES else None


def _place(span: Span) -> tuple[int, int, int]:
    return span.index, span.first, span.last


def _hold(
    groups: Sequence[_Group], scope: Sequence[_Utterance], unless_negated: bool
) -> list[Span] | None:
    """Return what matched, None where one of the groups does not hold."""
    spans: list[Span] = []
    for group in groups:
        found = _holds(group, scope, unless_negated and group.kind != "none")
        if found is None:
            return None
        spans += found
    return list(dict.fromkeys(spans))


def _holds(
    condition: _Said | _Group, scope: Sequence[_Utterance], unless_negated: bool
) -> list[Span] | None:
    if isinstance(condition, _Said):
        return list(_said(condition, scope, unless_negated)) or None
    found = [_holds(member, scope, unless_negated) for member in condition.members]
    matched = [spans for spans in found if spans is not None]
    if condition.kind == "none":
        return None if matched else []
    if condition.kind in ("all", "given") and len(matched) < len(found):
        return None
    if condition.kind == "given":
        return []
    return [span for spans in matched for span in spans] if matched else None


def _said(condition: _Said, scope: Sequence[_Utterance], unless_negated: bool) -> Iterator[Span]:
    for utterance in scope:
        if condition.by and utterance.role not in (None, condition.by):
            continue
        for pattern in condition.patterns:
            for hit in pattern.regex.finditer(utterance.folded):
                begin, end = hit.span()
                first = bisect.bisect_left(utterance.starts, begin)
                last = bisect.bisect_left(utterance.starts, end) - 1
                if unless_negated and _is_denied(utterance, first):
                    continue
                if not _beside(pattern, utterance, first, last):
                    left, right = utterance.places[first][0], utterance.places[last][1]
                    yield Span(utterance.index, left, right)


def _is_denied(utterance: _Utterance, first: int) -> bool:
    """Whether the word with the index ``first`` is denied by words before it in its clause."""
    before = utterance.folded[utterance.clauses[first] : utterance.starts[first]]
    return bool(_DENIED.search(" " + before))


def _beside(pattern: _Pattern, utterance: _Utterance, first: int, last: int) -> bool:
    """Whether something that must not be there is near the words ``first`` to ``last``."""
    ends = (*utterance.starts[1:], len(utterance.folded))
    for regex, distance in pattern.without:
        begin = utterance.starts[max(0, first - distance - 1)]
        end = ends[min(len(ends) - 1, last + distance + 1)]
        if regex.search(utterance.folded, begin, end):
            return True
    return False


def _prepare(index: int, leg: str | None, text: str) -> _Utterance:
    folded, starts, places, clauses = [" "], [], [], []
    length, clause, end = 1, 1, 0
    for word in _WORD.finditer(text):
        plain = fold(word.group())
        if _CLAUSE_END.search(text, end, word.start()):
            clause = length
        end = word.end()
        clauses.append(clause)
        starts.append(length)
        places.append(word.span())
        folded.append(plain + " ")
        length += len(plain) + 1
    role = role_of(leg)
    return _Utterance(index, role, "".join(folded), tuple(starts), tuple(places), tuple(clauses))


def fold(word: str) -> str:
    """Return a word without case, accents, apostrophes and plural."""
    plain = _beginning(word)
    if len(plain) < 4 or not plain.endswith("s") or plain.endswith(("ss", "us", "is")):
        return plain
    if plain.endswith("ies") and len(plain) > 4:
        return plain[:-3] + "y"
    if plain.endswith(("sses", "ches", "shes", "xes")):
        return plain[:-2]
    return plain[:-1]


def _group(kind: str, members: object, by: str | None = None) -> _Group:
    if not isinstance(members, list) or not members:
        raise RuleError(f"has no list under `{kind}`")
    return _Group(kind, tuple(_condition(member, by) for member in members))


def _condition(entry: object, by: str | None = None) -> _Said | _Group:
    if not isinstance(entry, Mapping):
        raise RuleError(f"has a condition that is no mapping: {entry}")
    for kind in ("all", "any", "none"):
        if set(entry) == {kind}:
            return _group(kind, entry[kind], None if kind == "none" else by)
    by = _choice(entry, "by", (None, *ROLES), by)
    if set(entry) - {"by"} == {"words"} and isinstance(entry["words"], list):
        return _Said(tuple(_phrase(words) for words in entry["words"]), by)
    if set(entry) - {"by"} == {"pattern"} and isinstance(entry["pattern"], str):
        return _Said((_compile(entry["pattern"]),), by)
    raise RuleError(
        f"has a condition with the keys {', '.join(sorted(map(str, entry)))}: expected `words` (a "
        "list) or `pattern`, and `by`, or one of `all`, `any`, `none`"
    )


def _phrase(words: object) -> _Pattern:
    folded = [fold(word) for word in _WORD.findall(str(words))]
    if not folded:
        raise RuleError(f"looks for words where there are none: {words!r}")
    return _Pattern(_regex("".join(re.escape(word) + " " for word in folded)))


def _regex(body: str) -> re.Pattern[str]:
    return re.compile(f"(?<= )(?:{body})")


def _compile(pattern: str) -> _Pattern:
    parts = pattern.split()
    operators = [i for i, part in enumerate(parts) if _NEAR.fullmatch(part)]
    if len(operators) > _MOST_NEAR or pattern.count("?") > _MOST_OPTIONAL:
        raise RuleError(
            f"has more than {_MOST_NEAR} near or {_MOST_OPTIONAL} optional parts in the pattern: "
            f"{pattern}"
        )
    bounds = [-1, *operators, len(parts)]
    bodies = [
        _body(" ".join(parts[first + 1 : last]), pattern)
        for first, last in itertools.pairwise(bounds)
    ]
    whole = bodies[0]
    without: list[tuple[re.Pattern[str], int]] = []
    for operator, body in zip(operators, bodies[1:], strict=True):
        near = _NEAR.fullmatch(parts[operator])
        assert near is not None
        distance = int(near[2])
        if distance > _FARTHEST:
            raise RuleError(f"has a distance above {_FARTHEST} in the pattern: {pattern}")
        if near[1]:
            without.append((_regex(body), distance))
        else:
            gap = rf"(?:\S+ ){{0,{distance}}}"
            whole = f"(?:(?:{whole}){gap}(?:{body})|(?:{body}){gap}(?:{whole}))"
    return _Pattern(_regex(whole), tuple(without))


def _body(text: str, pattern: str) -> str:
    """Return the regular expression of a stretch without ``near``."""
    parts = _PATTERN_PART.findall(text)
    if not parts or "".join(parts) != "".join(text.split()):
        raise RuleError(f"has a pattern that cannot be read: {pattern}")
    items, rest = _sequence(parts, pattern, depth=0)
    if rest:
        raise RuleError(f"has a bracket too many in the pattern: {pattern}")
    return items


def _sequence(parts: list[str], pattern: str, depth: int, star: str = "") -> tuple[str, list[str]]:
    """Return the regular expression up to a closing bracket, and what follows."""
    items: list[str] = []
    while parts and not parts[0].startswith(")"):
        part, parts = parts[0], parts[1:]
        if part == "(":
            item, parts = _bracket(parts, pattern, depth + 1)
        elif part == "|":
            if not items or not parts or depth:
                raise RuleError(f"has a | with nothing beside it in the pattern: {pattern}")
            # Outside of brackets it stands between single words.
            other, parts = parts[0], parts[1:]
            item = f"(?:{items.pop()}|{_item(other, pattern)})"
        else:
            item = _item(part, pattern)
        items.append(item)
    return "".join(items), parts


def _bracket(parts: list[str], pattern: str, depth: int) -> tuple[str, list[str]]:
    """Return the regular expression of alternatives in brackets, and what follows."""
    alternatives: list[list[str]] = [[]]
    level = 0
    while parts:
        part, parts = parts[0], parts[1:]
        if part == "(":
            level += 1
        elif part.startswith(")"):
            if not level:
                break
            level -= 1
        elif part == "|" and not level:
            alternatives.append([])
            continue
        alternatives[-1].append(part)
    else:
        raise RuleError(f"has a bracket that is never closed in the pattern: {pattern}")
    if part == ")*":
        alternatives = [[*words[:-1], words[-1] + "*"] for words in alternatives if words]
    bodies = []
    for words in alternatives:
        body, rest = _sequence(words, pattern, 0)
        if not body or rest:
            raise RuleError(f"has an empty alternative in the pattern: {pattern}")
        bodies.append(body)
    joined = f"(?:{'|'.join(bodies)})"
    return joined + ("?" if part == ")?" else ""), parts


def _item(part: str, pattern: str) -> str:
    optional = part.endswith("?")
    part = part.removesuffix("?")
    if part == "[num]":
        body = _NUMBER
    elif part == "[word]":
        body = rf"(?!(?:{_NEGATION}) )\S+ "
    else:
        prefix = part.endswith("*")
        words = _WORD.findall(part.removesuffix("*"))
        if not words or "[" in part:
            raise RuleError(f"has {part!r}, which is no word, in the pattern: {pattern}")
        # A beginning is no whole word: it is not taken out of its plural.
        plain = [fold(word) for word in words[:-1]] + [
            _beginning(words[-1]) if prefix else fold(words[-1])
        ]
        body = " ".join(map(re.escape, plain)) + (r"\w* " if prefix else " ")
    return f"(?:{body})?" if optional else body


def _beginning(word: str) -> str:
    """Return a word, or the beginning of one, without case, accents and apostrophes."""
    plain = unicodedata.normalize("NFKD", word.casefold())
    return "".join(c for c in plain if not unicodedata.combining(c) and c not in _APOSTROPHES)


def _text(entry: Mapping[str, Any], key: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str) or not value:
        raise RuleError(f"has no text under `{key}`")
    return value


def _choice(
    entry: Mapping[str, Any], key: str, values: Sequence[str | None], default: str | None = None
) -> str | None:
    value = entry.get(key, default)
    if value not in values:
        raise RuleError(f"has {key}={value!r}: expected one of {', '.join(filter(None, values))}")
    return value if isinstance(value, str) else None
