"""Agents of the user in the real daemon: changes and webhooks wake them, effects happen once, whatever happens."""

from __future__ import annotations

import contextlib
import itertools
import json
import subprocess
import sys
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


def run_cli(daemon: DaemonProcess, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cdc_agent.cli", *arguments, "-c", str(daemon.path)]
    return subprocess.run(command, capture_output=True, text=True, check=check)


COUNT = """
import pathlib
DONE = pathlib.Path(os.environ["DONE"])

@app.on_change("public.payments", ops="c", concurrency=3)
def pay(event, context):
    with open(DONE, "a") as file:
        file.write(context.idempotency_key + "\\n")
    context.emit("paid", event.data["after"]["id"])
    context.state["n"] = context.state.get("n", 0) + 1

@app.on("paid")
def thank(event, context):
    context.command("send", event.data)

@app.command("send")
def send(event, context):
    context.emit("sent", event.data)
"""


@pytest.mark.parametrize("place", ["agents_read", "agents_routed", "agents_handled", "agents_settled"])
@pytest.mark.fault("agent-killed")
def test_effects_happen_once_whatever_kills_the_daemon(
    pg: Database, setup: Callable[..., DaemonProcess], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    # Given a chain of three agents, and a daemon that dies again and again in the middle of them
    monkeypatch.setenv("DONE", str(tmp_path / "done"))
    daemon = setup(COUNT)
    numbers = itertools.count(1)
    for n in (1, 2, 4):
        if n > 1:
            daemon.start(failpoint=f"{place}:kill@{n}", ready=False)
        while daemon.running and (n > 1 or len(facts(daemon, "sent")) < 5):
            pg.execute("insert into payments values (%s, 'new', 1)", [next(numbers)])
        daemon.kill()

    # When it lives again
    daemon.start()
    expected = list(range(1, next(numbers)))
    until(lambda: len(facts(daemon, "sent")) >= len(expected))

    # Then each payment has had each effect once, and the outside world could tell a second attempt by its key
    for type_ in ("paid", "sent"):
        assert sorted(fact.data for fact in facts(daemon, type_)) == expected
    keys = (tmp_path / "done").read_text().split()
    assert len(set(keys)) == len(expected)
    assert_index_equals_table(daemon, pg)


@pytest.mark.fault("agent-loop")
def test_two_agents_that_wake_each_other_through_the_database_stop(
    pg: Database, setup: Callable[..., DaemonProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given one agent that answers a change of one table with a change of another, and one that does the reverse
    pg.execute("create table freezes (id int primary key, n int)")
    pg.execute("create table audits (id int primary key, n int)")
    monkeypatch.setenv("DSN", pg.dsn)
    daemon = setup(
        """
        import psycopg

        def write(context, statement):
            with psycopg.connect(os.environ["DSN"]) as connection:
                mark(connection, context)
                connection.execute(statement)

        @app.on_change("public.freezes")
        def audit(event, context):
            write(context, "insert into audits values (1, 1) on conflict (id) do update set n = audits.n + 1")

        @app.on_change("public.audits")
        def freeze(event, context):
            write(context, "update freezes set n = n + 1")

        @app.on_change("public.freezes")
        def own(event, context):
            context.emit("seen", event.data["after"]["n"])
            write(context, "update freezes set n = n where false")
        """
    )

    # When somebody begins
    pg.execute("insert into freezes values (1, 1)")

    # Then it goes round once: the change that would begin it anew is a dead letter that tells the whole way
    until(lambda: len(letters(daemon)) == 1)
    [letter] = letters(daemon)
    assert (letter["agent"], letter["reason"], letter["trail"]) == ("audit", "loop", ["audit", "freeze"])
    assert pg.execute("select n from freezes") == [(2,)]
    assert pg.execute("select n from audits") == [(1,)]
    assert sorted(fact.data for fact in facts(daemon, "seen")) == [1, 2]
    assert daemon.metric("cdc_agent_agent_guard_total", agent="audit", reason="loop") == 1
    shown = run_cli(daemon, "agents", "show", "audit", str(letter["number"])).stdout
    assert "audit > freeze" in shown
    # Once as what it is about, and in the chain at its beginning and its end.
    assert shown.count("public.freezes") == 3
    assert shown.count("public.audits") == 1


def letters(daemon: DaemonProcess) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(run_cli(daemon, "agents", "letters", "--json").stdout)["letters"]
    return found


@pytest.mark.fault("agent-fails")
def test_an_agent_that_fails_or_hangs_is_alone_with_it(
    pg: Database, setup: Callable[..., DaemonProcess], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given one agent that fails, one that hangs, one that leaves the process, and one that works
    monkeypatch.setenv("FIXED", str(tmp_path / "fixed"))
    daemon = setup(
        """
        quick = Retries(attempts=2, initial_s=0.05, maximum_s=0.05)

        @app.on("order", retries=quick)
        def fail(event, context):
            if not os.path.exists(os.environ["FIXED"]):
                raise RuntimeError(f"the card {event.data['n']} is void")
            context.emit("mended")

        @app.on("order", retries=quick, timeout_s=0.2)
        def hang(event, context):
            time.sleep(3600)

        @app.on("order", retries=quick)
        def leave(event, context):
            raise SystemExit(3)

        @app.on("order")
        async def work(event, context):
            context.emit("worked", event.key)
        """
    )

    # When an order comes
    assert run_cli(daemon, "emit", "order", "--key", "7", "--data", '{"n": 4711}').stdout.startswith("order ")
    until(lambda: len(letters(daemon)) == 3)

    # Then the others have handled it, the index is as fresh as ever, and each failure is told apart
    assert [fact.data for fact in facts(daemon, "worked")] == ["7"]
    pg.execute("insert into notes values (2, 'two')")
    assert_index_equals_table(daemon, pg)
    told = {letter["agent"]: (letter["reason"], letter["attempts"]) for letter in letters(daemon)}
    assert told == {"fail": ("failed", 2), "hang": ("timeout", 2), "leave": ("failed", 2)}
    # What an exception says may be anything: it is not in the log.
    assert "4711" not in daemon.log
    states = {
        agent["name"]: agent for agent in json.loads(run_cli(daemon, "agents", "list", "--json").stdout)["agents"]
    }
    assert states["work"]["letters"] == 0
    assert states["fail"]["letters"] == 1
    assert daemon.metric("cdc_agent_agent_up", agent="work") == 1

    # and what is mended is handled when somebody asks, across a restart.
    (tmp_path / "fixed").touch()
    daemon.terminate()
    daemon.start()
    run_cli(daemon, "agents", "replay", "fail", "--all")
    until(lambda: len(facts(daemon, "mended")) == 1)
    run_cli(daemon, "agents", "discard", "hang", "--all")
    until(lambda: [letter["agent"] for letter in letters(daemon)] == ["leave"])


def test_a_handler_finds_in_the_index_what_the_commit_that_woke_it_wrote(
    pg: Database, setup: Callable[..., DaemonProcess]
) -> None:
    daemon = setup(
        """
        @app.on_change("public.notes", ops="c")
        def look(event, context):
            hits = context.search("notes", event.data["after"]["body"], k=1, fresh=True)
            context.emit("found", [hit.source.pk for hit in hits])

        @app.on("found")
        def look_later(event, context):
            hits = context.search("notes", f"word{event.key} and nothing else", k=1, fresh=True)
            context.emit("found_later", [hit.source.pk for hit in hits])
        """
    )

    for number in range(2, 12):
        pg.execute("insert into notes values (%s, %s)", [number, f"word{number} and nothing else {number}"])

    # Also for who hears of it from another agent.
    until(lambda: len(facts(daemon, "found_later")) == 10)
    for type_ in ("found", "found_later"):
        assert [(fact.key, fact.data) for fact in facts(daemon, type_) if fact.data != [fact.key]] == []


@pytest.mark.parametrize(
    ("text", "said"),
    [("1/0", "ZeroDivisionError"), ("app.on()", "names no type"), ("del app", "'app' is missing")],
)
def test_a_program_that_cannot_be_loaded_stops_the_start_and_says_where(
    pg: Database, new_daemon: NewDaemon, tmp_path: Path, text: str, said: str
) -> None:
    pg.execute("create table notes (id int primary key, body text)")
    daemon = new_daemon(pg, collections=[NOTES], agents=[program(tmp_path, text)])

    daemon.start(ready=False)

    assert daemon.wait_exit() == 78
    assert said in daemon.log
    assert "my_agents.py:app" in daemon.log
    assert said in run_cli(daemon, "check", check=False).stdout


def test_a_command_that_nobody_carries_out_is_refused(setup: Callable[..., DaemonProcess]) -> None:
    daemon = setup("@app.command('send')\ndef send(event, context):\n    context.emit('sent')\n")

    refused = run_cli(daemon, "emit", "burn", "--command", check=False)
    run_cli(daemon, "emit", "send", "--command")

    assert refused.returncode == 2
    assert "no agent carries out 'burn'" in refused.stderr
    until(lambda: len(facts(daemon, "sent")) == 1)


@pytest.mark.fault("agent-crashes")
def test_an_event_that_kills_the_process_is_parked_after_its_attempts(
    pg: Database, setup: Callable[..., DaemonProcess]
) -> None:
    # Given an agent that takes the whole process down, and one that works
    daemon = setup(
        """
        @app.on("order", retries=Retries(attempts=2))
        def crash(event, context):
            if event.key == "7":
                os.abort()
            context.emit("survived", event.key)

        @app.on("order")
        def work(event, context):
            context.emit("worked", event.key)
        """
    )

    # When an order comes that it cannot bear, and the daemon is started again as often as it dies
    with contextlib.suppress(subprocess.CalledProcessError):
        run_cli(daemon, "emit", "order", "--key", "7")
    daemon.wait_exit()
    daemon.start(ready=False)
    daemon.wait_exit()
    daemon.start()
    run_cli(daemon, "emit", "order", "--key", "8")

    # Then that event is a dead letter, and everything goes on
    until(lambda: len(facts(daemon, "worked")) == 2 and len(facts(daemon, "survived")) == 1)
    assert [(letter["agent"], letter["reason"]) for letter in letters(daemon)] == [("crash", "crashed")]
    assert_index_equals_table(daemon, pg)
