"""Opens the source: its catalog, the feed, and the guards that say whether streaming may go on."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeAlias

from cdc_agent.config import Config
from cdc_agent.daemon.consumers import Served, resync_targets
from cdc_agent.documents.collection import CollectionSpec
from cdc_agent.errors import SlotBusy, SourceUnavailable
from cdc_agent.health import Health
from cdc_agent.identity import Place, SourceGuard
from cdc_agent.ledger.base import Ledger, Resync
from cdc_agent.resync import ResyncRunner
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
from cdc_agent.stream.base import Stream
from cdc_agent.tables import Follow, GuardedTable, TableGuard

__all__ = [
    "known_oids",
    "nothing_hidden",
    "open_feed",
    "open_source",
    "options_of",
    "prepare_source",
    "row_reader",
    "source_guard",
    "table_guard",
    "verify_source",
    "wanted_tables",
]

log = logging.getLogger(__name__)

#: Seconds to wait for transactions that are older than a new slot, and between two looks at them.
_SETTLE_S = 300.0
_SETTLE_POLL_S = 0.05


#: The columns that are needed of each table, by schema and name.
Tables: TypeAlias = Mapping[tuple[str, str], frozenset[str]]


def wanted_tables(
    specs: tuple[CollectionSpec, ...], listened: Collection[str]
) -> dict[tuple[str, str], frozenset[str]]:
    """Those of the collections, and those (``schema.table``) whose changes somebody listens to."""
    tables: dict[tuple[str, str], frozenset[str]] = {
        (schema, name): frozenset() for schema, _, name in (table.partition(".") for table in listened)
    }
    for spec in specs:
        place = (spec.schema, spec.table)
        tables[place] = tables.get(place, frozenset()) | spec.needed_columns
    return dict(sorted(tables.items()))


def open_source(
    config: Config, wanted: Tables, specs: tuple[CollectionSpec, ...], ledger: Ledger
) -> tuple[Catalog, list[WatchedTable]]:
    source = config.source
    dsn = source.dsn.get_secret_value()
    tables = list(wanted)
    if ledger.identity() is None:
        preflight.require(
            preflight.check(
                dsn,
                slot_name=source.slot_name,
                publication_name=source.publication_name,
                plugin=source.plugin,
                tables=tables,
                columns=wanted,
            )
        )
    catalog = Catalog(dsn, connect_timeout_s=source.connect_timeout_s)
    known = known_oids(ledger)
    watched = catalog.watch(tables, known)
    _check_predicates(specs, catalog, watched)
    if source.plugin == "pgoutput":
        # One that is gone is another one when it is made again: that is for the guard. So is a table that left it.
        _publish(config, [table for table in watched if table.qualified_name not in known], create=False)
    return catalog, watched


def known_oids(ledger: Ledger) -> dict[str, int]:
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


def _second_catalog(config: Config, wanted: Tables, known: dict[str, int]) -> Catalog:
    """The row reader runs in other threads than the replication reader and needs a catalog of its own."""
    catalog = Catalog(config.source.dsn.get_secret_value(), connect_timeout_s=config.source.connect_timeout_s)
    catalog.watch(list(wanted), known)
    return catalog


def row_reader(config: Config, wanted: Tables, ledger: Ledger, watched: Sequence[WatchedTable]) -> SqlRowReader:
    return SqlRowReader(
        config.source.dsn.get_secret_value(),
        _second_catalog(config, wanted, known_oids(ledger)),
        {table.qualified_name: table.oid for table in watched},
        connect_timeout_s=config.source.connect_timeout_s,
    )


def open_feed(
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
        options=options_of(config, frozenset(table.schema for table in watched)),
        status_interval_s=source.status_interval_s,
        connect_timeout_s=source.connect_timeout_s,
    )
    return feed, decoder


def _publish(config: Config, watched: list[WatchedTable], *, create: bool) -> None:
    slot.ensure_publication(
        config.source.dsn.get_secret_value(),
        name=config.source.publication_name,
        tables=[(table.schema, table.name) for table in watched],
        table_oids=[table.oid for table in watched],
        create=create,
    )


def options_of(config: Config, schemas: frozenset[str]) -> dict[str, str]:
    source = config.source
    return plugin_options(source.plugin, publication_name=source.publication_name, schemas=schemas)


def table_guard(
    config: Config,
    wanted: Tables,
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
        tables=[GuardedTable(schema=schema, name=name, used=used) for (schema, name), used in wanted.items()],
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


def source_guard(
    config: Config,
    catalog: Catalog,
    ledger: Ledger,
    stream: Stream,
    resync: ResyncRunner,
    kept: Callable[[], Sequence[Served]],
    health: Health,
    stop: threading.Event,
    *,
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
            settle=lambda: _settle(config, stop),
        ),
        ledger=ledger,
        stream=stream,
        resync_all=resync_all,
        mend=source.on_mismatch == "resync",
        adopt=adopt_server,
        health=health,
    )


def _settle(config: Config, stop: threading.Event) -> None:
    """Wait until every transaction of now has ended, and every SELECT sees that."""
    source = config.source
    visible = everything_visible(source.dsn.get_secret_value(), connect_timeout_s=source.connect_timeout_s)
    deadline = time.monotonic() + _SETTLE_S
    log.info("waiting for transactions that are older than the slot")
    while not visible():
        if stop.wait(_SETTLE_POLL_S) or time.monotonic() >= deadline:
            raise SourceUnavailable(
                "transactions that are older than the slot have not ended",
                hint="finish or terminate those sessions (a standby that does not answer holds them, too)",
            )


def nothing_hidden(config: Config, wanted: Sequence[Resync]) -> bool:
    """Whether every row that the log may have passed can be read by now, so that what is ``wanted`` may begin."""
    if not wanted:
        return True
    source = config.source
    visible = everything_visible(source.dsn.get_secret_value(), connect_timeout_s=source.connect_timeout_s)()
    if not visible:
        log.info("first copies wait for transactions that are under way collections=%d", len(wanted))
    return visible


def prepare_source(guard: SourceGuard, shapes: TableGuard, feed: ReplicationFeed) -> None:
    server = feed.open()
    try:
        guard.prepare(server)
        shapes.prepare(server.flush_lsn)
    except SlotBusy as exc:
        # What we have is served; capture goes on asking for the slot.
        log.warning("standby: %s", exc.message)


def verify_source(guard: SourceGuard, shapes: TableGuard, server: ServerIdentity) -> None:
    guard.verify(server)
    shapes.verify(server.flush_lsn)
