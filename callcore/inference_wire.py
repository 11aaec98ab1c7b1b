"""What goes between ``InferenceProcess`` and its child, and how.

A message is pickled with its arrays out of band::

    u32 number of parts | u64 length of each part | the parts: the pickle, then the raw arrays

The parent's first message is ``(engines, nice, log level, log style)``.
Parent to child: ``(id, engine, method, arguments)``, or ``(id, None)`` to stop stream ``id``.
Child to parent: ``(id, kind, value)``, kind one of ``value``, ``item``, ``end``, ``error``.
"""

import pickle
import socket
import struct
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

#: The method that reads attributes instead of calling one.
ATTRIBUTES = "<attributes>"

#: Buffers of one sendmsg call: IOV_MAX is 1024 on Linux.
_MAX_BUFFERS = 512

_COUNT = struct.Struct("!I")


@dataclass(frozen=True)
class EngineSpec:
    """An engine that the child shall hold."""

    path: str
    """``module:attribute`` of its class."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of its constructor; they are pickled."""
    threads: int = 1
    """Calls that it answers side by side."""
    max_batch: int | None = None
    """Live decoders: jobs of one call at most; None: as many as whoever asks it thinks best."""


class Wire:
    """Whole messages over a stream socket; one thread sends at a time, one receives."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._sending = threading.Lock()

    def send(self, message: Any) -> None:
        """Send a message; blocks until the other side has taken all but a buffer of it."""
        buffers: list[pickle.PickleBuffer] = []
        data = pickle.dumps(message, protocol=5, buffer_callback=buffers.append)
        parts = [memoryview(data), *(each.raw() for each in buffers)]
        header = _COUNT.pack(len(parts)) + struct.pack(f"!{len(parts)}Q", *map(len, parts))
        with self._sending:
            self._send_all([memoryview(header), *(part for part in parts if len(part))])

    def _send_all(self, parts: list[memoryview]) -> None:
        while parts:
            sent = self._socket.sendmsg(parts[:_MAX_BUFFERS])
            while parts and sent >= len(parts[0]):
                sent -= len(parts[0])
                parts.pop(0)
            if sent:
                parts[0] = parts[0][sent:]

    def receive(self) -> Any:
        """Return the next message; raises EOFError when the other side has closed."""
        (count,) = _COUNT.unpack(self._exactly(_COUNT.size))
        lengths = struct.unpack(f"!{count}Q", self._exactly(8 * count))
        data, *buffers = [self._exactly(length) for length in lengths]
        return pickle.loads(data, buffers=buffers)

    def _exactly(self, num_bytes: int) -> bytearray:
        data = bytearray(num_bytes)
        view = memoryview(data)
        while view:
            try:
                received = self._socket.recv_into(view)
            except ConnectionError:
                received = 0
            if not received:
                raise EOFError
            view = view[received:]
        return data
