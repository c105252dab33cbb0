"""What a watched table is made of, and how two moments of it differ: changes that write no row into the log.

The catalog answers one question in one snapshot, without a lock on any table; ``compare`` names what an ALTER TABLE,
a rename, a new partition or somebody's hand on the publication has changed since.
"""

from __future__ import annotations

import enum
import logging
import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import psycopg

from cdc_agent import queries
from cdc_agent.snapshot import Snapshot, widen_xid
from cdc_agent.source.connection import classify, connect

__all__ = ["ColumnShape", "Difference", "RelationShape", "Seen", "ShapeReader", "TableShape", "attached", "compare"]

log = logging.getLogger(__name__)

_SQL = queries.load("cdc_agent.source", "shape.sql")
#: The catalog answers in milliseconds; a server that takes longer is asked again later.
_TIMEOUT_MS = 5_000
_LOCK_TIMEOUT_MS = 500


class Difference(enum.StrEnum):
    """What can change about a table without a row in the log."""

    DROPPED = "dropped"
    REPLACED = "replaced"
    RENAMED = "renamed"
    REWRITTEN = "rewritten"
    COLUMNS = "columns"
    IDENTITY = "identity"
    PARTITIONS = "partitions"
    LEFT_PUBLICATION = "left publication"
    REJOINED_PUBLICATION = "rejoined publication"


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnShape:
    """One column: its ``attnum``, name, type with modifier, and whether it is generated."""

    number: int
    name: str
    type_oid: int
    typmod: int
    generated: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RelationShape:
    """One physical or partitioned table. ``file`` is its ``relfilenode``: another one means that it was rewritten.
    ``link`` is the transaction that made it a partition (0: the root).

    ``key`` are the numbers of the columns that identify a row, ``index`` is the index that says so (another one may
    have come after a time without), ``identity`` is ``relreplident``.
    """

    oid: int
    schema: str
    name: str
    file: int
    link: int
    columns: tuple[ColumnShape, ...]
    identity: str
    index: int
    key: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TableShape:
    """A watched table with its partitions. ``members`` are the oids of what publishes it (empty: nothing does)."""

    root: RelationShape
    partitions: tuple[RelationShape, ...] = ()
    members: frozenset[int] = frozenset()

    @property
    def oid(self) -> int:
        return self.root.oid

    @property
    def relations(self) -> dict[int, RelationShape]:
        return {relation.oid: relation for relation in (self.root, *self.partitions)}

    @property
    def qualified_name(self) -> str:
        return f"{self.root.schema}.{self.root.name}"

    def to_json(self) -> str:
        return msgspec.json.encode(self, order="deterministic").decode()

    @classmethod
    def from_json(cls, text: str) -> TableShape:
        return msgspec.json.decode(text, type=cls)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """The tables at one moment, by oid. ``running`` are the transactions that were under way; every one before
    ``xmin`` had ended, and what it did was visible."""

    tables: Mapping[int, TableShape]
    xmin: int
    running: frozenset[int] = frozenset()

    def named(self, schema: str, name: str) -> TableShape | None:
        return next((t for t in self.tables.values() if (t.root.schema, t.root.name) == (schema, name)), None)


def compare(before: TableShape, now: TableShape | None, used: Collection[str]) -> frozenset[Difference]:
    """How a table differs from what it was. ``used`` names the columns whose values matter."""
    if now is None:
        return frozenset({Difference.DROPPED})
    if before.oid != now.oid:
        return frozenset({Difference.REPLACED})
    then, today = before.relations, now.relations
    pairs = [(then[oid], today[oid]) for oid in then.keys() & today.keys()]
    tests = {
        Difference.RENAMED: any((a.schema, a.name) != (b.schema, b.name) for a, b in pairs),
        Difference.REWRITTEN: any(a.file != b.file for a, b in pairs),
        Difference.COLUMNS: any(_columns(a, used) != _columns(b, used) for a, b in pairs),
        Difference.IDENTITY: any((a.identity, a.index) != (b.identity, b.index) for a, b in pairs),
        Difference.PARTITIONS: then.keys() != today.keys() or any(a.link != b.link for a, b in pairs),
        Difference.LEFT_PUBLICATION: bool(before.members) and not now.members,
        # As long as one membership held all the time, nothing can have been missed.
        Difference.REJOINED_PUBLICATION: bool(now.members) and not before.members & now.members,
    }
    return frozenset(difference for difference, found in tests.items() if found)


def attached(before: TableShape, now: TableShape) -> frozenset[int]:
    """The partitions that came, if no other one went or was away: only their rows are to be read."""
    then, today = before.relations, now.relations
    stayed = all(oid in today and today[oid].link == relation.link for oid, relation in then.items())
    return frozenset(today.keys() - then.keys()) if stayed else frozenset()


def _columns(relation: RelationShape, used: Collection[str]) -> list[ColumnShape]:
    return [column for column in relation.columns if column.name in used]


class ShapeReader:
    """Reads shapes over one connection of its own; calls from several threads take turns."""

    def __init__(self, dsn: str, *, publication: str | None, connect_timeout_s: float = 10.0) -> None:
        self._dsn = dsn
        self._publication = publication
        self._connect_timeout_s = connect_timeout_s
        self._connection: psycopg.Connection[Any] | None = None
        self._lock = threading.Lock()

    def read(self, names: Iterable[tuple[str, str]], oids: Iterable[int]) -> Seen:
        """Every table that has one of these names or oids. Raises a ``SourceError``."""
        wanted = list(names)
        params = {"schemas": [s for s, _ in wanted], "names": [n for _, n in wanted], "oids": list(oids)}
        with self._lock:
            for attempt in (1, 2):
                try:
                    return self._read(params)
                except psycopg.Error as exc:
                    # One connection lives for weeks; the first use after the server went away finds out.
                    again = attempt == 1 and self._connection is not None and self._connection.broken
                    self._close()
                    if not again:
                        raise classify(exc) from exc
        raise AssertionError("unreachable")

    def condition(self, partitions: Iterable[int]) -> str:
        """A condition that only rows of these partitions fulfil; empty when it cannot be had now."""
        with self._lock:
            try:
                rows = self._connected().execute(_SQL["conditions"], {"oids": sorted(partitions)}).fetchall()
            except psycopg.Error as exc:
                # Whoever reads the whole table instead reads the same rows.
                log.debug("no condition of partitions error=%s", classify(exc).message)
                self._close()
                return ""
        return " or ".join(f"({row[0]})" for row in rows) if all(row[0] for row in rows) else ""

    def close(self) -> None:
        with self._lock:
            self._close()

    def _read(self, params: Mapping[str, Any]) -> Seen:
        connection = self._connected()
        with connection.transaction():
            connection.execute("set transaction isolation level repeatable read, read only")
            row = connection.execute(_SQL["snapshot"]).fetchone()
            rows = connection.execute(_SQL["relations"], params).fetchall()
            members = self._members(connection, sorted({root for root, *_ in rows}))
            # After the snapshot: what has ended by now was visible to every snapshot from now on.
            locks = connection.execute(_SQL["running"]).fetchall()
        assert row is not None
        snapshot = Snapshot.parse(row[0])
        running = snapshot.in_progress | {widen_xid(xid, snapshot.xmax) for (xid,) in locks}
        return Seen(tables=_tables(rows, members), xmin=snapshot.xmin, running=running)

    def _members(self, connection: psycopg.Connection[Any], roots: list[int]) -> dict[int, frozenset[int]]:
        if self._publication is None:
            return {}
        query = _SQL["members" if connection.info.server_version >= 150000 else "members_14"]
        found: dict[int, set[int]] = {}
        for root, member in connection.execute(query, {"oids": roots, "publication": self._publication}):
            found.setdefault(root, set()).add(member)
        return {root: frozenset(oids) for root, oids in found.items()}

    def _connected(self) -> psycopg.Connection[Any]:
        if self._connection is None or self._connection.closed:
            self._connection = connect(self._dsn, connect_timeout_s=self._connect_timeout_s)
            self._connection.execute(f"set statement_timeout = {_TIMEOUT_MS}")
            self._connection.execute(f"set lock_timeout = {_LOCK_TIMEOUT_MS}")
        return self._connection

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _tables(rows: Sequence[Any], members: Mapping[int, frozenset[int]]) -> dict[int, TableShape]:
    """Rows come with each root before its partitions."""
    families: dict[int, list[RelationShape]] = {}
    for root, *facts in rows:
        families.setdefault(root, []).append(_relation(facts))
    return {
        oid: TableShape(root=family[0], partitions=tuple(family[1:]), members=members.get(oid, frozenset()))
        for oid, family in families.items()
    }


def _relation(facts: Sequence[Any]) -> RelationShape:
    oid, schema, name, file, link, columns, identity, index, key = facts
    return RelationShape(
        oid=oid,
        schema=schema,
        name=name,
        file=file,
        link=link,
        columns=tuple(
            ColumnShape(number=number, name=column, type_oid=type_oid, typmod=typmod, generated=generated)
            for number, column, type_oid, typmod, generated in columns
        ),
        identity=identity,
        index=index,
        key=tuple(key),
    )
