"""A table that is to be read again, and waits for that already, is not read twice."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from cdc_agent.health import Health
from cdc_agent.ledger.base import Resync
from cdc_agent.ledger.sqlite import SqliteLedger
from cdc_agent.lsn import Lsn
from cdc_agent.resync import PageBoard, ResyncRunner
from cdc_agent.retry import Backoff, Retrier
from cdc_agent.source.base import RowSet, TableRows
from tests.support.wait import until

DOCS = Resync(table="public.docs", collections=("docs", "titles"), reason="table rewritten")


class Reader:
    """Is asked for a page, and waits for ``answer``."""

    def __init__(self) -> None:
        self.asked, self.answer = threading.Event(), threading.Event()

    def page(self, request: TableRows) -> RowSet:
        self.asked.set()
        assert self.answer.wait(20)
        return RowSet(snapshot="1:1:", relations=(), rows=())

    def by_key(self, table: str, keys: Iterable[tuple[str, ...]]) -> RowSet:
        raise NotImplementedError

    def mark(self, prefix: str, content: Mapping[str, object]) -> Lsn:
        return Lsn(1)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[SqliteLedger]:
    made = SqliteLedger(tmp_path / "ledger.db")
    yield made
    made.close()


@pytest.fixture
def reader() -> Reader:
    return Reader()


@pytest.fixture
def stop() -> threading.Event:
    return threading.Event()


@pytest.fixture
def runner(ledger: SqliteLedger, reader: Reader, stop: threading.Event) -> ResyncRunner:
    return ResyncRunner(
        ledger=ledger,
        reader=reader,  # type: ignore[arg-type]
        board=PageBoard(),
        estimated_rows=lambda *_: 0,
        retrier=Retrier(stop, Health(), Backoff(initial_s=0.001, maximum_s=0.001)),
        stop=stop,
    )


def test_one_that_waits_is_enough(runner: ResyncRunner, ledger: SqliteLedger) -> None:
    first = runner.request_once(DOCS)

    for _ in range(5):
        assert runner.request_once(replace(DOCS, reason="table columns")).id == first.id
    assert runner.request_once(replace(DOCS, collections=("docs",))).id == first.id
    assert runner.request_once(replace(DOCS, predicate="id > 5")).id == first.id

    assert len(ledger.resyncs()) == 1


@pytest.mark.parametrize(
    "waiting",
    [
        replace(DOCS, keys=(("1",),)),
        replace(DOCS, predicate="id > 5"),
        replace(DOCS, collections=("docs",)),
        replace(DOCS, table="public.others"),
    ],
)
def test_one_that_reads_less_is_not(runner: ResyncRunner, ledger: SqliteLedger, waiting: Resync) -> None:
    first = runner.request_once(waiting)

    assert runner.request_once(DOCS).id != first.id


def test_one_that_has_begun_to_read_is_not(
    runner: ResyncRunner, ledger: SqliteLedger, reader: Reader, stop: threading.Event
) -> None:
    # Given a resync whose first statement is under way: its snapshot may be older than the reason for another
    first = runner.request_once(DOCS)
    thread = threading.Thread(target=runner.run, daemon=True)
    thread.start()
    assert reader.asked.wait(20)
    assert ledger.resyncs()[0].snapshot is None

    # Then another is queued, once
    second = runner.request_once(DOCS)
    assert second.id != first.id
    assert runner.request_once(DOCS).id == second.id
    reader.answer.set()
    stop.set()
    runner.notify()
    until(lambda: not thread.is_alive(), what="the runner to end")
