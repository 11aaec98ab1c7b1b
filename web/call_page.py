"""What the page of a call shows, put together from its documents."""

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from callcore import document, taxonomies
from callcore.calls import (
    REFUSED,
    SETTLE,
    CallState,
    DocumentState,
    Recording,
    RecordingState,
    StepState,
    StepStatus,
)
from callcore.errors import ConfigError
from callcore.settings import Settings
from callcore.storage import Storage
from callcore.talk import party_of
from callcore.taxonomies import Taxonomy
from web import names
from web.marks import Marks
from web.pictures import quarters, timeline
from web.shapes import call_json, recording_json
from web.turns import Turn, add_translation, turns_of

logger = logging.getLogger(__name__)

#: States in which nothing more happens by itself.
OVER = frozenset({DocumentState.COMPLETED, DocumentState.PARTIAL, DocumentState.FAILED})
_SEVERITIES = ("critical", "warning", "notice", "info")

Json = dict[str, Any]


def context(
    storage: Storage, settings: Settings, state: Mapping[str, Any], asked: str | None
) -> Json:
    """Return what the template of the page needs.

    Args:
        storage: The record.
        settings: ``taxonomies`` name the categories that may be added.
        state: As ``api.call_state`` returns it.
        asked: The recording to show; None: the newest one with sound.
    """
    now = progress(storage, state["call_id"])
    is_refused = state["consent"] == REFUSED
    shown = None if is_refused else _shown(now["recordings"], asked)
    made = document.read(storage, shown["audio_id"]) if shown else None
    turns, transcript = _transcript(state, shown, made)
    is_stored = shown is not None and shown["state"] == RecordingState.STORED
    known = _taxonomies(settings)
    return {
        **now,
        "shown": shown,
        "made": made,
        "transcript": transcript,
        "turns": turns,
        "kinds": _kinds(turns),
        "has_translation": any(turn.translation for turn in turns),
        "parties": {each["segment"]: party_of(each) for turn in turns for each in turn.segments},
        "timeline": timeline(made) if made else None,
        "quarters": quarters,
        "flags": _by_severity(made),
        "entities": _entities(made),
        "safety": _safety(made),
        "labels": _labels(known),
        "choices": _choices(known, made),
        "audio_url": f"/api/audio/{shown['audio_id']}/media" if shown and is_stored else None,
        "audio_offset": (shown["offset_s"] or 0.0) if shown else 0.0,
        "no_recording": _no_recording(state),
        "last_event_id": state["last_event_id"],
    }


def progress(storage: Storage, any_id: str) -> Json:
    """Return how far the analysis of a call's recordings is."""
    call = call_json(storage.call(any_id))
    found = storage.recordings_of(call["call_id"])
    recordings = [_recording(each, storage.steps(each.audio_id)) for each in found]
    is_over = call["state"] != "live" and all(each["is_over"] for each in recordings)
    return {
        "call": call,
        "recordings": recordings,
        "is_complete": is_over and (bool(recordings) or _is_without_recording(call)),
        "stage": _stage(call, recordings),
    }


def _is_without_recording(call: Json) -> bool:
    """Return whether no recording of the call is awaited."""
    return bool(call["state"] == CallState.MISSED or call["consent"] == REFUSED)


def _recording(recording: Recording, its: Sequence[StepStatus]) -> Json:
    status = document.status(recording, its)
    shares = {step.name: step.progress for step in its}
    steps = [{**each, "progress": shares[each["name"]]} for each in status["steps"]]
    not_done = (StepState.FAILED, StepState.SKIPPED)
    return {
        **recording_json(recording),
        **status,
        "steps": steps,
        "running": [each for each in steps if each["status"] == StepState.RUNNING],
        "problems": [each for each in steps if each["status"] in not_done],
        "is_over": status["status"] in OVER,
        "is_lost": _is_lost(recording, status),
        "advice": _advice(recording, its),
    }


def _is_lost(recording: Recording, status: Json) -> bool:
    """Return whether neither sound nor text is there: texts outlive sound that was deleted."""
    is_missing = recording.state == RecordingState.MISSING
    return is_missing and bool(status["status"] == DocumentState.FAILED)


def _advice(recording: Recording, its: Sequence[StepStatus]) -> str | None:
    """Return what may bring a lost recording back; None where nothing does."""
    was_read = any(step.name == SETTLE and step.status == StepState.DONE for step in its)
    is_missing = recording.state == RecordingState.MISSING
    return names.LOST.get(recording.source) if is_missing and not was_read else None


def _stage(call: Json, recordings: Iterable[Json]) -> str:
    """Return a text that changes when there is more to show than figures of progress."""
    parts = [call["state"], call["consent"] or "", call["disposition"] or ""]
    for recording in recordings:
        parts += [recording["audio_id"], recording["state"]]
        parts += [f"{step['name']}={step['status']}" for step in recording["steps"]]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _shown(recordings: Sequence[Json], asked: str | None) -> Json | None:
    """Return the recording that the page plays: the one asked for, else the newest with sound."""
    for each in recordings:
        if each["audio_id"] == asked:
            return each
    stored = [each for each in recordings if each["state"] == RecordingState.STORED]
    candidates = stored or recordings
    return candidates[-1] if candidates else None


# ---- the words


def _transcript(
    state: Mapping[str, Any], shown: Json | None, made: Json | None
) -> tuple[list[Turn], Json]:
    """Return the words to show: the recording's once they are there, else the live ones."""
    if shown and made and _has_transcript(shown):
        note = "" if made["segments"] else "No words were recognised in this recording."
        return _marked(made), {"source": "recording", "note": note, "gaps": {}}
    gaps = {} if state["consent"] == REFUSED else _gaps(state)
    if not state["segments"]:
        return [], {"source": "live", "note": _no_words(state, shown), "gaps": gaps}
    note = "It was written while people spoke. The transcript of the recording replaces it"
    if shown and shown["status"] in OVER:
        note = "It was written while people spoke; the recording could not be transcribed"
    return turns_of(state["segments"]), {"source": "live", "note": f"{note}.", "gaps": gaps}


def _gaps(state: Mapping[str, Any]) -> dict[str, str]:
    """Return which parties the live text leaves out, and why."""
    return {leg["leg"]: leg["no_text"] for leg in state["legs"] if leg["no_text"]}


def _has_transcript(recording: Json) -> bool:
    return any(
        step["name"] == "transcribe" and step["status"] == StepState.DONE
        for step in recording["steps"]
    )


def _marked(made: Json) -> list[Turn]:
    annotation = made["annotation"] or {"original": None, "translation": None}
    turns = turns_of(made["segments"], Marks(annotation["original"], made["flags"] or ()))
    if made["translation"]:
        add_translation(turns, made["translation"], Marks(annotation["translation"]))
    return turns


def _kinds(turns: Iterable[Turn]) -> set[str]:
    """Return the classes of the marks that there are."""
    return {
        name
        for turn in turns
        for line in turn.lines
        for token in line.tokens
        for piece in token.pieces
        if piece.classes
        for name in piece.classes.split()
    }


def _no_words(state: Mapping[str, Any], shown: Json | None) -> str:
    if state["consent"] == REFUSED:
        return "No text of this call is kept."
    if state["state"] == "live":
        return "No words yet. The live page shows them as they come."
    if shown and shown["status"] not in OVER:
        return "No words yet: the recording is being processed."
    if shown and shown["is_lost"]:
        return "No words: the recording is missing, and there was no live text."
    if not shown and state["state"] == "missed":
        return "Nobody answered, so there is no conversation to show."
    return "No words were recognised in this call."


def _no_recording(state: Mapping[str, Any]) -> str:
    if state["consent"] == REFUSED:
        return "No recording of this call is kept."
    if state["state"] == "live":
        return "The recording comes after the call has ended."
    if state["state"] == "missed":
        return "A missed call has no recording."
    return "There is no recording of this call yet."


# ---- what was found


def _by_severity(made: Json | None) -> list[Json]:
    flags = (made["flags"] if made else None) or []
    return sorted(flags, key=lambda each: (_SEVERITIES.index(each["severity"]), each["at_s"]))


def _entities(made: Json | None) -> list[tuple[str, list[Json]]]:
    """Return the entities in groups of a label, in the order in which people look for them."""
    found = (made["entities"] or {}).get("entities", []) if made else []
    groups = ((title, [e for e in found if e["label"] == label]) for label, title in _GROUPS)
    return [(title, group) for title, group in groups if group]


_GROUPS = tuple(names.ENTITIES.items())


def _safety(made: Json | None) -> list[tuple[str, Json]] | None:
    """Return the fields of safety, those that say yes first; None where nobody looked."""
    found = (made["insights"] or {}).get("safety") if made else None
    if not found:
        return None
    fields = [(title, _field(found, name)) for name, title in names.SAFETY.items()]
    return sorted(fields, key=lambda each: ("yes", "no", "unknown").index(each[1]["value"]))


def _field(found: Json, name: str) -> Json:
    value: Json = found
    for part in name.split("."):
        value = value[part]
    return value


# ---- categories by their names


def _taxonomies(settings: Settings) -> tuple[Taxonomy, ...]:
    try:
        return taxonomies.load(settings.taxonomies)
    except ConfigError as error:
        # A page is better off with ids than not at all; `classify` says the same to the admin.
        logger.warning("taxonomies cannot be read", extra={"reason": str(error)})
        return ()


def _labels(known: Iterable[Taxonomy]) -> dict[str, str]:
    """Return what ids of categories and call types are called."""
    labels: dict[str, str] = {}
    for one in known:
        labels |= {each.id: _label(each.label) for each in one.call_types}
        labels |= {each.id: _label(each.label) for each in one.categories}
    return labels


def _label(by_language: Mapping[str, str]) -> str:
    return by_language.get("en") or next(iter(by_language.values()))


def _choices(known: Sequence[Taxonomy], made: Json | None) -> list[Json]:
    """Return the categories that were not found, in groups, to choose a missing one from."""
    if not made or not made["categories"]:
        return []
    found = {(each["taxonomy"], each["id"]) for each in made["categories"]["categories"]}
    return [group for one in known for group in _groups(one, found)]


def _groups(taxonomy: Taxonomy, found: set[tuple[str, str]]) -> Iterator[Json]:
    groups: dict[str, Json] = {}
    for each in taxonomy.categories:
        top = groups.setdefault(each.path[0], {"taxonomy": taxonomy.id, "label": "", "options": []})
        if each.id == each.path[0]:
            top["label"] = _label(each.label)
        # A heading that only holds others together is no category of calls.
        if (each.hints or each.examples) and (taxonomy.id, each.id) not in found:
            top["options"].append({"id": each.id, "label": _label(each.label)})
    yield from (group for group in groups.values() if group["options"])
