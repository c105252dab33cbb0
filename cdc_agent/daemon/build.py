"""Wires the daemon. With ``ledgers``, ``models``, ``making``, ``stores`` and ``sources`` it alone names backends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence

from psycopg.conninfo import conninfo_to_dict

from cdc_agent.agents.recent import Recent
from cdc_agent.capture import Capture
from cdc_agent.config import Config
from cdc_agent.daemon.agency import Agency, fresh_search, load_agents, open_agency
from cdc_agent.daemon.audits import verify_runner
from cdc_agent.daemon.consumers import Consumers, Served, resync_targets
from cdc_agent.daemon.feeds import open_feeds, read_again
from cdc_agent.daemon.first_copies import FirstCopies
from cdc_agent.daemon.generations import Embedders, planned, remembered_specs
from cdc_agent.daemon.ledgers import refuse_to_follow_itself, wait_for_its_server
from cdc_agent.daemon.mail import open_mail
from cdc_agent.daemon.making import audited, indexers, retrier, serving
from cdc_agent.daemon.migrations import Migrations, complete_drops, leave_unconfigured, settle_all
from cdc_agent.daemon.models import build_embedder
from cdc_agent.daemon.mqtt import open_listeners
from cdc_agent.daemon.otel import build_traces
from cdc_agent.daemon.parts import Daemon
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
from cdc_agent.health import Health
from cdc_agent.ledger.base import Resync
from cdc_agent.marker import first_copies
from cdc_agent.migrate.serving import LiveSearch
from cdc_agent.resync import PageBoard, ResyncRunner
from cdc_agent.retry import Retrier
from cdc_agent.signals import Signals
from cdc_agent.source.visibility import everything_visible
from cdc_agent.storekeeper import Reach, Reached
from cdc_agent.stream.base import Stream
from cdc_agent.vectorstore.wear import Wear

__all__ = ["build"]


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
    wiring = _Wiring(config, stop, adopt_server=adopt_server, reload=reload or (lambda: config))
    wiring.open_state()
    wiring.open_source()
    wiring.open_store()
    wiring.wire_reading()
    wiring.wire_index()
    wiring.wire_guards()
    wiring.take_places()
    wiring.wire_capture()
    wiring.wire_upkeep()
    wiring.wire_reactions()
    return wiring.daemon()


class _Wiring:
    """A daemon on its way: each step makes parts out of those of the steps before it, in the order of ``build``.

    A part that asks for one of a later step does so through ``self``, once all of them run.
    """

    def __init__(
        self, config: Config, stop: threading.Event, *, adopt_server: bool, reload: Callable[[], Config]
    ) -> None:
        self._config = config
        self._stop = stop
        self._adopt_server = adopt_server
        self._reload = reload
        self._dsn = config.source.dsn.get_secret_value()
        self._health = Health()
        self._recent = Recent()
        self._board = PageBoard()
        self._wear = Wear()
        self._capture: Capture | None = None

    # -- ends -------------------------------------------------------------------------------------------------

    def open_state(self) -> None:
        """What lies in the state folder."""
        config = self._config
        refuse_to_follow_itself(config)
        self._files = open_state(config)
        self._ledger, self._stream = self._files.ledger, self._files.stream
        wait_for_its_server(self._ledger, self._retrier())
        self._agents = load_agents(config.agents)
        self._mail = open_mail(config, wanted=bool(config.agents or config.mqtt))
        journal = self._mail.journal if self._mail else None
        self._listeners = open_listeners(config, journal, self._stop)
        self._feeds = open_feeds(config, self._ledger, journal, self._stop)

    def open_source(self) -> None:
        """The database, and the tables in it that anybody wants."""
        config, ledger = self._config, self._ledger
        specs = (*config.table_specs(), *remembered_specs(ledger.generations(), config))
        self._tables = wanted_tables(specs, self._agents.tables)
        self._catalog, self._watched = open_source(config, self._tables, specs, ledger)
        self._roots = {table.qualified_name: table.oid for table in self._watched}

    def open_store(self) -> None:
        """The store, the models, and the generations that are kept."""
        config, ledger, stream = self._config, self._ledger, self._stream
        self._store, self._chroma = build_store(config)
        self._embedders = Embedders(config.embedding, build_embedder)
        self._plans = planned(config, ledger, self._embedders)
        leave_unconfigured(config, ledger, stream)
        settle_all(self._store, [*ledger.generations(), *(plan.generation for plan in self._plans)], ledger.uuid)
        complete_drops(self._store, ledger, stream)
        self._serve = serving(self._store, ledger, self._embedders)
        self._served = [self._serve(plan) for plan in self._plans]
        self._keeper = store_guard(config, self._store, self._chroma, self._files, self._streams)
        self._wanted = [copy for one in self._served for copy in opened(self._keeper, one)]
        stream.tie(ledger.uuid)

    def _streams(self) -> bool:
        return self._capture is not None and self._capture.streaming.is_set()

    # -- loops ------------------------------------------------------------------------------------------------

    def wire_reading(self) -> None:
        """The log of the database, and its rows."""
        config, ledger, tables, watched = self._config, self._ledger, self._tables, self._watched
        self._feed, self._decoder = open_feed(config, self._catalog, watched, changed=lambda: self._shapes.ask())
        # Two: a slow page of a resync must not hold up a live change that needs its row.
        self._reader, self._rereader = (row_reader(config, tables, ledger, watched) for _ in range(2))
        self._resync = ResyncRunner(
            ledger=ledger,
            reader=self._reader,
            board=self._board,
            estimated_rows=self._reader.estimated_rows,
            retrier=self._retrier(),
            stop=self._stop,
            rows_per_page=config.resync.rows_per_chunk,
            caught_up=lambda: _applied(self._indexer, self._stream),
            own=self._feeds.is_table,
        )

    def _retrier(self) -> Retrier:
        return retrier(self._config, self._stop, self._health)

    def wire_index(self) -> None:
        """Who keeps the index."""
        config, ledger = self._config, self._ledger
        self._traces = build_traces(config.tracing, f"{config.source.slot_name} {ledger.uuid}")
        make = indexers(
            config,
            self._stream,
            ledger,
            self._store,
            self._feeds,
            self._rereader,
            self._roots,
            self._keeper,
            self._recent,
            self._traces,
            self._wear,
        )
        self._indexer = Consumers(make=make, ledger=ledger, stream=self._stream, feeds=self._feeds.streams)

    def wire_guards(self) -> None:
        """Who looks whether the source is still what it was."""
        config, ledger = self._config, self._ledger
        self._guard = source_guard(
            config,
            self._catalog,
            ledger,
            self._stream,
            self._resync,
            self._kept_of_tables,
            self._health,
            self._stop,
            adopt_server=self._adopt_server,
        )
        self._shapes = table_guard(
            config, self._tables, ledger, self._health, self._read_again, self._follow, self._stop
        )

    def _kept_of_tables(self) -> Sequence[Served]:
        feeds = self._feeds
        return self._indexer.of_tables or [one for one in self._served if feeds.of(one.collection.table) is None]

    def _read_again(self, table: str, reason: str, predicate: str) -> None:
        for _, names in resync_targets(self._indexer.working or self._served, table):
            wanted = Resync(table=table, collections=names, predicate=predicate, reason=reason)
            self._resync.request_once(wanted)

    def _follow(self, oids: Mapping[str, int | None], schemas: frozenset[str]) -> None:
        present = {name: oid for name, oid in oids.items() if oid is not None}
        self._catalog.follow(present)
        self._feed.use_options(options_of(self._config, schemas))
        self._reader.follow(oids)
        self._rereader.follow(oids)
        self._roots.update(present)
        self._indexer.follow(present)

    # -- the start --------------------------------------------------------------------------------------------

    def take_places(self) -> None:
        """Our place in the log of the database, and that of each consumer in the stream; copies that are due."""
        ledger, served = self._ledger, self._served
        identity = ledger.identity()
        prepare_source(self._guard, self._shapes, self._feed)
        # A slot that was made just now has waited for what hides rows; otherwise ``migrations`` waits for that.
        if identity is None or not identity.slot_ready or nothing_hidden(self._config, self._wanted):
            first_copies(ledger, self._wanted, {one.physical: one.generation.fingerprint for one in served})
        for plan in self._plans:
            ledger.save_generation(plan.generation)
        made_of = {
            one.collection.table: [s.physical for s in served if s.collection.table == one.collection.table]
            for one in served
        }
        read_again(self._feeds, ledger, made_of)
        for name in sorted({one.generation.agent for one in served}):
            self._indexer.add(name, [one for one in served if one.generation.agent == name])

    def wire_capture(self) -> None:
        """From the log of the database into the stream."""
        guard, shapes, decoder = self._guard, self._shapes, self._decoder
        self._capture = Capture(
            feed=self._feed,
            in_transaction=lambda: decoder.in_transaction,
            stream=self._stream,
            verify=lambda server: verify_source(guard, shapes, server),
            expand=self._board.expand,
            hear=Signals(tables=self._indexer.tables(), request=self._request_all).hear,
            health=self._health,
            stop=self._stop,
            progressed=shapes.progressed,
            reconnect=shapes.reconnect,
            traces=self._traces,
        )

    def _request_all(self, wanted: Resync) -> list[Resync]:
        return [self._resync.request_once(one) for one in self._indexer.directed(wanted)]

    def _hurry(self) -> None:
        """Somebody waits for the watermark, which may be behind only because nobody has asked the server."""
        if self._capture is not None:
            self._capture.hurry()
        self._indexer.hurry()

    # -- what is asked for by people and agents ---------------------------------------------------------------

    def wire_upkeep(self) -> None:
        """Audits, first copies and migrations."""
        indexer, ledger, feeds = self._indexer, self._ledger, self._feeds
        self._verify = verify_runner(
            ledger=ledger,
            stream=self._stream,
            store=self._store,
            reader=Readers(self._reader, feeds),
            resync=self._resync,
            watermark=indexer.watermark,
            hurry=self._hurry,
            collections=lambda: [audited(s, ledger) for s in indexer.served if s.generation.state == "live"],
            retrier=self._retrier(),
            stop=self._stop,
            feeds=[(one.reader, indexer.progress_of(one.table)) for one in feeds.feeds],
        )
        reader = Readers(self._reader, feeds)
        self._reach = Reach(
            ledger=ledger,
            store=self._store,
            wear=self._wear,
            collections=lambda: [Reached(one.physical, one.collection.table) for one in indexer.working],
            key_columns=lambda table: len(reader.key_names(table)),
            request=self._resync.request,
            stop=self._stop,
        )
        connect_timeout_s = self._config.source.connect_timeout_s
        self._copies = FirstCopies(
            consumers=indexer,
            ledger=ledger,
            notify=self._resync.notify,
            retrier=self._retrier(),
            visible=lambda: everything_visible(self._dsn, connect_timeout_s=connect_timeout_s),
            stop=self._stop,
        )
        self._migrations = Migrations(
            consumers=indexer,
            ledger=ledger,
            stream=self._stream,
            store=self._store,
            embedders=self._embedders,
            resync=self._resync,
            retrier=self._retrier(),
            copies=self._copies,
            serve=self._serve,
            open_store=lambda one: opened(self._keeper, one),
            forget_store=self._keeper.forget,
            reload=self._reload,
            tables=frozenset([*(table.qualified_name for table in self._watched), *feeds.streams]),
        )

    def wire_reactions(self) -> None:
        """Searches, and the agents and sagas that may ask for them."""
        config, agents, mail, stream = self._config, self._agents, self._mail, self._stream
        self._searcher = LiveSearch(self._indexer.targets)
        search = fresh_search(
            self._searcher,
            self._indexer.watermark,
            self._hurry,
            captured=lambda: stream.position().captured_lsn,
        )
        self._agency: Agency | None = None
        if mail is not None and config.agents:
            self._agency = open_agency(
                config,
                agents,
                journal=mail.journal,
                desk=mail.desk,
                stream=stream,
                search=search,
                database=str(conninfo_to_dict(self._dsn).get("dbname") or ""),
                health=self._health,
                stop=self._stop,
            )
        self._sagas: Sagas | None = None
        if mail is not None:
            self._sagas = open_sagas(config, agents, mail, search=search, health=self._health, stop=self._stop)

    def daemon(self) -> Daemon:
        assert self._capture is not None
        feed, slot_name = self._feed, self._config.source.slot_name
        return Daemon(
            config=self._config,
            stop=self._stop,
            health=self._health,
            catalog=self._catalog,
            feed=feed,
            stream=self._stream,
            ledger=self._ledger,
            embedders=self._embedders,
            store=self._store,
            chroma=self._chroma,
            capture=self._capture,
            guard=self._guard,
            shapes=self._shapes,
            slot_watch=SlotWatch(self._dsn, slot_name, heard=lambda: feed.received_lsn),
            store_watch=store_watch(
                self._config, self._keeper, self._indexer, self._chroma, self._files, self._health, self._stop
            ),
            reach=self._reach,
            indexer=self._indexer,
            recent=self._recent,
            traces=self._traces,
            resync=self._resync,
            row_reader=Readers(self._reader, self._feeds),
            rereader=self._rereader,
            roots=self._roots,
            searcher=self._searcher,
            verify=self._verify,
            migrations=self._migrations,
            copies=self._copies,
            mail=self._mail,
            agency=self._agency,
            feeds=self._feeds,
            listeners=self._listeners,
            sagas=self._sagas,
        )


def _applied(indexer: Consumers, stream: Stream) -> Callable[[], bool]:
    """A question: has everything that is in the stream by now been applied?"""
    head = stream.head_offset()
    return lambda: indexer.watermark.offset >= head
