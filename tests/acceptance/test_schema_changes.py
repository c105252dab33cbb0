"""Changes of tables that write no row into the log: noticed, named, and mended without embedding what is the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from psycopg import sql

from tests.support.daemon import DaemonProcess
from tests.support.oracle import assert_index_equals_table, stored, texts_of
from tests.support.postgres import Database
from tests.support.wait import until

NewDaemon = Callable[..., DaemonProcess]

DOCS = {"name": "docs", "table": "public.docs", "text": "{body}", "metadata": ["kind"]}
OTHERS = {"name": "others", "table": "public.others", "text": "{body}"}
COLUMNS = "id int primary key, body text, kind text, unused int"
BOTH = pytest.mark.postgres(versions=[15], plugin="all")
PGOUTPUT = pytest.mark.postgres(versions=[15], plugin="pgoutput")
ON_EACH_PLUGIN_AND_18 = pytest.mark.postgres(versions=[15, 18], plugin="all")
#: Often, so that no test waits; the daemon decides by what the server writes.
INTERVAL_S = 0.2


def start(
    pg: Database,
    new_daemon: NewDaemon,
    *collections: dict[str, Any],
    mode: str = "stop",
    interval_s: float = INTERVAL_S,
) -> DaemonProcess:
    """A daemon that has copied its tables."""
    source = {"schema_check_interval_s": interval_s, "on_mismatch": mode}
    daemon = new_daemon(pg, collections=list(collections) or [DOCS], source=source)
    daemon.start()
    for found in daemon.settings["collections"]:
        assert_index_equals_table(daemon, pg, only=[found["name"]])
    copied(daemon)
    return daemon


def copied(daemon: DaemonProcess) -> None:
    """Wait until no resync is under way."""
    until(lambda: daemon.status()["resyncs"] == [], 60.0, "the resyncs to be done")


def make_docs(pg: Database, name: str = "docs", count: int = 30, more: str = "") -> None:
    pg.execute(f"create table {name} ({COLUMNS}) {more}")
    fill(pg, name, 1, count)


def fill(pg: Database, name: str, first: int, last: int) -> None:
    pg.execute(
        f"insert into {name} select i, 'words of document ' || i, 'kind' || i %% 3, i"
        " from generate_series(%s::int, %s::int) i",
        (first, last),
    )


def changes(daemon: DaemonProcess, difference: str) -> float:
    return daemon.metric("cdc_agent_table_changes_total", difference=difference)


def await_change(daemon: DaemonProcess, *differences: str) -> None:
    """Wait until the differences are noticed and what they ask for is done."""
    for difference in differences:
        until(lambda d=difference: changes(daemon, d) >= 1, 30.0, f"{difference} to be noticed\n{daemon.log[-3000:]}")
    until(lambda: "resync starts" in daemon.log, 10.0)
    copied(daemon)


def embedded(daemon: DaemonProcess) -> float:
    return daemon.metric("cdc_agent_chunks_embedded_total")


def states(daemon: DaemonProcess) -> set[str]:
    """The states that /readyz complains of."""
    return {problem["message"].partition(":")[0] for problem in daemon.problems() or []}


def while_running(daemon: DaemonProcess, act: Callable[[], object]) -> None:
    act()


def while_down(daemon: DaemonProcess, act: Callable[[], object]) -> None:
    assert daemon.terminate() == 0
    act()
    daemon.start()


WHEN = pytest.mark.parametrize("when", [while_running, while_down])


@ON_EACH_PLUGIN_AND_18
@WHEN
@pytest.mark.fault("table-rewritten")
def test_a_column_that_is_rewritten_is_read_again(
    pg: Database, new_daemon: NewDaemon, when: Callable[..., None]
) -> None:
    make_docs(pg)
    daemon = start(pg, new_daemon)

    # When every value becomes another without an update
    when(daemon, lambda: pg.execute("alter table docs alter body type varchar(200) using upper(body)"))

    # Then the index follows
    await_change(daemon, "rewritten", "columns")
    assert_index_equals_table(daemon, pg)
    assert daemon.search("docs", "WORDS", k=1)[0]["text"].startswith("WORDS")


@BOTH
@pytest.mark.fault("table-rewritten")
def test_a_column_that_comes_with_values_is_read_without_embedding(pg: Database, new_daemon: NewDaemon) -> None:
    # Given a column in the metadata
    make_docs(pg)
    daemon = start(pg, new_daemon)
    before = embedded(daemon)

    # When it is replaced by one that has another value in every row
    pg.execute("alter table docs drop column kind, add column kind text default md5(random()::text)")

    # Then the metadata follows, and nothing is embedded
    await_change(daemon, "rewritten", "columns")
    assert_index_equals_table(daemon, pg)
    assert embedded(daemon) == before


@BOTH
def test_a_column_that_nobody_uses_costs_nothing(pg: Database, new_daemon: NewDaemon) -> None:
    make_docs(pg)
    daemon = start(pg, new_daemon)
    resyncs = len(daemon.get("/resyncs").json()["resyncs"])

    # When columns that no collection uses come and go, and then one that it uses is rewritten
    pg.execute("alter table docs drop column unused, add column fresh int")
    pg.execute("update docs set body = 'after' where id = 1")
    assert_index_equals_table(daemon, pg)
    pg.execute("alter table docs alter body type varchar(200) using upper(body)")

    # Then only the last has the table read again
    await_change(daemon, "rewritten")
    assert_index_equals_table(daemon, pg)
    assert len(daemon.get("/resyncs").json()["resyncs"]) == resyncs + 1


def run_together(pg: Database, *statements: str) -> None:
    """All statements in one transaction."""
    with pg.connect(autocommit=False) as connection:
        for statement in statements:
            connection.execute(statement)  # type: ignore[call-overload]


# -- another table under the name -----------------------------------------------------------------------------


@ON_EACH_PLUGIN_AND_18
@WHEN
@pytest.mark.fault("table-recreated")
def test_a_table_that_is_dropped_and_made_again_is_followed(
    pg: Database, new_daemon: NewDaemon, when: Callable[..., None]
) -> None:
    # Given an index of a table
    make_docs(pg)
    daemon = start(pg, new_daemon)
    before = embedded(daemon)

    # When the table is made again, with the same rows but for two
    def replace() -> None:
        run_together(pg, "drop table docs", f"create table docs ({COLUMNS})")
        fill(pg, "docs", 1, 28)

    when(daemon, replace)
    await_change(daemon, "replaced")

    # Then the index equals it, without embedding anything
    assert_index_equals_table(daemon, pg)
    assert embedded(daemon) <= before
    assert states(daemon) == set()

    # And it is followed from now on, also by the next life
    fill(pg, "docs", 101, 105)
    pg.execute("update docs set body = 'changed' where id = 1")
    pg.execute("delete from docs where id = 2")
    assert_index_equals_table(daemon, pg)
    while_down(daemon, lambda: pg.execute("update docs set body = 'changed again' where id = 1"))
    assert_index_equals_table(daemon, pg)


@BOTH
@WHEN
@pytest.mark.fault("table-renamed")
def test_two_tables_that_are_swapped_by_renaming(
    pg: Database, new_daemon: NewDaemon, when: Callable[..., None]
) -> None:
    # Given a table, and one beside it that was prepared to take its place
    make_docs(pg)
    make_docs(pg, "docs_new", 25)
    pg.execute("update docs_new set body = 'prepared' where id = 7")
    daemon = start(pg, new_daemon)

    # When they are swapped, and both go on changing
    def swap() -> None:
        run_together(pg, "alter table docs rename to docs_old", "alter table docs_new rename to docs")
        pg.execute("update docs set body = 'in the new one' where id = 1")
        pg.execute("update docs_old set body = 'in the old one' where id in (1, 2)")
        pg.execute("insert into docs_old values (900, 'only in the old one', 'x', 1)")

    when(daemon, swap)
    await_change(daemon, "replaced")

    # Then the index is that of the table which has the name now
    assert_index_equals_table(daemon, pg)
    fill(pg, "docs", 200, 203)
    pg.execute("update docs_old set body = 'still in the old one'")
    assert_index_equals_table(daemon, pg)


@BOTH
@pytest.mark.fault("table-renamed")
def test_two_watched_tables_that_are_swapped_by_renaming(pg: Database, new_daemon: NewDaemon) -> None:
    # Given two tables that are both watched
    make_docs(pg)
    make_docs(pg, "others", 12)
    pg.execute("update others set body = 'other words ' || id")
    daemon = start(pg, new_daemon, DOCS, OTHERS)

    # When they swap their names
    run_together(
        pg,
        "alter table docs rename to spare",
        "alter table others rename to docs",
        "alter table spare rename to others",
    )
    until(lambda: changes(daemon, "replaced") == 2, 30.0, "both to be noticed")
    copied(daemon)

    # Then each index is that of the table which has its name, now and later
    assert_index_equals_table(daemon, pg)
    pg.execute("update docs set body = 'of docs' where id = 3")
    pg.execute("update others set body = 'of others' where id = 3")
    assert_index_equals_table(daemon, pg)


@BOTH
@WHEN
@pytest.mark.fault("table-renamed")
def test_a_renamed_table_is_followed_under_its_configured_name(
    pg: Database, new_daemon: NewDaemon, when: Callable[..., None]
) -> None:
    # Given an index of a table
    make_docs(pg)
    daemon = start(pg, new_daemon)
    before = embedded(daemon)
    ids = set(texts_of(daemon.config, "docs"))

    # When the table gets another name, and changes
    when(daemon, lambda: pg.execute("alter table docs rename to papers"))
    until(lambda: "table renamed" in daemon.log or changes(daemon, "renamed") >= 1, 30.0, "the name to be noticed")
    copied(daemon)
    assert set(texts_of(daemon.config, "docs")) == ids
    assert embedded(daemon) <= before
    pg.execute("update papers set body = 'of a renamed table' where id = 3")

    # Then its documents stay what they are, and change with it
    until(lambda: "of a renamed table" in texts_of(daemon.config, "docs").values(), 30.0, "the change")
    assert states(daemon) == set()

    # And when it has its name again, everything is as it should be
    when(daemon, lambda: pg.execute("alter table papers rename to docs"))
    pg.execute("delete from docs where id = 4")
    assert_index_equals_table(daemon, pg)


@BOTH
@pytest.mark.fault("table-renamed")
def test_a_table_that_moves_to_another_schema_is_followed(pg: Database, new_daemon: NewDaemon) -> None:
    make_docs(pg)
    daemon = start(pg, new_daemon)

    # When the table moves, and changes
    run_together(pg, "create schema archive", "alter table docs set schema archive")
    until(lambda: "table renamed" in daemon.log or changes(daemon, "renamed") >= 1, 30.0, "the move to be noticed")
    copied(daemon)
    pg.execute("update archive.docs set body = 'of a table that moved' where id = 3")

    # Then its documents follow
    until(lambda: "of a table that moved" in texts_of(daemon.config, "docs").values(), 30.0, "the change")
    pg.execute("alter table archive.docs set schema public")
    pg.execute("delete from docs where id = 4")
    assert_index_equals_table(daemon, pg)


# -- partitions -----------------------------------------------------------------------------------------------


def make_parts(pg: Database) -> None:
    pg.execute(f"create table docs ({COLUMNS}) partition by range (id)")
    pg.execute("create table docs_low partition of docs for values from (0) to (100)")
    pg.execute("create table docs_high partition of docs for values from (100) to (200)")
    fill(pg, "docs", 90, 120)


@ON_EACH_PLUGIN_AND_18
@WHEN
@pytest.mark.fault("partitions")
def test_a_partition_that_is_attached_with_rows_is_read(
    pg: Database, new_daemon: NewDaemon, when: Callable[..., None]
) -> None:
    # Given a partitioned table, and a table beside it whose rows the daemon has seen go by and left alone
    make_parts(pg)
    make_docs(pg, "coming", 0)
    daemon = start(pg, new_daemon)
    fill(pg, "coming", 300, 320)
    assert_index_equals_table(daemon, pg)

    # When that becomes a partition
    when(daemon, lambda: pg.execute("alter table docs attach partition coming for values from (300) to (400)"))
    await_change(daemon, "partitions")

    # Then its rows are in the index, and its changes are followed
    assert_index_equals_table(daemon, pg)
    fill(pg, "docs", 330, 335)
    pg.execute("update docs set body = 'changed after it came' where id = 300")
    pg.execute("delete from coming where id = 301")
    assert_index_equals_table(daemon, pg)


@BOTH
@WHEN
@pytest.mark.parametrize("how", ["alter table docs detach partition docs_low", "drop table docs_low"])
@pytest.mark.fault("partitions")
def test_rows_of_a_partition_that_leaves_leave_the_index(
    pg: Database, new_daemon: NewDaemon, when: Callable[..., None], how: str
) -> None:
    make_parts(pg)
    daemon = start(pg, new_daemon)
    before = embedded(daemon)

    # When a partition leaves, and goes on changing if it still can
    def leave() -> None:
        pg.execute("update docs set body = 'shortly before' where id = 91")
        pg.execute(how)
        if "detach" in how:
            fill(pg, "docs_low", 10, 20)

    when(daemon, leave)
    await_change(daemon, "partitions")

    # Then its documents are gone, and nothing was embedded for that; but wal2json knows tables by name only, and what
    # was written to the partition before its leaving was noticed passed for ours.
    assert_index_equals_table(daemon, pg)
    strays = 11 if pg.plugin == "wal2json" and "detach" in how else 0
    assert embedded(daemon) <= before + 1 + strays
    pg.execute("update docs set body = 'changed' where id = 110")
    assert_index_equals_table(daemon, pg)


# -- the publication ------------------------------------------------------------------------------------------


def leave_and_join(pg: Database) -> None:
    """Changes that nobody sends, because the table is out of the publication meanwhile."""
    publication = sql.Identifier(pg.slot_name).as_string(None)
    pg.execute(f"alter publication {publication} drop table docs")
    fill(pg, "docs", 500, 510)
    pg.execute("delete from docs where id = 1")
    pg.execute(f"alter publication {publication} add table docs")


@pytest.mark.postgres(versions=[15, 18])
@WHEN
@pytest.mark.fault("publication-altered")
def test_a_table_that_was_out_of_the_publication_is_read_again(
    pg: Database, new_daemon: NewDaemon, when: Callable[..., None]
) -> None:
    make_docs(pg)
    make_docs(pg, "others", 5)
    daemon = start(pg, new_daemon, DOCS, OTHERS)
    before = embedded(daemon)

    when(daemon, lambda: leave_and_join(pg))
    await_change(daemon, "rejoined_publication")

    assert_index_equals_table(daemon, pg)
    assert embedded(daemon) - (before if when is while_running else 0) == 11
    assert {r["table"] for r in resyncs_of(daemon, "rejoined")} == {"public.docs"}


def resyncs_of(daemon: DaemonProcess, reason: str) -> list[dict[str, Any]]:
    return [r for r in daemon.get("/resyncs").json()["resyncs"] if reason in r["reason"]]


@PGOUTPUT
@WHEN
@pytest.mark.fault("publication-altered")
def test_a_table_out_of_the_publication_stops_the_daemon_with_the_command(
    pg: Database, new_daemon: NewDaemon, when: Callable[..., None]
) -> None:
    # Given a daemon that stops when something does not fit
    make_docs(pg)
    make_docs(pg, "others", 5)
    daemon = start(pg, new_daemon, DOCS, OTHERS)
    publication = sql.Identifier(pg.slot_name).as_string(None)

    # When somebody takes the table out of the publication, and it changes
    if when is while_down:
        daemon.terminate()
    pg.execute(f"alter publication {publication} drop table docs")
    fill(pg, "docs", 500, 510)
    if when is while_down:
        daemon.start(ready=False)

    # Then the daemon ends, and says what to do
    assert daemon.wait_exit() == 78
    assert "TABLE_LEFT_PUBLICATION: table public.docs" in daemon.log
    command = f'alter publication "{pg.slot_name}" add table "public"."docs";'
    assert command in daemon.log

    # And when that is done, the next one reads the table again
    pg.execute(command)
    daemon.start()
    await_change(daemon, "rejoined_publication")
    assert_index_equals_table(daemon, pg)


@PGOUTPUT
@WHEN
@pytest.mark.fault("publication-altered")
def test_a_table_out_of_the_publication_is_put_back_where_that_is_wanted(
    pg: Database, new_daemon: NewDaemon, when: Callable[..., None]
) -> None:
    make_docs(pg)
    daemon = start(pg, new_daemon, mode="resync")

    def leave() -> None:
        pg.execute(f"alter publication {sql.Identifier(pg.slot_name).as_string(None)} drop table docs")
        fill(pg, "docs", 500, 510)

    when(daemon, leave)
    await_change(daemon, "rejoined_publication")

    assert "TABLE_LEFT_PUBLICATION" in daemon.log
    assert_index_equals_table(daemon, pg)
    pg.execute("update docs set body = 'changed' where id = 500")
    assert_index_equals_table(daemon, pg)


# -- keys -----------------------------------------------------------------------------------------------------


@BOTH
@WHEN
@pytest.mark.fault("other-identity")
def test_another_key_gives_every_document_another_id(
    pg: Database, new_daemon: NewDaemon, when: Callable[..., None]
) -> None:
    # Given an index whose documents are named by one column
    make_docs(pg)
    daemon = start(pg, new_daemon)
    before = embedded(daemon)

    # When rows are told apart by two
    when(
        daemon,
        lambda: run_together(
            pg,
            "alter table docs drop constraint docs_pkey, alter kind set not null",
            "alter table docs add primary key (kind, id)",
        ),
    )
    await_change(daemon, "identity")

    # Then each document is there once, by its new id, and nothing was embedded
    assert_index_equals_table(daemon, pg)
    assert all("," in i for i in stored(daemon.config, "docs")["ids"])
    assert embedded(daemon) <= before
    pg.execute("update docs set body = 'changed' where id = 3")
    pg.execute("delete from docs where id = 4")
    assert_index_equals_table(daemon, pg)


@BOTH
@pytest.mark.fault("other-identity")
def test_another_replica_identity_changes_no_document(pg: Database, new_daemon: NewDaemon) -> None:
    make_docs(pg)
    daemon = start(pg, new_daemon)
    before = embedded(daemon)

    pg.execute("alter table docs replica identity full")
    await_change(daemon, "identity")

    pg.execute("update docs set unused = 5 where id = 3")
    assert_index_equals_table(daemon, pg)
    assert embedded(daemon) == before


@PGOUTPUT
@pytest.mark.fault("no-identity")
def test_a_table_without_a_key_is_named_and_mends_itself(pg: Database, new_daemon: NewDaemon) -> None:
    make_docs(pg)
    make_docs(pg, "others", 5)
    daemon = start(pg, new_daemon, DOCS, OTHERS)

    # When the key goes, rows come that have no name, and other tables change
    pg.execute("alter table docs drop constraint docs_pkey")
    until(lambda: states(daemon) == {"TABLE_WITHOUT_KEY"}, 30.0, "the state to be named")
    fill(pg, "docs", 40, 45)
    pg.execute("update others set body = 'changed' where id = 3")
    assert_index_equals_table(daemon, pg, only=["others"])
    assert daemon.metric("cdc_agent_mismatch", state="TABLE_WITHOUT_KEY") == 1

    # Then everything is there once the key is back
    pg.execute("alter table docs add primary key (id)")
    until(lambda: states(daemon) == set(), 30.0, "the state to end")
    copied(daemon)
    assert_index_equals_table(daemon, pg)
    assert daemon.metric("cdc_agent_mismatch", state="TABLE_WITHOUT_KEY") == 0


@BOTH
@pytest.mark.fault("columns-change")
def test_a_column_that_is_missing_is_named_and_parks_nothing(pg: Database, new_daemon: NewDaemon) -> None:
    make_docs(pg)
    daemon = start(pg, new_daemon)
    texts = texts_of(daemon.config, "docs")

    # When a column that the collection uses goes
    pg.execute("alter table docs drop column kind")
    until(lambda: states(daemon) == {"TABLE_LACKS_COLUMN"}, 30.0, "the state to be named")

    # Then what the index holds stays, and when the column is back it is read again
    assert texts_of(daemon.config, "docs") == texts
    assert daemon.get("/dead-letters").json()["dead_letters"] == []
    pg.execute("alter table docs add column kind text default 'back'")
    until(lambda: states(daemon) == set(), 30.0, "the state to end")
    copied(daemon)
    assert_index_equals_table(daemon, pg)


# -- a table that is gone -------------------------------------------------------------------------------------


@BOTH
@pytest.mark.fault("table-dropped")
def test_a_dropped_table_is_named_while_the_others_go_on(pg: Database, new_daemon: NewDaemon) -> None:
    # Given two tables
    make_docs(pg)
    make_docs(pg, "others", 5)
    daemon = start(pg, new_daemon, DOCS, OTHERS)
    texts = texts_of(daemon.config, "docs")

    # When one is dropped
    pg.execute("drop table docs")
    until(lambda: states(daemon) == {"TABLE_DROPPED"}, 30.0, "the state to be named")

    # Then the other is followed still, and what was is kept
    pg.execute("update others set body = 'changed' where id = 3")
    assert_index_equals_table(daemon, pg, only=["others"])
    assert daemon.get("/readyz").status_code == 503
    assert daemon.metric("cdc_agent_mismatch", state="TABLE_DROPPED") == 1
    assert texts_of(daemon.config, "docs") == texts

    # And no daemon starts that way
    assert daemon.terminate() == 0
    daemon.start(ready=False)
    assert daemon.wait_exit() == 78
    assert "TABLE_DROPPED: table public.docs is gone" in daemon.log

    # But when the table is back, one does, and reads it
    make_docs(pg, count=20)
    daemon.start()
    await_change(daemon, "replaced")
    assert_index_equals_table(daemon, pg)


@PGOUTPUT
@pytest.mark.fault("table-recreated")
def test_a_table_that_is_made_again_soon_embeds_nothing(pg: Database, new_daemon: NewDaemon) -> None:
    # Given an index of a table, and a daemon that mends what it can
    make_docs(pg)
    daemon = start(pg, new_daemon, mode="resync", interval_s=2.0)
    before = embedded(daemon)

    # When the table is dropped, seen to be gone, and made again with the same rows
    pg.execute("drop table docs")
    until(lambda: states(daemon) == {"TABLE_DROPPED"}, 30.0, "the state to be named")
    run_together(
        pg,
        f"create table docs ({COLUMNS})",
        "insert into docs select i, 'words of document ' || i, 'kind' || i % 3, i from generate_series(1, 30) i",
    )

    # Then it is followed, and nothing of it was sent away meanwhile
    await_change(daemon, "replaced")
    assert_index_equals_table(daemon, pg)
    assert embedded(daemon) == before
    assert changes(daemon, "dropped") == 1


@BOTH
@WHEN
@pytest.mark.fault("table-dropped")
def test_documents_of_a_dropped_table_leave_the_index_where_that_is_wanted(
    pg: Database, new_daemon: NewDaemon, when: Callable[..., None]
) -> None:
    # Given two tables, and a daemon that mends what it can
    make_docs(pg)
    make_docs(pg, "others", 5)
    daemon = start(pg, new_daemon, DOCS, OTHERS, mode="resync")

    # When one is dropped
    if when is while_down:
        assert daemon.terminate() == 0
    pg.execute("drop table docs")
    if when is while_down:
        daemon.start(ready=False)

    # Then its documents go, its absence stays named, and the others are followed
    until(lambda: states(daemon) == {"TABLE_DROPPED"}, 60.0, "the state to be named")
    until(lambda: stored(daemon.config, "docs")["ids"] == [], 30.0, "the documents to leave")
    pg.execute("update others set body = 'changed' where id = 3")
    assert_index_equals_table(daemon, pg, only=["others"])

    # And once it is back it is read
    make_docs(pg)
    until(lambda: states(daemon) == set(), 30.0, "the state to end")
    copied(daemon)
    assert_index_equals_table(daemon, pg)


# -- costs ----------------------------------------------------------------------------------------------------


@BOTH
def test_a_new_partition_has_no_other_row_read(pg: Database, new_daemon: NewDaemon) -> None:
    # Given a partitioned table
    make_parts(pg)
    daemon = start(pg, new_daemon)
    rows = daemon.metric("cdc_agent_resync_rows_total")

    # When it gets another partition, as it does every day
    pg.execute("create table docs_next partition of docs for values from (200) to (300)")
    await_change(daemon, "partitions")

    # Then no row was read for that, and those that come are followed
    assert daemon.metric("cdc_agent_resync_rows_total") == rows
    fill(pg, "docs", 250, 260)
    assert_index_equals_table(daemon, pg)


@BOTH
@pytest.mark.fault("partitions")
def test_a_partition_that_was_changed_while_it_was_away(pg: Database, new_daemon: NewDaemon) -> None:
    make_parts(pg)
    daemon = start(pg, new_daemon)

    # When a partition is taken out for maintenance and is back before anybody looks
    def maintain() -> None:
        pg.execute("alter table docs detach partition docs_low")
        pg.execute("delete from docs_low where id < 95")
        pg.execute("update docs_low set body = 'maintained' where id = 96")
        pg.execute("alter table docs attach partition docs_low for values from (0) to (100)")

    while_down(daemon, maintain)
    await_change(daemon, "partitions")

    # Then the index equals the table
    assert_index_equals_table(daemon, pg)


@PGOUTPUT
def test_a_table_that_is_truncated_all_the_time_is_not_read_all_the_time(pg: Database, new_daemon: NewDaemon) -> None:
    # Given a table that is emptied and filled again and again
    make_docs(pg)
    daemon = start(pg, new_daemon)
    before = embedded(daemon)
    connections = daemon.metric("cdc_agent_reconnects_total")
    for _ in range(20):
        run_together(pg, "truncate docs", "insert into docs select i, 'the same', 'x', i from generate_series(1, 20) i")

    # Then the index follows over the one connection, and resyncs do not pile up
    await_change(daemon, "rewritten")
    assert_index_equals_table(daemon, pg)
    assert embedded(daemon) - before <= 20
    assert daemon.metric("cdc_agent_reconnects_total") == connections
    assert len(resyncs_of(daemon, "rewritten")) <= changes(daemon, "rewritten")
