"""``POST {url}/chat/completions`` of an OpenAI-compatible endpoint: OpenAI, vLLM, Ollama, LiteLLM, llama.cpp.

Owns one request and what its answer means. Trying again belongs to the caller. Neither the key nor a message ever
stands in an error.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx
import msgspec

from cdc_agent.embedding.endpoint import TRY_AGAIN, error_code, retry_after_seconds, whole
from cdc_agent.errors import LlmError, LlmUnavailable

__all__ = ["Answer", "Endpoint"]

#: Largest answer that is read, in bytes.
_LARGEST_ANSWER = 16 << 20
#: Names of a limit on what is generated. Newer models of OpenAI take only the second.
_LIMITS = ("max_tokens", "max_completion_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the model said. Token counts are None where the endpoint does not tell them. ``finish_reason`` is ``length``
    when it was cut off."""

    text: str
    finish_reason: str
    prompt_tokens: int | None
    completion_tokens: int | None


class Endpoint:
    """Safe to call from several threads. ``options`` are sent along with every request."""

    def __init__(
        self, url: str, model: str, *, api_key: Callable[[], str | None], options: Mapping[str, Any] | None = None
    ) -> None:
        self._url = url.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"
        self._model = model
        self._api_key = api_key
        self._options = dict(options or {})
        self._client: httpx.Client | None = None

    def ask(self, messages: Sequence[Mapping[str, Any]], *, max_tokens: int, timeout_s: float) -> Answer:
        """One request, which ends within about ``timeout_s``. Raises ``LlmUnavailable`` for what another try may mend,
        and ``LlmError`` for what it will not."""
        body = {"model": self._model, "messages": messages, **self._options}
        if not any(name in self._options for name in _LIMITS):
            body["max_tokens"] = max_tokens
        status, headers, content = self._post(json.dumps(body).encode("ascii"), timeout_s)
        if status != httpx.codes.OK:
            raise _failure(status, headers, content)
        return _answer(content)

    def close(self) -> None:
        if self._client is not None:
            self._client.close()

    def _post(self, body: bytes, timeout_s: float) -> tuple[int, httpx.Headers, bytes]:
        deadline = time.monotonic() + timeout_s
        headers = self._headers()
        try:
            with self._http().stream("POST", self._url, content=body, headers=headers, timeout=timeout_s) as response:
                return response.status_code, response.headers, whole(response.iter_bytes(), deadline, _LARGEST_ANSWER)
        except (httpx.ConnectError, httpx.ConnectTimeout) as exc:
            raise LlmUnavailable(
                f"the chat endpoint cannot be reached: {type(exc).__name__}", hint="is it running? url= says where"
            ) from exc
        except httpx.TimeoutException as exc:
            raise LlmUnavailable(
                f"the chat endpoint did not answer in {timeout_s:.3g} s",
                hint="it may be overloaded; timeout_s= says how long we wait, max_tokens= how much it may say",
                billed=True,
            ) from exc
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as exc:
            raise _wrong_url("not a web address") from exc
        except (httpx.TransportError, httpx.DecodingError) as exc:
            raise LlmUnavailable(
                f"the chat endpoint broke off: {type(exc).__name__}", hint="its own log says what ails it", billed=True
            ) from exc

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key := self._api_key():
            headers["Authorization"] = f"Bearer {key}"
        return headers

    def _http(self) -> httpx.Client:
        # Made when it is needed: a client reads all certificates of the machine.
        if self._client is None:
            self._client = httpx.Client()
        return self._client


class _Message(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice]
    usage: _Usage | None = None


def _answer(content: bytes) -> Answer:
    try:
        found = msgspec.json.decode(content, type=_Completion)
        choice = found.choices[0]
    except (msgspec.DecodeError, UnicodeDecodeError, IndexError) as exc:
        raise LlmUnavailable(
            "the chat endpoint answered with something that is no completion",
            hint="check that url= is an OpenAI-compatible API, usually ending in /v1",
            billed=True,
        ) from exc
    usage = found.usage or _Usage()
    return Answer(
        text=choice.message.content or "",
        finish_reason=choice.finish_reason or "",
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
    )


def _failure(status: int, headers: httpx.Headers, content: bytes) -> LlmError:
    said = f"HTTP {status}{error_code(content)}"
    if status in (401, 403):
        return LlmError(
            f"the chat endpoint does not accept our key: {said}",
            hint="check api_key_file= or api_key_env=, and that the key may use this model",
        )
    if status >= 500 or status in TRY_AGAIN:
        wait_s = retry_after_seconds(headers.get("Retry-After"), datetime.now(UTC))
        return LlmUnavailable(
            f"the chat endpoint is not available: {said}", hint="its own log says what ails it", retry_after_s=wait_s
        )
    if status in (400, 413, 422):
        return LlmError(
            f"the chat endpoint refuses the request: {said}",
            hint="too long for the model, or an option that it does not know (options=)",
        )
    return _wrong_url(said)


def _wrong_url(said: str) -> LlmError:
    return LlmError(
        f"the chat endpoint is not where url= says, or does not have the model: {said}",
        hint="check url= (usually ending in /v1) and model=",
    )
