"""Killed at every named place, with writes before, during and after: what is in the index is what is in the table.

Every place, with both plugins, with the store in a process of its own and inside of the one that dies.
"""

from __future__ import annotations

import itertools
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

import httpx
import psycopg
import pytest

from cdc_agent.failpoints import NAMES
from tests.support.daemon import DaemonProcess
from tests.support.oracle import assert_index_equals_table
from tests.support.postgres import Database
from tests.support.wait import until

NewDaemon = Callable[..., DaemonProcess]

DOCS = {
    "name": "docs",
    "table": "public.docs",
    "text": "{title}\n\n{body}",
    "metadata": ["n"],
    "chunking": {"max_tokens": 64},
}
OTHERS = {"name": "others", "table": "public.others", "text": "{body}", "metadata": ["id"]}
#: Changes that are written around the death: at least this many.
CHANGES = 100


class Case(NamedTuple):
    """The daemon dies at the ``passage``-th passage of ``name`` while it is about ``doing``."""

    name: str
    doing: str
    passage: int = 1

    def __str__(self) -> str:
        return f"{self.name}@{self.passage}-{self.doing}"


CASES = (
    # The first copy of a table with rows in it.
    Case("resync_after_slot", "first_copy"),
    Case("sweep", "first_copy"),
    Case("resync_before_mark", "first_copy"),
    Case("resync_after_mark", "first_copy", 2),
    Case("resync_after_append", "first_copy", 2),
    Case("after_flip", "first_copy", 2),
    Case("resync_done", "first_copy"),
    # Changes of rows while the daemon watches.
    Case("after_recv", "live_changes", 3),
    Case("before_append", "live_changes", 4),
    Case("after_append", "live_changes", 4),
    Case("after_read", "live_changes", 4),
    Case("after_reread", "live_changes"),
    Case("after_plan", "live_changes", 4),
    Case("mid_embed", "live_changes", 2),
    Case("after_embed", "live_changes", 4),
    Case("before_intent", "live_changes", 2),
    Case("after_intent", "live_changes", 3),
    Case("mid_upsert", "live_changes", 2),
    Case("after_upsert", "live_changes", 2),
    Case("after_metadata", "live_changes", 2),
    Case("before_flip", "live_changes", 4),
    Case("after_flip", "live_changes", 4),
    Case("before_gc", "live_changes"),
    Case("mid_gc", "live_changes", 2),
    Case("after_gc", "live_changes", 2),
    Case("before_ack", "live_changes"),
    Case("after_ack", "live_changes"),
    # The rest.
    Case("mid_tx", "a_large_transaction", 2),
    Case("idle_advance", "idling"),
    # The first copies have seven marks and two ends.
    Case("resync_after_mark", "resync", 9),
    Case("resync_done", "resync", 3),
    Case("dead_letter", "parking"),
    Case("hup_swap", "reloading"),
    Case("drain", "stopping"),
)


def test_every_failpoint_has_a_case() -> None:
    # Those of mending are passed in test_mismatches, those of migrations in test_migrate, those of sagas in
    # tests/unit/sagas.
    elsewhere = ("mending_", "migrate_", "agents_", "saga_")
    assert {case.name for case in CASES} == {name for name in NAMES if not name.startswith(elsewhere)}


@pytest.mark.chaos
@pytest.mark.postgres(versions=[15], plugin="all")
@pytest.mark.parametrize("mode", ["managed", "embedded"])
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.fault(
    "killed-before-embedding",
    "killed-while-writing",
    "killed-around-an-acknowledgement",
    "killed-before-garbage",
    "killed-in-a-first-copy",
    "killed-between-copy-and-stream",
    "killed-in-a-resync",
    "killed-in-a-large-transaction",
    "killed-while-stopping",
    "reloaded",
)
def test_nothing_is_lost_doubled_or_stale_after_a_death(
    pg: Database, new_daemon: NewDaemon, case: Case, mode: str
) -> None:
    # Given tables, and a daemon that is to die at the failpoint.
    create_tables(pg, rows=40 if case.doing in ("first_copy", "resync") else 0)
    daemon = new_daemon(pg, collections=[DOCS, OTHERS], vectorstore={"mode": mode}, resync={"rows_per_chunk": 10})
    changes = Changes(pg, seed=str(case))
    daemon.start(failpoint=f"{case.name}:kill@{case.passage}", ready=False)

    # When it comes to that place, and does die there.
    DOINGS[case.doing](daemon, pg, changes)
    assert daemon.wait_exit() == -signal.SIGKILL, daemon.log[-4000:]

    # And others go on writing while it is away, until it is started again.
    changes.write(max(30, CHANGES - changes.written))
    daemon.start()
    changes.write(10)

    # Then nothing is missing, doubled, stale, torn or left behind.
    daemon.wait_applied(pg.execute("select pg_current_wal_lsn()::text")[0][0])
    assert daemon.status()["dead_letters"] == 0
    until(lambda: daemon.status()["resyncs"] == [], 60.0, "the first copies to end")
    assert_index_equals_table(daemon, pg)


def create_tables(pg: Database, rows: int) -> None:
    pg.execute("create table docs (id int primary key, title text, body text, n int, noise text)")
    pg.execute("alter table docs alter body set storage external, alter noise set storage external")
    pg.execute("create table others (id int primary key, body text)")
    pg.execute(
        "insert into docs select i, 'title ' || i, string_agg('first' || i || 'x' || j, ' '), i "
        f"from generate_series(1, {rows}) i, generate_series(1, i * 8) j group by i"
    )
    pg.execute(f"insert into others select i, 'other ' || i from generate_series(1, {rows // 4}) i")


class Changes:
    """A seeded load: inserts, updates of text, of metadata, beside long values, moves, deletes, truncates."""

    def __init__(self, pg: Database, seed: str) -> None:
        self._connection = pg.connect(autocommit=False)
        self._rng = random.Random(seed)
        self._numbers = itertools.count(1)
        self.written = 0

    def write(self, count: int) -> None:
        for _ in range(count):
            self.one()

    def one(self) -> None:
        """One transaction of one to three statements; what Postgres refuses is rolled back."""
        try:
            for _ in range(self._rng.randrange(1, 4)):
                self._connection.execute(*self._statement())  # type: ignore[call-overload]
            self._connection.commit()
        except psycopg.errors.UniqueViolation:
            self._connection.rollback()
        self.written += 1

    def _statement(self) -> tuple[str, list[object]]:
        number, key = next(self._numbers), self._rng.randrange(1, 41)
        body = " ".join(f"word{number}x{i}" for i in range(self._rng.choice([1, 12, 400])))
        update = "update docs set {} = %s where id = %s"
        insert = "insert into docs values (%s, %s, %s, %s) on conflict (id) do update set body = excluded.body"
        kinds: tuple[tuple[int, str, list[object]], ...] = (
            (8, insert, [key, f"title {number}", body, number]),
            (2, update.format("title"), [f"title {number}", key]),
            (2, update.format("body"), [body, key]),
            (3, update.format("n"), [number, key]),
            (2, update.format("id"), [self._rng.randrange(1, 41), key]),
            (2, "delete from docs where id = %s", [key]),
            (3, "insert into others values (%s, %s)", [100 + number, f"other {number}"]),
            (1, "truncate others", []),
        )
        weights = [weight for weight, _, _ in kinds]
        _, statement, parameters = self._rng.choices(kinds, weights)[0]
        return statement, parameters


# --- what the daemon is about when it dies


def first_copy(daemon: DaemonProcess, pg: Database, changes: Changes) -> None:
    """It dies by itself, while others write."""
    write_while_it_lives(daemon, changes)


def live_changes(daemon: DaemonProcess, pg: Database, changes: Changes) -> None:
    until(lambda: not daemon.running or daemon.problems() == [], 60.0, "the daemon to be ready")
    write_while_it_lives(daemon, changes)
    # From here on slower, so that it is not busy with a backlog of ours.
    until(lambda: not daemon.running or changes.one(), 30.0, "the daemon to die")


def a_large_transaction(daemon: DaemonProcess, pg: Database, changes: Changes) -> None:
    """It comes in parts of a megabyte, and is much longer than what is taken from the socket at a time."""
    until(lambda: daemon.problems() == [], 60.0, "the daemon to be ready")
    changes.write(30)
    noise = "update docs set n = n + 1, noise = repeat(md5(random()::text || id), 1000)"
    with psycopg.connect(pg.dsn) as connection:
        for _ in range(40):
            connection.execute(noise)


def idling(daemon: DaemonProcess, pg: Database, changes: Changes) -> None:
    """Others write where we do not look, and somebody waits for the watermark."""
    pg.execute("create table bystanders (id int)")
    deadline = time.monotonic() + 30
    while daemon.running and time.monotonic() < deadline:
        pg.execute("insert into bystanders values (1)")
        with suppress(httpx.TransportError):
            daemon.get("/wait", lsn=pg.execute("select pg_current_wal_lsn()::text")[0][0], timeout_s=0.2)


def resync(daemon: DaemonProcess, pg: Database, changes: Changes) -> None:
    """Asked for once the first copies, which pass here too, are done."""
    until(lambda: daemon.problems() == [], 60.0, "the daemon to be ready")
    until(lambda: daemon.status()["resyncs"] == [], 60.0, "the first copies to end")
    with suppress(httpx.TransportError):
        daemon.post("/resyncs", {"table": "public.docs"})
    write_while_it_lives(daemon, changes)


def parking(daemon: DaemonProcess, pg: Database, changes: Changes) -> None:
    """A metadata column has another name for a while; the rows of that time are touched when it is back."""
    until(lambda: daemon.problems() == [], 60.0, "the daemon to be ready")
    changes.write(30)
    pg.execute("alter table docs rename column n to m")
    pg.execute("update docs set title = 'while renamed'")
    daemon.wait_exit(30)
    pg.execute("alter table docs rename column m to n")
    pg.execute("update docs set n = -1")


def reloading(daemon: DaemonProcess, pg: Database, changes: Changes) -> None:
    until(lambda: daemon.problems() == [], 60.0, "the daemon to be ready")
    changes.write(40)
    daemon.signal(signal.SIGHUP)


def stopping(daemon: DaemonProcess, pg: Database, changes: Changes) -> None:
    until(lambda: daemon.problems() == [], 60.0, "the daemon to be ready")
    changes.write(40)
    daemon.signal(signal.SIGTERM)


DOINGS: dict[str, Callable[[DaemonProcess, Database, Changes], None]] = {
    "first_copy": first_copy,
    "live_changes": live_changes,
    "a_large_transaction": a_large_transaction,
    "idling": idling,
    "resync": resync,
    "parking": parking,
    "reloading": reloading,
    "stopping": stopping,
}


def write_while_it_lives(daemon: DaemonProcess, changes: Changes) -> None:
    while daemon.running and changes.written < CHANGES / 2:
        changes.one()
