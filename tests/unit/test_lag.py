"""How far behind the index is: the age of the oldest commit that a reader misses, whatever else waits in the stream."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cdc_agent.daemon.lag import oldest_missing_us
from cdc_agent.events import Change, Column, Relation, Transaction
from cdc_agent.lsn import Lsn
from cdc_agent.stream.sqlite import SqliteStream

RELATION = Relation(
    oid=1, root_oid=1, schema="public", name="docs", columns=(Column(name="id", type_oid=23),), key=("id",)
)
NOW = int(time.time())


@pytest.fixture
def stream(tmp_path: Path) -> Iterator[SqliteStream]:
    """Three rows that a resync read, placed at 100 and five minutes old, and a change at 200, ten seconds old."""
    stream = SqliteStream(tmp_path / "stream.db")
    stream.append([a_commit(100, 300, "r", rows=3), a_commit(200, 10, "u", rows=1)])
    yield stream
    stream.close()


def a_commit(lsn: int, age_s: int, op: str, *, rows: int) -> Transaction:
    is_read = op == "r"
    return Transaction(
        xid=lsn,
        commit_lsn=Lsn(lsn),
        commit_ts_us=(NOW - age_s) * 1_000_000,
        changes=[Change(op, RELATION, n, None, (b"%d" % n,)) for n in range(1, rows + 1)],
        end_lsn=Lsn(lsn + 1),
        snapshot="1:1:" if is_read else None,
        resync_id=1 if is_read else 0,
    )


@pytest.mark.parametrize(
    ("offset", "applied", "age_s"),
    [
        pytest.param(0, 50, 300, id="nothing is applied"),
        pytest.param(0, 150, 10, id="only the change is missed, the rows before it wait"),
        pytest.param(0, 201, None, id="the change overtook the rows, which wait"),
        pytest.param(4, 201, None, id="nothing waits"),
    ],
)
def test_rows_that_changes_overtook_are_not_missed(
    stream: SqliteStream, offset: int, applied: int, age_s: int | None
) -> None:
    found = oldest_missing_us(stream, offset, Lsn(applied))

    assert found == (None if age_s is None else (NOW - age_s) * 1_000_000)
