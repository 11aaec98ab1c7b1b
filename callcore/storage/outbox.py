"""What happened and is to be told outside: noted in the transaction in which it happened.

A note has no endpoint; ``webhooks`` makes a delivery of it for each endpoint that wants it. So
nothing is told that was rolled back, and nothing is forgotten when a process dies.
"""

import uuid
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

from callcore import tables
from callcore.database import Database, Row

#: The endpoint of a note.
NOBODY_YET = ""
PENDING, DELIVERED, FAILED = "pending", "delivered", "failed"
_NAMESPACE = uuid.UUID("6b1c0a52-2f0e-4c55-9a9d-0f8f5a0f3f11")


def note(db: Database, kind: str, key: str, data: Mapping[str, Any], moment: datetime) -> str:
    """Note that something happened; what was noted before under this key is noted once.

    Args:
        db: Inside a transaction.
        kind: Type of the message, e.g. ``call.ended``.
        key: Tells one such event from another, for ever.
        data: What receivers get as ``data``.
        moment: When it happened.

    Returns:
        The id of the message.
    """
    message_id = f"msg_{uuid.uuid5(_NAMESPACE, f'{kind} {key}').hex}"
    payload = {"type": kind, "timestamp": moment.isoformat(), "data": dict(data)}
    _insert(db, message_id, NOBODY_YET, kind, payload, moment)
    return message_id


def fan_out(db: Database, endpoints: Mapping[str, frozenset[str]], moment: datetime) -> int:
    """Make deliveries of the notes; return how many notes there were.

    Args:
        db: Inside a transaction.
        endpoints: The types of messages that each endpoint wants, by its name.
        moment: Now.
    """
    model = tables.Delivery
    unsent = (model.endpoint == NOBODY_YET) & (model.state == PENDING)
    notes = db.all(model.select().where(unsent).order_by(model.created_at).limit(500))
    for row in notes:
        for endpoint, wanted in endpoints.items():
            if row["type"] in wanted:
                _insert(db, row["message_id"], endpoint, row["type"], row["payload"], moment)
        # The note stays for a while, so that what happened once is told once.
        told = {"state": DELIVERED, "due": None, "ended_at": moment}
        db.run(model.update(**told).where(_is(row["message_id"], NOBODY_YET)))
    return len(notes)


def has_work(db: Database, endpoints: Iterable[str], moment: datetime) -> bool:
    """Tell whether there is a note, or a delivery that is due at one of the endpoints."""
    model = tables.Delivery
    due = (model.state == PENDING) & (model.due <= moment)
    due &= model.endpoint.in_([NOBODY_YET, *endpoints])
    return db.first(model.select(model.message_id).where(due)) is not None


def take(
    db: Database, endpoint: str, moment: datetime, lease_s: float, message_id: str | None = None
) -> Row | None:
    """Return a delivery that is due, to one caller until the lease ends; None if there is none.

    Args:
        db: Inside a transaction.
        endpoint: Its endpoint.
        moment: Now.
        lease_s: Seconds after which another caller may have it.
        message_id: Its message, if it must be that one.
    """
    model = tables.Delivery
    due = (model.state == PENDING) & (model.endpoint == endpoint) & (model.due <= moment)
    if message_id is not None:
        due &= model.message_id == message_id
    for row in db.all(model.select().where(due).order_by(model.due).limit(5)):
        mine = _is(row["message_id"], row["endpoint"]) & due
        later = moment + timedelta(seconds=lease_s)
        if db.run(model.update(due=later, attempts=model.attempts + 1).where(mine)):
            return {**row, "attempts": row["attempts"] + 1}
    return None


def address(
    db: Database, message_id: str, kind: str, payload: Any, endpoint: str, moment: datetime
) -> None:
    """Make a delivery for one endpoint that is not to be sent before ``moment``."""
    _insert(db, message_id, endpoint, kind, payload, moment)


def close(
    db: Database, row: Row, state: str, moment: datetime, status: int | None, error: str | None
) -> None:
    """End a delivery."""
    ended = {"state": state, "due": None, "ended_at": moment, "http_status": status, "error": error}
    db.run(tables.Delivery.update(**ended).where(_is_mine(row)))


def again(db: Database, row: Row, due: datetime, status: int | None, error: str | None) -> None:
    """Let a delivery be tried again."""
    new = {"due": due, "http_status": status, "error": error}
    db.run(tables.Delivery.update(**new).where(_is_mine(row)))


def log(db: Database, limit: int) -> list[Row]:
    """Return the newest deliveries, newest first."""
    model = tables.Delivery
    query = model.select().where(model.endpoint != NOBODY_YET)
    return db.all(query.order_by(model.created_at.desc(), model.message_id).limit(limit))


def forget(db: Database, before: datetime) -> None:
    """Forget what ended before a moment, and what nobody could take since then."""
    model = tables.Delivery
    ended = (model.state != PENDING) & (model.ended_at < before)
    db.run(model.delete().where(ended | (model.created_at < before)))


def _insert(
    db: Database, message_id: str, endpoint: str, kind: str, payload: Any, moment: datetime
) -> None:
    row = {
        "message_id": message_id,
        "endpoint": endpoint,
        "type": kind,
        "payload": payload,
        "state": PENDING,
        "attempts": 0,
        "due": moment,
        "created_at": moment,
    }
    db.insert(tables.Delivery, row)


def _is_mine(row: Row) -> Any:
    """Match a delivery that was taken, unless another took it when the lease had ended."""
    model = tables.Delivery
    is_last = (model.attempts == row["attempts"]) & (model.state == PENDING)
    return _is(row["message_id"], row["endpoint"]) & is_last


def _is(message_id: str, endpoint: str) -> Any:
    model = tables.Delivery
    return (model.message_id == message_id) & (model.endpoint == endpoint)
