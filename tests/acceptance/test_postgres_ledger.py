"""The daemon with its ledger in Postgres: in a database of its own, and inside of the one that it follows."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.acceptance.test_failpoints import DOCS, DOINGS, OTHERS, Case, Changes, create_tables
from tests.support.daemon import DaemonProcess
from tests.support.oracle import assert_index_equals_table
from tests.support.postgres import Database
from tests.support.wait import until

NewDaemon = Callable[..., DaemonProcess]

NOTES = {"name": "notes", "table": "public.notes", "text": "{body}"}
PLACES = ("another database", "the source's database")
CASES = (
    Case("after_flip", "first_copy", 2),
    Case("after_intent", "live_changes", 3),
    Case("after_upsert", "live_changes", 2),
    Case("before_flip", "live_changes", 4),
    Case("after_flip", "live_changes", 4),
    Case("mid_gc", "live_changes", 2),
    Case("before_ack", "live_changes"),
)


def ledger_in(pg: Database, where: str) -> dict[str, Any]:
    """Settings of a ledger on the server of ``pg``."""
    if where == "the source's database":
        return {"backend": "postgres", "dsn": pg.dsn}
    name = f"{pg.name}_ledger"
    pg.execute(f"create database {name}")
    return {"backend": "postgres", "dsn": pg.server.dsn(name), "schema_name": "Läger"}


def start_on_notes(pg: Database, new_daemon: NewDaemon, **settings: Any) -> DaemonProcess:
    pg.execute("create table notes (id int primary key, body text)")
    pg.execute("insert into notes select i, 'words ' || i from generate_series(1, 20) i")
    daemon = new_daemon(pg, collections=[NOTES], **settings)
    daemon.start()
    assert_index_equals_table(daemon, pg)
    until(lambda: daemon.status()["resyncs"] == [], 60.0, "the first copy to end")
    return daemon


@pytest.mark.chaos
@pytest.mark.fault("killed-while-writing", "killed-before-garbage", "killed-in-a-first-copy")
@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_nothing_is_lost_doubled_or_stale_after_a_death(
    private_pg: Database, new_daemon: NewDaemon, case: Case, where: str
) -> None:
    # Given tables, and a daemon that is to die at the failpoint.
    pg = private_pg
    create_tables(pg, rows=40 if case.doing == "first_copy" else 0)
    settings = {"ledger": ledger_in(pg, where), "resync": {"rows_per_chunk": 10}}
    daemon = new_daemon(pg, collections=[DOCS, OTHERS], **settings)
    changes = Changes(pg, seed=str(case))
    daemon.start(failpoint=f"{case.name}:kill@{case.passage}", ready=False)

    # When it comes to that place, and does die there.
    DOINGS[case.doing](daemon, pg, changes)
    assert daemon.wait_exit() == -signal.SIGKILL, daemon.log[-4000:]

    # And others go on writing while it is away, until it is started again.
    changes.write(max(30, 100 - changes.written))
    daemon.start()
    changes.write(10)

    # Then nothing is missing, doubled, stale, torn or left behind, and there is no file of a ledger.
    daemon.wait_applied(pg.execute("select pg_current_wal_lsn()::text")[0][0])
    assert daemon.status()["dead_letters"] == 0
    until(lambda: daemon.status()["resyncs"] == [], 60.0, "the first copies to end")
    assert_index_equals_table(daemon, pg)
    assert not daemon.config.ledger_path.exists()


def test_a_ledger_in_the_source_comes_to_rest(private_pg: Database, new_daemon: NewDaemon) -> None:
    # Given an idle daemon whose every flip is WAL of the database that it follows
    pg = private_pg
    daemon = start_on_notes(pg, new_daemon, ledger=ledger_in(pg, "the source's database"))
    written = (
        "select sum(n_tup_ins + n_tup_upd + n_tup_del)::bigint from pg_stat_user_tables where schemaname = 'cdc_agent'"
    )

    # When it has seen the WAL of its own last flip, and time passes
    def at_rest() -> bool:
        before = pg.execute(written)
        time.sleep(3)  # Nothing is to happen: there is nothing that could be waited for.
        return pg.execute(written) == before

    # Then there comes a time in which nothing is written into the ledger any more
    until(at_rest, 30.0, "the ledger to rest")
    before = pg.execute(written)
    pg.execute("update notes set body = 'other words' where id = 1")
    assert_index_equals_table(daemon, pg)

    # And after one more change there comes another such time
    until(lambda: pg.execute(written) != before, 10.0, "the statistics")
    until(at_rest, 30.0, "the ledger to rest")


@pytest.mark.fault("ledger-followed")
def test_a_publication_that_would_send_the_ledger_is_refused(
    private_pg: Database, new_daemon: NewDaemon, capfd: pytest.CaptureFixture[str]
) -> None:
    # Given a publication of all tables, and a ledger that is to be in the same database
    from cdc_agent.cli import main

    pg = private_pg
    pg.execute("create table notes (id int primary key, body text)")
    pg.execute("create publication everything for all tables")
    settings = {"ledger": ledger_in(pg, "the source's database"), "source": {"publication_name": "everything"}}
    daemon = new_daemon(pg, collections=[NOTES], **settings)

    # Then the check says so, and the daemon does not start and makes nothing
    assert main(["check", "-c", str(daemon.path)]) == 1
    assert "is for all tables, and would send the ledger's own" in capfd.readouterr().out
    daemon.start(ready=False)
    assert daemon.wait_exit() == 78
    assert "would send the ledger's own" in daemon.log
    assert pg.execute("select from pg_namespace where nspname = 'cdc_agent'") == []

    # And in another database it may be
    daemon.configure(ledger=ledger_in(pg, "another database"))
    daemon.start()
    pg.execute("insert into notes values (1, 'words')")
    assert_index_equals_table(daemon, pg)


@pytest.mark.parametrize(
    ("statement", "remedy"),
    [
        ("alter publication {} add tables in schema cdc_agent", "drop tables in schema"),
        ("alter publication {} add table cdc_agent.manifest", "drop table"),
    ],
)
def test_a_ledger_that_was_put_into_the_publication_is_refused_until_it_is_out(
    private_pg: Database, new_daemon: NewDaemon, statement: str, remedy: str
) -> None:
    # Given a daemon that was stopped, and somebody who publishes its ledger
    pg = private_pg
    daemon = start_on_notes(pg, new_daemon, ledger=ledger_in(pg, "the source's database"))
    assert daemon.terminate() == 0
    pg.execute(statement.format(daemon.config.source.publication_name))

    # When it is started, then it says what mends it
    daemon.start(ready=False)
    assert daemon.wait_exit() == 78
    hint = daemon.log.rpartition("hint: run as its owner: ")[2].splitlines()[0]
    assert remedy in hint

    # And what it says does mend it
    pg.execute(hint)
    daemon.start()
    assert_index_equals_table(daemon, pg)


@pytest.mark.fault("ledger-away")
def test_a_server_that_starts_again_under_ledger_and_source_is_found_again(
    private_pg: Database, new_daemon: NewDaemon
) -> None:
    # Given a daemon with everything on one server, under load
    pg = private_pg
    daemon = start_on_notes(pg, new_daemon, ledger=ledger_in(pg, "the source's database"))

    # When the server is killed in the middle of work and started again, more than once, then who asks is told so
    for turn in range(3):
        for number in range(40):
            pg.execute("update notes set body = %s where id = %s", (f"words {turn} {number}", number % 20 + 1))
        pg.server.stop("immediate")
        answer = daemon.post("/search", {"collection": "notes", "query": "words"})
        assert (answer.status_code, "not available" in answer.text) == (503, True)
        assert "ledger" in {problem["name"] for problem in daemon.problems() or []}
        pg.server.start()
        pg.execute("update notes set body = %s where id = 1", (f"after start {turn}",))

    # Then the same process goes on by itself
    assert_index_equals_table(daemon, pg)
    assert daemon.running


def test_a_second_daemon_with_the_same_schema_mends_nothing(private_pg: Database, new_daemon: NewDaemon) -> None:
    # Given a daemon, and a second one elsewhere that has its ledger, and may mend what it takes for lost
    pg = private_pg
    settings = ledger_in(pg, "the source's database")
    daemon = start_on_notes(pg, new_daemon, ledger=settings)
    second = new_daemon(pg, collections=[NOTES], ledger=settings, source={"on_mismatch": "resync"})

    # When that one is started, then it ends, and the first one goes on
    second.start(ready=False)
    assert second.wait_exit() == 75
    assert "another daemon works with the ledger" in second.log
    pg.execute("update notes set body = 'changed' where id = 2")
    assert_index_equals_table(daemon, pg)
    assert "mending" not in daemon.log


def test_a_ledger_that_is_gone_is_lost_and_mended(private_pg: Database, new_daemon: NewDaemon) -> None:
    # Given a daemon that was stopped, and a ledger that was dropped
    pg = private_pg
    daemon = start_on_notes(pg, new_daemon, ledger=ledger_in(pg, "another database"))
    assert daemon.terminate() == 0
    pg.execute("update notes set body = 'changed' where id = 2")
    with_ledger = f"{pg.name}_ledger"
    _execute(pg, with_ledger, 'alter schema "Läger" rename to elsewhere')

    # Then it refuses to guess, and mends it when it is told to
    daemon.start(ready=False)
    assert daemon.wait_exit() == 78
    assert "LEDGER_LOST" in daemon.log
    daemon.configure(source={"on_mismatch": "resync"})
    daemon.start()
    assert_index_equals_table(daemon, pg)


@pytest.mark.fault("ledger-restored")
def test_a_ledger_that_was_put_back_from_a_copy_is_noticed(private_pg: Database, new_daemon: NewDaemon) -> None:
    # Given a copy of the ledger, and a daemon that went on since
    pg = private_pg
    settings = ledger_in(pg, "another database")
    daemon = start_on_notes(pg, new_daemon, ledger=settings)
    assert daemon.terminate() == 0
    name = f"{pg.name}_ledger"
    pg.execute(f"create database copied template {name}")
    daemon.start()
    pg.execute("update notes set body = 'changed' where id = 2")
    assert_index_equals_table(daemon, pg)
    assert daemon.terminate() == 0

    # When the copy takes its place
    pg.execute(f"drop database {name} with (force)")
    pg.execute(f"alter database copied rename to {name}")

    # Then it is refused by its name, and put aside where that is wanted
    daemon.start(ready=False)
    assert daemon.wait_exit() == 78
    assert "LEDGER_LOST" in daemon.log
    assert "older copy" in daemon.log
    daemon.configure(source={"on_mismatch": "resync"})
    daemon.start()
    assert_index_equals_table(daemon, pg)
    assert _execute(pg, name, "select count(*) from pg_namespace where nspname like 'Läger_damaged_%'") == [(1,)]


@pytest.mark.fault("ledger-damaged")
def test_damage_under_its_hands_is_mended(private_pg: Database, new_daemon: NewDaemon) -> None:
    # Given a daemon that may mend, and a ledger that somebody changes by hand
    pg = private_pg
    settings = {"ledger": ledger_in(pg, "the source's database"), "source": {"on_mismatch": "resync"}}
    daemon = start_on_notes(pg, new_daemon, **settings)
    pg.execute("update cdc_agent.manifest set xid = xid + 1")

    # When the row is changed
    pg.execute("update notes set body = 'changed' where id = 2")

    # Then the ledger is put aside and begun anew
    until(lambda: "mending state=LEDGER_CORRUPT" in daemon.log, 30.0, "the damage to be found")
    until(lambda: daemon.problems() == [], 60.0, "the daemon to be ready again")
    assert_index_equals_table(daemon, pg)
    assert pg.execute("select count(*) from pg_namespace where nspname like 'cdc_agent_damaged_%'") == [(1,)]


def test_commands_without_a_daemon_find_the_ledger(
    private_pg: Database, new_daemon: NewDaemon, capfd: pytest.CaptureFixture[str]
) -> None:
    from cdc_agent.cli import main

    pg = private_pg
    settings = ledger_in(pg, "the source's database")
    daemon = new_daemon(pg, collections=[NOTES], ledger=settings)
    assert main(["migrate", "status", "-c", str(daemon.path)]) == 2
    assert "there is no ledger at schema cdc_agent" in capfd.readouterr().err
    pg.execute("create table notes (id int primary key, body text)")
    daemon.start()
    assert daemon.terminate() == 0
    capfd.readouterr()

    assert main(["migrate", "status", "-c", str(daemon.path)]) == 0
    assert "notes" in capfd.readouterr().out
    assert main(["check", "-c", str(daemon.path)]) == 0
    assert "schema cdc_agent holds a ledger of version 1" in capfd.readouterr().out


def _execute(pg: Database, database: str, statement: str) -> list[tuple[Any, ...]]:
    import psycopg

    with psycopg.connect(pg.server.dsn(database), autocommit=True) as connection:
        cursor = connection.execute(statement)  # type: ignore[call-overload]
        return cursor.fetchall() if cursor.description else []
