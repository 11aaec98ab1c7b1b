"""The document of a recording, ``callcore.insights/1``, put together when it is read.

So it is valid after every step: what is not there yet, or was not asked for, is null. Its types
are in ``document_types``.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from callcore.calls import (
    REFUSED,
    SETTLE,
    Call,
    DocumentState,
    Media,
    Recording,
    StepState,
    StepStatus,
    iso,
)
from callcore.errors import SchemaError
from callcore.insights_document import RESULTS, SCHEMA, check_document, check_result
from callcore.results import Segment
from callcore.storage import Storage

logger = logging.getLogger(__name__)

#: Parts of the document beside the transcript, and the step whose result each one is.
PARTS = {
    "translation": "translate",
    "summary": "summarize",
    "entities": "ner",
    "categories": "classify",
    "insights": "insights",
    "annotation": "annotate",
}


def read(storage: Storage, any_audio_id: str) -> dict[str, Any]:
    """Return the document of a recording.

    Raises:
        NotFound: If there is no such recording.
    """
    recording = storage.recording(any_audio_id)
    call = storage.call(recording.call_id)
    steps = storage.steps(recording.audio_id)
    results = storage.results(recording.audio_id)
    needs_live = "transcribe" not in results and call.consent != REFUSED
    live = storage.live_segments(recording.call_id) if needs_live else []
    document = assemble(call, recording, steps, results, live)
    try:
        check_document({**document, **dict.fromkeys(PARTS)})  # the parts have been checked
    except SchemaError as error:
        # Whoever reads is better off with all of it than with nothing because of one field.
        logger.error("a document breaks its schema", extra={"reason": str(error)})
    return document


def assemble(
    call: Call,
    recording: Recording,
    steps: Sequence[StepStatus],
    results: Mapping[str, dict[str, Any]],
    live: Sequence[Segment],
) -> dict[str, Any]:
    """Return the document.

    Args:
        call: The call.
        recording: The recording.
        steps: Its steps in their order.
        results: What the steps made, by name.
        live: The live transcript: shown until the recording has been transcribed.
    """
    sound = {name: made for name, made in results.items() if _is_sound(name, made)}
    transcript = sound.get("transcribe")
    segments = transcript["segments"] if transcript else [each.as_json() for each in live]
    categories = sound.get("classify")
    return {
        "schema": SCHEMA,
        "audio_id": recording.audio_id,
        "call_id": recording.call_id,
        "status": state_of(steps),
        "call": _call(call),
        "recording": _recording(recording),
        "processing": {
            "progress": progress_of(steps),
            "steps": [_step(each, results.get(each.name)) for each in steps],
        },
        "language": transcript["language"] if transcript else call.facts.language,
        "source": segments[0]["source"] if segments else None,
        "segments": [{"speaker": None, **each} for each in segments],
        **{part: sound.get(step) for part, step in PARTS.items()},
        "flags": categories["flags"] if categories else None,
        "other": {name: made for name, made in sound.items() if name not in RESULTS},
    }


def _is_sound(step: str, result: Mapping[str, Any]) -> bool:
    """Return whether a stored result fits today's schema: an older callcore may have made it."""
    try:
        check_result(step, result)
    except SchemaError as error:
        logger.warning("a stored result is left out", extra={"reason": str(error)})
        return False
    return True


def state_of(steps: Sequence[StepStatus]) -> DocumentState:
    """Return where the analysis stands as a whole."""
    states = [step.status for step in steps]
    if not all(state.is_over for state in states):
        begun = any(step.started_at is not None for step in steps)
        return DocumentState.PROCESSING if begun else DocumentState.QUEUED
    if all(state == StepState.DONE for state in states):
        return DocumentState.COMPLETED
    done = {step.name for step in steps if step.status == StepState.DONE}
    return DocumentState.PARTIAL if done - {SETTLE} else DocumentState.FAILED


def progress_of(steps: Sequence[StepStatus]) -> int:
    """Return how much of the analysis is over, 0 to 100."""
    counted = [step for step in steps if step.name != SETTLE] or list(steps)
    if not counted:
        return 0
    shares = [1.0 if step.status.is_over else step.progress for step in counted]
    return int(100 * sum(shares) / len(shares))


def error_of(steps: Sequence[StepStatus]) -> str | None:
    """Return why the analysis is not complete: the first step that failed."""
    failed = (step for step in steps if step.status == StepState.FAILED)
    return next((f"{step.name}: {step.error}" for step in failed), None)


def current_step(steps: Sequence[StepStatus]) -> str | None:
    """Return the step that runs, else the next one that will; None when all is over."""
    for wanted in (StepState.RUNNING, StepState.PENDING):
        for step in steps:
            if step.status == wanted:
                return step.name
    return None


def status(recording: Recording, steps: Sequence[StepStatus]) -> dict[str, Any]:
    """Return the answer of ``/api/status/<task_id>/``."""
    return {
        "task_id": recording.audio_id,
        "audio_id": recording.audio_id,
        "status": state_of(steps),
        "progress": progress_of(steps),
        "current_step": current_step(steps),
        "audio_s": _rounded(recording.duration_s),
        "transcribed_s": _transcribed(recording, steps),
        "steps": [
            {
                "name": step.name,
                "status": step.status,
                "progress": round(step.progress, 3),
                "started_at": iso(step.started_at),
                "ms": step.ms,
                "attempts": step.attempts,
                "error": step.error,
            }
            for step in steps
        ],
        "error": error_of(steps),
    }


def _transcribed(recording: Recording, steps: Sequence[StepStatus]) -> float | None:
    """Return the seconds of audio that are transcribed; None while the length is not known."""
    share = next((step.progress for step in steps if step.name == "transcribe"), None)
    if share is None or recording.duration_s is None:
        return None
    return round(share * recording.duration_s, 1)


def _call(call: Call) -> dict[str, Any]:
    facts = call.facts
    return {
        "call_id": call.call_id,
        "session_id": call.session_id,
        "state": call.state,
        "reason": call.reason,
        "uniqueid": facts.uniqueid,
        "linkedid": facts.linkedid,
        "direction": facts.direction,
        # Whoever refused is not named, whatever a late report may have filled in.
        "caller": None if call.consent == REFUSED else facts.caller,
        "callee": facts.callee,
        "queue": facts.queue,
        "agent": facts.agent,
        "started_at": iso(facts.started_at),
        "ended_at": iso(call.ended_at),
        "duration": _rounded(call.duration_s if facts.started_at else None),
        "disposition": call.disposition,
        "answered_at": iso(call.answered_at),
        "wait_s": _rounded(call.wait_s),
        "consent": call.consent,
    }


def _recording(recording: Recording) -> dict[str, Any]:
    return {
        "audio_id": recording.audio_id,
        "state": recording.state,
        "reason": recording.reason,
        "source": recording.source,
        "sources": list(recording.sources),
        "created_at": iso(recording.created_at),
        "offset": _rounded(recording.offset_s),
        "duration": _rounded(recording.duration_s),
        "media": [_media(each) for each in recording.media],
    }


def _media(media: Media) -> dict[str, Any]:
    return {
        "role": media.role,
        "offset": _rounded(media.offset_s),
        "sha256": media.sha256,
        "num_channels": media.num_channels,
        "rate": media.rate,
        "duration": _rounded(media.duration_s),
    }


def _step(step: StepStatus, result: Mapping[str, Any] | None) -> dict[str, Any]:
    made = result or {}
    return {
        "name": step.name,
        "status": step.status,
        "started_at": iso(step.started_at),
        "ms": step.ms,
        "attempts": step.attempts,
        "progress": round(step.progress, 3),
        "error": step.error,
        "engine": made.get("engine"),
        "model": made.get("model"),
        "version": made.get("version"),
        "parameters": made.get("parameters"),
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
