"""The oracle: recomputes from SELECT what the store must hold, and compares everything.

Missing, stale, torn, orphaned, doubled, wrong metadata, wrong vector: each shows as a difference by name.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Any

import chromadb
import numpy as np
import psycopg
from chromadb.errors import InternalError
from psycopg import sql

from cdc_agent.config import Config
from cdc_agent.daemon.models import build_embedder
from cdc_agent.documents.chunking import Chunker
from cdc_agent.documents.collection import CollectionSpec
from cdc_agent.documents.model import document_id
from cdc_agent.embedding.base import Embedder
from cdc_agent.errors import LedgerError
from cdc_agent.events import Column, Relation, Row
from cdc_agent.source.connection import connect
from cdc_agent.sqlite_file import open_file
from tests.support.chroma_client import chroma_client
from tests.support.daemon import DaemonProcess
from tests.support.postgres import Database
from tests.support.wait import until

__all__ = ["assert_index_equals_rows", "assert_index_equals_table", "stored"]

#: One chunk as the oracle sees it: document, position, text, metadata without what only the index knows.
Chunk = tuple[str, int, str, tuple[tuple[str, Any], ...]]

#: Keys whose values depend on which commit wrote the chunk last.
_VOLATILE = ("cdc_lsn", "cdc_commit_ts")
#: What Chroma says of a read that meets a delete, or the first write of a new collection, and how long the daemon may
#: go on writing. (Of 683 collections that were read while they were made and filled, on two cores: 63 and 96 such
#: answers, and none that stayed: scripts/proof/first_writes.py.)
_MET_A_WRITE, _WRITING_S = ("Error finding id", "Nothing found on disk"), 20.0


def assert_index_equals_table(
    daemon: DaemonProcess,
    pg: Database,
    timeout_s: float = 90.0,
    only: Collection[str] = (),
    vector_of: Callable[[str], Sequence[float]] | None = None,
) -> None:
    """Wait until the index has caught up, then compare every collection (or ``only`` some) with its table.

    Vectors are compared with the hashing embedder's, or with what ``vector_of`` says of a text.
    An embedded store belongs to the daemon alone, so there the daemon is stopped, and the caller starts it again.
    """
    daemon.wait_applied(pg.execute("select pg_current_wal_lsn()::text")[0][0], timeout_s)
    config = daemon.config
    if config.vectorstore.mode == "embedded":
        until(lambda: _garbage(config) == 0, 20.0, "the garbage to be collected")
        assert daemon.terminate() == 0, daemon.log[-4000:]
    with closing(build_embedder(config.embedding)) as embedder:
        for spec in config.table_specs():
            if only and spec.name not in only:
                continue
            wanted = expected(pg, spec, embedder)
            # Old chunks are deleted just after the new ones became visible; nothing else may differ by now.
            until(lambda spec=spec, wanted=wanted: _same(config, spec, wanted), 20.0, f"{spec.name} to equal its table")
            _check_vectors(config, spec, embedder, vector_of)


def assert_index_equals_rows(
    config: Config, spec: CollectionSpec, rows: Sequence[Row], timeout_s: float = 30.0
) -> None:
    """Wait until a collection holds exactly what these rows come to, and compare its vectors."""
    with closing(build_embedder(config.embedding)) as embedder:
        wanted = chunks_of(rows, spec, embedder)
        until(lambda: _same(config, spec, wanted), timeout_s, f"{spec.name} to equal its rows")
        _check_vectors(config, spec, embedder, None)


def expected(pg: Database, spec: CollectionSpec, embedder: Embedder) -> list[Chunk]:
    """What the table says now."""
    wanted = [row for row in rows_of(pg, spec) if spec.predicate is None or row_satisfies(pg, spec, row)]
    return chunks_of(wanted, spec, embedder)


def chunks_of(rows: Sequence[Row], spec: CollectionSpec, embedder: Embedder) -> list[Chunk]:
    """What these rows come to."""
    chunker = Chunker(min(spec.max_tokens, embedder.max_tokens), spec.overlap_tokens, embedder.count_tokens)
    chunks: list[Chunk] = []
    for row in rows:
        found = document_id(spec.qualified_table, row.key() or ())
        document = spec.render(row, found)
        metadata = {k: v for k, v in document.metadata.items() if v is not None}
        for position, text in enumerate(chunker.chunk(document.text)):
            own = {**metadata, "cdc_doc": found, "cdc_table": spec.qualified_table, "cdc_chunk": position}
            chunks.append((found, position, text, tuple(sorted(own.items()))))
    return sorted(chunks)


def rows_of(pg: Database, spec: CollectionSpec) -> list[Row]:
    """Every row, in the server's own text form."""
    with connect(pg.dsn) as connection:
        key = [
            row[0]
            for row in connection.execute(
                "select a.attname from pg_index i join unnest(i.indkey) with ordinality k(n, place) on true "
                "join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.n "
                "join pg_class c on c.oid = i.indrelid "
                "where i.indrelid = %s::regclass and case c.relreplident when 'i' then i.indisreplident "
                "else i.indisprimary end order by k.place",
                (_quoted(spec),),
            ).fetchall()
        ]
        cursor = connection.execute(f"select * from {_quoted(spec)}".encode())
        result = cursor.pgresult
        assert result is not None
        columns = tuple(
            Column(name=(result.fname(i) or b"").decode(), type_oid=result.ftype(i)) for i in range(result.nfields)
        )
        relation = Relation(oid=0, root_oid=0, schema=spec.schema, name=spec.table, columns=columns, key=tuple(key))
        return [
            Row(relation, tuple(result.get_value(i, j) for j in range(result.nfields))) for i in range(result.ntuples)
        ]


def row_satisfies(pg: Database, spec: CollectionSpec, row: Row) -> bool:
    """Postgres itself decides the predicate."""
    assert spec.predicate is not None
    where = " and ".join(f"{_identifier(name)} = %s" for name in row.relation.key)
    statement = f"select count(*) from {_quoted(spec)} where ({spec.predicate.sql}) and {where}"
    return bool(pg.execute(statement.replace("%s", "\0").replace("%", "%%").replace("\0", "%s"), row.key() or ())[0][0])


def stored(config: Config, collection: str) -> dict[str, Sequence[Any]]:
    """Everything in one collection, read as a RAG app would: with Chroma's own client."""
    with _client(config) as client:
        found = _undisturbed(client.get_collection(collection, embedding_function=None))
        return {k: v if v is not None else [] for k, v in found.items()}


def _undisturbed(collection: Any) -> Any:
    """Chroma answers a read that meets a write with an error; one that stays is what Chroma is left with."""
    deadline = time.monotonic() + _WRITING_S
    while True:
        try:
            return collection.get(include=["documents", "metadatas", "embeddings"])
        except InternalError as exc:
            if not any(words in str(exc) for words in _MET_A_WRITE) or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


@contextmanager
def _client(config: Config) -> Iterator[Any]:
    settings = config.vectorstore
    if settings.mode != "embedded":
        with chroma_client(host=settings.host, port=settings.port) as remote:
            yield remote
        return
    client = chromadb.PersistentClient(path=str(config.vectorstore_path))
    try:
        yield client
    finally:
        client.close()


def _garbage(config: Config) -> int:
    """Chunks that the ledger still has to delete from the store."""
    if config.ledger.dsn is not None:
        with psycopg.connect(config.ledger.dsn.get_secret_value()) as connection:
            counted = sql.SQL("select count(*) from {}").format(sql.Identifier(config.ledger.schema_name, "garbage"))
            return int(connection.execute(counted).fetchall()[0][0])
    with closing(open_file(config.ledger_path, LedgerError, read_only=True)) as ledger:
        return int(ledger.execute("select count(*) from garbage").fetchone()[0])


def _quoted(spec: CollectionSpec) -> str:
    return f"{_identifier(spec.schema)}.{_identifier(spec.table)}"


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _same(config: Config, spec: CollectionSpec, wanted: Sequence[Chunk]) -> bool:
    found = stored(config, spec.name)
    actual: list[Chunk] = []
    for text, metadata in zip(found["documents"], found["metadatas"], strict=True):
        own = {k: v for k, v in metadata.items() if k not in _VOLATILE}
        assert set(_VOLATILE) <= set(metadata), f"metadata lacks {_VOLATILE}: {metadata}"
        actual.append((str(own["cdc_doc"]), int(own["cdc_chunk"]), text, tuple(sorted(own.items()))))
    problems = _differences(wanted, sorted(actual))
    assert not problems, "\n".join(problems[:20])
    return True


def _differences(wanted: Sequence[Chunk], actual: Sequence[Chunk]) -> list[str]:
    problems: list[str] = []
    documents = {chunk[0] for chunk in wanted}
    by_place: dict[tuple[str, int], list[Chunk]] = {}
    for chunk in actual:
        by_place.setdefault((chunk[0], chunk[1]), []).append(chunk)
    for chunk in wanted:
        held = by_place.pop((chunk[0], chunk[1]), [])
        if not held:
            problems.append(f"missing {chunk[0]} chunk {chunk[1]}: {chunk[2][:60]!r}")
        elif len(held) > 1:
            problems.append(f"doubled {chunk[0]} chunk {chunk[1]}: {[h[2][:40] for h in held]}")
        elif held[0][2] != chunk[2]:
            problems.append(f"stale {chunk[0]} chunk {chunk[1]}: {held[0][2][:60]!r} instead of {chunk[2][:60]!r}")
        elif held[0][3] != chunk[3]:
            problems.append(f"wrong metadata {chunk[0]} chunk {chunk[1]}: {held[0][3]} instead of {chunk[3]}")
    for (document, position), held in by_place.items():
        kind = "torn" if document in documents else "orphaned"
        problems.append(f"{kind} {document} chunk {position}: {[h[2][:40] for h in held]}")
    return problems


def _check_vectors(
    config: Config, spec: CollectionSpec, embedder: Embedder, vector_of: Callable[[str], Sequence[float]] | None
) -> None:
    """With a deterministic embedder a wrong or stale vector is visible by value."""
    if vector_of is None and config.embedding.backend != "hashing":
        return
    found = stored(config, spec.name)
    texts = list(found["documents"])
    if texts:
        wanted = embedder.embed(texts) if vector_of is None else np.asarray([vector_of(text) for text in texts])
        same = np.isclose(np.asarray(found["embeddings"]), wanted, atol=1e-5).all(axis=1)
        wrong = [found["ids"][i] for i in np.flatnonzero(~same)]
        assert not wrong, f"vectors of {spec.name} are not their texts': {wrong[:20]}"


def texts_of(config: Config, collection: str) -> Mapping[str, str]:
    """Chunk texts by id."""
    found = stored(config, collection)
    return dict(zip(found["ids"], found["documents"], strict=True))
