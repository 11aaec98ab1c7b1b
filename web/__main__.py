"""``python -m web``: serves pages, API and events until SIGTERM."""

import logging
import os
import signal
import socket
import sys
from types import FrameType
from typing import NoReturn

import uvicorn

from callcore import log
from callcore.errors import ConfigError
from callcore.settings import Settings, load
from web.app import create_app
from web.site import Site

logger = logging.getLogger(__name__)

#: Requests under way get this long after SIGTERM; streams of events end at once.
_DRAIN_S = 5
_BACKLOG = 1024


class Server(uvicorn.Server):
    """Ends the streams of events when the process shall stop: they would never end by themselves.

    Args:
        config: For uvicorn.
        site: Whose rooms are closed.
    """

    def __init__(self, config: uvicorn.Config, site: Site) -> None:
        super().__init__(config)
        self._site = site

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting, end the streams, finish what is under way."""
        self._site.rooms.close()
        await super().shutdown(sockets)


def make_server(settings: Settings, **parts: object) -> Server:
    """Return the server, not yet listening.

    Args:
        settings: ``web_bind`` says where.
        **parts: As for ``create_app``.
    """
    app = create_app(settings, **parts)  # type: ignore[arg-type]  # checked there
    config = uvicorn.Config(
        app,
        host=settings.web_bind.host,
        port=settings.web_bind.port,
        log_config=None,
        log_level="warning",  # it would tell of each start in lines of another form
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_DRAIN_S,
        backlog=_BACKLOG,
    )
    return Server(config, app.state.site)


def main() -> int:
    """Serve; return the exit status: 1 if the address is taken, 2 for a wrong setting."""
    os.umask(0o077)  # what callers say is for nobody else on this machine
    try:
        settings = load(os.environ)
        listener = _listen(settings)
    except ConfigError as error:
        print(f"callcore web: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(
            f"callcore web: cannot listen on {settings.web_bind} (CALLCORE_WEB_BIND): "
            f"{error.strerror}",
            file=sys.stderr,
        )
        return 1
    log.configure(settings.log_level, settings.log_format)
    who = "the token is needed" if settings.token else "for this machine only: no token is set"
    logger.info("web serves", extra={"address": f"http://{settings.web_bind}/", "access": who})
    for number in (signal.SIGTERM, signal.SIGINT):
        # uvicorn drains, then raises the signal again for whoever handled it before: being
        # stopped is no failure.
        signal.signal(number, _exit)
    make_server(settings).run(sockets=[listener])
    return 0


def _exit(_number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(0)


def _listen(settings: Settings) -> socket.socket:
    address = settings.web_bind
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address.host, address.port))
    except OSError:
        listener.close()
        raise
    listener.set_inheritable(True)
    return listener


if __name__ == "__main__":
    sys.exit(main())
