"""The route ``consent``: what a caller answered when asked whether the call may be analysed.

``no`` refuses this call and remembers the number, ``yes`` forgets that the number had refused,
``ask`` only tells. The dialplan learns in ``CALLCORE_CONSENT`` whether this call is refused:
``no``, or nothing.
"""

import logging
from functools import partial

from callcore.agi.hangup import usable
from callcore.agi.live import PREFIX
from callcore.agi.reports import Reports
from callcore.agi.said import completed, read
from callcore.agi.server import Request
from callcore.calls import CallFacts
from callcore.consent import Consent
from callcore.intake import stream_ids

logger = logging.getLogger(__name__)

_NO = "no"
#: Keys of a telephone are not words: what the dialplan passes is one of these.
_ANSWERS = frozenset({_NO, "yes", "ask"})


class ConsentRoute:
    """Keeps and tells who refused.

    Args:
        consent: Refuses and remembers.
        reports: Has done what must not be lost: the answers.
        registrations: Has done what is worth nothing later: the question.
    """

    def __init__(self, consent: Consent, reports: Reports, registrations: Reports) -> None:
        self._consent = consent
        self._reports = reports
        self._registrations = registrations

    async def answer(self, request: Request) -> None:
        """Do what the caller wishes and set the dialplan's variable."""
        said = await completed(request, read(request))
        facts = usable(said.facts)
        ids = stream_ids(said.words.get("uuid"))
        answer = said.words.get("answer", "").strip().lower()
        if answer not in _ANSWERS:
            logger.warning("the dialplan passed no `answer` of yes, no or ask")
        if answer == _NO:
            # Said before it is stored: whatever the database does, the caller has refused.
            await self._tell(request, is_refused=True)
            await self._reports.put(partial(self._refuse, facts, ids))
            return
        found: list[bool] = []
        work = partial(self._allow if answer == "yes" else self._ask, facts, ids, found)
        if answer == "yes":
            await self._reports.put(work)
        else:
            # Where nobody can tell now, the call goes on; what comes of it is looked at again.
            await self._registrations.put(work, keep=False)
        await self._tell(request, is_refused=any(found))

    def _refuse(self, facts: CallFacts, ids: list[str]) -> None:
        self._consent.refuse(facts, ids)

    def _allow(self, facts: CallFacts, ids: list[str], found: list[bool]) -> None:
        found.append(self._consent.is_call_refused(facts, ids))
        self._consent.allow(self._consent.outsider(facts, ids))

    def _ask(self, facts: CallFacts, ids: list[str], found: list[bool]) -> None:
        is_refused = self._consent.is_call_refused(facts, ids)
        number = self._consent.outsider(facts, ids)
        found.append(is_refused or self._consent.is_refused(number))

    async def _tell(self, request: Request, *, is_refused: bool) -> None:
        await request.command("SET VARIABLE", f"{PREFIX}CONSENT", _NO if is_refused else "")
