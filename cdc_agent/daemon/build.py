"""Wires the daemon: the only place that names concrete backends, so heavy libraries load where configured."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import IO

from cdc_agent.agents.indexer import AGENT, Indexer
from cdc_agent.agents.planning import Collection
from cdc_agent.agents.vectors import Vectorizer
from cdc_agent.agents.writing import IndexWriter
from cdc_agent.capture import Capture
from cdc_agent.config import Config, EmbeddingConfig
from cdc_agent.daemon.lock import lock_state
from cdc_agent.documents.chunking import Chunker
from cdc_agent.documents.collection import CollectionSpec
from cdc_agent.embedding.base import Embedder
from cdc_agent.errors import ConfigError, EmbeddingError
from cdc_agent.health import Health
from cdc_agent.identity import SourceGuard
from cdc_agent.ledger.base import Ledger, Resync
from cdc_agent.ledger.sqlite import SqliteLedger
from cdc_agent.marker import first_copies, open_collections
from cdc_agent.resync import PageBoard, ResyncRunner
from cdc_agent.retry import Backoff, Retrier
from cdc_agent.search import Searcher
from cdc_agent.source import preflight, slot
from cdc_agent.source.base import Decoder
from cdc_agent.source.catalog import Catalog, WatchedTable
from cdc_agent.source.pgoutput import PgOutputDecoder
from cdc_agent.source.relations import Relations
from cdc_agent.source.replication import ReplicationFeed, plugin_options
from cdc_agent.source.rows import SqlRowReader
from cdc_agent.source.wal2json import Wal2JsonDecoder
from cdc_agent.stream.base import Stream
from cdc_agent.stream.sqlite import SqliteStream
from cdc_agent.vectorstore.base import VectorStore
from cdc_agent.vectorstore.chroma_server import ChromaServer

__all__ = ["Daemon", "build", "build_embedder", "build_store"]


@dataclass(slots=True, kw_only=True)
class Daemon:
    """Everything that runs, wired and not yet started. ``lock`` keeps a second daemon off our state."""

    config: Config
    lock: IO[str]
    stop: threading.Event
    health: Health
    catalog: Catalog
    feed: ReplicationFeed
    stream: Stream
    ledger: Ledger
    embedder: Embedder
    store: VectorStore
    chroma: ChromaServer | None
    capture: Capture
    indexer: Indexer
    resync: ResyncRunner
    row_reader: SqlRowReader
    searcher: Searcher
    specs: tuple[CollectionSpec, ...]


def build(config: Config, stop: threading.Event) -> Daemon:
    """Open every end, check that they belong together, and wire the rooms. Call from the main thread.

    Raises ``CdcAgentError`` with a hint for anything that is wrong; what was opened by then ends with the process.
    """
    specs = config.collection_specs()
    lock = lock_state(config.state_dir)
    health = Health()
    ledger = SqliteLedger(config.ledger_path, embedding_cache_bytes=config.ledger.embedding_cache_bytes)
    stream = SqliteStream(
        config.stream_path, max_bytes=config.stream.max_bytes, retention_s=config.stream.retention_h * 3600
    )
    dsn = config.source.dsn.get_secret_value()
    catalog, watched = _open_source(config, specs, ledger)
    store, chroma = build_store(config)
    embedder = build_embedder(config.embedding)
    collections = {spec.name: _collection(spec, embedder) for spec in specs}
    fingerprints = {spec.name: spec.fingerprint(embedder.model, embedder.dimensions) for spec in specs}
    tables = {spec.name: spec.qualified_table for spec in specs}
    wanted = open_collections(
        store, ledger, fingerprints, model=embedder.model, dimensions=embedder.dimensions, tables=tables
    )
    feed, decoder = _feed(config, catalog, watched)
    reader = SqlRowReader(
        dsn,
        _second_catalog(config, specs),
        {table.qualified_name: table.oid for table in watched},
        connect_timeout_s=config.source.connect_timeout_s,
    )
    board = PageBoard()
    resync = ResyncRunner(
        ledger=ledger,
        reader=reader,
        board=board,
        estimated_rows=reader.estimated_rows,
        retrier=_retrier(config, stop, health),
        stop=stop,
        rows_per_page=config.resync.rows_per_chunk,
    )
    guard = _guard(config, catalog, ledger, stream, resync, tables)
    server = feed.open()
    guard.prepare(server)
    first_copies(ledger, wanted, fingerprints)
    stream.release(AGENT, ledger.checkpoint(AGENT).offset)
    capture = Capture(
        feed=feed,
        in_transaction=lambda: decoder.in_transaction,
        stream=stream,
        verify=guard.verify,
        expand=board.expand,
        health=health,
        stop=stop,
    )
    indexer = _indexer(config, stop, health, stream, ledger, store, embedder, reader, collections, watched)
    searcher = Searcher(
        store,
        ledger,
        dict.fromkeys(collections, embedder),
        columns={spec.name: spec.metadata for spec in specs},
    )
    return Daemon(
        config=config,
        lock=lock,
        stop=stop,
        health=health,
        catalog=catalog,
        feed=feed,
        stream=stream,
        ledger=ledger,
        embedder=embedder,
        store=store,
        chroma=chroma,
        capture=capture,
        indexer=indexer,
        resync=resync,
        row_reader=reader,
        searcher=searcher,
        specs=specs,
    )


def build_embedder(config: EmbeddingConfig) -> Embedder:
    """The configured model, loaded."""
    if config.backend == "openai":
        from cdc_agent.embedding.openai import OpenAIEmbedder

        assert config.url is not None
        extra = {} if config.max_tokens is None else {"max_tokens": config.max_tokens}
        embedder = OpenAIEmbedder(
            config.url,
            config.model,
            api_key=lambda: config.api_key.get_secret_value() if config.api_key else None,
            dimensions=config.dimensions,
            timeout_s=config.timeout_s,
            **extra,
        )
        _ = embedder.dimensions
        return embedder
    if config.backend == "hashing":
        from cdc_agent.embedding.hashing import HashingEmbedder

        return HashingEmbedder(dimensions=config.dimensions or 64, max_tokens=config.max_tokens or 256)
    from cdc_agent.embedding.sentence_transformers import SentenceTransformersEmbedder

    return SentenceTransformersEmbedder(config.model, device=config.device, batch_tokens=config.batch_tokens)


def build_store(config: Config) -> tuple[VectorStore, ChromaServer | None]:
    """The configured store; with mode managed its server is running when this returns."""
    settings = config.vectorstore
    if settings.backend == "memory":
        from cdc_agent.vectorstore.memory import MemoryStore

        return MemoryStore(), None
    from cdc_agent.vectorstore.chroma import ChromaStore

    if settings.mode == "embedded":
        return ChromaStore.embedded(config.vectorstore_path), None
    if settings.mode == "server":
        store = ChromaStore.http(settings.host, settings.port, timeout_s=settings.timeout_s)
        store.ping()
        return store, None
    server = ChromaServer(config.vectorstore_path, host=settings.host, port=settings.port)
    server.start()
    return ChromaStore.http(settings.host, server.port, timeout_s=settings.timeout_s), server


def _open_source(
    config: Config, specs: tuple[CollectionSpec, ...], ledger: Ledger
) -> tuple[Catalog, list[WatchedTable]]:
    source = config.source
    dsn = source.dsn.get_secret_value()
    tables = sorted({(spec.schema, spec.table) for spec in specs})
    if ledger.identity() is None:
        columns = {table: _needed(specs, table) for table in tables}
        preflight.require(
            preflight.check(
                dsn,
                slot_name=source.slot_name,
                publication_name=source.publication_name,
                plugin=source.plugin,
                tables=tables,
                columns=columns,
            )
        )
    catalog = Catalog(dsn, connect_timeout_s=source.connect_timeout_s)
    watched = catalog.watch(tables)
    _check_predicates(specs, catalog, watched)
    if source.plugin == "pgoutput":
        slot.ensure_publication(
            dsn, name=source.publication_name, tables=tables, table_oids=[table.oid for table in watched]
        )
    return catalog, watched


def _check_predicates(specs: tuple[CollectionSpec, ...], catalog: Catalog, watched: list[WatchedTable]) -> None:
    """A `where` that can never be decided is refused now, not at the first row."""
    oids = {table.qualified_name: table.oid for table in watched}
    for spec in specs:
        info = catalog.by_oid(oids[spec.qualified_table])
        relation = catalog.relation(info) if info else None
        if spec.predicate is not None and relation is not None:
            spec.predicate.check(relation)


def _needed(specs: tuple[CollectionSpec, ...], table: tuple[str, str]) -> frozenset[str]:
    return frozenset().union(*(s.needed_columns for s in specs if (s.schema, s.table) == table))


def _second_catalog(config: Config, specs: tuple[CollectionSpec, ...]) -> Catalog:
    """The row reader runs in other threads than the replication reader and needs a catalog of its own."""
    catalog = Catalog(config.source.dsn.get_secret_value(), connect_timeout_s=config.source.connect_timeout_s)
    catalog.watch(sorted({(spec.schema, spec.table) for spec in specs}))
    return catalog


def _feed(config: Config, catalog: Catalog, watched: list[WatchedTable]) -> tuple[ReplicationFeed, Decoder]:
    source = config.source
    relations = Relations(catalog)
    decoder: PgOutputDecoder | Wal2JsonDecoder
    decoder = PgOutputDecoder(relations.describe) if source.plugin == "pgoutput" else Wal2JsonDecoder(relations.named)
    decoder.assembler.xid_reference = catalog.server()[2]
    feed = ReplicationFeed(
        source.dsn.get_secret_value(),
        slot_name=source.slot_name,
        decoder=decoder,
        options=plugin_options(
            source.plugin,
            publication_name=source.publication_name,
            schemas=frozenset(table.schema for table in watched),
        ),
        status_interval_s=source.status_interval_s,
        connect_timeout_s=source.connect_timeout_s,
    )
    return feed, decoder


def _guard(
    config: Config,
    catalog: Catalog,
    ledger: Ledger,
    stream: Stream,
    resync: ResyncRunner,
    tables: dict[str, str],
) -> SourceGuard:
    def resync_all(reason: str) -> None:
        for table in sorted(set(tables.values())):
            names = tuple(name for name, owner in tables.items() if owner == table)
            resync.request(Resync(table=table, collections=names, reason=reason))

    return SourceGuard(
        dsn=config.source.dsn.get_secret_value(),
        slot_name=config.source.slot_name,
        plugin=config.source.plugin,
        database_oid=catalog.server()[1],
        ledger=ledger,
        stream=stream,
        resync_all=resync_all,
        mend=config.source.on_mismatch == "resync",
    )


def _collection(spec: CollectionSpec, embedder: Embedder) -> Collection:
    limit = min(spec.max_tokens, embedder.max_tokens)
    if spec.overlap_tokens >= limit:
        raise ConfigError(
            f"collection {spec.name}: overlap_tokens {spec.overlap_tokens} leaves no room in chunks of {limit} tokens",
            hint=f"the model reads {embedder.max_tokens} tokens; lower chunking.overlap_tokens",
        )
    if limit < 1:
        raise EmbeddingError(f"the model {embedder.model} reads no tokens", hint="choose another embedding.model")
    return Collection(spec=spec, chunk=Chunker(limit, spec.overlap_tokens, embedder.count_tokens).chunk)


def _retrier(config: Config, stop: threading.Event, health: Health) -> Retrier:
    return Retrier(stop, health, Backoff(initial_s=config.retry.initial_s, maximum_s=config.retry.maximum_s))


def _indexer(
    config: Config,
    stop: threading.Event,
    health: Health,
    stream: Stream,
    ledger: Ledger,
    store: VectorStore,
    embedder: Embedder,
    reader: SqlRowReader,
    collections: dict[str, Collection],
    watched: list[WatchedTable],
) -> Indexer:
    fingerprint = f"{embedder.model}/{embedder.dimensions}"
    oids = {table.qualified_name: table.oid for table in watched}
    planner_retrier = _retrier(config, stop, health)
    return Indexer(
        stream=stream,
        ledger=ledger,
        writer=IndexWriter(agent=AGENT, ledger=ledger, store=store, collections=collections, fingerprint=fingerprint),
        vectorizer=Vectorizer(
            agent=AGENT,
            embedder=embedder,
            ledger=ledger,
            fingerprint=fingerprint,
            retrier=planner_retrier,
            max_attempts=config.retry.max_attempts,
        ),
        row_reader=reader,
        collections=collections,
        root_oids={name: oids[collection.table] for name, collection in collections.items()},
        planner_retrier=planner_retrier,
        writer_retrier=_retrier(config, stop, health),
        stop=stop,
    )
