"""The state of an analysis, from its rows."""

from datetime import UTC, datetime, timedelta

import pytest

from callcore.calls import Call, CallFacts, CallState, DocumentState, StepState, StepStatus, now
from callcore.document import current_step, error_of, progress_of, state_of


def steps(**states: str) -> list[StepStatus]:
    return [
        StepStatus(
            name=name,
            status=StepState(state),
            started_at=None if state in ("pending", "skipped") else now(),
            ms=None,
            attempts=1,
            error="broken" if state == "failed" else None,
            progress=0.5 if state == "running" else 0.0,
        )
        for name, state in states.items()
    ]


@pytest.mark.parametrize(
    ("settle", "transcribe", "ner", "state", "progress", "current"),
    [
        ("pending", "pending", "pending", DocumentState.QUEUED, 0, "settle"),
        ("running", "pending", "pending", DocumentState.PROCESSING, 0, "settle"),
        ("done", "pending", "pending", DocumentState.PROCESSING, 0, "transcribe"),
        ("done", "running", "pending", DocumentState.PROCESSING, 25, "transcribe"),
        ("done", "done", "running", DocumentState.PROCESSING, 75, "ner"),
        ("done", "done", "done", DocumentState.COMPLETED, 100, None),
        ("done", "done", "failed", DocumentState.PARTIAL, 100, None),
        ("done", "failed", "skipped", DocumentState.FAILED, 100, None),
        ("failed", "skipped", "skipped", DocumentState.FAILED, 100, None),
        ("done", "done", "skipped", DocumentState.PARTIAL, 100, None),
    ],
)
def test_the_state_follows_from_the_steps(
    settle: str,
    transcribe: str,
    ner: str,
    state: DocumentState,
    progress: int,
    current: str | None,
) -> None:
    rows = steps(settle=settle, transcribe=transcribe, ner=ner)
    assert (state_of(rows), progress_of(rows), current_step(rows)) == (state, progress, current)


def test_the_error_is_that_of_the_first_failed_step() -> None:
    assert error_of(steps(settle="done", a="failed", b="failed")) == "a: broken"
    assert error_of(steps(settle="done", a="done")) is None


def test_a_recording_without_steps_has_made_no_progress() -> None:
    assert progress_of([]) == 0


BEGAN = datetime(2026, 11, 23, 9, 0, tzinfo=UTC)


def call(state: CallState, answered_s: float | None, *, is_start_known: bool = True) -> Call:
    """Return a call of a minute that was answered after some seconds."""
    return Call(
        call_id="c",
        session_id="c-1",
        state=state,
        started_at=BEGAN,
        ended_at=None if state == CallState.LIVE else BEGAN + timedelta(seconds=60),
        reason=None,
        facts=CallFacts(started_at=BEGAN if is_start_known else None),
        answered_at=None if answered_s is None else BEGAN + timedelta(seconds=answered_s),
    )


@pytest.mark.parametrize(
    ("state", "answered_s", "wait_s"),
    [
        (CallState.ENDED, 14.0, 14.0),
        (CallState.LIVE, 14.0, 14.0),
        (CallState.LIVE, None, None),  # it still rings
        (CallState.ENDED, None, None),  # nobody told when it was answered
        (CallState.MISSED, None, 60.0),
        (CallState.ENDED, -0.6, 0.0),  # the PBX tells whole seconds
        (CallState.ENDED, -5.0, None),  # our zero is not the start of the wait
    ],
)
def test_the_wait_ends_with_the_answer_or_with_a_missed_call(
    state: CallState, answered_s: float | None, wait_s: float | None
) -> None:
    assert call(state, answered_s).wait_s == wait_s


def test_nobody_knows_the_wait_of_a_call_whose_start_is_not_known() -> None:
    assert call(CallState.MISSED, None, is_start_known=False).wait_s is None
    assert call(CallState.ENDED, 14.0, is_start_known=False).wait_s is None
