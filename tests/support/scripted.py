"""A database and a vector store that do as a test says, for tests that need neither Postgres nor Chroma.

The database knows what matters to us: commits are in the log before readers see them, long values that did not change
are left out, a lock is held until the commit is visible.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import orjson

from cdc_agent.agents.planning import Collection
from cdc_agent.documents.chunking import Chunker
from cdc_agent.documents.collection import CollectionSpec
from cdc_agent.documents.model import document_id
from cdc_agent.documents.rendering import Template
from cdc_agent.errors import StoreRejected, StoreUnavailable
from cdc_agent.events import UNCHANGED, Change, ChangeEvent, Column, Op, RawRow, Relation, Row, Transaction
from cdc_agent.lsn import Lsn, Version
from cdc_agent.source.base import RowSet, TableRows
from cdc_agent.vectorstore.base import Record
from cdc_agent.vectorstore.memory import MemoryStore

__all__ = ["FaultyStore", "Killed", "ScriptedDatabase", "Statement", "a_collection", "a_relation", "events_of"]

TABLE = "public.docs"
ROOT_OID = 1
COLUMNS = (("id", 23), ("title", 25), ("body", 25), ("lang", 25))
#: A body that is at least this long lies out of line, and is not sent when it did not change.
LONG = 20

Values: TypeAlias = "tuple[str, str, str, str]"
Key: TypeAlias = "tuple[str, ...]"


def a_relation(oid: int = ROOT_OID) -> Relation:
    return Relation(
        oid=oid,
        root_oid=ROOT_OID,
        schema="public",
        name="docs",
        columns=tuple(Column(name=name, type_oid=type_oid) for name, type_oid in COLUMNS),
        key=("id",),
    )


def a_collection(name: str = "docs", *, max_tokens: int = 4, **shape: Any) -> Collection:
    """Small chunks of ``{title} {body}``, with ``lang`` as metadata."""
    known: dict[str, Any] = {"template": Template("{title}\n\n{body}"), "metadata": ("lang",), **shape}
    spec = CollectionSpec(name=name, schema="public", table="docs", max_tokens=max_tokens, **known)
    return Collection(spec=spec, chunk=Chunker(max_tokens, 0, lambda texts: [len(t.split()) for t in texts]).chunk)


def raw(values: Values) -> tuple[bytes, ...]:
    return tuple(value.encode() for value in values)


@dataclass(frozen=True)
class Statement:
    """``insert``, ``update``, ``delete`` or ``truncate``, of a row in one partition."""

    kind: str
    key: str = ""
    values: Values | None = None
    partition: int = ROOT_OID


@dataclass
class ScriptedDatabase:
    """One table. ``hide`` keeps a commit from readers until ``show``; everything else is visible at once."""

    next_xid: int = 1_000
    next_lsn: int = 10_000
    #: Every commit in the order of the log: its id, and what it did.
    commits: list[tuple[int, tuple[Statement, ...]]] = field(default_factory=list)
    hidden: set[int] = field(default_factory=set)
    #: Transactions that have an id and have not ended.
    running: set[int] = field(default_factory=set)
    #: Called before each read, in the reader's thread.
    before_read: Callable[[], None] = lambda: None
    #: Each read by key lets one hidden commit become visible after it: time passes.
    time_passes: bool = True
    reads: int = 0
    _lock: Any = field(default_factory=threading.RLock)

    # -- writing ----------------------------------------------------------------------------------------------

    def begin(self) -> int:
        """A transaction that takes its id now, to be committed or rolled back later."""
        with self._lock:
            xid, self.next_xid = self.next_xid, self.next_xid + 1
            self.running.add(xid)
            return xid

    def roll_back(self, xid: int) -> None:
        """Nothing of it is ever in the log."""
        with self._lock:
            self.running.remove(xid)

    def commit(self, *statements: Statement, hide: bool = False, xid: int = 0) -> Transaction:
        """Carry statements out in one transaction (that was begun as ``xid``); returns it as a decoder would."""
        with self._lock:
            self._wait_for_locks(statements)
            rows = self.rows(hidden=True)
            changes: list[Change] = []
            for statement in statements:
                changes += self._change(statement, rows, len(changes) + 1)
            xid = self._logged(statements, xid)
            if hide and not any(s.kind == "truncate" for s in statements):
                self.hidden.add(xid)
            return self._transaction(xid, changes)

    def message(self, prefix: str, content: Mapping[str, object]) -> Transaction:
        """A transaction with one logical message."""
        with self._lock:
            body = (prefix.encode(), orjson.dumps(content))
            return self._transaction(self._logged(()), [Change(Op.MESSAGE.value, None, 1, body, None)])

    def show(self) -> None:
        """The oldest hidden commit becomes visible."""
        with self._lock:
            if self.hidden:
                self.hidden.remove(min(self.hidden))

    def _logged(self, statements: Sequence[Statement], xid: int = 0) -> int:
        xid = xid or self.begin()
        self.running.remove(xid)
        self.commits.append((xid, tuple(statements)))
        return xid

    def _transaction(self, xid: int, changes: list[Change]) -> Transaction:
        lsn, self.next_lsn = self.next_lsn, self.next_lsn + 100
        return Transaction(
            xid=xid,
            commit_lsn=Lsn(lsn),
            commit_ts_us=lsn * 1_000,
            changes=changes,
            end_lsn=Lsn(lsn + 50),
            size_bytes=100 * len(changes),
        )

    def _wait_for_locks(self, statements: Sequence[Statement]) -> None:
        """Who wants a row, or the whole table, that a hidden commit holds, waits until that is visible."""
        wanted = {key for s in statements for key in (s.key, s.values[0] if s.values else s.key)}
        whole = any(s.kind == "truncate" for s in statements)
        for xid, done in self.commits:
            held = {key for s in done for key in (s.key, s.values[0] if s.values else s.key)}
            if xid in self.hidden and (whole or wanted & held):
                self.hidden.discard(xid)

    def _change(self, s: Statement, rows: dict[str, tuple[Values, int]], ordinal: int) -> list[Change]:
        """What the log says of one statement; carries it out on ``rows``."""
        if s.kind == "truncate":
            for key in [k for k, (_, partition) in rows.items() if partition == s.partition]:
                del rows[key]
            return [Change("t", a_relation(s.partition), ordinal, None, None)]
        if s.kind == "delete":
            _, partition = rows.pop(s.key)
            return [Change("d", a_relation(partition), ordinal, _old_key(s.key), None)]
        assert s.values is not None
        if s.kind == "insert":
            assert s.values[0] not in rows
            rows[s.values[0]] = (s.values, s.partition)
            return [Change("c", a_relation(s.partition), ordinal, None, raw(s.values))]
        old, partition = rows.pop(s.key)
        assert s.values[0] not in rows
        rows[s.values[0]] = (s.values, s.partition)
        if partition != s.partition:
            return [
                Change("d", a_relation(partition), ordinal, _old_key(s.key), None),
                Change("c", a_relation(s.partition), ordinal + 1, None, raw(s.values)),
            ]
        before = _old_key(s.key) if s.key != s.values[0] else None
        after: list[Any] = list(raw(s.values))
        if old[2] == s.values[2] and len(old[2]) >= LONG:
            after[2] = UNCHANGED
        return [Change("u", a_relation(partition), ordinal, before, tuple(after))]

    # -- reading ----------------------------------------------------------------------------------------------

    def rows(self, *, hidden: bool = False) -> dict[str, tuple[Values, int]]:
        """Rows and their partitions, with or without what only the log knows yet."""
        rows: dict[str, tuple[Values, int]] = {}
        for xid, statements in self.commits:
            if hidden or xid not in self.hidden:
                for statement in statements:
                    self._change(statement, rows, 0)
        return rows

    def snapshot(self) -> str:
        with self._lock:
            running = sorted(self.hidden | self.running)
            return f"{min(running, default=self.next_xid)}:{self.next_xid}:{','.join(map(str, running))}"

    def page(self, request: TableRows) -> RowSet:
        with self._lock:
            rows = sorted(self.rows().items(), key=lambda item: int(item[0]))
            after = int(request.after_key[0]) if request.after_key else -(10**9)
            return self._row_set([item for item in rows if int(item[0]) > after][: request.limit])

    def by_key(self, table: str, keys: Iterable[Key]) -> RowSet:
        self.before_read()
        with self._lock:
            self.reads += 1
            rows = self.rows()
            found = self._row_set([(key, rows[key]) for (key,) in keys if key in rows])
            if self.time_passes:
                self.show()
            return found

    def mark(self, prefix: str, content: Mapping[str, object]) -> Lsn:
        raise NotImplementedError("a test places pages itself")

    def _row_set(self, found: Sequence[tuple[str, tuple[Values, int]]]) -> RowSet:
        return RowSet(
            snapshot=self.snapshot(),
            relations=[a_relation(partition) for _, (_, partition) in found],
            rows=[raw(values) for _, (values, _) in found],
        )


def _old_key(key: str) -> RawRow:
    return (key.encode(), UNCHANGED, UNCHANGED, UNCHANGED)


def events_of(tx: Transaction, first_offset: int = 1) -> list[ChangeEvent]:
    """A transaction as a stream would return it."""
    return [
        ChangeEvent(
            op=Op(change.op),
            version=Version(tx.commit_lsn, change.ordinal),
            xid=tx.xid,
            commit_ts_us=tx.commit_ts_us,
            relation=change.relation,
            before=_row(change.relation, change.before),
            after=_row(change.relation, change.after),
            offset=first_offset + place,
            snapshot=tx.snapshot,
            resync_id=tx.resync_id,
            message=(change.before[0].decode(), change.before[1]) if change.op == "m" and change.before else None,  # type: ignore[union-attr]
        )
        for place, change in enumerate(tx.changes)
    ]


def _row(relation: Relation | None, values: RawRow | None) -> Row | None:
    return Row(relation, values) if relation is not None and values is not None else None


def expected_chunks(collection: Collection, values: Values) -> list[tuple[str, int, str, str]]:
    """``(document, position, text, lang)`` of every chunk of one row."""
    row = Row(a_relation(), raw(values))
    found = document_id(TABLE, (values[0],))
    texts = collection.chunk(collection.spec.template.render(row))
    return [(found, place, text, values[3]) for place, text in enumerate(texts)]


class Killed(BaseException):
    """The process died here."""


class FaultyStore(MemoryStore):
    """A memory store whose next writes fail as planned; what fails may be carried out all the same, or later.

    A fault: ``ok``; ``lost`` (raises, nothing happened); ``done`` (raises, but was carried out); ``late`` (raises, is
    carried out when ``land`` is called); ``twice`` (arrives two times in a row). With ``die-`` before it the caller
    dies of it.
    """

    def __init__(self, faults: Iterable[str] = ()) -> None:
        super().__init__()
        self._faults: Iterator[str] = iter(faults)
        self._late: list[Callable[[], None]] = []
        #: Called before each write with its kind; runs in the writer's thread.
        self.before_write: Callable[[str], None] = lambda _: None
        #: Texts and metadata values that are refused for good.
        self.poison: set[str] = set()

    def upsert(self, collection: str, records: Sequence[Record]) -> None:
        if any(r.text in self.poison or self.poison & set(map(str, r.metadata.values())) for r in records):
            raise StoreRejected("a record is poison")
        self._write("upsert", lambda: MemoryStore.upsert(self, collection, records))

    def update_metadata(self, collection: str, metadata_by_id: Mapping[str, Mapping[str, Any]]) -> None:
        if any(self.poison & set(map(str, m.values())) for m in metadata_by_id.values()):
            raise StoreRejected("a value is poison")
        given = {i: dict(m) for i, m in metadata_by_id.items()}
        self._write("update_metadata", lambda: MemoryStore.update_metadata(self, collection, given))

    def delete(self, collection: str, ids: Sequence[str]) -> None:
        wanted = list(ids)
        self._write("delete", lambda: MemoryStore.delete(self, collection, wanted))

    def land(self) -> None:
        """Every request that was held arrives now."""
        late, self._late = self._late, []
        for write in late:
            write()

    def break_next(self, faults: Iterable[str]) -> None:
        """What becomes of the next writes, instead of what was planned before."""
        self._faults = iter(faults)

    def heal(self) -> None:
        self._faults = iter(())

    def _write(self, kind: str, write: Callable[[], None]) -> None:
        self.before_write(kind)
        deadly, _, fault = next(self._faults, "ok").rpartition("-")
        for _ in range({"ok": 1, "done": 1, "twice": 2}.get(fault, 0)):
            write()
        if fault == "late":
            self._late.append(write)
        if deadly:
            raise Killed
        if fault not in ("ok", "twice"):
            raise StoreUnavailable(f"{kind} failed: {fault}")

    def everything(self, collection: str) -> list[Record]:
        return self.get(collection, [i for page in self.ids(collection) for i in page])
