"""A manager interface of which one answer is changed on its way: for faults nobody can plant."""

import contextlib
import re
import socket
import threading

from callcore.settings import Address


class AmiProxy:
    """Passes everything on between clients and a manager interface, but for its clock.

    Args:
        target: The manager interface.
        ahead_s: Seconds that are added to the value of the variable ``EPOCH``.
    """

    def __init__(self, target: Address, ahead_s: int) -> None:
        self._target = target
        self._ahead_s = ahead_s
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = Address("127.0.0.1", self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> "AmiProxy":
        return self

    def __exit__(self, *_exc: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed
                return
            server = socket.create_connection((self._target.host, self._target.port))
            threading.Thread(target=self._join, args=(client, server), daemon=True).start()

    def _join(self, client: socket.socket, server: socket.socket) -> None:
        with client, server:
            asking = threading.Thread(target=self._pass, args=(client, server, False), daemon=True)
            asking.start()
            self._pass(server, client, True)
            asking.join()

    def _pass(self, source: socket.socket, sink: socket.socket, changed: bool) -> None:
        try:
            with source.makefile("rb") as lines:
                before = b""
                for line in lines:
                    sink.sendall(self._shifted(line) if changed and b"EPOCH" in before else line)
                    before = line
        except OSError:
            pass
        finally:
            for each in (source, sink):
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def _shifted(self, line: bytes) -> bytes:
        return re.sub(rb"\d+", lambda value: b"%d" % (int(value[0]) + self._ahead_s), line)
