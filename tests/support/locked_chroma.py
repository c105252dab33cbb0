"""A Chroma server as its clients see it, which says on demand what a real one says after a full disk, for ever.

Everything else is answered by the real server behind it. What a locked one says was seen in ``scripts/chaos``.
"""

from __future__ import annotations

import http.client
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["LockedChroma"]

_BODY = (
    b'{"error":"InternalError","message":"Database error: error returned from database: (code: 5) database is locked"}'
)
_WRITES = ("/upsert", "/update", "/add", "/delete")
_HOP_BY_HOP = ("connection", "transfer-encoding", "content-length", "host")


class LockedChroma:
    """``locked`` says whether writes are refused; as a context manager it listens on ``port``."""

    def __init__(self, port_of_the_real_one: int) -> None:
        self.locked = False
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self, port_of_the_real_one))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="locked-chroma")

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def __enter__(self) -> LockedChroma:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)


def _handler(chroma: LockedChroma, port: int) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if chroma.locked and self.path.partition("?")[0].endswith(_WRITES):
                self._send(500, _BODY, [("Content-Type", "application/json")])
            else:
                self._send(*_forwarded(self, port, body))

        def _send(self, status: int, body: bytes, headers: list[tuple[str, str]]) -> None:
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Not of interest."""

        do_GET = do_POST = do_PUT = do_DELETE = _answer

    return Handler


def _forwarded(request: BaseHTTPRequestHandler, port: int, body: bytes) -> tuple[int, bytes, list[tuple[str, str]]]:
    headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(request.command, request.path, body, headers)
        answer = connection.getresponse()
        kept = [(name, value) for name, value in answer.getheaders() if name.lower() not in _HOP_BY_HOP]
        return answer.status, answer.read(), kept
    finally:
        connection.close()
