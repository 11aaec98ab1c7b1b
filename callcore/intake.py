"""The one door for recordings and registrations, whoever brings them.

Here, and nowhere else, is decided which recording a report is about. Reports of the same recording
through several doors, in any order, are one recording whose facts are united.
"""

import contextlib
import json
import re
import uuid as uuids
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from callcore import filenames, settling
from callcore.calls import SETTLE, CallFacts, Leg, Media
from callcore.errors import Refused
from callcore.ledger import Ledger
from callcore.settings import Settings
from callcore.storage import Storage, call_rows, recording_rows

#: Seconds within which the stream of a registered leg must come.
REGISTRATION_VALID_S = 10.0
#: The door of our own recordings of live legs.
CAPTURE = "capture"

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
_LEG = re.compile(r"mixed|(caller|agent)(-[2-9])?")
_LANGUAGE = re.compile(r"[a-z]{2,3}")
_MAX_TEXT = 200


@dataclass(frozen=True, slots=True)
class Accepted:
    """A recording that is now on record."""

    audio_id: str
    created: bool
    """False if another door had reported it."""
    wake: bool
    """Whether there is work now: tell a worker to settle it."""


# ---- legs


def register_leg(storage: Storage, uuid: str, facts: CallFacts) -> Leg:
    """Announce a live leg; its stream must come within ten seconds.

    Raises:
        Refused: ``bad-uuid``, ``bad-id``, ``bad-leg``, ``bad-language``, ``bad-direction``,
            ``too-long``, or ``uuid-in-use``.
    """
    check_facts(facts)
    return storage.register_leg(_checked_uuid(uuid), facts, REGISTRATION_VALID_S)


def open_leg(
    storage: Storage, settings: Settings, uuid: str | None, at: datetime | None = None
) -> Leg:
    """Return the leg of a stream that has said its UUID; it is live now.

    Args:
        storage: The record.
        settings: ``unregistered`` says what happens to a UUID that nobody registered.
        uuid: None for a stream that began without one.
        at: When the stream came, if that is not now.

    Raises:
        Refused: ``no-uuid``, ``bad-uuid``, ``unregistered``, ``uuid-used`` or ``uuid-expired``.
    """
    if uuid is None:
        raise Refused("no-uuid", "the stream did not begin with a UUID")
    own = _checked_uuid(uuid)
    leg = storage.consume_leg(own, settings.daemon_name, at)
    if leg is not None:
        return leg
    if settings.unregistered == "refuse":
        raise Refused("unregistered", "nobody has registered this UUID", "uuid")
    return storage.add_unregistered_leg(own, settings.daemon_name, at)


def _checked_uuid(uuid: str) -> str:
    with contextlib.suppress(ValueError):
        own = str(uuids.UUID(uuid))
        if own == uuid.lower():  # the library takes braces, urn: and no dashes too
            return own
    raise Refused("bad-uuid", "expected a UUID of 36 characters", "uuid")


# ---- recordings


def accept_recording(
    storage: Storage,
    settings: Settings,
    facts: CallFacts,
    source: str,
    media: Sequence[Media],
    *,
    original_name: str | None = None,
    wait_s: float = 0.0,
    renewed: bool = False,
) -> Accepted:
    """Put a reported recording on record: after the return it cannot be lost.

    Args:
        storage: The record.
        settings: ``pbx`` is part of the identity, ``steps`` are what will be done.
        facts: What the door knows.
        source: The door: ``spool``, ``upload``, ``capture``, ``webhook`` or ``agi``.
        media: The files it names, which need not be complete or even there yet. Role ``mixed``
            becomes the leg that the name or ``facts`` tell.
        original_name: The file's name where the path is only ours, e.g. of an upload.
        wait_s: Seconds before it is looked at.
        renewed: Whether the files are known to have changed since they were reported: they are
            read again.

    Raises:
        Refused: If a fact cannot be used, see ``register_leg``, or ``bad-name``.
    """
    check_facts(facts)
    _check_names([original_name or "", *(text for m in media for text in (m.role, m.path))])
    name = _name(media, original_name)
    said = _report(settings, facts, source, media, name, original_name)
    return _accept(storage, settings, replace(said, renewed=renewed), wait_s)


def accept_capture(storage: Storage, settings: Settings, call_id: str) -> Accepted | None:
    """Put our own recording of a call's ended legs on record.

    It waits ``capture_wait_s`` for the PBX's recording, which is better where it comes.

    Returns:
        None if captures are switched off or the call has none.

    Raises:
        NotFound: If there is no such call.
    """
    media = storage.capture_media(call_id) if settings.capture != "off" else []
    if not media:
        return None
    call = storage.call(call_id)
    facts = replace(call.facts, leg=None, started_at=call.started_at)
    identity = json.dumps([settings.pbx, call.call_id, CAPTURE])
    said = recording_rows.Report(identity, facts, CAPTURE, tuple(media), call_rows.ids_of(facts))
    wait_s = settings.capture_wait_s if settings.capture == "fallback" else 0.0
    return _accept(storage, settings, said, wait_s)


def _accept(
    storage: Storage, settings: Settings, said: recording_rows.Report, wait_s: float
) -> Accepted:
    ledger = Ledger(storage)
    database = storage.database
    with database.transaction():
        reported = recording_rows.report(database, said, storage.clock())
        ledger.enqueue(reported.audio_id, settings.steps, wait_s)
        if reported.changed and not reported.created:
            ledger.restart(reported.audio_id, [SETTLE])
        for audio_id in recording_rows.moved(database, reported.audio_id):
            ledger.restart(audio_id, [SETTLE])
    # A second upload of the same recording; a file of the PBX is never touched.
    settling.remove(reported.unneeded, settings.audio_dir)
    wake = reported.changed and not (reported.created and wait_s)
    return Accepted(reported.audio_id, reported.created, wake)


def _name(media: Sequence[Media], original_name: str | None) -> filenames.FileName:
    if original_name is not None:
        return filenames.parse(original_name)
    return filenames.parse(media[0].path if media else "")


def _report(
    settings: Settings,
    facts: CallFacts,
    source: str,
    media: Sequence[Media],
    name: filenames.FileName,
    original_name: str | None,
) -> recording_rows.Report:
    # The name tells which channel was recorded; a hangup hook tells on which channel it ran.
    leg = facts.leg or (name.leg if len(media) == 1 else None)
    united = replace(name.facts.merged(facts), leg=leg)
    channel = united.uniqueid or united.call_id or united.linkedid
    identity: str | None = None
    if channel:
        identity = json.dumps([settings.pbx, channel, name.stem])
    elif len(media) == 1 and media[0].sha256:
        identity = json.dumps(["sha256", media[0].sha256])
    ids = call_rows.ids_of(replace(united, uniqueid=facts.uniqueid or united.uniqueid))
    ids += [united.uniqueid] if united.uniqueid and united.uniqueid not in ids else []
    siblings = [path for each in media for path in filenames.siblings(each.path)]
    return recording_rows.Report(
        identity=identity,
        facts=united,
        source=source,
        media=tuple(_with_role(each, facts.leg, original_name) for each in media),
        ids=ids,
        siblings=tuple(siblings) if original_name is None else (),
        original_name=original_name,
    )


def _with_role(media: Media, leg: str | None, original_name: str | None) -> Media:
    if media.role != "mixed":
        return media
    return replace(media, role=leg or filenames.parse(original_name or media.path).leg or "mixed")


# ---- what may be said


def check_facts(facts: CallFacts) -> None:
    """Make sure that facts can be stored and shown.

    Raises:
        Refused: With the field that is at fault. What it held is not repeated.
    """
    for field in ("call_id", "uniqueid", "linkedid"):
        _match(_ID, getattr(facts, field), "bad-id", field, _ID_RULE)
    _match(_LEG, facts.leg, "bad-leg", "leg", "expected caller, agent, agent-2 ... or mixed")
    _match(_LANGUAGE, facts.language, "bad-language", "language", "expected a code such as en")
    if facts.direction not in (None, "in", "out", "internal"):
        raise Refused("bad-direction", "expected in, out or internal", "direction")
    for field in ("caller", "callee", "agent", "queue"):
        value = getattr(facts, field)
        if value is not None and (len(value) > _MAX_TEXT or not value.isprintable()):
            raise Refused("bad-text", f"expected up to {_MAX_TEXT} printable characters", field)


def _check_names(names: Sequence[str]) -> None:
    if not all(map(filenames.is_storable, names)):
        raise Refused("bad-name", "expected a file name in UTF-8 without NUL characters", "file")


_ID_RULE = "expected 1 to 80 letters, digits, dots, dashes or underscores, the first no sign"


def _match(
    pattern: re.Pattern[str], value: str | None, code: str, field: str, message: str
) -> None:
    if value is not None and not pattern.fullmatch(value):
        raise Refused(code, message, field)
