"""What is in the store can be found there, also after everything was deleted and written again."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from chromadb.errors import InternalError

from tests.support.chroma_client import chroma_client
from tests.support.daemon import DaemonProcess
from tests.support.oracle import assert_index_equals_table
from tests.support.postgres import Database
from tests.support.wait import until

ITEMS = {"name": "items", "table": "public.items", "text": "{body}"}
ROWS = 300
#: Reloads until the store has lost something, which a quarter of them does or more (scripts/proof/lost_sight.py): that
#: none of so many does is one case in five thousand.
ROUNDS = 30


@pytest.fixture
def daemon(pg: Database, new_daemon: Callable[..., DaemonProcess]) -> DaemonProcess:
    pg.execute("create table items (id int primary key, body text)")
    embedding = {"backend": "hashing", "dimensions": 16}
    daemon = new_daemon(pg, collections=[ITEMS], embedding=embedding, vectorstore={"mode": "managed"})
    daemon.start()
    return daemon


def reload(pg: Database, daemon: DaemonProcess, rng: random.Random) -> None:
    """As many a nightly job does it."""
    pg.execute("truncate items")
    pg.execute(
        "insert into items select i, %s || i || ' ' || md5(i || %s) from generate_series(1, %s) i",
        (f"{rng.random()} ", str(rng.random()), ROWS),
    )
    daemon.wait_applied(pg.execute("select pg_current_wal_lsn()::text")[0][0])


def lost(daemon: DaemonProcess) -> set[str]:
    """Ids of what a search with its own vector does not show, as any client of Chroma sees it."""
    with chroma_client(port=daemon.config.vectorstore.port) as client:
        items = client.get_collection("items")
        try:
            held = items.get(include=["embeddings"])
            found = items.query(query_embeddings=held["embeddings"], n_results=100, include=[])["ids"]
        except InternalError as exc:
            raise AssertionError("something is being deleted") from exc
    assert len(held["ids"]) == ROWS, "something is being written"
    return {own for own, near in zip(held["ids"], found, strict=True) if own not in near}


@pytest.mark.fault("store-loses-sight")
@pytest.mark.timeout(300)
def test_a_table_that_is_emptied_and_filled_again_and_again_can_be_searched(
    pg: Database, daemon: DaemonProcess
) -> None:
    # Given reloads, until one of them has made Chroma lose sight of what it holds
    rng = random.Random(1)
    for _ in range(ROUNDS):
        reload(pg, daemon, rng)
        # In a list, because also an empty set is an answer.
        if until(lambda: [lost(daemon)], 30, "the store to be at rest")[0]:
            break
    else:
        pytest.fail(f"{ROUNDS} reloads lost nothing: has Chroma mended that?")

    # Then all of it can be found soon, is still what the table says, and was not embedded again
    embedded = daemon.metric("cdc_agent_chunks_embedded_total")
    until(lambda: not lost(daemon), 60, "everything to be found")
    assert daemon.metric("cdc_agent_unfindable_documents_total", collection="items") > 0
    assert daemon.metric("cdc_agent_chunks_embedded_total") == embedded
    assert_index_equals_table(daemon, pg)
