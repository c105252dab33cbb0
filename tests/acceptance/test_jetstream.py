"""The daemon with its stream on NATS: killed, cut off, full, removed, and always back to what the table says."""

from __future__ import annotations

import json
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from cdc_agent.cli import main
from cdc_agent.stream.jetstream import remove
from cdc_agent.stream.nats_link import NatsLink, NatsPlace
from tests.acceptance.test_failpoints import DOCS as BODIES
from tests.acceptance.test_failpoints import DOINGS, OTHERS, Case, Changes, create_tables
from tests.support.daemon import DaemonProcess
from tests.support.nats import NatsServer
from tests.support.oracle import assert_index_equals_table
from tests.support.postgres import Database
from tests.support.tcp_proxy import TcpProxy
from tests.support.wait import until

NewDaemon = Callable[..., DaemonProcess]

DOCS = {"name": "docs", "table": "public.docs", "text": "{body}", "metadata": ["n"]}
CASES = (
    Case("resync_after_slot", "first_copy"),
    Case("resync_after_mark", "first_copy", 2),
    Case("resync_after_append", "first_copy", 2),
    Case("after_recv", "live_changes", 3),
    Case("before_append", "live_changes", 4),
    Case("after_append", "live_changes", 4),
    Case("before_flip", "live_changes", 4),
    Case("before_ack", "live_changes"),
    Case("after_ack", "live_changes"),
    Case("mid_tx", "a_large_transaction", 2),
    Case("idle_advance", "idling"),
)


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


def test_check_tells_what_the_server_is_like(
    docs: Database, nats: NatsServer, new_daemon: NewDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    # Given a configuration whose server has JetStream and can be asked
    daemon = new_daemon(docs, collections=[DOCS], stream=on(nats, monitor_url=nats.monitor_url))

    def findings() -> list[dict[str, Any]]:
        main(["check", "-c", str(daemon.path), "--json"])
        return [one for one in json.loads(capsys.readouterr().out)["findings"] if one["name"] == "stream"]

    answers, held = findings()
    assert answers["ok"]
    assert "has JetStream" in answers["message"]
    assert (held["message"], held["hint"]) == ("Postgres keeps what NATS took for 150 s", "")

    # When it cannot be asked, then that is said; when it is away, that fails
    daemon.configure(stream={"monitor_url": None})
    assert "stream.monitor_url" in findings()[1]["hint"]
    nats.kill()
    [away] = findings()
    assert not away["ok"]
    assert away["hint"]


@pytest.mark.chaos
@pytest.mark.fault(
    "killed-around-an-acknowledgement", "killed-in-a-first-copy", "killed-in-a-large-transaction", "nats-away"
)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_nothing_is_lost_doubled_or_stale_after_the_death_of_both(
    pg: Database, nats: NatsServer, new_daemon: NewDaemon, case: Case
) -> None:
    # Given tables, and a daemon that is to die where capture may; nothing is held back, so it comes to acknowledging
    create_tables(pg, rows=40 if case.doing == "first_copy" else 0)
    stream = on(nats, hold_back_s=0)
    daemon = new_daemon(pg, collections=[BODIES, OTHERS], stream=stream, resync={"rows_per_chunk": 10})
    changes = Changes(pg, seed=str(case))
    daemon.start(failpoint=f"{case.name}:kill@{case.passage}", ready=False)
    DOINGS[case.doing](daemon, pg, changes)
    assert daemon.wait_exit() == -signal.SIGKILL, daemon.log[-4000:]

    # When NATS dies as well, and both are started again while others write
    nats.kill()
    changes.write(30)
    nats.start()
    daemon.start()
    changes.write(10)

    # Then the index is what the tables are
    daemon.wait_applied(pg.execute("select pg_current_wal_lsn()::text")[0][0])
    until(lambda: daemon.status()["resyncs"] == [], 60.0, "the first copies to end")
    assert_index_equals_table(daemon, pg)


@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.fault("nats-away", "killed-while-writing")
def test_any_of_them_killed_at_any_time_with_the_ledger_in_postgres(
    private_pg: Database, nats: NatsServer, new_daemon: NewDaemon
) -> None:
    # Given a daemon that keeps nothing of its own but the journal, and commits that do not stop
    private_pg.execute("create table docs (id int primary key, n int, body text)")
    private_pg.execute(f"create database {private_pg.name}_ledger")
    ledger = {"backend": "postgres", "dsn": private_pg.server.dsn(f"{private_pg.name}_ledger")}
    rng = random.Random(7)
    with TcpProxy(nats.port) as proxy:
        stream = on(nats, url=f"nats://127.0.0.1:{proxy.port}", hold_back_s=1)
        daemon = new_daemon(private_pg, collections=[DOCS], stream=stream, ledger=ledger)
        daemon.start()
        with writing(private_pg) as written:
            for _ in range(12):
                seen, wanted = written(), rng.randrange(5, 60)
                until(lambda seen=seen, wanted=wanted: written() > seen + wanted, 30, "commits")  # type: ignore[misc]

                # When one of them dies, or what is between them
                kind = rng.choice(["daemon", "nats", "both", "network"])
                if kind in ("daemon", "both"):
                    daemon.kill()
                if kind in ("nats", "both"):
                    nats.kill()
                    nats.start()
                if kind == "network":
                    proxy.drop_connections()
                if not daemon.running:
                    daemon.start(ready=False)
                if rng.random() < 0.7:
                    ready_under_supervision(daemon)
            ready_under_supervision(daemon)

        # Then the index is what the table is
        assert_index_equals_table(daemon, private_pg)
        daemon.kill()


def ready_under_supervision(daemon: DaemonProcess) -> None:
    """Started again when it ends because NATS, or its ledger, was away at its start, and for no other reason."""

    def ready() -> bool:
        if not daemon.running:
            assert daemon.returncode == 75, daemon.log[-4000:]
            daemon.start(ready=False)
        return daemon.problems() == []

    until(ready, 90, "the daemon to be ready")


@pytest.mark.chaos
@pytest.mark.fault("nats-away")
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


@pytest.mark.chaos
@pytest.mark.fault("nats-away")
def test_a_network_that_swallows_everything_is_named_and_waited_for(
    docs: Database, nats: NatsServer, new_daemon: NewDaemon
) -> None:
    with TcpProxy(nats.port) as proxy:
        daemon = new_daemon(docs, collections=[DOCS], stream=on(nats, url=f"nats://127.0.0.1:{proxy.port}"))
        daemon.start()
        with writing(docs):
            # When nothing comes through, and then connections are reset while some does
            proxy.blackhole()
            until(lambda: "stream_server" in named(daemon), 30, "the outage to be named")
            proxy.let_through()
            daemon.wait_ready()
            for n in range(5):
                proxy.cut_after(500 + 333 * n)
                cuts = proxy.cuts
                until(lambda cuts=cuts: proxy.cuts > cuts, 20, "a cut")

        # Then nothing is lost or doubled
        assert_index_equals_table(daemon, docs)
        daemon.kill()


@pytest.mark.fault("nats-away")
def test_an_outage_is_named_while_nobody_writes(docs: Database, nats: NatsServer, new_daemon: NewDaemon) -> None:
    daemon = new_daemon(docs, collections=[DOCS], stream=on(nats), retry={"maximum_s": 60.0})
    daemon.start()
    assert_index_equals_table(daemon, docs)

    nats.kill()
    until(lambda: "stream_server" in named(daemon), 30, "the outage to be named")
    nats.start()
    daemon.wait_ready()


def test_a_daemon_stops_in_order_while_nats_is_away_and_does_not_start_without_it(
    docs: Database, nats: NatsServer, new_daemon: NewDaemon
) -> None:
    daemon = new_daemon(docs, collections=[DOCS], stream=on(nats))
    daemon.start()
    nats.kill()
    docs.execute("update docs set n = 1")
    until(lambda: "stream_server" in named(daemon), 30, "the outage to be named")

    assert daemon.terminate(25) == 0
    daemon.start(ready=False)
    assert daemon.wait_exit() == 75
    assert "NATS at nats://127.0.0.1" in daemon.log

    nats.start()
    daemon.start()
    assert_index_equals_table(daemon, docs)


# -- what Postgres may forget -------------------------------------------------------------------------------------


@pytest.mark.fault("nats-loses-power")
def test_a_commit_is_found_at_once_and_forgotten_by_postgres_when_it_is_safe(
    docs: Database, nats: NatsServer, new_daemon: NewDaemon
) -> None:
    # Given a server that may lose the last seconds
    daemon = new_daemon(docs, collections=[DOCS], stream=on(nats, hold_back_s=8))
    daemon.start()
    assert_index_equals_table(daemon, docs)

    # When a row changes, it is found before the slot has moved past it
    began = time.monotonic()
    docs.execute("update docs set body = 'an aardvark' where id = 7")
    written = docs.execute("select pg_current_wal_lsn()::text")[0][0]
    daemon.wait_applied(written)
    assert daemon.search("docs", "an aardvark")[0]["text"] == "an aardvark"
    assert time.monotonic() - began < 8, "the machine is too slow for this test"
    assert not passed(docs, written)

    # Then it is forgotten in time, while nobody writes
    until(lambda: passed(docs, written), 30, "the slot to move past it")
    assert time.monotonic() - began >= 8


def test_neither_postgres_nor_the_daemon_waits_at_its_end_for_what_is_held_back(
    private_pg: Database, nats: NatsServer, new_daemon: NewDaemon
) -> None:
    # Given changes that Postgres must keep for an hour
    private_pg.execute("create table docs (id int primary key, n int, body text)")
    daemon = new_daemon(private_pg, collections=[DOCS], stream=on(nats, hold_back_s=3600))
    daemon.start()
    private_pg.execute("insert into docs select i, 0, 'body of ' || i from generate_series(1, 50) i")
    written = private_pg.execute("select pg_current_wal_lsn()::text")[0][0]
    daemon.wait_applied(written)

    # When the server stops, it is done soon; when it is back, so are we
    began = time.monotonic()
    private_pg.server.stop("fast")
    assert time.monotonic() - began < 10
    private_pg.server.start()
    daemon.wait_ready()
    private_pg.execute("update docs set n = 2")
    assert_index_equals_table(daemon, private_pg)

    # When the daemon stops, it is done soon, and the slot is where it was
    began = time.monotonic()
    assert daemon.terminate() == 0
    assert time.monotonic() - began < 10
    assert not passed(private_pg, written)

    # Then a restart goes on behind what is there, and keeps holding back
    daemon.start()
    private_pg.execute("update docs set n = 3")
    assert_index_equals_table(daemon, private_pg)
    assert daemon.metric("cdc_agent_chunks_embedded_total") == 0
    assert not passed(private_pg, written)


def passed(pg: Database, lsn: str) -> bool:
    """Whether Postgres may forget what was written up to there."""
    return bool(
        pg.execute(
            "select confirmed_flush_lsn >= %s::pg_lsn from pg_replication_slots where slot_name = %s",
            (lsn, pg.slot_name),
        )[0][0]
    )


# -- full, gone, replaced -----------------------------------------------------------------------------------------


def test_a_stream_that_is_full_on_its_server_stops_reading_and_goes_on(
    docs: Database, nats: NatsServer, new_daemon: NewDaemon
) -> None:
    # Given a stream that an operator has limited to nothing more
    daemon = new_daemon(docs, collections=[DOCS], stream=on(nats))
    daemon.start()
    limit_stream(nats, 1)

    # When rows change, then that is named, and Postgres keeps them
    docs.execute("update docs set n = n + 1")
    until(lambda: "stream" in named(daemon), 30, "the full stream to be named")
    assert daemon.metric("cdc_agent_stream_full") == 1

    # And it goes on by itself when there is room
    limit_stream(nats, 1 << 30)
    daemon.wait_ready()
    assert_index_equals_table(daemon, docs)
    assert daemon.metric("cdc_agent_stream_full") == 0


def limit_stream(nats: NatsServer, most_bytes: int) -> None:
    """As ``nats stream edit`` does."""
    link = NatsLink(NatsPlace(urls=(nats.url,)))

    async def limit() -> None:
        config = (await link.js.stream_info("cdc_agent")).config
        config.max_bytes = most_bytes
        await link.js.update_stream(config)

    link.call(limit)
    link.close()


@pytest.mark.fault("stream-damaged")
def test_a_stream_that_was_removed_is_refused_or_begun_anew(
    docs: Database, nats: NatsServer, new_daemon: NewDaemon
) -> None:
    # Given a daemon whose stream somebody removed while it was away
    daemon = new_daemon(docs, collections=[DOCS], stream=on(nats))
    daemon.start()
    assert_index_equals_table(daemon, docs)
    assert daemon.terminate() == 0
    remove(NatsPlace(urls=(nats.url,)), "cdc_agent")
    docs.execute("update docs set body = 'another' where id = 3")

    # When it is started, then it says so and stops, unless it is told to mend that
    daemon.start(ready=False)
    assert daemon.wait_exit() == 78
    assert "STREAM_LOST: " in daemon.log
    daemon.configure(source={"on_mismatch": "resync"})
    daemon.start()
    assert_index_equals_table(daemon, docs)
    assert daemon.metric("cdc_agent_chunks_embedded_total") == 1


@pytest.mark.fault("stream-damaged")
def test_a_stream_that_is_removed_under_a_daemon_is_begun_anew(
    docs: Database, nats: NatsServer, new_daemon: NewDaemon
) -> None:
    daemon = new_daemon(docs, collections=[DOCS], stream=on(nats), source={"on_mismatch": "resync"})
    daemon.start()
    assert_index_equals_table(daemon, docs)

    remove(NatsPlace(urls=(nats.url,)), "cdc_agent")
    docs.execute("update docs set body = 'another' where id = 3")

    until(lambda: "mended state=STREAM_LOST" in daemon.log, 60, "the stream to be begun anew")
    daemon.wait_ready()
    assert_index_equals_table(daemon, docs)
    docs.execute("update docs set body = 'a third' where id = 4")
    assert_index_equals_table(daemon, docs)


@pytest.mark.fault("nats-loses-power")
@pytest.mark.parametrize("when", ["while the daemon runs", "while it is away"])
def test_a_server_that_lost_its_last_minutes_with_its_power_gets_them_again_from_postgres(
    docs: Database, nats: NatsServer, new_daemon: NewDaemon, tmp_path: Path, when: str
) -> None:
    # Given a NATS server that comes back as it was a while ago, in which it had acknowledged more, and it was applied
    daemon = new_daemon(docs, collections=[DOCS], stream=on(nats))
    daemon.start()
    assert_index_equals_table(daemon, docs)
    nats.kill()
    shutil.copytree(nats.store, tmp_path / "older")
    nats.start()
    daemon.wait_ready()
    docs.execute("update docs set body = 'acknowledged ' || id where id > 40")
    docs.execute("delete from docs where id < 5")
    docs.execute("insert into docs values (1, 0, 'back'), (99, 0, 'new')")
    docs.execute("update docs set body = body || ' twice' where id = 50")
    assert daemon.post("/resyncs", {"table": "public.docs"}).status_code in (200, 202)
    until(lambda: daemon.status()["resyncs"] == [], 60, "the resync to end")
    docs.execute("truncate docs")
    docs.execute("insert into docs select i, 1, 'again ' || i from generate_series(1, 60) i")
    docs.execute("delete from docs where id between 10 and 15")
    docs.execute("update docs set body = body || ' and again', n = 2 where id between 30 and 35")
    assert_index_equals_table(daemon, docs)
    if when == "while it is away":
        assert daemon.terminate() == 0
    nats.kill()
    shutil.rmtree(nats.store)
    shutil.copytree(tmp_path / "older", nats.store)
    nats.start()

    # When it goes on
    docs.execute("update docs set body = 'later' where id = 20")
    if not daemon.running:
        daemon.start()
    until(lambda: "going on why=STREAM_LOST" in daemon.log, 60, "the loss to be noticed")
    daemon.wait_ready()

    # Then nothing is missing, no table was read again, and of what comes again nothing is embedded
    assert_index_equals_table(daemon, docs)
    assert "mended state=" not in daemon.log
    if when == "while it is away":
        assert daemon.metric("cdc_agent_chunks_embedded_total") == 1
    docs.execute("update docs set body = 'at last' where id = 21")
    assert_index_equals_table(daemon, docs)

    # And a restart finds nothing strange
    assert daemon.terminate() == 0
    daemon.start()
    docs.execute("update docs set body = 'at the very last' where id = 22")
    assert_index_equals_table(daemon, docs)


@pytest.mark.fault("nats-loses-power")
def test_what_postgres_was_told_to_forget_before_nats_lost_it_is_read_again(
    docs: Database, nats: NatsServer, new_daemon: NewDaemon, tmp_path: Path
) -> None:
    # Given a daemon that was told to hold nothing back, with a server that then loses what it acknowledged
    stream = on(nats, hold_back_s=0)
    daemon = new_daemon(docs, collections=[DOCS], stream=stream, source={"on_mismatch": "resync"})
    daemon.start()
    assert_index_equals_table(daemon, docs)
    assert daemon.terminate() == 0
    nats.stop()
    shutil.copytree(nats.store, tmp_path / "older")
    nats.start()
    daemon.start()
    docs.execute("update docs set body = 'acknowledged ' || id where id > 40")
    written = docs.execute("select pg_current_wal_lsn()::text")[0][0]
    assert_index_equals_table(daemon, docs)
    until(lambda: passed(docs, written), 30, "the slot to move past it")
    assert daemon.terminate() == 0
    nats.stop()
    shutil.rmtree(nats.store)
    shutil.copytree(tmp_path / "older", nats.store)
    nats.start()

    # When it is started, then it does not go on as if nothing had happened
    docs.execute("update docs set body = 'later' where id = 20")
    daemon.start()
    assert "mended state=SLOT_ADVANCED" in daemon.log
    assert_index_equals_table(daemon, docs)
