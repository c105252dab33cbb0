"""The tools over standard input and output: a program like Claude Desktop starts us, and we ask a daemon over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from mcp.server.mcpserver import Context

from cdc_agent.client import AsyncIndex
from cdc_agent.mcp.tools import create_server

__all__ = ["serve"]


def serve(url: str, *, token: str | None) -> None:
    """Answer until standard input ends. ``token`` is ours: whoever started us is who asks."""
    open_indexes: dict[str, AsyncIndex] = {}

    @asynccontextmanager
    async def indexes(collection: str, ctx: Context[Any, Any]) -> AsyncIterator[AsyncIndex]:  # noqa: ARG001
        if collection not in open_indexes:
            open_indexes[collection] = AsyncIndex(url, collection, token=token)
        yield open_indexes[collection]

    create_server(indexes).run("stdio")
