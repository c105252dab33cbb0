"""Server, slot and publication that do not fit our state any more, each made so for real: named, refused, mended.

Content that did not change is never embedded again: what a daemon embedded since its start is counted.
"""

from __future__ import annotations

import shutil
import signal
import socket
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from cdc_agent.demo.postgres import PostgresServer
from tests.support.daemon import DaemonProcess
from tests.support.oracle import assert_index_equals_table
from tests.support.postgres import Database, Servers
from tests.support.wait import until

pytestmark = pytest.mark.slow

NewDaemon = Callable[..., DaemonProcess]

ARTICLES = {"name": "articles", "table": "public.articles", "text": "{title}\n\n{body}", "metadata": ["lang"]}
ROWS = 30
REFUSED = 78
MEND = {"CDC_AGENT_SOURCE__ON_MISMATCH": "resync"}
#: Where a daemon that mends may be killed.
STEPS = ("mending_begun", "mending_after_drop", "resync_after_slot", "mending_before_ready")


def create_articles(pg: Database) -> None:
    pg.execute("create table articles (id int primary key, title text, body text, lang text)")
    rows = "select i, 'title ' || i, 'body of ' || i, 'en' from generate_series(1, %s) i"
    pg.execute(f"insert into articles {rows}", (ROWS,))


def started(pg: Database, new_daemon: NewDaemon, **settings: Any) -> DaemonProcess:
    """A daemon on a table with thirty articles, ready."""
    create_articles(pg)
    daemon = new_daemon(pg, collections=[ARTICLES], **settings)
    daemon.start()
    assert_index_equals_table(daemon, pg)
    return daemon


def unheard(pg: Database) -> None:
    """Changes that need no embedding: one row is gone, one has other metadata."""
    pg.execute("delete from articles where id = (select min(id) from articles)")
    pg.execute("update articles set lang = md5(random()::text) where id = 20")


def refused(daemon: DaemonProcess, state: str, *, start: bool = True) -> None:
    """It ends (after a start, or by itself) with one error that begins with the state, a hint, and this exit code."""
    said = len(daemon.log)
    if start:
        daemon.start(ready=False)
    code = daemon.wait_exit()
    text = daemon.log[said:]
    assert code == REFUSED, text
    assert text.count("error: ") >= 1
    error = text[text.rindex("\nerror: ") if "\nerror: " in text else 0 :]
    assert f"error: {state}: " in error, error
    assert "\nhint: " in error, error
    assert "Traceback" not in error


def settled(daemon: DaemonProcess, state: str) -> None:
    """It is ready once all was read again; then nothing is said of the state any more."""

    def read_again() -> bool:
        try:
            resyncs = daemon.get("/resyncs").json()["resyncs"]
        except httpx.HTTPError:
            return False  # It begins anew in the same process.
        return any(r["reason"] == state and r["state"] == "done" for r in resyncs)

    until(read_again, 90.0, what="everything to be read again")
    daemon.wait_ready(90.0)
    until(lambda: daemon.metric("cdc_agent_mismatch", state=state) == 0, what="the metric to be cleared")


def healed(daemon: DaemonProcess, pg: Database, state: str, *, embedded: int = 0) -> None:
    """The index is the table, also of what changes from now on, and only what was new was embedded."""
    settled(daemon, state)
    assert_index_equals_table(daemon, pg)
    assert daemon.metric("cdc_agent_chunks_embedded_total") == embedded
    pg.execute("update articles set title = md5(random()::text) where id = 25")
    assert_index_equals_table(daemon, pg)
    assert daemon.metric("cdc_agent_chunks_embedded_total") == embedded + 1


def free_slot(pg: Database, statement: str) -> None:
    """Run a statement about the slot while nobody streams from it, though a daemon may try again and again."""

    def done() -> bool:
        pg.execute(
            "select pg_terminate_backend(active_pid) from pg_replication_slots"
            " where slot_name = %s and active_pid is not null",
            (pg.slot_name,),
        )
        return bool(
            pg.execute(f"{statement} from pg_replication_slots where slot_name = %s and not active", (pg.slot_name,))
        )

    until(done, what="the slot to be free")


# -- the slot and the publication, while we are away -----------------------------------------------------------


def drop_slot(pg: Database) -> None:
    pg.execute("select pg_drop_replication_slot(%s)", (pg.slot_name,))


def recreate_slot(pg: Database) -> None:
    drop_slot(pg)
    pg.execute("select pg_create_logical_replication_slot(%s, %s)", (pg.slot_name, pg.plugin))


def advance_slot(pg: Database) -> None:
    pg.execute("select pg_replication_slot_advance(%s, pg_current_wal_lsn())", (pg.slot_name,))


def drop_publication(pg: Database) -> None:
    pg.execute(f"drop publication {pg.slot_name}")


def recreate_publication(pg: Database) -> None:
    drop_publication(pg)
    unheard(pg)
    pg.execute(f"create publication {pg.slot_name} for table articles")


DAMAGES = [
    (drop_slot, "SLOT_LOST"),
    (recreate_slot, "SLOT_ADVANCED"),
    (advance_slot, "SLOT_ADVANCED"),
    (drop_publication, "PUBLICATION_LOST"),
    (recreate_publication, "PUBLICATION_LOST"),
]


@pytest.mark.postgres(versions=[15], plugin="all")
@pytest.mark.fault("slot-lost", "publication-lost")
def test_what_was_lost_while_we_were_away_is_named_or_mended_without_embedding_anything(
    pg: Database, new_daemon: NewDaemon
) -> None:
    daemon = started(pg, new_daemon)
    for damage, state in DAMAGES:
        if state == "PUBLICATION_LOST" and pg.plugin == "wal2json":
            assert pg.execute("select count(*) from pg_publication") == [(0,)]
            continue
        # Given something that happened while the daemon was away, beside changes that it has not heard of.
        assert daemon.terminate() == 0
        unheard(pg)
        damage(pg)
        unheard(pg)

        # When it starts, then it refuses and says why.
        refused(daemon, state)

        # When it may mend, then it does, and embeds nothing.
        forget_mendings(daemon)
        daemon.start(ready=False, env=MEND)
        healed(daemon, pg, state)


def forget_mendings(daemon: DaemonProcess) -> None:
    """So that one test may break more than somebody in an hour."""
    with closing(sqlite3.connect(daemon.config.ledger_path, isolation_level=None)) as ledger:
        ledger.execute("delete from mending")


@pytest.mark.fault("killed-while-mending")
def test_mending_goes_on_wherever_it_was_killed(pg: Database, new_daemon: NewDaemon) -> None:
    # Given a slot that is gone, and changes that went unheard.
    daemon = started(pg, new_daemon)
    assert daemon.terminate() == 0
    unheard(pg)
    drop_slot(pg)

    # When the daemon is killed at every step of mending, one life after the other.
    for step in STEPS:
        daemon.start(failpoint=f"{step}:kill", ready=False, env=MEND)
        assert daemon.wait_exit() == -signal.SIGKILL, step
        unheard(pg)

    # Then the next one goes on with it, even one that would not begin to.
    daemon.start(ready=False)
    healed(daemon, pg, "SLOT_LOST")


@pytest.mark.fault("slot-lost")
def test_a_slot_that_is_lost_again_and_again_is_not_mended_for_ever(pg: Database, new_daemon: NewDaemon) -> None:
    # Given a daemon that mends, and somebody who drops its slot whenever it can.
    daemon = started(pg, new_daemon, source={"on_mismatch": "resync"})
    for _ in range(3):
        free_slot(pg, "select pg_drop_replication_slot(slot_name)")
        until(lambda: pg.execute("select 1 from pg_replication_slots where slot_name = %s and active", (pg.slot_name,)))
        settled(daemon, "SLOT_LOST")

    # When that happens a fourth time within an hour, then it stops and says so.
    free_slot(pg, "select pg_drop_replication_slot(slot_name)")
    refused(daemon, "SLOT_LOST", start=False)
    assert "mended 3 times within an hour" in daemon.log
    refused(daemon, "SLOT_LOST")


@pytest.mark.parametrize("after", ["a change", "a while"])
@pytest.mark.postgres(versions=[15, 18])
@pytest.mark.fault("publication-lost")
def test_a_publication_that_is_made_again_while_we_stream_is_named_or_mended(
    pg: Database, new_daemon: NewDaemon, after: str
) -> None:
    daemon = started(pg, new_daemon, source={"on_mismatch": "resync"})
    embedded = int(daemon.metric("cdc_agent_chunks_embedded_total"))

    # When the publication is dropped while the daemon streams, with changes before it is there again.
    drop_publication(pg)
    if after == "a change":
        unheard(pg)
    until(lambda: daemon.metric("cdc_agent_mismatch", state="PUBLICATION_LOST") == 1 or "mended" in daemon.log)

    # Then the daemon makes it anew and reads everything again, without ending.
    unheard(pg)
    healed(daemon, pg, "PUBLICATION_LOST", embedded=embedded)

    # When it may not mend, then it ends by itself and says why.
    assert daemon.terminate() == 0
    daemon.configure(source={"on_mismatch": "stop"})
    daemon.start()
    recreate_publication(pg)
    refused(daemon, "PUBLICATION_LOST", start=False)


@pytest.mark.fault("publication-lost")
def test_a_publication_that_was_not_there_at_its_place_in_the_log_is_named_though_the_catalog_looks_well(
    pg: Database, new_daemon: NewDaemon
) -> None:
    # Given a publication that was made again with changes before it, and a ledger that does not know which it was.
    daemon = started(pg, new_daemon)
    assert daemon.terminate() == 0
    unheard(pg)
    recreate_publication(pg)
    with closing(sqlite3.connect(daemon.config.ledger_path, isolation_level=None)) as ledger:
        ledger.execute("update identity set publication_oid = 0")

    # When the server refuses to stream, again, then that has a name, and may be mended.
    refused(daemon, "PUBLICATION_LOST")
    daemon.start(ready=False, env=MEND)
    healed(daemon, pg, "PUBLICATION_LOST")


# -- the log itself --------------------------------------------------------------------------------------------


def overrun(pg: Database) -> None:
    """More WAL is written than the server keeps for anybody."""
    pg.execute("alter system set max_slot_wal_keep_size = '16MB'")
    pg.execute("select pg_reload_conf()")

    def invalidated() -> bool:
        for _ in range(4):
            pg.execute("select pg_logical_emit_message(false, 'x', 'y')")
            pg.execute("select pg_switch_wal()")
        pg.execute("checkpoint")
        found = pg.execute("select wal_status from pg_replication_slots where slot_name = %s", (pg.slot_name,))
        return bool(found == [("lost",)])

    until(invalidated, 60.0, "the slot to be invalidated")
    pg.execute("alter system reset max_slot_wal_keep_size")
    pg.execute("select pg_reload_conf()")


@pytest.mark.postgres(versions=[15, 18])
@pytest.mark.fault("slot-invalidated")
def test_a_slot_whose_wal_was_removed_is_named_or_mended(private_pg: Database, new_daemon: NewDaemon) -> None:
    # Given a server that wrote more than it keeps for us while we were away.
    daemon = started(private_pg, new_daemon)
    assert daemon.terminate() == 0
    unheard(private_pg)
    overrun(private_pg)

    refused(daemon, "SLOT_INVALIDATED")
    daemon.start(ready=False, env=MEND)
    healed(daemon, private_pg, "SLOT_INVALIDATED")


@pytest.mark.postgres(versions=[18])
@pytest.mark.fault("slot-timed-out")
def test_a_slot_that_nobody_used_for_long_is_named_or_mended(private_pg: Database, new_daemon: NewDaemon) -> None:
    # Given a server that keeps nothing for who is away longer than a second.
    daemon = started(private_pg, new_daemon)
    assert daemon.terminate() == 0
    unheard(private_pg)
    private_pg.execute("alter system set idle_replication_slot_timeout = '1s'")
    private_pg.execute("select pg_reload_conf()")

    def timed_out() -> bool:
        private_pg.execute("select pg_switch_wal()")
        private_pg.execute("checkpoint")
        return private_pg.execute("select invalidation_reason from pg_replication_slots") == [("idle_timeout",)]

    until(timed_out, 60.0, "the slot to be invalidated")
    private_pg.execute("alter system reset idle_replication_slot_timeout")
    private_pg.execute("select pg_reload_conf()")

    refused(daemon, "SLOT_INVALIDATED")
    daemon.start(ready=False, env=MEND)
    healed(daemon, private_pg, "SLOT_INVALIDATED")


# -- another history -------------------------------------------------------------------------------------------


def copied(origin: Path, target: Path) -> None:
    """Owners and all."""
    shutil.rmtree(target, ignore_errors=True)
    subprocess.run(["cp", "-a", str(origin), str(target)], check=True)


#: Rows that a later history deleted. The vectors of what is deleted are forgotten: these are embedded again.
REVIVED = 3


def later_history(pg: Database, daemon: DaemonProcess) -> None:
    """Changes of every kind, captured and indexed."""
    pg.execute("update articles set title = 'from a future that never came' where id between 5 and 8")
    pg.execute("insert into articles select i, 'new', 'row', 'en' from generate_series(500, 510) i")
    pg.execute("delete from articles where id in (10, 11, 12)")
    assert_index_equals_table(daemon, pg)


@pytest.mark.fault("restored-backup")
def test_a_server_that_was_restored_from_a_backup_is_named_or_mended_without_embedding_anything(
    private_pg: Database, new_daemon: NewDaemon
) -> None:
    pg = private_pg
    daemon = started(pg, new_daemon)
    backup = pg.server.data_dir.with_name("backup")

    # Given a backup of the server, and a history that went on from there.
    assert daemon.terminate() == 0
    pg.server.stop("fast")
    copied(pg.server.data_dir, backup)
    pg.server.start()
    daemon.start()
    later_history(pg, daemon)

    # When the backup is restored while the daemon runs, then it ends and says why, and does so again.
    pg.server.stop("fast")
    copied(backup, pg.server.data_dir)
    pg.server.start()
    refused(daemon, "SERVER_REWOUND", start=False)
    refused(daemon, "SERVER_REWOUND")

    # When it may mend, and is killed at every step of that.
    for step in (*STEPS, "mending_after_ledger"):
        daemon.start(failpoint=f"{step}:kill", ready=False, env=MEND)
        assert daemon.wait_exit() == -signal.SIGKILL, step

    # Then the index becomes what the backup has, and nothing is embedded that is known.
    daemon.start(ready=False, env=MEND)
    healed(daemon, pg, "SERVER_REWOUND", embedded=REVIVED)


@pytest.mark.fault("restored-backup")
def test_a_daemon_that_runs_while_its_server_is_set_back_begins_anew_in_the_same_process(
    private_pg: Database, new_daemon: NewDaemon
) -> None:
    pg = private_pg
    daemon = started(pg, new_daemon, source={"on_mismatch": "resync"})
    backup = pg.server.data_dir.with_name("backup")
    pg.server.stop("fast")
    copied(pg.server.data_dir, backup)
    pg.server.start()
    daemon.wait_ready()
    later_history(pg, daemon)
    process, embedded = daemon.pid, int(daemon.metric("cdc_agent_chunks_embedded_total"))

    # When the backup is restored while the daemon runs and may mend.
    pg.server.stop("fast")
    copied(backup, pg.server.data_dir)
    pg.server.start()
    until(lambda: "mended state=SERVER_REWOUND" in daemon.log, 60.0, "the mending")

    # Then the same process has the restored table in its index, with nothing embedded that is known.
    healed(daemon, pg, "SERVER_REWOUND", embedded=embedded + REVIVED)
    assert daemon.pid == process
    assert daemon.terminate() == 0


@contextmanager
def standby_of(pg: Database, servers: Servers, *, failover: bool) -> Iterator[PostgresServer]:
    """A standby that streams from the server; with ``failover`` it keeps our slot as well."""
    primary = pg.server
    standby = servers.new_server(pg.version)
    options = ["-D", str(standby.data_dir), "-R", "-X", "stream", "-c", "fast", "-C", "-S", "standby"]
    command = [str(standby._bin_dir / "pg_basebackup"), "-d", primary.conninfo, *options]
    subprocess.run(command, check=True, capture_output=True, cwd="/")
    stat = primary.data_dir.stat()
    subprocess.run(["chown", "-R", f"{stat.st_uid}:{stat.st_gid}", str(standby.data_dir)], check=True)
    if failover:
        standby.settings |= {"hot_standby_feedback": "on"}
    standby.start()
    try:
        yield standby
    finally:
        standby.stop("immediate")


def on(server: PostgresServer, pg: Database) -> Database:
    return replace(pg, server=server, _connections=[])


def caught_up(primary: Database, standby: Database) -> None:
    end = primary.execute("select pg_current_wal_lsn()::text")[0][0]
    until(lambda: standby.execute("select pg_last_wal_replay_lsn() >= %s::pg_lsn", (end,)) == [(True,)], 30.0)


def promoted_in_place(primary: PostgresServer, standby: PostgresServer) -> None:
    """The standby takes over the address of its primary."""
    primary.stop("fast")
    standby.stop("fast")
    standby.port = primary.port
    standby.start()


@pytest.mark.parametrize(
    ("lossy", "state"), [(False, "SLOT_LOST"), (True, "SERVER_REWOUND")], ids=["lossless", "lossy"]
)
@pytest.mark.fault("promoted-standby")
def test_a_standby_that_is_promoted_without_our_slot_is_named_or_mended(
    private_pg: Database, servers: Servers, new_daemon: NewDaemon, lossy: bool, state: str
) -> None:
    promote_without_our_slot(private_pg, servers, new_daemon, lossy=lossy, state=state)


@pytest.mark.postgres(versions=[15], plugin="wal2json")
@pytest.mark.fault("promoted-standby")
def test_another_timeline_is_named_or_mended_also_without_a_publication(
    private_pg: Database, servers: Servers, new_daemon: NewDaemon
) -> None:
    promote_without_our_slot(private_pg, servers, new_daemon, lossy=True, state="SERVER_REWOUND")


def promote_without_our_slot(
    primary: Database, servers: Servers, new_daemon: NewDaemon, *, lossy: bool, state: str
) -> None:
    # Given a daemon on a server with a standby; a lossy one has not heard of everything.
    daemon = started(primary, new_daemon)
    with standby_of(primary, servers, failover=False) as standby:
        promoted = on(standby, primary)
        caught_up(primary, promoted)
        if lossy:
            standby.stop("fast")
            later_history(primary, daemon)

        # When the standby takes over the address of its primary, then the daemon waits until it is promoted.
        primary.server.stop("fast")
        standby.stop("fast")
        standby.port = primary.server.port
        if lossy:
            # It must not hear of the rest.
            (standby.data_dir / "postgresql.auto.conf").write_text("")
        standby.start()
        until(lambda: "is a standby" in str(daemon.problems()), 30.0, "the daemon to wait")
        promoted.execute("select pg_promote()")

        # Then it ends and says what is missing.
        refused(daemon, state, start=False)

        # When it may mend, then the index is what the new primary has, and nothing was embedded that is known.
        daemon.start(ready=False, env=MEND)
        healed(daemon, promoted, state, embedded=REVIVED if lossy else 0)


@pytest.mark.postgres(versions=[18])
@pytest.mark.fault("promoted-standby")
def test_a_standby_that_is_promoted_with_our_slot_is_followed_without_reading_anything_again(
    private_pg: Database, servers: Servers, new_daemon: NewDaemon
) -> None:
    # Given a daemon on a server whose standby keeps its slot in step.
    primary = private_pg
    daemon = started(primary, new_daemon)
    with standby_of(primary, servers, failover=True) as standby:
        promoted = on(standby, primary)
        primary.execute("update articles set title = 'shortly before' where id = 3")
        assert_index_equals_table(daemon, primary)
        caught_up(primary, promoted)

        def in_step() -> bool:
            primary.execute("select pg_log_standby_snapshot()")
            promoted.execute("select pg_sync_replication_slots()")
            slot = "select 1 from pg_replication_slots where slot_name = %s and synced and not temporary"
            return bool(promoted.execute(slot, (primary.slot_name,)))

        until(in_step, 60.0, "the slot on the standby")
        read = [r["id"] for r in daemon.get("/resyncs").json()["resyncs"]]
        embedded = daemon.metric("cdc_agent_chunks_embedded_total")

        # When the standby takes over the address of its primary and is promoted, while the daemon runs.
        promoted_in_place(primary.server, standby)
        promoted.execute("select pg_promote()")
        daemon.wait_ready(60.0)
        promoted.execute("update articles set title = 'after' where id = 4")

        # Then the daemon goes on with it, and again after a restart.
        assert_index_equals_table(daemon, promoted)
        assert [r["id"] for r in daemon.get("/resyncs").json()["resyncs"]] == read
        assert daemon.metric("cdc_agent_chunks_embedded_total") == embedded + 1
        assert daemon.terminate() == 0
        daemon.start()
        promoted.execute("update articles set title = 'long after' where id = 4")
        assert_index_equals_table(daemon, promoted)


@pytest.mark.fault("another-server")
def test_another_server_is_followed_only_when_the_operator_says_so(
    private_pg: Database, servers: Servers, new_daemon: NewDaemon
) -> None:
    # Given a daemon that may mend, and another server that has most of its rows.
    daemon = started(private_pg, new_daemon)
    other = servers.new_server(15)
    other.start()
    try:
        on(other, replace(private_pg, name="postgres")).execute(f"create database {private_pg.name}")
        moved = on(other, private_pg)
        create_articles(moved)
        unheard(moved)
        assert daemon.terminate() == 0

        # When its address leads there, then it refuses, whatever it may mend.
        daemon.configure(source={"dsn": moved.dsn, "on_mismatch": "resync"})
        refused(daemon, "OTHER_SERVER")

        # When it is told to adopt that server, and killed while it does.
        daemon.start(ready=False, failpoint="mending_after_ledger:kill", options=["--adopt-server"])
        assert daemon.wait_exit() == -signal.SIGKILL

        # Then the next one goes on with it, without being told again, and embeds nothing.
        daemon.start(ready=False)
        healed(daemon, moved, "OTHER_SERVER")

        # And the first server is another one from now on.
        assert daemon.terminate() == 0
        daemon.configure(source={"dsn": private_pg.dsn})
        refused(daemon, "OTHER_SERVER")
    finally:
        other.stop("immediate")


# -- two daemons -----------------------------------------------------------------------------------------------


@pytest.mark.fault("two-daemons")
def test_a_second_daemon_with_the_same_state_waits_and_takes_over(
    pg: Database, new_daemon: NewDaemon, tmp_path: Path
) -> None:
    # Given two daemons on one state directory.
    first = started(pg, new_daemon)
    second = new_daemon(pg, collections=[ARTICLES], state_dir=first.settings["state_dir"])

    def waiting() -> None:
        said = f"pid={first.pid}, taking over when it ends"
        until(lambda: said in second.log, 30.0, "the second one to wait")
        assert second.log.count("standby: ") == second.log.count("taking over when it ends")

    # When the one that waits is told to stop, then it does; systemd takes it for ready.
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(30)
        second.start(ready=False, env={"NOTIFY_SOCKET": str(tmp_path / "notify")})
        told = systemd.recv(1000).decode()
        assert told.startswith("READY=1\nSTATUS=standby: ")
        waiting()
        assert second.terminate() == 0
    assert first.problems() == []

    # When the other one is killed, then it takes over.
    second.start(ready=False)
    waiting()
    pg.execute("update articles set title = 'before' where id = 3")
    assert_index_equals_table(first, pg)
    first.kill()
    second.wait_ready(60.0)
    pg.execute("update articles set title = 'after' where id = 3")
    assert_index_equals_table(second, pg)
    assert second.metric("cdc_agent_chunks_embedded_total") == 1


@pytest.mark.fault("two-daemons")
def test_a_second_daemon_with_its_own_state_waits_for_the_slot_and_never_drops_it_while_it_is_used(
    pg: Database, new_daemon: NewDaemon
) -> None:
    # Given a daemon that streams, and another one with a state of its own that may mend.
    first = started(pg, new_daemon)
    second = new_daemon(pg, collections=[ARTICLES], source={"on_mismatch": "resync"})

    def busy(daemon: DaemonProcess) -> bool:
        return any("SLOT_BUSY" in problem["message"] for problem in daemon.problems() or [])

    # When that one is started, then it waits and says so, and the first one has not noticed.
    second.start(ready=False)
    until(lambda: busy(second), 30.0, "the second one to wait")
    assert second.metric("cdc_agent_mismatch", state="SLOT_BUSY") == 1
    pg.execute("update articles set title = 'changed' where id = 3")
    assert_index_equals_table(first, pg)
    assert first.problems() == []
    assert busy(second)

    # When the first one is killed, then the second one begins with a slot of its own.
    first.kill()
    settled(second, "LEDGER_LOST")
    assert_index_equals_table(second, pg)

    # When the first one is back, then it waits in turn, and when it may go on its place is gone.
    pg.execute("update articles set title = 'changed again' where id = 3")
    assert_index_equals_table(second, pg)
    first.start(ready=False)
    until(lambda: busy(first), 30.0, "the first one to wait")
    assert second.problems() == []
    second.kill()
    refused(first, "SLOT_ADVANCED", start=False)
