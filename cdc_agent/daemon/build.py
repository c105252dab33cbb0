"""Wires the daemon. With ``models``, ``making``, ``stores`` and ``sources`` the only place that names backends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from psycopg.conninfo import conninfo_to_dict

from cdc_agent.agents.recent import Recent
from cdc_agent.capture import Capture
from cdc_agent.config import Config
from cdc_agent.daemon.agency import Agency, fresh_search, load_agents, open_agency
from cdc_agent.daemon.audits import verify_runner
from cdc_agent.daemon.consumers import Consumers, resync_targets
from cdc_agent.daemon.feeds import Feeds, open_feeds, read_again
from cdc_agent.daemon.first_copies import FirstCopies
from cdc_agent.daemon.generations import Embedders, planned, remembered_specs
from cdc_agent.daemon.mail import Mail, open_mail
from cdc_agent.daemon.making import audited, indexers, retrier, serving
from cdc_agent.daemon.migrations import Migrations, complete_drops, leave_unconfigured, settle_all
from cdc_agent.daemon.models import build_embedder
from cdc_agent.daemon.mqtt import Listeners, open_listeners
from cdc_agent.daemon.otel import build_traces
from cdc_agent.daemon.readers import Readers
from cdc_agent.daemon.sagas import Sagas, open_sagas
from cdc_agent.daemon.slot_watch import SlotWatch
from cdc_agent.daemon.sources import (
    nothing_hidden,
    open_feed,
    open_source,
    options_of,
    prepare_source,
    row_reader,
    source_guard,
    table_guard,
    verify_source,
    wanted_tables,
)
from cdc_agent.daemon.state_files import open_state
from cdc_agent.daemon.stores import build_store, opened, store_guard, store_watch
from cdc_agent.documents.collection import CollectionSpec
from cdc_agent.health import Health
from cdc_agent.identity import SourceGuard
from cdc_agent.ledger.base import Ledger, Resync
from cdc_agent.marker import first_copies
from cdc_agent.migrate.serving import LiveSearch
from cdc_agent.resync import PageBoard, ResyncRunner
from cdc_agent.signals import Signals
from cdc_agent.source.catalog import Catalog
from cdc_agent.source.replication import ReplicationFeed
from cdc_agent.source.rows import SqlRowReader
from cdc_agent.source.visibility import everything_visible
from cdc_agent.storekeeper import StoreWatch
from cdc_agent.stream.base import Stream
from cdc_agent.tables import TableGuard
from cdc_agent.tracing import Traces
from cdc_agent.vectorstore.base import VectorStore
from cdc_agent.vectorstore.chroma_server import ChromaServer
from cdc_agent.verify.runner import VerifyRunner

__all__ = ["Daemon", "build"]


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
    slot_watch: SlotWatch
    store_watch: StoreWatch
    indexer: Consumers
    recent: Recent
    traces: Traces
    resync: ResyncRunner
    row_reader: Readers
    rereader: SqlRowReader
    #: The oid of each configured table, by its name.
    roots: Mapping[str, int]
    searcher: LiveSearch
    verify: VerifyRunner
    migrations: Migrations
    copies: FirstCopies
    mail: Mail | None
    agency: Agency | None
    feeds: Feeds
    listeners: Listeners
    sagas: Sagas | None

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
    agents = load_agents(config.agents)
    mail = open_mail(config, wanted=bool(config.agents or config.mqtt))
    dsn = config.source.dsn.get_secret_value()
    listeners = open_listeners(config, mail.journal if mail else None, stop)
    feeds = open_feeds(config, ledger, mail.journal if mail else None, stop)
    specs = (*config.table_specs(), *remembered_specs(ledger.generations(), config))
    tables = wanted_tables(specs, agents.tables)
    catalog, watched = open_source(config, tables, specs, ledger)
    store, chroma = build_store(config)
    embedders = Embedders(config.embedding, build_embedder)
    plans = planned(config, ledger, embedders)
    leave_unconfigured(config, ledger, stream)
    settle_all(store, [*ledger.generations(), *(plan.generation for plan in plans)], ledger.uuid)
    complete_drops(store, ledger, stream)
    serve = serving(store, ledger, embedders)
    served = [serve(plan) for plan in plans]
    captures: list[Capture] = []
    keeper = store_guard(config, store, chroma, files, lambda: any(c.streaming.is_set() for c in captures))
    wanted = [copy for one in served for copy in opened(keeper, one)]
    stream.tie(ledger.uuid)
    feed, decoder = open_feed(config, catalog, watched, changed=lambda: shapes.ask())
    # Two: a slow page of a resync must not hold up a live change that needs its row.
    reader, rereader = (row_reader(config, tables, ledger, watched) for _ in range(2))
    board = PageBoard()
    resync = ResyncRunner(
        ledger=ledger,
        reader=reader,
        board=board,
        estimated_rows=reader.estimated_rows,
        retrier=retrier(config, stop, health),
        stop=stop,
        rows_per_page=config.resync.rows_per_chunk,
        caught_up=lambda: _applied(indexer, stream),
        own=feeds.is_table,
    )
    roots = {table.qualified_name: table.oid for table in watched}
    recent = Recent()
    traces = build_traces(config.tracing, f"{config.source.slot_name} {ledger.uuid}")
    make = indexers(config, stream, ledger, store, feeds, rereader, roots, keeper, recent, traces)
    indexer = Consumers(make=make, ledger=ledger, stream=stream, feeds=feeds.streams)
    guard = source_guard(
        config,
        catalog,
        ledger,
        stream,
        resync,
        lambda: indexer.of_tables or [one for one in served if feeds.of(one.collection.table) is None],
        health,
        stop,
        adopt_server=adopt_server,
    )

    def request(table: str, reason: str, predicate: str) -> None:
        for _, names in resync_targets(indexer.working or served, table):
            resync.request_once(Resync(table=table, collections=names, predicate=predicate, reason=reason))

    def follow(oids: Mapping[str, int | None], schemas: frozenset[str]) -> None:
        present = {name: oid for name, oid in oids.items() if oid is not None}
        catalog.follow(present)
        feed.use_options(options_of(config, schemas))
        reader.follow(oids)
        rereader.follow(oids)
        roots.update(present)
        indexer.follow(present)

    shapes = table_guard(config, tables, ledger, health, request, follow, stop)
    identity = ledger.identity()
    prepare_source(guard, shapes, feed)
    # A slot that was made just now has waited for what hides rows; otherwise ``migrations`` waits for that.
    if identity is None or not identity.slot_ready or nothing_hidden(config, wanted):
        first_copies(ledger, wanted, {one.physical: one.generation.fingerprint for one in served})
    for plan in plans:
        ledger.save_generation(plan.generation)
    made_of = {
        one.collection.table: [s.physical for s in served if s.collection.table == one.collection.table]
        for one in served
    }
    read_again(feeds, ledger, made_of)
    for name in sorted({one.generation.agent for one in served}):
        indexer.add(name, [one for one in served if one.generation.agent == name])
    hear = Signals(
        tables=indexer.tables(), request=lambda wanted: [resync.request_once(r) for r in indexer.directed(wanted)]
    ).hear
    capture = Capture(
        feed=feed,
        in_transaction=lambda: decoder.in_transaction,
        stream=stream,
        verify=lambda server: verify_source(guard, shapes, server),
        expand=board.expand,
        hear=hear,
        health=health,
        stop=stop,
        progressed=shapes.progressed,
        reconnect=shapes.reconnect,
        traces=traces,
    )
    captures.append(capture)
    verify = verify_runner(
        ledger=ledger,
        stream=stream,
        store=store,
        reader=Readers(reader, feeds),
        resync=resync,
        watermark=indexer.watermark,
        hurry=lambda: _hurry(capture, indexer),
        collections=lambda: [audited(s, ledger) for s in indexer.served if s.generation.state == "live"],
        retrier=retrier(config, stop, health),
        stop=stop,
        feeds=[(one.reader, indexer.progress_of(one.table)) for one in feeds.feeds],
    )
    copies = FirstCopies(
        consumers=indexer,
        ledger=ledger,
        notify=resync.notify,
        retrier=retrier(config, stop, health),
        visible=lambda: everything_visible(dsn, connect_timeout_s=config.source.connect_timeout_s),
        stop=stop,
    )
    migrations = Migrations(
        consumers=indexer,
        ledger=ledger,
        stream=stream,
        store=store,
        embedders=embedders,
        resync=resync,
        retrier=retrier(config, stop, health),
        copies=copies,
        serve=serve,
        open_store=lambda one: opened(keeper, one),
        forget_store=keeper.forget,
        reload=reload or (lambda: config),
        tables=frozenset([*(table.qualified_name for table in watched), *feeds.streams]),
    )
    searcher = LiveSearch(indexer.targets)
    search = fresh_search(
        searcher,
        indexer.watermark,
        lambda: _hurry(capture, indexer),
        captured=lambda: stream.position().captured_lsn,
    )
    agency = None
    if mail is not None and config.agents:
        agency = open_agency(
            config,
            agents,
            journal=mail.journal,
            desk=mail.desk,
            stream=stream,
            search=search,
            database=str(conninfo_to_dict(dsn).get("dbname") or ""),
            health=health,
            stop=stop,
        )
    sagas = open_sagas(config, agents, mail, search=search, health=health, stop=stop) if mail is not None else None
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
        slot_watch=SlotWatch(dsn, config.source.slot_name, heard=lambda: feed.received_lsn),
        store_watch=store_watch(config, keeper, indexer, chroma, files, health, stop),
        indexer=indexer,
        recent=recent,
        traces=traces,
        resync=resync,
        row_reader=Readers(reader, feeds),
        rereader=rereader,
        roots=roots,
        searcher=searcher,
        verify=verify,
        migrations=migrations,
        copies=copies,
        mail=mail,
        agency=agency,
        feeds=feeds,
        listeners=listeners,
        sagas=sagas,
    )


def _applied(indexer: Consumers, stream: Stream) -> Callable[[], bool]:
    """A question: has everything that is in the stream by now been applied?"""
    head = stream.head_offset()
    return lambda: indexer.watermark.offset >= head


def _hurry(capture: Capture, indexer: Consumers) -> None:
    """Somebody waits for the watermark, which may be behind only because nobody has asked the server."""
    capture.hurry()
    indexer.hurry()
