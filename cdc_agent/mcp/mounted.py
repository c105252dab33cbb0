"""The tools at one path of the daemon (streamable HTTP). Loaded at the first request, and each request stands alone.

Only POST leads here: a GET would open a stream of news, of which a server without sessions has none, and hold its
connection for ever.

A tool asks the application that it is mounted in, with the token of the message that called it: no session carries what
one caller may see over to another.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx
from starlette.types import ASGIApp, Receive, Scope, Send

from cdc_agent.client import AsyncIndex

if TYPE_CHECKING:
    from mcp.server.mcpserver import Context, MCPServer
    from mcp.server.streamable_http_manager import StreamableHTTPSessionManager

__all__ = ["MountedTools"]

#: A name that the application takes for this machine's; nothing travels.
_HERE = "http://127.0.0.1"


class MountedTools:
    """An ASGI application for one path. Raises ``ImportError`` from a request when ``mcp`` is not installed."""

    def __init__(self) -> None:
        self._starting = asyncio.Lock()
        self._manager: StreamableHTTPSessionManager | None = None
        self._life: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._starting:
            manager = self._manager or await self._started(scope["app"])
        await manager.handle_request(scope, receive, send)

    async def _started(self, app: ASGIApp) -> StreamableHTTPSessionManager:
        """Its tasks live until the event loop ends."""
        # The package takes a second to load, which no other request should wait for.
        server = await asyncio.to_thread(_server_over, app)
        server.streamable_http_app(stateless_http=True, json_response=True, transport_security=_checked_already())
        running = asyncio.Event()

        async def live() -> None:
            async with server.session_manager.run():
                running.set()
                await asyncio.Event().wait()

        self._life = asyncio.create_task(live(), name="mcp")
        await running.wait()
        self._manager = server.session_manager
        return self._manager


def _server_over(app: ASGIApp) -> MCPServer[Any]:
    from cdc_agent.mcp.tools import create_server

    @asynccontextmanager
    async def indexes(collection: str, ctx: Context[Any, Any]) -> AsyncIterator[AsyncIndex]:
        transport = httpx.ASGITransport(app=app)
        async with AsyncIndex(_HERE, collection, token=_token(ctx), transport=transport) as index:
            yield index

    return create_server(indexes)


def _token(ctx: Context[Any, Any]) -> str | None:
    scheme, _, token = (ctx.headers or {}).get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def _checked_already() -> Any:
    """Hosts and origins are ``web.access``'s to refuse, and it has."""
    from mcp.server.transport_security import TransportSecuritySettings

    return TransportSecuritySettings(enable_dns_rebinding_protection=False)
