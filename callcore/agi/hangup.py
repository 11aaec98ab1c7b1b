"""The route ``hangup``: a call is over, and its recording lies there.

It takes the facts from the request, has them committed and lets Asterisk go. What the dialplan
does not pass and a recording needs, the linkedid and the file, it asks for: two commands of a
tenth of a millisecond each. ``docs/api.md`` tells what may be passed.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from callcore import filenames, intake
from callcore.agi.reports import Reports
from callcore.agi.server import PeerGone, Request
from callcore.calls import CallFacts, Media
from callcore.errors import ProtocolError
from callcore.intake import Accepted
from callcore.settings import Settings
from callcore.storage import Storage

logger = logging.getLogger(__name__)

#: Seconds that Asterisk may take to tell what the dialplan did not pass.
ASK_S = 0.5
#: The key of a recording's file; ``file-caller``, ``file-agent`` ... for one of that leg.
FILE = "file"

_FACTS = frozenset(each.name for each in fields(CallFacts))
#: Facts by the variable that Asterisk sends with every request. Its ``extension`` and ``context``
#: are those of the hangup handler, its ``language`` is that of the prompts.
_VARIABLES = (("uniqueid", "uniqueid"), ("caller", "callerid"), ("callee", "dnid"))
#: What Asterisk sends where it knows no number.
_NOBODY = frozenset({"", "unknown", "s", "h"})


@dataclass(frozen=True, slots=True)
class Hangup:
    """What one request says."""

    facts: CallFacts
    files: tuple[tuple[str, str], ...] = ()
    """Role and path of each file, as the PBX names it."""
    num_unknown: int = 0
    """Parameters that say nothing we know."""


class HangupRoute:
    """Puts on record what the PBX says at the end of a call.

    Args:
        storage: The record.
        settings: ``spool_dir`` is the only folder that files are taken from.
        reports: Where work for the database goes.
    """

    def __init__(self, storage: Storage, settings: Settings, reports: Reports) -> None:
        self._storage = storage
        self._settings = settings
        self._reports = reports

    async def answer(self, request: Request) -> None:
        """Commit what the request says; the server then closes the connection."""
        said = await _completed(request, read(request))
        if said.num_unknown:
            logger.warning(
                "the dialplan passed what is no fact of a call", extra={"num": said.num_unknown}
            )
        await self._reports.put(partial(accept, self._storage, self._settings, said))


def read(request: Request) -> Hangup:
    """Return what a request says: its arguments above its query above its variables."""
    known = request.environment.variables
    facts: dict[str, Any] = {
        fact: known[variable]
        for fact, variable in _VARIABLES
        if known.get(variable, "") not in _NOBODY
    }
    files, num_unknown = [], 0
    for key, value in (*request.parameters, *_arguments(request.environment.arguments)):
        name, _, leg = key.partition("-")
        if not value:
            continue  # a variable of the dialplan that is not set
        if name == FILE:
            files.append((leg or "mixed", value))
        elif key in _FACTS:
            facts[key] = filenames.moment_of(value) if key == "started_at" else value
        else:
            num_unknown += 1
    return Hangup(CallFacts(**facts), tuple(files), num_unknown)


def _arguments(arguments: Iterable[str]) -> Iterator[tuple[str, str]]:
    for each in arguments:
        key, equals, value = each.partition("=")
        # `AGI(agi://host/hangup,${CALLCORE_UUID})`: the id by which the call was announced.
        yield (key.strip(), value.strip()) if equals else ("call_id", each.strip())


async def _completed(request: Request, said: Hangup) -> Hangup:
    """Return a report with what Asterisk knows besides."""
    with contextlib.suppress(PeerGone, ProtocolError, TimeoutError):
        async with asyncio.timeout(ASK_S):
            if said.facts.linkedid is None:
                reply = await request.command("GET FULL VARIABLE", "${CHANNEL(linkedid)}")
                if reply.data:
                    said = replace(said, facts=replace(said.facts, linkedid=reply.data))
            if not said.files:
                # MixMonitor's last file; those of the parties lie beside it.
                reply = await request.command("GET VARIABLE", "MIXMONITOR_FILENAME")
                if reply.data:
                    said = replace(said, files=(("mixed", reply.data),))
    return said


def accept(storage: Storage, settings: Settings, said: Hangup) -> Accepted | None:
    """Put a report on record.

    Returns:
        The recording; None if there is none, and only facts of a call were united.
    """
    facts = intake.usable_facts(said.facts)
    if facts != said.facts:
        names = [n for n in sorted(_FACTS) if getattr(facts, n) != getattr(said.facts, n)]
        logger.warning("facts of a call cannot be used", extra={"facts": " ".join(names)})
    media = []
    for role, path in said.files:
        inside = _inside(path, settings.spool_dir)
        if inside is None:
            # Anybody who reaches the port could have any file of this machine read.
            logger.warning(
                "a recording outside of CALLCORE_SPOOL_DIR is not read: let the PBX record there",
                extra={"uniqueid": facts.uniqueid},
            )
        else:
            media.append(Media(role if intake.is_leg(role) else "mixed", inside))
    if not said.files:
        call_id = intake.accept_facts(storage, facts)
        logger.info("call over, no recording", extra={"call_id": call_id})
        return None
    # The spool may find the file under its own path: the name makes it the same recording.
    outside = os.path.basename(said.files[0][1])
    name = outside if not media and filenames.is_storable(outside) else None
    accepted = intake.accept_recording(storage, settings, facts, "agi", media, original_name=name)
    logger.info(
        "recording reported", extra={"audio_id": accepted.audio_id, "num_files": len(media)}
    )
    return accepted


def _inside(path: str, folder: Path) -> str | None:
    """Return a path as the spool's scan finds it; None if it leads out of the folder.

    The PBX may reach the folder over a link, and a link in it may lead anywhere.
    """
    if not filenames.is_storable(path):
        return None
    real = os.path.realpath(folder)
    below = os.path.relpath(os.path.realpath(os.path.join(folder, path)), real)
    if below == "." or below == ".." or below.startswith("../"):
        return None
    return os.path.join(folder, below)
