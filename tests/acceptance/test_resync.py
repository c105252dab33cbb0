"""Resync: what is asked for is read again, whoever asks and however; it can be paused, resumed, killed and ended."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.test_initial_copy import titles, writers
from tests.support.daemon import DaemonProcess
from tests.support.oracle import assert_index_equals_table, texts_of
from tests.support.postgres import Database
from tests.support.wait import until

NewDaemon = Callable[..., DaemonProcess]

DOCS = {"name": "docs", "table": "public.docs", "text": "{title}\n\n{body}", "metadata": ["n"]}
TITLES = {"name": "titles", "table": "public.docs", "text": "{title}"}
SCRIPT = Path(__file__).parents[2] / "scripts" / "resync.py"


def create_docs(pg: Database, rows: int) -> None:
    pg.execute("create table docs (id int primary key, title text, body text, n int)")
    pg.execute(f"insert into docs select i, 'title ' || i, 'body ' || i, i from generate_series(1, {rows}) i")


def silently(pg: Database, *statements: str) -> None:
    """Change rows so that the log says nothing of ours: the publication is without the table meanwhile."""
    pg.execute(f"alter publication \"{pg.slot_name}\" set (publish = 'truncate')")
    for statement in statements:
        pg.execute(statement)
    pg.execute(f"alter publication \"{pg.slot_name}\" set (publish = 'insert, update, delete, truncate')")


def ask(daemon: DaemonProcess, **wanted: Any) -> dict[str, Any]:
    """Ask for one resync."""
    answer = daemon.post("/resyncs", wanted)
    assert answer.status_code == 202, answer.text
    (resync,) = answer.json()["resyncs"]
    return dict(resync)


def state(daemon: DaemonProcess, resync: dict[str, Any]) -> dict[str, Any]:
    return next(dict(r) for r in daemon.get("/resyncs").json()["resyncs"] if r["id"] == resync["id"])


def await_state(daemon: DaemonProcess, resync: dict[str, Any], wanted: str = "done") -> dict[str, Any]:
    until(lambda: state(daemon, resync)["state"] == wanted, 60.0, f"the resync to be {wanted}")
    return state(daemon, resync)


def first_copy_is_done(daemon: DaemonProcess) -> bool:
    return daemon.status()["resyncs"] == []


def started(pg: Database, new_daemon: NewDaemon, rows: int = 100, **settings: Any) -> DaemonProcess:
    create_docs(pg, rows)
    daemon = new_daemon(pg, collections=[DOCS], **settings)
    daemon.start()
    until(lambda: first_copy_is_done(daemon), 60.0, "the first copy")
    return daemon


# -- what is read ------------------------------------------------------------------------------------------------


@pytest.mark.postgres(versions=[15], plugin="pgoutput")
def test_only_the_rows_that_a_condition_wants_are_read_and_nothing_is_swept_out(
    pg: Database, new_daemon: NewDaemon
) -> None:
    # Given rows that changed, and rows that went away, without our knowing
    daemon = started(pg, new_daemon)
    silently(pg, "update docs set title = 'new 100%'", "delete from docs where n between 11 and 20")

    # When some of them are read again
    done = await_state(daemon, ask(daemon, table="public.docs", where="n between 1 and 20 and title like '%100\\%'"))

    # Then those are as in the table, and what the condition did not find is left alone
    assert (done["rows_done"], done["where"]) == (10, "n between 1 and 20 and title like '%100\\%'")
    found = titles(daemon)
    assert {found[str(key)] for key in range(1, 11)} == {"new 100%"}
    assert found["15"] == "title 15"
    assert found["21"] == "title 21"
    assert done["rows_estimated"] >= 1


@pytest.mark.postgres(versions=[15], plugin="pgoutput")
def test_only_the_collection_that_is_named_is_touched(pg: Database, new_daemon: NewDaemon) -> None:
    # Given two collections of one table, and rows that changed without our knowing
    create_docs(pg, 20)
    daemon = new_daemon(pg, collections=[DOCS, TITLES])
    daemon.start()
    until(lambda: first_copy_is_done(daemon), what="the first copies")
    silently(pg, "update docs set title = 'new'")

    # When one of them is read again
    await_state(daemon, ask(daemon, collection="titles"))

    # Then the other is as it was
    assert set(texts_of(daemon.config, "titles").values()) == {"new"}
    assert "new" not in set(titles(daemon).values())

    # And a resync of the table mends both
    await_state(daemon, ask(daemon, table="public.docs"))
    assert_index_equals_table(daemon, pg)


@pytest.mark.postgres(versions=[15], plugin="pgoutput")
def test_a_rewrite_gives_every_chunk_a_new_id_and_embeds_nothing(pg: Database, new_daemon: NewDaemon) -> None:
    daemon = started(pg, new_daemon)
    before, embedded = set(texts_of(daemon.config, "docs")), daemon.metric("cdc_agent_chunks_embedded_total")

    await_state(daemon, ask(daemon, table="public.docs", rewrite=True))

    assert_index_equals_table(daemon, pg)
    assert not before & set(texts_of(daemon.config, "docs"))
    assert daemon.metric("cdc_agent_chunks_embedded_total") == embedded


REFUSED = (
    ({"where": "nothing > 1"}, 'column "nothing" does not exist'),
    ({"where": "n = 'x'"}, "invalid input syntax for type integer"),
    ({"where": "true) union all select (true"}, "parenthesis"),
    ({"where": "true; drop table docs"}, "must do without"),
    ({"where": "true --"}, "must do without"),
    ({"keys": [["1", "2"]]}, "a key of public.docs has 1 columns: id"),
    ({"table": "public.nothing"}, "no collection is made of table public.nothing"),
)


@pytest.mark.postgres(versions=[15], plugin="pgoutput")
def test_what_cannot_be_read_is_refused_in_the_servers_words(pg: Database, new_daemon: NewDaemon) -> None:
    daemon = started(pg, new_daemon, rows=1)

    for wanted, said in REFUSED:
        answer = daemon.post("/resyncs", {"table": "public.docs", **wanted})

        assert answer.status_code == 400
        assert said in answer.json()["error"]
    assert first_copy_is_done(daemon)


# -- pause, resume, cancel ---------------------------------------------------------------------------------------


@pytest.mark.postgres(versions=[15], plugin="pgoutput")
def test_a_paused_resync_stands_still_through_a_restart_and_goes_on_where_it_was(
    pg: Database, new_daemon: NewDaemon
) -> None:
    # Given a resync that is paused in the middle, over rows of which some changed or went away unseen
    daemon = started(pg, new_daemon, rows=2_000, resync={"rows_per_chunk": 20})
    silently(pg, "update docs set title = 'new'", "delete from docs where n % 7 = 0")
    resync = ask(daemon, table="public.docs")
    until(lambda: state(daemon, resync)["rows_done"] >= 100, what="some pages")
    assert daemon.post(f"/resyncs/{resync['id']}/pause").json()["state"] == "paused"
    assert daemon.status()["resyncs"][0]["state"] == "paused"

    # When the daemon dies, and comes back
    daemon.kill()
    daemon.start()
    lsn = pg.execute("select pg_current_wal_lsn()::text")[0][0]
    daemon.wait_applied(lsn)

    # Then it is paused still, and somebody else's keys are read meanwhile
    paused = state(daemon, resync)
    assert paused["state"] == "paused"
    assert paused["rows_done"] < 1_700
    await_state(daemon, ask(daemon, table="public.docs", keys=[["2000"]]))
    assert titles(daemon)["2000"] == "new"

    # And once it is resumed it goes on and comes to the table
    read = daemon.metric("cdc_agent_resync_rows_total")
    assert daemon.post(f"/resyncs/{resync['id']}/resume").json()["state"] == "running"
    await_state(daemon, resync)
    assert daemon.metric("cdc_agent_resync_rows_total") - read <= 1_715 - paused["rows_done"] + 60
    assert_index_equals_table(daemon, pg)


@pytest.mark.postgres(versions=[15], plugin="pgoutput")
def test_a_cancelled_resync_sweeps_nothing_out_and_stays_cancelled(pg: Database, new_daemon: NewDaemon) -> None:
    # Given a resync in its middle, over a table that lost rows unseen
    daemon = started(pg, new_daemon, rows=2_000, resync={"rows_per_chunk": 20})
    silently(pg, "delete from docs where id > 1900")
    resync = ask(daemon, table="public.docs")
    until(lambda: state(daemon, resync)["rows_done"] >= 100, what="some pages")

    # When it is cancelled
    assert daemon.post(f"/resyncs/{resync['id']}/cancel").json()["state"] == "cancelled"

    # Then it cannot be moved any more, and nothing was removed
    for action in ("pause", "resume", "cancel"):
        answer = daemon.post(f"/resyncs/{resync['id']}/{action}")
        assert answer.status_code == 400
        assert f"resync {resync['id']} is cancelled" in answer.json()["error"]
    daemon.wait_applied(pg.execute("select pg_current_wal_lsn()::text")[0][0])
    assert state(daemon, resync)["state"] == "cancelled"
    assert len(titles(daemon)) == 2_000


# -- signals -----------------------------------------------------------------------------------------------------


@pytest.mark.postgres(versions=[15], plugin="all")
def test_a_signal_by_sql_asks_for_a_resync(pg: Database, new_daemon: NewDaemon) -> None:
    # Given rows in the index that nobody told us are gone
    create_docs(pg, 30)
    daemon = new_daemon(pg, collections=[DOCS])
    daemon.start()
    until(lambda: first_copy_is_done(daemon), what="the first copy")

    # When somebody who has only SQL asks, in good words and in bad ones
    signal = "select pg_logical_emit_message(true, 'cdc_agent.signal', %s)"
    for bad in (
        "no json",
        "[]",
        '{"type": "explode"}',
        '{"type": "resync", "table": "nothing"}',
        '{"type": "resync", "table": "public.docs", "where": "pg_sleep(9) is null"}',
    ):
        pg.execute(signal, [bad])
    pg.execute(signal, [json.dumps({"type": "resync", "table": "public.docs", "keys": [["1"], ["99"]]})])
    pg.execute(signal, [json.dumps({"type": "resync", "table": "public.docs", "where": "n > 20", "reason": "why not"})])

    # Then the good ones are followed, and the bad ones are in the log
    until(lambda: len(daemon.get("/resyncs").json()["resyncs"]) == 3, what="the signals to be heard")
    until(lambda: first_copy_is_done(daemon), what="the resyncs to end")
    _, keys, where = daemon.get("/resyncs").json()["resyncs"]
    assert (keys["state"], keys["rows_done"], keys["reason"]) == ("done", 1, "signal")
    assert (where["state"], where["rows_done"], where["reason"]) == ("done", 10, "why not")
    assert daemon.log.count("signal ignored") == 5
    assert_index_equals_table(daemon, pg)


# -- by hand, with and without a daemon --------------------------------------------------------------------------


def backfill(daemon: DaemonProcess, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "-c", str(daemon.path), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


@pytest.mark.postgres(versions=[15], plugin="pgoutput")
def test_the_backfilling_script_works_with_the_daemon_and_without(pg: Database, new_daemon: NewDaemon) -> None:
    # Given rows that changed without our knowing
    daemon = started(pg, new_daemon)
    silently(pg, "update docs set title = 'once'", "delete from docs where n < 10")

    # When the script runs beside the daemon
    done = backfill(daemon, "--table", "public.docs")

    # Then it shows progress, waits, and the index is the table
    assert done.returncode == 0, done.stderr
    assert "public.docs: done, 91 of about" in done.stderr
    assert_index_equals_table(daemon, pg)

    # When it runs again with the daemon stopped, and more has changed, seen and unseen
    silently(pg, "update docs set title = 'twice' where n < 50")
    assert daemon.terminate() == 0
    pg.execute("update docs set title = 'thrice' where n > 90")
    done = backfill(daemon, "--table", "public.docs", "--where", "n < 50", "--json")

    # Then it did the work by itself, and has stopped
    assert done.returncode == 0, done.stderr
    (resync,) = json.loads(done.stdout)["resyncs"]
    assert (resync["state"], resync["rows_done"]) == ("done", 40)
    assert daemon.problems() is None
    daemon.start()
    assert_index_equals_table(daemon, pg)

    # And what makes no sense is refused without a daemon, too
    assert daemon.terminate() == 0
    refused = backfill(daemon, "--table", "public.docs", "--where", "nothing = 1")
    assert refused.returncode == 2
    assert 'column "nothing" does not exist' in refused.stderr


# -- keys of every kind ------------------------------------------------------------------------------------------

_C, _ICU = 'text collate "C"', "text collate ci"
KINDS = {
    "c_text": ([_C], "select chr(32 + i % 95) || i from generate_series(1, 120) i"),
    "icu_text": (
        [_ICU],
        "select case i % 3 when 0 then 'Ä' when 1 then 'b' else 'É' end || i from generate_series(1, 120) i",
    ),
    "uuid": (["uuid"], "select md5(i::text)::uuid from generate_series(1, 120) i"),
    "timestamptz": (["timestamptz"], "select now() - i * interval '37 hours' from generate_series(1, 120) i"),
    "numeric": (["numeric"], "select i / 7.0 from generate_series(-60, 60) i"),
    "citext": (["citext"], "select case i % 2 when 0 then 'A' else 'b' end || i from generate_series(1, 120) i"),
    "composite": (
        [_ICU, "bigint", _C],
        "select chr(65 + i % 3), i % 5, 'x' || i from generate_series(1, 120) i",
    ),
}


@pytest.mark.postgres(versions=[15], plugin="pgoutput")
@pytest.mark.parametrize("kind", KINDS)
def test_keys_of_every_kind_are_paged_in_the_order_of_their_index(
    pg: Database, new_daemon: NewDaemon, kind: str
) -> None:
    # Given a table with such a key, under names that are no plain identifiers
    types, rows = KINDS[kind]
    pg.execute("create extension if not exists citext")
    pg.execute("create collation ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false)")
    names = [f'"K {i}%"' for i in range(len(types))]
    columns = ", ".join(f"{name} {of}" for name, of in zip(names, types, strict=True))
    pg.execute(f"create table keyed ({columns}, body text, primary key ({', '.join(names)}))".replace("%", "%%"))
    source = ", ".join(f"x{i}" for i in range(len(types)))
    pg.execute(f"insert into keyed select {source}, 'body' from ({rows}) s({source})")
    daemon = new_daemon(
        pg,
        collections=[{"name": "keyed", "table": "public.keyed", "text": "{body}"}],
        resync={"rows_per_chunk": 7},
    )

    # When it is copied, and read again after rows came, went and changed unseen, and a column was renamed
    daemon.start()
    until(lambda: first_copy_is_done(daemon), 60.0, "the first copy")
    assert_index_equals_table(daemon, pg)
    read = daemon.metric("cdc_agent_resync_rows_total")
    count = pg.execute("select count(*) from keyed")[0][0]
    assert read == count
    silently(
        pg,
        "update keyed set body = 'new'",
        "delete from keyed where ctid in (select ctid from keyed order by random() limit 30)",
    )
    pg.execute(f"alter table keyed rename column {names[0]} to renamed".replace("%", "%%"))
    resync = await_state(daemon, ask(daemon, table="public.keyed"))

    # Then every row was read exactly once, and the index is the table
    assert resync["rows_done"] == count - 30
    assert_index_equals_table(daemon, pg)


# -- death -------------------------------------------------------------------------------------------------------


@pytest.mark.postgres(versions=[15], plugin="pgoutput")
@pytest.mark.parametrize(
    "failpoint",
    ["resync_before_mark:kill@3", "resync_after_mark:kill@3", "resync_after_append:kill@3", "resync_done:kill"],
)
@pytest.mark.fault("killed-in-a-resync")
def test_a_resync_that_is_killed_at_a_page_goes_on_at_that_page(
    pg: Database, new_daemon: NewDaemon, failpoint: str
) -> None:
    # Given rows that changed and went away unseen
    daemon = started(pg, new_daemon, rows=200, resync={"rows_per_chunk": 20})
    silently(pg, "update docs set title = 'new' where n % 3 = 0", "delete from docs where n % 5 = 0")
    assert daemon.terminate() == 0

    # When they are read again, and the daemon dies at one of its pages
    daemon.start(failpoint=failpoint)
    resync = ask(daemon, table="public.docs")
    assert daemon.wait_exit() == -9
    before = pg.execute("select 1")
    assert before
    daemon.start()
    await_state(daemon, resync)

    # Then it ends, few rows were read twice, and the index is the table
    assert daemon.metric("cdc_agent_resync_rows_total") <= 160
    assert_index_equals_table(daemon, pg)


@pytest.mark.postgres(versions=[15], plugin="pgoutput")
@pytest.mark.parametrize("how", ["truncate", "sweep"])
@pytest.mark.fault("killed-in-a-resync", "truncated")
def test_a_removal_of_very_many_documents_is_exact_when_it_is_killed_in_the_middle(
    pg: Database, new_daemon: NewDaemon, how: str
) -> None:
    # Given more documents than are removed at a time
    daemon = started(pg, new_daemon, rows=3_500)
    assert daemon.terminate() == 0

    # When they all go away, some come back, and the daemon dies between two pages of it, twice
    if how == "truncate":
        pg.execute("truncate docs")
    else:
        silently(pg, "delete from docs")
    pg.execute("insert into docs select i, 'back', 'again', i from generate_series(3400, 3600) i")
    for passage in (3, 2):
        daemon.start(failpoint=f"after_flip:kill@{passage}", ready=False)
        if how == "sweep" and passage == 3:
            until(lambda: daemon.problems() is not None, 60.0, "the daemon to answer")
            try:
                daemon.post("/resyncs", {"table": "public.docs"})
            except OSError:
                pass
        assert daemon.wait_exit() == -9
    daemon.start()

    # Then what is left is the table
    until(lambda: first_copy_is_done(daemon), 60.0, "the resync to end")
    assert_index_equals_table(daemon, pg)


@pytest.mark.postgres(versions=[15], plugin="pgoutput")
def test_live_changes_that_need_their_rows_do_not_wait_behind_a_table_that_is_locked(
    pg: Database, new_daemon: NewDaemon
) -> None:
    # Given two tables, one of whose values the log leaves out when they do not change
    create_docs(pg, 5)
    pg.execute("create table others (id int primary key, title text, body text)")
    pg.execute("alter table others alter body set storage external")
    pg.execute("insert into others select i, 'title', repeat(md5(i::text), 100) from generate_series(1, 8) i")
    others = {"name": "others", "table": "public.others", "text": "{title}\n\n{body}"}
    daemon = new_daemon(pg, collections=[DOCS, others], retry={"initial_s": 0.01, "maximum_s": 0.01})
    daemon.start()
    until(lambda: first_copy_is_done(daemon), 60.0, "the first copies")

    # When a resync waits for the other table, again and again as long as a read may wait
    with pg.connect(autocommit=False) as holder:
        holder.execute("lock table docs in access exclusive mode")
        waiting = ask(daemon, table="public.docs")
        until(lambda: "lock" in str(daemon.problems()), 30.0, "the resync to wait")
        reread = daemon.metric("cdc_agent_reread_rows_total")
        began = time.monotonic()
        for key in range(1, 9):
            pg.execute("update others set title = 'changed' where id = %s", (key,))
            daemon.wait_applied(pg.execute("select pg_current_wal_lsn()::text")[0][0])
        took = time.monotonic() - began
        holder.rollback()

    # Then changes that need their rows went past it: behind it each would have waited for up to three seconds
    assert daemon.metric("cdc_agent_reread_rows_total") - reread == 8
    assert took < 12.0
    await_state(daemon, waiting)


# -- many rows ---------------------------------------------------------------------------------------------------


@pytest.mark.postgres(versions=[15], plugin="pgoutput")
@pytest.mark.fault("not-yet-visible")
def test_a_resync_does_not_undo_a_commit_that_readers_do_not_see_yet(
    private_pg: Database, new_daemon: NewDaemon
) -> None:
    """The visibility race of watermarks, at an ad-hoc resync by condition and by keys."""
    # Given a commit that is in the log and waits for a standby that never answers
    pg = private_pg
    daemon = started(pg, new_daemon, rows=30, resync={"rows_per_chunk": 10})
    pg.execute(f"alter database {pg.name} set synchronous_commit = local")
    assert daemon.terminate() == 0
    daemon.start()
    pg.hold_commits()
    waiting = pg.connect(autocommit=False)
    waiting.execute("set synchronous_commit = on")
    waiting.execute("update docs set title = 'NEW' where id = 5")
    waiting.execute("delete from docs where id = 6")
    waiting.execute("insert into docs values (99, 'NEW', 'b', 1)")
    commit = threading.Thread(target=waiting.commit)
    commit.start()
    until(lambda: titles(daemon).get("5") == "NEW", what="the change to be in the index")

    # When the rows are read again meanwhile, and show the old state
    for wanted in ({"where": "n < 20"}, {"keys": [["5"], ["6"], ["99"]]}, {"rewrite": True, "where": "n > 20"}):
        await_state(daemon, ask(daemon, table="public.docs", **wanted))
        found = titles(daemon)

        # Then the index has not gone back
        assert found["5"] == "NEW"
        assert found["99"] == "NEW"
        assert "6" not in found
    pg.execute("alter system reset synchronous_standby_names")
    pg.execute("select pg_reload_conf()")
    commit.join()
    assert_index_equals_table(daemon, pg)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.postgres(versions=[15], plugin="pgoutput")
@pytest.mark.fault("killed-in-a-resync")
def test_a_resync_of_very_many_rows_under_writers_survives_five_deaths(pg: Database, new_daemon: NewDaemon) -> None:
    # Given 200,000 rows, most of them outside of the collection, so that it is the reading that is tested
    rows = 200_000
    pg.execute("create table docs (id int primary key, title text, body text, n int)")
    pg.execute(
        "insert into docs select i * 10, 'title ' || i, 'body', case when i % 100 = 0 then 1 else 0 end "
        f"from generate_series(1, {rows}) i"
    )
    pg.execute("analyze docs")
    daemon = new_daemon(pg, collections=[{**DOCS, "where": "n <> 0"}])
    read = 0.0

    # When it is killed five times on its way, and others write all over the table meanwhile
    with writers(pg, 2):
        for death in range(5):
            daemon.start(ready=False)
            until(lambda: daemon.problems() is not None, 60.0, "the daemon to answer")
            enough = rows * (death + 1) / 7 - read
            until(lambda enough=enough: copied(daemon) >= enough, 120.0, "some more to be read")  # type: ignore[misc]
            read += copied(daemon)
            assert not first_copy_is_done(daemon)
            daemon.kill()
        daemon.start()
        until(lambda: first_copy_is_done(daemon), 240.0, "the rest to be read")
        read += copied(daemon)

    # Then every row was read about once, and the index is the table
    assert read <= 1.1 * max(rows, pg.execute("select count(*) from docs")[0][0])
    daemon.wait_applied(pg.execute("select pg_current_wal_lsn()::text")[0][0])
    wanted = sorted((str(key), f"{title}\n\n{body}") for key, title, body in pg.execute(WANTED))
    # Not the oracle: it asks Postgres about every single row.
    until(lambda: indexed(daemon) == wanted, 20.0, "the index to equal the table")


WANTED = "select id, title, body from docs where n <> 0"


def indexed(daemon: DaemonProcess) -> list[tuple[str, str]]:
    """Keys and texts."""
    texts = texts_of(daemon.config, "docs")
    return sorted((chunk.partition("#")[0].partition(":")[2], text) for chunk, text in texts.items())


def copied(daemon: DaemonProcess) -> float:
    return daemon.metric("cdc_agent_resync_rows_total")
