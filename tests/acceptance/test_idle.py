"""While nothing happens to the watched tables: Postgres keeps no WAL for us, and we cost it and the machine nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from tests.support.daemon import DaemonProcess
from tests.support.oracle import assert_index_equals_table
from tests.support.postgres import Database
from tests.support.wait import until

LARGEST_LAG = 1 << 20
TRAFFIC_BYTES = 40 << 20

QUIET = {"name": "quiet", "table": "public.quiet", "text": "{body}"}


def start_on_quiet_table(pg: Database, new_daemon: Callable[..., DaemonProcess]) -> DaemonProcess:
    pg.execute("create table quiet (id int primary key, body text)")
    pg.execute("insert into quiet select i, 'words ' || i from generate_series(1, 20) i")
    daemon = new_daemon(pg, collections=[QUIET])
    daemon.start()
    assert_index_equals_table(daemon, pg)
    until(lambda: daemon.get("/resyncs").json()["resyncs"][0]["state"] == "done", what="the first copy")
    return daemon


def lag(pg: Database) -> int:
    """WAL that the slot has not acknowledged, in bytes."""
    return int(
        pg.execute(
            "select pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn)::bigint from pg_replication_slots"
            " where slot_name = %s",
            (pg.slot_name,),
        )[0][0]
    )


def write_much(dsn: str) -> None:
    """Some forty megabytes of WAL, in many transactions, in a table that nobody watches."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("create table if not exists other (id bigint, body text)")
        for _ in range(40):
            # Wide enough to count, narrow enough not to be compressed.
            connection.execute("insert into other select i, repeat('x', 1000) from generate_series(1, %s) i", (1000,))


def pass_time(seconds: float) -> None:
    """Let the daemon alone for a while."""
    end = time.monotonic() + seconds
    until(lambda: time.monotonic() >= end, seconds + 30, "the time to pass")


@pytest.mark.slow
@pytest.mark.parametrize("where", ["same database", "another database"])
@pytest.mark.fault("idle-tables")
def test_traffic_that_is_not_ours_keeps_no_wal_for_us(
    private_pg: Database, new_daemon: Callable[..., DaemonProcess], where: str
) -> None:
    # Given a daemon whose tables are idle.
    daemon = start_on_quiet_table(private_pg, new_daemon)
    private_pg.execute("create database neighbour")
    dsn = private_pg.dsn if where == "same database" else private_pg.server.dsn("neighbour")

    # When much is written elsewhere.
    before = private_pg.execute("select pg_current_wal_lsn()::text")[0][0]
    write_much(dsn)
    written = private_pg.execute("select pg_wal_lsn_diff(pg_current_wal_lsn(), %s)", (before,))[0][0]
    assert written > TRAFFIC_BYTES

    # Then Postgres may forget that soon.
    until(lambda: lag(private_pg) < LARGEST_LAG, 30.0, "the slot to follow")
    assert_index_equals_table(daemon, private_pg)

    # And a change after it is indexed, also by a daemon that is killed and started again.
    private_pg.execute("update quiet set body = 'other words' where id = 1")
    daemon.kill()
    daemon.start()
    assert_index_equals_table(daemon, private_pg)


@pytest.mark.slow
@pytest.mark.fault("idle-tables")
def test_the_slot_follows_while_the_traffic_lasts(
    private_pg: Database, new_daemon: Callable[..., DaemonProcess]
) -> None:
    # Given a daemon whose tables are idle.
    daemon = start_on_quiet_table(private_pg, new_daemon)
    confirmed = "select confirmed_flush_lsn::text from pg_replication_slots where slot_name = %s"
    before = private_pg.execute(confirmed, (private_pg.slot_name,))

    # When there is traffic elsewhere without a pause.
    with psycopg.connect(private_pg.dsn, autocommit=True) as connection:
        connection.execute("create table other (id bigint, body text)")

        def moved() -> bool:
            connection.execute("insert into other select i, repeat('x', 1000) from generate_series(1, 100) i")
            return private_pg.execute(confirmed, (private_pg.slot_name,)) != before

        # Then the slot moves all the same.
        until(moved, 30.0, "the slot to move")
    assert_index_equals_table(daemon, private_pg)


@pytest.mark.slow
def test_an_idle_daemon_asks_nothing_and_burns_nothing(
    private_pg: Database, new_daemon: Callable[..., DaemonProcess]
) -> None:
    # Given an idle daemon on a server that writes down every statement.
    private_pg.server.settings.update(log_statement="all", log_replication_commands="on")
    private_pg.server.restart()
    daemon = start_on_quiet_table(private_pg, new_daemon)
    log = Path(private_pg.server.log_path)
    assert "START_REPLICATION" in log.read_text(errors="replace")
    pass_time(2)

    # When it is left alone.
    said, burnt = log.stat().st_size, cpu_s(daemon.pid)
    pass_time(6)

    # Then it has asked Postgres nothing.
    news = log.read_bytes()[said:].decode(errors="replace")
    assert "statement:" not in news, news
    assert "execute" not in news, news

    # And it has used less than two percent of one processor.
    assert cpu_s(daemon.pid) - burnt < 0.02 * 6
    assert_index_equals_table(daemon, private_pg)


def cpu_s(pid: int) -> float:
    """Processor time of a process so far: utime and stime of /proc/PID/stat."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
