"""A pretended outside world: whatever is posted to it is an effect, once for each path and Idempotency-Key.

It does what payment services do: the same key again gets the same answer and has no effect; the same key with another
body is refused, and so is a request without a key. Services (paths) do not know of each other. The examples talk to it
on a laptop, and tests count what it holds.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

__all__ = ["Effect", "World"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """Something that happened out there."""

    path: str
    key: str
    body: Any


class World:
    """Use it in a ``with`` block. ``down`` names paths that answer 503. ``tell`` hears of each effect."""

    def __init__(self, tell: Callable[[Effect], None] = lambda _: None) -> None:
        self.down: set[str] = set()
        #: Every request, refused ones and repeated ones among them.
        self.requests: list[Effect] = []
        self._tell = tell
        self._effects: dict[tuple[str, str], Effect] = {}
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.world = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="world", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def effects(self, path: str = "") -> list[Effect]:
        """What has happened, in order; of one path, or of all."""
        with self._lock:
            return [effect for effect in self._effects.values() if path in ("", effect.path)]

    def take(self, asked: Effect) -> tuple[int, dict[str, Any]]:
        """Status and answer of one request."""
        with self._lock:
            self.requests.append(asked)
            if asked.path in self.down:
                return 503, {"error": "out of order"}
            if not asked.key:
                return 400, {"error": "an Idempotency-Key is needed"}
            known = self._effects.setdefault((asked.path, asked.key), asked)
            if known != asked:
                return 409, {"error": "this Idempotency-Key was for something else"}
            if known is asked:
                self._tell(asked)
            return 200, {"id": f"{asked.path.strip('/')}-{list(self._effects).index((asked.path, asked.key)) + 1}"}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    world: World

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that are killed in the middle are what it is all about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"null")
        asked = Effect(path=self.path, key=self.headers.get("Idempotency-Key", ""), body=body)
        status, answer = self.server.world.take(asked)
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """The stage tells what happens."""
