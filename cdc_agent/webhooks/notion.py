"""Notion's events: doorbells that say which page or database changed, and carry no content.

https://developers.notion.com/reference/webhooks
"""

from __future__ import annotations

from collections.abc import Sequence

from cdc_agent.errors import ConfigError
from cdc_agent.events import Event
from cdc_agent.webhooks.base import Delivery, json_object, text_at, time_of
from cdc_agent.webhooks.signatures import verify_hex

__all__ = ["NotionReceiver", "handshake_token"]


class NotionReceiver:
    """See ``webhooks.base.Receiver``. Events come late, out of order and several at once: fetch what they are about."""

    def check_secret(self, secret: str) -> None:
        if not secret:
            raise ConfigError("the secret is empty", hint="it is the verification token that Notion sent")

    def receive(self, delivery: Delivery, secrets: Sequence[str]) -> list[Event]:
        verify_hex(delivery.headers.get("x-notion-signature"), delivery.body, secrets)
        body = json_object(delivery.body)
        return [
            Event(
                id=text_at(body, "id"),
                source=delivery.source,
                type=f"notion.{text_at(body, 'type')}",
                key=text_at(body, "entity", "id"),
                time=time_of(text_at(body, "timestamp"), "timestamp"),
                data=body,
            )
        ]


def handshake_token(delivery: Delivery) -> str | None:
    """The token of the one request that Notion sends unsigned, when a webhook is made; None if this is not it."""
    if "x-notion-signature" in delivery.headers:
        return None
    token = json_object(delivery.body).get("verification_token")
    return token if isinstance(token, str) and 8 <= len(token) <= 200 and token.isprintable() else None
