"""One transaction of a million rows: memory stays flat, and a kill in the middle of it costs nothing but time."""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.support.daemon import DaemonProcess
from tests.support.oracle import assert_index_equals_table, stored
from tests.support.postgres import Database
from tests.support.wait import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROWS = 1_000_000
MOST_GROWTH_BYTES = 128 << 20
#: Generous: the machine may be busy with other things.
STREAM_S = 240.0

#: All but ten of the rows are not ours to index.
FACTS = {"name": "facts", "table": "public.facts", "text": "fact {n}", "where": "n < 10", "metadata": ["n"]}


def head_offset(daemon: DaemonProcess) -> int:
    """Entries in the stream, read beside the daemon."""
    path = Path(daemon.settings["state_dir"]) / "stream.sqlite"
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return int(connection.execute("select head_offset from position").fetchone()[0])


def memory_bytes(pid: int, which: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{which}:"))


def forget_peak(pid: int) -> None:
    """Sets VmHWM back to VmRSS."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


@contextmanager
def frozen(daemon: DaemonProcess) -> Iterator[None]:
    """The daemon stands still, so that nothing is captured half way before we look."""
    daemon.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        daemon.signal(signal.SIGCONT)


def assert_index_is_true(daemon: DaemonProcess, pg: Database) -> None:
    """The oracle for a table that is too large for the usual one: the ten rows, each once, and nothing else."""
    end = pg.execute("select pg_current_wal_lsn()::text")[0][0]
    reached = {"lsn": end, "timeout_s": 30}
    until(lambda: daemon.get("/wait", **reached).status_code == 200, STREAM_S, "the index to be complete")
    rows = pg.execute("select id, n from facts where n < 10")
    wanted = sorted((f"public.facts:{number}", f"fact {n}", n) for number, n in rows)
    assert len(wanted) == 10

    def same() -> bool:
        found = stored(daemon.config, "facts")
        pairs = zip(found["metadatas"], found["documents"], strict=True)
        return sorted((metadata["cdc_doc"], text, metadata["n"]) for metadata, text in pairs) == wanted

    until(same, what="the store to hold the ten rows and nothing else")


def insert_million(pg: Database) -> None:
    pg.execute("insert into facts select i, i from generate_series(0, %s) i", (ROWS - 1,))


@pytest.fixture
def daemon(pg: Database, new_daemon: Callable[..., DaemonProcess]) -> DaemonProcess:
    """A daemon over an empty table."""
    pg.execute("create table facts (id int primary key, n int)")
    daemon = new_daemon(pg, collections=[FACTS], log={"level": "info"})
    daemon.start()
    assert_index_equals_table(daemon, pg)
    return daemon


@pytest.mark.fault("huge-transaction")
def test_a_million_rows_in_one_transaction_reach_the_stream_in_flat_memory(pg: Database, daemon: DaemonProcess) -> None:
    # Given a daemon that has nothing to do.
    before = head_offset(daemon)
    forget_peak(daemon.pid)
    at_rest = memory_bytes(daemon.pid, "VmRSS")

    # When a million rows are inserted in one transaction.
    insert_million(pg)
    until(lambda: head_offset(daemon) >= before + ROWS, STREAM_S, "the transaction to be in the stream")

    # Then the daemon has needed little memory for it, and every row is there once.
    assert memory_bytes(daemon.pid, "VmHWM") - at_rest <= MOST_GROWTH_BYTES
    assert head_offset(daemon) == before + ROWS
    assert_index_is_true(daemon, pg)
    assert memory_bytes(daemon.pid, "VmHWM") - at_rest <= MOST_GROWTH_BYTES


@pytest.mark.fault("huge-transaction", "killed-in-a-large-transaction")
def test_a_kill_in_the_middle_of_a_million_rows_loses_and_doubles_nothing(pg: Database, daemon: DaemonProcess) -> None:
    # Given a daemon that is in the middle of a large transaction.
    before = head_offset(daemon)
    with frozen(daemon):
        insert_million(pg)
    until(lambda: head_offset(daemon) > before + ROWS // 4, STREAM_S, "a part of the transaction")

    # When it is killed, and killed again in the middle of the rest.
    os.kill(daemon.pid, signal.SIGKILL)
    assert daemon.wait_exit() == -signal.SIGKILL
    captured = head_offset(daemon)
    assert before < captured < before + ROWS
    daemon.start(ready=False)
    until(lambda: head_offset(daemon) > captured + ROWS // 4, STREAM_S, "another part of the transaction")
    daemon.kill()
    assert captured < head_offset(daemon) < before + ROWS
    daemon.start(ready=False)

    # Then the stream gets every row once, and the index is true.
    until(lambda: head_offset(daemon) >= before + ROWS, STREAM_S, "the transaction to be in the stream")
    daemon.wait_ready()
    assert_index_is_true(daemon, pg)
    assert head_offset(daemon) == before + ROWS
