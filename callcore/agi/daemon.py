"""``callcore agi``: what the FastAGI server is made of, and how it starts and ends."""

import asyncio
import logging
import signal
from collections.abc import Mapping

from callcore.agi.consent import ConsentRoute
from callcore.agi.hangup import HangupRoute
from callcore.agi.live import LiveRoute
from callcore.agi.missed import MissedRoute
from callcore.agi.ping import ping
from callcore.agi.reports import Reports
from callcore.agi.server import AgiServer, Route
from callcore.bus import RedisBus, Rooms
from callcore.consent import Consent
from callcore.jobs import Waker
from callcore.settings import Settings, broker_url
from callcore.storage import Storage

logger = logging.getLogger(__name__)

#: Seconds that reports which wait for the database get at the end.
_STORE_S = 5.0
#: Seconds that the broker may take to forget a call's live events; reports wait meanwhile.
_FORGET_S = 0.5


async def serve(settings: Settings) -> None:
    """Answer requests until SIGTERM or SIGINT.

    Raises:
        CallcoreError: If the database is not migrated.
        OSError: If the address is in use.
    """
    storage = Storage(settings.database_url)
    waker = Waker(settings)
    try:
        storage.check_migrated()
    except BaseException:
        waker.close()
        storage.close()
        raise
    reports, registrations = Reports(waker), Reports(waker)
    bus = RedisBus(broker_url(settings), timeout_s=_FORGET_S)
    server = AgiServer(settings, routes(storage, settings, reports, registrations, bus))
    try:
        await server.start(settings.agi_bind)
        await _signalled()
    finally:
        await server.close()
        ended = [
            await asyncio.to_thread(registrations.close, 0.0),
            await asyncio.to_thread(reports.close, _STORE_S),
        ]
        if all(ended):
            storage.close()
        bus.close()
        await asyncio.to_thread(waker.close)
        logger.info("stopped", extra={"requests": dict(server.counts)})


def routes(
    storage: Storage,
    settings: Settings,
    reports: Reports,
    registrations: Reports,
    bus: Rooms | None = None,
) -> Mapping[str, Route]:
    """Return what is answered, by the path of the address in the dialplan.

    Args:
        storage: The record.
        settings: What the routes go by.
        reports: Has put on record what must not be lost.
        registrations: Has done what the dialplan waits for and what is worth nothing later.
        bus: Where live events of calls are that are refused.
    """
    consent = Consent(storage, settings, bus)
    return {
        "consent": ConsentRoute(consent, reports, registrations).answer,
        "hangup": HangupRoute(storage, settings, reports).answer,
        "live": LiveRoute(storage, settings, registrations).answer,
        "missed": MissedRoute(storage, settings, reports).answer,
        "ping": ping,
    }


async def _signalled() -> None:
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    signals = (signal.SIGTERM, signal.SIGINT)
    for signum in signals:
        loop.add_signal_handler(signum, stopping.set)
    try:
        await stopping.wait()
    finally:
        for signum in signals:
            loop.remove_signal_handler(signum)
