"""Reads rows of the source over SQL: pages by key for a resync, single rows by key, and watermark messages.

Values come back in Postgres' text form under the same settings as the log, so both ways into the index agree byte
for byte. Every read is one short REPEATABLE READ transaction that also reports its snapshot.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from typing import Any

import orjson
import psycopg
from psycopg import sql

from cdc_agent import queries
from cdc_agent.errors import RenderError
from cdc_agent.events import RawRow, Relation
from cdc_agent.lsn import Lsn
from cdc_agent.source.base import RowSet, TableRows
from cdc_agent.source.catalog import Catalog
from cdc_agent.source.connection import classify, connect

__all__ = ["SqlRowReader"]

_SQL = queries.load("cdc_agent.source", "rows.sql")


class SqlRowReader:
    """See ``source.base.RowReader``. Owns one connection and a catalog; calls from several threads take turns.

    ``tables`` maps the configured name to the watched table's oid: the oid stays right when a table is renamed.
    """

    def __init__(
        self, dsn: str, catalog: Catalog, tables: Mapping[str, int], *, connect_timeout_s: float = 10.0
    ) -> None:
        self._dsn = dsn
        self._catalog = catalog
        self._tables = dict(tables)
        self._connect_timeout_s = connect_timeout_s
        self._connection: psycopg.Connection[Any] | None = None
        self._lock = threading.Lock()

    def page(self, request: TableRows) -> RowSet:
        relation = self._relation(request.table)
        key = sql.SQL(", ").join(_identifier(name) for name in relation.key)
        after: sql.Composable = sql.SQL("")
        params: list[Any] = []
        if request.after_key is not None:
            # The values travel as text and take the column's type there: exact for every key type.
            after = sql.SQL("where ({}) > ({})").format(key, _placeholders(relation))
            params += request.after_key
        tail = sql.SQL("{} order by {} limit {}").format(after, key, sql.Literal(request.limit))
        return self._select(relation, tail, params)

    def by_key(self, table: str, keys: Iterable[tuple[str, ...]]) -> RowSet:
        relation = self._relation(table)
        wanted = list(keys)
        names = sql.SQL(", ").join(_identifier(name) for name in relation.key)
        rows = sql.SQL(", ").join(sql.SQL("({})").format(_placeholders(relation)) for _ in wanted)
        tail = sql.SQL("where ({}) in ({})").format(names, rows)
        return self._select(relation, tail, [part for key in wanted for part in key])

    def mark(self, prefix: str, content: Mapping[str, object]) -> Lsn:
        with self._lock:
            try:
                row = self._connected().execute(_SQL["mark"], (prefix, orjson.dumps(content).decode())).fetchone()
            except psycopg.Error as exc:
                raise self._failed(exc) from exc
        assert row is not None
        return Lsn.parse(row[0])

    def estimated_rows(self, table: str) -> int:
        """The planner's estimate; good enough for a progress bar."""
        with self._lock:
            return self._catalog.estimated_rows(self._tables[table])

    def close(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None
            self._catalog.close()

    def _select(self, relation: Relation, tail: sql.Composed, params: list[Any]) -> RowSet:
        columns = sql.SQL(", ").join(_identifier(c.name) for c in relation.columns)
        statement = sql.SQL("select tableoid::oid::bigint, {} from {} {}").format(
            columns, _identifier(relation.schema, relation.name), tail
        )
        with self._lock:
            try:
                connection = self._connected()
                with connection.transaction():
                    connection.execute("set transaction isolation level repeatable read, read only")
                    snapshot = connection.execute(_SQL["snapshot"]).fetchone()
                    cursor = connection.execute(statement, params)
                    oids, rows = _raw_rows(cursor)
            except psycopg.errors.UndefinedTable as exc:
                self._catalog.forget()
                raise RenderError(
                    f"table {relation.qualified_name} is gone", hint="restore it or drop its collection"
                ) from exc
            except psycopg.Error as exc:
                raise self._failed(exc) from exc
        assert snapshot is not None
        return RowSet(snapshot=snapshot[0], relations=[self._physical(oid, relation) for oid in oids], rows=rows)

    def _relation(self, table: str) -> Relation:
        with self._lock:
            oid = self._tables.get(table)
            info = self._catalog.by_oid(oid, refresh=True) if oid is not None else None
            relation = self._catalog.relation(info) if info else None
        if relation is None:
            raise RenderError(f"table {table} is gone", hint="restore it or remove its collection from the config")
        return relation

    def _physical(self, oid: int, root: Relation) -> Relation:
        """The same columns under the partition's own oid, so that truncating the partition finds its documents."""
        if oid == root.oid:
            return root
        return Relation(
            oid=oid,
            root_oid=root.root_oid,
            schema=root.schema,
            name=root.name,
            columns=root.columns,
            key=root.key,
            replica_identity=root.replica_identity,
        )

    def _connected(self) -> psycopg.Connection[Any]:
        if self._connection is None or self._connection.closed:
            self._connection = connect(self._dsn, connect_timeout_s=self._connect_timeout_s)
        return self._connection

    def _failed(self, exc: psycopg.Error) -> Exception:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        return classify(exc)


def _identifier(*parts: str) -> sql.SQL:
    """A quoted name. psycopg reads a percent sign in it as a placeholder, so it is doubled."""
    return sql.SQL(sql.Identifier(*parts).as_string(None).replace("%", "%%"))


def _placeholders(relation: Relation) -> sql.Composed:
    """One untyped placeholder a key column: the server infers the column's type from the comparison."""
    return sql.SQL(", ").join(sql.Placeholder() for _ in relation.key)


def _raw_rows(cursor: psycopg.Cursor[Any]) -> tuple[list[int], list[RawRow]]:
    """Take the values as the server wrote them, before psycopg makes Python of them."""
    result = cursor.pgresult
    assert result is not None
    oids: list[int] = []
    rows: list[RawRow] = []
    for i in range(result.ntuples):
        oid = result.get_value(i, 0)
        oids.append(int(oid or b"0"))
        rows.append(tuple(result.get_value(i, j) for j in range(1, result.nfields)))
    return oids, rows
