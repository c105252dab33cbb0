"""Stripe's events. https://docs.stripe.com/api/events/object"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any

from cdc_agent.errors import ConfigError, WebhookMalformed
from cdc_agent.events import Event
from cdc_agent.webhooks.base import Delivery, json_object, text_at
from cdc_agent.webhooks.signatures import verify_stripe

__all__ = ["StripeReceiver"]

#: The last second that a time of four-digit years can hold.
_LAST_SECOND = 253_402_300_799


class StripeReceiver:
    """See ``webhooks.base.Receiver``. The id of Stripe's event names ours, however often it is delivered."""

    def check_secret(self, secret: str) -> None:
        if not secret.startswith("whsec_"):
            raise ConfigError("the secret is not one of Stripe's endpoints", hint="it begins with whsec_")

    def receive(self, delivery: Delivery, secrets: Sequence[str]) -> list[Event]:
        now_s = delivery.received_at.timestamp()
        verify_stripe(delivery.headers.get("stripe-signature"), delivery.body, secrets, now_s)
        body = json_object(delivery.body)
        return [
            Event(
                id=text_at(body, "id"),
                source=delivery.source,
                type=f"stripe.{text_at(body, 'type')}",
                key=_object_id(body),
                time=_created(body),
                data=body,
            )
        ]


def _object_id(body: dict[str, Any]) -> str:
    data = body.get("data")
    about = data.get("object") if isinstance(data, dict) else None
    number = about.get("id") if isinstance(about, dict) else None
    return number if isinstance(number, str) else ""


def _created(body: dict[str, Any]) -> dt.datetime:
    seconds = body.get("created")
    if not isinstance(seconds, int) or not 0 <= seconds <= _LAST_SECOND:
        raise WebhookMalformed("created is not a time in seconds")
    return dt.datetime.fromtimestamp(seconds, dt.UTC)
