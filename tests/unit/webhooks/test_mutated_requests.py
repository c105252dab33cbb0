"""Requests that nobody signed, through the whole application: refused each time, and never our own failure.

``CDC_AGENT_MUTATIONS=100000 pytest tests/unit/webhooks/test_mutated_requests.py`` sends as many.
"""

from __future__ import annotations

import asyncio
import collections
import datetime as dt
import os
import random
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from cdc_agent.journal.file import JournalFile
from cdc_agent.journal.sqlite import SqliteJournal
from cdc_agent.web.app import create_app
from cdc_agent.webhooks.base import Receiver
from cdc_agent.webhooks.debezium import DebeziumReceiver
from cdc_agent.webhooks.github import GithubReceiver
from cdc_agent.webhooks.inbox import Inbox, Receipt, Sender
from cdc_agent.webhooks.notion import NotionReceiver
from cdc_agent.webhooks.secrets import FixedSecrets
from cdc_agent.webhooks.standard import StandardReceiver
from cdc_agent.webhooks.stripe import StripeReceiver
from tests.support import senders
from tests.unit.web.test_app import FakeService

COUNT = int(os.environ.get("CDC_AGENT_MUTATIONS", "2000"))
NOW = dt.datetime(2026, 11, 28, 2, 0, tzinfo=dt.UTC)
BODY = {
    "id": "e-1",
    "type": "order.paid",
    "timestamp": "2026-11-28T02:00:00Z",
    "created": 5,
    "op": "c",
    "source": {"table": "t"},
    "entity": {"id": "p"},
}
SECRET = "whsec_it is a secret"
Signed = tuple[dict[str, str], bytes]
SENDERS: dict[str, tuple[Receiver, str, Callable[[], Signed]]] = {
    "github": (GithubReceiver(), SECRET, lambda: senders.github(BODY, SECRET)),
    "notion": (NotionReceiver(), SECRET, lambda: senders.notion(BODY, SECRET)),
    "stripe": (StripeReceiver(), SECRET, lambda: senders.stripe(BODY, SECRET, NOW.timestamp())),
    "standard": (
        StandardReceiver(),
        senders.STANDARD_SECRET,
        lambda: senders.standard(BODY, senders.STANDARD_SECRET, NOW.timestamp()),
    ),
    "debezium": (
        DebeziumReceiver(),
        senders.STANDARD_SECRET,
        lambda: senders.standard(BODY, senders.STANDARD_SECRET, NOW.timestamp()),
    ),
}
#: What is not signed may be anything.
UNSIGNED = {"x-github-event", "x-github-delivery"}


class Office(FakeService):
    """The service with a real inbox behind its webhooks."""

    def __init__(self, journal: SqliteJournal) -> None:
        super().__init__()
        known = {
            name: Sender(
                receiver=receiver, secrets=FixedSecrets(secret, receiver.check_secret), max_body_bytes=64 << 10
            )
            for name, (receiver, secret, _) in SENDERS.items()
        }
        self._inbox = Inbox(known, journal, now=lambda: NOW)

    def webhook_limit(self, source: str) -> int | None:
        return self._inbox.max_body_bytes(source)

    def take_webhook(self, source: str, headers: Mapping[str, str], body: bytes) -> Receipt:
        return self._inbox.take(source, headers, body)


@pytest.mark.fault("webhook-forged", "webhook-malformed")
def test_no_changed_request_is_taken_and_none_is_our_failure() -> None:
    journal = SqliteJournal(JournalFile(None))
    app = create_app(Office(journal))
    rng = random.Random(2026)

    statuses = asyncio.run(_sent(app, rng))

    assert sum(statuses.values()) == COUNT
    assert set(statuses) <= {400, 401, 404, 411, 413, 415}, statuses
    assert journal.head() == 0
    journal.close()


def test_the_unchanged_ones_are_taken() -> None:
    # So that what is refused above is refused for its change.
    journal = SqliteJournal(JournalFile(None))
    app = create_app(Office(journal))

    async def send() -> list[int]:
        return [await _status(app, name, _raw(sign()[0]), sign()[1]) for name, (_, _, sign) in SENDERS.items()]

    assert asyncio.run(send()) == [202] * len(SENDERS)
    assert journal.head() == len(SENDERS)
    journal.close()


async def _sent(app: Any, rng: random.Random) -> collections.Counter[int]:
    names = sorted(SENDERS)
    statuses: collections.Counter[int] = collections.Counter()
    while sum(statuses.values()) < COUNT:
        name = rng.choice(names)
        headers, body = SENDERS[name][2]()
        changed = _mutated(rng, _raw(headers), body)
        if changed is not None:
            statuses[await _status(app, name, *changed)] += 1
    return statuses


def _raw(headers: dict[str, str]) -> dict[bytes, bytes]:
    return {name.lower().encode(): value.encode() for name, value in headers.items()}


def _mutated(rng: random.Random, headers: dict[bytes, bytes], body: bytes) -> tuple[dict[bytes, bytes], bytes] | None:
    """A byte of the body or of what proves it is another one, or what proves it is missing. None if that says the
    same: a digit in other letters, or a blank."""
    if rng.random() < 0.4:
        place = rng.randrange(len(body))
        return headers, body[:place] + bytes([body[place] ^ rng.randrange(1, 256)]) + body[
            place + rng.randrange(1, 3) :
        ]
    name = rng.choice([name for name in headers if name.decode() not in UNSIGNED])
    if rng.random() < 0.1:
        return {known: value for known, value in headers.items() if known != name}, body
    value = bytearray(headers[name])
    place = rng.randrange(len(value))
    value[place] = rng.choice([byte for byte in range(256) if byte not in b"\r\n\0 ," and byte != value[place]])
    same = bytes(value).lower() == headers[name].lower()
    return None if same else ({**headers, name: bytes(value)}, body)


async def _status(app: Any, source: str, headers: dict[bytes, bytes], body: bytes) -> int:
    messages = [{"type": "http.request", "body": body, "more_body": False}, {"type": "http.disconnect"}]
    told: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    async def send(message: dict[str, Any]) -> None:
        told.append(message)

    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "path": f"/webhooks/{source}",
        "raw_path": f"/webhooks/{source}".encode(),
        "query_string": b"",
        "headers": [(b"host", b"localhost"), *headers.items()],
        "client": ("127.0.0.1", 5000),
        "server": ("127.0.0.1", 8765),
    }
    await app(scope, receive, send)
    return int(told[0]["status"])
