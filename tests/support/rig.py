"""The real indexer with its real stream and ledger, between a scripted database and a faulty store."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from cdc_agent.agents.indexer import AGENT, Indexer
from cdc_agent.agents.planning import Collection
from cdc_agent.agents.vectors import Vectorizer
from cdc_agent.agents.writing import IndexWriter
from cdc_agent.embedding.base import Embedder
from cdc_agent.embedding.hashing import HashingEmbedder
from cdc_agent.errors import PoisonText
from cdc_agent.events import Row, Transaction
from cdc_agent.health import Health
from cdc_agent.ledger.base import Flip, Ledger, Manifest, Resync
from cdc_agent.ledger.postgres import PostgresLedger
from cdc_agent.ledger.sqlite import SqliteLedger
from cdc_agent.lsn import Version
from cdc_agent.resync import MESSAGE_PREFIX, PageBoard, _Page
from cdc_agent.retry import Backoff, Retrier
from cdc_agent.source.base import RowReader, RowSet, TableRows
from cdc_agent.stream.base import Stream
from cdc_agent.stream.sqlite import SqliteStream
from cdc_agent.tracing import NO_TRACES, Traces
from cdc_agent.vectorstore.base import VectorStore
from tests.support.scripted import (
    ROOT_OID,
    TABLE,
    FaultyStore,
    ScriptedDatabase,
    Statement,
    a_collection,
    expected_chunks,
)
from tests.support.wait import until

__all__ = ["CountingEmbedder", "Rig", "WatchedLedger", "WatchedPostgresLedger", "an_indexer"]


_NOTE_FORGOTTEN = """
create temp table forgotten (text_hash blob);
create temp trigger note_forgotten after delete on main.vector_cache
begin insert into forgotten values (old.text_hash); end;
"""


_NOTE_FORGOTTEN_ON_SERVER = """
create table if not exists forgotten (text_hash bytea);
truncate forgotten;
create or replace function note_forgotten() returns trigger language plpgsql as
    $$ begin insert into forgotten values (old.text_hash); return null; end $$;
create or replace trigger note_forgotten after delete on vector_cache for each row execute function note_forgotten();
"""

_UNUSED = """
select count(*) from vector_cache c where not exists (select 1 from vector_use u where u.text_hash = c.text_hash)
"""


class Watched:
    """In front of a ledger's class: notes when the version of a document goes backward."""

    def watch(self) -> None:
        self.backward: list[str] = []
        self._newest: dict[tuple[str, str], Version] = {}
        #: Called after the documents of a relation were read, before the caller gets them.
        self.after_documents: Callable[[], None] = lambda: None
        #: Called before each flip, and after it.
        self.before_flip: Callable[[Flip], None] = lambda _: None
        self.after_flip: Callable[[Flip], None] = lambda _: None

    def flip(self, flip: Flip) -> None:
        self.before_flip(flip)
        super().flip(flip)  # type: ignore[misc]
        self.after_flip(flip)
        for manifest in flip.manifests:
            place = (manifest.collection, manifest.document_id)
            before = self._newest.get(place)
            if before is not None and manifest.version < before:
                self.backward.append(f"{manifest.document_id}: {before} -> {manifest.version}")
            self._newest[place] = manifest.version

    def documents_of_relation(self, collection: str, relation_oid: int | None, **page: Any) -> list[str]:
        found: list[str] = super().documents_of_relation(collection, relation_oid, **page)  # type: ignore[misc]
        self.after_documents()
        return found


class WatchedLedger(Watched, SqliteLedger):
    """Notes which vectors are forgotten, too."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.watch()
        self._writer.executescript(_NOTE_FORGOTTEN)

    def forgotten(self) -> Counter[bytes]:
        """How often the vector of each text left the cache."""
        return Counter(row[0] for row in self._writer.execute("select text_hash from forgotten"))

    def unused_vectors(self) -> int:
        """Vectors in the cache that no document has a use of, so that none would leave with one."""
        return int(self._writer.execute(_UNUSED).fetchone()[0])


class WatchedPostgresLedger(Watched, PostgresLedger):
    """The same, in a schema of a database."""

    def __init__(self, dsn: str, schema: str) -> None:
        super().__init__(dsn, schema)
        self.watch()
        self._write(lambda tx: tx.execute(_NOTE_FORGOTTEN_ON_SERVER))

    def forgotten(self) -> Counter[bytes]:
        """How often the vector of each text left the cache in this life."""
        return Counter(row[0] for row in self._all("select text_hash from forgotten"))

    def unused_vectors(self) -> int:
        """Vectors in the cache that no document has a use of, so that none would leave with one."""
        return int(self._one(_UNUSED)[0])


class CountingEmbedder(HashingEmbedder):
    """Notes every text; one with a word of ``poison`` is refused."""

    def __init__(self) -> None:
        super().__init__(dimensions=8)
        self.texts: list[str] = []
        self.poison: set[str] = set()
        #: How often it refused; what it had embedded for that document may have been for nothing.
        self.refusals = 0

    def embed(self, texts: Any) -> Any:
        for index, text in enumerate(texts):
            if self.poison & set(text.split()):
                self.refusals += 1
                raise PoisonText("this text is poison", index=index)
        self.texts += texts
        return super().embed(texts)


def an_indexer(
    collection: Collection,
    *,
    stream: Stream,
    ledger: Ledger,
    store: VectorStore,
    embedder: Embedder,
    rows: RowReader,
    retrier: Callable[[], Retrier],
    **more: Any,
) -> tuple[Indexer, IndexWriter]:
    """As ``daemon.build`` wires it, over one collection; and its writer."""
    collections = {"docs": collection}
    writer = IndexWriter(agent=AGENT, ledger=ledger, store=store, collections=collections, fingerprint="f")
    vectorizer = Vectorizer(
        agent=AGENT,
        embedder=embedder,
        ledger=ledger,
        store=store,
        fingerprint="f",
        retrier=retrier(),
        max_attempts=2,
    )
    indexer = Indexer(
        stream=stream,
        ledger=ledger,
        writer=writer,
        vectorizer=vectorizer,
        row_reader=rows,
        collections=collections,
        root_oids={"docs": ROOT_OID},
        planner_retrier=retrier(),
        writer_retrier=retrier(),
        **more,
    )
    return indexer, writer


class Rig:
    """``start`` and ``stop`` are the lives of a process; database, stream, ledger and store outlive them."""

    def __init__(self, folder: Path, *, store: FaultyStore | None = None) -> None:
        self.database = ScriptedDatabase()
        self.store = store or FaultyStore()
        self.stream = SqliteStream(folder / "stream.db")
        self.ledger = WatchedLedger(folder / "ledger.db")
        for file in (self.stream, self.ledger):
            # No test here cuts the power.
            file._writer.execute("pragma synchronous = off")
        self.embedder = CountingEmbedder()
        self.board = PageBoard()
        self.traces: Traces = NO_TRACES
        self.collection: Collection = a_collection()
        self.health = Health()
        self.stop_signal = threading.Event()
        self.failures: list[BaseException] = []
        self._threads: list[threading.Thread] = []
        self.store.open_collection("docs", dimensions=8, marker={"ledger": self.ledger.uuid})
        self.indexer = self._built()

    # -- lives ------------------------------------------------------------------------------------------------

    def _built(self) -> Indexer:
        self.stop_signal = threading.Event()
        indexer, self.writer = an_indexer(
            self.collection,
            stream=self.stream,
            ledger=self.ledger,
            store=self.store,
            embedder=self.embedder,
            rows=self.database,
            retrier=self._retrier,
            stop=self.stop_signal,
            traces=self.traces,
        )
        return indexer

    def _retrier(self) -> Retrier:
        return Retrier(self.stop_signal, self.health, Backoff(initial_s=0.001, maximum_s=0.01))

    def start(self) -> None:
        assert not self._threads
        self.indexer = self._built()
        for name, body in (("planner", self.indexer.run_planner), ("writer", self.indexer.run_writer)):
            self._threads.append(threading.Thread(target=self._guarded, args=(body,), name=name, daemon=True))
            self._threads[-1].start()

    def stop(self) -> None:
        """Whatever is in work is abandoned, as by a kill."""
        self.stop_signal.set()
        self.stream.wake()
        for thread in self._threads:
            thread.join(20)
            assert not thread.is_alive(), f"{thread.name} does not stop"
        self._threads = []

    def close(self) -> None:
        self.stop()
        self.stream.close()
        self.ledger.close()

    def _guarded(self, body: Callable[[], None]) -> None:
        try:
            body()
        except BaseException as exc:
            self.failures.append(exc)

    # -- what happens -----------------------------------------------------------------------------------------

    def append(self, tx: Transaction) -> None:
        """What capture does."""
        expanded = self.board.expand(tx) or tx
        self.stream.append([expanded])
        self.traces.captured([expanded])

    def commit(self, *statements: Statement, hide: bool = False) -> None:
        self.append(self.database.commit(*statements, hide=hide))

    def insert(self, key: str, title: str = "t", body: str = "b", lang: str = "en", **more: Any) -> None:
        self.commit(Statement("insert", key, (key, title, body, lang)), **more)

    def update(self, key: str, title: str = "t", body: str = "b", lang: str = "en", **more: Any) -> None:
        self.commit(Statement("update", key, (key, title, body, lang)), **more)

    def begin_resync(self, keys: tuple[str, ...] = ()) -> Resync:
        wanted = Resync(table=TABLE, collections=("docs",), keys=tuple((key,) for key in keys))
        begun = replace(self.ledger.start_resync(wanted), snapshot=self.database.snapshot())
        self.ledger.save_resync(begun)
        return begun

    def read_page(self, after: str | None, limit: int) -> RowSet:
        return self.database.page(TableRows(table=TABLE, after_key=(after,) if after else None, limit=limit))

    def place(self, resync: Resync, rows: RowSet, *, done: bool, absent: tuple[tuple[str, ...], ...] = ()) -> None:
        last = Row(rows.relations[-1], rows.rows[-1]).key() if rows.rows else None
        body = {"last_key": last, "rows_done": len(rows.rows), "done": done, "since": resync.snapshot, "absent": absent}
        self.board.put("token", _Page(rows=rows, body=body, resync_id=resync.id))
        self.append(self.database.message(MESSAGE_PREFIX, {"token": "token"}))

    # -- what is true at the end ------------------------------------------------------------------------------

    def settle(self) -> None:
        """Wait until everything in the stream is in the index."""
        head = self.stream.head_offset()

        def applied() -> bool:
            assert self.failures == []
            self.indexer.hurry()
            return self.indexer.watermark.offset >= head

        until(applied, what="the index to catch up")

    def manifest(self, key: str) -> Manifest | None:
        return self.ledger.manifests("docs", [f"{TABLE}:{key}"]).get(f"{TABLE}:{key}")

    def stored(self) -> list[tuple[str, int, str, str]]:
        """``(document, position, text, lang)`` of every chunk in the store."""
        return sorted(
            (str(r.metadata["cdc_doc"]), int(str(r.metadata["cdc_chunk"])), r.text, str(r.metadata.get("lang")))
            for r in self.store.everything("docs")
        )

    def wanted(self) -> list[tuple[str, int, str, str]]:
        rows = self.database.rows(hidden=True).values()
        return sorted(chunk for values, _ in rows for chunk in expected_chunks(self.collection, values))

    def live_ids(self) -> set[str]:
        """The ids that manifests name."""
        documents = self.ledger.documents_of_relation("docs", None)
        return {c.id for m in self.ledger.manifests("docs", documents).values() for c in m.chunks}

    def assert_index_is_the_table(self) -> None:
        self.settle()
        # Strays of an earlier life are swept, and garbage is collected, a moment after the index is right.
        until(lambda: {r.id for r in self.store.everything("docs")} == self.live_ids(), what="the store to be swept")
        assert self.stored() == self.wanted()
        assert self.ledger.backward == []
        assert self.failures == []
