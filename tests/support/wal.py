"""The encoders that Postgres has: transactions as the messages of ``pgoutput`` and of ``wal2json``.

Written from the formats' documentation and not from our decoders. What they make is what a server sends after
``XLogData``'s header; ``tests/unit/source`` holds real servers' bytes against the same decoders.
https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from cdc_agent.events import UNCHANGED, Change, RawRow, Relation, Transaction

__all__ = ["pgoutput_messages", "pgoutput_relation", "wal2json_messages"]

#: Where Postgres' clock starts, in microseconds of the Unix epoch.
_EPOCH_US = 946_684_800_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


# -- pgoutput, protocol version 1 -------------------------------------------------------------------------------


def pgoutput_messages(tx: Transaction, described: set[int] | None = None) -> Iterator[bytes]:
    """A whole commit. Relations that are not in ``described`` are described before their first change."""
    known = set() if described is None else described
    assert tx.end_lsn is not None
    stamp = tx.commit_ts_us - _EPOCH_US
    yield struct.pack("!cQqI", b"B", tx.commit_lsn, stamp, tx.xid & 0xFFFFFFFF)
    for change in tx.changes:
        if change.relation is not None and change.relation.oid not in known:
            known.add(change.relation.oid)
            yield pgoutput_relation(change.relation)
        yield _pgoutput_change(change, tx.commit_lsn)
    yield struct.pack("!cBQQq", b"C", 0, tx.commit_lsn, tx.end_lsn, stamp)


def pgoutput_relation(relation: Relation) -> bytes:
    head = struct.pack("!cI", b"R", relation.oid) + _zero(relation.schema) + _zero(relation.name)
    columns = b"".join(
        struct.pack("!B", column.name in relation.key) + _zero(column.name) + struct.pack("!Ii", column.type_oid, -1)
        for column in relation.columns
    )
    return head + relation.replica_identity.encode() + struct.pack("!H", len(relation.columns)) + columns


def _pgoutput_change(change: Change, lsn: int) -> bytes:
    if change.op == "m":
        prefix, content = change.before or (b"", b"")
        assert isinstance(prefix, bytes)
        assert isinstance(content, bytes)
        return struct.pack("!cBQ", b"M", 1, lsn) + prefix + b"\0" + struct.pack("!I", len(content)) + content
    relation = change.relation
    assert relation is not None
    if change.op == "t":
        return struct.pack("!cIBI", b"T", 1, 0, relation.oid)
    kind = {"c": b"I", "u": b"U", "d": b"D"}[change.op]
    old = b"" if change.before is None else _pgoutput_old(relation, change.before)
    new = b"" if change.after is None else b"N" + _tuple(change.after)
    return struct.pack("!cI", kind, relation.oid) + old + new


def _pgoutput_old(relation: Relation, before: RawRow) -> bytes:
    """The whole old row with replica identity full, otherwise the key with NULL in place of everything else."""
    if relation.replica_identity == "f":
        return b"O" + _tuple(before)
    return b"K" + _tuple(tuple(None if value is UNCHANGED else value for value in before))


def _tuple(row: RawRow) -> bytes:
    return struct.pack("!H", len(row)) + b"".join(map(_value, row))


def _value(value: Any) -> bytes:
    if value is None:
        return b"n"
    return b"u" if value is UNCHANGED else b"t" + struct.pack("!I", len(value)) + value


def _zero(text: str) -> bytes:
    return text.encode() + b"\0"


# -- wal2json, format version 2 ---------------------------------------------------------------------------------


def wal2json_messages(tx: Transaction) -> Iterator[bytes]:
    """A whole commit. Values that were not sent are left out, as wal2json does."""
    assert tx.end_lsn is not None
    at = (_EPOCH + timedelta(microseconds=tx.commit_ts_us)).isoformat(sep=" ", timespec="microseconds")
    head = {"xid": tx.xid & 0xFFFFFFFF, "timestamp": at.replace("+00:00", "+00")}
    lsns = {"lsn": str(tx.commit_lsn), "nextlsn": str(tx.end_lsn)}
    yield _json({"action": "B", **head, **lsns})
    for change in tx.changes:
        yield _json({**_wal2json_change(change), **head, "lsn": str(tx.commit_lsn)})
    yield _json({"action": "C", **head, **lsns})


def _wal2json_change(change: Change) -> dict[str, Any]:
    if change.op == "m":
        prefix, content = change.before or (b"", b"")
        assert isinstance(prefix, bytes)
        assert isinstance(content, bytes)
        return {"action": "M", "transactional": True, "prefix": prefix.decode(), "content": content.decode()}
    relation = change.relation
    assert relation is not None
    found: dict[str, Any] = {
        "action": {"c": "I", "u": "U", "d": "D", "t": "T"}[change.op],
        "schema": relation.schema,
        "table": relation.name,
    }
    if change.after is not None:
        found["columns"] = _columns(relation, change.after, numbered=True)
    if change.before is not None:
        found["identity"] = _columns(relation, change.before, numbered=False)
    return found


def _columns(relation: Relation, row: RawRow, *, numbered: bool) -> Sequence[dict[str, Any]]:
    return [
        {
            "name": column.name,
            "typeoid": column.type_oid,
            "value": None if value is None else _json_value(column.type_oid, value),
            **({"position": place} if numbered else {}),
        }
        for place, (column, value) in enumerate(zip(relation.columns, row, strict=True), start=1)
        if value is not UNCHANGED
    ]


def _json_value(type_oid: int, value: Any) -> Any:
    """Numbers and booleans stand bare in the JSON, everything else as text."""
    if type_oid in (20, 21, 23):
        return int(value)
    return value == b"t" if type_oid == 16 else value.decode()


def _json(message: dict[str, Any]) -> bytes:
    return json.dumps(message, ensure_ascii=False).encode()
