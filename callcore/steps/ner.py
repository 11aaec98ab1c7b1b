"""Names, places, numbers and people of a call, each with the words that say so.

The engine finds what looks like a name; the rules of ``entity_rules`` decide over the whole call.
Where no model knows the language, what needs no words is found all the same, and
``parameters.note`` says so.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from callcore import entity_rules
from callcore.engines import FoundSpan
from callcore.entity_rules import Entity, Mention, Person
from callcore.evidence import quote
from callcore.steps import Step, StepContext

_ENGINE = "entity_recognizer"
#: Segments that are given to the engine at once.
_BATCH = 200
_SEX = {"f": "female", "m": "male", None: None}


def run(context: StepContext) -> dict[str, Any]:
    """Return the entities and the people of a call in their stored form."""
    transcript = context.results["transcribe"]
    segments = transcript["segments"]
    language = transcript["language"]
    known = dict(context.settings.entity_models)
    spoken = {segment["language"] or language for segment in segments}
    spans = _recognized(context, segments, language, known)
    about: dict[str, Any] = dict.fromkeys(("name", "model", "version"))
    parameters: dict[str, Any] = {}
    if spoken & set(known):
        about = context.engines.attributes(_ENGINE, "name", "model", "version", "parameters")
        parameters = dict(about["parameters"])
    mentions = entity_rules.find(segments, spans, language, str(about["name"]))
    entities = entity_rules.merge(mentions)
    people = entity_rules.people(segments, entities, language)
    return {
        "engine": about["name"],
        "model": about["model"],
        "version": about["version"],
        "parameters": parameters
        | {"rules": entity_rules.VERSION, "note": _note(spoken - set(known))},
        "entities": [_entity(each, people, segments, about) for each in entities],
        "people": [_person(each, segments) for each in people],
    }


def _recognized(
    context: StepContext,
    segments: Sequence[Mapping[str, Any]],
    language: str | None,
    known: Mapping[str, str],
) -> list[list[FoundSpan]]:
    """Return what the engine finds in each segment; nothing in languages that it does not know."""
    spans: list[list[FoundSpan]] = [[] for _ in segments]
    for each in known:
        own = [
            index
            for index, segment in enumerate(segments)
            if (segment["language"] or language) == each and segment["text"]
        ]
        for first in range(0, len(own), _BATCH):
            batch = own[first : first + _BATCH]
            words = entity_rules.lexicon(each)
            texts = [entity_rules.cased(segments[index]["text"], words) for index in batch]
            for index, found in zip(
                batch, context.engines.call(_ENGINE, "recognize", texts, each), strict=True
            ):
                spans[index] = list(found)
            context.progress((first + len(batch)) / max(len(segments), 1))
    return spans


def _note(without_model: set[str | None]) -> str | None:
    """Return what a reader must know of languages that no model knows."""
    if not without_model:
        return None
    named = ", ".join(sorted(each or "unknown" for each in without_model))
    return f"no entity model for language {named}: only numbers that need no words were looked for"


def _entity(
    entity: Entity,
    people: Sequence[Person],
    segments: Sequence[Mapping[str, Any]],
    about: Mapping[str, Any],
) -> dict[str, Any]:
    role = next((each.role for each in people if each.entity is entity), None)
    return {
        "id": entity.id,
        "label": entity.label,
        "text": entity.text,
        "normal": entity.normal,
        "role": role,
        "score": None,
        "mentions": [_mention(each, segments, about) for each in entity.mentions],
    }


def _mention(
    mention: Mention, segments: Sequence[Mapping[str, Any]], about: Mapping[str, Any]
) -> dict[str, Any]:
    by_model = mention.source == about["name"]
    evidence = quote(
        segments[mention.index],
        mention.start,
        mention.end,
        source=mention.source,
        version=about["version"] if by_model else entity_rules.VERSION,
    )
    return evidence | {"span": [mention.start, mention.end]}


def _person(person: Person, segments: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "role": person.role,
        "entity": person.entity.id if person.entity else None,
        "name": person.entity.normal if person.entity else None,
        "age": person.age,
        "sex": _SEX[person.sex],
        "relation": person.relation,
        "evidence": [
            quote(
                segments[index],
                start,
                end,
                source="rule:people",
                version=entity_rules.VERSION,
            )
            for index, start, end in person.evidence
        ],
    }


STEP = Step(name="ner", needs=("transcribe",), result="entities", run=run)
