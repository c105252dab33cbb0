"""Agents of the user in the real daemon: changes and webhooks wake them, effects happen once, whatever happens."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cdc_agent.events import Event
from cdc_agent.journal.base import Query
from cdc_agent.journal.file import JournalFile
from cdc_agent.journal.sqlite import SqliteJournal
from tests.support.daemon import DaemonProcess
from tests.support.oracle import assert_index_equals_table
from tests.support.postgres import Database
from tests.support.wait import until

NewDaemon = Callable[..., DaemonProcess]
NOTES = {"name": "notes", "table": "public.notes", "text": "{body}"}


def program(daemon_folder: Path, text: str) -> str:
    path = daemon_folder / "my_agents.py"
    path.write_text(
        "import os, time\nfrom cdc_agent import Agents, mark, Retries, Park\napp = Agents()\n" + textwrap.dedent(text)
    )
    return f"{path}:app"


def facts(daemon: DaemonProcess, type_: str = "") -> list[Event]:
    """What the journal holds: read beside the daemon, which has it open."""
    file = JournalFile(daemon.config.journal_path)
    try:
        return [entry.event for entry in SqliteJournal(file).find(Query(type=type_, limit=100_000))]
    finally:
        file.close()


@pytest.fixture
def setup(pg: Database, new_daemon: NewDaemon, tmp_path: Path) -> Callable[[str], DaemonProcess]:
    """A daemon with one collection, a table that only agents listen to, and a program."""
    pg.execute("create table notes (id int primary key, body text)")
    pg.execute("create table payments (id int primary key, status text, amount numeric)")
    pg.execute("insert into notes values (1, 'one')")

    def make(text: str, **settings: Any) -> DaemonProcess:
        daemon = new_daemon(pg, collections=[NOTES], agents=[program(tmp_path, text)], **settings)
        daemon.start()
        return daemon

    return make


@pytest.mark.parametrize("plugin", ["pgoutput", "wal2json"])
def test_a_change_of_a_table_that_nobody_indexes_wakes_an_agent(
    pg: Database, setup: Callable[..., DaemonProcess], plugin: str
) -> None:
    # Given an agent on failed payments, which are no documents
    daemon = setup(
        """
        @app.on_change("public.payments", ops="u", when=lambda e: e.data["after"]["status"] == "failed")
        def failed(event, context):
            context.emit("payment_failed", {"amount": event.data["after"]["amount"]})
        """,
        source={"plugin": plugin},
    )

    # When payments come, fail, and go
    pg.execute("insert into payments values (1, 'new', 12.50), (2, 'new', 1)")
    pg.execute("update payments set status = 'failed' where id = 1")
    pg.execute("update payments set status = 'paid' where id = 2")
    pg.execute("delete from payments")

    # Then it has heard of the one, and the index is as it should be
    until(lambda: len(facts(daemon, "payment_failed")) == 1)
    [fact] = facts(daemon, "payment_failed")
    assert (fact.key, fact.data) == ("1", {"amount": "12.50"})
    assert_index_equals_table(daemon, pg)
