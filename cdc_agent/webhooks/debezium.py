"""Changes of any database that Debezium reads, from Debezium Server's HTTP sink, signed as Standard Webhooks.

https://debezium.io/documentation/reference/stable/operations/debezium-server.html#_http_client. A body is the
plain envelope, ``{"schema", "payload"}``, a structured CloudEvent around either, a list of those (a batch), or a
tombstone.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any

from cdc_agent.cloudevents import is_cloudevent
from cdc_agent.errors import WebhookMalformed
from cdc_agent.events import Event, Op
from cdc_agent.webhooks.base import Delivery, parsed
from cdc_agent.webhooks.signatures import check_standard_secret, verify_standard

__all__ = ["DebeziumReceiver"]

_OPS = frozenset(str(op) for op in Op)


class DebeziumReceiver:
    """See ``webhooks.base.Receiver``. The signed ``webhook-id`` names the event, with its place in a batch."""

    def check_secret(self, secret: str) -> None:
        check_standard_secret(secret)

    def receive(self, delivery: Delivery, secrets: Sequence[str]) -> list[Event]:
        now_s = delivery.received_at.timestamp()
        number = verify_standard(delivery.headers, delivery.body, secrets, now_s)
        body = parsed(delivery.body) if delivery.body else None
        if not isinstance(body, list):
            return _events(number, delivery, body)
        return [event for i, one in enumerate(body) for event in _events(f"{number}/{i}", delivery, one)]


def _events(number: str, delivery: Delivery, body: Any) -> list[Event]:
    """None for a tombstone: the deletion before it has said everything."""
    envelope = _envelope(body)
    if envelope is None:
        return []
    op, source = envelope.get("op"), envelope.get("source")
    if not isinstance(op, str) or op not in _OPS or not isinstance(source, Mapping):
        raise WebhookMalformed("the body is no change: it has no op or no source")
    table = [source.get(name) for name in ("db", "schema", "table")]
    key = ".".join(part for part in table if isinstance(part, str) and part)
    return [
        Event(
            id=number,
            source=delivery.source,
            type=f"debezium.{op}",
            key=key,
            time=_time(source, delivery.received_at),
            data=dict(envelope),
        )
    ]


def _envelope(body: Any) -> Mapping[str, Any] | None:
    if is_cloudevent(body):
        body = body.get("data")
    if isinstance(body, Mapping) and "payload" in body and "op" not in body:
        body = body["payload"]
    if body is None:
        return None
    if not isinstance(body, Mapping):
        raise WebhookMalformed("the body is no change: it is not a JSON object")
    return body


def _time(source: Mapping[str, Any], received_at: dt.datetime) -> dt.datetime:
    milliseconds = source.get("ts_ms")
    if not isinstance(milliseconds, int) or not 0 <= milliseconds < 253_402_300_800_000:
        return received_at
    return dt.datetime.fromtimestamp(0, dt.UTC) + dt.timedelta(milliseconds=milliseconds)
