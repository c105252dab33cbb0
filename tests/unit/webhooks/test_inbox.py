"""From a delivery to the journal: what is taken once, what changes nothing, and where a secret comes from."""

from __future__ import annotations

import datetime as dt
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from cdc_agent.errors import ConfigError, UsageError, WebhookMalformed, WebhookRefused
from cdc_agent.journal.base import Query
from cdc_agent.journal.file import JournalFile
from cdc_agent.journal.sqlite import SqliteJournal
from cdc_agent.metrics import REGISTRY
from cdc_agent.webhooks.base import Receiver
from cdc_agent.webhooks.github import GithubReceiver
from cdc_agent.webhooks.inbox import Inbox, Receipt, Sender
from cdc_agent.webhooks.notion import NotionReceiver
from cdc_agent.webhooks.secrets import FileSecrets, FixedSecrets
from tests.support import senders

NOW = dt.datetime(2026, 11, 27, 12, 0, tzinfo=dt.UTC)
TOKEN = "secret_tMrlL1qK5vuQAh1b6cZGhFChZTSYJlce98V0pYn7yBl"


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[SqliteJournal]:
    opened = SqliteJournal(JournalFile(tmp_path / "journal.sqlite"))
    yield opened
    opened.close()


def inbox_of(journal: SqliteJournal, receiver: Receiver, secrets: FileSecrets | FixedSecrets) -> Inbox:
    sender = Sender(receiver=receiver, secrets=secrets, max_body_bytes=1000)
    return Inbox({"them": sender}, journal, now=lambda: NOW)


def take(inbox: Inbox, signed: tuple[dict[str, str], bytes], source: str = "them") -> Receipt:
    headers, body = signed
    return inbox.take(source, {name.lower(): value for name, value in headers.items()}, body)


def counted(outcome: str) -> float:
    return REGISTRY.get_sample_value("cdc_agent_webhooks_total", {"source": "them", "outcome": outcome}) or 0.0


def nothing(_: str) -> None:
    """Every secret will do."""


# -- deliveries ------------------------------------------------------------------------------------------------------


@pytest.mark.fault("webhook-twice")
def test_a_delivery_is_recorded_once(journal: SqliteJournal) -> None:
    inbox = inbox_of(journal, GithubReceiver(), FixedSecrets("s", nothing))
    before = (counted("accepted"), counted("duplicate"))

    assert take(inbox, senders.github({"a": 1}, "s")) == Receipt(events=1, new=1)
    assert take(inbox, senders.github({"a": 1}, "s", delivery="again")) == Receipt(events=1, new=0)

    assert len(journal.find(Query())) == 1
    assert (counted("accepted") - before[0], counted("duplicate") - before[1]) == (1, 1)


def test_what_is_not_taken_leaves_nothing(journal: SqliteJournal) -> None:
    inbox = inbox_of(journal, GithubReceiver(), FixedSecrets("s", nothing))
    before = (counted("refused"), counted("malformed"))

    with pytest.raises(WebhookRefused):
        take(inbox, senders.github({"a": 1}, "other"))
    with pytest.raises(WebhookMalformed):
        take(inbox, senders.github([], "s"))

    assert journal.find(Query()) == []
    assert (counted("refused") - before[0], counted("malformed") - before[1]) == (1, 1)


def test_a_sender_that_is_not_configured_is_named_with_those_that_are(journal: SqliteJournal) -> None:
    inbox = inbox_of(journal, GithubReceiver(), FixedSecrets("s", nothing))

    assert inbox.max_body_bytes("them") == 1000
    assert inbox.max_body_bytes("others") is None
    with pytest.raises(UsageError) as caught:
        take(inbox, senders.github({}, "s"), source="others")
    assert caught.value.hint.endswith("them")


# -- secrets in a file -------------------------------------------------------------------------------------------------


def test_a_secret_is_rotated_without_a_restart(journal: SqliteJournal, tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("old\n")
    inbox = inbox_of(journal, GithubReceiver(), FileSecrets(path, nothing))
    assert take(inbox, senders.github({"n": 1}, "old")).new == 1

    # When the new one is put before the old one
    path.write_text("new\nold\n")
    os.utime(path, ns=(1, 1))
    assert take(inbox, senders.github({"n": 2}, "old")).new == 1
    assert take(inbox, senders.github({"n": 3}, "new")).new == 1

    # And the old one is taken away
    path.write_text("new\n")
    os.utime(path, ns=(2, 2))
    with pytest.raises(WebhookRefused):
        take(inbox, senders.github({"n": 4}, "old"))


def test_a_file_without_a_secret_believes_nobody(journal: SqliteJournal, tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    for path in (tmp_path / "missing", tmp_path / "empty"):
        with pytest.raises(WebhookRefused, match="no secret"):
            take(inbox_of(journal, GithubReceiver(), FileSecrets(path, nothing)), senders.github({}, ""))


@pytest.mark.parametrize("content", [b"one\ntwo\nthree\n", b"\xff\xfe"])
def test_a_file_that_holds_something_else_is_a_config_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "secret"
    path.write_bytes(content)

    with pytest.raises(ConfigError, match="holds no webhook secret"):
        FileSecrets(path, nothing).current()


def test_a_secret_that_the_sender_could_not_have_is_named_by_its_file(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("sk_live\n")

    def check(_: str) -> None:
        raise ConfigError("it is none", hint="do")

    with pytest.raises(ConfigError, match="secret: it is none"):
        FileSecrets(path, check).current()


# -- Notion's handshake ------------------------------------------------------------------------------------------------


def test_notion_names_its_secret_once(journal: SqliteJournal, tmp_path: Path) -> None:
    # Given a webhook that waits for its secret
    path = tmp_path / "folder" / "notion"
    inbox = inbox_of(journal, NotionReceiver(), FileSecrets(path, nothing))

    # When Notion sends it
    assert take(inbox, ({}, b'{"verification_token": "%s"}' % TOKEN.encode())) == Receipt(events=0, new=0)

    # Then it is ours alone to read, and deliveries that are signed with it are taken
    assert path.read_text() == TOKEN + "\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    page = {"id": "i", "type": "page.created", "timestamp": "2026-11-27T11:00:00Z", "entity": {"id": "p"}}
    assert take(inbox, senders.notion(page, TOKEN)).new == 1

    # And nobody names another
    with pytest.raises(WebhookRefused):
        take(inbox, ({}, b'{"verification_token": "an attacker\'s own"}'))
    assert path.read_text() == TOKEN + "\n"


NO_TOKENS = [
    b"{}",
    b'{"verification_token": ""}',
    b'{"verification_token": 7}',
    b'{"verification_token": "a\\nb12345678"}',
]


@pytest.mark.parametrize("body", NO_TOKENS)
def test_what_names_no_token_teaches_nothing(journal: SqliteJournal, tmp_path: Path, body: bytes) -> None:
    path = tmp_path / "notion"
    inbox = inbox_of(journal, NotionReceiver(), FileSecrets(path, nothing))

    with pytest.raises(WebhookRefused):
        take(inbox, ({}, body))
    assert not path.exists()


def test_a_signed_delivery_before_the_handshake_is_refused(journal: SqliteJournal, tmp_path: Path) -> None:
    inbox = inbox_of(journal, NotionReceiver(), FileSecrets(tmp_path / "notion", nothing))

    with pytest.raises(WebhookRefused):
        take(inbox, senders.notion({"verification_token": TOKEN}, TOKEN))


def test_a_link_in_the_place_of_the_secret_is_replaced_and_not_followed(journal: SqliteJournal, tmp_path: Path) -> None:
    # Given somebody who laid a link where the secret is first written
    (tmp_path / "victim").write_text("")
    (tmp_path / "notion.new").symlink_to(tmp_path / "victim")
    inbox = inbox_of(journal, NotionReceiver(), FileSecrets(tmp_path / "notion", nothing))

    take(inbox, ({}, b'{"verification_token": "%s"}' % TOKEN.encode()))

    assert (tmp_path / "victim").read_text() == ""
    assert (tmp_path / "notion").read_text() == TOKEN + "\n"
