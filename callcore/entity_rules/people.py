"""Who the people of a call are, as far as its words say it.

The caller and the agent introduce themselves; a child is somebody's daughter or a boy called so; an
alleged person is the subject of what harms somebody (``my uncle beats me``). Nothing else makes a
role: a name without such words has none.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from callcore.entity_rules.lexicon import Lexicon, lexicon
from callcore.entity_rules.mentions import Mention
from callcore.entity_rules.merging import Entity
from callcore.entity_rules.texts import sentences

#: Characters around a name or an age that are looked at.
_NEAR = 100
_SELF_BEFORE = re.compile(
    r"\b(?:my (?:full |first |other |second )?names? (?:is|are)|my name's|i am|i'm|im|this is|"
    r"it's|it is|call me|i go by|(?:i am|i'm|im) (?:called|named))[,\s]+$",
    re.I,
)
_SELF_AFTER = re.compile(r"^,?\s+(?:here|speaking)\b", re.I)
#: Between who is of an age and the number: nothing else may stand there.
_JUST = (
    r"(?:only |just |now |about |around |almost |nearly |already |currently |still |also )*"
    r"(?:aged |turned |turning )?(?:an? (?:(?:\w+ )?(?:girl|boy|child|kid) (?:of |aged ))?)?$"
)
_SELF_AGE = re.compile(rf"\b(?:i am|i['\u2019]m|im|my age is|i(?= \w*\s?turned)) {_JUST}", re.I)
_OTHER_AGE = re.compile(
    rf"\b(she|he)(?:['\u2019]s| is| was|(?= \w*\s?(?:turned|turns))) {_JUST}", re.I
)
_ASKED_CALLER = re.compile(r"\bhow old are you\b|\byour age\b", re.I)
_ANNOUNCED = re.compile(r"\byou(?:'ve| have) reached\b", re.I)
_NAMED = re.compile(r"\b(her|his|their|the child's) name(?: is|'s)[,\s]+$", re.I)
#: "the child helpline", "child labour": no child is spoken of.
_NO_CHILD = re.compile(
    r"\s+(?:help\s?line|line|labou?r|protection|abuse|services?|marriage|trafficking|rights|"
    r"support|care|welfare|online|neglect|health)\b",
    re.I,
)
_CALLED = re.compile(r",?\s*(?:who is |is )?(?:called |named |whose name is )?", re.I)
#: What makes of the words after it no statement that somebody was harmed.
_DENIED = re.compile(
    r"\b(?:not|never|nobody|no one|none|nor|neither|cannot|without|hardly|nearly|almost|"
    r"if|unless|whether|in case|lest|suppose|supposing|imagine|imagined|what if|as if|as though|"
    r"like if|will|won't|would|might|may be|could be|can be|should|shall|going to|gonna|about to|"
    r"maybe|perhaps|wonder|wondered|wondering|hope|hoped|hoping|wish|pretend|pretended|"
    r"dream|dreams|dreamt|dreamed|dreaming|false|untrue|lie|lied|lies|lying|rumou?rs?|"
    r"afraid|scared|frightened|terrified|fear|fears|feared|worry|worries|worried|anxious|"
    r"nervous|threat|threatens|threatened|threatening)\b|n['\u2019]t\b|['\u2019]ll\b",
    re.I,
)
#: A new clause, of which what was said before says nothing.
_NEW_CLAUSE = re.compile(
    r"[,;:\u2013\u2014]|\b(?:because|'?cause|since|but|so)\b|"
    r"\band\s+(?=(?:i|he|she|we|they|it|my|our|her|his|their|the)\b)|\band\s*$",
    re.I,
)
#: "I never told anyone that", "I don't know why", "I'm afraid of": what follows is a fact.
_FACT_AFTER = re.compile(
    r"(?:\b(?:not|never)|n['\u2019]t)\s+(?:\w+\s+)?(?:(?:told|tell)\s+(?:any\w+|no\w+|my \w+)"
    r"(?:\s+that)?|(?:know|understand) why|like it when)\s*$|"
    r"\b(?:afraid|scared|frightened|terrified) of\s*$",
    re.I,
)
#: Where a clause begins: then what follows is its subject.
_CLAUSE_BEGINS = re.compile(
    r"(?:^|[.,;:!?\u2013\u2014-]|\b(?:and|but|because|cause|so|then|that|when|whenever|where|while|"
    r"after|before|since|until|once|time|today|yesterday|now|night|sometimes|says|said|oh|yes|no|"
    r"well|hello|hi|please|know|why|how))\s*$",
    re.I,
)
#: What makes a person before it no subject: "the teacher of Amina hit him".
_NO_SUBJECT = re.compile(r"\b(?:of|with|to|for|near|by|like|than|told|without|about)\s+$", re.I)
#: Words of another clause: its subject, or that somebody tells of it.
_OTHER_CLAUSE = re.compile(
    r"\b(?:i|you|he|she|it|we|they|me|him|us|them|my|our|your|his|her|hers|their|its|"
    r"(?:i|you|he|she|it|we|they)['\u2019]\w+|"
    r"some(?:one|body)|any(?:one|body)|every(?:one|body)|nobody|another|others?|people|men|women|"
    r"an?|the|this|that|these|those|what|whom|whose|how|why|when|where|while|if|whether|"
    r"sa(?:y|ys|id|ying)|t(?:ell|ells|old|elling)|saw|sees?|seen|seeing|know|knows|knew|known|"
    r"thinks?|thought|thinking|hears?|heard|believes?|believed|claims?|claimed|reports?|reported|"
    r"feels?|felt|watch(?:es|ed|ing)?|finds?|found|lets?|letting|makes?|made|asks?|asked|wants?|"
    r"wanted|helps?|helped|reveal(?:s|ed)?|shows?|showed|explain(?:s|ed)?|mention(?:s|ed)?|"
    r"complain(?:s|ed)?|confirm(?:s|ed)?|suspect(?:s|ed)?|suspects|fears?|feared|discover(?:s|ed)?|"
    r"notice[sd]?|realised?|realized?|admit(?:s|ted)?|will|would|might|may|can|could|shall|should|"
    r"never|not|nor|or|hardly|nearly|almost|if|unless|\w+n['\u2019]t)\b",
    re.I,
)
#: All that may stand between somebody and what they do: "who ...", "at school", "really".
_SAME_CLAUSE = re.compile(
    r"(?P<who>,?\s+(?:who|which)(?:\s+[\w'\u2019]+){0,4},?)|"
    r"(?P<and>(?:,?\s+[\w'\u2019]+){1,4},?\s+(?:and|then))|"
    r"(?:\s+(?:at|in|from|on|of)\s+[\w'\u2019]+)?,?"
    r"(?:\s+(?:\w+ly|does|did|do|really|then|still|now|once|twice|again|both|all|himself|herself|"
    r"used to|even|just|also|first|later|got))*,?",
    re.I,
)
#: "who lives with us", "a man in my street who": where somebody is, no subject.
_COMPANY = re.compile(
    r"\s+(?:(?:with|near) (?:me|us)|(?:at|in|on) (?:my|our|the) (?:school|house|home|class|church|"
    r"village|street|estate|area|town|work|job|hood|neighbou?rhood|community)(?=\s+who\b))\b",
    re.I,
)
#: "I told my uncle. He beat me.": who is told of harm is hardly who did it.
_TOLD = re.compile(
    r"\b(?:t(?:ell|ells|old|elling)|ask(?:s|ed|ing)?|call(?:s|ed|ing)?|thank(?:s|ed)?|"
    r"(?:talk|talks|talked|talking|speak|spoke|spoken|report|reported|said|say|wrote) to)\s+$",
    re.I,
)
#: "and he", "because she": who did it was named before in the same sentence.
_RESUMED = r"\b(?:and|because|cause)\s+(?:then\s+|now\s+)?"
#: Somebody whom no name or relation tells.
_SOMEBODY = re.compile(r"\b(?:some|any)(?:one|body)\b|\b(?:stranger|thief|robber|driver)s?\b", re.I)
#: Segments before one in which the turn before of the same party is looked for.
_TURN_BEFORE = 4
_OWNER = r"\b(?P<owner>my|our|her|his|their|your|the|a|an|this|that|\w+['\u2019]s)\s+"
_ADJECTIVES = r"(?P<words>(?:[\w'\u2019-]+\s+){0,3}?)"
#: "I'm a girl", "I'm Juma, a boy": who speaks says what they are, in nothing but these words.
_SELF = re.compile(r"\b(?:i am|i['\u2019]m|im)\s+", re.I)
_KIND = re.compile(
    r"(?:just |only |also |still |now )?(?:an?|the) (?!about\b|for\b|of\b)"
    r"(?:(?!about\b|of\b|for\b)[\w-]+ ){0,2}"
    r"(girl|boy|man|woman|mother|father)\b(?!['\u2019]s)",
    re.I,
)
_APPOSED = re.compile(r"\s*,\s*")
_APPOSED_AGE = re.compile(r"\s*,\s*(?:an? |aged? )", re.I)
#: Behind "I'm Juma, a boy": no verb, which would make the boy the subject of a clause of his own.
_APPOSITION_ENDS = re.compile(
    r"(?:[\s-]*years?[\s-]old(?:\s+(?:girl|boy|child|student|man|woman|mother|father))?)?"
    r"(?:\s+(?:of|aged)\s+[\w-]+)?"
    r"\s*(?:$|[.,;!?]|(?:from|living|in|at|and|who|here|with|named|called)\b)",
    re.I,
)


@dataclass(slots=True)
class Person:
    """Somebody the call is by or about; None where its words do not say it."""

    role: str
    """``caller``, ``agent``, ``child``, ``alleged`` or ``other``."""
    entity: Entity | None = None
    age: int | None = None
    sex: str | None = None
    """``f`` or ``m``."""
    relation: str | None = None
    """The word for it, e.g. ``daughter``."""
    evidence: list[tuple[int, int, int]] = field(default_factory=list)
    """Index of the segment, first and last character of what says so."""

    def seen(self, index: int, start: int, end: int) -> None:
        """Remember a place that says so, once."""
        if (index, start, end) not in self.evidence:
            self.evidence.append((index, start, end))


def people(
    segments: Sequence[Mapping[str, Any]], entities: Sequence[Entity], language: str | None = "en"
) -> list[Person]:
    """Return the people of a call with what is said of them.

    Args:
        segments: What ``find`` searched.
        entities: What ``merge`` made of its mentions.
        language: Language of segments that name none.
    """
    return _Cast(segments, entities, language).found()


class _Cast:
    """Collects people sentence by sentence."""

    def __init__(
        self,
        segments: Sequence[Mapping[str, Any]],
        entities: Sequence[Entity],
        language: str | None,
    ) -> None:
        self._segments = segments
        self._language = language
        self._people: list[Person] = []
        self._last_child: Person | None = None
        self._last_self: dict[str, Person] = {}
        self._names: dict[int, list[tuple[Mention, Entity]]] = {}
        self._ages: dict[int, list[Mention]] = {}
        for entity in entities:
            for mention in entity.mentions:
                if entity.label == "NAME":
                    self._names.setdefault(mention.index, []).append((mention, entity))
                elif entity.label == "AGE":
                    self._ages.setdefault(mention.index, []).append(mention)

    def found(self) -> list[Person]:
        for index, segment in enumerate(self._segments):
            words = lexicon(segment.get("language") or self._language)
            if words is None:
                continue
            text = segment["text"]
            spans = list(sentences(text))
            for number, (start, end) in enumerate(spans):
                later = spans[number + 1] if number + 1 < len(spans) else (end, end)
                earlier = spans[number - 1] if number else (start, start)
                self._introductions(index, start, end, earlier, later, words)
                self._related(index, start, end, words)
                self._ages_said(index, start, end, words)
                self._harm(index, start, end, words)
                self._harm_of_one(index, start, end, words)
        return [each for each in self._people if each.entity or each.age or _telling(each)]

    def _introductions(
        self,
        index: int,
        start: int,
        end: int,
        earlier: tuple[int, int],
        later: tuple[int, int],
        words: Lexicon,
    ) -> None:
        text = self._segments[index]["text"]
        for mention, entity in self._within(index, start, end):
            begin = max(start, mention.start - _NEAR)
            before, after = text[begin : mention.start], text[mention.end : end][:_NEAR]
            own = _SELF_BEFORE.search(before)
            if own or _SELF_AFTER.match(after):
                role = self._speaker(index, text[start:end], text[slice(*earlier)],
                                     text[slice(*later)], words)  # fmt: skip
                person = self._person(role, entity)
                begin = begin + own.start() if own else mention.start
                person.seen(index, begin, mention.end)
                self._last_self[self._segments[index]["leg"]] = person
            named = _NAMED.search(before)
            if named and self._last_child and self._last_child.entity is None:
                self._last_child.entity = entity
                self._last_child.seen(index, begin + named.start(), mention.end)
        kind = self._self_kind(index, start, end)
        if kind and not self._segments[index]["leg"].startswith("agent"):
            person = self._person("caller", None)
            person.sex = words.relations[kind[1].lower()]
            person.seen(index, kind.start(), kind.end())

    def _self_kind(self, index: int, start: int, end: int) -> re.Match[str] | None:
        """Return what the speaker calls themselves: "I'm a girl", "I'm Juma, a boy"."""
        text = self._segments[index]["text"]
        names = {mention.start: mention.end for mention, _ in self._within(index, start, end)}
        for own in _SELF.finditer(text, start, end):
            begin = own.end()
            apposed = _APPOSED.match(text, names[begin], end) if begin in names else None
            kind = _KIND.match(text, apposed.end() if apposed else begin, end)
            if kind and (apposed is None or _APPOSITION_ENDS.match(text, kind.end())):
                return kind
        return None

    def _speaker(self, index: int, said: str, earlier: str, later: str, words: Lexicon) -> str:
        leg = self._segments[index]["leg"]
        if leg != "mixed":
            return "agent" if leg.startswith("agent") else "caller"
        answering = self._answering(words)
        if answering is not None and self._segments[index].get("speaker") is not None:
            return "agent" if self._segments[index]["speaker"] == answering else "caller"
        agent = (
            words.agent_says.search(said)
            or words.agent_says.search(later)
            or words.asks["NAME"].search(later)
            or _ANNOUNCED.search(earlier)
        )
        return "agent" if agent else "caller"

    def _answering(self, words: Lexicon) -> str | None:
        """Return who of a mono recording answers as an agent does, None where nobody does."""
        for segment in self._segments:
            if segment.get("speaker") and words.agent_says.search(segment["text"]):
                return str(segment["speaker"])
        return None

    def _related(self, index: int, start: int, end: int, words: Lexicon) -> None:
        """Find children: ``my daughter Amina``, ``a boy named Otieno``, ``my 7-year-old son``."""
        text = self._segments[index]["text"]
        pattern = re.compile(
            rf"{_OWNER}{_ADJECTIVES}(?P<relation>{words.relation})\b(?!['\u2019]s)", re.I
        )
        for match in pattern.finditer(text, start, end):
            relation = match["relation"].lower()
            if relation not in words.children or _NO_CHILD.match(text, match.end()):
                continue
            entity, last = self._named_after(index, match.end(), end)
            age = self._age_within(index, match.start(), match.end())
            owner = match["owner"].lower()
            owned = owner in ("my", "our") or owner.endswith(("'s", "\u2019s"))
            if entity is None and age is None and not owned:
                continue
            kind = self._self_kind(index, start, end)
            if kind and kind.end() == match.end():
                if entity is not None and not self._segments[index]["leg"].startswith("agent"):
                    # "I'm a boy named Felix"
                    own = self._person("caller", entity)
                    own.age = own.age or age
                    own.seen(index, kind.start(), last)
                    self._last_self[self._segments[index]["leg"]] = own
                continue
            if entity is not None and self._role_of(entity) in ("caller", "agent"):
                continue
            person = self._child(entity, relation, words)
            person.seen(index, match.start(), max(last, match.end()))
            if age is not None:
                person.age = age
            self._last_child = person

    def _child(self, entity: Entity | None, relation: str, words: Lexicon) -> Person:
        for each in self._people:
            same_name = entity is not None and each.entity is entity
            unnamed = each.entity is None or entity is None
            same_relation = unnamed and each.relation == relation
            if each.role == "child" and (same_name or same_relation):
                each.entity = each.entity or entity
                each.relation = each.relation or relation
                return each
        person = Person("child", entity, None, words.relations[relation], relation)
        self._people.append(person)
        return person

    def _ages_said(self, index: int, start: int, end: int, words: Lexicon) -> None:
        segment = self._segments[index]
        text = segment["text"]
        for mention in self._ages.get(index, ()):
            if not start <= mention.start < end:
                continue
            before = text[start : mention.start]
            owner = self._aged(index, start, mention, before, text, words)
            if owner is not None and owner.age is None:
                owner.age = _years(mention.normal)
                begin = start + len(before) - len(before.lstrip())
                owner.seen(index, begin, mention.end)

    def _aged(
        self, index: int, start: int, mention: Mention, before: str, text: str, words: Lexicon
    ) -> Person | None:
        """Return whose age it is."""
        agent = self._segments[index]["leg"].startswith("agent")
        if _SELF_AGE.search(before):
            said_by = self._last_self.get(self._segments[index]["leg"])
            if said_by is None or said_by.role == "agent":  # in a mono recording
                said_by = self._person("caller", None)
            return None if agent else said_by
        pronoun = _OTHER_AGE.search(before)
        if pronoun and self._last_child is not None:
            sex = "f" if pronoun[1].lower() == "she" else "m"
            if self._last_child.sex in (None, sex):
                self._last_child.sex = sex
                return self._last_child
            return None
        for name, entity in reversed(self._within(index, start, mention.start)):
            # "I'm Amina, a 14-year-old from Thika", "I'm Amina, age 10"
            between = text[name.end : mention.start]
            if _APPOSED_AGE.fullmatch(between) and _APPOSITION_ENDS.match(text, mention.end):
                return next((each for each in self._people if each.entity is entity), None)
            # "Amina is 7", "Njeri, who is 17"
            if re.fullmatch(r",?\s*(?:who\s+)?(?:is|was|aged|just turned)?\s*(?:only |just |now )*",
                            text[name.end : mention.start], re.I):  # fmt: skip
                return next((each for each in self._people if each.entity is entity), None)
        child = self._last_child
        if child and child.evidence[-1][0] == index and start <= child.evidence[-1][1]:
            between = text[child.evidence[-1][2] : mention.start]
            if re.fullmatch(r",?\s*(?:who\s+)?(?:is|was|aged)?\s*(?:only |just |now )*", between,
                            re.I):  # fmt: skip
                return child
        if index and mention.start < 40:
            question = self._segments[index - 1]["text"]
            if _ASKED_CALLER.search(question) and not agent:
                return self._person("caller", None)
            if words.asks["AGE"].search(question) and not agent:
                return self._last_child
        return None

    def _harm(self, index: int, start: int, end: int, words: Lexicon) -> None:
        """Find who is said to harm somebody; questions say nothing."""
        text = self._segments[index]["text"]
        if text[start:end].rstrip().endswith("?"):
            return
        active = re.compile(
            rf"{_OWNER}{_ADJECTIVES}(?P<relation>{words.relation})\b"
            rf"(?P<between>(?:,?\s+[\w'\u2019]+){{0,6}}?,?)\s+(?:{words.harms})",
            re.I,
        )
        passive = re.compile(
            rf"\b(?:{words.harmed_by})\s+{_OWNER}{_ADJECTIVES}(?P<relation>{words.relation})\b"
            rf"(?!['\u2019]s)",
            re.I,
        )
        for begin in [each.start() for each in re.finditer(_OWNER, text[start:end], re.I)]:
            match = active.match(text, start + begin, end)
            if match and self._is_subject(index, match, start):
                self._allege(index, match, end, words)
        for match in passive.finditer(text, start, end):
            of_others = _OTHER_CLAUSE.search(match["words"])
            if not of_others and not _denied(text[start : match.start()], passive=True):
                self._allege(index, match, end, words)
        verb = re.compile(rf",?\s+(?:{words.harms})", re.I)
        by = re.compile(rf"\b(?:{words.harmed_by})\s+$", re.I)
        for mention, entity in self._within(index, start, end):
            does = verb.match(text, mention.end)
            done = by.search(text, start, mention.start)
            before = text[start : mention.start]
            if does and not _NO_SUBJECT.search(before) and not _denied(before):
                self._alleged(entity, None, words).seen(index, mention.start, does.end())
            elif done and not _denied(text[start : done.start()], passive=True):
                self._alleged(entity, None, words).seen(index, done.start(), mention.end)

    def _allege(self, index: int, match: re.Match[str], end: int, words: Lexicon) -> None:
        entity, _ = self._named_after(index, match.end("relation"), end)
        relation = match["relation"].lower()
        self._alleged(entity, relation, words).seen(index, match.start(), match.end())

    def _is_subject(self, index: int, match: re.Match[str], start: int) -> bool:
        """Whether what harms is said of this very person, as a fact."""
        text = self._segments[index]["text"]
        before = text[start : match.start()]
        if _denied(before) or _denied(match["words"]) or _OTHER_CLAUSE.search(match["words"]):
            return False
        entity, begin = self._named_after(index, match.end("relation"), match.end("between"))
        apposed = entity is not None and text[match.end("relation")] == ","
        if apposed and text[begin : begin + 1] != ",":
            return False  # "my daughter, Juma hit her"
        between = text[begin : match.end("between")]
        between = _COMPANY.sub("", between)
        if _OTHER_CLAUSE.search(between) or self._within(index, begin, match.end()):
            return False
        same = _SAME_CLAUSE.fullmatch(between)
        if same is None:
            return False
        if same["and"] is not None or between.strip() == "and":
            return _CLAUSE_BEGINS.search(before) is not None
        return same["who"] is not None or not re.search(r"\bof\s+$", before, re.I)

    def _harm_of_one(self, index: int, start: int, end: int, words: Lexicon) -> None:
        """Find "It is my uncle. He beats me.": one person before it whom the pronoun can mean.

        The person is in the same sentence ("my husband came and he pushed me"), in the one
        before, or in the turn before of the same party. Where two can be meant, nobody is.
        """
        text = self._segments[index]["text"]
        if text[start:end].rstrip().endswith("?"):
            return
        first = re.compile(rf"\s*(?:and |but |because |then )?(he|she)\s+(?:{words.harms})", re.I)
        resumed = re.compile(rf"{_RESUMED}(he|she)\s+(?:{words.harms})", re.I)
        harm = first.match(text, start, end) or resumed.search(text, start, end)
        if not harm or _denied(text[start : harm.start()]):
            return
        if _SOMEBODY.search(text, start, harm.start()):
            return
        sex = "m" if harm[1].lower() == "he" else "f"
        meant = self._meant(index, start, harm.start(), sex, words)
        if not meant:
            for where, begin, last in self._before(index, start):
                if _SOMEBODY.search(self._segments[where]["text"], begin, last):
                    return
                meant += self._meant(where, begin, last, sex, words)
        who = {(id(each.entity), each.relation) for each in meant}
        if len(who) != 1 or not meant[0].may_harm:
            return
        only = meant[-1]
        person = self._alleged(only.entity, only.relation, words)
        if only.index == index:
            person.seen(index, only.start, harm.end())
        else:
            person.seen(only.index, only.start, only.end)
            person.seen(index, harm.start(), harm.end())

    def _before(self, index: int, start: int) -> list[tuple[int, int, int]]:
        """Return what a pronoun that begins a sentence may go back to.

        The sentence before; where it is the first, the turn before of the same party and what
        others said since, for a name there may be meant as well.
        """
        text = self._segments[index]["text"]
        earlier = [each for each in sentences(text) if each[1] <= start]
        if earlier:
            return [(index, *earlier[-1])]
        segment = self._segments[index]
        if segment["leg"] == "mixed" and segment.get("speaker") is None:
            return []  # nobody knows who said what was before
        party = (segment["leg"], segment.get("speaker"))
        found: list[tuple[int, int, int]] = []
        for where in range(index - 1, max(-1, index - 1 - _TURN_BEFORE), -1):
            other = self._segments[where]
            found.append((where, 0, len(other["text"])))
            if (other["leg"], other.get("speaker")) == party:
                return found
        return []

    def _meant(self, index: int, start: int, end: int, sex: str, words: Lexicon) -> list["_Meant"]:
        """Return everybody in a stretch of words whom ``he`` or ``she`` can mean."""
        text = self._segments[index]["text"]
        related = re.compile(
            rf"{_OWNER}{_ADJECTIVES}(?P<relation>{words.relation})\b(?!['\u2019]s)", re.I
        )
        meant: list[_Meant] = []
        for match in related.finditer(text, start, end):
            relation = match["relation"].lower()
            if words.relations[relation] in (sex, None):
                entity, last = self._named_after(index, match.end(), end)
                told = _TOLD.search(text, start, match.start())
                may_harm = relation not in words.children and not told
                meant.append(
                    _Meant(entity, relation, index, match.start(), max(last, match.end()), may_harm)
                )
        named = [each.entity for each in meant]
        for mention, entity in self._within(index, start, end):
            person = next((each for each in self._people if each.entity is entity), None)
            role = person.role if person else None
            other_sex = person is not None and person.sex not in (None, sex)
            if entity not in named and role not in ("caller", "agent") and not other_sex:
                told = _TOLD.search(text, start, mention.start)
                may_harm = role in (None, "alleged") and not told
                relation = person.relation if person and role == "alleged" else None
                meant.append(_Meant(entity, relation, index, mention.start, mention.end, may_harm))
        return meant

    def _alleged(self, entity: Entity | None, relation: str | None, words: Lexicon) -> Person:
        for each in self._people:
            if each.role == "alleged" and (
                (entity is not None and each.entity is entity)
                or (relation is not None and each.relation == relation)
            ):
                each.entity = each.entity or entity
                each.relation = each.relation or relation
                return each
        sex = words.relations[relation] if relation else None
        person = Person("alleged", entity, None, sex, relation)
        self._people.append(person)
        return person

    def _person(self, role: str, entity: Entity | None) -> Person:
        """Return the caller or the agent; another name than before is another person."""
        for each in self._people:
            if each.role == role and (entity is None or each.entity in (None, entity)):
                each.entity = each.entity or entity
                return each
        person = Person(role, entity)
        self._people.append(person)
        return person

    def _role_of(self, entity: Entity) -> str | None:
        return next((each.role for each in self._people if each.entity is entity), None)

    def _within(self, index: int, start: int, end: int) -> list[tuple[Mention, Entity]]:
        return [pair for pair in self._names.get(index, ()) if start <= pair[0].start < end]

    def _named_after(self, index: int, start: int, end: int) -> tuple[Entity | None, int]:
        """Return the name right after a word, and where it ends."""
        text = self._segments[index]["text"]
        for mention, entity in self._within(index, start, end):
            between = text[start : mention.start]
            if _CALLED.fullmatch(between):
                return entity, mention.end
        return None, start

    def _age_within(self, index: int, start: int, end: int) -> int | None:
        for mention in self._ages.get(index, ()):
            if start <= mention.start < end:
                return _years(mention.normal)
        return None


@dataclass(frozen=True, slots=True)
class _Meant:
    """Somebody whom a pronoun can mean, and where they are named."""

    entity: Entity | None
    relation: str | None
    index: int
    start: int
    end: int
    may_harm: bool
    """Whether it may be said of them: a child is meant often, and is then no alleged person."""


def _denied(before: str, *, passive: bool = False) -> bool:
    """Whether the clause before a statement makes it none: "never", "if", "I'm afraid".

    Args:
        before: The sentence up to the statement.
        passive: Whether what harms follows its subject: "I was not hit and beaten by".
    """
    begin = 0
    for each in _NEW_CLAUSE.finditer(before):
        if not (passive and before[each.start() :].strip().lower() == "and"):
            begin = each.end()
    clause = before[begin:]
    return _DENIED.search(clause) is not None and not _FACT_AFTER.search(clause)


def _years(normal: str | None) -> int | None:
    """Return whole years: ``7``, ``18 months`` is 1."""
    if normal is None:
        return None
    number, _, unit = normal.partition(" ")
    if unit.startswith("month"):
        return int(number) // 12
    return 0 if unit.startswith("week") else int(number)


def _telling(person: Person) -> bool:
    """Whether a person without name and age says something: what relation, what role."""
    return person.role in ("child", "alleged") or person.sex is not None
