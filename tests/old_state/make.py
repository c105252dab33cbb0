"""Makes the files beside this one, with the code of their time: what an upgrade finds.

    git worktree add /tmp/then COMMIT
    PYTHONPATH=/tmp/then python tests/old_state/make.py FOLDER

`ledger-1` was made with 6e16000^ (before writings were timed), `ledger-2` and `stream-1` with 3c35d99 (before the
number of a file's schema was in `user_version`), `journal-1` with 71a5671. A new version of a schema needs the file of
the one before it here.
"""

from __future__ import annotations

import datetime as dt
import sqlite3
import sys
from pathlib import Path

from cdc_agent.events import Change, Column, Event, Kind, Relation, Transaction
from cdc_agent.journal.base import Letter, Outcome, Reading
from cdc_agent.journal.desk import SqliteDesk
from cdc_agent.journal.file import JournalFile
from cdc_agent.journal.saga_book import SagaRecord, SagaState
from cdc_agent.journal.saga_sqlite import SqliteSagaBook
from cdc_agent.journal.sqlite import SqliteJournal
from cdc_agent.ledger.base import Checkpoint, ChunkRef, DeadLetter, Flip, Manifest, NewChunks
from cdc_agent.ledger.sqlite import SqliteLedger
from cdc_agent.lsn import Lsn, Version
from cdc_agent.stream.sqlite import SqliteStream

DOCUMENTS = {"public.notes:1": 3, "public.notes:2": 1, "public.notes:3": 2}


def make_ledger(path: Path) -> None:
    ledger = SqliteLedger(path)
    ledger.save_collection("notes", "all-MiniLM-L6-v2/256")
    ledger.register_agent("indexer", 0)
    for place, (document, count) in enumerate(DOCUMENTS.items(), start=1):
        new = [NewChunks(collection="notes", document_id=document, count=count)]
        vectors = {f"{document}/{n}".encode().ljust(16, b"."): bytes([place, n]) * 8 for n in range(count)}
        generation, ids = ledger.begin_write(new, agent="indexer", vectors=vectors, fingerprint="all-MiniLM-L6-v2")
        chunks = zip(ids["notes", document], vectors, strict=True)
        manifest = Manifest(
            collection="notes",
            document_id=document,
            version=Version(Lsn(place * 100), 1),
            xid=place,
            relation_oid=16_384,
            chunks=tuple(ChunkRef(chunk, text_hash) for chunk, text_hash in chunks),
        )
        letter = DeadLetter(
            agent="indexer",
            collection="notes",
            document_id="public.notes:9",
            table="public.notes",
            key=("9",),
            version=Version(Lsn(50), 1),
            reason="poison",
            error="it cannot be embedded",
            attempts=3,
            parked_at=1_000.0,
        )
        ledger.flip(
            Flip(
                agent="indexer",
                checkpoint=Checkpoint(offset=place, applied_lsn=Lsn(place * 100)),
                generation=generation,
                manifests=[manifest],
                dead_letters=[letter] if place == 1 else [],
            )
        )
    ledger.close()


def make_stream(path: Path) -> None:
    columns = (Column(name="id", type_oid=23), Column(name="body", type_oid=25))
    notes = Relation(oid=16_384, root_oid=16_384, schema="public", name="notes", columns=columns, key=("id",))
    stream = SqliteStream(path)
    for number in (1, 2, 3):
        change = Change("c", notes, 1, None, (str(number).encode(), f"note {number}".encode()))
        transaction = Transaction(
            xid=number,
            commit_lsn=Lsn(number * 100),
            commit_ts_us=number,
            changes=[change],
            end_lsn=Lsn(number * 100 + 8),
            size_bytes=10,
        )
        stream.append([transaction])
    stream.tie("a-ledger")
    stream.close()


def make_journal(path: Path) -> None:
    at = dt.datetime(2026, 11, 28, 1, 0, tzinfo=dt.UTC)
    file = JournalFile(path)
    journal, desk, book = SqliteJournal(file), SqliteDesk(file), SqliteSagaBook(file)
    events = [Event(id=f"e-{n}", source="shop", type="order.paid", key="7", time=at, data={"n": n}) for n in (1, 2, 3)]
    journal.append(events)
    desk.place("thanks", 0)
    said = Event(id="said", source="agent/thanks", type="thanked", time=at, data={}, kind=Kind.FACT)
    desk.settle(Outcome(agent="thanks", number=1, passed=1, emitted=(said,), memory=("k", {"n": 1})))
    letter = Letter(agent="thanks", number=2, event=events[1], reason="failed", error="no", attempts=5, parked_at=at)
    desk.settle(Outcome(agent="thanks", number=2, passed=2, letter=letter))
    desk.read_to(Reading(offset=42, commit_lsn=400), [])
    start = Event(id="start", source="shop", type="refund", time=at, data={"cents": 100}, kind=Kind.COMMAND)
    record = SagaRecord(
        id="refund-1",
        name="refund",
        state=SagaState.RUNNING,
        start=start,
        steps=("reserve~", "pay"),
        due_us=1,
        started_us=0,
        changed_us=0,
    )
    desk.place("sagas", 0)
    book.begin("sagas", 3, [(record, [])])
    file.close()


def settle(path: Path) -> None:
    """One file, without what SQLite keeps beside an open one."""
    with sqlite3.connect(path) as connection:
        connection.execute("pragma journal_mode = delete")
        connection.execute("vacuum")
    connection.close()


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    makers = {"ledger.sqlite": make_ledger, "stream.sqlite": make_stream, "journal.sqlite": make_journal}
    for name, make in makers.items():
        make(folder / name)
        settle(folder / name)
