"""Decodes ``wal2json``, format version 2. Pure but for asking ``relation_of`` which of our tables a name is.

What the format does not say, and what is done about it:

* an unchanged out-of-line value is left out: it becomes ``UNCHANGED``;
* NaN and infinity become null: a null in a float or numeric column becomes ``UNCHANGED``, and is read again from
  the table when a document needs it;
* bytea loses its ``\\x``: it is put back;
* columns have names only: types come from the catalog.

https://github.com/eulerto/wal2json#format-version-2
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import msgspec

from cdc_agent.errors import DecodeError
from cdc_agent.events import UNCHANGED, Op, RawRow, RawValue, Relation, Transaction
from cdc_agent.lsn import Lsn
from cdc_agent.source.assembler import Assembler
from cdc_agent.source.pgoutput import MESSAGE_PREFIX
from cdc_agent.values import BYTEA_OID, FLOAT_OIDS

__all__ = ["RelationOf", "Wal2JsonDecoder"]

#: Answers which of our tables has this schema and name now, or None if it is not ours.
RelationOf = Callable[[str, str], "Relation | None"]


class _Number(str):
    """A JSON number with a fraction or exponent, kept as it was written."""

    __slots__ = ()


class _Value(msgspec.Struct, gc=False):
    name: str
    value: Any = None


class _Message(msgspec.Struct, gc=False):
    action: str
    xid: int = 0
    timestamp: str = ""
    lsn: str = ""
    nextlsn: str = ""
    schema: str = ""
    table: str = ""
    columns: list[_Value] | None = None
    identity: list[_Value] | None = None
    transactional: bool = True
    prefix: str = ""
    content: str = ""


class Wal2JsonDecoder:
    """See ``source.base.Decoder``."""

    plugin = "wal2json"

    def __init__(self, relation_of: RelationOf) -> None:
        self._relation_of = relation_of
        self._relations: dict[tuple[str, str], Relation | None] = {}
        self._foreign_columns: set[tuple[int, str]] = set()
        self._decode = msgspec.json.Decoder(_Message, float_hook=_Number).decode
        self.assembler = Assembler()

    @property
    def in_transaction(self) -> bool:
        return self.assembler.in_transaction

    def reset(self) -> None:
        self._relations.clear()
        self._foreign_columns.clear()
        self.assembler.reset()

    def feed(self, payload: memoryview | bytes) -> Transaction | None:
        message = self._message(payload)
        action = message.action
        if action in ("I", "U", "D", "T"):
            return self._change(message, len(payload))
        if action in ("B", "C"):
            return self._boundary(message, len(payload))
        if action == "M":
            return self._logical_message(message)
        raise DecodeError(f"unknown wal2json action {action!r}", hint=_HINT)

    def _message(self, payload: memoryview | bytes) -> _Message:
        try:
            return self._decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            data = bytes(payload)
            if data.startswith(_LOGICAL_MESSAGE):
                # Any application may write bytes that are no text into such a message; none of them is ours.
                return _Message(action="M", transactional=_TRANSACTIONAL in data)
            raise DecodeError(f"malformed wal2json message of {len(payload)} bytes", hint=_HINT) from exc

    def _boundary(self, message: _Message, size: int) -> Transaction | None:
        try:
            if message.action == "C":
                return self.assembler.commit(Lsn.parse(message.nextlsn))
            self.assembler.begin(message.xid, Lsn.parse(message.lsn), _microseconds(message.timestamp))
        except ValueError as exc:
            raise DecodeError(f"malformed wal2json message of {size} bytes", hint=_HINT) from exc
        return None

    def _change(self, message: _Message, size: int) -> Transaction | None:
        name = (message.schema, message.table)
        try:
            relation = self._relations[name]
        except KeyError:
            relation = self._relations[name] = self._relation_of(*name)
        after = None
        if relation is not None and message.columns is not None:
            after = _row_in_order(relation, message.columns)
            if after is None:
                relation = self._up_to_date(name, relation, message.columns)
                after = _row(relation, message.columns)
        if relation is None:
            self.assembler.skip()
            return None
        action = message.action
        before = None
        if message.identity is not None:
            before = _row_in_order(relation, message.identity) or _row(relation, message.identity)
        if action == "I":
            return self.assembler.add(Op.CREATE.value, relation, None, after, size)
        if action == "U":
            return self.assembler.add(Op.UPDATE.value, relation, before, after, size)
        if action == "D":
            return self.assembler.add(Op.DELETE.value, relation, before, None, size)
        return self.assembler.add(Op.TRUNCATE.value, relation, None, None, size)

    def _logical_message(self, message: _Message) -> Transaction | None:
        if not message.transactional:
            return None
        if not message.prefix.startswith(MESSAGE_PREFIX):
            self.assembler.skip()
            return None
        content = message.content.encode()
        return self.assembler.add(Op.MESSAGE.value, None, (message.prefix.encode(), content), None, len(content))

    def _up_to_date(self, name: tuple[str, str], relation: Relation, columns: list[_Value]) -> Relation:
        """The relation, looked up again if the message has a column that it has not."""
        for column in columns:
            if column.name not in relation.index and (relation.oid, column.name) not in self._foreign_columns:
                return self._refreshed(name, relation, columns)
        return relation

    def _refreshed(self, name: tuple[str, str], old: Relation, columns: list[_Value]) -> Relation:
        """A column we have not heard of: the table changed. One that the catalog has lost already is ignored."""
        relation = self._relation_of(*name) or old
        self._relations[name] = relation
        self._foreign_columns.update((relation.oid, c.name) for c in columns if c.name not in relation.index)
        return relation


_LOGICAL_MESSAGE = b'{"action":"M"'
_TRANSACTIONAL = b'"transactional":true,"prefix":'
_HINT = "the replication stream is damaged or newer than this program; report it with the slot's LSN"


def _row_in_order(relation: Relation, given: list[_Value]) -> RawRow | None:
    """The usual case: every column is there, in the relation's order. None if that is not so."""
    columns = relation.columns
    if len(given) != len(columns):
        return None
    row: list[RawValue] = []
    for item, column in zip(given, columns, strict=True):
        if item.name != column.name:
            return None
        value = item.value
        # Most values are text; the rest, and bytea, take the longer way.
        plain = type(value) is str and column.type_oid != BYTEA_OID
        row.append(value.encode() if plain else _raw(value, column.type_oid))
    return tuple(row)


def _row(relation: Relation, given: list[_Value]) -> RawRow:
    """The values in the relation's column order; what was not given is ``UNCHANGED``."""
    columns = relation.columns
    sparse: list[RawValue] = [UNCHANGED] * len(columns)
    index = relation.index
    for item in given:
        place = index.get(item.name)
        if place is not None:
            sparse[place] = _raw(item.value, columns[place].type_oid)
    return tuple(sparse)


def _raw(value: Any, type_oid: int) -> RawValue:
    """Postgres' text form of one JSON value."""
    if type(value) is str:
        return (f"\\x{value}" if type_oid == BYTEA_OID else value).encode()
    if value is None:
        return UNCHANGED if type_oid in FLOAT_OIDS else None
    if value is True:
        return b"t"
    if value is False:
        return b"f"
    return str(value).encode()


def _microseconds(timestamp: str) -> int:
    """Microseconds since 1970 of ``2026-11-22 15:04:05.678901+00``."""
    moment = datetime.fromisoformat(timestamp)
    whole = int(moment.replace(microsecond=0).timestamp())
    return whole * 1_000_000 + moment.microsecond
