"""Asks one HTTP API for JSON, and nobody else: below the configured base URL, without redirects, within bounds.

What an answer says about URLs is never followed, so neither a forged payload nor a hostile server can make us ask
another machine or hand it the token.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import orjson

import cdc_agent
from cdc_agent.errors import FeedUnavailable

__all__ = ["Answer", "Api", "below"]

#: Seconds for one step of an exchange, and for all of it.
_TIMEOUT_S = 20.0
_WHOLE_S = 120.0
#: Seconds to wait when somebody limits us without saying for how long, and at most.
_LIMITED_S = 60.0
_MOST_S = 3600.0
#: Requests that may come at once where there is a limit to the second.
_BURST = 10.0
#: Answers that the caller deals with.
_UNDERSTOOD = frozenset({200, 400, 404, 409})


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: Any


def below(*parts: str) -> str:
    """A path of these parts; none of them can leave its place."""
    if any(part in ("", ".", "..") for part in parts):
        raise FeedUnavailable("a name in an address is empty or made of dots", hint="correct the feed's configuration")
    return "/" + "/".join(quote(part, safe="") for part in parts)


class Api:
    """``token_file`` is read at each request, so that a token may change; it travels as a bearer token.

    ``per_s`` is how often somebody lets us ask.
    """

    def __init__(
        self,
        base_url: str,
        *,
        name: str,
        token_file: Path | None,
        headers: Mapping[str, str],
        per_s: float | None = None,
        max_bytes: int = 64 << 20,
        whole_s: float = _WHOLE_S,
        wall_clock: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._sleep = sleep
        self._base = base_url.rstrip("/")
        self._name = name
        self._token_file = token_file
        self._max_bytes = max_bytes
        self._whole_s = whole_s
        self._wall_clock = wall_clock
        self._clock = clock
        self._per_s = per_s
        self._allowed, self._counted_at = float(_BURST), clock()
        self._client = httpx.Client(
            headers={"User-Agent": f"cdc-agent/{cdc_agent.__version__}", **headers},
            timeout=_TIMEOUT_S,
            follow_redirects=False,
            # What stands on this machine is not behind the proxy of the environment.
            trust_env=urlsplit(base_url).hostname not in ("127.0.0.1", "::1", "localhost"),
        )

    def get(self, path: str, params: Mapping[str, str] | None = None) -> Answer:
        """Raises ``FeedUnavailable`` for all that is not 200, 400, 404 or 409."""
        return self._ask("GET", path, params=dict(params or {}))

    def post(self, path: str, body: Mapping[str, Any]) -> Answer:
        return self._ask("POST", path, json=dict(body))

    def close(self) -> None:
        self._client.close()

    def _pace(self) -> None:
        """Ask no faster than is allowed on average, but for a few at once."""
        if self._per_s is None:
            return
        now = self._clock()
        self._allowed = min(_BURST, self._allowed + (now - self._counted_at) * self._per_s) - 1
        self._counted_at = now
        if self._allowed < 0:
            self._sleep(-self._allowed / self._per_s)

    def _ask(self, method: str, path: str, **what: Any) -> Answer:
        self._pace()
        try:
            with self._client.stream(method, self._base + path, headers=self._authorization(), **what) as response:
                body = self._read(response)
        except httpx.HTTPError as exc:
            raise FeedUnavailable(f"{self._name} does not answer: {type(exc).__name__}") from exc
        self._refuse(response, body)
        return Answer(response.status_code, self._parsed(body))

    def _authorization(self) -> dict[str, str]:
        if self._token_file is None:
            return {}
        try:
            token = self._token_file.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as exc:
            raise FeedUnavailable(
                f"the token of {self._name} cannot be read from {self._token_file}",
                hint="write it into the file, alone on one line, readable for this user",
            ) from exc
        if not token.isprintable() or not token:
            raise FeedUnavailable(f"{self._token_file} holds no token", hint="write it alone on one line")
        return {"Authorization": f"Bearer {token}"}

    def _read(self, response: httpx.Response) -> bytes:
        began, body = self._clock(), bytearray()
        for part in response.iter_bytes(65_536):
            body += part
            if len(body) > self._max_bytes:
                raise FeedUnavailable(f"{self._name} answers more than {self._max_bytes} bytes")
            if self._clock() - began > self._whole_s:
                raise FeedUnavailable(f"an answer of {self._name} takes longer than {self._whole_s:g} s")
        return bytes(body)

    def _parsed(self, body: bytes) -> Any:
        try:
            return orjson.loads(body)
        except orjson.JSONDecodeError:
            raise FeedUnavailable(
                f"what answers for {self._name} is not its API: no JSON", hint="see api_url"
            ) from None

    def _refuse(self, response: httpx.Response, body: bytes) -> None:
        status = response.status_code
        if status in _UNDERSTOOD:
            return
        if status == 429 or (status == 403 and _is_limit(response, body)):
            raise FeedUnavailable(
                f"{self._name} limits our requests (HTTP {status})",
                hint="it goes on by itself; a token of its own has a limit of its own",
                retry_after_s=self._pause_s(response),
            )
        if status in (401, 403):
            raise FeedUnavailable(
                f"{self._name} refuses the token (HTTP {status})",
                hint="make another one that may read there, and write it into token_file",
            )
        if 300 <= status < 400:
            raise FeedUnavailable(
                f"{self._name} says that it has moved (HTTP {status}), and we follow nobody elsewhere",
                hint="correct the names or the api_url in the feed's configuration",
            )
        raise FeedUnavailable(f"{self._name} answers HTTP {status}", retry_after_s=_seconds(response, "retry-after"))

    def _pause_s(self, response: httpx.Response) -> float:
        asked = _seconds(response, "retry-after")
        reset = _seconds(response, "x-ratelimit-reset")
        if asked is None and reset is not None and response.headers.get("x-ratelimit-remaining") == "0":
            asked = reset - self._wall_clock()
        return min(max(_LIMITED_S if asked is None else asked, 0.0), _MOST_S)


def _is_limit(response: httpx.Response, body: bytes) -> bool:
    headers = response.headers
    return (
        "retry-after" in headers or headers.get("x-ratelimit-remaining") == "0" or b"rate limit" in body[:4096].lower()
    )


def _seconds(response: httpx.Response, header: str) -> float | None:
    value = response.headers.get(header, "")
    return min(float(value), 1e12) if value.isascii() and value.isdigit() and len(value) < 16 else None
