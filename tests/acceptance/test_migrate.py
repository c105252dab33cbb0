"""Another model or template without downtime: real Postgres, real daemon, real Chroma, a reader that never rests."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import chromadb
import httpx
import pytest

from cdc_agent.failpoints import NAMES
from tests.support.daemon import DaemonProcess
from tests.support.fake_openai import FakeOpenAI, server_error
from tests.support.oracle import assert_index_equals_table
from tests.support.postgres import Database
from tests.support.wait import until

NewDaemon = Callable[..., DaemonProcess]

#: The template says which generation rendered a text, so that a reader can tell.
OLD = {"name": "docs", "table": "public.docs", "text": "old words {body}", "metadata": ["n"]}
NEW = {"name": "docs", "table": "public.docs", "text": "new words {body}", "metadata": ["n"]}
#: Another model is another length of vectors, so a query of one on the other's collection would fail.
NEW_MODEL = {"backend": "hashing", "dimensions": 96}


def create_table(pg: Database, rows: int = 60) -> None:
    pg.execute("create table docs (id int primary key, body text, n int)")
    pg.execute(f"insert into docs select i, 'text number ' || i, i from generate_series(1, {rows}) i")


def migrate(daemon: DaemonProcess, *arguments: str, code: int = 0) -> dict[str, Any]:
    """The command line, as an operator types it."""
    command = [sys.executable, "-m", "cdc_agent.cli", "migrate", *arguments, "-c", str(daemon.path), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code, (
        f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}\n{daemon.log[-3000:]}"
    )
    return dict(json.loads(done.stdout)) if done.stdout.startswith("{") else {"error": done.stderr}


def generations(daemon: DaemonProcess) -> dict[int, dict[str, Any]]:
    return {g["generation"]: g for g in daemon.get("/migrations").json()["generations"]}


def wait_built(daemon: DaemonProcess, number: int = 2) -> None:
    until(lambda: generations(daemon)[number]["ready"], 60.0, f"generation {number} to be ready")


def words(daemon: DaemonProcess) -> set[str]:
    """First words of what a search finds."""
    return {hit["text"].split()[0] for hit in daemon.search("docs", "words text number", k=20)}


def collections(daemon: DaemonProcess) -> dict[str, Any]:
    settings = daemon.config.vectorstore
    client = chromadb.HttpClient(host=settings.host, port=settings.port)
    return {one.name: one for one in client.list_collections()}


def ledger(daemon: DaemonProcess, statement: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(f"file:{daemon.config.ledger_path}?mode=ro", uri=True)) as connection:
        return connection.execute(statement).fetchall()


class Load:
    """A writer and a reader that go on until the end of the block; what the reader saw is kept."""

    def __init__(self, pg: Database, daemon: DaemonProcess) -> None:
        self._pg, self._daemon = pg, daemon
        self._stop = threading.Event()
        self.answers: list[frozenset[str]] = []
        self.faults: list[str] = []
        self.written = 0

    @contextmanager
    def running(self) -> Iterator[Load]:
        threads = [threading.Thread(target=body) for body in (self._write, self._read, self._read)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            for thread in threads:
                thread.join(60)

    def _write(self) -> None:
        with self._pg.connect() as connection:
            while not self._stop.wait(0.01):
                self.written += 1
                key = self.written % 80 + 1
                connection.execute(
                    "insert into docs values (%s, %s, %s) on conflict (id) do update set body = excluded.body",
                    (key, f"text number {key} at {self.written}", key),
                )
                if self.written % 7 == 0:
                    connection.execute("delete from docs where id = %s", (self.written % 11 + 1,))

    def _read(self) -> None:
        body = {"collection": "docs", "query": "words text number", "k": 20}
        applied = ""
        with httpx.Client(timeout=70) as client:
            while not self._stop.is_set():
                try:
                    answer = client.post(self._daemon.url + "/search", json=body)
                except httpx.TransportError as exc:
                    self.faults.append(repr(exc))
                    continue
                if answer.status_code != 200:
                    self.faults.append(answer.text)
                    continue
                found = answer.json()
                if _position(found["applied_lsn"]) < _position(applied):
                    self.faults.append(f"applied_lsn went back from {applied} to {found['applied_lsn']}")
                applied = found["applied_lsn"]
                self.answers.append(frozenset(hit["text"].split()[0] for hit in found["hits"]))


def _position(lsn: str) -> int:
    high, _, low = lsn.partition("/")
    return (int(high, 16) << 32) + int(low, 16) if low else 0


@pytest.mark.fault("model-swapped")
def test_a_changed_configuration_is_a_named_state_and_never_a_mixed_index(pg: Database, new_daemon: NewDaemon) -> None:
    # Given an index
    create_table(pg, rows=5)
    daemon = new_daemon(pg, collections=[OLD])
    daemon.start()
    daemon.wait_applied(pg.execute("select pg_current_wal_lsn()::text")[0][0])
    assert daemon.terminate() == 0

    # When the template of the configuration is another one
    daemon.configure(collections=[NEW])
    daemon.start(ready=False)

    # Then the daemon refuses, says what changed and what to do, and changes nothing
    assert daemon.wait_exit() == 78
    assert "CONFIG_CHANGED" in daemon.log
    assert "(text)" in daemon.log
    assert "cdc-agent migrate start" in daemon.log
    daemon.configure(collections=[OLD])
    daemon.start()
    assert words(daemon) == {"old"}
    assert_index_equals_table(daemon, pg)


@pytest.mark.fault("model-swapped")
def test_a_model_is_switched_under_load_rolled_back_and_switched_again(pg: Database, new_daemon: NewDaemon) -> None:
    # Given a daemon with a reader and a writer that never rest, and a configuration with another model and template
    create_table(pg)
    daemon = new_daemon(pg, collections=[OLD], resync={"rows_per_chunk": 10})
    daemon.start()
    until(lambda: len(daemon.search("docs", "text number", k=20)) == 20, what="the first copy")
    daemon.configure(collections=[NEW], embedding=NEW_MODEL)
    planned = migrate(daemon, "plan", code=1)["collections"][0]
    assert planned["changed"] == ["text", "embedding.dimensions"]
    assert planned["chunks"] >= 60
    assert planned["reused_chunks"] == 0
    load = Load(pg, daemon)
    with load.running():
        # When the new generation is built, then the old one goes on answering
        started = migrate(daemon, "start")["generations"]
        assert [(g["generation"], g["state"]) for g in started] == [(1, "live"), (2, "building")]
        wait_built(daemon)
        assert words(daemon) == {"old"}
        assert set(collections(daemon)) == {"docs", "docs.g2"}

        # When it is switched, rolled back, and switched once more, then each time another one answers, and only that
        for number, step, word in ((2, "switch", "new"), (1, "rollback", "old"), (2, "rollback", "new")):
            migrate(daemon, step)
            seen = len(load.answers)
            assert words(daemon) == {word}
            assert generations(daemon)[number]["state"] == "live"
            assert collections(daemon)["docs"].metadata["cdc_dimensions"] == {"old": 64, "new": 96}[word]
            if step == "rollback" and word == "old":
                # The configuration describes what would go: the next start would fit nothing.
                assert "would be removed" in migrate(daemon, "finish", code=2)["error"]
            until(lambda seen=seen: len(load.answers) > seen + 20, what="searches after it")  # type: ignore[misc]

        # And when it is finished, nothing is left of the old one
        migrate(daemon, "finish")
    assert load.faults == []
    assert load.written > 50
    assert {frozenset({"old"}), frozenset({"new"})} == set(load.answers) - {frozenset()}
    assert_index_equals_table(daemon, pg)
    assert set(collections(daemon)) == {"docs"}
    assert ledger(daemon, "select distinct collection from manifest") == [("docs@2",)]
    assert ledger(daemon, "select agent from checkpoint") == [("indexer:docs@2",)]

    # And the next start knows of one generation
    assert daemon.terminate() == 0
    daemon.start()
    assert list(generations(daemon)) == [2]
    assert_index_equals_table(daemon, pg)


#: Where the daemon dies, at which passage, while which step is taken.
DEATHS = (
    ("migrate_after_begin", 1, "start"),
    ("migrate_before_copy", 1, "start"),
    ("migrate_after_flip", 1, "switch"),
    ("migrate_before_rename", 1, "switch"),
    ("migrate_before_rename", 2, "switch"),
    ("migrate_after_rename", 1, "switch"),
    ("migrate_before_rename", 4, "rollback"),
    ("migrate_after_dropping", 1, "finish"),
    ("migrate_after_store_drop", 1, "finish"),
    ("migrate_after_dropping", 1, "abort"),
    ("migrate_after_store_drop", 1, "abort"),
)


def test_every_place_of_a_migration_has_a_death() -> None:
    assert {name for name, _, _ in DEATHS} == {name for name in NAMES if name.startswith("migrate_")}


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.parametrize(("place", "passage", "step"), DEATHS)
@pytest.mark.fault("killed-in-a-migration")
def test_a_migration_that_is_killed_goes_on_where_it_was(
    pg: Database, new_daemon: NewDaemon, place: str, passage: int, step: str
) -> None:
    # Given a daemon that is to die at a place of a migration, and the steps before
    create_table(pg, rows=30)
    daemon = new_daemon(pg, collections=[OLD], resync={"rows_per_chunk": 10})
    daemon.start(failpoint=f"{place}:kill@{passage}")
    daemon.configure(collections=[NEW], embedding=NEW_MODEL)
    before = {"switch": 1, "rollback": 2, "finish": 2, "abort": 1}.get(step, 0)
    for earlier in ("start", "switch")[:before]:
        migrate(daemon, earlier)
        wait_built(daemon)

    # When the step is taken and the daemon dies in it, while others write
    with pytest.raises(httpx.TransportError):
        path = "/migrations" if step == "start" else f"/migrations/docs/{step}"
        daemon.post(path, {}) and until(lambda: not daemon.running and daemon.post(path), 30.0, "the death")
    assert daemon.wait_exit() == -signal.SIGKILL
    pg.execute("update docs set body = 'text number one hundred' where id <= 3")
    pg.execute("delete from docs where id = 4")
    if step == "abort":
        daemon.configure(collections=[OLD], embedding={"backend": "hashing", "dimensions": 64})
    daemon.start()

    # Then the step is done, or goes on by itself; names in the store are right; nothing is mixed, missing or left
    if step == "start":
        wait_built(daemon)
        assert words(daemon) == {"old"}
        migrate(daemon, "switch")
    answers, states = {
        "start": ("new", {1: "retired", 2: "live"}),
        "switch": ("new", {1: "retired", 2: "live"}),
        "rollback": ("old", {1: "live", 2: "retired"}),
        "finish": ("new", {2: "live"}),
        "abort": ("old", {1: "live"}),
    }[step]
    assert {number: g["state"] for number, g in generations(daemon).items()} == states
    assert words(daemon) == {answers}
    named = {f"docs.g{number}" for number, state in states.items() if state != "live"}
    assert set(collections(daemon)) == {"docs", *named}
    if step == "rollback":
        daemon.configure(collections=[OLD], embedding={"backend": "hashing", "dimensions": 64})
    assert_index_equals_table(daemon, pg)
    physical = {g["name"] for g in generations(daemon).values()}
    assert {row[0] for row in ledger(daemon, "select distinct collection from manifest")} == physical


@pytest.mark.slow
def test_a_migration_is_recorded_while_the_daemon_is_down_and_done_when_it_is_up(
    pg: Database, new_daemon: NewDaemon
) -> None:
    # Given a daemon that refuses to start with a changed configuration
    create_table(pg, rows=30)
    pg.execute("create table others (id int primary key, body text)")
    pg.execute("insert into others values (1, 'other text')")
    others = {"name": "others", "table": "public.others", "text": "{body}"}
    daemon = new_daemon(pg, collections=[OLD, others])
    daemon.start()
    until(lambda: len(daemon.search("docs", "text number", k=20)) == 20, what="the first copy")
    assert daemon.terminate() == 0
    daemon.configure(collections=[NEW, others])
    daemon.start(ready=False)
    assert daemon.wait_exit() == 78

    # When a migration is begun, aborted and begun again without a daemon
    assert [g["state"] for g in migrate(daemon, "start")["generations"]] == ["building"]
    assert "aborted" not in migrate(daemon, "start", code=2)["error"]
    assert [g["state"] for g in migrate(daemon, "abort", "--collection", "docs")["generations"]] == ["dropping"]
    assert [g["generation"] for g in migrate(daemon, "start")["generations"]] == [3]
    assert migrate(daemon, "switch", "--collection", "docs", code=75)["error"] != ""
    daemon.start()

    # Then the daemon builds it beside what answers, and other collections do not notice
    assert words(daemon) == {"old"}
    wait_built(daemon, 3)
    migrate(daemon, "switch", "--collection", "docs")
    assert words(daemon) == {"new"}
    migrate(daemon, "finish", "--collection", "docs")
    pg.execute("insert into others values (2, 'another text')")
    assert_index_equals_table(daemon, pg)
    assert set(collections(daemon)) == {"docs", "others"}
    assert {row[0] for row in ledger(daemon, "select agent from checkpoint")} == {"indexer", "indexer:docs@3"}


@pytest.mark.slow
def test_a_commit_that_nobody_could_see_yet_is_in_the_new_generation(
    private_pg: Database, new_daemon: NewDaemon
) -> None:
    # Given a commit that is in the log, and so in the index, but that waits for a standby and no SELECT sees
    pg = private_pg
    create_table(pg, rows=5)
    daemon = new_daemon(pg, collections=[OLD])
    daemon.start()
    pg.execute("alter system set synchronous_commit = 'local'")
    pg.execute("alter system set synchronous_standby_names = 'nobody'")
    pg.execute("select pg_reload_conf()")
    held = pg.connect(options="-c synchronous_commit=on")
    until(lambda: pg.execute("show synchronous_standby_names") == [("nobody",)], what="the setting")
    writer = threading.Thread(target=held.execute, args=("insert into docs values (99, 'text held back', 99)",))
    writer.start()
    until(lambda: any("held" in hit["text"] for hit in daemon.search("docs", "text held back")), what="the commit")
    assert pg.execute("select count(*) from docs") == [(5,)]

    # When a new generation is begun, then it does not read the table yet
    daemon.configure(collections=[NEW])
    migrate(daemon, "start")
    pg.execute("update docs set n = n + 1")
    daemon.wait_applied(pg.execute("select pg_current_wal_lsn()::text")[0][0])
    assert generations(daemon)[2]["why_not"].startswith("its first copy has not begun")
    assert "not ready" in migrate(daemon, "switch", code=75)["error"]

    # But once everything can be seen, and then the commit is in it
    pg.execute("alter system set synchronous_standby_names = ''")
    pg.execute("select pg_reload_conf()")
    writer.join(30)
    wait_built(daemon)
    migrate(daemon, "switch")
    assert_index_equals_table(daemon, pg)


@pytest.mark.slow
def test_a_collection_that_comes_back_into_the_configuration_is_read_again(pg: Database, new_daemon: NewDaemon) -> None:
    # Given a collection that was migrated, and then left the configuration while its table changed
    create_table(pg, rows=20)
    pg.execute("create table others (id int primary key, body text)")
    others = {"name": "others", "table": "public.others", "text": "{body}"}
    daemon = new_daemon(pg, collections=[OLD, others])
    daemon.start()
    until(lambda: len(daemon.search("docs", "text number", k=20)) == 20, what="the first copy")
    daemon.configure(collections=[NEW, others])
    for step in ("start", "switch", "finish"):
        migrate(daemon, step, *(() if step == "start" else ("--collection", "docs")))
        wait_built(daemon)
    assert daemon.terminate() == 0
    daemon.configure(collections=[others])
    daemon.start()
    pg.execute("delete from docs where id <= 5")
    pg.execute("update docs set body = 'text number changed' where id = 7")
    pg.execute("insert into others values (1, 'other text')")
    assert_index_equals_table(daemon, pg)
    assert daemon.terminate() == 0

    # When it is back
    daemon.configure(collections=[NEW, others])
    daemon.start()

    # Then what changed meanwhile is in it
    until(lambda: len(daemon.search("docs", "text number", k=20)) == 15, what="the table to be read again")
    assert_index_equals_table(daemon, pg)


def test_a_generation_whose_model_is_gone_for_good_holds_nobody_up_and_is_built_again(
    pg: Database, fake_openai: FakeOpenAI, new_daemon: NewDaemon
) -> None:
    # Given a stream that holds little, and a new generation that is built and fresh
    create_table(pg, rows=10)
    daemon = new_daemon(pg, collections=[OLD], stream={"max_bytes": 1 << 20})
    daemon.start()
    until(lambda: len(daemon.search("docs", "text number", k=20)) == 10, what="the first copy")
    daemon.configure(collections=[NEW], embedding={"backend": "openai", "url": fake_openai.base_url, "model": "fake"})
    migrate(daemon, "start")
    wait_built(daemon)

    # When its model is taken away, and then more is written than the stream may hold
    fake_openai.script(server_error(404))
    pg.execute("update docs set body = 'text number changed' where id = 1")
    until(lambda: "stopped: " in generations(daemon)[2]["why_not"], what="it to stop")
    assert "has stopped: " in migrate(daemon, "switch", code=75)["error"]
    for part in range(6):
        pg.execute(f"update docs set body = repeat(md5(id::text || {part}), 1000) where id <= 10")
        daemon.wait_applied(pg.execute("select pg_current_wal_lsn()::text")[0][0])
    pg.execute("update docs set body = 'text number last ' || id where id > 5")
    pg.execute("update docs set body = 'text number ' || id where id <= 5")
    pg.execute("delete from docs where id = 2")

    # Then what answers searches is fresh, and nothing is full
    daemon.wait_applied(pg.execute("select pg_current_wal_lsn()::text")[0][0])
    assert daemon.problems() == []
    assert "StreamFull" not in daemon.log
    assert not any("docs@2" in resync["collections"] for resync in daemon.get("/resyncs").json()["resyncs"])

    # And after a restart it is copied again, to the last change
    assert daemon.terminate() == 0
    daemon.start()
    wait_built(daemon)
    migrate(daemon, "switch")
    assert_index_equals_table(daemon, pg)
    migrate(daemon, "finish")
    assert daemon.terminate() == 0
    ledger_file = daemon.config.ledger_path
    shutil.copy(ledger_file, daemon.folder / "older")
    daemon.start()
    pg.execute("update docs set n = n + 1")
    assert_index_equals_table(daemon, pg)
    assert daemon.terminate() == 0

    # And a ledger that is put back after the migration is named, and mended where that is allowed
    shutil.copy(daemon.folder / "older", ledger_file)
    daemon.start(ready=False)
    assert daemon.wait_exit() == 78
    assert "LEDGER_LOST: indexer:docs@2 is at " in daemon.log
    daemon.configure(source={"on_mismatch": "resync"})
    daemon.start()
    assert_index_equals_table(daemon, pg)
    assert daemon.metric("cdc_agent_chunks_embedded_total") == 0
