"""A real HTTP server on loopback that speaks ``POST /v1/chat/completions``, and fails when it is told to
(``fake_openai`` has the same for embeddings, and the faults)."""

from __future__ import annotations

import json
import threading
from collections import deque
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from tests.support.fake_openai import Fault

__all__ = ["ChatRequest", "FakeChat", "silent", "uncounted"]


def silent() -> Fault:
    """200 and no text."""
    return Fault(kind="silent")


def uncounted() -> Fault:
    """200 and no usage."""
    return Fault(kind="uncounted")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    body: dict[str, Any]
    authorization: str | None


class FakeChat:
    """Use it in a ``with`` block. Answers ``answer``, and counts ten tokens of prompt and five of answer."""

    def __init__(self, answer: str = "Try another card.") -> None:
        self.answer = answer
        self.requests: list[ChatRequest] = []
        self._faults: deque[Fault] = deque()
        self._released = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.fake = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="fake-chat", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def script(self, *faults: Fault) -> None:
        """Fates of the next requests, first in, first out."""
        self._faults.extend(faults)

    def take(self, request: ChatRequest) -> Fault:
        self.requests.append(request)
        return self._faults.popleft() if self._faults else Fault(kind="none")

    def wait_for_release(self) -> None:
        self._released.wait(600)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    fake: FakeChat

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are what some tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))))
        if self.path != "/v1/chat/completions":
            self._send(404, b"{}")
            return
        fake = self.server.fake
        fault = fake.take(ChatRequest(body=body, authorization=self.headers.get("Authorization")))
        if fault.kind == "hang":
            fake.wait_for_release()
            self.close_connection = True
        elif fault.kind == "rate_limited":
            self._send(429, _error("rate_limit_exceeded"), {"Retry-After": f"{fault.value:g}"})
        elif fault.kind == "server_error":
            # As endpoints do, it quotes what was asked.
            self._send(int(fault.value), _error(json.dumps(body)))
        elif fault.kind == "garbage":
            self._send(200, b"<html>welcome to the hotel network</html>")
        else:
            self._send(200, json.dumps(_completion(fake.answer, fault)).encode())

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Tests say what went wrong."""


def _completion(answer: str, fault: Fault) -> dict[str, Any]:
    content = None if fault.kind == "silent" else answer
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
    found: dict[str, Any] = {"id": "chatcmpl-1", "object": "chat.completion", "choices": [choice]}
    if fault.kind != "uncounted":
        found["usage"] = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    return found


def _error(code: str) -> bytes:
    return json.dumps({"error": {"message": code, "type": "some_error", "code": code}}).encode()
