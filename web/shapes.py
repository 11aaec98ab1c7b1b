"""Calls, legs and recordings as JSON: what the API answers and the pages show."""

from typing import Any

from callcore.calls import REFUSED, Call, CallFacts, Leg, Recording, iso

_FACTS = ("uniqueid", "linkedid", "caller", "callee", "agent", "queue", "direction", "language")


def facts_json(facts: CallFacts) -> dict[str, Any]:
    """Return what is known of a call; null where it is not."""
    return {name: getattr(facts, name) for name in _FACTS}


def leg_json(leg: Leg) -> dict[str, Any]:
    """Return a leg."""
    return {
        "uuid": leg.uuid,
        "leg": leg.leg,
        "state": leg.state,
        "language": leg.language,
        "started_at": iso(leg.started_at),
        "ended_at": iso(leg.ended_at),
        "offset_s": round(leg.offset_s, 3),
        "reason": leg.reason,
        "no_text": leg.no_text,
    }


def call_json(call: Call) -> dict[str, Any]:
    """Return a call with its legs; its start is null where nobody has told it.

    ``received_at`` is then when we first heard of it, and the zero of its times is unknown.
    """
    is_known = call.facts.started_at is not None
    return {
        "call_id": call.call_id,
        "session_id": call.session_id,
        "state": call.state,
        "reason": call.reason,
        "started_at": iso(call.started_at) if is_known else None,
        "received_at": iso(call.started_at),
        "ended_at": iso(call.ended_at),
        "duration": round(call.duration_s, 3) if is_known and call.duration_s else None,
        "disposition": call.disposition,
        "answered_at": iso(call.answered_at),
        "wait_s": None if call.wait_s is None else round(call.wait_s, 3),
        "consent": call.consent,
        **_facts(call),
        "legs": [leg_json(leg) for leg in call.legs],
    }


def _facts(call: Call) -> dict[str, Any]:
    facts = facts_json(call.facts)
    # Whoever refused is not named, whatever a late report may have filled in.
    return {**facts, "caller": None} if call.consent == REFUSED else facts


def recording_json(recording: Recording) -> dict[str, Any]:
    """Return a recording without the places of its files."""
    return {
        "audio_id": recording.audio_id,
        "call_id": recording.call_id,
        "state": recording.state,
        "reason": recording.reason,
        "source": recording.source,
        "sources": list(recording.sources),
        "created_at": iso(recording.created_at),
        "offset_s": recording.offset_s,
        "duration_s": recording.duration_s,
        "media": [
            {
                "role": each.role,
                "rate": each.rate,
                "num_channels": each.num_channels,
                "duration_s": each.duration_s,
            }
            for each in recording.media
        ],
    }
