"""What the list of calls shows of their analysis."""

from collections.abc import Mapping, Sequence
from typing import Any

from callcore import insights_document
from callcore.calls import (
    REFUSED,
    CallState,
    DocumentState,
    RecordingState,
    StepState,
    StepStatus,
)
from callcore.document import current_step, progress_of, state_of
from callcore.errors import SchemaError
from callcore.storage import Storage, overview
from web.names import DOCUMENTS, DOING, STATES

Json = dict[str, Any]


def findings(storage: Storage, call_ids: Sequence[str]) -> dict[str, Json]:
    """Return what is known of the analysis of each call that has a recording, by call_id."""
    results = overview.results_of_calls(storage.database, call_ids)
    steps = overview.steps_of_calls(storage.database, call_ids)
    lengths = overview.lengths_of_calls(storage.database, call_ids)
    audio = overview.states_of_calls(storage.database, call_ids)
    return {
        call_id: {
            **_finding(its, results.get(call_id, {})),
            "length_s": lengths.get(call_id),
            "is_lost": audio.get(call_id) == {RecordingState.MISSING},
        }
        for call_id, its in steps.items()
    }


def states(call: Mapping[str, Any], finding: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Return what a row says of a call's state: codes for the eye, and words.

    Args:
        call: As ``shapes.call_json`` makes it.
        finding: As ``findings`` returns it; None where there is no recording.
    """
    own = call["state"]
    named = [] if own == CallState.ENDED else [(str(own), STATES[own])]
    if call["consent"] == REFUSED:
        return [*named, ("refused", "Analysis refused")]
    if finding is None or own == CallState.LIVE:
        return named or [(str(own), STATES[own])]
    status = finding["status"]
    # What was found in a recording stays when its audio is deleted after a while.
    if finding["is_lost"] and status == DocumentState.FAILED:
        return [*named, ("missing", "Recording missing")]
    return [*named, (str(status), DOCUMENTS[status])]


def _finding(steps: Sequence[StepStatus], results: Mapping[str, Json]) -> Json:
    state = state_of(steps)
    summary, classified = _sound("summarize", results), _sound("classify", results)
    categories = classified["categories"] if classified else []
    return {
        "status": state,
        "doing": _doing(steps) if state == DocumentState.PROCESSING else None,
        "progress": progress_of(steps),
        "headline": summary["headline"] if summary else None,
        "category": categories[0]["label"] if categories else None,
        "priority": (classified["priority"] or {}).get("level") if classified else None,
        "flags": len(classified["flags"]) if classified else None,
    }


def _sound(step: str, results: Mapping[str, Json]) -> Json | None:
    """Return a result that fits today's schema: an older callcore may have made it."""
    made = results.get(step)
    if made is None:
        return None
    try:
        insights_document.check_result(step, made)
    except SchemaError:
        return None  # the document says so in the log
    return made


def _doing(steps: Sequence[StepStatus]) -> str | None:
    running = next((each for each in steps if each.status == StepState.RUNNING), None)
    name = running.name if running else current_step(steps)
    return DOING.get(name, name) if name else None
