"""Writes to the store that land late, or whose answer is lost: the network before a Chroma server misbehaves."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cdc_agent.vectorstore.chroma_server import ChromaServer
from tests.support.daemon import DaemonProcess
from tests.support.oracle import assert_index_equals_table, texts_of
from tests.support.postgres import Database
from tests.support.tcp_proxy import TcpProxy
from tests.support.wait import until

NewDaemon = Callable[..., DaemonProcess]

ITEMS = {"name": "items", "table": "public.items", "text": "{body}"}


@pytest.fixture
def chroma(tmp_path: Path) -> Iterator[ChromaServer]:
    server = ChromaServer(tmp_path / "chroma")
    server.start()
    yield server
    server.stop()


def started(pg: Database, new_daemon: NewDaemon, port: int) -> DaemonProcess:
    pg.execute("create table items (id int primary key, body text)")
    pg.execute("insert into items select i, 'body of ' || i from generate_series(1, 10) i")
    daemon = new_daemon(pg, collections=[ITEMS], vectorstore={"mode": "server", "port": port, "timeout_s": 5.0})
    daemon.start()
    assert_index_equals_table(daemon, pg)
    return daemon


@pytest.mark.fault("late-write")
def test_a_write_of_a_dead_daemon_that_lands_after_its_successors_is_never_seen_and_swept_out(
    pg: Database, new_daemon: NewDaemon, chroma: ChromaServer
) -> None:
    with TcpProxy(chroma.port) as network:
        # Given a daemon whose write of a document is under way in the network when it is killed.
        daemon = started(pg, new_daemon, network.port)
        network.blackhole()
        pg.execute("update items set body = 'of a dead daemon' where id = 1")
        until(lambda: b"/upsert" in network.swallowed, what="the write to be under way")
        network.hides_departures = True
        daemon.kill()

        # And whose successor, on a better way to the store, has written a newer version.
        pg.execute("update items set body = 'of its successor' where id = 1")
        daemon.configure(vectorstore={"port": chroma.port})
        daemon.start()
        assert_index_equals_table(daemon, pg)

        # When the old write lands after all, then the store has a chunk that nobody named...
        network.let_through()
        until(lambda: "of a dead daemon" in texts_of(daemon.config, "items").values(), what="the late write to land")

    # ... which no search shows, and which the sweep of the next start removes.
    hits = daemon.search("items", "of a dead daemon", k=10)
    assert "of a dead daemon" not in {hit["text"] for hit in hits}
    assert daemon.terminate() == 0
    daemon.start()
    until(lambda: "of a dead daemon" not in texts_of(daemon.config, "items").values(), what="the stray to be swept")
    assert_index_equals_table(daemon, pg)


@pytest.mark.fault("answer-lost")
def test_a_write_whose_answer_is_lost_is_repeated_and_not_doubled(
    pg: Database, new_daemon: NewDaemon, chroma: ChromaServer
) -> None:
    chosen = random.Random(3)
    with TcpProxy(chroma.port) as network:
        # Given a daemon that reaches its store over a network.
        daemon = started(pg, new_daemon, network.port)
        for number in range(8):
            # When the connection breaks after the first bytes of an answer, in any call of a write.
            cuts = network.cuts
            network.cut_after(chosen.randrange(1, 400))
            pg.execute("update items set body = %s || id where id <= 5", (f"version {number} ",))
            pg.execute("delete from items where id = 6")
            pg.execute("insert into items values (6, %s)", (f"again {number}",))
            until(lambda cuts=cuts: network.cuts > cuts, what="the cut")
        network.let_through()

        # Then everything is there once.
        assert_index_equals_table(daemon, pg)
        assert daemon.problems() == []
