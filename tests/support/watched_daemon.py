"""``callcore audiosocket`` that logs on SIGUSR1 what its event loop holds.

Run as ``python -m tests.support.watched_daemon``.
"""

import asyncio
import logging
import signal
import sys

from callcore import cli, live_daemon
from callcore.settings import Settings

logger = logging.getLogger("tests.support.watched_daemon")

_serve = live_daemon.serve


def _say() -> None:
    # Blocks: memory that Python objects have, whatever the allocator has kept of the system's.
    held = {"tasks": len(asyncio.all_tasks()), "blocks": sys.getallocatedblocks()}
    logger.info("holds", extra=held)


async def _serve_watched(settings: Settings) -> None:
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, _say)
    await _serve(settings)


if __name__ == "__main__":
    live_daemon.serve = _serve_watched
    sys.exit(cli.main(["audiosocket"]))
