"""Events that concern any number of documents: a truncate, and the end of a resync. Page by page, exact, and small."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cdc_agent.agents import batch
from cdc_agent.ledger.base import Checkpoint, ChunkRef, Flip, Manifest, Resync
from cdc_agent.lsn import Lsn, Version
from tests.support.rig import Rig
from tests.support.scripted import TABLE, Statement
from tests.support.wait import until

#: A document that is on its way out takes about 2.5 KB of memory.
DOCUMENTS = 20_000
MOST_BYTES = 13 << 20


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.close()


def seed(rig: Rig, count: int) -> None:
    """Documents that the ledger knows, and no row has."""
    for start in range(0, count, 1_000):
        manifests = [
            Manifest(
                collection="docs",
                document_id=f"{TABLE}:{n}",
                version=Version(Lsn(1), n),
                xid=1,
                relation_oid=1,
                chunks=(ChunkRef(f"{TABLE}:{n}#0.0", n.to_bytes(16, "big")),),
            )
            for n in range(start + 100, start + 1_100)
        ]
        rig.ledger.flip(Flip(agent="indexer", checkpoint=Checkpoint(), generation=0, manifests=manifests))


@pytest.mark.parametrize("how", ["truncate", "sweep"])
def test_removing_very_many_documents_takes_little_memory(rig: Rig, how: str) -> None:
    # Given very many documents of rows that are gone
    seed(rig, DOCUMENTS)
    rig.start()
    rig.insert("1")
    rig.settle()

    # When all of them are to be removed
    tracemalloc.start()
    if how == "truncate":
        rig.commit(Statement("truncate"))
    else:
        rig.place(rig.begin_resync(), rig.read_page(None, 10), done=True)
    rig.insert("2")
    until(lambda: rig.indexer.watermark.offset >= rig.stream.head_offset(), 120.0, "the index to catch up")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    # Then they are, and only some were held at a time
    rig.assert_index_is_the_table()
    assert peak < MOST_BYTES


@pytest.mark.parametrize("how", ["truncate", "sweep"])
def test_a_removal_that_dies_between_two_pages_begins_anew_and_is_exact(
    rig: Rig, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given documents of several pages, some rows that are there, and a change in front of the removal
    monkeypatch.setattr(batch, "_WIDE_PAGE", 10)
    rig.start()
    for key in range(1, 45):
        rig.insert(str(key))
    rig.settle()
    rig.stop()
    if how == "truncate":
        rig.update("7", title="before")
        rig.commit(Statement("truncate"))
        rig.insert("3", title="again")
    else:
        rows = rig.read_page(None, 20)
        # Commits that never reach the stream: nobody told us that these rows are gone.
        rig.database.commit(*(Statement("delete", str(key)) for key in range(21, 40)))
        resync = rig.begin_resync()
        rig.place(resync, rows, done=True)
        rig.insert("30", title="again")

    # When the process dies after a flip, again and again
    rig.ledger.after_flip = lambda _: rig.stop_signal.set()
    for _ in range(3):
        rig.start()
        until(rig.stop_signal.is_set, what="a flip")
        rig.stop()

    # Then the end is the table all the same
    rig.ledger.after_flip = lambda _: None
    rig.start()
    rig.settle()
    if how == "truncate":
        rig.assert_index_is_the_table()
    else:
        assert {rig.manifest(str(key)).deleted for key in range(21, 30)} == {True}  # type: ignore[union-attr]
        inserted = rig.manifest("30")
        assert inserted is not None
        assert not inserted.deleted


@pytest.mark.parametrize("partial", ["keys", "predicate"])
def test_rows_that_overtook_a_whole_resync_are_not_met_by_it(rig: Rig, partial: str) -> None:
    # Given a whole resync that waits, and a later one of some rows that does not wait for it
    rig.start()
    rig.insert("1")
    rig.insert("2")
    rig.settle()
    waiting = rig.ledger.start_resync(Resync(table=TABLE, collections=("docs",)))
    wanted = {"keys": (("1",),)} if partial == "keys" else {"predicate": "id = 1"}
    some = rig.ledger.start_resync(Resync(table=TABLE, collections=("docs",), **wanted))
    rig.place(some, rig.database.by_key(TABLE, [("1",)]), done=True)
    rig.settle()

    # When the table is replaced by one without the row, which no log tells of, and then read as a whole
    rig.database.commit(Statement("delete", "1"))
    begun = replace(waiting, snapshot=rig.database.snapshot())
    rig.ledger.save_resync(begun)
    rig.place(begun, rig.read_page(None, 10), done=True)

    # Then the row has left the index, and the other has not
    rig.assert_index_is_the_table()
    assert {i.rpartition("#")[0] for i in rig.live_ids()} == {f"{TABLE}:2"}


@pytest.mark.parametrize("first", ["insert", "read"])
def test_a_row_that_some_rows_brought_while_a_whole_resync_runs_stays(rig: Rig, first: str) -> None:
    # Given a whole resync that is past the place of a row, which comes then and is read by key before its change is
    # in the log, or after
    rig.start()
    rig.insert("5")
    rig.settle()
    begun = rig.begin_resync()
    page = rig.read_page(None, 10)
    some = rig.ledger.start_resync(Resync(table=TABLE, collections=("docs",), keys=(("1",),)))
    inserted = rig.database.commit(Statement("insert", "1", ("1", "t", "b", "en")))
    read = rig.database.by_key(TABLE, [("1",)])
    if first == "insert":
        rig.append(inserted)
    rig.place(some, read, done=True)

    # When the whole one ends
    rig.place(begun, page, done=True)
    if first == "read":
        rig.settle()
        rig.append(inserted)

    # Then the row is there
    rig.assert_index_is_the_table()
