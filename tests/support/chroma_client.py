"""Chroma's own client, as a RAG application has it, which leaves nothing behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import chromadb
from chromadb.api.shared_system_client import SharedSystemClient

__all__ = ["chroma_client"]


@contextmanager
def chroma_client(*, port: int, host: str = "127.0.0.1") -> Iterator[Any]:
    client: Any = chromadb.HttpClient(host=host, port=port)
    try:
        yield client
    finally:
        _forget(client)


def _forget(client: Any) -> None:
    """Chroma keeps whatever a client is made of, ten megabytes each, and closing it leaves its connections open."""
    kept = SharedSystemClient._identifier_to_system
    for part in (client, client._admin_client):
        part._server._session.close()
        for name in [name for name, system in kept.items() if system is part._system]:
            del kept[name]
