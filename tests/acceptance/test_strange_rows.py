"""Rows that are huge, and rows that are no text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from tests.support.daemon import DaemonProcess
from tests.support.oracle import assert_index_equals_table
from tests.support.postgres import Database, Kind, Servers

NewDaemon = Callable[..., DaemonProcess]

ITEMS = {"name": "items", "table": "public.items", "text": "{body}", "chunking": {"max_tokens": 2000}}
#: The exit code by which a supervisor starts it again.
TRY_AGAIN = 75
#: Words of the huge row: some three megabytes.
WORDS = 300_000
#: What indexing it may add to the memory of the daemon.
LARGEST_GROWTH_KB = 256 << 10


def memory_kb(daemon: DaemonProcess) -> int:
    """Its largest resident set so far."""
    status = Path(f"/proc/{daemon.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


@pytest.mark.fault("huge-row", "oversize-text")
def test_a_row_of_megabytes_is_found_by_its_last_words(pg: Database, new_daemon: NewDaemon) -> None:
    # Given a daemon.
    pg.execute("create table items (id int primary key, body text)")
    daemon = new_daemon(pg, collections=[ITEMS])
    daemon.start()
    before = memory_kb(daemon)

    # When a row comes that is far beyond what a model takes at once.
    pg.execute(
        "insert into items select 1, string_agg('w' || i * 7919::bigint, ' ') || '. the needle of the haystack'"
        " from generate_series(1, %s) i",
        (WORDS,),
    )

    # Then all of it is in the index, its end is found, and memory stayed within bounds.
    assert_index_equals_table(daemon, pg)
    hit = daemon.search("items", "the needle of the haystack", k=1)[0]
    assert hit["text"].endswith("the needle of the haystack")
    assert memory_kb(daemon) - before < LARGEST_GROWTH_KB


@pytest.mark.parametrize("plugin", ["pgoutput", "wal2json"])
@pytest.mark.fault("bad-text")
def test_bytes_that_are_no_text_are_named_and_never_guessed_at(
    servers: Servers, new_daemon: NewDaemon, monkeypatch: pytest.MonkeyPatch, plugin: str
) -> None:
    # Given a database that takes any bytes for text, and a daemon on it.
    pg = servers.database(Kind(15, plugin))
    # For this test's own connections: of such a server psycopg expects bytes.
    monkeypatch.setenv("PGCLIENTENCODING", "UTF8")
    with psycopg.connect(pg.server.conninfo, autocommit=True) as admin:
        admin.execute(f"drop database {pg.name}")
        admin.execute(f"create database {pg.name} template template0 encoding sql_ascii locale 'C'")
    try:
        pg.execute("create table items (id int primary key, body text, extra json)")
        pg.execute("insert into items values (1, 'good', null)")
        daemon = new_daemon(pg, collections=[ITEMS])
        daemon.start()
        assert_index_equals_table(daemon, pg)

        # When a row holds a NUL in its JSON, then it is indexed like any other.
        pg.execute(r"""insert into items values (2, 'with json', '"\u0000"')""")
        assert_index_equals_table(daemon, pg)

        # When one holds bytes that are no UTF-8, which the server sends to nobody who asks for text.
        pg.execute(r"insert into items values (3, E'b\xffd', null), (4, 'after', null)")

        # Then the daemon ends, and says what it is and what to do; the bytes are nowhere.
        assert daemon.wait_exit() not in (0, TRY_AGAIN)
        assert "a row holds bytes that are no text" in daemon.log
        assert "hint: the database is SQL_ASCII: correct the row" in daemon.log

        # When that is done, then all of it is in the index.
        pg.execute("update items set body = 'mended' where id = 3")
        pg.execute("select pg_drop_replication_slot(%s)", (pg.slot_name,))
        daemon.start(env={"CDC_AGENT_SOURCE__ON_MISMATCH": "resync"})
        assert_index_equals_table(daemon, pg)
    finally:
        pg.close()
