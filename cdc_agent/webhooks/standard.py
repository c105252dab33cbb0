"""Deliveries as Standard Webhooks describes them: ``{"type", "timestamp", "data"}``, or a structured CloudEvent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cdc_agent.cloudevents import from_cloudevent, is_cloudevent
from cdc_agent.errors import WebhookMalformed
from cdc_agent.events import Event, Kind
from cdc_agent.webhooks.base import Delivery, json_object, text_at, time_of
from cdc_agent.webhooks.signatures import check_standard_secret, verify_standard

__all__ = ["StandardReceiver"]


class StandardReceiver:
    """See ``webhooks.base.Receiver``. The signed ``webhook-id`` names the event."""

    def check_secret(self, secret: str) -> None:
        check_standard_secret(secret)

    def receive(self, delivery: Delivery, secrets: Sequence[str]) -> list[Event]:
        now_s = delivery.received_at.timestamp()
        number = verify_standard(delivery.headers, delivery.body, secrets, now_s)
        body = json_object(delivery.body)
        if is_cloudevent(body):
            try:
                event = from_cloudevent(body, received_at=delivery.received_at)
            except ValueError as exc:
                raise WebhookMalformed(f"the CloudEvent is not one: {exc}") from None
            if event.kind is not Kind.FACT:
                raise WebhookMalformed(f"the CloudEvent is a {event.kind}: only facts come by webhook")
            # Its own source stands below ours: nobody speaks in the name of another sender.
            return [replace(event, source=f"{delivery.source}/{event.source.lstrip('/')}")]
        at = time_of(text_at(body, "timestamp"), "timestamp") if "timestamp" in body else delivery.received_at
        return [
            Event(id=number, source=delivery.source, type=text_at(body, "type"), time=at, data=body.get("data", body))
        ]
