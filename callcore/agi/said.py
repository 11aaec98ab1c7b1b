"""What a request says about a call, by whichever of three ways: the one reader of all routes.

A query (``agi://host/hangup?queue=help``), arguments (``queue=help``), or ``says=`` with a query as
one word of base64. The last is for a helper channel that reports for another: such a word survives
every comma, caret and equals sign on its way through the dialplan, which also cuts its padding off.
The channel that brings it knows nothing of the call, so what Asterisk tells of it is not read.
"""

import asyncio
import base64
import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any

from callcore import filenames
from callcore.agi.server import PeerGone, Request, parameters_of
from callcore.calls import CallFacts, Disposition, Ending
from callcore.errors import ProtocolError

logger = logging.getLogger(__name__)

#: Seconds that Asterisk may take to tell what the dialplan did not pass.
ASK_S = 0.5
#: The key of a query in base64.
SAYS = "says"
#: The key of a recording's file; ``file-caller``, ``file-agent`` ... for one of that leg.
FILE = "file"

FACTS = frozenset(each.name for each in fields(CallFacts))
#: What tells how a call ended, and the keys that are one route's own.
_ENDING = frozenset(
    {"answered", "dialstatus", "queuestatus", "abandoned", "cdr", "answered_at", "ended_at"}
)
_OTHERS = frozenset({"uuid", "answer"})
#: Facts by the variable that Asterisk sends with every request. Its ``extension`` and ``context``
#: are those of the hangup handler, its ``language`` is that of the prompts.
_VARIABLES = (("uniqueid", "uniqueid"), ("caller", "callerid"), ("callee", "dnid"))
#: What Asterisk sends where it knows no number.
_NOBODY = frozenset({"", "unknown", "s", "h"})

#: DIALSTATUS (app_dial.c) and QUEUESTATUS (app_queue.c). A queue that somebody answered leaves the
#: status empty, or CONTINUE if the dialplan goes on after that.
_STATUS = {
    "ANSWER": Disposition.ANSWERED,
    "CONTINUE": Disposition.ANSWERED,
    "BUSY": Disposition.BUSY,
    "NOANSWER": Disposition.NO_ANSWER,
    "TIMEOUT": Disposition.NO_ANSWER,
    "CANCEL": Disposition.ABANDONED,
    "WITHDRAW": Disposition.ABANDONED,
    "CONGESTION": Disposition.FAILED,
    "CHANUNAVAIL": Disposition.FAILED,
    "DONTCALL": Disposition.FAILED,
    "TORTURE": Disposition.FAILED,
    "INVALIDARGS": Disposition.FAILED,
    "FULL": Disposition.FAILED,
    "JOINEMPTY": Disposition.FAILED,
    "LEAVEEMPTY": Disposition.FAILED,
    "JOINUNAVAIL": Disposition.FAILED,
    "LEAVEUNAVAIL": Disposition.FAILED,
}
#: CDR(disposition): of the channel, which a menu or the queue's music answers too.
_CDR = {
    "ANSWERED": Disposition.ANSWERED,
    "BUSY": Disposition.BUSY,
    "NO ANSWER": Disposition.NO_ANSWER,
    "FAILED": Disposition.FAILED,
    "CONGESTION": Disposition.FAILED,
}


@dataclass(frozen=True, slots=True)
class Said:
    """What one request says."""

    facts: CallFacts
    files: tuple[tuple[str, str], ...] = ()
    """Role and path of each file, as the PBX names it."""
    words: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """What it says of the call's end, and what only one route asks for, by key."""
    is_relayed: bool = False
    """Whether another channel than the call's own brings it."""

    def __repr__(self) -> str:
        """Return sizes, not who called whom."""
        return f"Said({len(self.files)} files, {len(self.words)} words)"

    @property
    def ending(self) -> Ending:
        """How the call ended; nothing is in it where nothing was said."""
        return Ending(
            _disposition(self.words),
            filenames.moment_of(self.words.get("answered_at", "")),
            filenames.moment_of(self.words.get("ended_at", "")),
        )


def _disposition(words: Mapping[str, str]) -> Disposition | None:
    # A call may have met several, and each status may be left from one that came before: who knows
    # that somebody answered says so. Else the queue comes last in most dialplans. The channel's own
    # record is asked where neither knows.
    if words.get("answered", "").lower() == "yes":
        return Disposition.ANSWERED
    found = [_STATUS.get(words.get(key, "").upper()) for key in ("queuestatus", "dialstatus")]
    if Disposition.ANSWERED in found:
        return Disposition.ANSWERED
    # A queue sets ABANDONED at its timeout too.
    if found[0] is None and words.get("abandoned", "").upper() == "TRUE":
        return Disposition.ABANDONED
    return found[0] or found[1] or _CDR.get(words.get("cdr", "").upper())


def read(request: Request) -> Said:
    """Return what a request says: its arguments above its query above its variables.

    What says nothing we know is counted in the log and left out.
    """
    pairs = (*request.parameters, *_arguments(request.environment.arguments))
    is_relayed = any(key == SAYS for key, _ in pairs)
    known = request.environment.variables
    facts: dict[str, Any] = {
        fact: known[variable]
        for fact, variable in (() if is_relayed else _VARIABLES)
        if known.get(variable, "") not in _NOBODY
    }
    files: list[tuple[str, str]] = []
    words: dict[str, str] = {}
    num_unknown = 0
    for key, value in _unpacked(pairs):
        name, _, leg = key.partition("-")
        if not value:
            continue  # a variable of the dialplan that is not set
        if name == FILE:
            files.append((leg or "mixed", value))
        elif key in FACTS:
            facts[key] = filenames.moment_of(value) if key == "started_at" else value
        elif key in _ENDING or key in _OTHERS:
            words[key] = value
        else:
            num_unknown += 1
    if num_unknown:
        logger.warning("the dialplan passed what is no fact of a call", extra={"num": num_unknown})
    return Said(CallFacts(**facts), tuple(files), MappingProxyType(words), is_relayed)


def _arguments(arguments: Iterable[str]) -> Iterator[tuple[str, str]]:
    for each in arguments:
        key, equals, value = each.partition("=")
        # `AGI(agi://host/hangup,${CALLCORE_UUID})`: the id by which the call was announced.
        yield (key.strip(), value.strip()) if equals else ("call_id", each.strip())


def _unpacked(pairs: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    for key, value in pairs:
        if key == SAYS:
            yield from _decoded(value)
        else:
            yield key, value


def _decoded(word: str) -> tuple[tuple[str, str], ...]:
    # A query makes a space of a plus.
    plain = word.replace(" ", "+").rstrip("=")
    try:
        query = base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except ValueError:
        logger.warning("the dialplan passed `says` that is no base64")
        return ()
    return parameters_of(query.decode("utf-8", "replace"))


async def completed(request: Request, said: Said, *, with_file: bool = False) -> Said:
    """Return what is said with what Asterisk knows besides, in ``ASK_S`` at most.

    Args:
        request: Its commands are of a tenth of a millisecond each.
        said: Where it is relayed, the channel that could be asked is not the call's.
        with_file: Whether the recording that MixMonitor made last is asked for too.
    """
    if said.is_relayed:
        return said
    with contextlib.suppress(PeerGone, ProtocolError, TimeoutError):
        async with asyncio.timeout(ASK_S):
            if said.facts.linkedid is None:
                reply = await request.command("GET FULL VARIABLE", "${CHANNEL(linkedid)}")
                if reply.data:
                    said = replace(said, facts=replace(said.facts, linkedid=reply.data))
            if with_file and not said.files:
                # Those of the parties lie beside it.
                reply = await request.command("GET VARIABLE", "MIXMONITOR_FILENAME")
                if reply.data:
                    said = replace(said, files=(("mixed", reply.data),))
    return said
