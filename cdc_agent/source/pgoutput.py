"""Decodes ``pgoutput``, protocol version 1, text values. Pure: bytes in, transactions out.

Message formats: https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html
Partitions arrive under their own oid (the publication does not publish via the root), so that truncating one
partition is seen; ``describe`` says which watched table a relation belongs to and what its document key is.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from cdc_agent.errors import DecodeError
from cdc_agent.events import UNCHANGED, Column, Op, RawRow, RawValue, Relation, Transaction
from cdc_agent.source.assembler import Assembler

__all__ = ["Describe", "PgOutputDecoder", "RelationMessage"]

#: 2000-01-01 in microseconds of the Unix epoch: where Postgres' clock starts.
PG_EPOCH_US = 946_684_800_000_000

_BEGIN = struct.Struct("!QqI").unpack_from
_COMMIT = struct.Struct("!BQQq").unpack_from
_COLUMN = struct.Struct("!Ii").unpack_from
_TRUNCATE = struct.Struct("!IB").unpack_from
_MESSAGE = struct.Struct("!BQ").unpack_from
_COUNT = struct.Struct("!H").unpack_from
_LENGTH = struct.Struct("!I").unpack_from

_I, _U, _D, _B, _C, _R, _T, _M, _Y, _O = (ord(c) for c in "IUDBCRTMYO")
_NEW, _OLD, _KEY = (ord(c) for c in "NOK")
_CREATE, _UPDATE, _DELETE, _TRUNC, _LOGICAL = (
    str(op) for op in (Op.CREATE, Op.UPDATE, Op.DELETE, Op.TRUNCATE, Op.MESSAGE)
)

#: Only our own logical messages are kept; a foreign application's are none of our business.
MESSAGE_PREFIX = "cdc_agent"


class RelationMessage:
    """What the log says about a table, at that moment. ``key`` are the replica identity columns."""

    __slots__ = ("columns", "key", "name", "oid", "replica_identity", "schema")

    def __init__(
        self, oid: int, schema: str, name: str, replica_identity: str, columns: tuple[Column, ...], key: tuple[str, ...]
    ) -> None:
        self.oid = oid
        self.schema = schema
        self.name = name
        self.replica_identity = replica_identity
        self.columns = columns
        self.key = key


#: Answers which of our tables a relation is, or None if it is not ours.
Describe = Callable[[RelationMessage], "Relation | None"]


class PgOutputDecoder:
    """See ``source.base.Decoder``."""

    plugin = "pgoutput"

    def __init__(self, describe: Describe) -> None:
        self._describe = describe
        # By the four bytes that name a relation in every message: nothing to convert for each row.
        self._relations: dict[bytes, Relation | None] = {}
        self._identity: dict[bytes, frozenset[int]] = {}
        self.assembler = Assembler()

    @property
    def in_transaction(self) -> bool:
        return self.assembler.in_transaction

    def reset(self) -> None:
        self._relations.clear()
        self.assembler.reset()

    def feed(self, payload: memoryview | bytes) -> Transaction | None:  # noqa: PLR0911 (a table of message kinds)
        data = bytes(payload)
        try:
            kind = data[0]
            if kind == _I:
                return self._insert(data)
            if kind == _U:
                return self._update(data)
            if kind == _D:
                return self._delete(data)
            if kind == _B:
                commit_lsn, ts, xid = _BEGIN(data, 1)
                self.assembler.begin(xid, commit_lsn, ts + PG_EPOCH_US)
                return None
            if kind == _C:
                return self.assembler.commit(_COMMIT(data, 1)[2])
            if kind == _R:
                self._relation(data)
                return None
            if kind == _T:
                return self._truncate(data)
            if kind == _M:
                return self._message(data)
            if kind in (_Y, _O):
                return None
        except (struct.error, IndexError, ValueError) as exc:
            raise DecodeError(f"malformed pgoutput message {data[:1]!r} of {len(data)} bytes", hint=_HINT) from exc
        raise DecodeError(f"unknown pgoutput message {data[:1]!r}", hint=_HINT)

    def _insert(self, data: bytes) -> Transaction | None:
        relation = self._known(data)
        if relation is None:
            self.assembler.skip()
            return None
        return self.assembler.add(_CREATE, relation, None, _tuple(data, 6, len(relation.columns))[0], len(data))

    def _update(self, data: bytes) -> Transaction | None:
        relation = self._known(data)
        if relation is None:
            self.assembler.skip()
            return None
        at, before = 5, None
        if data[at] != _NEW:
            before, at = self._old(data, relation)
        after, _ = _tuple(data, at + 1, len(relation.columns))
        return self.assembler.add(_UPDATE, relation, before, after, len(data))

    def _delete(self, data: bytes) -> Transaction | None:
        relation = self._known(data)
        if relation is None:
            self.assembler.skip()
            return None
        return self.assembler.add(_DELETE, relation, self._old(data, relation)[0], None, len(data))

    def _old(self, data: bytes, relation: Relation) -> tuple[RawRow, int]:
        row, at = _tuple(data, 6, len(relation.columns))
        if data[5] == _KEY:
            # Columns outside the identity are NULL placeholders here, not values.
            identity = self._identity[data[1:5]]
            row = tuple(value if i in identity else UNCHANGED for i, value in enumerate(row))
        return row, at

    def _known(self, data: bytes) -> Relation | None:
        try:
            return self._relations[data[1:5]]
        except KeyError:
            oid = int.from_bytes(data[1:5], "big")
            raise DecodeError(f"a row of relation {oid} came before its description", hint=_HINT) from None

    def _relation(self, data: bytes) -> None:
        message, identity = _relation_message(data)
        self._relations[data[1:5]] = self._describe(message)
        self._identity[data[1:5]] = identity

    def _truncate(self, data: bytes) -> Transaction | None:
        count, _flags = _TRUNCATE(data, 1)
        if len(data) < 6 + 4 * count:
            raise ValueError("a relation is missing")
        full = None
        for i in range(count):
            relation = self._relations.get(data[6 + 4 * i : 10 + 4 * i])
            if relation is None:
                self.assembler.skip()
            else:
                full = _first(full, self.assembler.add(_TRUNC, relation, None, None, 16))
        return full

    def _message(self, data: bytes) -> Transaction | None:
        flags, _lsn = _MESSAGE(data, 1)
        end = data.index(0, 10)
        prefix = data[10:end].decode("utf-8", "replace")
        if not flags & 1:
            # A message outside transactions has no place in the order of commits.
            return None
        if not prefix.startswith(MESSAGE_PREFIX):
            self.assembler.skip()
            return None
        content = data[end + 5 :]
        if len(content) != _LENGTH(data, end + 1)[0]:
            raise ValueError("a message of another length than it says")
        return self.assembler.add(_LOGICAL, None, (prefix.encode(), content), None, len(data))


_HINT = "the replication stream is damaged or newer than this program; report it with the slot's LSN"


def _first(part: Transaction | None, other: Transaction | None) -> Transaction | None:
    """Truncating thousands of tables in one message can fill a part; the bound is soft, so parts are joined."""
    if part is None or other is None:
        return part or other
    part.changes.extend(other.changes)
    part.size_bytes += other.size_bytes
    return part


def _tuple(data: bytes, at: int, width: int) -> tuple[RawRow, int]:
    """Read one TupleData of ``width`` columns at ``at``; returns raw text values and the position after it.

    The hottest loop of the program: a slice past the end is noticed once, at the end.
    """
    row: list[RawValue] = []
    append = row.append
    length = _LENGTH
    (count,) = _COUNT(data, at)
    if count != width:
        raise ValueError(f"{count} values for {width} columns")
    at += 2
    for _ in range(count):
        kind = data[at]
        if kind == 116:  # 't': a value in text form
            start = at + 5
            at = start + length(data, at + 1)[0]
            append(data[start:at])
        elif kind == 110:  # 'n': NULL
            append(None)
            at += 1
        elif kind == 117:  # 'u': unchanged and out of line, not sent
            append(UNCHANGED)
            at += 1
        else:
            raise ValueError(f"unknown value kind {kind}")
    if at > len(data):
        raise ValueError("a value reaches past its message")
    return tuple(row), at


def _relation_message(data: bytes) -> tuple[RelationMessage, frozenset[int]]:
    oid = int.from_bytes(data[1:5], "big")
    schema, at = _string(data, 5)
    name, at = _string(data, at)
    identity = chr(data[at])
    (count,) = _COUNT(data, at + 1)
    at += 3
    columns: list[Column] = []
    flagged: list[int] = []
    for i in range(count):
        flags = data[at]
        column, at = _string(data, at + 1)
        type_oid, _typmod = _COLUMN(data, at)
        at += 8
        columns.append(Column(name=column, type_oid=type_oid))
        if flags & 1:
            flagged.append(i)
    key = tuple(columns[i].name for i in flagged)
    message = RelationMessage(oid, schema or "pg_catalog", name, identity, tuple(columns), key)
    return message, frozenset(flagged)


def _string(data: bytes, at: int) -> tuple[str, int]:
    end = data.index(0, at)
    return data[at:end].decode("utf-8"), end + 1
