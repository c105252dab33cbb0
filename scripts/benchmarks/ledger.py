"""Batches per second through both transactions of the write protocol: the ledger in Postgres against one in a file.

Both on this machine's disk and both synced at each commit, in rounds that alternate. Small batches are the price of one
commit (the file has no round trips), large ones the price of a document, several agents at once what sharing gains:
the file has one writer, the server syncs the commits of several together.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from database import create_database, server
from figures import Figure
from machine import say
from sizes import Sizes

from cdc_agent.ledger.base import Checkpoint, ChunkRef, Flip, Ledger, Manifest, NewChunks
from cdc_agent.ledger.postgres import PostgresLedger
from cdc_agent.ledger.sqlite import SqliteLedger
from cdc_agent.lsn import Lsn, Version

__all__ = ["measure"]

_ROUNDS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """``agents`` write ``documents`` of two chunks each in every batch, documents of their own."""

    name: str
    agents: int
    documents: int


_LOADS = (
    Load(name="1 document", agents=1, documents=1),
    Load(name="50 documents", agents=1, documents=50),
    Load(name="1 document, 4 agents", agents=4, documents=1),
    Load(name="50 documents, 4 agents", agents=4, documents=50),
)


def measure(sizes: Sizes) -> list[Figure]:
    with server() as (running, _), tempfile.TemporaryDirectory() as folder:
        file: Ledger = SqliteLedger(Path(folder) / "ledger.sqlite")
        shared: Ledger = PostgresLedger(create_database(running, "ledger"))
        try:
            figures = [_compared(load, file, shared, sizes.ledger_batches) for load in _LOADS]
            return [*figures, _asking(file, shared, sizes.ledger_batches)]
        finally:
            file.close()
            shared.close()


def _compared(load: Load, file: Ledger, shared: Ledger, batches: int) -> Figure:
    rates: dict[str, list[float]] = {"file": [], "postgres": []}
    for round_ in range(_ROUNDS):
        for name, ledger in (("file", file), ("postgres", shared)):
            rates[name].append(_rate(ledger, load, batches, f"{load.name}/{round_}"))
    found = {name: statistics.median(values) for name, values in rates.items()}
    say(f"batches of {load.name}: file {found['file']:.0f}/s, Postgres {found['postgres']:.0f}/s")
    return Figure(measure=f"ledger: batches of {load.name}", unit="/s", ours=found["postgres"], reference=found["file"])


def _rate(ledger: Ledger, load: Load, batches: int, name: str) -> float:
    def work(agent: str) -> None:
        for turn in range(batches // load.agents):
            _batch(ledger, agent, [f"{agent}:{n}" for n in range(load.documents)], turn + 1)

    began = time.perf_counter()
    _at_once([lambda agent=f"{name}/{n}": work(agent) for n in range(load.agents)])  # type: ignore[misc]
    return batches / (time.perf_counter() - began)


def _batch(ledger: Ledger, agent: str, documents: Sequence[str], turn: int) -> None:
    new = [NewChunks(collection="docs", document_id=d, count=2) for d in documents]
    generation, ids = ledger.begin_write(new, agent=agent)
    manifests = [
        Manifest(
            collection="docs",
            document_id=document,
            version=Version(Lsn(turn), 1),
            xid=turn,
            relation_oid=1,
            chunks=tuple(ChunkRef(chunk, b"0123456789abcdef") for chunk in ids["docs", document]),
        )
        for document in documents
    ]
    at = Checkpoint(offset=turn, applied_lsn=Lsn(turn))
    ledger.flip(Flip(agent=agent, checkpoint=at, generation=generation, manifests=manifests))
    ledger.clear_garbage(ledger.garbage(200))


def _asking(file: Ledger, shared: Ledger, questions: int) -> Figure:
    """What a search asks: the turn, which of twenty chunks live, the turn again."""
    found: list[float] = []
    for ledger in (shared, file):
        chunks = [f"{document}#1.0" for document in ledger.documents_after("docs", "", 20)]
        began = time.perf_counter()
        for _ in range(questions):
            ledger.turn("docs")
            ledger.live("docs", chunks)
            ledger.turn("docs")
        found.append((time.perf_counter() - began) / questions * 1000)
    return Figure(measure="ledger: what one search asks", unit="ms", ours=found[0], reference=found[1])


def _at_once(acts: Sequence[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=act) for act in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
