"""The core of the daemon in slow motion: the bodies of its four threads, one turn at a time, and a server to talk to.

Everything between the replication connection and the vector store is real: decoder, assembler, capture, stream,
indexer, writer, ledger. Whoever drives it decides which thread goes next and where the process dies, so the same
decisions lead to the same history each time. What is scripted: the server's side of the connection, the table, the
store, and time.
"""

from __future__ import annotations

import queue
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cdc_agent.agents.indexer import Indexer
from cdc_agent.capture import Capture
from cdc_agent.errors import EmbedderUnavailable, LedgerFull, SourceUnavailable, StreamFull
from cdc_agent.events import Change, Transaction
from cdc_agent.health import Health
from cdc_agent.ledger.base import Flip, Manifest, Resync
from cdc_agent.lsn import Lsn
from cdc_agent.resync import PageBoard
from cdc_agent.retry import Backoff, Retrier
from cdc_agent.source.pgoutput import PgOutputDecoder
from cdc_agent.source.replication import ServerIdentity
from cdc_agent.source.wal2json import Wal2JsonDecoder
from cdc_agent.stream.base import Batch, Position
from cdc_agent.stream.sqlite import SqliteStream
from tests.support.rig import CountingEmbedder, WatchedLedger, WatchedPostgresLedger, an_indexer
from tests.support.scripted import (
    FaultyStore,
    ScriptedDatabase,
    a_collection,
    a_relation,
    expected_chunks,
)
from tests.support.wal import pgoutput_messages, wal2json_messages

__all__ = ["Budget", "Server", "SlowMotion"]


class Budget:
    """Failures that are still to come, by kind; they end, so every retry does."""

    def __init__(self) -> None:
        self._left: dict[str, int] = {}

    def grant(self, kind: str, times: int) -> None:
        self._left[kind] = times

    def spend(self, kind: str) -> bool:
        """Whether it fails this time."""
        left = self._left.get(kind, 0)
        self._left[kind] = max(0, left - 1)
        return left > 0

    def clear(self) -> None:
        self._left.clear()


class Server:
    """The server's side of replication: a log, one slot, one connection. Stands for ``ReplicationFeed``.

    It begins where it is asked to, or where the slot is if that is further, as Postgres does; after ``rewind`` the
    slot is where it once was, and so is what it sends, whatever it is asked for.
    """

    def __init__(self, plugin: str) -> None:
        self._plugin = plugin
        self._log: list[Transaction] = []
        self._messages: list[bytes] = []
        self._described: set[int] = set()
        self._next = 0
        self._verified = False
        self._connected = False
        self._rewound: Lsn | None = None
        #: Where the slot is, and where it was.
        self.confirmed_lsn = Lsn(0)
        self._confirmed_before: list[Lsn] = [Lsn(0)]
        self.idle_lsn = Lsn(0)
        self.keepalives = 0
        self.decoder: PgOutputDecoder | Wal2JsonDecoder = self._decoder()
        #: Called with what is acknowledged.
        self.acknowledged: Callable[[Lsn], None] = lambda _: None
        #: Messages to send in the next turn; the connection breaks ``behind`` them, or while they are ``taken``.
        self.allowance = 0
        self.breaks = ""
        self.reconnect = threading.Event()
        self.alarm = _Silent()

    def _decoder(self) -> PgOutputDecoder | Wal2JsonDecoder:
        if self._plugin == "pgoutput":
            return PgOutputDecoder(lambda message: a_relation(message.oid))
        return Wal2JsonDecoder(lambda _schema, name, *_: a_relation(int(name.removeprefix("docs"))))

    def log(self, tx: Transaction) -> None:
        self._log.append(tx)

    @property
    def sent_everything(self) -> bool:
        return self._connected and self._next == len(self._log) and not self._messages

    @property
    def end_lsn(self) -> Lsn:
        return self._log[-1].end_lsn or Lsn(0) if self._log else Lsn(0)

    def rewind(self, steps: int) -> None:
        """The server crashed: its slot is where it was so many acknowledgements ago, and it sends from there."""
        self.confirmed_lsn = self._confirmed_before[max(0, len(self._confirmed_before) - 1 - steps)]
        self._rewound = self.confirmed_lsn
        self._connected = False

    # -- what capture asks of a feed --------------------------------------------------------------------------

    def open(self) -> ServerIdentity:
        self.close()
        self.decoder.reset()
        return ServerIdentity(system_id="7", timeline=1, flush_lsn=self.end_lsn)

    def verify(self, _: ServerIdentity) -> None:
        self._verified = True

    def start(self, start_lsn: Lsn, *, acknowledged: Lsn) -> None:
        assert self._verified, "I9: START without a look at who the server is"
        begin = max(start_lsn, self.confirmed_lsn) if self._rewound is None else self._rewound
        self._rewound = None
        self._next = sum(1 for tx in self._log if (tx.end_lsn or Lsn(0)) <= begin)
        self._messages = []
        self._described = set()
        self.idle_lsn = Lsn(0)
        self._connected = True

    def poll(self, timeout_s: float) -> list[Transaction]:
        """One turn of the reader: its loop ends behind this one."""
        self.reconnect.set()
        if not self._connected:
            raise SourceUnavailable("the server crashed")
        found = [tx for tx in map(self.decoder.feed, self._sent()) if tx is not None]
        breaks, self.breaks = self.breaks, ""
        self._connected = not breaks
        if breaks == "taken":
            raise SourceUnavailable("the connection broke")
        if self._connected and self.sent_everything:
            self.idle_lsn = self.end_lsn
            self.keepalives += 1
        return found

    def _sent(self) -> list[bytes]:
        sent: list[bytes] = []
        while len(sent) < self.allowance and (self._messages or self._next < len(self._log)):
            if not self._messages:
                self._messages = self._encoded(self._log[self._next])
                self._next += 1
            sent.append(self._messages.pop(0))
        return sent

    def _encoded(self, tx: Transaction) -> list[bytes]:
        if self._plugin == "pgoutput":
            return list(pgoutput_messages(tx, self._described))
        return list(wal2json_messages(replace(tx, changes=list(map(_named_by_partition, tx.changes)))))

    def acknowledge(self, lsn: Lsn) -> None:
        self.acknowledged(lsn)
        if lsn > self.confirmed_lsn:
            self.confirmed_lsn = lsn
            self._confirmed_before.append(lsn)

    def feedback(self) -> None: ...

    def ask(self) -> None:
        self.keepalives += 1

    def close(self) -> None:
        self._connected = self._verified = False
        self._messages = []

    def stop(self) -> None:
        self.close()


def _named_by_partition(change: Change) -> Change:
    """wal2json knows names only."""
    relation = change.relation
    return change._replace(relation=replace(relation, name=f"docs{relation.oid}")) if relation else change


class _Silent:
    def ring(self) -> None: ...


class Stream(SqliteStream):
    """Its disk is full now and then."""

    def __init__(self, path: Path, budget: Budget) -> None:
        super().__init__(path, wall_clock=lambda: 0.0)
        self._writer.execute("pragma synchronous = off")
        self._budget = budget

    def append(self, transactions: Sequence[Transaction], captured_lsn: Lsn | None = None) -> Position:
        if self._budget.spend("stream"):
            raise StreamFull("the disk is full")
        return super().append(transactions, captured_lsn)

    def read(self, after_offset: int, *, limit: int, wait_s: float) -> Batch:
        """Who drives decides when there is something; nobody waits."""
        return super().read(after_offset, limit=limit, wait_s=0.0)


class Faulty:
    """In front of a ledger's class: its disk is full now and then; another thread may come between two of its reads."""

    budget: Budget
    #: Called before manifests are looked up.
    between: Callable[[], None] = staticmethod(lambda: None)

    def manifests(self, collection: str, document_ids: Any) -> dict[str, Manifest]:
        self.between()
        return self.as_they_are(collection, document_ids)

    def as_they_are(self, collection: str, document_ids: Any) -> dict[str, Manifest]:
        """Manifests, and nobody comes in between."""
        return super().manifests(collection, document_ids)  # type: ignore[misc, no-any-return]

    def begin_write(self, *args: Any, **more: Any) -> Any:
        self._fail()
        return super().begin_write(*args, **more)  # type: ignore[misc]

    def flip(self, flip: Flip) -> None:
        self._fail()
        super().flip(flip)  # type: ignore[misc]

    def _fail(self) -> None:
        if self.budget.spend("ledger"):
            raise LedgerFull("the disk is full")


class FileLedger(Faulty, WatchedLedger):
    def __init__(self, path: Path, budget: Budget) -> None:
        super().__init__(path)
        self._writer.execute("pragma synchronous = off")
        self.budget = budget


class ServerLedger(Faulty, WatchedPostgresLedger):
    """A flip that leaves something out, or is refused, is a mistake: there is one process."""

    def __init__(self, dsn: str, schema: str, budget: Budget) -> None:
        super().__init__(dsn, schema)
        self.budget = budget


Ledger = FileLedger | ServerLedger


class Embedder(CountingEmbedder):
    """Away now and then."""

    def __init__(self, budget: Budget) -> None:
        super().__init__()
        self._budget = budget

    def embed(self, texts: Any) -> Any:
        if self._budget.spend("embedder"):
            raise EmbedderUnavailable("the model is away")
        return super().embed(texts)


class SlowMotion:
    """``live`` begins a life and ``die`` ends it; database, server, files and store outlive both."""

    def __init__(
        self, folder: Path, plugin: str = "pgoutput", open_ledger: Callable[[Path, Budget], Ledger] | None = None
    ) -> None:
        self._folder = folder
        self._open_ledger = open_ledger or (lambda place, budget: FileLedger(place / "ledger.db", budget))
        self.now = 0.0
        self.budget = Budget()
        self.database = ScriptedDatabase()
        self.server = Server(plugin)
        self.store = FaultyStore()
        self.embedder = Embedder(self.budget)
        self.collection = a_collection()
        self.health = Health()
        self.deaths = 0
        #: How often the vector of each text left the cache, in earlier lives.
        self._forgotten: Counter[bytes] = Counter()
        self._open_files()
        self.store.open_collection("docs", dimensions=8, marker={"ledger": self.ledger.uuid})
        self.live()

    # -- lives ------------------------------------------------------------------------------------------------

    def _open_files(self) -> None:
        self.stream = Stream(self._folder / "stream.db", self.budget)
        self.ledger = self._open_ledger(self._folder, self.budget)

    def live(self) -> None:
        """A process starts: nothing is known but what is in the files."""
        self._stop = threading.Event()
        self.board = PageBoard()
        self.capture = self._capture()
        self.indexer = self._indexer()
        self._connected = False
        self._swept = False

    def die(self) -> None:
        """Everything in memory is gone."""
        self.deaths += 1
        self._forgotten += self.ledger.forgotten()
        newest, backward = self.ledger._newest, self.ledger.backward
        self.close()
        self.server.close()
        self._open_files()
        self.ledger._newest, self.ledger.backward = newest, backward
        self.live()

    def close(self) -> None:
        self.stream.close()
        self.ledger.close()

    def _capture(self) -> Capture:
        capture = Capture(
            feed=self.server,  # type: ignore[arg-type]
            in_transaction=lambda: self.server.decoder.in_transaction,
            stream=self.stream,
            verify=self.server.verify,
            expand=self.board.expand,
            health=self.health,
            stop=self._stop,
            backoff=Backoff(initial_s=0.0, maximum_s=0.0),
            reconnect=self.server.reconnect,
            clock=lambda: self.now,
        )
        capture._retrier = self._retrier()
        return capture

    def _indexer(self) -> Indexer:
        indexer, self.writer = an_indexer(
            self.collection,
            stream=self.stream,
            ledger=self.ledger,
            store=self.store,
            embedder=self.embedder,
            rows=self.database,
            retrier=self._retrier,
            stop=self._stop,
            wall_clock=lambda: 0.0,
            clock=lambda: self.now,
        )
        indexer._handoff = _Handoff(self.write)  # type: ignore[assignment]
        return indexer

    def _retrier(self) -> Retrier:
        return Retrier(self._stop, self.health, Backoff(initial_s=0.0, maximum_s=0.0))

    # -- what there is ----------------------------------------------------------------------------------------

    def forgotten(self) -> Counter[bytes]:
        """How often the vector of each text left the cache."""
        return self._forgotten + self.ledger.forgotten()

    def stored_ids(self) -> set[str]:
        return {record.id for record in self.store.everything("docs")}

    def stored(self) -> list[tuple[str, int, str, str]]:
        """``(document, position, text, lang)`` of every chunk in the store."""
        return sorted(
            (str(r.metadata["cdc_doc"]), int(str(r.metadata["cdc_chunk"])), r.text, str(r.metadata.get("lang")))
            for r in self.store.everything("docs")
        )

    def wanted(self) -> list[tuple[str, int, str, str]]:
        """What the store must hold of the table."""
        rows = self.database.rows(hidden=True).values()
        return sorted(chunk for values, _ in rows for chunk in expected_chunks(self.collection, values))

    def manifests(self) -> dict[str, Manifest]:
        """Those of live documents, by key."""
        found = self.ledger.as_they_are("docs", self.ledger.documents_of_relation("docs", None))
        return {document.partition(":")[2]: manifest for document, manifest in found.items()}

    # -- turns ------------------------------------------------------------------------------------------------

    def receive(self, messages: int, breaks: str = "") -> None:
        """The reader's turn: it connects, or takes what so many messages bring."""
        self.server.allowance, self.server.breaks = messages, breaks
        try:
            if not self._connected:
                self.capture._connect()
                self._connected = True
            self.server.reconnect.clear()
            self.capture._read()
        except SourceUnavailable as exc:
            self._connected = False
            self.capture._lost(exc, 1)

    def append(self) -> None:
        """The turn of the thread that appends: everything that has gathered."""
        items = self.capture._queue.take(0.0)
        if items:
            self.capture._append(items)
            self.capture._queue.taken(items)

    def plan(self) -> None:
        """The planner's turn. Where it would wait for the writer, that comes first."""
        while self.indexer._failed is not None and not self.indexer._handoff.empty():
            self.write()
        self.indexer._planner_turn()

    def write(self) -> None:
        """The writer's turn."""
        if not self._swept:
            self._swept = True
            self.indexer._healing(self.indexer._sweep)
            self.indexer._healing(self.indexer._collect)
        self.indexer._writer_turn(0.0)

    @property
    def at_rest(self) -> bool:
        """Everything that is in the log is in the index, and nobody has anything to do."""
        return (
            self.server.sent_everything
            and not self.capture._queue._items
            and self.stream.position().captured_lsn >= self.server.end_lsn
            and self.indexer._in_flight.empty
            and self.indexer._failed is None
            and self.indexer.watermark.offset >= self.stream.head_offset()
            and not self.ledger.garbage(1)
        )

    def settle(self) -> None:
        """Every thread takes turns until there is nothing to do."""
        for _ in range(500):
            self.receive(100)
            self.append()
            self.indexer.hurry()
            self.plan()
            self.write()
            if self.at_rest:
                return
            self.now += 1.0
        raise AssertionError("it does not come to rest")

    # -- resyncs ----------------------------------------------------------------------------------------------

    def ask_for_resync(self, keys: Sequence[str] = (), *, rewrite: bool = False) -> Resync:
        wanted = Resync(
            table=f"{self.collection.table}",
            collections=("docs",),
            keys=tuple((key,) for key in keys),
            rewrite=rewrite,
        )
        begun = self.ledger.start_resync(wanted)
        if not keys:
            begun = replace(begun, snapshot=self.database.snapshot())
            self.ledger.save_resync(begun)
        return begun


class _Handoff(queue.Queue["tuple[int, Prepared]"]):
    """Where the planner would wait for room, the writer takes its turn."""

    def __init__(self, make_room: Callable[[], None]) -> None:
        super().__init__(maxsize=1)
        self._make_room = make_room

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        while self.full():
            self._make_room()
        super().put(item, block, 0.0)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        return super().get(block=False)
