"""How far the analysis of a recording is, and the receipt for a recording that was taken."""

from typing import Any

from callcore import document
from callcore.storage import Storage


def status_of(storage: Storage, task_id: str) -> dict[str, Any]:
    """Return the answer of ``/api/status/<task_id>/``.

    Raises:
        NotFound: If there is no such recording.
    """
    recording = storage.recording(task_id)
    return document.status(recording, storage.steps(recording.audio_id))


def receipt(storage: Storage, audio_id: str) -> dict[str, Any]:
    """Return what the sender of a recording keeps: ids, and where to ask how far it is."""
    current = status_of(storage, audio_id)
    named = {name: current[name] for name in ("task_id", "audio_id", "status")}
    return {**named, "status_url": f"/api/status/{current['task_id']}/"}
