"""The live events: what a room and the lobby carry, and every field of each.

An event is one JSON object with ``type``, ``call_id``, ``at`` (ISO 8601 UTC, milliseconds) and
the fields of its type. ``FIELDS`` is the contract with the pages and with outside listeners.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from callcore.calls import iso, now

_CALL = ("session_id", "uniqueid", "linkedid", "caller", "callee", "queue", "agent", "direction")
_STEP = ("audio_id", "step", "ms", "error")

#: Fields of each type beside ``type``, ``call_id`` and ``at``; all are always present, null where
#: unknown.
FIELDS: dict[str, tuple[str, ...]] = {
    "call.started": (*_CALL, "language"),
    "call.ended": ("duration", "reason"),
    "leg.started": ("leg", "uuid"),
    "leg.ended": ("leg", "duration", "reason"),
    "transcript.partial": ("leg", "segment", "start", "end", "text", "stable"),
    "transcript.final": (
        "leg",
        "segment",
        "start",
        "end",
        "text",
        "language",
        "words",
        "latency",
        "revised",
    ),
    "flag.raised": (
        "flag_id",
        "rule",
        "rule_version",
        "severity",
        "label",
        "leg",
        "at_s",
        "evidence",
    ),
    "lag.updated": ("lag_s", "state"),
    "audio.lost": ("leg", "start", "end", "reason"),
    "dtmf": ("leg", "digit"),
    "step.started": _STEP,
    "step.finished": _STEP,
    "step.failed": _STEP,
    "analysis.ready": _STEP,
    "analysis.failed": _STEP,
}

#: Types that the lobby carries beside the call's own room.
LOBBY_TYPES = frozenset({"call.started", "call.ended", "flag.raised", "lag.updated"})


@dataclass(frozen=True, slots=True)
class Event:
    """One live event of one call."""

    type: str
    call_id: str
    at: datetime
    fields: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Return the object that travels as ``data:``."""
        return {"type": self.type, "call_id": self.call_id, "at": iso(self.at), **self.fields}


def make(event_type: str, call_id: str, /, **fields: Any) -> Event:
    """Return an event of now.

    Args:
        event_type: A key of ``FIELDS``.
        call_id: The call it belongs to.
        **fields: Values of the type's fields; absent ones become null.

    Raises:
        ValueError: If a field is not one of the type's.
    """
    allowed = FIELDS[event_type]
    unknown = set(fields) - set(allowed)
    if unknown:
        raise ValueError(f"{event_type} has no field {', '.join(sorted(unknown))}")
    return Event(event_type, call_id, now(), {name: fields.get(name) for name in allowed})
