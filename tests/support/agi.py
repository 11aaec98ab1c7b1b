"""Asterisk's end of a FastAGI request."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from callcore.agi.server import AgiServer, Route
from callcore.settings import Address, Settings

#: Bound of every wait; nothing here is expected to take a tenth of it.
PATIENCE_S = 20.0


@asynccontextmanager
async def running(settings: Settings, routes: Mapping[str, Route]) -> AsyncIterator[AgiServer]:
    """Run a server on a free port; its address is ``server.address``."""
    server = AgiServer(settings, routes)
    await server.start(Address("127.0.0.1", 0))
    try:
        yield server
    finally:
        await server.close(PATIENCE_S)


class Dialplan:
    """One ``AGI()`` of a dialplan."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, address: Address) -> "Dialplan":
        return cls(*await asyncio.open_connection(address.host, address.port))

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def greet(self, script: str, *arguments: str, **variables: str) -> None:
        """Send an environment."""
        known = {"network": "yes", "network_script": script, "uniqueid": "1795362086.75"}
        numbered = {f"arg_{n}": text for n, text in enumerate(arguments, 1)}
        known |= variables | numbered
        self.send("".join(f"agi_{k}: {v}\n" for k, v in known.items()).encode() + b"\n")

    async def line(self) -> str:
        """Return the next command, empty once the server has closed."""
        async with asyncio.timeout(PATIENCE_S):
            return (await self.reader.readline()).decode().removesuffix("\n")

    async def closed(self) -> bytes:
        """Return what still comes until the server has closed."""
        async with asyncio.timeout(PATIENCE_S):
            try:
                return await self.reader.read()
            finally:
                self.writer.close()

    async def told(self, answers: Mapping[str, str]) -> list[str]:
        """Answer commands by what they contain until the server has closed; return them."""
        asked = []
        while command := await self.line():
            asked.append(command)
            value = next((v for k, v in answers.items() if k in command), None)
            reply = "200 result=0" if value is None else f"200 result=1 ({value})"
            self.send(f"{reply}\n".encode())
        self.writer.close()
        return asked
