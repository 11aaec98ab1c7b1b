"""The route ``live``: who will speak in a stream that is about to come.

The dialplan asks before it starts a stream: the leg is registered under the UUID that the stream
will carry, and the dialplan is told whether to start it. Asterisk waits for that, so it is known
within ``reports.ANSWER_S``. A registration is good for seconds, and so none is tried again.
"""

import logging
import uuid as uuids
from dataclasses import dataclass, replace

from callcore import intake
from callcore.agi.hangup import usable
from callcore.agi.reports import ANSWER_S, Reports
from callcore.agi.said import completed, read
from callcore.agi.server import Request
from callcore.calls import CallFacts
from callcore.errors import ConfigError, Refused
from callcore.settings import Settings
from callcore.storage import Storage, consent_rows

logger = logging.getLogger(__name__)

#: Seconds for the database where the request comes on a helper channel, which holds nobody up: late
#: words are better than none.
RELAYED_ANSWER_S = 4.0
#: What the dialplan is told begins with this: no other variable of a site is touched.
PREFIX = "CALLCORE_"


@dataclass(frozen=True, slots=True)
class Registration:
    """What the dialplan is told."""

    call_id: str
    """Empty where it is not known."""
    is_welcome: bool
    """Whether the stream should be started."""
    is_refused: bool = False
    """Whether the caller refused analysis."""


class LiveRoute:
    """Registers a leg and tells the dialplan what to do with its stream.

    Args:
        storage: The record.
        settings: ``unregistered`` says what becomes of a stream that could not be registered.
        registrations: Where work for the database goes; of its own, so that no report that waits
            for the database keeps a caller waiting.
    """

    def __init__(self, storage: Storage, settings: Settings, registrations: Reports) -> None:
        self._storage = storage
        self._settings = settings
        self._registrations = registrations

    async def answer(self, request: Request) -> None:
        """Register the leg and set the dialplan's variables."""
        said = await completed(request, read(request))
        if said.is_relayed:
            # What lay in the socket while this process stood still is of a call of then.
            await request.command("NOOP")
        uuid = said.words.get("uuid") or str(uuids.uuid4())
        found: list[Registration] = []

        def work() -> None:
            found.append(register(self._storage, self._settings, uuid, said.facts))

        wait_s = RELAYED_ANSWER_S if said.is_relayed else ANSWER_S
        if await self._registrations.put(work, keep=False, wait_s=wait_s):
            [registration] = found
        else:
            # The daemon may know better by the time the stream comes.
            registration = Registration("", self._settings.unregistered == "accept")
        for name, value in (
            ("UUID", uuid),
            ("CALL", registration.call_id),
            ("STREAM", "yes" if registration.is_welcome else "no"),
            ("CONSENT", "no" if registration.is_refused else ""),
        ):
            await request.command("SET VARIABLE", PREFIX + name, value)


def register(storage: Storage, settings: Settings, uuid: str, said: CallFacts) -> Registration:
    """Register a leg, unless its caller refused analysis.

    Args:
        storage: The record.
        settings: As for ``intake.register_leg``.
        uuid: What the stream will begin with.
        said: What the dialplan says of the leg.
    """
    # What both parties' stream is announced as is no leg of a recording.
    is_stereo = said.leg == intake.STEREO
    facts = usable(replace(said, leg=None) if is_stereo else said)
    named = replace(facts, leg=intake.STEREO) if is_stereo else facts
    try:
        leg = intake.register_leg(storage, uuid, named, settings)
    except ConfigError as error:
        # Without the key nobody can tell who refused: better no text than that of who did.
        logger.error("legs are not registered", extra={"reason": str(error)})
        return Registration("", is_welcome=False)
    except Refused as error:
        if error.code == consent_rows.CODE:
            return Registration(
                storage.call(uuid.lower()).call_id, is_welcome=False, is_refused=True
            )
        logger.warning("a leg is not registered", extra={"reason": error.code})
        return Registration("", is_welcome=False)
    logger.info("leg registered", extra={"call_id": leg.call_id, "leg": leg.leg})
    return Registration(leg.call_id, is_welcome=True)
