"""A local HTTP server that speaks a vendor's API as its documentation says, and fails when it is told to.

vendor.script(Fault(500), Fault(429, {"retry-after": "1"}))    # the next two requests fail, the third succeeds
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

__all__ = ["Asked", "Fault", "Vendor"]


@dataclass(frozen=True, slots=True)
class Fault:
    """One request's fate: a status with headers and a body, after ``delay_s``; status 0: the right answer, late."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b"{}"
    delay_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as it came. ``path`` is decoded part by part."""

    method: str
    path: tuple[str, ...]
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: Any
    at: float


class Vendor:
    """``answer`` is for whoever speaks a certain API."""

    token = "a token that may read"

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.lock = threading.RLock()
        self._faults: deque[Fault] = deque()
        vendor = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                vendor._serve(self)

            do_POST = do_GET

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def script(self, *faults: Fault) -> None:
        with self.lock:
            self._faults.extend(faults)

    def paths(self) -> list[str]:
        with self.lock:
            return ["/".join(asked.path) for asked in self.asked]

    def answer(self, asked: Asked) -> tuple[int, Any]:
        raise NotImplementedError

    def refused(self) -> tuple[int, Any]:
        """What a request without the token is told."""
        raise NotImplementedError

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(handler.path)
        length = int(handler.headers.get("content-length") or 0)
        raw = handler.rfile.read(length)
        asked = Asked(
            handler.command,
            tuple(unquote(part) for part in parts.path.strip("/").split("/")),
            {name: values[0] for name, values in parse_qs(parts.query).items()},
            {name.lower(): value for name, value in handler.headers.items()},
            json.loads(raw) if raw else None,
            time.monotonic(),
        )
        with self.lock:
            self.asked.append(asked)
            fault = self._faults.popleft() if self._faults else None
        if fault is not None and fault.delay_s:
            time.sleep(fault.delay_s)
        if fault is not None and fault.status:
            self._send(handler, fault.status, fault.body, fault.headers)
            return
        with self.lock:
            authorized = asked.headers.get("authorization") == f"Bearer {self.token}"
            status, body = self.answer(asked) if authorized else self.refused()
        self._send(handler, status, json.dumps(body).encode(), {})

    @staticmethod
    def _send(handler: BaseHTTPRequestHandler, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        handler.send_response(status)
        for name, value in {"content-type": "application/json", **headers}.items():
            handler.send_header(name, value)
        handler.send_header("content-length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)
