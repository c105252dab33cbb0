"""``verify`` on a real daemon with real Postgres and real Chroma: it finds all that was planted and nothing else,
mends it through the stream, and never calls a moving row wrong."""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import chromadb
import numpy as np
import psycopg
import pytest

from cdc_agent.daemon.models import build_embedder
from cdc_agent.documents.model import text_hash
from cdc_agent.embedding.base import Embedder
from cdc_agent.ledger import rows
from cdc_agent.ledger.base import ChunkRef, Manifest
from cdc_agent.ledger.sqlite import SqliteLedger
from cdc_agent.vectorstore.base import Record
from cdc_agent.vectorstore.chroma import ChromaStore
from tests.support.daemon import DaemonProcess
from tests.support.fake_openai import FakeOpenAI
from tests.support.oracle import assert_index_equals_table
from tests.support.postgres import Database
from tests.support.wait import until

NOTES = {
    "name": "notes",
    "table": "public.notes",
    "text": "{title}\n\n{body}",
    "metadata": ["lang", "n"],
    "chunking": {"max_tokens": 30},
}
#: A collection that rows enter and leave all the time.
GERMAN = {**NOTES, "name": "german", "where": "lang = 'de'", "text": "{body}", "metadata": ["lang", "title"]}
LABELS = {"name": "labels", "table": "public.labels", "text": "{label}"}
ROWS = 190
#: More than there are chunks: the sample is everything.
ALL = "100000"


def create_tables(pg: Database) -> None:
    pg.execute("create table notes (id int primary key, title text, body text, lang text, n numeric)")
    pg.execute("create table labels (id int primary key, label text)")
    pg.execute("insert into labels select i, 'label ' || i from generate_series(1, 10) i")
    for number in range(1, ROWS + 1):
        pg.execute("insert into notes values (%s, %s, %s, 'en', %s)", (number, f"note {number}", body(number), number))


def body(seed: object) -> str:
    """Three paragraphs, of which each becomes a chunk."""
    chosen = random.Random(repr(seed))
    return "\n\n".join(" ".join(f"w{chosen.randrange(10**9)}" for _ in range(20)) for _ in range(3))


def verify(daemon: DaemonProcess, *options: str) -> tuple[int, dict[str, Any]]:
    """Run the command; returns its exit code and its report."""
    result = cdc_agent(daemon, "verify", "--json", *options)
    assert result.returncode in (0, 1), result.stderr + daemon.log[-4000:]
    return result.returncode, json.loads(result.stdout)


def cdc_agent(daemon: DaemonProcess, *arguments: str) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(
        [sys.executable, "-m", "cdc_agent.cli", *arguments, "-c", str(daemon.path)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert "Traceback" not in result.stderr
    return result


# -- planting ---------------------------------------------------------------------------------------------------------


@dataclass
class Planter:
    """Spoils ledger and store of a daemon that is stopped; remembers what it did as ``(kind, document, chunk)``."""

    ledger: SqliteLedger
    store: ChromaStore
    embedder: Embedder
    planted: list[tuple[str, str, str]] = field(default_factory=list)

    def manifest(self, document_id: str) -> Manifest:
        return self.ledger.manifests("notes", [document_id])[document_id]

    def save(self, manifest: Manifest) -> None:
        row = rows.manifest_row(manifest)
        self.execute(f"insert or replace into manifest values ({', '.join('?' * len(row))})", row)

    def execute(self, statement: str, parameters: Sequence[Any]) -> int:
        """Behind the ledger's back: returns how many rows it changed."""
        with self.ledger._transaction() as tx:
            return tx.execute(statement, parameters).rowcount

    def record(self, chunk_id: str) -> Record:
        [found] = self.store.get("notes", [chunk_id], with_embeddings=True)
        return found

    def note(self, kind: str, document_id: str, chunk_id: str = "") -> None:
        self.planted.append((kind, document_id, chunk_id))

    def missing(self, document: str) -> None:
        self.execute("delete from manifest where collection = 'notes' and document_id = ?", (document,))
        self.note("missing", document)

    def stale(self, document: str) -> None:
        """Manifest and store agree on a text that the row had long ago."""
        manifest = self.manifest(document)
        old, text = manifest.chunks[0], f"what {document} said long ago"
        chunks = (ChunkRef(old.id, text_hash(text)), *manifest.chunks[1:])
        self.save(replace(manifest, chunks=chunks))
        self.store.upsert("notes", [replace(self.record(old.id), text=text, embedding=self.embedder.embed([text])[0])])
        self.note("stale", document)

    def orphaned(self, document: str, like: str) -> None:
        """A whole document, in ledger and store, that no row stands behind."""
        manifest = self.manifest(like)
        ids = [f"{document}#0.{n}" for n in range(len(manifest.chunks))]
        chunks = tuple(ChunkRef(i, chunk.text_hash) for i, chunk in zip(ids, manifest.chunks, strict=True))
        self.save(replace(manifest, document_id=document, chunks=chunks))
        for chunk_id, chunk in zip(ids, manifest.chunks, strict=True):
            record = self.record(chunk.id)
            own = {**record.metadata, "cdc_doc": document}
            self.store.upsert("notes", [replace(record, id=chunk_id, metadata=own)])
        self.note("orphaned", document)

    def lost_chunk(self, document: str) -> None:
        chunk = self.manifest(document).chunks[-1]
        self.store.delete("notes", [chunk.id])
        self.note("torn", document, chunk.id)

    def changed_chunk(self, document: str) -> None:
        chunk = self.manifest(document).chunks[0]
        self.store.upsert("notes", [replace(self.record(chunk.id), text="somebody wrote this by hand")])
        self.note("torn", document, chunk.id)

    def wrong_metadata(self, document: str, **metadata: Any) -> None:
        chunk = self.manifest(document).chunks[0]
        self.store.update_metadata("notes", {chunk.id: metadata})
        self.note("wrong_metadata", document, chunk.id)

    def wrong_vector(self, document: str, *, also_in_cache: bool) -> None:
        chunk = self.manifest(document).chunks[-1]
        vector = self.embedder.embed([f"not what {document} says"])[0]
        self.store.upsert("notes", [replace(self.record(chunk.id), embedding=vector)])
        if also_in_cache:
            wrong = rows.sealed_vector(np.asarray(vector, dtype=np.float32).tobytes())
            assert self.execute("update vector_cache set vector = ? where text_hash = ?", (wrong, chunk.text_hash)) == 1
        self.note("vector", document, chunk.id)


@contextlib.contextmanager
def planting(daemon: DaemonProcess) -> Iterator[Planter]:
    """Stops the daemon, opens its ledger and store, and starts it again afterwards."""
    assert daemon.terminate() == 0
    config = daemon.config
    store = ChromaStore.embedded(config.vectorstore_path)
    with closing(store), closing(build_embedder(config.embedding)) as embedder:
        with closing(SqliteLedger(config.ledger_path)) as ledger:
            yield Planter(ledger, store, embedder)
    daemon.start()


def plant_while_stopped(daemon: DaemonProcess) -> list[tuple[str, str, str]]:
    """180 defects, each in a document of its own."""
    documents = iter([f"public.notes:{number}" for number in range(1, ROWS + 1)])
    metadata: Sequence[dict[str, Any]] = (
        {"lang": "xx"},
        {"lang": None},
        {"n": "1"},
        {"more": True},
        {"cdc_doc": "public.notes:0"},
        {"cdc_table": "public.other"},
        {"cdc_chunk": 17},
        {"cdc_lsn": None},
    )
    with planting(daemon) as planter:
        for _ in range(30):
            planter.missing(next(documents))
        for _ in range(25):
            planter.stale(next(documents))
        for number in range(25):
            planter.orphaned(f"public.notes:{900_000 + number}", like=f"public.notes:{ROWS}")
        for _ in range(20):
            planter.lost_chunk(next(documents))
            planter.changed_chunk(next(documents))
        for number in range(40):
            planter.wrong_metadata(next(documents), **metadata[number % len(metadata)])
        for number in range(20):
            planter.wrong_vector(next(documents), also_in_cache=number % 2 == 0)
    return planter.planted


def plant_while_running(daemon: DaemonProcess) -> list[tuple[str, str, str]]:
    """Records that nothing names (the daemon sweeps at its start), and a collection of another model."""
    client = chromadb.HttpClient(host="127.0.0.1", port=daemon.config.vectorstore.port)
    notes = client.get_collection("notes", embedding_function=None)
    ids = ["stray", *(f"public.notes:{n}#0.77" for n in range(1, 19))]
    vectors = [[float(n + 1)] + [1.0] * 63 for n in range(len(ids))]
    notes.add(ids=ids, embeddings=vectors, documents=["x"] * len(ids), metadatas=[{"cdc_doc": "x"}] * len(ids))
    labels = client.get_collection("labels", embedding_function=None)
    own = {key: value for key, value in labels.metadata.items() if key != "hnsw:space"}
    labels.modify(metadata={**own, "cdc_fingerprint": "another", "cdc_model": "another"})
    strays = [("orphaned_record", chunk_id.rpartition("#")[0], chunk_id) for chunk_id in ids]
    return [*strays, ("wrong_generation", "", "")]


def found_in(report: dict[str, Any]) -> list[tuple[str, str, str]]:
    return sorted((d["kind"], d["document_id"], d["chunk_id"]) for d in report["defects"])


def test_two_hundred_planted_defects_are_found_and_mended_and_nothing_else_is(
    pg: Database, new_daemon: Callable[..., DaemonProcess]
) -> None:
    # Given a true index of two tables
    create_tables(pg)
    daemon = new_daemon(pg, collections=[NOTES, LABELS])
    daemon.start()
    assert_index_equals_table(daemon, pg)
    assert verify(daemon, "--sample", ALL)[0] == 0

    # When two hundred defects of all kinds are planted in ledger and store
    planted = plant_while_stopped(daemon) + plant_while_running(daemon)
    assert len(planted) == 200

    # Then an audit finds each of them, and nothing else
    code, report = verify(daemon, "--sample", ALL)
    assert code == 1
    assert found_in(report) == sorted(planted)
    counts = Counter(kind for kind, _, _ in planted)
    assert report["found"] == report["left"] == dict(counts)
    assert {kind: daemon.metric("cdc_agent_verify_defects", kind=kind) for kind in counts} == counts
    assert report["parked"] == report["moving"] == 0

    # And a repair mends all of them, through the stream
    code, report = verify(daemon, "--sample", ALL, "--repair")
    assert found_in(report) == sorted(planted)
    assert (code, report["left"]) == (0, {})
    assert daemon.metric("cdc_agent_verify_defects") == 0

    # And so the index is true again
    code, report = verify(daemon, "--sample", ALL)
    assert (code, report["found"]) == (0, {})
    assert_index_equals_table(daemon, pg)


# -- beside live writes -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def writers(pg: Database, daemon: DaemonProcess, number: int) -> Iterator[None]:
    """Connections that insert, change back and forth, and delete, in bursts that the daemon can keep up with."""
    stop, go = threading.Event(), threading.Event()
    written = threading.Semaphore(0)

    def write(seed: int) -> None:
        chosen = random.Random(seed)
        with psycopg.connect(pg.dsn, autocommit=True) as connection:
            while not stop.wait(0.01):
                if go.wait(0.2):
                    change(connection, chosen)
                    written.release()

    def pace() -> None:
        while not stop.wait(0.1):
            (go.set if (daemon.status()["lag_s"] or 0.0) < 1.0 else go.clear)()

    threads = [threading.Thread(target=write, args=(seed,)) for seed in range(number)]
    threads.append(threading.Thread(target=pace))
    for thread in threads:
        thread.start()
    try:
        for _ in range(50):
            assert written.acquire(timeout=60)
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)


def change(connection: psycopg.Connection[Any], chosen: random.Random) -> None:
    key = chosen.randrange(1, 60)
    match chosen.randrange(5):
        case 0:
            connection.execute("delete from notes where id = %s", (key,))
        case 1 | 2:
            connection.execute(
                "insert into notes values (%s, 'a', %s, 'en', 1) on conflict (id) do update"
                " set body = excluded.body, lang = case notes.lang when 'en' then 'de' else 'en' end",
                (key, body(chosen.randrange(3))),
            )
        case 3:
            connection.execute("update notes set n = 3 - n where id = %s", (key,))
        case _:
            # Somebody may be there already.
            with contextlib.suppress(psycopg.errors.UniqueViolation):
                connection.execute("update notes set id = -id where id = %s or id = -%s", (key, key))


def test_nothing_is_reported_beside_four_writers(pg: Database, new_daemon: Callable[..., DaemonProcess]) -> None:
    # Given a daemon on a table that four connections write to
    create_tables(pg)
    daemon = new_daemon(pg, collections=[NOTES, GERMAN])
    daemon.start()
    with writers(pg, daemon, 4):
        # When it is audited again and again meanwhile
        results = [verify(daemon, "--sample", "50") for _ in range(3)]

    # Then no moving row was called wrong
    assert [(code, report["defects"]) for code, report in results] == [(0, [])] * 3
    assert all(report["rows"] > 0 for _, report in results)
    assert_index_equals_table(daemon, pg)
    code, report = verify(daemon, "--sample", ALL)
    assert (code, report["moving"]) == (0, 0)


# -- what an audit costs ----------------------------------------------------------------------------------------------


def test_unchanged_rows_are_audited_without_an_embedding_and_parked_ones_are_no_defects(
    pg: Database, fake_openai: FakeOpenAI, new_daemon: Callable[..., DaemonProcess]
) -> None:
    # Given some thousand rows in the index, and one that the model refuses
    pg.execute("create table labels (id int primary key, label text)")
    pg.execute("insert into labels select i, 'label ' || i from generate_series(1, 3000) i")
    model = {"backend": "openai", "url": fake_openai.base_url, "model": "fake", "timeout_s": 5.0}
    daemon = new_daemon(pg, collections=[LABELS], embedding=model, retry={"max_attempts": 1})
    daemon.start()
    until(lambda: daemon.status()["collections"][0]["documents"] == 3000, 60.0, "the first copy")
    fake_openai.poison = "poison"
    pg.execute("update labels set label = 'poison' where id = 77")
    until(lambda: daemon.status()["dead_letters"] == 1, 30.0, "the letter")
    asked, embedded = len(fake_openai.requests), daemon.metric("cdc_agent_chunks_embedded_total")

    # When it is audited without a sample
    code, report = verify(daemon, "--sample", "0")

    # Then all of it was looked at and nothing was embedded
    assert (code, report["rows"], report["documents"], report["records"]) == (0, 3000, 3000, 3000)
    assert (report["found"], report["parked"]) == ({}, 1)
    assert daemon.metric("cdc_agent_chunks_embedded_total") == embedded
    assert len(fake_openai.requests) == asked

    # And with a sample, just that
    code, report = verify(daemon, "--sample", "20")
    assert (code, report["sampled"]) == (0, 20)
    assert sum(len(request.texts) for request in fake_openai.requests[asked:]) == 20
    assert daemon.metric("cdc_agent_verify_rows_total") == 6000


# -- the doors --------------------------------------------------------------------------------------------------------


@pytest.mark.postgres(versions=[15], plugin="all")
def test_the_command_says_what_is_wrong_and_needs_a_daemon(
    pg: Database, new_daemon: Callable[..., DaemonProcess]
) -> None:
    # Given an index in which one record is not ours
    create_tables(pg)
    daemon = new_daemon(pg, collections=[LABELS])
    daemon.start()
    assert_index_equals_table(daemon, pg)
    client = chromadb.HttpClient(host="127.0.0.1", port=daemon.config.vectorstore.port)
    labels = client.get_collection("labels", embedding_function=None)
    labels.add(ids=["stray"], embeddings=[[1.0] * 64], documents=["x"])

    # When it is audited for people, then there is a table and a sum
    result = cdc_agent(daemon, "verify")
    assert result.returncode == 1
    assert [line.split("\t")[:4] for line in result.stdout.splitlines()] == [
        ["kind", "collection", "document_id", "chunk_id"],
        ["orphaned_record", "labels", "", "stray"],
    ]
    assert "1 defects" in result.stderr
    assert "1 mended, 0 left" in cdc_agent(daemon, "verify", "--collection", "labels", "--repair").stderr
    assert cdc_agent(daemon, "verify", "--table", "public.labels").returncode == 0

    # And what does not exist is refused with what does
    refused = cdc_agent(daemon, "verify", "--collection", "nothing")
    assert refused.returncode == 2
    assert "labels" in refused.stderr
    assert [v["state"] for v in daemon.get("/verifies").json()["verifies"]] == ["done"] * 3
    assert daemon.get("/verifies/99").status_code == 404
    assert daemon.post("/verifies", {"sample": -1}).status_code == 400

    # And without a daemon it says so
    daemon.terminate()
    assert cdc_agent(daemon, "verify").returncode == 75
