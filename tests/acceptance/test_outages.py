"""Parts that fail, hang and come back: Postgres keeps no WAL for them, /readyz names them, and all heals by itself."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from cdc_agent.vectorstore.chroma_server import ChromaServer
from tests.support.daemon import DaemonProcess
from tests.support.fake_openai import FakeOpenAI, rate_limited, server_error
from tests.support.oracle import assert_index_equals_table, texts_of
from tests.support.postgres import Database
from tests.support.tcp_proxy import TcpProxy
from tests.support.wait import until

#: How long something is away.
OUTAGE_S = 8.0
#: WAL that Postgres may keep for us at any moment.
LARGEST_LAG = 1 << 20

#: After so long without a word from us the server gives a connection up.
WAL_SENDER_TIMEOUT_S = 3

ITEMS = {"name": "items", "table": "public.items", "text": "{title}\n\n{body}", "metadata": ["n"]}
ROWS = 40


def create_items(pg: Database) -> None:
    pg.execute("create table items (id int primary key, title text, body text, n int)")
    pg.execute("insert into items select i, 'title ' || i, 'body of ' || i, i from generate_series(1, %s) i", (ROWS,))


@contextlib.contextmanager
def writing(pg: Database) -> Iterator[threading.Event]:
    """Rows are added, changed and deleted all the time, some 400 kB a second; the event tells that one round went well.

    A server that is away is asked again.
    """
    stop, went_well = threading.Event(), threading.Event()
    chosen = random.Random(1)
    numbers = iter(range(1_000, 1_000_000))

    def change(connection: psycopg.Connection[Any]) -> None:
        words = " ".join(f"w{chosen.randrange(10**6)}" for _ in range(600))
        row = chosen.randrange(1, ROWS)
        connection.execute("update items set body = %s, n = n + 1 where id = %s", (words, row))
        connection.execute("insert into items values (%s, 'new', %s, 0)", (next(numbers), "some words"))
        connection.execute("delete from items where id >= 1000 and id < %s", (next(numbers) - 30,))

    def work() -> None:
        while not stop.is_set():
            try:
                with psycopg.connect(pg.dsn, autocommit=True) as connection:
                    while not stop.wait(0.01):
                        change(connection)
                        went_well.set()
            except psycopg.Error:
                stop.wait(0.2)

    thread = threading.Thread(target=work, name="load")
    thread.start()
    try:
        yield went_well
    finally:
        stop.set()
        thread.join(30)


def lag(connection: psycopg.Connection[Any], slot: str) -> int:
    row = connection.execute(
        "select pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn)::bigint from pg_replication_slots"
        " where slot_name = %s",
        (slot,),
    ).fetchone()
    assert row is not None
    return int(row[0])


def names_of_problems(daemon: DaemonProcess) -> set[str]:
    return {problem["name"] for problem in daemon.problems() or []}


def endure(pg: Database, daemon: DaemonProcess, *components: str, seconds: float = OUTAGE_S) -> None:
    """Let an outage last. Meanwhile one of the components is named by /readyz and Postgres keeps little WAL."""
    connection = pg.connect()
    began = time.monotonic()
    first_wal = connection.execute("select pg_current_wal_lsn()").fetchone()
    seen: list[set[str]] = []
    lags = [lag(connection, pg.slot_name)]

    def over() -> bool:
        seen.append(names_of_problems(daemon))
        lags.append(lag(connection, pg.slot_name))
        return time.monotonic() - began > seconds

    until(over, seconds + 60, "the outage to have lasted long enough")
    written = connection.execute("select pg_wal_lsn_diff(pg_current_wal_lsn(), %s)", first_wal).fetchone()
    assert written is not None
    assert written[0] > LARGEST_LAG, "the load is too small to prove anything"
    assert max(lags) < LARGEST_LAG
    # It may take a while to notice, but then it stays known.
    named = [bool(found & set(components)) for found in seen]
    assert any(named), f"/readyz named {seen[-1]}"
    assert named[-1]
    assert daemon.get("/readyz").status_code == 503


def healed(pg: Database, daemon: DaemonProcess) -> None:
    daemon.wait_ready(90.0)
    assert_index_equals_table(daemon, pg)
    assert daemon.running


# -- the model -----------------------------------------------------------------------------------------------


def port_of(fake_openai: FakeOpenAI) -> int:
    return int(fake_openai.base_url.split(":")[2].split("/")[0])


def openai(url: str) -> dict[str, Any]:
    return {"backend": "openai", "url": url, "model": "fake", "timeout_s": 2.0}


@pytest.mark.slow
@pytest.mark.parametrize("way", ["refuse", "blackhole", "reset"])
@pytest.mark.fault("model-fails")
def test_while_the_model_is_away_postgres_keeps_no_wal_and_all_is_caught_up_later(
    pg: Database, fake_openai: FakeOpenAI, new_daemon: Callable[..., DaemonProcess], way: str
) -> None:
    # Given a daemon on a table that is written to.
    create_items(pg)
    with TcpProxy(port_of(fake_openai)) as model:
        daemon = new_daemon(pg, collections=[ITEMS], embedding=openai(f"http://127.0.0.1:{model.port}/v1"))
        daemon.start()
        with writing(pg):
            # When the embedding endpoint refuses, hangs or resets for a while.
            getattr(model, way)()
            endure(pg, daemon, "embedding")
            model.let_through()

            # Then it goes on by itself, while changes keep coming.
            daemon.wait_ready(60.0)
        healed(pg, daemon)


@pytest.mark.fault("model-fails")
def test_an_endpoint_that_asks_for_patience_is_given_it(
    pg: Database, fake_openai: FakeOpenAI, new_daemon: Callable[..., DaemonProcess]
) -> None:
    # Given an endpoint that answers 429 with Retry-After, after a row was changed.
    create_items(pg)
    daemon = new_daemon(pg, collections=[ITEMS], embedding=openai(fake_openai.base_url))
    daemon.start()
    assert_index_equals_table(daemon, pg)
    asked = len(fake_openai.requests)
    fake_openai.script(rate_limited(retry_after_s=4), server_error(503))

    # When the daemon embeds it.
    began = time.monotonic()
    pg.execute("update items set body = 'other words' where id = 1")
    until(lambda: "embedding" in names_of_problems(daemon), what="the refusal to be reported")
    daemon.wait_applied(pg.execute("select pg_current_wal_lsn()::text")[0][0])

    # Then it waits as long as it was asked to, not shorter, and does not ask more often than that.
    assert time.monotonic() - began >= 4
    assert len(fake_openai.requests) - asked == 3
    healed(pg, daemon)


# -- texts that the model refuses ----------------------------------------------------------------------------


def cdc_agent(daemon: DaemonProcess, *arguments: str) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(
        [sys.executable, "-m", "cdc_agent.cli", *arguments, "-c", str(daemon.path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "Traceback" not in result.stderr
    return result


def letters(daemon: DaemonProcess) -> list[dict[str, Any]]:
    return list(daemon.get("/dead-letters").json()["dead_letters"])


@pytest.fixture
def picky(
    pg: Database, fake_openai: FakeOpenAI, new_daemon: Callable[..., DaemonProcess]
) -> tuple[DaemonProcess, FakeOpenAI]:
    """A daemon whose model refuses texts with the word poison."""
    create_items(pg)
    fake_openai.poison = "poison"
    daemon = new_daemon(pg, collections=[ITEMS], embedding=openai(fake_openai.base_url))
    daemon.start()
    assert_index_equals_table(daemon, pg)
    return daemon, fake_openai


def poison(pg: Database, daemon: DaemonProcess, *rows: int) -> None:
    """Rewrite all rows in one transaction, some of them into what the model refuses."""
    body = "case when id = any(%s) then 'poison' else 'fine ' || id end"
    pg.execute(f"update items set n = -n, body = {body}", ([*rows],))
    daemon.wait_applied(pg.execute("select pg_current_wal_lsn()::text")[0][0])


def text_of(daemon: DaemonProcess, row: int) -> str:
    return next(t for i, t in texts_of(daemon.config, "items").items() if i.startswith(f"public.items:{row}#"))


@pytest.mark.fault("poison", "old-version-stays")
def test_one_refused_text_is_parked_and_its_neighbours_are_indexed(
    pg: Database, picky: tuple[DaemonProcess, FakeOpenAI]
) -> None:
    daemon, _ = picky

    # When two of forty rows in one transaction hold a text that the model refuses.
    poison(pg, daemon, 7, 23)

    # Then these two are dead letters, of which the error says no content, and their neighbours are in the index.
    found = letters(daemon)
    assert json.loads(cdc_agent(daemon, "dead-letters", "list", "--json").stdout)["dead_letters"] == found
    assert sorted(letter["document_id"] for letter in found) == ["public.items:23", "public.items:7"]
    assert {letter["reason"] for letter in found} == {"embedding"}
    assert text_of(daemon, 8) == "title 8\n\nfine 8"
    assert "poison" not in json.dumps(found) + daemon.log

    # And their old versions are still found.
    assert text_of(daemon, 7) == "title 7\n\nbody of 7"
    hits = daemon.search("items", "title 7\n\nbody of 7", k=1)
    assert [hit["document_id"] for hit in hits] == ["public.items:7"]
    assert daemon.metric("cdc_agent_dead_lettered_total", reason="embedding") == 2

    # And the command shows them to people.
    listed = cdc_agent(daemon, "dead-letters", "list")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert "public.items:7" in listed.stdout
    shown = cdc_agent(daemon, "dead-letters", "show", str(found[0]["id"]))
    assert shown.returncode == 0
    assert found[0]["document_id"] in shown.stdout

    # And they last over a restart, which the rest of the index does not care about.
    assert daemon.terminate() == 0
    daemon.start()
    assert letters(daemon) == found

    # When the rows are corrected, then their letters are gone by themselves.
    pg.execute("update items set body = 'corrected' where id in (7, 23)")
    assert_index_equals_table(daemon, pg)
    assert letters(daemon) == []


@pytest.mark.fault("poison")
def test_a_dead_letter_is_replayed_once_the_endpoint_takes_its_text(
    pg: Database, picky: tuple[DaemonProcess, FakeOpenAI]
) -> None:
    daemon, fake_openai = picky
    poison(pg, daemon, 7)
    letter = str(letters(daemon)[0]["id"])

    # When it is replayed while the model still refuses it, then it is parked again.
    seen = fake_openai.texts_seen["title 7\n\npoison"]
    assert cdc_agent(daemon, "dead-letters", "replay", letter).returncode == 0
    until(lambda: fake_openai.texts_seen["title 7\n\npoison"] > seen, what="the text to be tried again")
    until(lambda: all(r["state"] == "done" for r in daemon.get("/resyncs").json()["resyncs"]), what="the replay's end")
    parked = letters(daemon)
    assert [p["document_id"] for p in parked] == ["public.items:7"]

    # When the endpoint is mended and it is replayed again.
    fake_openai.poison = None
    replayed = cdc_agent(daemon, "dead-letters", "replay", str(parked[0]["id"]))
    assert (replayed.returncode, replayed.stderr) == (0, "")

    # Then the letter vanishes and the index is true.
    until(lambda: letters(daemon) == [], 30.0, "the letter to vanish")
    assert_index_equals_table(daemon, pg)


def test_all_that_was_parked_for_one_reason_is_replayed_at_once(
    pg: Database, picky: tuple[DaemonProcess, FakeOpenAI]
) -> None:
    daemon, fake_openai = picky
    poison(pg, daemon, 7, 8, 9)

    # When the endpoint is mended and what it refused is replayed.
    fake_openai.poison = None
    nothing = cdc_agent(daemon, "dead-letters", "replay", "--reason", "render")
    replayed = cdc_agent(daemon, "dead-letters", "replay", "--reason", "embedding")

    # Then it is one resync of those rows, the letters vanish and the index is true.
    assert nothing.stdout == "0 dead letters are being indexed again\n"
    assert replayed.stdout == "3 dead letters are being indexed again\n"
    until(lambda: letters(daemon) == [], 30.0, "the letters to vanish")
    [resync] = daemon.get("/resyncs").json()["resyncs"][-1:]
    assert (resync["reason"], sorted(resync["keys"])) == ("dead letters", [["7"], ["8"], ["9"]])
    assert_index_equals_table(daemon, pg)


def test_a_replay_reads_the_row_as_it_is_now(pg: Database, picky: tuple[DaemonProcess, FakeOpenAI]) -> None:
    daemon, _ = picky

    # Given two parked rows, of which one is deleted and the other corrected while the daemon is down.
    poison(pg, daemon, 7, 8)
    by_row = {letter["document_id"]: str(letter["id"]) for letter in letters(daemon)}
    daemon.kill()
    pg.execute("delete from items where id = 7")
    pg.execute("update items set body = 'corrected' where id = 8")
    daemon.start()

    # When both are replayed, whether or not the stream was quicker.
    for letter in by_row.values():
        cdc_agent(daemon, "dead-letters", "replay", letter)

    # Then both letters vanish and the index is true.
    until(lambda: letters(daemon) == [], 30.0, "the letters to vanish")
    assert_index_equals_table(daemon, pg)


def test_a_discarded_letter_is_forgotten_and_the_old_version_stays(
    pg: Database, picky: tuple[DaemonProcess, FakeOpenAI]
) -> None:
    daemon, _ = picky
    poison(pg, daemon, 7)
    letter = str(letters(daemon)[0]["id"])

    # When the letter is discarded.
    assert cdc_agent(daemon, "dead-letters", "discard", letter).returncode == 0

    # Then it is gone for every command, and the document is as it was.
    assert letters(daemon) == []
    for action in ("show", "replay", "discard"):
        again = cdc_agent(daemon, "dead-letters", action, letter)
        assert again.returncode == 2
        assert f"error: there is no dead letter {letter}" in again.stderr
        assert "hint: " in again.stderr
    assert text_of(daemon, 7) == "title 7\n\nbody of 7"
    pg.execute("update items set body = 'corrected' where id = 7")
    assert_index_equals_table(daemon, pg)


@pytest.mark.parametrize("discarded", [False, True], ids=["parked", "discarded"])
@pytest.mark.fault("poison", "old-version-stays")
def test_new_metadata_beside_a_refused_text_does_not_pass_the_old_text_off_as_the_new_one(
    pg: Database, picky: tuple[DaemonProcess, FakeOpenAI], discarded: bool
) -> None:
    daemon, fake_openai = picky

    # Given a long text, which Postgres sends only when it changes, that is replaced by one the model refuses.
    pg.execute("alter table items alter column body set storage external")
    pg.execute("update items set body = repeat('good words ', 1000) where id = 7")
    assert_index_equals_table(daemon, pg)
    pg.execute("update items set body = repeat('poison ', 1000) where id = 7")
    daemon.wait_applied(pg.execute("select pg_current_wal_lsn()::text")[0][0])
    if discarded:
        assert cdc_agent(daemon, "dead-letters", "discard", str(letters(daemon)[0]["id"])).returncode == 0

    # When only its metadata changes.
    pg.execute("update items set n = 12345 where id = 7")
    daemon.wait_applied(pg.execute("select pg_current_wal_lsn()::text")[0][0])

    # Then the document is (again) a dead letter: the row's text is still one that the index does not have.
    assert [letter["document_id"] for letter in letters(daemon)] == ["public.items:7"]

    # When the endpoint is mended and metadata changes again, then the letter vanishes and the index is true.
    fake_openai.poison = None
    pg.execute("update items set n = 54321 where id = 7")
    assert_index_equals_table(daemon, pg)
    assert letters(daemon) == []


def test_a_resync_leaves_parked_documents_as_they_are(pg: Database, picky: tuple[DaemonProcess, FakeOpenAI]) -> None:
    daemon, fake_openai = picky

    # Given two parked documents.
    poison(pg, daemon, 1, 7)

    # When the whole table is read again.
    assert daemon.post("/resyncs", {"table": "public.items"}).status_code == 202
    until(lambda: all(r["state"] == "done" for r in daemon.get("/resyncs").json()["resyncs"]), what="the resync's end")

    # Then they are still parked, and their old versions still found.
    assert sorted(letter["document_id"] for letter in letters(daemon)) == ["public.items:1", "public.items:7"]
    assert text_of(daemon, 1) == "title 1\n\nbody of 1"
    assert text_of(daemon, 7) == "title 7\n\nbody of 7"

    # When the endpoint is mended and the table is read once more, then the letters vanish and the index is true.
    fake_openai.poison = None
    assert daemon.post("/resyncs", {"table": "public.items"}).status_code == 202
    until(lambda: letters(daemon) == [], 30.0, "the letters to vanish")
    assert_index_equals_table(daemon, pg)


# -- the vector store ----------------------------------------------------------------------------------------


def chroma_pid(daemon: DaemonProcess) -> int:
    return int((Path(daemon.settings["state_dir"]) / "chroma.pid").read_text())


@pytest.mark.slow
@pytest.mark.fault("store-hangs")
def test_while_chroma_is_frozen_postgres_keeps_no_wal_and_all_is_caught_up_later(
    pg: Database, new_daemon: Callable[..., DaemonProcess]
) -> None:
    # Given a daemon on a table that is written to.
    create_items(pg)
    daemon = new_daemon(pg, collections=[ITEMS], vectorstore={"timeout_s": 3.0})
    daemon.start()
    assert_index_equals_table(daemon, pg)
    with writing(pg):
        # When the store's server stands still for a while; requests that it has read already are carried out later.
        pid = chroma_pid(daemon)
        os.kill(pid, signal.SIGSTOP)
        try:
            endure(pg, daemon, "vectorstore")
        finally:
            os.kill(pid, signal.SIGCONT)

        # Then it goes on by itself, with the same server.
        daemon.wait_ready(60.0)
    healed(pg, daemon)
    assert chroma_pid(daemon) == pid


@pytest.mark.slow
@pytest.mark.fault("store-killed")
def test_a_chroma_that_is_killed_again_and_again_is_started_again(
    pg: Database, new_daemon: Callable[..., DaemonProcess]
) -> None:
    # Given a daemon on a table that is written to.
    create_items(pg)
    daemon = new_daemon(pg, collections=[ITEMS], vectorstore={"timeout_s": 3.0})
    daemon.start()
    with writing(pg):
        for _ in range(3):
            # When its store's server is killed, then /readyz says so, and a while later there is a new one.
            killed = chroma_pid(daemon)
            os.kill(killed, signal.SIGKILL)
            until(lambda: names_of_problems(daemon) & {"vectorstore", "chroma_server"}, what="the death to be seen")
            daemon.wait_ready(60.0)
            assert chroma_pid(daemon) != killed
    healed(pg, daemon)


@pytest.mark.slow
@pytest.mark.fault("store-away")
def test_while_a_chroma_of_somebody_else_is_away_postgres_keeps_no_wal_and_all_is_caught_up_later(
    pg: Database, new_daemon: Callable[..., DaemonProcess], tmp_path: Path
) -> None:
    # Given a daemon that uses a Chroma server over the network.
    create_items(pg)
    server = ChromaServer(tmp_path / "chroma")
    server.start()
    try:
        with TcpProxy(server.port) as network:
            store = {"mode": "server", "port": network.port, "timeout_s": 3.0}
            daemon = new_daemon(pg, collections=[ITEMS], vectorstore=store)
            daemon.start()
            with writing(pg):
                # When it cannot be reached for a while.
                network.refuse()
                endure(pg, daemon, "vectorstore")
                network.let_through()

                # Then the daemon goes on by itself.
                daemon.wait_ready(60.0)
            healed(pg, daemon)
    finally:
        server.stop()


# -- Postgres ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.fault("walsender-ended")
def test_a_walsender_that_is_terminated_twenty_times_costs_nothing_but_a_reconnect(
    pg: Database, new_daemon: Callable[..., DaemonProcess]
) -> None:
    # Given a daemon on a table that is written to.
    create_items(pg)
    daemon = new_daemon(pg, collections=[ITEMS])
    daemon.start()
    active = "select active_pid from pg_replication_slots where slot_name = %s and active_pid is not null"
    last = 0
    with writing(pg):
        # When the server ends its connection twenty times.
        for _ in range(20):
            last = until(
                lambda last=last: next((pid for (pid,) in pg.execute(active, (pg.slot_name,)) if pid != last), 0),
                30.0,
                "a new walsender",
            )
            pg.execute("select pg_terminate_backend(%s)", (last,))

        # Then it comes back each time by itself.
        daemon.wait_ready(60.0)
    assert daemon.metric("cdc_agent_reconnects_total") >= 20
    healed(pg, daemon)


def stop_fast(pg: Database) -> float:
    """``pg_ctl stop -m fast``; returns how long it took."""
    began = time.monotonic()
    pg.server.stop("fast", 30.0)
    return time.monotonic() - began


@pytest.mark.slow
@pytest.mark.fault("server-stops")
def test_a_postgres_that_stops_is_not_held_up_and_found_again(
    private_pg: Database, new_daemon: Callable[..., DaemonProcess]
) -> None:
    # Given a daemon on a table that is written to.
    create_items(private_pg)
    daemon = new_daemon(private_pg, collections=[ITEMS])
    daemon.start()
    with writing(private_pg) as went_well:
        for _ in range(3):
            until(went_well.is_set, 30.0, "a write")

            # When Postgres stops, then it is done within ten seconds.
            assert stop_fast(private_pg) < 10
            until(lambda: names_of_problems(daemon) == {"source"}, what="the loss to be seen")

            # When it is started again, then the daemon is back by itself, within ten seconds.
            private_pg.server.start()
            went_well.clear()
            assert daemon.wait_streaming() < 10
            daemon.wait_ready(60.0)
    healed(private_pg, daemon)


@pytest.mark.slow
@pytest.mark.fault("server-stops")
def test_a_postgres_that_stops_is_not_held_up_by_a_model_that_hangs(
    private_pg: Database, fake_openai: FakeOpenAI, new_daemon: Callable[..., DaemonProcess]
) -> None:
    # Given a daemon whose model hangs while there is much to do.
    create_items(private_pg)
    with TcpProxy(port_of(fake_openai)) as model:
        embedding = openai(f"http://127.0.0.1:{model.port}/v1") | {"timeout_s": 120.0}
        daemon = new_daemon(private_pg, collections=[ITEMS], embedding=embedding)
        daemon.start()
        assert_index_equals_table(daemon, private_pg)
        model.blackhole()
        with writing(private_pg) as went_well:
            until(went_well.is_set, 30.0, "a write")
            private_pg.execute("update items set body = md5(random()::text) || ' ' || n")

            # When Postgres is stopped, then it is done within ten seconds.
            assert stop_fast(private_pg) < 10
            private_pg.server.start()
        model.let_through()
        model.drop_connections()
        healed(private_pg, daemon)


@pytest.mark.slow
@pytest.mark.fault("server-stops")
def test_a_postgres_that_stops_is_not_held_up_by_what_is_not_durable_yet(
    private_pg: Database, new_daemon: Callable[..., DaemonProcess]
) -> None:
    # Given a daemon that has received changes and cannot write them down, so that nothing is acknowledged.
    create_items(private_pg)
    daemon = new_daemon(private_pg, collections=[ITEMS])
    daemon.start()
    assert_index_equals_table(daemon, private_pg)
    daemon.kill()
    daemon.start(failpoint="before_append:hang", ready=False)
    daemon.wait_streaming()
    private_pg.execute("update items set n = -n")
    commit = private_pg.execute("select pg_current_wal_lsn()::text")[0][0]
    sent = "select sent_lsn >= %s and flush_lsn < %s from pg_stat_replication"
    until(lambda: private_pg.execute(sent, (commit, commit)) == [(True,)], what="the changes to be sent")

    # When Postgres is stopped, then it is done within ten seconds.
    assert stop_fast(private_pg) < 10
    private_pg.server.start()

    # And what was not acknowledged comes again.
    daemon.kill()
    daemon.start()
    healed(private_pg, daemon)


@pytest.mark.slow
@pytest.mark.fault("black-hole")
def test_a_network_that_swallows_everything_is_noticed_and_the_daemon_connects_again(
    pg: Database, pg_proxy: TcpProxy, new_daemon: Callable[..., DaemonProcess]
) -> None:
    # Given a daemon that reaches Postgres over a network.
    create_items(pg)
    daemon = new_daemon(
        pg,
        collections=[ITEMS],
        dsn=pg_proxy.dsn(pg.name) + f"?options=-c%20wal_sender_timeout%3D{WAL_SENDER_TIMEOUT_S}s",
        source={"connect_timeout_s": 2.0},
    )
    daemon.start()
    with writing(pg):
        # When the network swallows everything without a word.
        reconnects = daemon.metric("cdc_agent_reconnects_total")
        pg_proxy.blackhole()
        until(lambda: "source" in names_of_problems(daemon), 30.0, "the silence to be noticed")
        until(lambda: daemon.metric("cdc_agent_reconnects_total") >= reconnects + 3, 60.0, "more attempts")

        # Then the daemon is back soon after the network is: it does not wait longer than that between two attempts.
        pg_proxy.let_through()
        assert daemon.wait_streaming() < WAL_SENDER_TIMEOUT_S + 5
        daemon.wait_ready(60.0)
    healed(pg, daemon)


@pytest.mark.slow
@pytest.mark.fault("cut-in-a-message")
def test_a_stream_that_is_cut_anywhere_is_taken_up_where_it_was(
    pg: Database, pg_proxy: TcpProxy, new_daemon: Callable[..., DaemonProcess]
) -> None:
    # Given a daemon that reaches Postgres over a network.
    create_items(pg)
    daemon = new_daemon(pg, collections=[ITEMS], dsn=pg_proxy.dsn(pg.name))
    daemon.start()
    chosen = random.Random(2)
    with writing(pg):
        # When its connections are reset in the middle of a message, again and again.
        for _ in range(10):
            reconnects = daemon.metric("cdc_agent_reconnects_total")
            pg_proxy.cut_after(chosen.randrange(1, 30_000))
            until(
                lambda reconnects=reconnects: daemon.metric("cdc_agent_reconnects_total") > reconnects,
                60.0,
                "the cut to be noticed",
            )

        # Then nothing is lost or doubled.
        pg_proxy.let_through()
        daemon.wait_ready(60.0)
    healed(pg, daemon)
