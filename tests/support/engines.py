"""Engines in the test's own process, for steps."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass
class LocalEngines:
    """Calls the methods of objects directly."""

    engines: Mapping[str, Any]

    def call(self, engine: str, method: str, *args: Any) -> Any:
        return getattr(self.engines[engine], method)(*args)

    def stream(self, engine: str, method: str, *args: Any) -> Iterator[Any]:
        yield from getattr(self.engines[engine], method)(*args)

    def attributes(self, engine: str, *names: str) -> dict[str, Any]:
        return {name: getattr(self.engines[engine], name) for name in names}
