"""A real HTTP server on loopback that speaks ``POST /v1/chat/completions``, and fails when it is told to
(``fake_openai`` has the same for embeddings, and the faults)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tests.support.local_server import Fault, Handler, LocalServer

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


class FakeChat(LocalServer):
    """Use it in a ``with`` block. Answers ``answer``, and counts ten tokens of prompt and five of answer."""

    def __init__(self, answer: str = "Try another card.") -> None:
        super().__init__(_Handler)
        self.answer = answer
        self.requests: list[ChatRequest] = []

    def take(self, request: ChatRequest) -> Fault:
        self.requests.append(request)
        return self.next_fault()


class _Handler(Handler):
    def do_POST(self) -> None:
        body = json.loads(self.body())
        if self.path != "/v1/chat/completions":
            self.send(404, b"{}")
            return
        fake: FakeChat = self.server.fake
        fault = fake.take(ChatRequest(body=body, authorization=self.headers.get("Authorization")))
        if fault.kind == "hang":
            fake.wait_for_release()
            self.close_connection = True
        elif fault.kind == "rate_limited":
            self.send(429, _error("rate_limit_exceeded"), {"Retry-After": f"{fault.value:g}"})
        elif fault.kind == "server_error":
            # As endpoints do, it quotes what was asked.
            self.send(int(fault.value), _error(json.dumps(body)))
        elif fault.kind == "garbage":
            self.send(200, b"<html>welcome to the hotel network</html>")
        else:
            self.send(200, json.dumps(_completion(fake.answer, fault)).encode())


def _completion(answer: str, fault: Fault) -> dict[str, Any]:
    content = None if fault.kind == "silent" else answer
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
    found: dict[str, Any] = {"id": "chatcmpl-1", "object": "chat.completion", "choices": [choice]}
    if fault.kind != "uncounted":
        found["usage"] = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    return found


def _error(code: str) -> bytes:
    return json.dumps({"error": {"message": code, "type": "some_error", "code": code}}).encode()
