"""What people and programs meet at the doors: freshness on demand, commands, signals, refusals that say what to do."""

from __future__ import annotations

import json
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import chromadb
import pytest

from cdc_agent.lsn import Lsn
from cdc_agent.vectorstore.chroma_server import ChromaServer
from tests.support.daemon import DaemonProcess
from tests.support.fake_openai import FakeOpenAI, hang
from tests.support.oracle import assert_index_equals_table, stored
from tests.support.ports import free_port
from tests.support.postgres import Database, Servers
from tests.support.wait import until

ARTICLES = {"name": "articles", "table": "public.articles", "text": "{title}\n\n{body}", "metadata": ["lang"]}
ROWS = 30
TRY_AGAIN, REFUSED = 75, 78
NewDaemon = Callable[..., DaemonProcess]


def create_articles(pg: Database) -> None:
    pg.execute("create table articles (id int primary key, title text, body text, lang text)")
    rows = "select i, 'title ' || i, 'body of ' || i, 'en' from generate_series(1, %s) i"
    pg.execute(f"insert into articles {rows}", (ROWS,))


def end_of_wal(pg: Database) -> str:
    return str(pg.execute("select pg_current_wal_lsn()::text")[0][0])


def embedded(daemon: DaemonProcess) -> int:
    return int(daemon.metric("cdc_agent_chunks_embedded_total"))


@pytest.fixture
def daemon(pg: Database, new_daemon: NewDaemon) -> DaemonProcess:
    """A daemon on a table with thirty articles, ready."""
    create_articles(pg)
    daemon = new_daemon(pg, collections=[ARTICLES])
    daemon.start()
    assert_index_equals_table(daemon, pg)
    return daemon


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


# -- freshness -----------------------------------------------------------------------------------------------


def test_a_search_that_names_a_commit_sees_it(pg: Database, daemon: DaemonProcess) -> None:
    # Given a client that remembers where its commit ended.
    chosen = random.Random(3)
    connection = pg.connect()
    for commit in range(100):
        row = chosen.randrange(1, 2 * ROWS)
        words = f"commit {commit} w{chosen.randrange(10**9)}"

        # When it writes a row, or deletes one, and searches at once.
        if chosen.random() < 0.8:
            connection.execute(
                "insert into articles values (%s, %s, 'body', 'en')"
                " on conflict (id) do update set title = excluded.title, body = excluded.body",
                (row, words),
            )
            wanted = [f"{words}\n\nbody"]
        else:
            connection.execute("delete from articles where id = %s", (row,))
            wanted = []
        lsn = connection.execute("select pg_current_wal_lsn()::text").fetchone()
        assert lsn is not None

        # Then it finds what it wrote, whether it asks /wait first or /search with min_lsn.
        if chosen.random() < 0.5:
            daemon.wait_applied(lsn[0])
            hits = daemon.search("articles", words, k=3)
        else:
            hits = daemon.search("articles", words, k=3, min_lsn=lsn[0], timeout_s=30)
        found = [hit["text"] for hit in hits if hit["document_id"] == f"public.articles:{row}"]
        assert found == wanted, f"commit {commit} on row {row}"
    assert_index_equals_table(daemon, pg)


def test_a_commit_that_is_not_reached_in_time_is_a_504(pg: Database, daemon: DaemonProcess) -> None:
    # Given a position that the server is far from.
    far = "FFFF/0"

    # When somebody waits for it for a second, then the answer says how far the index is.
    began = time.monotonic()
    waited = daemon.get("/wait", lsn=far, timeout_s=1)
    assert waited.status_code == 504
    assert 1 <= time.monotonic() - began < 10
    assert far in waited.json()["error"]
    assert waited.json()["hint"]
    assert Lsn.parse(waited.json()["applied_lsn"]) > Lsn(0)
    searched = daemon.post("/search", {"collection": "articles", "query": "x", "min_lsn": far, "timeout_s": 0.5})
    assert searched.status_code == 504

    # And the command says to try again.
    result = cdc_agent(daemon, "wait", far, "--timeout-s", "1")
    assert result.returncode == TRY_AGAIN
    assert result.stderr.startswith(f"error: the index did not reach {far} within 1 s")
    assert "hint: " in result.stderr
    assert_index_equals_table(daemon, pg)


def test_search_and_verify_work_without_a_daemon(pg: Database, daemon: DaemonProcess) -> None:
    # Given an index whose daemon was stopped, and a row that changed since.
    assert daemon.terminate() == 0
    pg.execute("update articles set title = 'a singular title' where id = 5")
    refused = cdc_agent(daemon, "search", "a singular title")
    assert refused.returncode == TRY_AGAIN

    # When it is searched all the same, then it is brought up to date first.
    found = cdc_agent(daemon, "search", "a singular title body of 5", "-k", "1", "--offline", "--json")
    assert found.returncode == 0, found.stderr
    [hit] = json.loads(found.stdout)["hits"]
    assert (hit["document_id"], hit["text"].splitlines()[0]) == ("public.articles:5", "a singular title")

    # And an audit finds nothing wrong.
    audited = cdc_agent(daemon, "verify", "--offline", "--json")
    assert audited.returncode == 0, audited.stderr
    assert json.loads(audited.stdout)["rows"] == ROWS
    daemon.start()
    assert_index_equals_table(daemon, pg)


def test_who_waits_for_a_commit_is_told_that_the_daemon_stops(pg: Database, daemon: DaemonProcess) -> None:
    # Given somebody who waits for a commit that is far away, as the daemon knows.
    with socket.create_connection(("127.0.0.1", daemon.port), timeout=60) as waiting:
        waiting.sendall(b"GET /wait?lsn=FFFF/0&timeout_s=60 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert daemon.get("/healthz").status_code == 200

        # When the daemon is stopped, then it stops at once, and says so to the one who waits.
        assert daemon.terminate() == 0
        answer = b"".join(iter(lambda: waiting.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 503")
    assert b"stopping" in answer
    assert "Traceback" not in daemon.log
    daemon.start()
    assert_index_equals_table(daemon, pg)


def test_commands_ask_the_running_daemon(pg: Database, daemon: DaemonProcess) -> None:
    # When a commit is waited for, then the command returns once it is there.
    pg.execute("update articles set title = 'a singular title' where id = 5")
    lsn = end_of_wal(pg)
    waited = cdc_agent(daemon, "wait", lsn)
    assert (waited.returncode, waited.stderr) == (0, "")
    assert Lsn.parse(waited.stdout.removeprefix("applied_lsn: ").strip()) >= Lsn.parse(lsn)

    # When it is searched for, then it is the first hit, for people and machines.
    people = cdc_agent(daemon, "search", "a singular title")
    assert people.returncode == 0
    assert people.stdout.splitlines()[0].endswith("  public.articles:5")
    machines = cdc_agent(daemon, "search", "a singular title", "-k", "1", "--min-lsn", lsn, "--json")
    assert json.loads(machines.stdout)["hits"][0]["document_id"] == "public.articles:5"
    none = cdc_agent(daemon, "search", "title", "--where", '{"lang": "xx"}')
    assert (none.returncode, none.stdout) == (0, "nothing found\n")

    # When it is asked how it is, then it says so.
    status = json.loads(cdc_agent(daemon, "status", "--json").stdout)
    assert status["streaming"] is True
    assert status["problems"] == []
    assert status["collections"] == [
        {"name": "articles", "table": "public.articles", "documents": ROWS, "chunks": ROWS}
    ]
    assert "streaming: True" in cdc_agent(daemon, "status").stdout
    assert_index_equals_table(daemon, pg)


# -- signals -------------------------------------------------------------------------------------------------


def test_sigterm_ends_an_idle_daemon_at_once(pg: Database, daemon: DaemonProcess) -> None:
    # Given an idle daemon.
    began = time.monotonic()

    # When it is told to stop, then it does, cleanly, and goes on later as if nothing had been.
    assert daemon.terminate() == 0
    assert time.monotonic() - began < 8
    assert "Traceback" not in daemon.log
    pg.execute("update articles set title = 'changed' where id < 5")
    daemon.start()
    assert_index_equals_table(daemon, pg)


@pytest.mark.fault("stopped-in-a-batch")
def test_sigterm_ends_a_daemon_whose_model_hangs_within_twenty_seconds(
    pg: Database, fake_openai: FakeOpenAI, new_daemon: NewDaemon
) -> None:
    # Given a daemon that waits for its model.
    create_articles(pg)
    embedding = {"backend": "openai", "url": fake_openai.base_url, "model": "fake", "timeout_s": 300.0}
    daemon = new_daemon(pg, collections=[ARTICLES], embedding=embedding)
    daemon.start()
    assert_index_equals_table(daemon, pg)
    asked = len(fake_openai.requests)
    fake_openai.script(hang())
    pg.execute("update articles set title = 'changed' where id < 5")
    until(lambda: len(fake_openai.requests) > asked, what="the model to be asked")

    # When it is told to stop, then it abandons the work in hand and ends with success.
    began = time.monotonic()
    assert daemon.terminate(60.0) == 0
    assert time.monotonic() - began <= 20

    # And does it after the next start.
    daemon.start()
    assert_index_equals_table(daemon, pg)


@pytest.mark.fault("reloaded")
def test_sighup_takes_a_good_configuration_and_shrugs_at_a_bad_one(pg: Database, daemon: DaemonProcess) -> None:
    # Given a daemon that logs everything, and a configuration that has become nonsense.
    good = daemon.path.read_text()
    daemon.path.write_text("source: [\n")

    # When it is told to reload, then it says what is wrong and goes on.
    daemon.signal(signal.SIGHUP)
    until(lambda: "reload refused" in daemon.log, what="the refusal")
    pg.execute("update articles set title = 'changed' where id < 5")
    daemon.wait_applied(end_of_wal(pg))

    # When it is mended, asks for fewer words, and for something that cannot change while it runs.
    daemon.path.write_text(good.replace("level: debug", "level: warning") + "resync: {rows_per_chunk: 77}\n")
    daemon.signal(signal.SIGHUP)

    # Then the words are fewer from then on, and the rest is named.
    needed = "a restart is needed for keys=resync"
    until(lambda: needed in daemon.log, what="the reload")
    assert daemon.problems() == []
    assert daemon.terminate() == 0
    assert daemon.log.partition(needed)[2].strip() == ""
    daemon.start()
    assert_index_equals_table(daemon, pg)


# -- two daemons ---------------------------------------------------------------------------------------------


def refusal(daemon: DaemonProcess, code: int = REFUSED, *words: str) -> str:
    """Start it; it must end by itself with one error, one hint and this exit code. Returns what it said."""
    daemon.configure(log={"level": "info"})
    said = len(daemon.log)
    daemon.start(ready=False)
    returned = daemon.wait_exit(60.0)
    text = daemon.log[said:]
    assert "Traceback" not in text
    assert text.count("error: ") == 1, text
    assert text.count("\nhint: ") == 1, text
    error = text[text.index("error: ") :]
    for word in words:
        assert word in error, error
    assert returned == code, error
    return error


@pytest.mark.fault("two-daemons")
def test_a_second_daemon_on_the_same_slot_with_its_own_state_is_refused(
    pg: Database, daemon: DaemonProcess, new_daemon: NewDaemon
) -> None:
    # Given a daemon that runs.
    # When another one with another state directory is started on the same slot, then it is refused.
    second = new_daemon(pg, collections=[ARTICLES])
    refusal(second, REFUSED, "LEDGER_LOST", pg.slot_name, "cdc-agent slot drop")

    # And the first one has not noticed.
    assert daemon.problems() == []
    pg.execute("update articles set title = 'changed' where id < 5")
    assert_index_equals_table(daemon, pg)


@pytest.mark.parametrize("mode", ["managed", "server"])
@pytest.mark.fault("two-daemons")
def test_a_second_daemon_with_the_same_state_waits_until_the_first_is_gone(
    pg: Database, new_daemon: NewDaemon, tmp_path: Path, mode: str
) -> None:
    # Given a daemon that runs.
    create_articles(pg)
    chroma = ChromaServer(tmp_path / "chroma")
    store: dict[str, Any] = {}
    if mode == "server":
        chroma.start()
        store = {"mode": "server", "port": chroma.port}
    try:
        first = new_daemon(pg, collections=[ARTICLES], vectorstore=store)
        first.start()
        assert_index_equals_table(first, pg)

        # When another one is started on the same state directory, with ports of its own, then it waits.
        second = new_daemon(pg, collections=[ARTICLES], vectorstore=store, state_dir=first.settings["state_dir"])
        second.start(ready=False)
        until(lambda: f"pid={first.pid}, taking over when it ends" in second.log, 30.0, "the second one to wait")

        # And the first one has not noticed.
        assert first.problems() == []
        pg.execute("update articles set title = 'changed' where id < 5")
        assert_index_equals_table(first, pg)
        first.kill()

        # When the first one is gone, then the second one takes over.
        second.wait_ready()
        pg.execute("update articles set title = 'changed again' where id < 5")
        assert_index_equals_table(second, pg)
    finally:
        chroma.stop()


# -- wrong things --------------------------------------------------------------------------------------------


def dsn_with(pg: Database, **parts: Any) -> str:
    values = {"user": "postgres", "host": "127.0.0.1", "port": pg.server.port, "database": pg.name, **parts}
    return "postgresql://{user}@{host}:{port}/{database}".format(**values)


@pytest.mark.parametrize(
    ("parts", "code", "words"),
    [
        ({"port": 1}, TRY_AGAIN, ["nothing listens on 127.0.0.1 port 1"]),
        ({"host": "no-such-host.invalid"}, REFUSED, ["no-such-host.invalid is not known"]),
        ({"database": "nosuchdb"}, REFUSED, ["the server has no database nosuchdb"]),
        ({"user": "nobody_at_all"}, REFUSED, ["nobody_at_all"]),
    ],
    ids=["port", "host", "database", "user"],
)
def test_a_dsn_that_leads_nowhere_is_refused(
    pg: Database, new_daemon: NewDaemon, parts: Mapping[str, Any], code: int, words: list[str]
) -> None:
    create_articles(pg)
    daemon = new_daemon(pg, collections=[ARTICLES], dsn=dsn_with(pg, **parts))

    refusal(daemon, code, *words)


@pytest.mark.fault("secrets-in-logs")
def test_a_wrong_password_is_refused_and_never_written_down(private_pg: Database, new_daemon: NewDaemon) -> None:
    # Given a server that asks one role for its password.
    create_articles(private_pg)
    private_pg.execute("create role agent superuser login password 'rightpassword'")
    hba = private_pg.server.data_dir / "pg_hba.conf"
    hba.write_text("host all agent 127.0.0.1/32 scram-sha-256\n" + hba.read_text())
    private_pg.execute("select pg_reload_conf()")
    dsn = dsn_with(private_pg, user="agent:{}")

    # When the daemon has the wrong one, then it is refused.
    daemon = new_daemon(private_pg, collections=[ARTICLES], dsn=dsn.format("wrongpassword"))
    refusal(daemon, REFUSED, "password")
    assert "wrongpassword" not in daemon.log

    # When it has the right one, then it runs.
    daemon.configure(source={"dsn": dsn.format("rightpassword")})
    daemon.start()
    assert_index_equals_table(daemon, private_pg)
    assert "rightpassword" not in daemon.log


@pytest.mark.parametrize(
    ("collection", "words"),
    [
        ({"table": "public.artcles"}, ["public.artcles", "articles"]),
        ({"text": "{titel}"}, ["titel", "title"]),
        ({"metadata": ["langg"]}, ["langg", "lang"]),
        ({"where": "lung = 'en'"}, ["lung", "lang"]),
    ],
    ids=["table", "text column", "metadata column", "where column"],
)
def test_a_name_that_does_not_exist_is_refused_with_the_nearest_one(
    pg: Database, new_daemon: NewDaemon, collection: Mapping[str, Any], words: list[str]
) -> None:
    create_articles(pg)
    daemon = new_daemon(pg, collections=[ARTICLES | collection])

    refusal(daemon, REFUSED, *words)

    # Nothing is left behind in the database, and the corrected configuration works at once.
    assert pg.execute("select count(*) from pg_replication_slots where slot_name = %s", (pg.slot_name,)) == [(0,)]
    daemon.configure(collections=[ARTICLES])
    daemon.start()
    assert_index_equals_table(daemon, pg)


@pytest.mark.fault("not-set-up")
def test_a_server_without_logical_wal_is_refused(private_pg: Database, new_daemon: NewDaemon) -> None:
    create_articles(private_pg)
    private_pg.server.settings["wal_level"] = "replica"
    private_pg.server.restart()

    refusal(new_daemon(private_pg, collections=[ARTICLES]), REFUSED, "wal_level", "logical")


@pytest.mark.parametrize(
    ("role", "words"),
    [("login replication", ["articles"]), ("login", ["replication"])],
    ids=["select", "replication"],
)
@pytest.mark.fault("not-set-up")
def test_a_role_without_the_privilege_is_refused(
    pg: Database, new_daemon: NewDaemon, role: str, words: list[str]
) -> None:
    create_articles(pg)
    pg.execute(f"create role {pg.name}_agent {role}")
    try:
        daemon = new_daemon(pg, collections=[ARTICLES], dsn=dsn_with(pg, user=f"{pg.name}_agent"))
        error = refusal(daemon, REFUSED)
        assert all(word in error.lower() for word in words), error
    finally:
        pg.execute(f"drop role {pg.name}_agent")


@pytest.mark.postgres(versions=[16])
@pytest.mark.fault("not-set-up")
def test_a_plugin_that_the_server_does_not_have_is_refused(pg: Database, new_daemon: NewDaemon) -> None:
    create_articles(pg)

    refusal(new_daemon(pg, collections=[ARTICLES], source={"plugin": "wal2json"}), REFUSED, "wal2json", "pgoutput")


@pytest.mark.parametrize("whose", ["http", "vectorstore"])
def test_a_port_that_is_taken_is_refused(pg: Database, new_daemon: NewDaemon, whose: str) -> None:
    create_articles(pg)
    daemon = new_daemon(pg, collections=[ARTICLES])
    with socket.create_server(("127.0.0.1", daemon.settings[whose]["port"])):
        refusal(daemon, REFUSED, f"{daemon.settings[whose]['port']}", f"{whose}.port")

    # And works once it is free.
    daemon.start()
    assert_index_equals_table(daemon, pg)


def test_a_daemon_with_a_new_state_leaves_a_collection_alone_that_another_one_serves(
    pg: Database, new_daemon: NewDaemon, tmp_path: Path
) -> None:
    # Given a daemon that streams into a Chroma server which others use, too.
    create_articles(pg)
    chroma = ChromaServer(tmp_path / "chroma")
    chroma.start()
    try:
        store = {"mode": "server", "port": chroma.port}
        first = new_daemon(pg, collections=[ARTICLES], vectorstore=store)
        first.start()
        assert_index_equals_table(first, pg)

        # When one with the same settings and no state of its own comes, and may mend, then it has to wait.
        second = new_daemon(pg, collections=[ARTICLES], vectorstore=store, source={"on_mismatch": "resync"})
        refusal(second, TRY_AGAIN, "another daemon", pg.slot_name)

        # And the first one has not noticed.
        assert first.problems() == []
        assert_index_equals_table(first, pg)

        # When the first one is gone, then the second takes its place, and embeds nothing.
        first.kill()
        second.start()
        assert_index_equals_table(second, pg)
        assert second.metric("cdc_agent_chunks_embedded_total") == 0
    finally:
        chroma.stop()


def test_a_chroma_server_that_is_not_there_is_a_reason_to_try_again(pg: Database, new_daemon: NewDaemon) -> None:
    create_articles(pg)
    store = {"mode": "server", "port": free_port()}

    refusal(new_daemon(pg, collections=[ARTICLES], vectorstore=store), TRY_AGAIN, "vectorstore.port")


def test_a_model_that_is_not_there_is_a_reason_to_try_again(pg: Database, new_daemon: NewDaemon) -> None:
    create_articles(pg)
    embedding = {"backend": "openai", "url": f"http://127.0.0.1:{free_port()}/v1", "model": "fake"}

    refusal(new_daemon(pg, collections=[ARTICLES], embedding=embedding), TRY_AGAIN, "embedding.url")


def test_an_embedding_url_that_leads_elsewhere_is_refused(
    pg: Database, fake_openai: FakeOpenAI, new_daemon: NewDaemon
) -> None:
    create_articles(pg)
    embedding = {"backend": "openai", "url": fake_openai.base_url + "/wrong", "model": "fake"}

    refusal(new_daemon(pg, collections=[ARTICLES], embedding=embedding), REFUSED, "embedding.url")


@pytest.mark.parametrize(("space", "words"), [("cosine", ["STORE_REPLACED", "somebody else"]), ("l2", ["by l2"])])
@pytest.mark.fault("store-wiped")
def test_a_collection_of_somebody_else_is_left_alone(
    pg: Database, new_daemon: NewDaemon, tmp_path: Path, space: str, words: list[str]
) -> None:
    # Given a Chroma server in which somebody keeps a collection of our name.
    create_articles(pg)
    chroma = ChromaServer(tmp_path / "chroma")
    chroma.start()
    try:
        client = chromadb.HttpClient(host="127.0.0.1", port=chroma.port)
        theirs = client.create_collection(
            "articles",
            metadata={"owner": "them"},
            configuration={"hnsw": {"space": space}},
            embedding_function=None,
        )
        theirs.add(ids=["1"], documents=["theirs"], embeddings=[[1.0, 2.0]])
        store = {"mode": "server", "port": chroma.port}
        daemon = new_daemon(pg, collections=[ARTICLES], vectorstore=store)

        # When the daemon starts, then it refuses, and has not touched it.
        refusal(daemon, REFUSED, "collection articles", *words)
        assert stored(daemon.config, "articles")["documents"] == ["theirs"]
        assert client.get_collection("articles", embedding_function=None).metadata == {"owner": "them"}

        # When ours gets another name, then it runs beside theirs.
        daemon.configure(collections=[ARTICLES | {"name": "our-articles"}])
        daemon.start()
        assert_index_equals_table(daemon, pg)
        assert stored(daemon.config, "articles")["documents"] == ["theirs"]
    finally:
        chroma.stop()


# -- what does not belong together any more ------------------------------------------------------------------


def change_while_down(pg: Database, daemon: DaemonProcess) -> None:
    """Three rows change, one is new, one is gone, with nobody listening."""
    if daemon.running:
        assert daemon.terminate() == 0
    pg.execute("update articles set title = 'changed' where id <= 3")
    pg.execute("insert into articles values (500, 'new', 'row', 'en')")
    pg.execute("delete from articles where id = 10")


def drop_slot(pg: Database, daemon: DaemonProcess) -> None:
    change_while_down(pg, daemon)
    pg.execute("select pg_drop_replication_slot(%s)", (pg.slot_name,))


def advance_slot(pg: Database, daemon: DaemonProcess) -> None:
    change_while_down(pg, daemon)
    pg.execute("select pg_replication_slot_advance(%s, pg_current_wal_lsn())", (pg.slot_name,))


def recreate_slot(pg: Database, daemon: DaemonProcess) -> None:
    drop_slot(pg, daemon)
    pg.execute("select pg_create_logical_replication_slot(%s, %s)", (pg.slot_name, pg.plugin))


@pytest.mark.parametrize(
    ("damage", "state"),
    [(drop_slot, "SLOT_LOST"), (advance_slot, "SLOT_ADVANCED"), (recreate_slot, "SLOT_ADVANCED")],
    ids=["dropped", "advanced", "recreated"],
)
@pytest.mark.fault("slot-lost")
def test_a_slot_that_lost_our_place_is_refused_or_mended_without_embedding_what_is_known(
    pg: Database, daemon: DaemonProcess, damage: Callable[[Database, DaemonProcess], None], state: str
) -> None:
    # Given a slot that something happened to while the daemon was down, and changes that went unheard.
    damage(pg, daemon)

    # When it starts, then it refuses, again and again, and says what mends it.
    refusal(daemon, REFUSED, state, "ON_MISMATCH=resync")
    refusal(daemon, REFUSED, state)

    # When it is told to mend, then the index is true, and only what is new was embedded.
    daemon.start(env={"CDC_AGENT_SOURCE__ON_MISMATCH": "resync"}, ready=False)
    daemon.wait_ready()
    mended(daemon)
    assert_index_equals_table(daemon, pg)
    assert embedded(daemon) == 4

    # And from then on it streams as ever.
    assert daemon.terminate() == 0
    pg.execute("update articles set title = 'later' where id = 20")
    daemon.start()
    assert_index_equals_table(daemon, pg)
    assert embedded(daemon) == 1


def mended(daemon: DaemonProcess) -> None:
    def done() -> bool:
        resyncs = daemon.get("/resyncs").json()["resyncs"]
        return len(resyncs) > 1 and all(resync["state"] == "done" for resync in resyncs)

    until(done, 60.0, "the table to be read again")


@pytest.mark.fault("slot-lost")
def test_a_slot_that_is_dropped_while_we_stream_ends_us_with_its_name(pg: Database, daemon: DaemonProcess) -> None:
    # Given a daemon that streams.
    # When somebody ends its connection and drops its slot.
    def dropped() -> bool:
        pg.execute(
            "select pg_terminate_backend(active_pid) from pg_replication_slots"
            " where slot_name = %s and active_pid is not null",
            (pg.slot_name,),
        )
        drop = "select pg_drop_replication_slot(slot_name) from pg_replication_slots"
        return bool(pg.execute(f"{drop} where slot_name = %s and not active", (pg.slot_name,)))

    until(dropped, what="the slot to be dropped")

    # Then it ends and says so.
    assert daemon.wait_exit() == REFUSED
    assert "error: SLOT_LOST" in daemon.log
    assert "hint: " in daemon.log[daemon.log.index("error: SLOT_LOST") :]


@pytest.mark.parametrize(
    "change",
    [{"text": "{body}\n\n{title}"}, {"chunking": {"max_tokens": 64}}, {"where": "lang = 'en'"}, {"metadata": []}],
    ids=["template", "chunking", "where", "metadata"],
)
def test_a_collection_that_is_configured_otherwise_is_refused(
    pg: Database, daemon: DaemonProcess, change: Mapping[str, Any]
) -> None:
    # Given a collection whose configuration changes while the daemon is down.
    assert daemon.terminate() == 0
    daemon.configure(collections=[ARTICLES | change])

    # Then it is refused.
    refusal(daemon, REFUSED, "CONFIG_CHANGED", "articles")

    # When it is put back, or built beside under another name, then that works.
    daemon.configure(collections=[ARTICLES, ARTICLES | change | {"name": "articles-2"}])
    daemon.start()
    assert_index_equals_table(daemon, pg)


@pytest.mark.fault("another-server")
def test_another_server_behind_the_same_address_is_refused(
    private_pg: Database, servers: Servers, new_daemon: NewDaemon
) -> None:
    # Given a daemon whose server is replaced by one that looks the same.
    create_articles(private_pg)
    daemon = new_daemon(private_pg, collections=[ARTICLES])
    daemon.start()
    assert_index_equals_table(daemon, private_pg)
    private_pg.server.stop("fast")
    other = servers.new_server(15)
    other.port = private_pg.server.port
    other.start()
    assert other.port == private_pg.server.port
    other_pg = Database(server=other, name="postgres", version=15, plugin="pgoutput", slot_name=private_pg.slot_name)
    other_pg.execute(f"create database {private_pg.name}")
    twin = Database(server=other, name=private_pg.name, version=15, plugin="pgoutput", slot_name=private_pg.slot_name)
    create_articles(twin)
    twin.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", (private_pg.slot_name,))

    # Then a daemon that runs ends, and one that starts is refused.
    assert daemon.wait_exit() == REFUSED
    assert "error: OTHER_SERVER" in daemon.log
    refusal(daemon, REFUSED, "OTHER_SERVER")

    # When the right server is back, then all is well.
    other.stop("immediate")
    private_pg.server.start()
    daemon.start()
    assert_index_equals_table(daemon, private_pg)
