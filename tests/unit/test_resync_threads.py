"""The resync runner: what cannot be read is given up by itself and takes nothing else with it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from cdc_agent.errors import LedgerFull, RenderError, SourceError, SourceUnavailable
from cdc_agent.events import Change, Transaction
from cdc_agent.health import Health
from cdc_agent.ledger.base import Checkpoint, Flip, Resync
from cdc_agent.ledger.sqlite import SqliteLedger
from cdc_agent.lsn import Lsn
from cdc_agent.resync import MESSAGE_PREFIX, PageBoard, ResyncRunner
from cdc_agent.retry import Backoff, Retrier
from cdc_agent.source.base import RowSet, TableRows
from tests.support.scripted import TABLE, ScriptedDatabase, Statement
from tests.support.wait import until


class Reader:
    """A scripted database whose marks come back at once, through the board, and are applied at once."""

    def __init__(self, database: ScriptedDatabase, board: PageBoard, ledger: SqliteLedger) -> None:
        self.database = database
        self.board = board
        self.ledger = ledger
        self.fail: list[Exception] = []
        self.placed: list[Transaction] = []
        self.seen: list[bytes] = []
        #: Called with the resync of a page that was placed.
        self.after_mark: Callable[[Resync], object] | None = None

    def page(self, request: TableRows) -> RowSet:
        self._fail()
        return self.database.page(request)

    def by_key(self, table: str, keys: Iterable[tuple[str, ...]]) -> RowSet:
        self._fail()
        return self.database.by_key(table, keys)

    def mark(self, prefix: str, content: Mapping[str, object]) -> Lsn:
        tx = self.board.expand(self.database.message(prefix, content))
        assert tx is not None
        self.placed.append(tx)
        self.seen += [change.after[0] for change in tx.changes if change.op == "r" and change.after]  # type: ignore[misc]
        body = orjson.loads(tx.changes[-1].before[1])  # type: ignore[index]
        resync = next(r for r in self.ledger.resyncs() if r.id == tx.resync_id)
        moved = replace(
            resync,
            last_key=tuple(body["last_key"]) if body["last_key"] else None,
            rows_done=body["rows_done"],
            state="done" if body["done"] else "running",
        )
        self.ledger.flip(Flip(agent="a", checkpoint=Checkpoint(), generation=0, resyncs=[moved]))
        if self.after_mark is not None:
            self.after_mark(resync)
        return tx.commit_lsn

    def estimated_rows(self, table: str, predicate: str = "") -> int:
        self._fail()
        return 7

    def _fail(self) -> None:
        if self.fail:
            raise self.fail.pop(0)


class Running:
    def __init__(self, folder: Path) -> None:
        self.ledger = SqliteLedger(folder / "ledger.db")
        self.board = PageBoard()
        self.database = ScriptedDatabase()
        self.database.commit(*(Statement("insert", str(n), (str(n), "t", "b", "en")) for n in range(1, 8)))
        self.reader = Reader(self.database, self.board, self.ledger)
        self.stop = threading.Event()
        self.paused = threading.Event()
        self.failures: list[BaseException] = []
        self.runner = ResyncRunner(
            ledger=self.ledger,
            reader=self.reader,
            board=self.board,
            estimated_rows=self.reader.estimated_rows,
            retrier=Retrier(self.stop, Health(), Backoff(initial_s=0.001, maximum_s=0.001)),
            stop=self.stop,
            rows_per_page=3,
        )
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.runner.run()
        except BaseException as exc:
            self.failures.append(exc)

    def request(self, *keys: str) -> Resync:
        wanted = Resync(table=TABLE, collections=("docs",), keys=tuple((key,) for key in keys))
        return self.runner.request(wanted)

    def state(self, resync: Resync) -> str:
        return next(r.state for r in self.ledger.resyncs() if r.id == resync.id)

    def await_state(self, resync: Resync, state: str) -> None:
        until(lambda: self.state(resync) == state, what=f"the resync to be {state}")

    def end(self) -> None:
        self.stop.set()
        self.runner.notify()
        self._thread.join(10)
        assert not self._thread.is_alive()
        self.ledger.close()
        assert self.failures == []


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    made = Running(tmp_path)
    yield made
    made.end()


def test_a_table_is_read_page_by_page_to_its_end(running: Running) -> None:
    resync = running.request()

    running.await_state(resync, "done")

    assert running.reader.seen == [str(n).encode() for n in range(1, 8)]
    assert [len(tx.changes) - 1 for tx in running.reader.placed] == [3, 3, 1]
    [found] = running.ledger.resyncs()
    assert (found.rows_done, found.rows_estimated) == (7, 7)


def test_a_source_that_is_away_is_waited_for(running: Running) -> None:
    running.reader.fail = [SourceUnavailable("away")] * 5

    running.await_state(running.request(), "done")


@pytest.mark.parametrize("error", [SourceError("Postgres answered 22P02: abc is no integer"), RenderError("gone")])
def test_keys_that_are_no_keys_end_their_resync_and_nothing_else(running: Running, error: Exception) -> None:
    # Given keys that the server refuses
    running.reader.fail = [error]
    refused = running.request("abc")
    running.await_state(refused, "failed")

    # When another resync is asked for
    good = running.request("1", "99")

    # Then it is done, with the absent key named
    running.await_state(good, "done")
    body = orjson.loads(running.reader.placed[-1].changes[-1].before[1])  # type: ignore[index]
    assert body["absent"] == [["99"]]


def test_a_full_disk_under_the_ledger_is_waited_for(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    save, full = running.ledger.save_resync, [LedgerFull("full")] * 3

    def saving(resync: Resync) -> None:
        if full:
            raise full.pop()
        save(resync)

    monkeypatch.setattr(running.ledger, "save_resync", saving)

    running.await_state(running.request(), "done")
    assert full == []


def test_a_paused_resync_reads_no_more_and_goes_on_after_its_last_page(running: Running) -> None:
    # Given a resync that is paused after its first page
    def pause(resync: Resync) -> None:
        assert running.runner.pause(resync.id)
        running.paused.set()

    running.reader.after_mark = pause
    resync = running.request()
    assert running.paused.wait(10)
    running.await_state(resync, "paused")
    running.reader.after_mark = None

    # When another is asked for meanwhile
    running.await_state(running.request("7"), "done")

    # Then the first has not moved, and goes on where it was once it is told to
    assert running.reader.seen == [b"1", b"2", b"3", b"7"]
    assert running.runner.resume(resync.id)
    running.await_state(resync, "done")
    assert running.reader.seen[4:] == [b"4", b"5", b"6", b"7"]
    assert not running.runner.pause(resync.id)
    assert not running.runner.resume(resync.id)


def test_a_cancelled_resync_is_not_brought_back_by_progress_that_was_on_its_way(running: Running) -> None:
    running.reader.after_mark = lambda resync: running.runner.cancel(resync.id)
    cancelled = running.request()
    running.await_state(cancelled, "cancelled")
    running.reader.after_mark = None

    # When progress of it comes to the ledger afterwards
    late = replace(running.ledger.resyncs()[0], state="running", rows_done=6)
    running.ledger.flip(Flip(agent="a", checkpoint=Checkpoint(), generation=0, resyncs=[late]))
    running.ledger.save_resync(replace(late, state="done", finished_at=1.0))

    # Then it stays cancelled, and cannot be moved
    running.await_state(running.request("1"), "done")
    assert running.state(cancelled) == "cancelled"
    assert not running.runner.resume(cancelled.id)
    assert not running.runner.cancel(cancelled.id)


def test_keys_do_not_wait_for_a_table_and_very_many_come_in_portions(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given some keys that are asked for in the middle of a table
    monkeypatch.setattr("cdc_agent.resync._KEYS_AT_ONCE", 2)
    asked: list[Resync] = []

    def ask(resync: Resync) -> None:
        if not asked:
            asked.append(resync)
            asked.append(running.request("7", "99", "7", "6"))

    running.reader.after_mark = ask
    whole = running.request()
    running.await_state(whole, "done")

    # Then they are read before the rest of it, each once
    assert running.state(asked[1]) == "done"
    assert running.reader.seen == [b"1", b"2", b"3", b"7", b"6", b"4", b"5", b"6", b"7"]


# -- the board --------------------------------------------------------------------------------------------------


def test_what_is_no_mark_of_ours_passes(running: Running) -> None:
    for prefix, content in (
        ("other", b'{"token": "x"}'),
        (MESSAGE_PREFIX, b"\xff"),
        (MESSAGE_PREFIX, b"[]"),
        (MESSAGE_PREFIX, b'{"token": 5}'),
        (MESSAGE_PREFIX, b'{"token": "of an earlier life"}'),
    ):
        tx = running.database.message("", {})
        tx.changes = [Change("m", None, 1, (prefix.encode(), content), None)]
        assert running.board.expand(tx) is None


def test_a_resync_that_can_never_be_read_hears_that_it_is_cancelled(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a condition that the server never gets done with
    page = running.reader.page

    def paged(request: TableRows) -> RowSet:
        if request.predicate:
            raise SourceUnavailable("canceling statement due to statement timeout")
        return page(request)

    monkeypatch.setattr(running.reader, "page", paged)
    endless = running.runner.request(Resync(table=TABLE, collections=("docs",), predicate="slow(id)"))

    # When it is cancelled
    assert running.runner.cancel(endless.id)

    # Then the next one is not held up
    running.await_state(running.request(), "done")
    assert running.state(endless) == "cancelled"


def test_a_resync_that_failed_remembers_what_it_had_seen(running: Running) -> None:
    # Given a table whose second page cannot be read
    def fail(_: Resync) -> None:
        running.reader.fail = [SourceError("Postgres answered 22P02")]
        running.reader.after_mark = None

    running.reader.after_mark = fail
    resync = running.request()
    running.await_state(resync, "failed")

    # Then it can go on where it was: rows that came since were never in it
    [found] = running.ledger.resyncs()
    assert found.snapshot is not None
    assert running.runner.resume(resync.id)
    running.await_state(resync, "done")
