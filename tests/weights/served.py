"""A file server on loopback that behaves well or badly, for tests of downloads."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


class Server:
    """What is served, how, and what was asked for.

    Attributes:
        content: The one file, whatever its path.
        send: For each request in turn, how many bytes are sent; after the last of these, all.
        stall: Whether a cut-off answer stays silent rather than ends.
        status: Instead of 200.
        told: Whether the length is sent.
        requests: The path of each.
    """

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.stall, self.told = False, True
        self.send: list[int] = []
        self.status = 200
        self.requests: list[str] = []
        self.over = threading.Event()
        self.url = ""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        self.requests.append(handler.path)
        if self.status != 200:
            handler.send_error(self.status)
            return
        handler.send_response(200)
        if self.told:
            handler.send_header("Content-Length", str(len(self.content)))
        handler.end_headers()
        count = self.send.pop(0) if self.send else len(self.content)
        handler.wfile.write(self.content[:count])
        handler.wfile.flush()
        if count < len(self.content) and self.stall:
            self.over.wait(20)


@contextmanager
def served(content: bytes) -> Iterator[Server]:
    server = Server(content)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.answer(self)

        def log_message(self, *_: Any) -> None: ...

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{http.server_address[1]}"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        http.shutdown()
        http.server_close()
        thread.join()
