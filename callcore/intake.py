"""The one door for recordings and registrations, whoever brings them.

Here, and nowhere else, is decided which recording a report is about. Reports of the same recording
through several doors, in any order, are one recording whose facts are united.
"""

import contextlib
import hashlib
import json
import logging
import math
import re
import time
import uuid as uuids
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from callcore import fetch, filenames, settling
from callcore.audiosocket import PROBE_UUID
from callcore.calls import (
    GIVING_DOORS,
    REFUSED,
    SETTLE,
    CallFacts,
    Disposition,
    Ending,
    Leg,
    Media,
)
from callcore.consent import Consent
from callcore.errors import ConfigError, FetchError, Refused
from callcore.ledger import Ledger
from callcore.settings import Settings
from callcore.storage import Storage, call_rows, consent_rows, recording_rows

logger = logging.getLogger(__name__)

#: Seconds within which the stream of a registered leg must come.
REGISTRATION_VALID_S = 10.0
#: What a stream of both parties is registered as: the caller left, the agent right.
STEREO = "stereo"
#: The door of our own recordings of live legs.
CAPTURE = "capture"
#: Seconds for which nobody is told of new recordings after the broker did not answer.
SILENCE_S = 5.0

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
_LEG = re.compile(r"mixed|(caller|agent)(-[2-9])?")
_LANGUAGE = re.compile(r"[a-z]{2,3}")
_MAX_TEXT = 200
#: A start further ahead than this comes from a wrong clock, or from a number that is no time.
_MAX_AHEAD = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Accepted:
    """A recording that is now on record."""

    audio_id: str
    created: bool
    """False if another door had reported it."""
    wake: bool
    """Whether there is work now: tell a worker to settle it."""
    is_refused: bool = False
    """Whether its caller refused analysis."""


# ---- legs


def register_leg(
    storage: Storage, uuid: str, facts: CallFacts, settings: Settings | None = None
) -> Leg:
    """Announce a live leg; its stream must come within ten seconds.

    The leg ``stereo`` announces a stream of two channels. It is two legs: ``caller``, which is
    returned and has this UUID, and ``agent``, whose UUID is made here.

    Args:
        storage: The record.
        uuid: What the stream will begin with.
        facts: What is known of the leg and its call.
        settings: Given, the number is looked up among those that refused analysis.

    Raises:
        Refused: ``bad-uuid``, ``bad-id``, ``bad-leg``, ``bad-language``, ``bad-direction``,
            ``too-long``, ``uuid-in-use``, or ``consent-refused``: a stream that comes with this
            UUID all the same is of a refused call.
        ConfigError: If nobody can tell whether the number refused.
    """
    right_uuid = None
    if facts.leg == STEREO:
        facts = replace(facts, leg="caller")
        right_uuid = str(uuids.uuid4())
    check_facts(facts)
    own = _checked_uuid(uuid)
    if own == PROBE_UUID:
        raise Refused("bad-uuid", "this UUID is for streams that are no legs", "uuid")
    consent = Consent(storage, settings) if settings is not None else None
    if consent is not None and consent.is_outsider_refused(facts):
        # The other party's leg may come without the number: the call itself knows then.
        consent.refuse(facts, [own])
        raise Refused(consent_rows.CODE, consent_rows.REASON)
    try:
        return storage.register_leg(own, facts, REGISTRATION_VALID_S, right_uuid)
    except Refused as error:
        if consent is not None and error.code == consent_rows.CODE:
            consent.name(facts, [own])
        raise


def stream_ids(uuid: str | None) -> list[str]:
    """Return the id of the call that a stream's UUID is, if it is one."""
    with contextlib.suppress(Refused):
        own = _checked_uuid(uuid or "")
        return [own] if own != PROBE_UUID else []
    return []


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


class Messenger:
    """Tells workers of accepted recordings, and is silent for a while after that failed.

    Where a network swallows what is sent to the broker, each try costs its time limit, and a
    thousand reports would wait for a thousand of them. The sweep tells the workers anyway.

    Args:
        wake: Tells a worker of a recording; False if that failed.
        clock: Seconds, monotonic.
    """

    def __init__(
        self, wake: Callable[[str], object], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._wake = wake
        self._clock = clock
        self._silent_until = -math.inf

    def tell(self, audio_id: str) -> None:
        """Tell a worker, unless that has just failed."""
        if self._clock() >= self._silent_until and self._wake(audio_id) is False:
            self._silent_until = self._clock() + SILENCE_S


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
    backfill: bool = False,
    ids: Sequence[str] = (),
) -> Accepted:
    """Put a reported recording on record: after the return it cannot be lost.

    Args:
        storage: The record.
        settings: ``pbx`` is part of the identity, ``steps`` are what will be done,
            ``name_pattern`` is how the site names its files.
        facts: What the door knows.
        source: The door: ``spool``, ``upload``, ``capture``, ``webhook`` or ``agi``.
        media: The files it names, which need not be complete or even there yet. Role ``mixed``
            becomes the leg that the name or ``facts`` tell.
        original_name: The file's name where the path is only ours, e.g. of an upload.
        wait_s: Seconds before it is looked at.
        renewed: Whether the files are known to have changed since they were reported: they are
            read again.
        backfill: Whether it is an old one that gives way to live calls and to new recordings. A
            door that reports it as new has the last word.
        ids: Further ids of its call.

    Raises:
        Refused: If a fact cannot be used, see ``register_leg``, or ``bad-name``.
    """
    check_facts(facts)
    _check_names([original_name or "", *(text for m in media for text in (m.role, m.path))])
    name = _name(settings, media, original_name)
    said = _report(settings, facts, source, media, name, original_name)
    start = _channel_start(said.facts, storage.clock())
    said = replace(said, renewed=renewed, backfill=backfill, call_started_at=start)
    said = replace(said, ids=list(dict.fromkeys([*said.ids, *ids])))
    return _accept(storage, settings, said, wait_s)


def accept_url(storage: Storage, settings: Settings, facts: CallFacts, url: str) -> Accepted:
    """Put a recording that ``settle`` will fetch on record; the webhook's door.

    Args:
        storage: The record.
        settings: As for ``accept_recording``; ``recording_hosts`` are the hosts that are asked.
        facts: What the sender knows.
        url: Where the recording is. The name at the end of its path is used like a file's name.

    Raises:
        Refused: If a fact cannot be used, see ``register_leg``, or ``bad-url``.
    """
    check_facts(facts)
    try:
        at = fetch.check(url, fetch.Rules.of(settings))
    except FetchError as error:
        raise Refused("bad-url", str(error), "recording_url") from None
    name = _name(settings, [], at.name)
    if not _channel(name.facts) and not (facts.uniqueid and at.names_a_file):
        # Files of other folders or queries are other recordings, though they be named alike:
        # /1/audio.wav and /2/audio.wav. Where they are one after all, their content will tell.
        place = hashlib.sha256(at.place.encode()).hexdigest()[:16]
        name = replace(name, stem=f"{name.stem} {place}")
    said = _report(settings, facts, "webhook", [Media("mixed", "")], name, at.name)
    moment = storage.clock()
    path = settling.fetched_path(settings.audio_dir, at, str(said.identity), moment)
    media = tuple(replace(each, path=str(path)) for each in said.media)
    start = _channel_start(said.facts, moment)
    said = replace(said, media=media, url=url, call_started_at=start)
    return _accept(storage, settings, said, wait_s=0.0)


def accept_facts(
    storage: Storage,
    facts: CallFacts,
    ending: Ending | None = None,
    settings: Settings | None = None,
    ids: Sequence[str] = (),
) -> str | None:
    """Unite what a door knows about a call, of which it has no recording.

    A call that nobody answered is made if it is not known: people want to call back.

    Args:
        storage: The record.
        facts: What the door knows.
        ending: How the call ended, if the door knows that.
        settings: Given, the number is looked up among those that refused analysis.
        ids: Further ids of the call.

    Returns:
        The call's call_id; None where no call of these ids is known and there is nothing to tell
        of it: somebody answered, and it was neither heard nor recorded.

    Raises:
        Refused: If a fact cannot be used, see ``register_leg``.
    """
    check_facts(facts)
    said = ending or Ending()
    ids = [*call_rows.ids_of(facts), *ids]
    moment = storage.clock()
    consent = Consent(storage, settings) if settings is not None else None
    is_refused = consent is not None and consent.is_outsider_refused(facts)
    with storage.database.transaction():
        if ids and said.disposition not in (None, Disposition.ANSWERED):
            began = replace(facts, started_at=_channel_start(facts, moment) or facts.started_at)
            call_id: str | None = call_rows.claim(storage.database, ids, began, moment)
        else:
            call_id = storage.complete_call(ids, replace(facts, started_at=None))
        if call_id is not None:
            storage.note_ending(call_id, said)
            if consent is not None and is_refused:
                storage.database.serialize(call_rows.CALLS)
                consent_rows.refuse(storage.database, call_id, moment)
                consent.clean_later(call_id)
    return call_id


def accept_capture(storage: Storage, settings: Settings, call_id: str) -> Accepted | None:
    """Put our own recording of a call's ended legs on record.

    It waits ``capture_wait_s`` for the PBX's recording, which is better where it comes.

    Returns:
        None if captures are switched off, or the call has none, or its caller refused analysis.

    Raises:
        NotFound: If there is no such call.
    """
    media = storage.capture_media(call_id) if settings.capture != "off" else []
    call = storage.call(call_id)
    if not media or call.consent == REFUSED:
        return None
    facts = replace(call.facts, leg=None, started_at=call.started_at)
    identity = json.dumps([settings.pbx, call.call_id, CAPTURE])
    said = recording_rows.Report(identity, facts, CAPTURE, tuple(media), call_rows.ids_of(facts))
    wait_s = settings.capture_wait_s if settings.capture == "fallback" else 0.0
    try:
        return _accept(storage, settings, said, wait_s)
    except ConfigError as error:
        # Nobody can tell whether this caller refused. The call must end all the same; its capture
        # stays where it is, unheard.
        logger.error("a capture waits", extra={"reason": str(error)})
        with storage.database.transaction():
            consent_rows.hold_capture(storage.database, call.call_id, storage.clock())
        return None


def accept_held_captures(storage: Storage, settings: Settings) -> int:
    """Accept captures of which it can be told by now whether they may be heard; return how many.

    The sweep tells the workers of them.
    """
    with storage.database.connection():
        held = consent_rows.held_captures(storage.database)
    num_accepted = 0
    for call_id in held:
        with storage.database.transaction():
            consent_rows.release_capture(storage.database, call_id)
            num_accepted += accept_capture(storage, settings, call_id) is not None
    return num_accepted


def _accept(
    storage: Storage, settings: Settings, said: recording_rows.Report, wait_s: float
) -> Accepted:
    ledger = Ledger(storage)
    database = storage.database
    consent = Consent(storage, settings)
    # A report may know the call by more ids than facts can hold.
    is_refused = consent.is_refused(consent.outsider(said.facts, said.ids))
    with database.transaction():
        database.serialize(call_rows.CALLS)
        known = recording_rows.call_of_report(database, said)
        ids = list(dict.fromkeys([known, *said.ids] if known else said.ids))
        if is_refused or consent_rows.refused_among(database, ids):
            accepted = _put_aside(storage, settings, replace(said, ids=ids))
            consent.clean_later(recording_rows.call_of(database, accepted.audio_id))
        else:
            accepted = None
            reported = recording_rows.report(database, said, storage.clock())
            if reported.created or reported.changed:
                # Steps that a setting added since then would never be released without settling.
                ledger.enqueue(reported.audio_id, settings.steps, wait_s)
            if reported.changed and not reported.created:
                ledger.restart(reported.audio_id, [SETTLE])
            for audio_id in sorted(recording_rows.moved(database, reported.audio_id)):
                ledger.restart(audio_id, [SETTLE])
    if accepted is not None:
        return accepted
    # A second upload of the same recording; a file of the PBX is never touched.
    if said.source in GIVING_DOORS:
        unused = storage.unused_files(reported.audio_id, reported.unneeded)
        settling.remove(unused, settings.audio_dir)
    # Backfill waits for the sweep, which sends as much of it as there is room for.
    wake = reported.changed and not (reported.created and wait_s) and not said.backfill
    return Accepted(reported.audio_id, reported.created, wake)


def _put_aside(storage: Storage, settings: Settings, said: recording_rows.Report) -> Accepted:
    """Put a recording of somebody who refused analysis on record as refused, unread.

    Nothing that may hold the number is stored with the call: neither it nor names of files. The
    spool's list of files it has seen keeps the name of the PBX's own, without the call.
    """
    database, moment = storage.database, storage.clock()
    is_given = said.source in GIVING_DOORS
    is_content = (said.identity or "").startswith(consent_rows.CONTENT_IDENTITY)
    said = replace(
        said,
        identity=said.identity if is_content else None,
        content_identity=None,
        media=said.media if is_given else (),
        siblings=(),
        original_name=None,
        url=None,
    )
    reported = recording_rows.report_refused(database, said, moment)
    if reported.created:
        Ledger(storage).enqueue(reported.audio_id, settings.steps)
    call_id = recording_rows.call_of(database, reported.audio_id)
    consent_rows.refuse(database, call_id, moment)
    return Accepted(reported.audio_id, reported.created, wake=False, is_refused=True)


def _name(
    settings: Settings, media: Sequence[Media], original_name: str | None
) -> filenames.FileName:
    said = original_name if original_name is not None else media[0].path if media else ""
    name = _parse(settings, said)
    # A name is no reason to refuse a file: what it claims is used where it can be.
    return replace(name, facts=usable_facts(name.facts))


def _channel_start(facts: CallFacts, moment: datetime) -> datetime | None:
    """Return when the call's first channel was made, if its ids tell.

    That is where the call began, not the recording: the caller may have waited before.
    """
    start = filenames.channel_started_at(facts.linkedid or facts.uniqueid)
    return start if start is not None and start < moment + _MAX_AHEAD else None


def _report(
    settings: Settings,
    facts: CallFacts,
    source: str,
    media: Sequence[Media],
    name: filenames.FileName,
    original_name: str | None,
) -> recording_rows.Report:
    # The name tells which channel was recorded; a hangup hook tells on which channel it ran. So
    # the name's ids make the identity, whatever else a door knows. Of all else a door knows more.
    leg = facts.leg or (name.leg if len(media) == 1 else None)
    united = replace(
        facts.merged(name.facts), uniqueid=name.facts.uniqueid or facts.uniqueid, leg=leg
    )
    channel = _channel(name.facts) or _channel(facts)
    sha256 = media[0].sha256 if len(media) == 1 else None
    identity: str | None = None
    content_identity: str | None = None
    if channel:
        identity = json.dumps([settings.pbx, channel, name.stem])
        if sha256 and not _channel(name.facts):
            # Every sound file of one call may be called recording.wav.
            content_identity = json.dumps([settings.pbx, channel, f"{name.stem} {sha256}"])
    elif sha256:
        identity = json.dumps(["sha256", sha256])
    ids = call_rows.ids_of(replace(united, uniqueid=facts.uniqueid or united.uniqueid))
    ids += [united.uniqueid] if united.uniqueid and united.uniqueid not in ids else []
    siblings = [path for each in media for path in filenames.siblings(each.path)]
    return recording_rows.Report(
        identity=identity,
        content_identity=content_identity,
        facts=united,
        source=source,
        media=tuple(_with_role(each, settings, facts.leg, original_name) for each in media),
        ids=ids,
        siblings=tuple(siblings) if original_name is None else (),
        original_name=original_name,
    )


def _channel(facts: CallFacts) -> str | None:
    return facts.uniqueid or facts.call_id or facts.linkedid


def _with_role(
    media: Media, settings: Settings, leg: str | None, original_name: str | None
) -> Media:
    if media.role != "mixed":
        return media
    said = leg or _parse(settings, original_name or media.path).leg
    return replace(media, role=said or "mixed")


def _parse(settings: Settings, name: str) -> filenames.FileName:
    return filenames.parse(name, filenames.patterns(settings.name_pattern))


# ---- what may be said


def check_facts(facts: CallFacts) -> None:
    """Make sure that facts can be stored and shown.

    Raises:
        Refused: With the field that is at fault. What it held is not repeated.
    """
    for fault in _faults(facts):
        raise fault


def is_leg(name: str) -> bool:
    """Tell whether a leg may have this name."""
    return _LEG.fullmatch(name) is not None


def usable_facts(facts: CallFacts) -> CallFacts:
    """Return the facts without those that ``check_facts`` would refuse."""
    return replace(facts, **{str(fault.field): None for fault in _faults(facts)})


def usable_ending(ending: Ending, moment: datetime) -> Ending:
    """Return what is said of a call's end without moments that no clock can have shown."""
    limit = moment + _MAX_AHEAD
    answered_at, ended_at = (
        each if each is not None and each < limit else None
        for each in (ending.answered_at, ending.ended_at)
    )
    return replace(ending, answered_at=answered_at, ended_at=ended_at)


def _faults(facts: CallFacts) -> Iterator[Refused]:
    for field in ("call_id", "uniqueid", "linkedid"):
        yield from _mismatch(_ID, getattr(facts, field), "bad-id", field, _ID_RULE)
    yield from _mismatch(_LEG, facts.leg, "bad-leg", "leg", _LEG_RULE)
    yield from _mismatch(
        _LANGUAGE, facts.language, "bad-language", "language", "expected a code such as en"
    )
    if facts.direction not in (None, "in", "out", "internal"):
        yield Refused("bad-direction", "expected in, out or internal", "direction")
    for field in ("caller", "callee", "agent", "queue"):
        value = getattr(facts, field)
        if value is not None and (len(value) > _MAX_TEXT or not value.isprintable()):
            yield Refused("bad-text", f"expected up to {_MAX_TEXT} printable characters", field)


def _check_names(names: Sequence[str]) -> None:
    if not all(map(filenames.is_storable, names)):
        raise Refused("bad-name", "expected a file name in UTF-8 without NUL characters", "file")


_ID_RULE = "expected 1 to 80 letters, digits, dots, dashes or underscores, the first no sign"
_LEG_RULE = "expected caller, agent, agent-2 ... or mixed; stereo for a live leg only"


def _mismatch(
    pattern: re.Pattern[str], value: str | None, code: str, field: str, message: str
) -> Iterator[Refused]:
    if value is not None and not pattern.fullmatch(value):
        yield Refused(code, message, field)
