"""Ledger and stream can each be lost, put back from a copy or damaged: found, named, and healed without embedding."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.daemon import DaemonProcess
from tests.support.oracle import assert_index_equals_table
from tests.support.postgres import Database
from tests.support.wait import until

ITEMS = {"name": "items", "table": "public.items", "text": "{title}\n\n{body}", "metadata": ["n"]}
ROWS = 60


@pytest.fixture
def stopped(pg: Database, new_daemon: Callable[..., DaemonProcess]) -> DaemonProcess:
    """A daemon that has indexed a table and was stopped; since then one row changed, one came, one went."""
    pg.execute("create table items (id int primary key, title text, body text, n int)")
    pg.execute("insert into items select i, 'title ' || i, 'body of ' || i, i from generate_series(1, %s) i", (ROWS,))
    daemon = new_daemon(pg, collections=[ITEMS])
    daemon.start()
    assert_index_equals_table(daemon, pg)
    assert daemon.terminate() == 0
    pg.execute("update items set body = 'another body' where id = 1")
    pg.execute("insert into items values (1000, 'new', 'a new row', 0)")
    pg.execute("delete from items where id = 2")
    return daemon


def file_of(daemon: DaemonProcess, name: str) -> Path:
    return Path(daemon.settings["state_dir"]) / f"{name}.sqlite"


def refused(daemon: DaemonProcess, state: str) -> None:
    """It does not start, and says why and what to do."""
    daemon.start(ready=False)
    assert daemon.wait_exit() == 78
    assert f"{state}: " in daemon.log
    assert "ON_MISMATCH=resync" in daemon.log


def heals(daemon: DaemonProcess, pg: Database, state: str) -> None:
    """With ``on_mismatch: resync`` it starts, and embeds nothing but the two rows that are new to it."""
    daemon.configure(source={"on_mismatch": "resync"})
    daemon.start()
    assert_index_equals_table(daemon, pg)
    until(lambda: not daemon.status()["resyncs"], 60.0, "the resync to end")
    assert_index_equals_table(daemon, pg)
    assert f"mending state={state}" in daemon.log
    assert daemon.metric("cdc_agent_chunks_embedded_total") == 2
    until(lambda: daemon.metric("cdc_agent_mismatch") == 0, what="the state to be settled")


def lives_on(daemon: DaemonProcess, pg: Database) -> None:
    """What was mended stays mended: the next start finds nothing, and changes go through."""
    assert daemon.terminate() == 0
    mended = daemon.log.count("mending state=")
    daemon.configure(source={"on_mismatch": "stop"})
    daemon.start()
    pg.execute("update items set n = n + 1")
    assert_index_equals_table(daemon, pg)
    assert daemon.log.count("mending state=") == mended
    assert daemon.metric("cdc_agent_chunks_embedded_total") == 0


def flip(path: Path, place: int) -> None:
    """One byte is not what it was."""
    data = bytearray(path.read_bytes())
    data[place] ^= 0xFF
    path.write_bytes(data)


def inside(path: Path, words: bytes, *, last: bool = False) -> int:
    """Where in a file some content lies."""
    data = path.read_bytes()
    place = data.rfind(words) if last else data.find(words)
    assert place > 0, f"{words!r} is not in {path.name}"
    return place


@pytest.mark.parametrize("how", ["removed", "emptied"])
@pytest.mark.fault("ledger-damaged")
def test_a_ledger_that_is_gone_is_begun_anew_with_the_vectors_of_the_store(
    pg: Database, stopped: DaemonProcess, how: str
) -> None:
    # Given a daemon whose ledger is gone
    ledger = file_of(stopped, "ledger")
    if how == "removed":
        ledger.unlink()
    else:
        ledger.write_bytes(b"")

    # When it is started, then it says so and stops, unless it is told to mend that
    refused(stopped, "LEDGER_LOST")
    heals(stopped, pg, "LEDGER_LOST")
    lives_on(stopped, pg)


def test_state_of_the_version_before_is_gone_on_with(pg: Database, stopped: DaemonProcess) -> None:
    # Given the files of a daemon from before files had a number
    for name in ("ledger", "stream"):
        with closing(sqlite3.connect(file_of(stopped, name))) as connection:
            connection.execute("pragma user_version = 0")

    # When the present one is started on them
    stopped.start()

    # Then it goes on: nothing is read again, and only what has changed is embedded
    assert_index_equals_table(stopped, pg)
    assert stopped.metric("cdc_agent_chunks_embedded_total") == 2
    assert "mending state=" not in stopped.log


DAMAGES: dict[str, Callable[[Path], None]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "its middle zeroed": lambda path: path.write_bytes(
        path.read_bytes()[: path.stat().st_size // 3]
        + bytes(path.stat().st_size // 3)
        + path.read_bytes()[2 * (path.stat().st_size // 3) :]
    ),
    "a byte of its head flipped": lambda path: flip(path, 3),
    "a byte of its tables flipped": lambda path: flip(path, inside(path, b"CREATE TABLE manifest") + 14),
    "a byte of a manifest's content flipped": lambda path: flip(path, inside(path, b"public.items:7#", last=True) + 17),
}


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.fault("ledger-damaged")
def test_a_damaged_ledger_is_put_aside_and_begun_anew(pg: Database, stopped: DaemonProcess, how: str) -> None:
    # Given a daemon whose ledger is not as it was written
    ledger = file_of(stopped, "ledger")
    DAMAGES[how](ledger)

    # When it is started, then it says so and stops, unless it is told to mend that
    refused(stopped, "LEDGER_CORRUPT")
    heals(stopped, pg, "LEDGER_CORRUPT")
    assert list(ledger.parent.glob("ledger.sqlite.damaged-*"))
    lives_on(stopped, pg)


@pytest.mark.parametrize("mend", [True, False])
@pytest.mark.fault("ledger-damaged")
def test_a_ledger_that_is_damaged_under_our_hands(pg: Database, stopped: DaemonProcess, mend: bool) -> None:
    # Given a daemon that runs
    stopped.configure(source={"on_mismatch": "resync" if mend else "stop"})
    stopped.start()
    assert_index_equals_table(stopped, pg)

    # When what its ledger says of a row is overwritten, and the row changes
    with contextlib.closing(sqlite3.connect(file_of(stopped, "ledger"), timeout=30)) as connection, connection:
        connection.execute("update manifest set xid = xid + 1 where document_id = 'public.items:7'")
    pg.execute("update items set n = -1 where id = 7")

    # Then it stops and says so; or it begins anew by itself, in the same process, and embeds nothing
    if not mend:
        assert stopped.wait_exit() == 78
        assert "LEDGER_CORRUPT: " in stopped.log
        return
    until(lambda: "mending state=LEDGER_CORRUPT" in stopped.log, 30.0, "the damage to be found")
    until(lambda: "mended state=LEDGER_LOST" in stopped.log, 60.0, "the slot to be made anew")
    stopped.wait_ready()
    assert_index_equals_table(stopped, pg)
    # Two rows changed while the daemon was down.
    assert stopped.metric("cdc_agent_chunks_embedded_total") == 2


@pytest.mark.fault("ledger-restored")
def test_a_ledger_from_an_older_copy_is_not_believed(pg: Database, stopped: DaemonProcess, tmp_path: Path) -> None:
    # Given a daemon whose ledger was put back from a copy, after it went on with a newer one
    ledger = file_of(stopped, "ledger")
    shutil.copy(ledger, tmp_path / "copy")
    stopped.start()
    assert_index_equals_table(stopped, pg)
    assert stopped.terminate() == 0
    shutil.copy(tmp_path / "copy", ledger)

    # When it is started, then it says so and stops, and heals when it is told to
    refused(stopped, "LEDGER_LOST")
    stopped.configure(source={"on_mismatch": "resync"})
    stopped.start()
    assert_index_equals_table(stopped, pg)
    assert stopped.metric("cdc_agent_chunks_embedded_total") == 0
    lives_on(stopped, pg)


@pytest.mark.parametrize("how", ["removed", "emptied"])
@pytest.mark.fault("stream-damaged")
def test_a_stream_that_is_gone_is_begun_anew(pg: Database, stopped: DaemonProcess, how: str) -> None:
    # Given a daemon whose stream is gone
    stream = file_of(stopped, "stream")
    if how == "removed":
        stream.unlink()
    else:
        stream.write_bytes(b"")

    # When it is started, then it says so and stops, unless it is told to mend that
    refused(stopped, "STREAM_LOST")
    heals(stopped, pg, "STREAM_LOST")
    lives_on(stopped, pg)


@pytest.mark.fault("stream-damaged")
def test_a_stream_from_an_older_copy_is_not_believed(pg: Database, stopped: DaemonProcess, tmp_path: Path) -> None:
    # Given a daemon whose stream was put back from a copy, after it went on with a newer one
    stream = file_of(stopped, "stream")
    shutil.copy(stream, tmp_path / "copy")
    stopped.start()
    assert_index_equals_table(stopped, pg)
    assert stopped.terminate() == 0
    shutil.copy(tmp_path / "copy", stream)

    # When it is started, then it says so and stops, and heals when it is told to
    refused(stopped, "STREAM_LOST")
    stopped.configure(source={"on_mismatch": "resync"})
    stopped.start()
    assert_index_equals_table(stopped, pg)
    assert stopped.metric("cdc_agent_chunks_embedded_total") == 0
    lives_on(stopped, pg)


@pytest.mark.parametrize("how", ["truncated", "its middle zeroed", "a byte of its head flipped"])
@pytest.mark.fault("stream-damaged")
def test_a_damaged_stream_is_put_aside_and_begun_anew(pg: Database, stopped: DaemonProcess, how: str) -> None:
    # Given a daemon whose stream is not as it was written
    stream = file_of(stopped, "stream")
    DAMAGES[how](stream)

    # When it is started, then it says so and stops, unless it is told to mend that
    refused(stopped, "STREAM_CORRUPT")
    heals(stopped, pg, "STREAM_CORRUPT")
    assert list(stream.parent.glob("stream.sqlite.damaged-*"))
    lives_on(stopped, pg)


@pytest.mark.fault("state-lost")
def test_a_state_that_is_gone_as_a_whole_is_begun_anew(pg: Database, stopped: DaemonProcess) -> None:
    # Given a daemon whose state folder is gone with everything in it
    shutil.rmtree(stopped.settings["state_dir"])

    # When it is started, then the slot tells that there was a life before
    stopped.start(ready=False)
    assert stopped.wait_exit() == 78
    assert "LEDGER_LOST: " in stopped.log

    # When it may mend that, then the index is built again
    stopped.configure(source={"on_mismatch": "resync"})
    stopped.start()
    assert_index_equals_table(stopped, pg)
    lives_on(stopped, pg)
