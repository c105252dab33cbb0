"""How transactions lie in a block of the stream: one MessagePack document, self-contained with its relations. Pure.

Values stay the bytes that Postgres sent, so writing is cheap, bytes that are no text can be stored, and a reader
decodes only the columns it looks at.

Layout: ``[FORMAT, relations, transactions]``; a relation is ``[oid, root_oid, schema, name, identity, key, columns]``;
a transaction is ``[xid, commit_lsn, commit_ts_us, end_lsn | nil, snapshot | nil, resync id, changes]``; a change is
``[op, relation index | -1, ordinal, before | nil, after | nil]``. Values are binary; UNCHANGED, the only text among
them, is its enum value.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import msgspec

from cdc_agent.errors import StreamError
from cdc_agent.events import UNCHANGED, ChangeEvent, Column, Op, Relation, Row, Transaction
from cdc_agent.lsn import Lsn, Version

__all__ = ["decode", "encode"]

_FORMAT = 1
_encode = msgspec.msgpack.Encoder().encode

# The layout as types, so that what is not of it is refused as a whole; values are looked at by who wants them.
_Relation = tuple[int, int, str, str, str, tuple[str, ...], list[tuple[str, int]]]
_Change = tuple[Literal["c", "u", "d", "r", "t", "m"], int, int, list[Any] | None, list[Any] | None]
_Transaction = tuple[int, int, int, int | None, str | None, int, list[_Change]]
_decode = msgspec.msgpack.Decoder(tuple[int, list[_Relation], list[_Transaction]]).decode
_format_of = msgspec.msgpack.Decoder(list[Any]).decode


def encode(transactions: Iterable[Transaction]) -> bytes:
    """Pack transactions (or parts of one) into a block."""
    places = _Places()
    packed = [
        (
            tx.xid,
            int(tx.commit_lsn),
            tx.commit_ts_us,
            None if tx.end_lsn is None else int(tx.end_lsn),
            tx.snapshot,
            tx.resync_id,
            [(op, places[relation], ordinal, before, after) for op, relation, ordinal, before, after in tx.changes],
        )
        for tx in transactions
    ]
    return bytes(_encode((_FORMAT, [_describe(r) for r in places.relations], packed)))


class _Places:
    """The relations of a block in the order of their first change; -1 for a change without one."""

    def __init__(self) -> None:
        self.relations: list[Relation] = []
        self._last: Relation | None = None
        self._place = -1
        self._by_id: dict[int, int] = {}

    def __getitem__(self, relation: Relation | None) -> int:
        if relation is self._last:
            return self._place
        self._last = relation
        self._place = -1 if relation is None else self._find(relation)
        return self._place

    def _find(self, relation: Relation) -> int:
        if id(relation) not in self._by_id:
            self._by_id[id(relation)] = len(self.relations)
            self.relations.append(relation)
        return self._by_id[id(relation)]


def _describe(relation: Relation) -> Any:
    columns = [(c.name, c.type_oid) for c in relation.columns]
    return (
        relation.oid,
        relation.root_oid,
        relation.schema,
        relation.name,
        relation.replica_identity,
        relation.key,
        columns,
    )


class Block:
    """One decoded block: its changes by place, and where commits end in it."""

    __slots__ = ("_changes", "_ends", "_relations")

    def __init__(self, data: bytes) -> None:
        try:
            version, relations, transactions = _decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            raise _unreadable(data) from exc
        if version != _FORMAT:
            raise _unknown(version)
        self._relations = [_relation(r) for r in relations]
        self._changes = [(tx, change) for tx in transactions for change in tx[6]]
        self._ends = list(_commit_ends(transactions))

    def __len__(self) -> int:
        return len(self._changes)

    def complete_lsn(self, stop: int) -> Lsn:
        """The newest commit whose changes all stand before place ``stop``; 0 if none ends in this block by then."""
        i = bisect.bisect_right(self._ends, stop, key=lambda end: end[0])
        return Lsn(self._ends[i - 1][1]) if i else Lsn(0)

    def events(self, start: int, stop: int, first_offset: int) -> Iterator[ChangeEvent]:
        """Events at places ``start`` to ``stop``; the first of the block has ``first_offset``."""
        try:
            for place in range(start, min(stop, len(self._changes))):
                tx, change = self._changes[place]
                yield self._event(tx, change, first_offset + place)
        except (LookupError, TypeError, AttributeError) as exc:
            raise _damaged() from exc

    def _event(self, tx: Sequence[Any], change: Sequence[Any], offset: int) -> ChangeEvent:
        xid, commit_lsn, commit_ts_us, _end, snapshot, resync_id, _changes = tx
        op, place, ordinal, before, after = change
        relation = self._relations[place] if place >= 0 else None
        return ChangeEvent(
            op=Op(op),
            version=Version(Lsn(commit_lsn), ordinal),
            xid=xid,
            commit_ts_us=commit_ts_us,
            relation=relation,
            before=_row(relation, before),
            after=_row(relation, after),
            offset=offset,
            snapshot=snapshot,
            resync_id=resync_id,
            message=(before[0].decode("utf-8", "replace"), before[1]) if op == Op.MESSAGE else None,
        )


def _unreadable(data: bytes) -> StreamError:
    """A later format need not have the layout of this one, only its number in the same place."""
    try:
        version = next(iter(_format_of(data)), None)
    except (msgspec.DecodeError, UnicodeDecodeError):
        version = None
    if isinstance(version, int) and version != _FORMAT:
        return _unknown(version)
    return _damaged()


def _damaged() -> StreamError:
    return StreamError("a block of the stream is damaged", hint="stop, move the stream file away, resync")


def _unknown(version: int) -> StreamError:
    return StreamError(f"stream format {version} is unknown", hint="it was written by a newer cdc-agent")


def _commit_ends(transactions: Sequence[Any]) -> Iterator[tuple[int, int]]:
    """``(places up to here, end_lsn)`` for each commit that ends in the block."""
    place = 0
    for tx in transactions:
        place += len(tx[6])
        if tx[3] is not None:
            yield place, tx[3]


def decode(data: bytes) -> Block:
    """Unpack a block. Raises ``StreamError`` when it is damaged or of an unknown format."""
    return Block(data)


def _relation(packed: Sequence[Any]) -> Relation:
    oid, root_oid, schema, name, identity, key, columns = packed
    return Relation(
        oid=oid,
        root_oid=root_oid,
        schema=schema,
        name=name,
        replica_identity=identity,
        key=tuple(key),
        columns=tuple(Column(name=c, type_oid=t) for c, t in columns),
    )


def _row(relation: Relation | None, packed: Sequence[Any] | None) -> Row | None:
    if relation is None or packed is None:
        return None
    return Row(relation, tuple(UNCHANGED if type(value) is str else value for value in packed))
