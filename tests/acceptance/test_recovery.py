"""How soon it is back, and what goes on while something is slow: deaths, models, passwords, clocks."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from tests.support.daemon import DaemonProcess
from tests.support.fake_openai import FakeOpenAI, hang
from tests.support.oracle import assert_index_equals_table
from tests.support.postgres import Database
from tests.support.wait import until

NewDaemon = Callable[..., DaemonProcess]

ITEMS = {"name": "items", "table": "public.items", "text": "{body}"}
#: Streaming again after kill -9, with a hashing model: the loading of a real one comes on top.
BACK_WITHIN_S = 5.0
#: Replaces the wall clock of a process by one that SIGUSR1 sets an hour ahead, and the next one an hour back.
JUMPING_CLOCK = """
import signal, time
offsets, real, real_ns = [0], time.time, time.time_ns
time.time = lambda: real() + offsets[-1]
time.time_ns = lambda: real_ns() + offsets[-1] * 10**9
jumps = iter([3600, -3600, 0])
signal.signal(signal.SIGUSR1, lambda *_: offsets.append(next(jumps)))
"""


def create_items(pg: Database) -> None:
    pg.execute("create table items (id int primary key, body text)")
    pg.execute("insert into items select i, 'body of ' || i from generate_series(1, 20) i")


def walsender(pg: Database) -> int:
    return int(
        pg.execute("select coalesce(active_pid, 0) from pg_replication_slots where slot_name = %s", (pg.slot_name,))[0][
            0
        ]
    )


@pytest.mark.fault("slow-to-return")
def test_a_daemon_that_was_killed_streams_again_within_five_seconds(
    pg: Database, new_daemon: NewDaemon, record_property: Callable[[str, object], None]
) -> None:
    # Given a daemon that has much before it.
    create_items(pg)
    daemon = new_daemon(pg, collections=[ITEMS])
    daemon.start()
    assert_index_equals_table(daemon, pg)
    took: list[float] = []
    # The bound is for a machine of our own; where many wait for each processor, so do we.
    within_s = BACK_WITHIN_S * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    for _ in range(3):
        pg.execute("update items set body = md5(random()::text)")

        # When it is killed and started again, in a new interpreter.
        daemon.kill()
        daemon.start(ready=False, fresh=True)
        took.append(daemon.wait_streaming())
        if took[-1] < within_s:
            break

    # Then it streams soon.
    record_property("streaming_again_s", round(min(took), 2))
    assert min(took) < within_s
    assert_index_equals_table(daemon, pg)


@pytest.mark.fault("slow-model-and-walsender-timeout")
def test_a_slow_model_does_not_cost_the_connection(
    pg: Database, fake_openai: FakeOpenAI, new_daemon: NewDaemon
) -> None:
    # Given a server that gives up a silent connection after a second, and a model that hangs.
    create_items(pg)
    model = {"backend": "openai", "url": fake_openai.base_url, "model": "fake", "timeout_s": 60.0}
    dsn = pg.dsn + "?options=-c%20wal_sender_timeout%3D1s"
    daemon = new_daemon(pg, collections=[ITEMS], dsn=dsn, embedding=model)
    daemon.start()
    assert_index_equals_table(daemon, pg)
    before = walsender(pg)
    asked = len(fake_openai.requests)
    fake_openai.script(hang())
    pg.execute("update items set body = 'other words' where id = 1")
    until(lambda: len(fake_openai.requests) > asked, what="the model to be asked")

    # When that lasts for several such times, while there is more to read.
    confirmed = "select confirmed_flush_lsn from pg_replication_slots where slot_name = %s"
    for word in ("one", "two", "three"):
        seen = pg.execute(confirmed, (pg.slot_name,))
        pg.execute("update items set body = %s where id = 2", (word,))
        until(lambda seen=seen: pg.execute(confirmed, (pg.slot_name,)) != seen, what="the change to be acknowledged")

    # Then the connection is the same.
    assert walsender(pg) == before
    assert daemon.metric("cdc_agent_reconnects_total") == 0
    fake_openai.release()
    assert_index_equals_table(daemon, pg)


@pytest.mark.postgres(versions=[15], plugin="all")
@pytest.mark.fault("keepalive-in-flight")
def test_what_a_keepalive_says_is_not_acknowledged_for_a_change_that_is_not_durable(
    pg: Database, new_daemon: NewDaemon
) -> None:
    # Given a daemon that has received a change and cannot write it down.
    create_items(pg)
    daemon = new_daemon(pg, collections=[ITEMS], dsn=pg.dsn + "?options=-c%20wal_sender_timeout%3D1s")
    daemon.start()
    assert_index_equals_table(daemon, pg)
    daemon.kill()
    daemon.start(failpoint="before_append:hang", ready=False)
    daemon.wait_streaming()
    pg.execute("insert into items values (100, 'in flight')")
    commit = pg.execute("select pg_current_wal_lsn()::text")[0][0]

    # When the server says several times that it has sent everything, beyond that change.
    sent = (
        "select sent_lsn > %s and reply_time > %s from pg_stat_replication r"
        " join pg_replication_slots s on s.active_pid = r.pid where slot_name = %s"
    )
    for _ in range(3):
        pg.execute("select pg_logical_emit_message(false, 'somebody', 'else')")
        now = pg.execute("select now()")[0][0]
        until(lambda now=now: pg.execute(sent, (commit, now, pg.slot_name)) == [(True,)], what="a status update")

    # Then the slot still stands before it, and a daemon that is killed now gets it again.
    before = "select confirmed_flush_lsn < %s::pg_lsn from pg_replication_slots where slot_name = %s"
    assert pg.execute(before, (commit, pg.slot_name)) == [(True,)]
    daemon.kill()
    daemon.start()
    assert_index_equals_table(daemon, pg)


@pytest.mark.fault("password-rotated", "secrets-in-logs")
def test_a_password_that_changes_while_we_run_is_taken_from_its_file(
    private_pg: Database, new_daemon: NewDaemon, tmp_path: Path
) -> None:
    # Given a daemon whose password lies in a file of libpq.
    pg = private_pg
    create_items(pg)
    pg.execute("create role agent superuser login password 'firstpassword'")
    hba = pg.server.data_dir / "pg_hba.conf"
    hba.write_text("host all agent 127.0.0.1/32 scram-sha-256\n" + hba.read_text())
    pg.execute("select pg_reload_conf()")
    passwords = tmp_path / "pgpass"
    passwords.write_text("*:*:*:agent:firstpassword\n")
    passwords.chmod(0o600)
    dsn = f"postgresql://agent@127.0.0.1:{pg.server.port}/{pg.name}?passfile={passwords}"
    daemon = new_daemon(pg, collections=[ITEMS], dsn=dsn)
    daemon.start()
    assert_index_equals_table(daemon, pg)

    # When it is changed, and the connections are ended, then the daemon says so and stays up.
    pg.execute("alter role agent password 'secondpassword'")
    pg.execute("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'agent'")
    refused = "password authentication failed"
    until(lambda: any(refused in p["message"] for p in daemon.problems() or []), 30.0, "the refusal to be reported")
    pg.execute("update items set body = 'changed meanwhile' where id = 1")

    # And it has not hammered at the door.
    log = Path(pg.server.log_path)
    assert 0 < log.read_text(errors="replace").count(f"FATAL:  {refused}") < 10

    # When the file has the new one, then it is back.
    passwords.write_text("*:*:*:agent:secondpassword\n")
    daemon.wait_ready()
    assert_index_equals_table(daemon, pg)
    assert "firstpassword" not in daemon.log
    assert "secondpassword" not in daemon.log


@pytest.mark.fault("clock-jump")
def test_a_clock_that_jumps_an_hour_ahead_and_back_orders_nothing(
    pg: Database, new_daemon: NewDaemon, tmp_path: Path
) -> None:
    # Given a daemon whose wall clock can be set.
    create_items(pg)
    (tmp_path / "clock").mkdir()
    (tmp_path / "clock" / "sitecustomize.py").write_text(JUMPING_CLOCK)
    daemon = new_daemon(pg, collections=[ITEMS])
    path = os.pathsep.join([str(tmp_path / "clock"), os.environ.get("PYTHONPATH", "")])
    daemon.start(fresh=True, env={"PYTHONPATH": path})
    assert_index_equals_table(daemon, pg)

    # When it jumps an hour ahead, two hours back, and to where it was, with changes in between.
    for number in range(3):
        daemon.signal(signal.SIGUSR1)
        with psycopg.connect(pg.dsn, autocommit=True) as connection:
            for row in range(1, 11):
                connection.execute("update items set body = %s where id = %s", (f"version {number}", row))
            connection.execute("insert into items values (%s, 'new')", (1000 + number,))
        assert_index_equals_table(daemon, pg)

    # Then nothing was timed by it either.
    assert daemon.metric("cdc_agent_reconnects_total") == 0
    assert daemon.problems() == []
