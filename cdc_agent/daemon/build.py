"""Wires the daemon: the only place that names concrete backends, so heavy libraries load where configured."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cdc_agent import metrics
from cdc_agent.agents.indexer import Indexer
from cdc_agent.agents.planning import Collection
from cdc_agent.agents.vectors import Vectorizer
from cdc_agent.agents.writing import IndexWriter
from cdc_agent.capture import Capture
from cdc_agent.config import Config, EmbeddingConfig
from cdc_agent.daemon.audits import verify_runner
from cdc_agent.daemon.consumers import Consumers, MakeIndexer, Served, resync_targets
from cdc_agent.daemon.generations import Embedders, Planned, planned, remembered_specs
from cdc_agent.daemon.migrations import Migrations, complete_drops, leave_unconfigured, settle_all
from cdc_agent.daemon.state_files import StateFiles, open_state
from cdc_agent.documents.chunking import Chunker
from cdc_agent.documents.collection import CollectionSpec
from cdc_agent.embedding.base import Embedder
from cdc_agent.errors import ConfigError, EmbeddingError, IdentityMismatch, SlotBusy, VectorStoreError
from cdc_agent.health import Health
from cdc_agent.identity import Place, SourceGuard
from cdc_agent.ledger.base import Ledger, Resync
from cdc_agent.marker import first_copies, marker_of
from cdc_agent.migrate.serving import LiveSearch, Target
from cdc_agent.resync import PageBoard, ResyncRunner
from cdc_agent.retry import Backoff, Retrier
from cdc_agent.search import Searcher
from cdc_agent.signals import Signals
from cdc_agent.source import preflight, slot
from cdc_agent.source.base import Decoder
from cdc_agent.source.catalog import Catalog, WatchedTable
from cdc_agent.source.pgoutput import PgOutputDecoder
from cdc_agent.source.relations import Relations
from cdc_agent.source.replication import ReplicationFeed, ServerIdentity, plugin_options
from cdc_agent.source.rows import SqlRowReader
from cdc_agent.source.shape import ShapeReader, TableShape
from cdc_agent.source.visibility import everything_visible
from cdc_agent.source.wal2json import Wal2JsonDecoder
from cdc_agent.sqlite_file import file_is_damaged, put_aside
from cdc_agent.storekeeper import Kept, StoreGuard, StoreWatch, store_damaged
from cdc_agent.stream.base import Stream
from cdc_agent.tables import Follow, GuardedTable, TableGuard
from cdc_agent.vectorstore.base import VectorStore
from cdc_agent.vectorstore.chroma_server import ChromaServer
from cdc_agent.vectorstore.watched import WatchedStore
from cdc_agent.verify.ends import Audited
from cdc_agent.verify.runner import VerifyRunner

__all__ = ["Daemon", "build", "build_embedder", "build_store", "collection_of"]

log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class Daemon:
    """Everything that runs, wired and not yet started."""

    config: Config
    stop: threading.Event
    health: Health
    catalog: Catalog
    feed: ReplicationFeed
    stream: Stream
    ledger: Ledger
    embedders: Embedders
    store: VectorStore
    chroma: ChromaServer | None
    capture: Capture
    guard: SourceGuard
    shapes: TableGuard
    store_watch: StoreWatch
    indexer: Consumers
    resync: ResyncRunner
    row_reader: SqlRowReader
    searcher: LiveSearch
    verify: VerifyRunner
    migrations: Migrations

    @property
    def specs(self) -> list[CollectionSpec]:
        """What answers searches now, each under the name that ledger and store know it by."""
        return [s.collection.spec for s in self.indexer.served if s.generation.state == "live"]


def build(
    config: Config,
    stop: threading.Event,
    *,
    adopt_server: bool = False,
    reload: Callable[[], Config] | None = None,
) -> Daemon:
    """Open every end, check that they belong together, and wire the rooms. Call from the main thread, holding the
    state folder.

    Raises ``CdcAgentError`` with a hint for anything that is wrong; what was opened by then ends with the process.
    """
    health = Health()
    files = open_state(config)
    ledger, stream = files.ledger, files.stream
    dsn = config.source.dsn.get_secret_value()
    specs = (*config.collection_specs(), *remembered_specs(ledger.generations(), config))
    catalog, watched = _open_source(config, specs, ledger)
    store, chroma = build_store(config)
    embedders = Embedders(config.embedding, build_embedder)
    plans = planned(config, ledger, embedders)
    leave_unconfigured(config, ledger, stream)
    settle_all(store, [*ledger.generations(), *(plan.generation for plan in plans)], ledger.uuid)
    complete_drops(store, ledger, stream)
    serve = _serving(store, ledger, embedders)
    served = [serve(plan) for plan in plans]
    keeper = _store_guard(config, store, chroma, files)
    wanted = [copy for one in served for copy in _opened(keeper, one)]
    stream.tie(ledger.uuid)
    feed, decoder = _feed(config, catalog, watched, changed=lambda: shapes.ask())
    reader = SqlRowReader(
        dsn,
        _second_catalog(config, specs, _known(ledger)),
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
        caught_up=lambda: _applied(indexer, stream),
    )
    roots = {table.qualified_name: table.oid for table in watched}
    make = _indexers(config, stream, ledger, store, reader, roots, keeper)
    indexer = Consumers(make=make, ledger=ledger, stream=stream)
    guard = _guard(config, catalog, ledger, stream, resync, lambda: indexer.served or served, health, adopt_server)

    def request(table: str, reason: str, predicate: str) -> None:
        for _, names in resync_targets(indexer.served or served, table):
            resync.request_once(Resync(table=table, collections=names, predicate=predicate, reason=reason))

    def follow(oids: Mapping[str, int | None], schemas: frozenset[str]) -> None:
        present = {name: oid for name, oid in oids.items() if oid is not None}
        catalog.follow(present)
        feed.use_options(_options(config, schemas))
        reader.follow(oids)
        roots.update(present)
        indexer.follow(present)

    shapes = _table_guard(config, specs, ledger, health, request, follow, stop)
    _prepare(guard, shapes, feed)
    first_copies(ledger, wanted, {one.physical: one.generation.fingerprint for one in served})
    for plan in plans:
        ledger.save_generation(plan.generation)
    for name in sorted({one.generation.agent for one in served}):
        indexer.add(name, [one for one in served if one.generation.agent == name])
    capture = Capture(
        feed=feed,
        in_transaction=lambda: decoder.in_transaction,
        stream=stream,
        verify=lambda server: _verify(guard, shapes, server),
        expand=board.expand,
        hear=Signals(
            tables=indexer.tables(), request=lambda wanted: [resync.request_once(r) for r in indexer.directed(wanted)]
        ).hear,
        health=health,
        stop=stop,
        progressed=shapes.progressed,
        reconnect=shapes.reconnect,
    )
    verify = verify_runner(
        ledger=ledger,
        stream=stream,
        store=store,
        reader=reader,
        resync=resync,
        watermark=indexer.watermark,
        hurry=lambda: _hurry(capture, indexer),
        collections=lambda: [_audited(s, ledger) for s in indexer.served if s.generation.state == "live"],
        retrier=_retrier(config, stop, health),
        stop=stop,
    )
    migrations = Migrations(
        consumers=indexer,
        ledger=ledger,
        stream=stream,
        store=store,
        embedders=embedders,
        resync=resync,
        retrier=_retrier(config, stop, health),
        visible=lambda: everything_visible(dsn, connect_timeout_s=config.source.connect_timeout_s),
        serve=serve,
        open_store=lambda one: _opened(keeper, one),
        forget_store=keeper.forget,
        reload=reload or (lambda: config),
        tables=frozenset(table.qualified_name for table in watched),
        stop=stop,
    )
    return Daemon(
        config=config,
        stop=stop,
        health=health,
        catalog=catalog,
        feed=feed,
        stream=stream,
        ledger=ledger,
        embedders=embedders,
        store=store,
        chroma=chroma,
        capture=capture,
        guard=guard,
        shapes=shapes,
        store_watch=_store_watch(config, keeper, indexer, chroma, files, health, stop),
        indexer=indexer,
        resync=resync,
        row_reader=reader,
        searcher=LiveSearch(indexer.targets),
        verify=verify,
        migrations=migrations,
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

    mend = config.source.on_mismatch == "resync"
    if settings.mode == "embedded":
        if file_is_damaged(config.vectorstore_path / "chroma.sqlite3"):
            _put_store_aside(config.vectorstore_path, mend=mend)
        return ChromaStore.embedded(config.vectorstore_path), None
    if settings.mode == "server":
        store = ChromaStore.http(settings.host, settings.port, timeout_s=settings.timeout_s)
        store.ping()
        return store, None
    server = ChromaServer(config.vectorstore_path, host=settings.host, port=settings.port)
    try:
        server.start()
    except VectorStoreError:
        if not server.damaged():
            raise
        _put_store_aside(server.path, mend=mend)
        server.start()
    return ChromaStore.http(settings.host, server.port, timeout_s=settings.timeout_s), server


def _put_store_aside(folder: Path, *, mend: bool) -> None:
    damaged = store_damaged(folder)
    if not mend:
        metrics.MISMATCH.labels(state=damaged.state).set(1)
        raise damaged
    log.warning("mending state=%s why=%s", damaged.state, damaged.message)
    log.warning("store put aside folder=%s", put_aside(folder))


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
    known = _known(ledger)
    watched = catalog.watch(tables, known)
    _check_predicates(specs, catalog, watched)
    if source.plugin == "pgoutput":
        # One that is gone is another one when it is made again: that is for the guard. So is a table that left it.
        _publish(config, [table for table in watched if table.qualified_name not in known], create=False)
    return catalog, watched


def _known(ledger: Ledger) -> dict[str, int]:
    """The oids that tables were known by: they may have other names now."""
    return {name: table.oid for name, table in ledger.source_tables().items()}


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


def _second_catalog(config: Config, specs: tuple[CollectionSpec, ...], known: dict[str, int]) -> Catalog:
    """The row reader runs in other threads than the replication reader and needs a catalog of its own."""
    catalog = Catalog(config.source.dsn.get_secret_value(), connect_timeout_s=config.source.connect_timeout_s)
    catalog.watch(sorted({(spec.schema, spec.table) for spec in specs}), known)
    return catalog


def _feed(
    config: Config, catalog: Catalog, watched: list[WatchedTable], changed: Callable[[], None]
) -> tuple[ReplicationFeed, Decoder]:
    source = config.source
    relations = Relations(catalog, changed)
    decoder: PgOutputDecoder | Wal2JsonDecoder
    decoder = PgOutputDecoder(relations.describe) if source.plugin == "pgoutput" else Wal2JsonDecoder(relations.named)
    decoder.assembler.xid_reference = catalog.server()[2]
    feed = ReplicationFeed(
        source.dsn.get_secret_value(),
        slot_name=source.slot_name,
        decoder=decoder,
        options=_options(config, frozenset(table.schema for table in watched)),
        status_interval_s=source.status_interval_s,
        connect_timeout_s=source.connect_timeout_s,
    )
    return feed, decoder


def _applied(indexer: Consumers, stream: Stream) -> Callable[[], bool]:
    """A question: has everything that is in the stream by now been applied?"""
    head = stream.head_offset()
    return lambda: indexer.watermark.offset >= head


def _publish(config: Config, watched: list[WatchedTable], *, create: bool) -> None:
    slot.ensure_publication(
        config.source.dsn.get_secret_value(),
        name=config.source.publication_name,
        tables=[(table.schema, table.name) for table in watched],
        table_oids=[table.oid for table in watched],
        create=create,
    )


def _prepare(guard: SourceGuard, shapes: TableGuard, feed: ReplicationFeed) -> None:
    server = feed.open()
    try:
        guard.prepare(server)
        shapes.prepare(server.flush_lsn)
    except SlotBusy as exc:
        # What we have is served; capture goes on asking for the slot.
        log.warning("standby: %s", exc.message)


def _verify(guard: SourceGuard, shapes: TableGuard, server: ServerIdentity) -> None:
    guard.verify(server)
    shapes.verify(server.flush_lsn)


def _options(config: Config, schemas: frozenset[str]) -> dict[str, str]:
    source = config.source
    return plugin_options(source.plugin, publication_name=source.publication_name, schemas=schemas)


def _table_guard(
    config: Config,
    specs: tuple[CollectionSpec, ...],
    ledger: Ledger,
    health: Health,
    request: Callable[[str, str, str], None],
    follow: Follow,
    stop: threading.Event,
) -> TableGuard:
    source = config.source
    dsn = source.dsn.get_secret_value()
    publishes = source.plugin == "pgoutput"

    def publish(table: TableShape) -> None:
        slot.ensure_publication(
            dsn,
            name=source.publication_name,
            tables=[(table.root.schema, table.root.name)],
            table_oids=[table.oid],
            create=False,
        )

    return TableGuard(
        tables=[
            GuardedTable(schema=schema, name=name, used=_needed(specs, (schema, name)))
            for schema, name in sorted({(spec.schema, spec.table) for spec in specs})
        ],
        shapes=ShapeReader(
            dsn,
            publication=source.publication_name if publishes else None,
            connect_timeout_s=source.connect_timeout_s,
        ),
        ledger=ledger,
        health=health,
        request=request,
        publish=publish if publishes else None,
        publish_hint=lambda table: slot.adding(source.publication_name, table.root.schema, table.root.name),
        follow=follow,
        mend=source.on_mismatch == "resync",
        interval_s=source.schema_check_interval_s,
        stop=stop,
    )


def _guard(
    config: Config,
    catalog: Catalog,
    ledger: Ledger,
    stream: Stream,
    resync: ResyncRunner,
    kept: Callable[[], Sequence[Served]],
    health: Health,
    adopt_server: bool,
) -> SourceGuard:
    source = config.source

    def resync_all(reason: str) -> None:
        # One that has not begun sees all that one which begins now would see.
        waiting = {
            (r.table, r.collections)
            for r in ledger.resyncs(running_only=True)
            if r.snapshot is None and r.reason == reason and not r.keys and not r.predicate
        }
        for table, names in resync_targets(kept()):
            if (table, names) not in waiting:
                resync.request(Resync(table=table, collections=names, reason=reason))

    return SourceGuard(
        Place(
            dsn=source.dsn.get_secret_value(),
            slot_name=source.slot_name,
            plugin=source.plugin,
            database_oid=catalog.server()[1],
            publication=source.publication_name if source.plugin == "pgoutput" else "",
            publish=lambda: _publish(config, catalog.present(), create=True),
        ),
        ledger=ledger,
        stream=stream,
        resync_all=resync_all,
        mend=source.on_mismatch == "resync",
        adopt=adopt_server,
        health=health,
    )


def _serving(store: VectorStore, ledger: Ledger, embedders: Embedders) -> Callable[[Planned], Served]:
    def serve(plan: Planned) -> Served:
        embedder = embedders.of(plan.embedding)
        name = plan.generation.physical
        searcher = Searcher(store, ledger, {name: embedder}, columns={name: plan.spec.metadata})
        return Served(
            generation=plan.generation,
            collection=collection_of(plan.spec, embedder),
            embedding=plan.embedding,
            embedder=embedder,
            target=Target(physical=name, searcher=searcher),
        )

    return serve


def _store_guard(config: Config, store: VectorStore, chroma: ChromaServer | None, files: StateFiles) -> StoreGuard:
    def begin_afresh() -> bool:
        if chroma is None or not chroma.damaged():
            return False
        chroma.renew()
        return True

    source = config.source
    # A slot that a new ledger finds is what is left of an older life.
    is_new = files.ledger.identity() is None
    left = is_new and slot.describe(source.dsn.get_secret_value(), source.slot_name) is not None
    return StoreGuard(
        store=store,
        ledger=files.ledger,
        mend=source.on_mismatch == "resync",
        new_life=files.new_life or left,
        predecessor=files.predecessor,
        begin_afresh=begin_afresh,
    )


def _store_watch(
    config: Config,
    keeper: StoreGuard,
    indexer: Consumers,
    chroma: ChromaServer | None,
    files: StateFiles,
    health: Health,
    stop: threading.Event,
) -> StoreWatch:
    mend = config.source.on_mismatch == "resync"

    def damaged() -> IdentityMismatch | None:
        if chroma is not None and chroma.dies_young and chroma.damaged():
            if not mend:
                return store_damaged(chroma.path)
            chroma.renew()
        return files.damage

    return StoreWatch(
        guard=keeper,
        names=lambda: [one.physical for one in indexer.served],
        rebuild=indexer.rebuild,
        damaged=damaged,
        health=health,
        mend=mend,
        stop=stop,
    )


def _opened(keeper: StoreGuard, served: Served) -> list[Resync]:
    """Open one generation in the store; returns its first copy if that is to be made now."""
    name, table = served.physical, served.collection.table
    is_new = keeper.open(
        Kept(
            name=name,
            table=table,
            fingerprint=served.generation.fingerprint,
            model=served.embedder.model,
            dimensions=served.embedder.dimensions,
        )
    )
    # What is built beside another one is copied later (see ``migrations``).
    live = served.generation.state == "live"
    return [Resync(table=table, collections=(name,), reason="first copy")] if is_new and live else []


def collection_of(spec: CollectionSpec, embedder: Embedder) -> Collection:
    limit = min(spec.max_tokens, embedder.max_tokens)
    if spec.overlap_tokens >= limit:
        raise ConfigError(
            f"collection {spec.name}: overlap_tokens {spec.overlap_tokens} leaves no room in chunks of {limit} tokens",
            hint=f"the model reads {embedder.max_tokens} tokens; lower chunking.overlap_tokens",
        )
    if limit < 1:
        raise EmbeddingError(f"the model {embedder.model} reads no tokens", hint="choose another embedding.model")
    return Collection(spec=spec, chunk=Chunker(limit, spec.overlap_tokens, embedder.count_tokens).chunk)


def _audited(served: Served, ledger: Ledger) -> Audited:
    model, dimensions = served.embedder.model, served.embedder.dimensions
    fingerprint = served.generation.fingerprint
    return Audited(
        name=served.physical,
        configured=served.generation.collection,
        collection=served.collection,
        embedder=served.embedder,
        fingerprint=f"{model}/{dimensions}",
        marker=marker_of(ledger, model=model, dimensions=dimensions, fingerprint=fingerprint),
    )


def _hurry(capture: Capture, indexer: Consumers) -> None:
    """Somebody waits for the watermark, which may be behind only because nobody has asked the server."""
    capture.hurry()
    indexer.hurry()


def _retrier(config: Config, stop: threading.Event, health: Health) -> Retrier:
    return Retrier(stop, health, Backoff(initial_s=config.retry.initial_s, maximum_s=config.retry.maximum_s))


def _indexers(
    config: Config,
    stream: Stream,
    ledger: Ledger,
    store: VectorStore,
    reader: SqlRowReader,
    roots: Mapping[str, int],
    keeper: StoreGuard,
) -> MakeIndexer:

    def make(agent: str, served: Sequence[Served], stop: threading.Event, health: Health) -> Indexer:
        # All generations of one agent are of one model (see ``generations``).
        embedder = served[0].embedder
        fingerprint = f"{embedder.model}/{embedder.dimensions}"
        collections = {one.physical: one.collection for one in served}
        planner_retrier = _retrier(config, stop, health)
        return Indexer(
            stream=stream,
            ledger=ledger,
            writer=IndexWriter(
                agent=agent,
                ledger=ledger,
                store=WatchedStore(store),
                collections=collections,
                fingerprint=fingerprint,
            ),
            vectorizer=Vectorizer(
                agent=agent,
                embedder=embedder,
                ledger=ledger,
                fingerprint=fingerprint,
                retrier=planner_retrier,
                max_attempts=config.retry.max_attempts,
            ),
            row_reader=reader,
            collections=collections,
            root_oids={name: roots[collection.table] for name, collection in collections.items()},
            planner_retrier=planner_retrier,
            writer_retrier=_retrier(config, stop, health),
            stop=stop,
            mender=keeper,
            agent=agent,
        )

    return make
