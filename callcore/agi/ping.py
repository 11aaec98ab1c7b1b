"""The route ``ping``: it answers and does nothing, so that ``doctor`` knows it could."""

from callcore.agi.server import Request


async def ping(request: Request) -> None:
    """Let the server close the connection."""
