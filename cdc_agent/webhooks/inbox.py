"""The inbox: from a delivery to events in the journal. What was answered with success is on disk."""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cdc_agent import metrics
from cdc_agent.errors import UsageError, WebhookError, WebhookRefused
from cdc_agent.events import Event
from cdc_agent.journal.base import Journal
from cdc_agent.webhooks.base import Delivery, Receiver
from cdc_agent.webhooks.notion import NotionReceiver, handshake_token
from cdc_agent.webhooks.secrets import Secrets

__all__ = ["Inbox", "Receipt", "Sender"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sender:
    """Somebody who may deliver: under which name, how it signs, how much at a time."""

    receiver: Receiver
    secrets: Secrets
    max_body_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """``events`` of a delivery, and how many of them were new. Both are 0 for a handshake or a tombstone."""

    events: int
    new: int


class Inbox:
    """Safe to call from several threads."""

    def __init__(
        self,
        senders: Mapping[str, Sender],
        journal: Journal,
        *,
        now: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
    ) -> None:
        self._senders = senders
        self._journal = journal
        self._now = now

    def max_body_bytes(self, source: str) -> int | None:
        """Most bytes of one delivery; None for a sender that is not configured."""
        sender = self._senders.get(source)
        return sender.max_body_bytes if sender else None

    def take(self, source: str, headers: Mapping[str, str], body: bytes) -> Receipt:
        """Prove a delivery and record its events; durable on return. One that came before changes nothing.

        Raises ``WebhookRefused``, ``WebhookMalformed``, ``JournalFull``, and ``UsageError`` for an unknown sender.
        """
        sender = self._sender(source)
        delivery = Delivery(source=source, headers=headers, body=body, received_at=self._now())
        try:
            events = self._proven(sender, delivery)
        except WebhookError as exc:
            outcome = "refused" if isinstance(exc, WebhookRefused) else "malformed"
            metrics.WEBHOOKS.labels(source=source, outcome=outcome).inc()
            log.warning("webhook %s source=%s why=%s", outcome, source, exc.message)
            raise
        new = self._journal.append(events) if events else 0
        metrics.WEBHOOKS.labels(source=source, outcome="accepted" if new == len(events) else "duplicate").inc()
        return Receipt(events=len(events), new=new)

    def _proven(self, sender: Sender, delivery: Delivery) -> list[Event]:
        secrets = sender.secrets.current()
        if not secrets and isinstance(sender.receiver, NotionReceiver):
            return self._greet(sender, delivery)
        return sender.receiver.receive(delivery, secrets)

    def _greet(self, sender: Sender, delivery: Delivery) -> list[Event]:
        """Notion names the secret itself, once, when its webhook is made. The operator shows it back to Notion, which
        would not know the token of anybody else who called here first."""
        token = handshake_token(delivery)
        if token is None or not sender.secrets.learn(token):
            raise WebhookRefused("the delivery is not proven: we have no secret of its sender", hint="make its webhook")
        log.warning("webhook token received source=%s: paste what is in its secret_file at the sender", delivery.source)
        return []

    def _sender(self, source: str) -> Sender:
        found = self._senders.get(source)
        if found is None:
            known = ", ".join(sorted(self._senders)) or "none"
            raise UsageError(f"there is no webhook source {source!r}", hint=f"webhooks in the configuration: {known}")
        return found
