"""Reads rows of the source over SQL: pages by key for a resync, single rows by key, and watermark messages.

Values come back in Postgres' text form under the same settings as the log, so both ways into the index agree byte
for byte. Every read is one short REPEATABLE READ transaction that also reports its snapshot.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import orjson
import psycopg
from psycopg import sql

from cdc_agent import queries
from cdc_agent.errors import RenderError, SourceError, UsageError
from cdc_agent.events import RawRow, Relation
from cdc_agent.lsn import Lsn
from cdc_agent.source.base import RowSet, TableRows
from cdc_agent.source.catalog import Catalog
from cdc_agent.source.condition import check_condition
from cdc_agent.source.connection import classify, connect

__all__ = ["SqlRowReader"]

_SQL = queries.load("cdc_agent.source", "rows.sql")
#: How often a table or column may be renamed between the look at the catalog and the read.
_RENAMES = 5


class SqlRowReader:
    """See ``source.base.RowReader``. Owns one connection and a catalog; calls from several threads take turns.

    ``tables`` maps the configured name to the watched table's oid: the oid stays right when a table is renamed.
    """

    def __init__(
        self, dsn: str, catalog: Catalog, tables: Mapping[str, int], *, connect_timeout_s: float = 10.0
    ) -> None:
        self._dsn = dsn
        self._catalog = catalog
        self._tables: dict[str, int | None] = dict(tables)
        self._connect_timeout_s = connect_timeout_s
        self._connection: psycopg.Connection[Any] | None = None
        self._lock = threading.Lock()

    def follow(self, oids: Mapping[str, int | None]) -> None:
        """From now on the configured tables are these; one without an oid is known to be gone, and has no rows."""
        with self._lock:
            self._tables.update(oids)
            self._catalog.follow({name: oid for name, oid in oids.items() if oid is not None})

    def page(self, request: TableRows) -> RowSet:
        def tail(relation: Relation) -> sql.Composed:
            # The values travel as text and take the column's type and collation there: exact for every key type.
            key = sql.SQL(", ").join(_identifier(name) for name in relation.key)
            conditions: list[sql.Composable] = [_condition(request.predicate)] if request.predicate else []
            if request.after_key is not None:
                conditions.append(sql.SQL("({}) > ({})").format(key, _placeholders(relation)))
            return sql.SQL("{} order by {} limit {}").format(_where(conditions), key, sql.Literal(request.limit))

        return self._read(request.table, tail, list(request.after_key or ()))

    def by_key(self, table: str, keys: Iterable[tuple[str, ...]]) -> RowSet:
        wanted = list(keys)

        def tail(relation: Relation) -> sql.Composed:
            names = sql.SQL(", ").join(_identifier(name) for name in relation.key)
            rows = sql.SQL(", ").join(sql.SQL("({})").format(_placeholders(relation)) for _ in wanted)
            return sql.SQL("where ({}) in ({})").format(names, rows)

        return self._read(table, tail, [part for key in wanted for part in key])

    def mark(self, prefix: str, content: Mapping[str, object]) -> Lsn:
        with self._lock:
            try:
                row = self._connected().execute(_SQL["mark"], (prefix, orjson.dumps(content).decode())).fetchone()
            except psycopg.Error as exc:
                raise self._failed(exc) from exc
        assert row is not None
        return Lsn.parse(row[0])

    def estimated_rows(self, table: str, predicate: str = "") -> int:
        """The planner's estimate, which looks at the size of the table where it has no statistics."""
        if self._is_gone(table):
            return 0
        relation = self._relation(table)
        statement = sql.SQL("explain (format json) select from {} {}").format(
            _identifier(relation.schema, relation.name), _where([_condition(predicate)] if predicate else [])
        )
        with self._lock:
            try:
                row = self._connected().execute(statement, []).fetchone()
            except psycopg.Error as exc:
                raise self._failed(exc) from exc
        assert row is not None
        return int(row[0][0]["Plan"]["Plan Rows"])

    def check_predicate(self, table: str, predicate: str) -> None:
        """Raise ``UsageError`` unless the server can make a condition on this table of it. Executes nothing."""
        check_condition(predicate)
        try:
            self.estimated_rows(table, predicate)
        except SourceError as exc:
            if exc.retryable:
                raise
            raise UsageError(f"where: {exc.message}", hint="it is SQL over the columns of the table") from exc

    def key_names(self, table: str) -> tuple[str, ...]:
        """The columns that identify a row, in the order of its key. Raises ``RenderError`` when the table is gone."""
        return self._relation(table).key

    def close(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None
            self._catalog.close()

    def _read(self, table: str, tail: Callable[[Relation], sql.Composed], params: list[Any]) -> RowSet:
        """Try again when a name changed after the catalog was asked."""
        if self._is_gone(table):
            return RowSet(snapshot=self._snapshot(), relations=(), rows=())
        for _ in range(_RENAMES):
            relation = self._relation(table)
            try:
                return self._select(relation, tail(relation), params)
            except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn) as exc:
                self._forget()
                renamed = exc
        if isinstance(renamed, psycopg.errors.UndefinedTable):
            raise RenderError(
                f"table {relation.qualified_name} is gone", hint="restore it or drop its collection"
            ) from renamed
        raise classify(renamed) from renamed

    def _is_gone(self, table: str) -> bool:
        return self._tables.get(table, 0) is None

    def _snapshot(self) -> str:
        with self._lock:
            try:
                row = self._connected().execute(_SQL["snapshot"]).fetchone()
            except psycopg.Error as exc:
                raise self._failed(exc) from exc
        assert row is not None
        return str(row[0])

    def _forget(self) -> None:
        with self._lock:
            self._catalog.forget()

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
                    # Who waits for one locked table holds up the rows of all others.
                    connection.execute(_SQL["patience"])
                    snapshot = connection.execute(_SQL["snapshot"]).fetchone()
                    cursor = connection.execute(statement, params)
                    oids, rows = _raw_rows(cursor)
            except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn):
                raise
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


def _condition(predicate: str) -> sql.SQL:
    """Somebody's SQL in parentheses of its own (see ``condition``)."""
    return sql.SQL("(\n" + predicate.replace("%", "%%") + "\n)")


def _where(conditions: Sequence[sql.Composable]) -> sql.Composable:
    return sql.SQL("where {}").format(sql.SQL(" and ").join(conditions)) if conditions else sql.SQL("")


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
