"""After the source's history has become another one: offsets go on, and nothing that was kept wins over what comes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cdc_agent.agents.indexer import AGENT
from cdc_agent.errors import StreamError
from cdc_agent.events import Change, Transaction
from cdc_agent.ledger.base import Checkpoint, ChunkRef, DeadLetter, Flip, Manifest, Resync, SourceTable
from cdc_agent.ledger.sqlite import SqliteLedger
from cdc_agent.lsn import Lsn, Version
from cdc_agent.stream.base import Position
from cdc_agent.stream.sqlite import SqliteStream
from tests.support.rig import Rig
from tests.support.scripted import ScriptedDatabase, Statement


def commit(lsn: int, *, end: bool = True) -> Transaction:
    change = Change("m", None, 1, (b"cdc_agent.x", b""), None)
    return Transaction(
        xid=1, commit_lsn=Lsn(lsn), commit_ts_us=0, changes=[change], end_lsn=Lsn(lsn + 8) if end else None
    )


@pytest.fixture
def stream(tmp_path: Path) -> Iterator[SqliteStream]:
    opened = SqliteStream(tmp_path / "stream.db")
    yield opened
    opened.close()


def test_the_position_of_a_rebased_stream_moves_back_and_its_offsets_go_on(
    stream: SqliteStream, tmp_path: Path
) -> None:
    # Given a stream with entries, and a part of a commit
    stream.append([commit(100), commit(200), commit(300, end=False)])

    # When it is rebased
    stream.rebase(Lsn(50))

    # Then nothing of that is left, whatever a reader has read before
    assert stream.position() == Position(captured_lsn=Lsn(50))
    assert (stream.head_offset(), stream.size_bytes()) == (3, 0)
    for after in (0, 2, 3):
        batch = stream.read(after, limit=10, wait_s=0)
        assert (list(batch.events), batch.next_offset, batch.applied_lsn) == ([], 3, 50)

    # And what comes has the next offsets, also for who opens the file later
    stream.append([commit(60)])
    again = SqliteStream(tmp_path / "stream.db")
    for opened in (stream, again):
        batch = opened.read(1, limit=10, wait_s=0)
        assert [event.version.commit_lsn for event in batch.events] == [60]
        assert (batch.next_offset, batch.applied_lsn) == (4, 68)
    # Nothing that is void takes room.
    assert again.size_bytes() == stream.size_bytes() > 0
    again.close()


@pytest.mark.parametrize("lost", [[2], [3], [2, 3]], ids=["the first", "the last", "all"])
def test_entries_that_went_missing_otherwise_are_still_missed(stream: SqliteStream, lost: list[int]) -> None:
    # Given a rebased stream that went on, and lost a block
    stream.append([commit(100)])
    stream.rebase(Lsn(50))
    for lsn in (60, 70):
        stream.append([commit(lsn)])
    for offset in lost:
        stream._writer.execute("delete from block where first_offset = ?", (offset,))

    with pytest.raises(StreamError, match="not in the stream any more"):
        stream.read(1, limit=10, wait_s=0)


def test_nothing_in_a_rebased_ledger_is_newer_than_what_comes(tmp_path: Path) -> None:
    # Given a ledger with a document, a tombstone, a dead letter, resyncs and a table
    ledger = SqliteLedger(tmp_path / "ledger.db")
    version = Version(Lsn(900), 7)
    live = Manifest(
        collection="c",
        document_id="t:1",
        version=version,
        xid=77,
        relation_oid=5,
        chunks=(ChunkRef("t:1#1.0", b"h"),),
        snapshot="70:80:",
        epoch=3,
    )
    gone = Manifest(collection="c", document_id="t:2", version=version, xid=77, relation_oid=5, deleted=True)
    letter = DeadLetter(
        agent=AGENT,
        collection="c",
        document_id="t:3",
        table="t",
        key=("3",),
        version=version,
        reason="render",
        error="e",
        attempts=1,
        parked_at=1.0,
    )
    checkpoint = Checkpoint(offset=40, applied_lsn=Lsn(950))
    ledger.flip(Flip(agent=AGENT, checkpoint=checkpoint, generation=0, manifests=[live, gone], dead_letters=[letter]))
    ledger.start_resync(Resync(table="t", collections=("c",)))
    ledger.save_source_table(SourceTable(name="t", oid=5, shape="{}"))

    # When it is rebased
    ledger.rebase(2.0)

    # Then chunks, offset and letter are as they were, and everything else is older than anything
    found = ledger.manifests("c", ["t:1", "t:2"])
    assert found.keys() == {"t:1"}
    kept = found["t:1"]
    assert kept == replace(live, version=Version(Lsn(0), 0), xid=0, snapshot=None, epoch=0)
    assert ledger.checkpoint(AGENT) == Checkpoint(offset=40, applied_lsn=Lsn(0))
    assert [one.version for one in ledger.dead_letters()] == [Version(Lsn(0), 0)]
    assert [one.state for one in ledger.resyncs()] == ["failed"]
    assert ledger.source_tables() == {}
    assert ledger.counts("c") == (1, 1)
    ledger.close()


def test_an_index_of_another_history_becomes_true_without_embedding_what_is_known(tmp_path: Path) -> None:
    # Given an index of a database, which is then set back to an earlier state and goes on from there
    rig = Rig(tmp_path)
    rig.start()
    try:
        for key in ("1", "2", "3"):
            rig.insert(key, f"title {key}")
        rig.settle()
        rig.stop()
        rig.database = ScriptedDatabase()
        for key, title in (("1", "title 1"), ("2", "title 2"), ("9", "another")):
            rig.database.commit(Statement("insert", key, (key, title, "b", "en")))
        assert rig.database.next_lsn == 10_300

        # When stream and ledger are rebased, and all is read again
        rig.stream.rebase(Lsn(10_300))
        rig.ledger.rebase(1.0)
        rig.ledger._newest = {}
        known = len(rig.embedder.texts)
        rig.start()
        resync = rig.begin_resync()
        rig.place(resync, rig.read_page(None, 100), done=True)
        rig.update("1", "title 1", "b", "de")

        # Then the index is the table, and only the new text was embedded
        rig.assert_index_is_the_table()
        assert len(rig.embedder.texts) - known == len(rig.manifest("9").chunks)  # type: ignore[union-attr]
    finally:
        rig.close()
