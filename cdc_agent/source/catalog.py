"""What the server's catalog says about the watched tables: oids, columns, keys, partitions.

The catalog is read as it is now, which may be later than the change being decoded; decoders therefore trust what the
log says about columns and ask here only for what it does not say (document keys, which root a partition has).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import psycopg

from cdc_agent import queries
from cdc_agent.errors import PreflightError, SourceUnavailable
from cdc_agent.events import Column, Relation
from cdc_agent.source.connection import classify, connect

__all__ = ["Catalog", "TableInfo", "WatchedTable"]

_SQL = queries.load("cdc_agent.source", "catalog.sql")
#: Who asks reads the log meanwhile: the server would end a connection that nobody answers on for a minute.
ANSWER_TIMEOUT_S = 5.0
#: Types below are pinned into every database, and none of them is a domain.
_FIRST_UNPINNED_OID = 12_000
#: No table has this oid.
_GONE = 0
_NONE_KNOWN: Mapping[str, int] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchedTable:
    """A table that the configuration names, and the oid under which its rows are. It may have another name by now."""

    schema: str
    name: str
    oid: int

    @property
    def qualified_name(self) -> str:
        return f"{self.schema}.{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TableInfo:
    """One table as the catalog describes it now. ``ancestors`` starts with the table itself and ends at the root.

    ``columns`` have the types that domains are made of. ``numbers`` are the columns' ``attnum``s: they stay when a
    column gets another name.
    """

    oid: int
    schema: str
    name: str
    replica_identity: str
    ancestors: tuple[int, ...]
    columns: tuple[Column, ...]
    numbers: tuple[int, ...]
    key: tuple[str, ...]
    estimated_rows: int
    partitioned: bool


class Catalog:
    """Answers questions about tables over one SQL connection of its own; not thread-safe.

    ``watched`` are the configured tables; a relation that has none of them among its ancestors is not ours.
    """

    def __init__(self, dsn: str, *, connect_timeout_s: float = 10.0) -> None:
        self._dsn = dsn
        self._connect_timeout_s = connect_timeout_s
        self._connection: psycopg.Connection[Any] | None = None
        self.watched: dict[int, WatchedTable] = {}
        self._configured: tuple[WatchedTable, ...] = ()
        self._by_oid: dict[int, TableInfo | None] = {}
        #: Every name that a table of ours was seen to have: the log may still speak of it by an older one.
        self._names: dict[tuple[str, str], int] = {}
        self._base_types: dict[int, int] = {}

    def watch(self, tables: Sequence[tuple[str, str]], known: Mapping[str, int] = _NONE_KNOWN) -> list[WatchedTable]:
        """Find the configured tables; raises ``PreflightError`` naming one that does not exist.

        ``known`` are the oids that some were known by: such a one may have another name now, or be gone.
        """
        found = [WatchedTable(schema=s, name=n, oid=self._oid(s, n, known.get(f"{s}.{n}"))) for s, n in tables]
        self._watch(found)
        return found

    def follow(self, oids: Mapping[str, int]) -> None:
        """From now on the configured tables are these; one that is not named is gone. What was remembered is asked
        again."""
        self.forget()
        self._watch([replace(t, oid=oids.get(t.qualified_name, _GONE)) for t in self._configured])

    def present(self) -> list[WatchedTable]:
        """The watched tables that exist, by the names that they have now."""
        rows = [self._one("table_by_oid", (oid,)) for oid in self.watched]
        return [WatchedTable(oid=row[0], schema=row[1], name=row[2]) for row in rows if row]

    def _watch(self, tables: Sequence[WatchedTable]) -> None:
        self._configured = tuple(tables)
        self.watched = {table.oid: table for table in tables if table.oid != _GONE}
        for oid in self.watched:
            self._names.update(((row[1], row[2]), row[0]) for row in self._all("family", {"oid": oid}))

    def by_oid(self, oid: int, *, refresh: bool = False) -> TableInfo | None:
        """The table, or None when it exists no more. Remembered until ``refresh``."""
        if refresh or oid not in self._by_oid:
            row = self._one("table_by_oid", (oid,))
            # A dropped table keeps what was known of it: its last changes may still be in the log.
            self._by_oid[oid] = self._table_info(row) if row else self._by_oid.get(oid)
        return self._by_oid[oid]

    def by_name(self, schema: str, name: str) -> TableInfo | None:
        """The table that has this name now; if none has, the one of ours that had it."""
        row = self._one("table_oid", (schema, name))
        oid = row[0] if row else self._names.get((schema, name))
        return self.by_oid(oid, refresh=True) if oid is not None else None

    def base_type(self, oid: int) -> int:
        """The type that a domain is made of; any other type's own oid, also that of a type that is gone."""
        if oid < _FIRST_UNPINNED_OID:
            return oid
        if oid not in self._base_types:
            row = self._one("base_type", (oid,))
            self._base_types[oid] = int(row[0]) if row else oid
        return self._base_types[oid]

    def root_of(self, info: TableInfo) -> int | None:
        """The watched table that this one belongs to (itself or a partitioned ancestor), None if it is not ours."""
        return next((oid for oid in info.ancestors if oid in self.watched), None)

    def relation(self, info: TableInfo) -> Relation | None:
        """The relation as the catalog has it now."""
        root = self.root_of(info)
        if root is None:
            return None
        return Relation(
            oid=info.oid,
            root_oid=root,
            schema=info.schema,
            name=info.name,
            columns=info.columns,
            key=info.key,
            replica_identity=info.replica_identity,
        )

    def estimated_rows(self, oid: int) -> int:
        info = self.by_oid(oid, refresh=True)
        if info is None:
            return 0
        return int(self._one("leaves", (oid,))[0]) if info.partitioned else info.estimated_rows

    def server(self) -> tuple[int, int, int, str]:
        """``(version number, database oid, next 64-bit transaction id, database name)``."""
        row = self._one("server", ())
        return row[0], row[1], row[2], row[3]

    def forget(self) -> None:
        """Drop what was remembered (a new connection starts afresh)."""
        self._by_oid.clear()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _oid(self, schema: str, name: str, known: int | None) -> int:
        row = self._one("table_oid", (schema, name))
        if row is not None:
            return int(row[0])
        if known is None:
            raise PreflightError(
                f"table {schema}.{name} does not exist", hint="correct `collections[].table`, or create the table"
            )
        return known

    def _one(self, name: str, params: Sequence[Any]) -> Any:
        return next(iter(self._all(name, params)), None)

    def _all(self, name: str, params: Sequence[Any] | Mapping[str, Any]) -> list[Any]:
        for attempt in (1, 2):
            try:
                return self._connected().execute(_SQL[name], params).fetchall()
            except psycopg.Error as exc:
                error = classify(exc)
                self.close()
                # One connection lives for weeks; the first use after the server went away finds out.
                if attempt == 2 or not isinstance(error, SourceUnavailable):
                    raise error from exc
        raise AssertionError("unreachable")

    def _connected(self) -> psycopg.Connection[Any]:
        if self._connection is None or self._connection.closed:
            self._connection = connect(
                self._dsn, connect_timeout_s=self._connect_timeout_s, answer_timeout_s=ANSWER_TIMEOUT_S
            )
        return self._connection

    def _table_info(self, row: Any) -> TableInfo:
        oid, schema, name, identity, ancestors, columns, key, estimated, partitioned = row
        info = TableInfo(
            oid=oid,
            schema=schema,
            name=name,
            replica_identity=identity.decode() if isinstance(identity, bytes) else identity,
            ancestors=tuple(ancestors) or (oid,),
            columns=tuple(Column(name=c, type_oid=self.base_type(t)) for c, t, _ in columns),
            numbers=tuple(number for _, _, number in columns),
            key=tuple(key),
            estimated_rows=estimated,
            partitioned=partitioned,
        )
        if self.root_of(info) is not None:
            self._names[schema, name] = oid
        return info
