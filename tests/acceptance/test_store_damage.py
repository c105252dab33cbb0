"""The store can lose what it held or come back unreadable: found, named, and built again without embedding."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import chromadb
import httpx
import pytest

from cdc_agent.vectorstore.chroma_server import ChromaServer
from tests.support.daemon import DaemonProcess
from tests.support.fake_openai import FakeOpenAI
from tests.support.oracle import assert_index_equals_table
from tests.support.postgres import Database
from tests.support.wait import until

ITEMS = {"name": "items", "table": "public.items", "text": "{title}\n\n{body}", "metadata": ["n"]}
ROWS = 60


@pytest.fixture
def rows(pg: Database) -> Database:
    pg.execute("create table items (id int primary key, title text, body text, n int)")
    pg.execute("insert into items select i, 'title ' || i, 'body of ' || i, i from generate_series(1, %s) i", (ROWS,))
    return pg


@pytest.fixture
def managed(rows: Database, new_daemon: Callable[..., DaemonProcess]) -> DaemonProcess:
    """A daemon that runs Chroma's server itself."""
    return new_daemon(rows, collections=[ITEMS], vectorstore={"timeout_s": 5.0})


@pytest.fixture
def chroma(tmp_path: Path) -> Iterator[ChromaServer]:
    """Somebody else's Chroma server."""
    server = ChromaServer(tmp_path / "somewhere")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def remote(rows: Database, chroma: ChromaServer, new_daemon: Callable[..., DaemonProcess]) -> DaemonProcess:
    """A daemon that uses somebody else's Chroma server."""
    return new_daemon(rows, collections=[ITEMS], vectorstore={"mode": "server", "port": chroma.port, "timeout_s": 5.0})


def indexed(daemon: DaemonProcess, pg: Database, **source: Any) -> None:
    """It has indexed the table, and runs."""
    daemon.configure(source=source)
    daemon.start()
    assert_index_equals_table(daemon, pg)


def refused(daemon: DaemonProcess, state: str) -> None:
    daemon.start(ready=False)
    stopped(daemon, state)


def stopped(daemon: DaemonProcess, state: str) -> None:
    assert daemon.wait_exit() == 78, daemon.log[-3000:]
    assert f"{state}: " in daemon.log
    assert "ON_MISMATCH=resync" in daemon.log


def healed(daemon: DaemonProcess, pg: Database, state: str) -> None:
    """The index is the table's again, and nothing was embedded since the daemon's start that is not new."""
    until(lambda: f"mended state={state}" in daemon.log, 90.0, f"{state} to be mended")
    until(lambda: not daemon.status()["resyncs"], 60.0, "the resync to end")
    assert_index_equals_table(daemon, pg)
    until(lambda: daemon.problems() == [], 60.0, "the daemon to be ready")
    assert daemon.log.count(f"mended state={state}") == 1


def embedded(daemon: DaemonProcess) -> float:
    return daemon.metric("cdc_agent_chunks_embedded_total")


def folder_of(daemon: DaemonProcess) -> Path:
    return Path(daemon.settings["state_dir"]) / "chroma"


def segment_of(folder: Path) -> Path:
    """The folder of the index that Chroma has persisted."""
    [segment] = [path for path in folder.iterdir() if path.is_dir()]
    return segment


def persist_index(daemon: DaemonProcess, pg: Database) -> None:
    """Make Chroma write its index to disk after every few records instead of after a thousand, and wait for that."""
    persist_often(daemon)
    assert daemon.terminate() == 0
    daemon.start()
    for first in range(101, 141, 10):
        pg.execute(
            "insert into items select i, 'title ' || i, 'more', i from generate_series(%s::int, %s::int) i",
            (first, first + 9),
        )
        assert_index_equals_table(daemon, pg)
    until(lambda: (segment_of(folder_of(daemon)) / "index_metadata.pickle").exists(), what="the index on disk")


def persist_often(daemon: DaemonProcess) -> None:
    store = daemon.config.vectorstore
    # Chroma's own client cannot change the configuration of a collection that has no embedding function.
    place = f"http://{store.host}:{store.port}/api/v2/tenants/default_tenant/databases/default_database/collections"
    [collection] = httpx.get(place).json()
    wanted = {"new_configuration": {"hnsw": {"sync_threshold": 10, "batch_size": 5}}}
    httpx.put(f"{place}/{collection['id']}", json=wanted).raise_for_status()


@pytest.mark.fault("store-wiped")
def test_a_collection_that_was_deleted_while_we_were_down(
    rows: Database, chroma: ChromaServer, remote: DaemonProcess
) -> None:
    # Given a collection that somebody deletes while the daemon is down, and a row that changes meanwhile
    indexed(remote, rows)
    assert remote.terminate() == 0
    chromadb.HttpClient(host=chroma.host, port=chroma.port).delete_collection("items")
    rows.execute("update items set body = 'another body' where id = 1")

    # When the daemon is started, then it says so and stops, and nobody has made an empty collection
    refused(remote, "STORE_REPLACED")
    assert chromadb.HttpClient(host=chroma.host, port=chroma.port).list_collections() == []

    # When it may mend that, then the index is built again with the vectors that are known
    remote.configure(source={"on_mismatch": "resync"})
    remote.start()
    healed(remote, rows, "STORE_REPLACED")
    assert embedded(remote) == 1


@pytest.mark.fault("store-wiped")
def test_a_collection_that_is_deleted_while_we_run(rows: Database, chroma: ChromaServer, remote: DaemonProcess) -> None:
    # Given a daemon that may mend
    indexed(remote, rows, on_mismatch="resync")
    before = embedded(remote)

    # When its collection is deleted and a row changes
    chromadb.HttpClient(host=chroma.host, port=chroma.port).delete_collection("items")
    rows.execute("update items set body = 'another body' where id = 1")

    # Then it builds the index again with the vectors that are known
    healed(remote, rows, "STORE_REPLACED")
    assert embedded(remote) == before + 1

    # When that happens to one that may not, then it says so and stops
    assert remote.terminate() == 0
    indexed(remote, rows, on_mismatch="stop")
    chromadb.HttpClient(host=chroma.host, port=chroma.port).delete_collection("items")
    rows.execute("update items set n = 0 where id = 1")
    stopped(remote, "STORE_REPLACED")


@pytest.mark.fault("store-wiped")
def test_a_store_whose_folder_was_wiped(rows: Database, managed: DaemonProcess) -> None:
    # Given a daemon whose store's folder is gone
    indexed(managed, rows)
    assert managed.terminate() == 0
    shutil.rmtree(folder_of(managed))

    # When it is started, then it says so and stops, unless it may mend that
    refused(managed, "STORE_REPLACED")
    managed.configure(source={"on_mismatch": "resync"})
    managed.start()
    healed(managed, rows, "STORE_REPLACED")
    assert embedded(managed) == 0


@pytest.mark.fault("store-wiped")
def test_a_collection_of_somebody_else_is_never_touched(
    rows: Database, chroma: ChromaServer, remote: DaemonProcess
) -> None:
    # Given a collection of our name that another ledger has built
    client = chromadb.HttpClient(host=chroma.host, port=chroma.port)
    marker = {"cdc_ledger": "f" * 32, "cdc_model": "hashing", "cdc_dimensions": 64, "cdc_fingerprint": "other"}
    theirs = client.create_collection("items", metadata=marker, configuration={"hnsw": {"space": "cosine"}})
    theirs.add(ids=["x"], embeddings=[[1.0] * 64], documents=["theirs"])

    # When a new daemon is to use it, then it refuses, whatever it may mend
    for allowed in ("stop", "resync"):
        remote.configure(source={"on_mismatch": allowed})
        remote.start(ready=False)
        assert remote.wait_exit() == 78
        assert "STORE_REPLACED: " in remote.log
        assert theirs.count() == 1


def zeroed(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


DAMAGES: dict[str, Callable[[Path], None]] = {
    "its vectors are gone": lambda folder: (segment_of(folder) / "data_level0.bin").unlink(),
    "its vectors are zeroed": lambda folder: zeroed(segment_of(folder) / "data_level0.bin"),
    "its names are unreadable": lambda folder: zeroed(segment_of(folder) / "index_metadata.pickle"),
    "its segment is gone": lambda folder: shutil.rmtree(segment_of(folder)),
    "its database is cut off": lambda folder: os.truncate(folder / "chroma.sqlite3", 8192),
}


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.fault("store-damaged")
def test_a_store_that_was_damaged_while_we_were_down(rows: Database, managed: DaemonProcess, how: str) -> None:
    # Given a store that is not as it was written
    indexed(managed, rows)
    persist_index(managed, rows)
    assert managed.terminate() == 0
    DAMAGES[how](folder_of(managed))

    # When the daemon is started, then it says so and stops, unless it may mend that
    refused(managed, "STORE_CORRUPT")
    managed.configure(source={"on_mismatch": "resync"})
    managed.start()
    until(lambda: "mending state=STORE_CORRUPT" in managed.log, what="the damage to be mended")
    until(lambda: not managed.status()["resyncs"], 60.0, "the resync to end")
    assert_index_equals_table(managed, rows)
    assert embedded(managed) == 0


@pytest.mark.fault("store-damaged", "store-killed")
def test_a_server_that_is_killed_and_comes_back_with_a_damaged_index(rows: Database, managed: DaemonProcess) -> None:
    # Given a daemon that may mend, and an index on disk
    indexed(managed, rows, on_mismatch="resync")
    persist_index(managed, rows)
    before = embedded(managed)

    # When the server is killed, and what it left on the disk cannot be read
    folder = folder_of(managed)
    zeroed(segment_of(folder) / "index_metadata.pickle")
    os.kill(int(folder.with_name("chroma.pid").read_text()), signal.SIGKILL)

    # Then the daemon finds that by itself, though nothing is written, and builds the index again
    healed(managed, rows, "STORE_CORRUPT")
    assert embedded(managed) == before


@pytest.mark.fault("store-damaged", "store-killed")
def test_a_server_that_is_killed_and_does_not_come_back(rows: Database, managed: DaemonProcess) -> None:
    # Given a daemon that may mend
    indexed(managed, rows, on_mismatch="resync")
    before = embedded(managed)

    # When the server is killed, and what it left on the disk keeps it from starting
    folder = folder_of(managed)
    os.truncate(folder / "chroma.sqlite3", 8192)
    os.kill(int(folder.with_name("chroma.pid").read_text()), signal.SIGKILL)

    # Then the folder is put aside, and the index is built again in a new one
    until(lambda: list(folder.parent.glob("chroma.damaged-*")), 90.0, "the folder to be put aside")
    healed(managed, rows, "STORE_REPLACED")
    assert embedded(managed) == before


def test_dead_letters_survive_a_lost_collection_and_what_is_older_says_so(
    rows: Database, chroma: ChromaServer, fake_openai: FakeOpenAI, new_daemon: Callable[..., DaemonProcess]
) -> None:
    # Given a daemon whose model refuses the newest version of one row
    fake_openai.poison = "poison"
    model = {"backend": "openai", "url": fake_openai.base_url, "model": "fake", "timeout_s": 2.0}
    store = {"mode": "server", "port": chroma.port, "timeout_s": 5.0}
    daemon = new_daemon(rows, collections=[ITEMS], embedding=model, vectorstore=store)
    indexed(daemon, rows, on_mismatch="resync")
    rows.execute("update items set body = 'poison' where id = 7")
    daemon.wait_applied(rows.execute("select pg_current_wal_lsn()::text")[0][0])

    # Then a search says that it shows an older version, and of no other row
    hits = daemon.search("items", "title 7", k=100)
    assert [hit["document_id"] for hit in hits if hit["stale"]] == ["public.items:7"]
    assert len(hits) == ROWS

    # When the collection is lost and built again, then the letter is still there
    chromadb.HttpClient(host=chroma.host, port=chroma.port).delete_collection("items")
    rows.execute("update items set n = 0 where id = 1")
    until(lambda: "mended state=STORE_REPLACED" in daemon.log, 60.0, "the loss to be mended")
    until(lambda: not daemon.status()["resyncs"], 60.0, "the resync to end")
    [letter] = daemon.get("/dead-letters").json()["dead_letters"]
    assert letter["document_id"] == "public.items:7"

    # And its replay brings the row back once the model takes it
    fake_openai.poison = None
    assert daemon.post(f"/dead-letters/{letter['id']}/replay").status_code == 202
    until(lambda: daemon.status()["dead_letters"] == 0, 30.0, "the letter to be settled")
    assert_index_equals_table(daemon, rows)
    assert not any(hit["stale"] for hit in daemon.search("items", "title 7", k=100))
