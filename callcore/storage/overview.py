"""What lists of calls show of their analysis, read for a page of calls at once.

A transcript is a megabyte; a list needs a few words of two steps. So only their results are read.
"""

from collections.abc import Sequence
from typing import Any

from callcore import tables
from callcore.calls import RecordingState, StepState, StepStatus
from callcore.database import Database

#: Steps whose results are read.
STEPS = ("summarize", "classify")


def results_of_calls(db: Database, call_ids: Sequence[str]) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the results of ``STEPS`` by call and step; those of its newest recording win."""
    result, recording = tables.Result, tables.Recording
    query = (
        result.select(result.step, result.document, recording.call)
        .join(recording)
        .where(recording.call.in_(call_ids) & result.step.in_(STEPS))
        .order_by(recording.created_at, recording.audio_id)
    )
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for row in db.all(query) if call_ids else ():
        found.setdefault(row["call"], {})[row["step"]] = row["document"]
    return found


def lengths_of_calls(db: Database, call_ids: Sequence[str]) -> dict[str, float]:
    """Return the length in seconds of each call's longest recording, where it is known."""
    recording = tables.Recording
    query = recording.select(recording.call, recording.duration_s)
    query = query.where(recording.call.in_(call_ids) & recording.duration_s.is_null(False))
    found: dict[str, float] = {}
    for row in db.all(query) if call_ids else ():
        found[row["call"]] = max(row["duration_s"], found.get(row["call"], 0.0))
    return found


def states_of_calls(db: Database, call_ids: Sequence[str]) -> dict[str, set[RecordingState]]:
    """Return whether the audio of each call's recordings is at hand: the states that there are."""
    recording = tables.Recording
    query = recording.select(recording.call, recording.state)
    query = query.where(recording.call.in_(call_ids))
    found: dict[str, set[RecordingState]] = {}
    for row in db.all(query) if call_ids else ():
        found.setdefault(row["call"], set()).add(RecordingState(row["state"]))
    return found


def steps_of_calls(db: Database, call_ids: Sequence[str]) -> dict[str, list[StepStatus]]:
    """Return the steps of all recordings of each call, in their order."""
    job, recording = tables.Job, tables.Recording
    query = (
        job.select(job, recording.call)
        .join(recording)
        .where(recording.call.in_(call_ids))
        .order_by(recording.created_at, recording.audio_id, job.position, job.step)
    )
    found: dict[str, list[StepStatus]] = {}
    for row in db.all(query) if call_ids else ():
        step = StepStatus(
            name=row["step"],
            status=StepState(row["state"]),
            started_at=row["started_at"],
            ms=row["ms"],
            attempts=row["attempts"],
            error=row["error"],
            progress=row["progress"],
        )
        found.setdefault(row["call"], []).append(step)
    return found
