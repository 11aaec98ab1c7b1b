"""``callcore agi``: what the FastAGI server is made of, and how it starts and ends."""

import asyncio
import logging
import signal

from callcore.agi.hangup import HangupRoute
from callcore.agi.reports import Reports
from callcore.agi.server import AgiServer
from callcore.jobs import Waker
from callcore.settings import Settings
from callcore.storage import Storage

logger = logging.getLogger(__name__)

#: Seconds that reports which wait for the database get at the end.
_STORE_S = 5.0


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
    reports = Reports(waker)
    server = AgiServer(settings, {"hangup": HangupRoute(storage, settings, reports).answer})
    try:
        await server.start(settings.agi_bind)
        await _signalled()
    finally:
        await server.close()
        if await asyncio.to_thread(reports.close, _STORE_S):
            storage.close()
        await asyncio.to_thread(waker.close)
        logger.info("stopped", extra={"requests": dict(server.counts)})


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
