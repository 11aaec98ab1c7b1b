"""A web server on loopback that serves bytes and can misbehave as networks do."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FileServer:
    """What is served, and what was asked for."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        """Path -> body."""
        self.types: dict[str, str] = {}
        """Path -> Content-Type."""
        self.cuts: dict[str, list[int]] = {}
        """Path -> bytes after which its next answers are cut off."""
        self.ranges = True
        """Whether ``Range`` is understood."""
        self.requests: list[tuple[str, str | None]] = []
        """Path and Range header of each request."""
        self.url = ""

    def paths(self) -> list[str]:
        return [path for path, _ in self.requests]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: FileServer

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        path = self.path.partition("?")[0]
        self.site.requests.append((path, asked))
        body = self.site.files.get(path)
        if body is None:
            self._answer(404, b"", {})
            return
        start = re.fullmatch(r"bytes=(\d+)-", asked or "")
        if start is None or not self.site.ranges:
            self._answer(200, body, {})
        elif int(start[1]) >= len(body):
            self._answer(416, b"", {})
        else:
            first = int(start[1])
            span = f"bytes {first}-{len(body) - 1}/{len(body)}"
            self._answer(206, body[first:], {"Content-Range": span})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        path = self.path.partition("?")[0]
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", self.site.types.get(path, "application/octet-stream"))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        cuts = self.site.cuts.get(path)
        if cuts:
            self.wfile.write(body[: cuts.pop(0)])
            self.close_connection = True
        else:
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent."""


@contextmanager
def file_server() -> Iterator[FileServer]:
    site = FileServer()
    handler = type("Handler", (_Handler,), {"site": site})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    site.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
