"""A real HTTP server on loopback that speaks ``POST /v1/embeddings``, and fails when it is told to.

    fake.script(rate_limited(retry_after_s=1), server_error())     # the next two requests fail, the third succeeds
    fake.poison = "drop table"                                     # any request with this in a text is answered 400

A text's vector is a unit vector made of the text's hash, so equal texts have equal vectors and others do not.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.support.local_server import Fault, Handler, LocalServer

__all__ = [
    "FakeOpenAI",
    "Fault",
    "Request",
    "garbage",
    "hang",
    "not_a_number",
    "rate_limited",
    "reversed_order",
    "server_error",
    "too_few",
    "wrong_dimension",
]


def rate_limited(retry_after_s: float = 0) -> Fault:
    """429 with a Retry-After header."""
    return Fault(kind="rate_limited", value=retry_after_s)


def server_error(status: int = 500) -> Fault:
    """A 5xx without a body that anyone could parse."""
    return Fault(kind="server_error", value=status)


def garbage() -> Fault:
    """200 and no JSON."""
    return Fault(kind="garbage")


def not_a_number() -> Fault:
    """200 and a NaN in the first vector."""
    return Fault(kind="not_a_number")


def wrong_dimension(dimension: int = 3) -> Fault:
    """200 and vectors of another length."""
    return Fault(kind="wrong_dimension", value=dimension)


def too_few() -> Fault:
    """200 and one vector less than there were texts."""
    return Fault(kind="too_few")


def reversed_order() -> Fault:
    """200, correct, with the vectors last to first; ``index`` says whose they are."""
    return Fault(kind="reversed_order")


def hang() -> Fault:
    """No answer until ``release()`` or the end of the server; then the connection is closed."""
    return Fault(kind="hang")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What one request asked for."""

    texts: tuple[str, ...]
    model: str
    authorization: str | None


class FakeOpenAI(LocalServer):
    """The server. Use it in a ``with`` block; ``base_url`` is what a client of OpenAI is configured with."""

    def __init__(self, dimension: int = 8) -> None:
        super().__init__(_Handler)
        self.dimension = dimension
        #: A text that holds this is refused, with all the others of its request.
        self.poison: str | None = None
        self.requests: list[Request] = []
        #: How often each text was sent, and how often it was answered with a good vector.
        self.texts_seen: Counter[str] = Counter()
        self.texts_embedded: Counter[str] = Counter()

    def vector_of(self, text: str, dimension: int | None = None) -> list[float]:
        """The unit vector that stands for this text."""
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
        vector = np.random.default_rng(seed).standard_normal(dimension or self.dimension)
        return [float(number) for number in vector / np.linalg.norm(vector)]

    def take(self, request: Request) -> Fault:
        """Note a request and return its fate."""
        with self._lock:
            self.requests.append(request)
            self.texts_seen.update(request.texts)
        return self.next_fault()

    def note_success(self, request: Request) -> None:
        with self._lock:
            self.texts_embedded.update(request.texts)


class _Handler(Handler):
    def do_POST(self) -> None:
        body = self.body()
        if self.path != "/v1/embeddings":
            self._refuse(404, f"there is no {self.path} here")
            return
        try:
            asked = json.loads(body)
            texts = (asked["input"],) if isinstance(asked["input"], str) else tuple(asked["input"])
        except (ValueError, KeyError, TypeError):
            self._refuse(400, "the body is not an embeddings request")
            return
        request = Request(texts=texts, model=asked.get("model", ""), authorization=self.headers.get("Authorization"))
        self._answer(request, asked)

    def _answer(self, request: Request, asked: dict[str, Any]) -> None:
        fake: FakeOpenAI = self.server.fake
        fault = fake.take(request)
        if fault.kind == "hang":
            fake.wait_for_release()
            self.close_connection = True
        elif fault.kind == "rate_limited":
            self._refuse(429, "rate limit reached", {"Retry-After": f"{fault.value:g}"})
        elif fault.kind == "server_error":
            self.send(int(fault.value), b"upstream connect error")
        elif fault.kind == "garbage":
            self.send(200, b"<html>welcome to the hotel network</html>")
        elif not request.texts:
            self._refuse(400, "input must not be empty")
        elif fake.poison is not None and any(fake.poison in text for text in request.texts):
            self._refuse(400, "one of the inputs is invalid")
        else:
            self._embed(request, asked, fault)

    def _embed(self, request: Request, asked: dict[str, Any], fault: Fault) -> None:
        fake: FakeOpenAI = self.server.fake
        dimension = int(fault.value) if fault.kind == "wrong_dimension" else asked.get("dimensions")
        vectors = [fake.vector_of(text, dimension) for text in request.texts]
        if fault.kind == "not_a_number":
            vectors[0][0] = float("nan")
        encode = _base64 if asked.get("encoding_format") == "base64" else list
        data = [
            {"object": "embedding", "index": place, "embedding": encode(vector)} for place, vector in enumerate(vectors)
        ]
        if fault.kind == "too_few":
            data.pop()
        if fault.kind == "reversed_order":
            data.reverse()
        if fault.kind in ("none", "reversed_order"):
            fake.note_success(request)
        tokens = sum(len(text.split()) for text in request.texts)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        answer = {"object": "list", "data": data, "model": request.model, "usage": usage}
        self.send(200, json.dumps(answer).encode())

    def _refuse(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        kind = "rate_limit_error" if status == 429 else "invalid_request_error"
        body = {"error": {"message": message, "type": kind, "param": None, "code": None}}
        self.send(status, json.dumps(body).encode(), headers)


def _base64(vector: list[float]) -> str:
    return base64.b64encode(np.asarray(vector, dtype="<f4").tobytes()).decode()
