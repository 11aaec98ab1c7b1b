"""The state of an analysis, from its rows."""

import pytest

from callcore.calls import DocumentState, StepState, StepStatus, now
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
