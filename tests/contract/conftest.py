"""One Chroma server for the whole session, and every vector store that the contract is asked of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cdc_agent.vectorstore.base import VectorStore
from cdc_agent.vectorstore.chroma import ChromaStore
from cdc_agent.vectorstore.chroma_server import ChromaServer
from cdc_agent.vectorstore.memory import MemoryStore


@pytest.fixture(scope="session")
def chroma_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChromaServer]:
    """Chroma's own server, running. Tests must leave it so."""
    server = ChromaServer(tmp_path_factory.mktemp("chroma") / "store")
    server.start()
    yield server
    server.stop()


@pytest.fixture(params=["memory", "chroma-embedded", "chroma-http"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], VectorStore]]:
    """Opens a store of each kind; all that one test opens are closed after it."""
    opened: list[VectorStore] = []

    def open_one() -> VectorStore:
        if request.param == "chroma-http":
            server: ChromaServer = request.getfixturevalue("chroma_server")
            opened.append(ChromaStore.http(server.host, server.port, timeout_s=20))
        else:
            opened.append(MemoryStore() if request.param == "memory" else ChromaStore.embedded(tmp_path / "store"))
        return opened[-1]

    yield open_one
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store: Callable[[], VectorStore]) -> VectorStore:
    return open_store()
