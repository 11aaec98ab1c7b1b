"""The route ``hangup``: a call is over, and its recording lies there.

It takes the facts from the request, has them committed and lets Asterisk go. ``docs/api.md`` tells
what may be passed.
"""

import logging
import os
from functools import partial
from pathlib import Path, PurePosixPath

from callcore import filenames, intake
from callcore.agi.reports import Reports
from callcore.agi.said import FACTS, Said, completed, read
from callcore.agi.server import Request
from callcore.calls import CallFacts, Disposition, Ending, Media
from callcore.intake import Accepted
from callcore.settings import Settings
from callcore.storage import Storage

logger = logging.getLogger(__name__)


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
        said = await completed(request, read(request), with_file=True)
        await self._reports.put(partial(accept, self._storage, self._settings, said, said.ending))


def accept(storage: Storage, settings: Settings, said: Said, ending: Ending) -> Accepted | None:
    """Put a report on record.

    Args:
        storage: The record.
        settings: ``spool_dir`` and how the PBX names it.
        said: The facts, and the files if there are any.
        ending: How the call ended.

    Returns:
        The recording; None if there is none, and only facts of a call were united.
    """
    facts = usable(said.facts)
    ids = intake.stream_ids(said.words.get("uuid"))
    ending = intake.usable_ending(ending, storage.clock())
    if not said.files:
        call_id = intake.accept_facts(storage, facts, ending, settings, ids)
        if call_id is None and ending.disposition not in (None, Disposition.ANSWERED):
            logger.warning("a call that nobody answered came without an id: it is not on record")
        logger.info("call over, no recording", extra={"call_id": call_id})
        return None
    media = _media(said, settings)
    # The spool may find the file under its own path: the name makes it the same recording.
    outside = os.path.basename(said.files[0][1])
    name = outside if not media and filenames.is_storable(outside) else None
    with storage.database.transaction():
        accepted = intake.accept_recording(
            storage, settings, facts, "agi", media, original_name=name, ids=ids
        )
        storage.note_ending(storage.recording(accepted.audio_id).call_id, ending)
    logger.info(
        "recording reported", extra={"audio_id": accepted.audio_id, "num_files": len(media)}
    )
    return accepted


def usable(said: CallFacts) -> CallFacts:
    """Return the facts that can be stored; the log names the others."""
    facts = intake.usable_facts(said)
    if facts != said:
        names = [each for each in sorted(FACTS) if getattr(facts, each) != getattr(said, each)]
        logger.warning("facts of a call cannot be used", extra={"facts": " ".join(names)})
    return facts


def _media(said: Said, settings: Settings) -> list[Media]:
    media = []
    for role, path in said.files:
        inside = _inside(_mapped(path, settings), settings.spool_dir)
        if inside is None:
            # Anybody who reaches the port could have any file of this machine read.
            logger.warning(
                "a recording outside of CALLCORE_SPOOL_DIR is not read: let the PBX record there, "
                "or say in CALLCORE_PBX_SPOOL_DIR how it names that folder",
                extra={"uniqueid": intake.usable_facts(said.facts).uniqueid},
            )
        else:
            media.append(Media(role if intake.is_leg(role) else "mixed", inside))
    return media


def _mapped(path: str, settings: Settings) -> str:
    """Return a path of the PBX as this machine names it.

    The PBX may be another host or a container that has the folder mounted elsewhere.
    """
    theirs = _plain(settings.pbx_spool_dir)
    if not settings.pbx_spool_dir or not _plain(path).is_relative_to(theirs):
        return path
    return os.path.join(settings.spool_dir, _plain(path).relative_to(theirs))


def _plain(path: str) -> PurePosixPath:
    # Two slashes at the front would make another root of it.
    return PurePosixPath(os.path.normpath("/" + path.lstrip("/") if path[:1] == "/" else path))


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
