"""The daemon with its stream on NATS: killed, cut off, full, removed, and always back to what the table says."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.support.daemon import DaemonProcess
from tests.support.nats import NatsServer
from tests.support.oracle import assert_index_equals_table
from tests.support.postgres import Database
from tests.support.wait import until

NewDaemon = Callable[..., DaemonProcess]

DOCS = {"name": "docs", "table": "public.docs", "text": "{body}", "metadata": ["n"]}


@pytest.fixture
def nats(tmp_path: Path) -> Iterator[NatsServer]:
    with NatsServer(tmp_path / "nats") as server:
        yield server


@pytest.fixture
def docs(pg: Database) -> Database:
    pg.execute("create table docs (id int primary key, n int, body text)")
    pg.execute("insert into docs select i, 0, 'body of ' || i from generate_series(1, 50) i")
    return pg


def on(nats: NatsServer, **more: Any) -> dict[str, Any]:
    return {"backend": "jetstream", "url": nats.url, "timeout_s": 2.0, **more}


@contextmanager
def writing(pg: Database) -> Iterator[Callable[[], int]]:
    """Commits follow each other until the end of the block; tells how many there were."""
    stop, done = threading.Event(), [0]

    def write() -> None:
        with psycopg.connect(pg.dsn, autocommit=True) as connection:
            while not stop.is_set():
                done[0] += 1
                connection.execute(
                    "insert into docs values (1 + %(n)s %% 200, %(n)s, 'change ' || %(n)s)"
                    " on conflict (id) do update set n = excluded.n, body = excluded.body",
                    {"n": done[0]},
                )
                stop.wait(0.005)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield lambda: done[0]
    finally:
        stop.set()
        thread.join(20)


def confirmed(pg: Database) -> str:
    return str(
        pg.execute("select confirmed_flush_lsn::text from pg_replication_slots where slot_name = %s", (pg.slot_name,))[
            0
        ][0]
    )


def named(daemon: DaemonProcess) -> set[str]:
    return {problem["name"] for problem in daemon.problems() or []}


def test_commits_are_found_by_way_of_nats_also_after_a_restart(
    docs: Database, nats: NatsServer, new_daemon: NewDaemon
) -> None:
    # Given a daemon whose stream is on a NATS server
    daemon = new_daemon(docs, collections=[DOCS], stream=on(nats))
    daemon.start()
    assert_index_equals_table(daemon, docs)

    # When rows change, the daemon is stopped, and rows change again
    docs.execute("update docs set body = 'an aardvark' where id = 7")
    docs.execute("delete from docs where id = 8")
    assert_index_equals_table(daemon, docs)
    assert daemon.search("docs", "an aardvark")[0]["text"] == "an aardvark"
    assert daemon.terminate() == 0, daemon.log[-4000:]
    docs.execute("update docs set body = 'a badger' where id = 9")

    # Then the index has all of it, and there is no file of a stream
    daemon.start()
    assert_index_equals_table(daemon, docs)
    assert not (daemon.folder / "state" / "stream.sqlite").exists()


@pytest.mark.parametrize("place", ["after_recv", "before_append", "after_append", "before_ack", "after_ack"])
def test_killed_where_capture_may_die_nothing_is_lost_or_doubled(
    docs: Database, nats: NatsServer, new_daemon: NewDaemon, place: str
) -> None:
    # Given a daemon that dies there, while commits come in; nothing is held back, so that it comes to acknowledging
    daemon = new_daemon(docs, collections=[DOCS], stream=on(nats, hold_back_s=0))
    daemon.start()
    assert_index_equals_table(daemon, docs)
    daemon.terminate()
    with writing(docs) as written:
        daemon.start(failpoint=f"{place}:kill@3", ready=False)
        daemon.wait_exit()
        assert not daemon.running

        # When it is started again
        daemon.start()
        seen = written()
        until(lambda: written() > seen + 50, 20, "more commits")

    # Then the index is what the table is
    assert_index_equals_table(daemon, docs)


@pytest.mark.chaos
def test_nats_killed_under_writes_is_named_and_waited_for(
    docs: Database, nats: NatsServer, new_daemon: NewDaemon
) -> None:
    daemon = new_daemon(docs, collections=[DOCS], stream=on(nats))
    daemon.start()
    with writing(docs) as written:
        for _ in range(3):
            seen = written()
            until(lambda seen=seen: written() > seen + 50, 20, "commits")

            # When its server dies
            nats.kill()
            until(lambda: "stream_server" in named(daemon), 30, "the outage to be named")
            assert daemon.running
            assert daemon.search("docs", "body of 1")

            # Then it is waited for, and all goes on by itself
            nats.start()
            daemon.wait_ready()

    assert_index_equals_table(daemon, docs)
