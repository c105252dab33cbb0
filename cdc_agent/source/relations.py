"""Joins what the log says about a table with what only the catalog knows: whose partition it is, its document key."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from cdc_agent.events import Column, Relation
from cdc_agent.source.catalog import Catalog, TableInfo
from cdc_agent.source.pgoutput import RelationMessage
from cdc_agent.source.wal2json import SentColumn

__all__ = ["Relations"]


class Relations:
    """Describes relations for the decoders. Uses the catalog's connection, so it belongs to the reader's thread.

    ``changed`` is called when the log describes one of our tables otherwise than before.
    """

    def __init__(self, catalog: Catalog, changed: Callable[[], None] = lambda: None) -> None:
        self._catalog = catalog
        self._changed = changed
        self._described: dict[int, tuple[object, ...]] = {}

    def describe(self, message: RelationMessage) -> Relation | None:
        """The relation of a pgoutput Relation message, or None when no watched table is among its ancestors."""
        # Sent once a connection and after every change of the table, which may also be one of its partitions' family.
        info = self._catalog.by_oid(message.oid, refresh=True)
        if info is None:
            return self._gone(message)
        root = self._catalog.root_of(info)
        if root is None:
            return None
        self._notice(message)
        return Relation(
            oid=message.oid,
            root_oid=root,
            schema=message.schema,
            name=message.name,
            columns=self._of_base_types(message.columns),
            key=_document_key(message, info),
            replica_identity=message.replica_identity,
        )

    def named(
        self, schema: str, name: str, sent: Sequence[SentColumn], identity: Sequence[SentColumn]
    ) -> Relation | None:
        """The relation that has, or had, this name (wal2json knows names only), with its columns as they were sent.

        ``sent`` are the columns of a row, which have numbers; ``identity`` those of an old row, which have none.
        """
        info = self._catalog.by_name(schema, name)
        relation = self._catalog.relation(info) if info else None
        if info is None or relation is None:
            return None
        columns = self._columns(info, sent or _numbered(info, identity))
        names = {number: column.name for number, column in columns.items()}
        key = tuple(names.get(info.numbers[_place(part, info)], part) for part in info.key)
        return replace(relation, schema=schema, name=name, columns=tuple(columns.values()), key=key)

    def _notice(self, message: RelationMessage) -> None:
        said = (message.schema, message.name, message.columns, message.key, message.replica_identity)
        if self._described.setdefault(message.oid, said) != said:
            self._described[message.oid] = said
            self._changed()

    def _of_base_types(self, columns: tuple[Column, ...]) -> tuple[Column, ...]:
        """The log names a domain where SELECT names what it is made of."""
        return tuple(replace(column, type_oid=self._catalog.base_type(column.type_oid)) for column in columns)

    def _columns(self, info: TableInfo, sent: Sequence[SentColumn]) -> dict[int, Column]:
        """Columns by number: those of the catalog, in place of them or besides them those that were sent.

        A column that was not sent and whose name another one had then is left out: what it was called is not known.
        """
        were = {c.position: Column(name=c.name, type_oid=self._catalog.base_type(c.typeoid)) for c in sent}
        taken = {column.name for column in were.values()}
        now = dict(zip(info.numbers, info.columns, strict=True))
        kept = {number: column for number, column in now.items() if number in were or column.name not in taken}
        return dict(sorted((kept | were).items()))

    def _gone(self, message: RelationMessage) -> Relation | None:
        """A table dropped before we decode its last changes: only a watched table itself is still ours."""
        if message.oid not in self._catalog.watched:
            return None
        return Relation(
            oid=message.oid,
            root_oid=message.oid,
            schema=message.schema,
            name=message.name,
            columns=self._of_base_types(message.columns),
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


def _numbered(info: TableInfo, identity: Sequence[SentColumn]) -> list[SentColumn]:
    """The columns of an old row with their numbers: by name, or by place where it holds the key, or the whole row."""
    by_name = {column.name: number for number, column in zip(info.numbers, info.columns, strict=True)}
    if any(column.name not in by_name for column in identity):
        key = sorted(by_name[part] for part in info.key)
        numbers = next((found for found in (key, info.numbers) if len(found) == len(identity)), ())
        by_name |= {column.name: number for column, number in zip(identity, numbers, strict=False)}
    return [
        SentColumn(name=column.name, typeoid=column.typeoid, position=by_name[column.name])
        for column in identity
        if column.name in by_name
    ]


def _place(name: str, info: TableInfo) -> int:
    return next(i for i, column in enumerate(info.columns) if column.name == name)
