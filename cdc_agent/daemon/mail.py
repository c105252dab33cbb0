"""Wires what comes in as webhooks: the journal, and the inbox with its senders."""

from __future__ import annotations

from dataclasses import dataclass

from cdc_agent.config import Config, WebhookConfig
from cdc_agent.errors import ConfigError
from cdc_agent.journal.base import Desk, Journal
from cdc_agent.journal.desk import SqliteDesk
from cdc_agent.journal.file import JournalFile
from cdc_agent.journal.saga_book import SagaBook
from cdc_agent.journal.saga_sqlite import SqliteSagaBook
from cdc_agent.journal.sqlite import SqliteJournal
from cdc_agent.webhooks.base import Receiver
from cdc_agent.webhooks.debezium import DebeziumReceiver
from cdc_agent.webhooks.github import GithubReceiver
from cdc_agent.webhooks.inbox import Inbox, Sender
from cdc_agent.webhooks.notion import NotionReceiver
from cdc_agent.webhooks.secrets import FileSecrets, FixedSecrets, Secrets
from cdc_agent.webhooks.standard import StandardReceiver
from cdc_agent.webhooks.stripe import StripeReceiver

__all__ = ["Mail", "open_mail"]

_RECEIVERS: dict[str, type[Receiver]] = {
    "standard": StandardReceiver,
    "github": GithubReceiver,
    "stripe": StripeReceiver,
    "notion": NotionReceiver,
    "debezium": DebeziumReceiver,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mail:
    journal: Journal
    desk: Desk
    sagas: SagaBook
    inbox: Inbox


def open_mail(config: Config, *, wanted: bool = False) -> Mail | None:
    """None where nobody may deliver and nobody ever did: then no file is made, unless it is ``wanted``.

    Raises ``ConfigError`` for a secret that no sender could have, ``JournalError`` for a damaged journal.
    """
    senders = {name: _sender(name, webhook) for name, webhook in config.webhooks.items()}
    if not senders and not wanted and not config.journal_path.exists():
        return None
    file = JournalFile(config.journal_path)
    journal = SqliteJournal(file)
    return Mail(journal=journal, desk=SqliteDesk(file), sagas=SqliteSagaBook(file), inbox=Inbox(senders, journal))


def _sender(name: str, webhook: WebhookConfig) -> Sender:
    receiver = _RECEIVERS[webhook.kind]()
    try:
        secrets = _secrets(webhook, receiver)
        known = secrets.current()
    except ConfigError as exc:
        raise ConfigError(f"webhooks.{name}: {exc.message}", hint=exc.hint) from exc
    if not known and not isinstance(receiver, NotionReceiver):
        raise ConfigError(
            f"webhooks.{name}: {webhook.secret_file} holds no secret",
            hint="write the secret into it, alone on one line; without one no delivery could be believed",
        )
    return Sender(receiver=receiver, secrets=secrets, max_body_bytes=webhook.max_body_bytes)


def _secrets(webhook: WebhookConfig, receiver: Receiver) -> Secrets:
    if webhook.secret_file is not None:
        return FileSecrets(webhook.secret_file, receiver.check_secret)
    assert webhook.secret is not None
    return FixedSecrets(webhook.secret.get_secret_value(), receiver.check_secret)
