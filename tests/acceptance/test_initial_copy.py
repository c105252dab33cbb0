"""The first copy: rows are read while others write to them, and the copy survives its own death."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg
import pytest

from tests.support.daemon import DaemonProcess
from tests.support.oracle import assert_index_equals_table, texts_of
from tests.support.postgres import Database
from tests.support.wait import until

NewDaemon = Callable[..., DaemonProcess]

ROWS = 3_000
#: Small pages, so that much happens between them.
PAGE = 100
DOCS = {"name": "docs", "table": "public.docs", "text": "{title}\n\n{body}", "metadata": ["n"]}


def create_docs(pg: Database, rows: int = ROWS) -> None:
    pg.execute("create table docs (id int primary key, title text, body text, n int)")
    pg.execute("alter table docs alter body set storage external")
    pg.execute(
        "insert into docs select i * 10, 'title ' || i, case when i % 50 = 0 then repeat(md5(i::text) || ' ', 100) "
        f"else 'body ' || i % 100 end, i from generate_series(1, {rows}) i"
    )


@contextmanager
def writers(pg: Database, count: int) -> Iterator[None]:
    """Random writers all over the table, for as long as the block lasts."""
    done = threading.Event()
    threads = [threading.Thread(target=_write, args=(pg, seed, done)) for seed in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join()


def _write(pg: Database, seed: int, done: threading.Event) -> None:
    rng = random.Random(seed)
    with psycopg.connect(pg.dsn) as connection:
        while not done.wait(0.005):
            try:
                for _ in range(rng.randrange(1, 4)):
                    _random_change(connection, rng)
                connection.commit()
            except psycopg.errors.UniqueViolation:
                connection.rollback()
            except psycopg.errors.DeadlockDetected:
                connection.rollback()


def _random_change(connection: psycopg.Connection[tuple[object, ...]], rng: random.Random) -> None:
    key, roll = rng.randrange(1, ROWS + 1) * 10, rng.random()
    if roll < 0.25:
        connection.execute(
            "insert into docs values (%s, 'inserted', %s, 0)", [rng.randrange(ROWS * 10), rng.randrange(9)]
        )
    elif roll < 0.45:
        connection.execute("update docs set title = %s where id = %s", [f"changed {rng.randrange(9)}", key])
    elif roll < 0.6:
        connection.execute("update docs set n = -n where id = %s", [key])
    elif roll < 0.8:
        # Over the cursor of the copy, in both directions.
        connection.execute("update docs set id = %s where id = %s", [rng.randrange(ROWS * 10), key])
    else:
        connection.execute("delete from docs where id = %s", [key])


def copied_rows(daemon: DaemonProcess) -> float:
    return daemon.metric("cdc_agent_resync_rows_total")


def copy_is_done(daemon: DaemonProcess) -> bool:
    return daemon.status()["resyncs"] == []


@pytest.mark.slow
@pytest.mark.postgres(versions="all", plugin="all")
@pytest.mark.fault("killed-between-copy-and-stream")
def test_a_copy_among_writers_ends_equal_to_the_table(pg: Database, new_daemon: NewDaemon) -> None:
    # Given a table that others write to all the time.
    create_docs(pg)
    daemon = new_daemon(pg, collections=[DOCS], resync={"rows_per_chunk": PAGE})

    # When a daemon copies it.
    with writers(pg, 3):
        daemon.start()
        until(lambda: copy_is_done(daemon), 120.0, "the copy to end")
        rows = pg.execute("select count(*) from docs")[0][0]
        read = copied_rows(daemon)

    # Then the index is equal to the table, and every row was read about once.
    assert_index_equals_table(daemon, pg, 120.0)
    assert read <= 1.2 * max(rows, ROWS)


@pytest.mark.slow
@pytest.mark.postgres(versions="all", plugin="all")
@pytest.mark.fault("killed-in-a-first-copy")
def test_a_copy_that_is_killed_goes_on_where_it_was(pg: Database, new_daemon: NewDaemon) -> None:
    # Given a daemon in the middle of its first copy, with writers.
    create_docs(pg)
    daemon = new_daemon(pg, collections=[DOCS], resync={"rows_per_chunk": PAGE})
    with writers(pg, 2):
        daemon.start(ready=False)
        until(lambda: daemon.problems() is not None, 60.0, "the daemon to answer")
        until(lambda: copied_rows(daemon) >= ROWS / 3, 60.0, "a third to be copied")

        # When it is killed.
        first = copied_rows(daemon)
        assert not copy_is_done(daemon)
        daemon.kill()

    # And rows on both sides of the place that it had reached are deleted, changed, moved and inserted meanwhile.
    pg.execute("delete from docs where id % 70 = 0")
    pg.execute("update docs set title = 'changed while away' where id % 110 = 0")
    pg.execute(
        "update docs set id = id + 5 where id % 130 = 0 and not exists (select from docs d where d.id = docs.id + 5)"
    )
    pg.execute(
        "insert into docs select i * 10 + 7, 'new', 'new', 1 from generate_series(1, 3000, 30) i on conflict do nothing"
    )
    daemon.start()
    until(lambda: copy_is_done(daemon), 120.0, "the copy to end")

    # Then the index is equal to the table, and few rows were read twice.
    second = copied_rows(daemon)
    assert_index_equals_table(daemon, pg, 120.0)
    rows = max(ROWS, pg.execute("select count(*) from docs")[0][0])
    assert first + second <= 1.2 * rows, (first, second)


@pytest.mark.postgres(versions=[15], plugin="all")
def test_a_row_deleted_before_the_copy_reaches_it_or_after_is_not_in_the_index(
    pg: Database, new_daemon: NewDaemon
) -> None:
    # Given a copy that died right after a page came into the stream.
    create_docs(pg, 300)
    daemon = new_daemon(pg, collections=[DOCS], resync={"rows_per_chunk": 50})
    daemon.start(failpoint="resync_after_append:kill@3", ready=False)
    assert daemon.wait_exit() == -9

    # When everything around its cursor goes away before it comes back.
    pg.execute("delete from docs where id between 500 and 2000")
    daemon.start()
    until(lambda: copy_is_done(daemon), 60.0, "the copy to end")

    # Then nothing of that is left.
    assert_index_equals_table(daemon, pg)


@pytest.mark.postgres(versions="all", plugin="all")
@pytest.mark.fault("not-yet-visible")
def test_a_row_that_was_read_before_its_commit_was_visible_does_not_come_back(
    private_pg: Database, new_daemon: NewDaemon
) -> None:
    """A commit is in the log before it is visible, so a later read may be older than an earlier change."""
    # Given a copied table, and a commit that waits for a standby that will never answer.
    pg = private_pg
    create_docs(pg, 30)
    daemon = new_daemon(pg, collections=[DOCS], resync={"rows_per_chunk": 10})
    daemon.start()
    assert_index_equals_table(daemon, pg)
    pg.execute(f"alter database {pg.name} set synchronous_commit = local")
    # The daemon's own connections begin anew, so that its marks do not wait for the standby as well.
    assert daemon.terminate() == 0
    daemon.start()
    pg.hold_commits()
    waiting = pg.connect(autocommit=False)
    waiting.execute("set synchronous_commit = on")
    waiting.execute("update docs set title = 'NEW' where id = 50")
    waiting.execute("delete from docs where id = 60")
    waiting.execute("update docs set id = 75 where id = 70")
    commit = threading.Thread(target=waiting.commit)
    commit.start()
    until(lambda: titles(daemon).get("50") == "NEW", what="the change to arrive in the index")

    # When the table is read again meanwhile, and shows the old row.
    seen: list[dict[str, str]] = []
    watching = threading.Event()
    watcher = threading.Thread(target=lambda: _watch(daemon, seen, watching))
    watcher.start()
    old = "select count(*) from docs where id = 50 and title = 'title 5' or id in (60, 70)"
    assert pg.execute(old) == [(3,)]
    done = len(daemon.get("/resyncs").json()["resyncs"])
    assert daemon.post("/resyncs", {"table": "public.docs"}).status_code == 202
    until(lambda: copied_rows(daemon) >= 30 and copy_is_done(daemon), what="the resync to end")
    assert len(daemon.get("/resyncs").json()["resyncs"]) == done + 1
    assert pg.execute(old) == [(3,)]

    # And when the commit becomes visible at last.
    pg.execute("alter system reset synchronous_standby_names")
    pg.execute("select pg_reload_conf()")
    commit.join()
    assert_index_equals_table(daemon, pg)
    watching.set()
    watcher.join()

    # Then the index has never gone back.
    assert seen
    assert {state.get("50") for state in seen} == {"NEW"}
    assert not any("60" in state or "70" in state for state in seen)
    assert titles(daemon)["50"] == "NEW"


def titles(daemon: DaemonProcess) -> dict[str, str]:
    """First lines by key."""
    texts = texts_of(daemon.config, "docs")
    return {chunk.partition("#")[0].partition(":")[2]: text.split("\n")[0] for chunk, text in texts.items()}


def _watch(daemon: DaemonProcess, seen: list[dict[str, str]], enough: threading.Event) -> None:
    while not enough.wait(0.02):
        seen.append(titles(daemon))


@pytest.mark.postgres(versions=[15], plugin="pgoutput")
@pytest.mark.fault("not-yet-visible")
def test_a_commit_that_nobody_could_see_yet_is_in_a_collection_that_is_added(
    private_pg: Database, new_daemon: NewDaemon
) -> None:
    # Given a commit that is in the index, but that waits for a standby and no SELECT sees
    pg = private_pg
    create_docs(pg, 5)
    daemon = new_daemon(pg, collections=[DOCS])
    daemon.start()
    assert_index_equals_table(daemon, pg)
    pg.execute(f"alter database {pg.name} set synchronous_commit = local")
    pg.hold_commits()
    waiting = pg.connect(autocommit=False)
    waiting.execute("set synchronous_commit = on")
    waiting.execute("update docs set title = 'NEW' where id = 30")
    commit = threading.Thread(target=waiting.commit)
    commit.start()
    until(lambda: titles(daemon).get("30") == "NEW", what="the change to arrive in the index")
    assert daemon.terminate() == 0

    # When a second collection of the table is added, whose agent is behind that commit already
    again = {**DOCS, "name": "again"}
    daemon.configure(collections=[DOCS, again])
    daemon.start()

    # Then it does not read the table yet, and nobody else waits for that
    pg.execute("update docs set title = 'seen by both' where id = 10")
    daemon.wait_applied(pg.execute("select pg_current_wal_lsn()::text")[0][0])
    assert titles(daemon)["10"] == "seen by both"
    assert daemon.problems() == []
    assert all("again" not in resync["collections"] for resync in daemon.get("/resyncs").json()["resyncs"])

    # But once everything can be seen, and then the commit is in it
    pg.execute("alter system reset synchronous_standby_names")
    pg.execute("select pg_reload_conf()")
    commit.join()
    until(lambda: any("again" in r["collections"] for r in daemon.get("/resyncs").json()["resyncs"]), what="its copy")
    until(lambda: copy_is_done(daemon), what="its copy to end")
    assert_index_equals_table(daemon, pg)
