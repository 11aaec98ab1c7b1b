"""Analyse a recording again: what failed, what a new setting added, or all of it."""

from collections.abc import Iterable, Mapping

from callcore.calls import SETTLE, StepState
from callcore.errors import Refused
from callcore.ledger import Ledger
from callcore.settings import Settings
from callcore.steps import Step, table
from callcore.storage import Storage, call_rows, consent_rows, recording_rows


def rerun(
    storage: Storage, settings: Settings, any_audio_id: str, wanted: Iterable[str] = ()
) -> tuple[str, tuple[str, ...]]:
    """Let steps of a recording run again, and those that read what they make.

    Args:
        storage: The record.
        settings: ``steps`` may name more than there were when the recording came.
        any_audio_id: Any id of the recording.
        wanted: Steps; by default those that failed or are new, and if there are none, all.

    Returns:
        The recording's id, and the steps that can run now.

    Raises:
        NotFound: If there is no such recording.
        Refused: ``unknown-step``, ``no-audio`` if what it was made from has been deleted, or
            ``consent-refused``.
    """
    steps = table(settings.steps)
    recording = storage.recording(any_audio_id)
    audio_id = recording.audio_id
    asked = set(wanted)
    if unknown := sorted(asked - {SETTLE, *steps}):
        raise Refused("unknown-step", f"there is no step {unknown[0]}", "steps")
    before = {step.name: step.status for step in storage.steps(audio_id)}
    if not asked:
        failed = (StepState.FAILED, StepState.SKIPPED)
        asked = {name for name, state in before.items() if state in failed}
        asked |= set(steps) - set(before)
    if not asked:
        asked = set(steps)
    asked = _with_needs(asked, steps, before)
    if "transcribe" in asked and SETTLE not in asked and not recording.media:
        raise Refused("no-audio", recording.reason or "its audio is not here any more")
    ledger = Ledger(storage, after={name: step.after for name, step in steps.items()})
    needs = {SETTLE: (), **{name: (SETTLE, *step.needs) for name, step in steps.items()}}
    with storage.database.transaction():
        storage.database.serialize(call_rows.CALLS)
        call_id = recording_rows.call_of(storage.database, audio_id)  # it may have been merged
        consent_rows.check(storage.database, call_id)
        ledger.enqueue(audio_id, settings.steps)  # those that are new
        released = ledger.rerun(audio_id, _with_readers(asked, steps), needs)
    return audio_id, released


def _with_needs(
    asked: set[str], steps: Mapping[str, Step], before: Mapping[str, StepState]
) -> set[str]:
    """Return the steps and what they need, directly or not, as far as it is not done."""
    found = set(asked)
    while True:
        needed = {need for name in found - {SETTLE} for need in (SETTLE, *steps[name].needs)}
        more = {name for name in needed - found if before.get(name) != StepState.DONE}
        if not more:
            return found
        found |= more


def _with_readers(asked: set[str], steps: Mapping[str, Step]) -> set[str]:
    """Return the steps and all that read, directly or not, what they make."""
    found = set(asked)
    while True:
        more = {
            name
            for name, step in steps.items()
            if found.intersection((SETTLE, *step.needs, *step.after)) and name not in found
        }
        if not more:
            return found
        found |= more
