"""A local HTTP server whose answers a test writes, and which remembers what was asked."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Answer:
    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False  # say more bytes than are sent


@dataclass
class Web:
    url: str
    asked: list[tuple[str, dict[str, str]]]  # path with parameters, headers in lower case

    @property
    def paths(self) -> list[str]:
        return [path for path, _ in self.asked]


@contextmanager
def serve(answer: Callable[[str, int], Answer]) -> Iterator[Web]:
    """Serve `answer(path, how often that path was asked before)`."""
    web = Web("", [])

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            n_before = web.paths.count(self.path)
            web.asked.append((self.path, {k.lower(): v for k, v in self.headers.items()}))
            said = answer(self.path, n_before)
            self.send_response(said.status)
            for name, value in said.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(said.body) + 7 * said.cut))
            self.end_headers()
            self.wfile.write(said.body)

        def log_message(self, *words: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    web.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield web
    finally:
        server.shutdown()
        server.server_close()
