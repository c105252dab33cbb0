"""Decodes ``wal2json``, format version 2. Pure but for asking ``relation_of`` which of our tables a name is.

What the format does not say, and what is done about it:

* an unchanged out-of-line value is left out: it becomes ``UNCHANGED``;
* NaN and infinity become null: a null in a float or numeric column becomes ``UNCHANGED``, and is read again from
  the table when a document needs it;
* bytea loses its ``\\x``: it is put back;
* tables have names only, and the columns of an old row no number: ``relation_of`` knows what these were called.

https://github.com/eulerto/wal2json#format-version-2
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import msgspec

from cdc_agent.errors import DecodeError
from cdc_agent.events import UNCHANGED, Op, RawRow, RawValue, Relation, Transaction
from cdc_agent.lsn import Lsn
from cdc_agent.source.assembler import Assembler
from cdc_agent.source.connection import NO_TEXT_HINT
from cdc_agent.source.pgoutput import MESSAGE_PREFIX
from cdc_agent.values import BYTEA_OID, FLOAT_OIDS

__all__ = ["RelationOf", "SentColumn", "Wal2JsonDecoder"]


class _Number(str):
    """A JSON number with a fraction or exponent, kept as it was written."""

    __slots__ = ()


class SentColumn(msgspec.Struct, gc=False):
    """One column of a row as it was sent; ``position`` is its ``attnum``, 0 in an old row."""

    name: str
    typeoid: int = 0
    value: Any = None
    position: int = 0


#: Answers which of our tables this schema and name is, described so that it has the columns of this row and of this
#: old row; None if it is not ours.
RelationOf = Callable[[str, str, Sequence[SentColumn], Sequence[SentColumn]], "Relation | None"]


class _Message(msgspec.Struct, gc=False):
    action: str
    xid: int = 0
    timestamp: str = ""
    lsn: str = ""
    nextlsn: str = ""
    schema: str = ""
    table: str = ""
    columns: list[SentColumn] | None = None
    identity: list[SentColumn] | None = None
    transactional: bool = True
    prefix: str = ""
    content: str = ""


class _Layout:
    """A relation, and the types that its columns are sent with: a domain's is not what it is made of."""

    __slots__ = ("relation", "sent", "sent_types")

    def __init__(self, relation: Relation, sent: dict[str, int]) -> None:
        self.relation = relation
        self.sent = {column.name: column.type_oid for column in relation.columns} | sent
        self.sent_types = [self.sent[column.name] for column in relation.columns]

    def fits(self, given: Sequence[SentColumn]) -> bool:
        """Each of these columns was seen before, by name and type."""
        sent = self.sent
        return all(sent.get(column.name) == column.typeoid for column in given)


class Wal2JsonDecoder:
    """See ``source.base.Decoder``."""

    plugin = "wal2json"

    def __init__(self, relation_of: RelationOf) -> None:
        self._relation_of = relation_of
        self._layouts: dict[tuple[str, str], _Layout | None] = {}
        self._decode = msgspec.json.Decoder(_Message, float_hook=_Number).decode
        self.assembler = Assembler()

    @property
    def in_transaction(self) -> bool:
        return self.assembler.in_transaction

    def reset(self) -> None:
        self._layouts.clear()
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
            if isinstance(exc, UnicodeDecodeError):
                raise DecodeError("a row holds bytes that are no text", hint=NO_TEXT_HINT) from exc
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
        given, identity = message.columns or (), message.identity or ()
        try:
            layout = self._layouts[name]
        except KeyError:
            layout = self._described(name, given, identity)
        if layout is None:
            self.assembler.skip()
            return None
        after = _row_in_order(layout, given) if given else None
        if after is None and not layout.fits(given or identity):
            layout = self._described(name, given, identity) or layout
        if after is None and message.columns is not None:
            after = _row(layout.relation, given)
        relation = layout.relation
        action = message.action
        before = None
        if message.identity is not None:
            before = _row_in_order(layout, identity) or _row(relation, identity)
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

    def _described(
        self, name: tuple[str, str], given: Sequence[SentColumn], identity: Sequence[SentColumn]
    ) -> _Layout | None:
        """Ask what this name is: at its first row, and when a row has a column of another name or type."""
        relation = self._relation_of(*name, given, identity)
        before = self._layouts.get(name)
        sent = {column.name: column.typeoid for column in given or identity}
        layout = _Layout(relation, (before.sent if before else {}) | sent) if relation is not None else None
        self._layouts[name] = layout
        return layout


_LOGICAL_MESSAGE = b'{"action":"M"'
_TRANSACTIONAL = b'"transactional":true,"prefix":'
_HINT = "the replication stream is damaged or newer than this program; report it with the slot's LSN"


def _row_in_order(layout: _Layout, given: Sequence[SentColumn]) -> RawRow | None:
    """The usual case: every column is there, in the relation's order. None if that is not so."""
    columns = layout.relation.columns
    if len(given) != len(columns):
        return None
    row: list[RawValue] = []
    for item, column, type_oid in zip(given, columns, layout.sent_types, strict=True):
        if item.name != column.name or item.typeoid != type_oid:
            return None
        value = item.value
        # Most values are text; the rest, and bytea, take the longer way.
        plain = type(value) is str and column.type_oid != BYTEA_OID
        row.append(value.encode() if plain else _raw(value, column.type_oid))
    return tuple(row)


def _row(relation: Relation, given: Sequence[SentColumn]) -> RawRow:
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
