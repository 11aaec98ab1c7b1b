"""What every request needs, put together once by ``app.create_app``."""

from dataclasses import dataclass
from typing import cast

import jinja2
from starlette.requests import Request

from callcore.bus import RoomReader
from callcore.jobs import Waker
from callcore.settings import Settings
from callcore.storage import Storage
from web.security import Sessions
from web.sse import Rooms


@dataclass(frozen=True, slots=True)
class Site:
    """The parts of one web process."""

    settings: Settings
    storage: Storage
    """Blocking: only from threads."""
    reader: RoomReader
    rooms: Rooms
    waker: Waker
    """Blocking: only from threads."""
    sessions: Sessions | None
    """None where no token is set: then the web is on loopback only."""
    templates: jinja2.Environment

    async def close(self) -> None:
        """End the streams and close what was opened."""
        self.rooms.close()
        await self.reader.close()
        self.waker.close()
        self.storage.close()


def site_of(request: Request) -> Site:
    """Return the parts of the process that answers."""
    return cast(Site, request.app.state.site)
