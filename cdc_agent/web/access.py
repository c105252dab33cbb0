"""Who may talk to us: bearer tokens, and protection of the loopback address against web pages.

Without tokens the daemon listens on a loopback address only. A page in a browser on this machine could still reach it
(a form post, or a name that is made to point here), so requests that name a foreign host or origin are refused.
"""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from cdc_agent.config.tree import is_loopback
from cdc_agent.errors import ConfigError
from cdc_agent.web.answers import ApiError, error_response

__all__ = ["AccessControl", "Tokens"]

#: A shorter token can be guessed.
MIN_TOKEN_CHARACTERS = 16
#: Answered to everybody: it says nothing but that the process lives.
_OPEN_PATHS = frozenset({"/healthz"})


class Tokens:
    """The tokens that open the door, kept as hashes."""

    def __init__(self, tokens: list[str]) -> None:
        self._hashes = [_hash(token) for token in tokens]

    @classmethod
    def load(cls, path: Path | None) -> Tokens:
        """Read one token a line; blank lines and ``#`` comments are skipped. None: no tokens are asked for."""
        return cls(read_tokens(path) if path else [])

    def __bool__(self) -> bool:
        return bool(self._hashes)

    def admits(self, token: str) -> bool:
        """Compares with every hash, so that the time says nothing."""
        digest = _hash(token)
        return sum(hmac.compare_digest(digest, known) for known in self._hashes) > 0


def read_tokens(path: Path) -> list[str]:
    """Raises ``ConfigError`` when the file cannot be read, is empty or holds a token that can be guessed."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "it is not UTF-8"
        raise ConfigError(
            f"http.tokens_file: {path} cannot be read: {reason}", hint="check the path and who may read it"
        ) from exc
    tokens = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if fault := _fault_of(tokens):
        raise ConfigError(
            f"http.tokens_file: {path} {fault}",
            hint=f"one token a line, at least {MIN_TOKEN_CHARACTERS} characters: openssl rand -hex 32",
        )
    return tokens


def _fault_of(tokens: list[str]) -> str:
    if not tokens:
        return "holds no token"
    if any(len(token) < MIN_TOKEN_CHARACTERS for token in tokens):
        return "has a token that is too short"
    # A header carries neither blanks inside a token nor other alphabets.
    return "" if all(token.isascii() and token.split() == [token] for token in tokens) else "has a token with odd signs"


class AccessControl:
    """ASGI middleware in front of every route."""

    def __init__(self, app: ASGIApp, tokens: Tokens) -> None:
        self._app = app
        self._tokens = tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in _OPEN_PATHS:
            refusal = self._refusal(Headers(scope=scope))
            if refusal:
                extra = {"WWW-Authenticate": "Bearer"} if refusal.status == 401 else None
                response = error_response(refusal.status, refusal.error, refusal.hint, headers=extra)
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _refusal(self, headers: Headers) -> ApiError | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return ApiError(
                403, f"origin {origin!r} is not this server", "pages of other sites may not call the daemon"
            )
        if not self._tokens:
            return None if is_loopback(_hostname(host)) else _foreign_host(host)
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._tokens.admits(token.strip()):
            return None
        return ApiError(401, "a valid token is required", "send Authorization: Bearer TOKEN, see http.tokens_file")


def _foreign_host(host: str) -> ApiError:
    return ApiError(403, f"host {host!r} is not this machine", "call it by 127.0.0.1, or set http.tokens_file")


def _hostname(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
