"""The shapes of real tables: every change that matters is seen, no lock is waited for, and the log tells of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from cdc_agent.source.shape import Difference, ShapeReader, TableShape, attached, compare
from cdc_agent.tables import HOUSEKEEPING_BYTES
from tests.support.postgres import Database

USED = frozenset({"body", "kind"})
ALL = pytest.mark.postgres(versions=[15, 16, 18])


@pytest.fixture
def reader(pg: Database) -> Iterator[ShapeReader]:
    made = ShapeReader(pg.dsn, publication="pub")
    yield made
    made.close()


def make_tables(pg: Database) -> None:
    for statement in (
        "create table docs (id int primary key, body text, kind text, unused int) partition by range (id)",
        "create table docs_low partition of docs for values from (0) to (100)",
        "create table docs_high (id int primary key, body text, kind text, unused int)",
        "create table plain (id int primary key, body text, kind text, unused int)",
        "create table fresh (id int primary key, body text, kind text, unused int)",
        "insert into plain values (1, 'a', 'b', 1)",
        "insert into docs values (1, 'a', 'b', 1)",
        "create publication pub for table docs, plain",
    ):
        pg.execute(statement)


def shape(reader: ShapeReader, name: str) -> TableShape | None:
    return reader.read([("public", name)], []).named("public", name)


@ALL
def test_a_tree_is_read_with_its_partitions_and_what_publishes_it(pg: Database, reader: ShapeReader) -> None:
    make_tables(pg)

    seen = reader.read([("public", "docs"), ("public", "plain"), ("public", "nothing")], [])

    assert [t.qualified_name for t in seen.tables.values()] == ["public.docs", "public.plain"]
    docs, plain = seen.tables.values()
    assert [p.name for p in docs.partitions] == ["docs_low"]
    assert docs.root.file == 0
    assert docs.partitions[0].file != 0
    assert [c.name for c in plain.root.columns] == ["id", "body", "kind", "unused"]
    assert plain.root.key == (1,)
    assert len(docs.members) == len(plain.members) == 1
    assert reader.read([], [plain.oid]).tables == {plain.oid: plain}


CHANGES: list[tuple[str, str, set[Difference]]] = [
    ("plain", "alter table plain alter body type text using upper(body)", {Difference.REWRITTEN}),
    ("plain", "alter table plain alter body type varchar", {Difference.COLUMNS}),
    (
        "plain",
        "alter table plain drop column kind, add column kind text default md5(random()::text)",
        {Difference.REWRITTEN, Difference.COLUMNS},
    ),
    ("plain", "alter table plain drop column kind, add column kind text default 'x'", {Difference.COLUMNS}),
    ("plain", "alter table plain add column more text", set()),
    ("plain", "alter table plain rename column unused to other", set()),
    ("plain", "alter table plain rename column kind to other", {Difference.COLUMNS}),
    ("plain", "truncate plain", {Difference.REWRITTEN}),
    ("plain", "vacuum full plain", {Difference.REWRITTEN}),
    ("plain", "vacuum analyze plain", set()),
    ("plain", "update plain set body = 'x'", set()),
    ("plain", "create index on plain (body)", set()),
    ("plain", "alter table plain replica identity full", {Difference.IDENTITY}),
    ("plain", "alter table plain drop constraint plain_pkey, add primary key (id)", {Difference.IDENTITY}),
    ("plain", "alter table plain rename to papers", {Difference.DROPPED}),
    ("plain", "alter publication pub drop table plain", {Difference.LEFT_PUBLICATION}),
    ("plain", "drop publication pub", {Difference.LEFT_PUBLICATION}),
    ("docs", "alter table docs attach partition docs_high for values from (100) to (200)", {Difference.PARTITIONS}),
    ("docs", "alter table docs detach partition docs_low", {Difference.PARTITIONS}),
    ("docs", "drop table docs_low", {Difference.PARTITIONS}),
    ("docs", "truncate docs_low", {Difference.REWRITTEN}),
    ("docs", "alter table docs_low rename to docs_lowest", {Difference.RENAMED}),
    ("docs", "alter table docs alter body type text using upper(body)", {Difference.REWRITTEN}),
]


@ALL
@pytest.mark.parametrize(("name", "statement", "wanted"), CHANGES, ids=[statement for _, statement, _ in CHANGES])
def test_a_change_is_seen_and_the_log_tells_of_it(
    pg: Database, reader: ShapeReader, name: str, statement: str, wanted: set[Difference]
) -> None:
    # Given a table, and no full pages left to write
    make_tables(pg)
    before = shape(reader, name)
    assert before is not None
    pg.execute("checkpoint")

    # When it changes
    wrote = bytes_written(pg, lambda: pg.execute(statement))

    # Then the difference has its name, and the log has moved by enough to look
    assert compare(before, shape(reader, name), USED) == wanted
    if wanted:
        assert wrote >= HOUSEKEEPING_BYTES


def bytes_written(pg: Database, act: Callable[[], object]) -> int:
    before = pg.execute("select pg_current_wal_insert_lsn()::text")[0][0]
    act()
    return int(pg.execute("select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), %s)", (before,))[0][0])


@pytest.mark.postgres(versions=[15, 18])
def test_what_an_idle_server_writes_is_less(private_pg: Database) -> None:
    # Given a server that nobody uses
    private_pg.execute("create table t (id int)")
    private_pg.execute("checkpoint")

    # When it writes a checkpoint with its record of running transactions, and we write a mark
    mark = "select pg_logical_emit_message(true, 'cdc_agent.resync', '{\"token\":\"0123456789abcdef\"}')"
    private_pg.execute(mark)
    housekeeping = bytes_written(private_pg, lambda: private_pg.execute("checkpoint"))

    # Then that is no reason to ask it
    assert housekeeping < HOUSEKEEPING_BYTES
    assert bytes_written(private_pg, lambda: private_pg.execute(mark)) < HOUSEKEEPING_BYTES


@ALL
def test_a_partition_that_was_away_is_another_one(pg: Database, reader: ShapeReader) -> None:
    make_tables(pg)
    before = shape(reader, "docs")
    assert before is not None

    pg.execute("alter table docs detach partition docs_low")
    pg.execute("alter table docs attach partition docs_low for values from (0) to (100)")

    now = shape(reader, "docs")
    assert now is not None
    assert compare(before, now, USED) == {Difference.PARTITIONS}
    assert attached(before, now) == frozenset()


@ALL
def test_rows_of_a_new_partition_have_a_condition_of_their_own(pg: Database, reader: ShapeReader) -> None:
    # Given a partition that came
    make_tables(pg)
    before = shape(reader, "docs")
    pg.execute("insert into docs_high values (150, 'a', 'b', 1)")
    pg.execute("alter table docs attach partition docs_high for values from (100) to (200)")
    now = shape(reader, "docs")
    assert before is not None
    assert now is not None

    # Then only its rows fulfil the condition, and the server reads nothing else for it
    condition = reader.condition(attached(before, now))
    assert pg.execute(f"select id from docs where {condition}") == [(150,)]
    plan = "".join(row[0] for row in pg.execute(f"explain select id from docs where {condition}"))
    assert "docs_high" in plan
    assert "docs_low" not in plan

    # But nobody waits for it
    holder = pg.connect(autocommit=False)
    holder.execute("lock table docs_high in access exclusive mode")
    assert reader.condition(attached(before, now)) == ""
    holder.rollback()


@ALL
def test_a_table_that_left_and_came_back_was_not_there_all_the_time(pg: Database, reader: ShapeReader) -> None:
    make_tables(pg)
    before = shape(reader, "plain")
    assert before is not None

    pg.execute("alter publication pub drop table plain")
    pg.execute("alter publication pub add table plain")

    assert compare(before, shape(reader, "plain"), USED) == {Difference.REJOINED_PUBLICATION}


@ALL
@pytest.mark.parametrize("cover", ["for all tables", "for tables in schema public"])
def test_a_publication_may_hold_a_table_in_other_ways(pg: Database, reader: ShapeReader, cover: str) -> None:
    make_tables(pg)
    pg.execute("drop publication pub")
    pg.execute(f"create publication pub {cover}")

    before = shape(reader, "docs")

    assert before is not None
    assert len(before.members) == 1
    pg.execute("create table later (id int primary key)")
    assert compare(before, shape(reader, "docs"), USED) == set()


@ALL
def test_a_partition_is_published_with_its_ancestors(pg: Database, reader: ShapeReader) -> None:
    make_tables(pg)

    low, docs = shape(reader, "docs_low"), shape(reader, "docs")

    assert low is not None
    assert docs is not None
    assert low.members == docs.members


@ALL
def test_nobody_waits_for_an_alter_table_that_is_under_way(pg: Database, reader: ShapeReader) -> None:
    # Given somebody who holds every lock that there is
    make_tables(pg)
    before = shape(reader, "docs")
    holder = pg.connect(autocommit=False)
    holder.execute("lock table docs, docs_low in access exclusive mode")
    holder.execute("alter table docs alter body type text using upper(body)")

    # Then the shape is read all the same, as it was, and the transaction is seen to be under way
    seen = reader.read([("public", "docs")], [])
    assert seen.named("public", "docs") == before
    [(xid,)] = holder.execute("select pg_current_xact_id()::text::bigint").fetchall()
    assert xid in seen.running
    assert seen.xmin <= xid

    # Until it has ended
    holder.rollback()
    after = reader.read([("public", "docs")], [])
    assert after.xmin > xid
    assert xid not in after.running


@ALL
def test_a_connection_that_was_cut_is_made_again(pg: Database, reader: ShapeReader) -> None:
    make_tables(pg)
    before = shape(reader, "docs")

    pg.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where datname = current_database() and pid <> pg_backend_pid()"
    )

    assert shape(reader, "docs") == before
