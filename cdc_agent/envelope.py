"""A ``ChangeEvent`` in Debezium's envelope, both ways, as JSON-ready dicts. Pure.

https://debezium.io/documentation/reference/stable/connectors/postgresql.html#postgresql-events
"""

from __future__ import annotations

import base64
import datetime as dt
import decimal
import json
import uuid
from collections.abc import Mapping
from typing import Any

from cdc_agent import values
from cdc_agent.events import UNCHANGED, ChangeEvent, Column, Op, RawValue, Relation, Row
from cdc_agent.lsn import Lsn, Version

__all__ = ["UNAVAILABLE_VALUE", "from_debezium", "json_value", "to_debezium"]

#: What Debezium writes where Postgres did not send an out-of-line value.
UNAVAILABLE_VALUE = "__debezium_unavailable_value"


def to_debezium(event: ChangeEvent, db: str = "") -> dict[str, Any]:
    """The envelope of one event. ``from_debezium`` is its inverse."""
    source = event.source(db)
    envelope: dict[str, Any] = {
        "op": str(event.op),
        "ts_ms": event.ts_ms,
        "before": _json_row(event.before),
        "after": _json_row(event.after),
        "source": {
            "connector": "postgresql",
            "db": source.db,
            "schema": source.schema,
            "table": source.table,
            "txId": source.tx_id,
            "lsn": int(source.lsn),
            "sequence": json.dumps([str(int(source.lsn)), str(source.ordinal)]),
            "snapshot": source.snapshot,
            "ts_ms": source.ts_ms,
            "ts_us": event.commit_ts_us,
        },
    }
    if event.message is not None:
        prefix, content = event.message
        envelope["message"] = {"prefix": prefix, "content": base64.b64encode(content).decode()}
    return envelope


def from_debezium(envelope: Mapping[str, Any], relation: Relation | None) -> ChangeEvent:
    """Read an envelope. Columns take their order and types from ``relation``."""
    source = envelope["source"]
    sequence = json.loads(source["sequence"]) if source.get("sequence") else [source["lsn"], 0]
    message = envelope.get("message")
    return ChangeEvent(
        op=Op(envelope["op"]),
        version=Version(Lsn(int(sequence[0])), int(sequence[1])),
        xid=int(source.get("txId") or 0),
        commit_ts_us=int(source.get("ts_us") or int(source.get("ts_ms") or 0) * 1000),
        relation=relation,
        before=_row_from_json(relation, envelope.get("before")),
        after=_row_from_json(relation, envelope.get("after")),
        message=(message["prefix"], base64.b64decode(message["content"])) if message else None,
    )


def _json_row(row: Row | None) -> dict[str, Any] | None:
    if row is None:
        return None
    return {name: json_value(row[name]) for name in row}


def json_value(value: Any) -> Any:  # noqa: PLR0911 (one line per kind of value reads best as a table)
    """A JSON-ready form of a Python value: exact numbers as text, times as ISO 8601, bytes as base64."""
    if value is UNCHANGED:
        return UNAVAILABLE_VALUE
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else str(value)
    if isinstance(value, decimal.Decimal | uuid.UUID):
        return str(value)
    if isinstance(value, dt.datetime | dt.date | dt.time):
        return value.isoformat()
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(bytes(value)).decode()
    if isinstance(value, Mapping):
        return {str(k): json_value(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(v) for v in value]
    return str(value)


def _row_from_json(relation: Relation | None, image: Mapping[str, Any] | None) -> Row | None:
    if image is None or relation is None:
        return None
    return Row(relation, tuple(_raw_from_json(image.get(c.name), c) for c in relation.columns))


def _raw_from_json(value: Any, column: Column) -> RawValue:
    if value is None:
        return None
    if value == UNAVAILABLE_VALUE:
        return UNCHANGED
    return _text_from_json(value, column.type_oid).encode()


def _text_from_json(value: Any, type_oid: int) -> str:
    """Postgres' text form of a JSON value of a column of this type."""
    if type_oid == values.BYTEA_OID:
        return "\\x" + base64.b64decode(value).hex()
    if type_oid in values.JSON_OIDS:
        return json.dumps(value)
    if isinstance(value, bool):
        return "t" if value else "f"
    return _array_text(value) if isinstance(value, list) else str(value)


def _array_text(items: list[Any]) -> str:
    return "{" + ",".join(_array_item(item) for item in items) + "}"


def _array_item(item: Any) -> str:
    if item is None:
        return "NULL"
    if isinstance(item, list):
        return _array_text(item)
    text = ("t" if item else "f") if isinstance(item, bool) else str(item)
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
