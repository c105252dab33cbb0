"""The journey of a change, end to end: real Postgres, real daemon, real Chroma."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.daemon import DaemonProcess
from tests.support.oracle import assert_index_equals_table
from tests.support.postgres import Database

ARTICLES = {"name": "articles", "table": "public.articles", "text": "{title}\n\n{body}", "metadata": ["lang", "n"]}


def create_articles(pg: Database) -> None:
    pg.execute("create table articles (id int primary key, title text, body text, lang text, n int)")
    pg.execute("insert into articles select i, 'title ' || i, 'body of ' || i, 'en', i from generate_series(1, 50) i")


@pytest.mark.postgres(versions="all", plugin="all")
def test_rows_from_before_and_after_the_start_are_found(pg: Database, new_daemon: Callable[..., DaemonProcess]) -> None:
    # Given a table with rows, and a daemon that starts on it.
    create_articles(pg)
    daemon = new_daemon(pg, collections=[ARTICLES])
    daemon.start(fresh=True)
    assert_index_equals_table(daemon, pg)

    # When rows are added, changed, moved and deleted.
    pg.execute("insert into articles values (100, 'new', 'fresh words', 'de', 1)")
    pg.execute("update articles set body = 'other words' where id <= 10")
    pg.execute("update articles set id = id + 1000 where id between 20 and 25")
    pg.execute("delete from articles where id between 30 and 35")
    pg.execute("update articles set n = -n where id = 40")

    # Then the index follows, also over a restart.
    assert_index_equals_table(daemon, pg)
    assert daemon.terminate() == 0
    pg.execute("delete from articles where id = 1")
    daemon.start()
    assert_index_equals_table(daemon, pg)
