"""An ``Event`` as a CloudEvent in structured JSON, both ways, as JSON-ready dicts. Pure.

https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md. Our own attributes have names
of lower-case letters, as the specification wants them.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
from collections.abc import Mapping
from typing import Any

from cdc_agent.events import Event, Kind

__all__ = ["from_cloudevent", "is_cloudevent", "parse_time", "published", "to_cloudevent"]

_VERSION = "1.0"
_REQUIRED = ("id", "source", "type")


def to_cloudevent(event: Event) -> dict[str, Any]:
    """The structured form. ``from_cloudevent`` is its inverse."""
    attributes = {
        "specversion": _VERSION,
        "id": event.id,
        "source": event.source,
        "type": event.type,
        "subject": event.key,
        "time": event.time.isoformat(),
        "correlationid": event.correlation_id,
        "causationid": event.causation_id,
        "kind": "" if event.kind is Kind.FACT else str(event.kind),
        "trail": " ".join(event.trail),
    }
    kept: dict[str, Any] = {name: value for name, value in attributes.items() if value}
    return kept | {"hops": event.hops, "datacontenttype": "application/json", "data": event.data}


def published(event: Event) -> dict[str, Any]:
    """The structured form for others to read: a change of a row carries the attributes that Debezium gives it.

    https://debezium.io/documentation/reference/stable/integrations/cloudevents.html. Debezium's own ``id`` is not
    unique for each row; ours is, and ``sequence`` sorts as text as the changes were committed.
    """
    told = to_cloudevent(event)
    if event.kind is not Kind.CHANGE:
        return told
    source = event.data["source"]
    commit_lsn, _, ordinal = event.id.partition("-")
    place = f"{event.type}/{event.key}" if event.key else event.type
    return told | {
        "type": f"io.debezium.connector.{source['connector']}.DataChangeEvent",
        "subject": place,
        "partitionkey": place,
        "sequence": f"{commit_lsn:0>16}-{ordinal:0>6}",
        "iodebeziumop": event.data["op"],
        "iodebeziumconnector": source["connector"],
        "iodebeziumtsms": str(event.data["ts_ms"]),
        "iodebeziumdb": source.get("db", ""),
        "iodebeziumschema": source["schema"],
        "iodebeziumtable": source["table"],
        "iodebeziumlsn": str(source["lsn"]),
        "iodebeziumtxid": str(source.get("txId", "")),
        "iodebeziumsnapshot": source["snapshot"],
    }


def is_cloudevent(body: Any) -> bool:
    """Whether it says that it is one."""
    return isinstance(body, Mapping) and "specversion" in body


def from_cloudevent(body: Mapping[str, Any], *, received_at: dt.datetime | None = None) -> Event:
    """Read a structured CloudEvent. ``received_at`` stands in for a missing time.

    Raises ``ValueError`` that names the attribute.
    """
    if body.get("specversion") != _VERSION:
        raise ValueError(f"specversion is not {_VERSION}")
    for name in _REQUIRED:
        if not isinstance(body.get(name), str) or not body[name]:
            raise ValueError(f"{name} is missing or not text")
    hops = body.get("hops", 0)
    if not isinstance(hops, int) or isinstance(hops, bool) or hops < 0:
        raise ValueError("hops is not a number of steps")
    return Event(
        id=body["id"],
        source=body["source"],
        type=body["type"],
        key=_text(body, "subject"),
        time=_time(body, received_at),
        data=_data(body),
        correlation_id=_text(body, "correlationid"),
        causation_id=_text(body, "causationid"),
        kind=_kind(body),
        hops=hops,
        trail=tuple(_text(body, "trail").split()),
    )


def parse_time(text: str) -> dt.datetime:
    """RFC 3339 with its offset. Raises ``ValueError``."""
    moment = dt.datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone")
    return moment


def _kind(body: Mapping[str, Any]) -> Kind:
    try:
        return Kind(_text(body, "kind") or Kind.FACT)
    except ValueError:
        raise ValueError(f"kind is none of {', '.join(Kind)}") from None


def _time(body: Mapping[str, Any], received_at: dt.datetime | None) -> dt.datetime:
    text = _text(body, "time")
    if not text and received_at is not None:
        return received_at
    try:
        return parse_time(text)
    except ValueError:
        raise ValueError("time is not RFC 3339 with a time zone") from None


def _text(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{name} is not text")
    return value


def _data(body: Mapping[str, Any]) -> Any:
    encoded = body.get("data_base64")
    if encoded is None:
        return body.get("data")
    try:
        base64.b64decode(encoded, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise ValueError("data_base64 is not base64") from None
    return {"base64": encoded}
