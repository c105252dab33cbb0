"""What ``tests/unit/test_grants.py`` says of tenants, over a real Chroma, whose conditions are its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdc_agent.errors import UsageError
from cdc_agent.grants import permits
from cdc_agent.search import Searcher
from cdc_agent.vectorstore.chroma import ChromaStore
from cdc_agent.vectorstore.chroma_server import ChromaServer
from tests.unit.test_grants import COLUMNS, TENANTS, wheres, withins
from tests.unit.test_search import Index

QUERY = "the cat sleeps"


@pytest.fixture(scope="module")
def index(chroma_server: ChromaServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Index]:
    """A hundred and twenty documents of five tenants in Chroma; some say nothing of whose they are."""
    with closing(ChromaStore.http(chroma_server.host, chroma_server.port, timeout_s=20)) as store:
        index = Index(tmp_path_factory.mktemp("index") / "ledger.sqlite", store=store)
        for number in range(120):
            metadata: dict[str, Any] = {"lang": ["en", "de"][number % 2], "year": 2000 + number % 5}
            if number % 6:
                metadata["tenant"] = TENANTS[number % 6 - 1]
            index.add(f"public.articles:{number}", f"{QUERY} {number % 7}", **metadata)
        index.searcher = Searcher(store, index.ledger, {"articles": index.embedder}, columns={"articles": COLUMNS})
        yield index
        store.drop_collection("articles")
        index.ledger.close()


@given(where=wheres, within=withins, k=st.integers(1, 100))
@settings(max_examples=150, deadline=None)
def test_no_search_in_chroma_leaves_its_tenant(index: Index, where: dict[str, Any], within: Any, k: int) -> None:
    # Given what the same request finds for somebody who may see everything
    try:
        everything = index.searcher.search("articles", QUERY, 100, where)
    except UsageError:
        with pytest.raises(UsageError):
            index.searcher.search("articles", QUERY, k, where, within=within)
        return

    # When a tenant asks, then it sees nothing of others, and of its own as much as anybody would
    found = index.searcher.search("articles", QUERY, k, where, within=within)
    assert all(permits(within, hit.metadata) for hit in found)
    assert len(found) >= min(k, sum(permits(within, hit.metadata) for hit in everything))
