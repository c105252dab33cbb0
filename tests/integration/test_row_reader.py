"""Row reads of real tables: nobody waits long for a locked one, and tables are followed wherever their names went."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from cdc_agent.errors import SourceUnavailable
from cdc_agent.source import rows
from cdc_agent.source.base import TableRows
from cdc_agent.source.catalog import Catalog
from cdc_agent.source.rows import SqlRowReader
from tests.support.postgres import Database


@pytest.fixture
def catalog(pg: Database) -> Iterator[Catalog]:
    pg.execute("create table a (id int primary key, body text)")
    pg.execute("create table b (id int primary key, body text)")
    pg.execute("insert into a values (1, 'one')")
    with closing(Catalog(pg.dsn)) as catalog:
        yield catalog


def test_a_locked_table_is_waited_for_a_little_and_may_be_tried_again(
    pg: Database, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a table that somebody holds, and a reader with the patience of the tests
    assert rows._SQL["patience"].strip() == "set local lock_timeout = '3s'"
    monkeypatch.setitem(rows._SQL, "patience", "set local lock_timeout = '100ms'")
    oids = {table.qualified_name: table.oid for table in catalog.watch([("public", "a")])}
    with closing(SqlRowReader(pg.dsn, catalog, oids)) as reader, pg.connect(autocommit=False) as holder:
        holder.execute("lock table a in access exclusive mode")

        # When it is read, page by page or by key, then that ends soon, with an error that may be tried again
        for read in (
            lambda: reader.page(TableRows(table="public.a", after_key=None, limit=5)),
            lambda: reader.by_key("public.a", [("1",)]),
        ):
            began = time.monotonic()
            with pytest.raises(SourceUnavailable) as waited:
                read()
            assert waited.value.retryable
            assert time.monotonic() - began < 3.0

        # And once it is free, the same reader reads it
        holder.rollback()
        assert len(reader.page(TableRows(table="public.a", after_key=None, limit=5)).rows) == 1


def test_two_configured_tables_that_were_one_for_a_while_are_two_again(pg: Database, catalog: Catalog) -> None:
    # Given two configured tables
    a, b = catalog.watch([("public", "a"), ("public", "b")])

    # When both names lead to one table (one was dropped, and the other has its name), and later to two
    catalog.follow({"public.a": a.oid, "public.b": a.oid})
    assert set(catalog.watched) == {a.oid}
    catalog.follow({"public.a": a.oid, "public.b": b.oid})

    # Then rows of both are ours
    assert {table.qualified_name: oid for oid, table in catalog.watched.items()} == {
        "public.a": a.oid,
        "public.b": b.oid,
    }
    assert {table.name for table in catalog.present()} == {"a", "b"}

    # And one that is gone for a while is known again by its name
    catalog.follow({"public.a": a.oid})
    catalog.follow({"public.a": a.oid, "public.b": b.oid})
    assert set(catalog.watched) == {a.oid, b.oid}
