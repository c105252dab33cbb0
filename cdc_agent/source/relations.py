"""Joins what the log says about a table with what only the catalog knows: whose partition it is, its document key."""

from __future__ import annotations

from cdc_agent.events import Column, Relation
from cdc_agent.source.catalog import Catalog, TableInfo
from cdc_agent.source.pgoutput import RelationMessage

__all__ = ["Relations"]


class Relations:
    """Describes relations for the decoders. Uses the catalog's connection, so it belongs to the reader's thread."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def describe(self, message: RelationMessage) -> Relation | None:
        """The relation of a pgoutput Relation message, or None when no watched table is among its ancestors."""
        info = self._catalog.by_oid(message.oid)
        if info is None or info.columns != message.columns or info.replica_identity != message.replica_identity:
            info = self._catalog.by_oid(message.oid, refresh=True)
        if info is None:
            return self._gone(message)
        root = self._catalog.root_of(info)
        if root is None:
            return None
        return Relation(
            oid=message.oid,
            root_oid=root,
            schema=message.schema,
            name=message.name,
            columns=message.columns,
            key=_document_key(message, info),
            replica_identity=message.replica_identity,
        )

    def named(self, schema: str, name: str) -> Relation | None:
        """The relation that the catalog has under this name now (wal2json knows names only)."""
        info = self._catalog.by_name(schema, name)
        return self._catalog.relation(info) if info else None

    def _gone(self, message: RelationMessage) -> Relation | None:
        """A table dropped before we decode its last changes: only a watched table itself is still ours."""
        if message.oid not in self._catalog.watched:
            return None
        return Relation(
            oid=message.oid,
            root_oid=message.oid,
            schema=message.schema,
            name=message.name,
            columns=message.columns,
            key=message.key,
            replica_identity=message.replica_identity,
        )


def _document_key(message: RelationMessage, info: TableInfo) -> tuple[str, ...]:
    """The names of the key columns at the time of the message, in the order of the key.

    With replica identity full every column is flagged and the catalog decides; a key column renamed meanwhile is
    found by its place.
    """
    if message.replica_identity in "di" and set(message.key) != set(info.key):
        return message.key
    names = {column.name for column in message.columns}
    if all(name in names for name in info.key):
        return info.key
    return tuple(_by_place(name, message.columns, info.columns) for name in info.key)


def _by_place(name: str, then: tuple[Column, ...], now: tuple[Column, ...]) -> str:
    place = next(i for i, column in enumerate(now) if column.name == name)
    return then[place].name if len(then) == len(now) else name
