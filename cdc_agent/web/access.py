"""Who may talk to us, and through which door: tokens with scopes, and protection of loopback against web pages.

Without tokens the daemon listens on a loopback address only. A page in a browser on this machine could still reach it
(a form post, or a name that is made to point here), so requests that name a foreign host or origin are refused.

``AccessControl`` says who asks (401); each ``Door`` says for what one must be allowed to come in (403). A route that is
no door does not exist: ``create_app`` refuses it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from cdc_agent.config import is_loopback
from cdc_agent.grants import EVERYTHING, SCOPES, Grant
from cdc_agent.web.answers import ApiError, error_response
from cdc_agent.web.tokens import Tokens

__all__ = ["ANYBODY", "OPEN", "AccessControl", "Door", "Tokens", "grant_of", "only_doors"]

#: Scopes of a door for every token, whatever it is for.
ANYBODY = frozenset(SCOPES)
#: Of a door that needs no token: what is behind it says nothing but that the process lives.
OPEN: frozenset[str] = frozenset()
_GRANT = "cdc_agent.grant"


class Door(Route):
    """A route that lets in whoever has one of its ``scopes``. There is no default, so nobody forgets them."""

    def __init__(
        self, path: str, endpoint: Callable[..., Any], *, scopes: Collection[str], methods: Sequence[str] | None = None
    ) -> None:
        super().__init__(path, endpoint, methods=methods)
        self.scopes = frozenset(scopes)
        if not self.scopes <= ANYBODY:
            raise ValueError(f"{path}: unknown scopes {sorted(self.scopes - ANYBODY)}")

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        grant: Grant = scope[_GRANT]
        if self.scopes and not grant.allows(*self.scopes):
            refusal = _not_for_this(grant, self.scopes)
            await error_response(refusal.status, refusal.error, refusal.hint)(scope, receive, send)
            return
        await super().handle(scope, receive, send)


def only_doors(routes: Iterable[BaseRoute]) -> list[Door]:
    """Raises ``TypeError`` for a route that nobody watches."""
    doors = list(routes)
    for route in doors:
        if not isinstance(route, Door):
            raise TypeError(f"{route} is no Door: it would be open to every token")
    return [door for door in doors if isinstance(door, Door)]


def grant_of(request: Request) -> Grant:
    """What the sender of a request may see and do."""
    grant: Grant = request.scope[_GRANT]
    return grant


class AccessControl:
    """ASGI middleware in front of every door. ``open_doors`` are answered to everybody, under any name of ours."""

    def __init__(self, app: ASGIApp, tokens: Tokens, open_doors: Sequence[Door]) -> None:
        self._app = app
        self._tokens = tokens
        self._open_paths = [door.path_regex for door in open_doors]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            who = self._who(scope["path"], Headers(scope=scope))
            if isinstance(who, ApiError):
                extra = {"WWW-Authenticate": "Bearer"} if who.status == 401 else None
                await error_response(who.status, who.error, who.hint, headers=extra)(scope, receive, send)
                return
            scope[_GRANT] = who
        await self._app(scope, receive, send)

    def _who(self, path: str, headers: Headers) -> Grant | ApiError:
        if any(pattern.match(path) for pattern in self._open_paths):
            return Grant(name="anybody", scopes=frozenset())
        host, origin = headers.get("host", ""), headers.get("origin")
        if origin is not None and _netloc(origin) != host.lower():
            return ApiError(
                403, f"origin {origin!r} is not this server", "pages of other sites may not call the daemon"
            )
        if not self._tokens:
            return EVERYTHING if is_loopback(_hostname(host)) else _foreign_host(host)
        scheme, _, token = headers.get("authorization", "").partition(" ")
        grant = self._tokens.grant(token.strip()) if scheme.lower() == "bearer" else None
        return grant or ApiError(
            401, "a valid token is required", "send Authorization: Bearer TOKEN, see http.tokens_file"
        )


def _not_for_this(grant: Grant, scopes: Collection[str]) -> ApiError:
    wanted = " or ".join(scope for scope in SCOPES if scope in scopes)
    has = ", ".join(scope for scope in SCOPES if scope in grant.scopes)
    return ApiError(403, f"the token {grant.name!r} is not for this", f"it needs the scope {wanted}, and has {has}")


def _foreign_host(host: str) -> ApiError:
    return ApiError(403, f"host {host!r} is not this machine", "call it by 127.0.0.1, or set http.tokens_file")


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _hostname(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
