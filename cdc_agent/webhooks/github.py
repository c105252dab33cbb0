"""GitHub's deliveries. https://docs.github.com/webhooks/webhook-events-and-payloads"""

from __future__ import annotations

import re
from collections.abc import Sequence

from cdc_agent.errors import ConfigError, WebhookMalformed
from cdc_agent.events import Event
from cdc_agent.webhooks.base import Delivery, digest, json_object
from cdc_agent.webhooks.signatures import verify_hex

__all__ = ["GithubReceiver"]

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")


class GithubReceiver:
    """See ``webhooks.base.Receiver``.

    GitHub signs the body and nothing else: neither the name of the event nor the number of the delivery, which a replay
    may therefore change. So the body names the event, and whoever acts on one should look at how things are now.
    """

    def check_secret(self, secret: str) -> None:
        if not secret:
            raise ConfigError("the secret is empty", hint="set one in the webhook's settings on GitHub")

    def receive(self, delivery: Delivery, secrets: Sequence[str]) -> list[Event]:
        verify_hex(delivery.headers.get("x-hub-signature-256"), delivery.body, secrets)
        name = delivery.headers.get("x-github-event", "")
        if not _NAME.fullmatch(name):
            raise WebhookMalformed("X-GitHub-Event names no event")
        body = json_object(delivery.body)
        action = body.get("action")
        repository = body.get("repository")
        key = repository.get("full_name") if isinstance(repository, dict) else None
        return [
            Event(
                id=digest(delivery.body),
                source=delivery.source,
                type=f"github.{name}.{action}" if isinstance(action, str) and action else f"github.{name}",
                key=key if isinstance(key, str) else "",
                time=delivery.received_at,
                data=body,
            )
        ]
