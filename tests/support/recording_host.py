"""A web server on loopback whose every path is a function: a PBX, or what pretends to be one."""

import http.server
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

Handler = http.server.BaseHTTPRequestHandler
Answer = Callable[[Handler], None]


@dataclass
class Host:
    """A web server on loopback whose every path is a function."""

    port: int = 0
    paths: dict[str, Answer] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    def url(self, path: str = "/a.wav", name: str = "pbx.example", scheme: str = "http") -> str:
        return f"{scheme}://{name}:{self.port}{path}"


def sends(
    body: bytes,
    kind: str | None = "audio/wav",
    status: int = 200,
    length: int | None = None,
    **more: str,
) -> Answer:
    def answer(handler: Handler) -> None:
        handler.send_response(status)
        if kind is not None:
            handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in more.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)
        handler.close_connection = True

    return answer


def redirects(to: str, status: int = 302) -> Answer:
    return sends(b"", status=status, Location=to)


@contextmanager
def serve(context: ssl.SSLContext | None = None) -> Iterator[Host]:
    host = Host()

    class Serve(Handler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            host.asked.append(self.path)
            host.headers.append({k.lower(): v for k, v in self.headers.items()})
            host.paths.get(self.path.partition("?")[0], sends(b"", status=404))(self)

        def log_message(self, format: str, *args: object) -> None:
            """Stay silent."""

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            """A client that hangs up is what is tested."""

    server = Server(("127.0.0.1", 0), Serve)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    host.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield host
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
