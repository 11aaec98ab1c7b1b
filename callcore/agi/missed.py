"""The route ``missed``: a call that is over and was perhaps never answered.

For dialplans that neither stream nor record: nobody should have to look into the CDR to know whom
to call back.
"""

from dataclasses import replace
from functools import partial

from callcore.agi.hangup import accept
from callcore.agi.reports import Reports
from callcore.agi.said import completed, read
from callcore.agi.server import Request
from callcore.calls import Disposition
from callcore.settings import Settings
from callcore.storage import Storage


class MissedRoute:
    """Puts calls on record that nobody answered.

    Args:
        storage: The record.
        settings: As for ``HangupRoute``; files are not read.
        reports: Where work for the database goes.
    """

    def __init__(self, storage: Storage, settings: Settings, reports: Reports) -> None:
        self._storage = storage
        self._settings = settings
        self._reports = reports

    async def answer(self, request: Request) -> None:
        """Commit what the request says; a call that was answered is made by other doors alone."""
        said = replace(await completed(request, read(request)), files=())
        ending = said.ending
        if ending.disposition is None:  # the route's name says it
            ending = replace(ending, disposition=Disposition.NO_ANSWER)
        await self._reports.put(partial(accept, self._storage, self._settings, said, ending))
