"""How much each measurement does. ``FULL`` is what figures are taken with; ``QUICK`` shows that everything works."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FULL", "QUICK", "Sizes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Counts are rows or documents unless the name says otherwise."""

    capture_rows: int
    capture_rounds: int
    index_documents: int
    index_rounds: int
    freshness_commits: int
    idle_s: float
    idle_settle_s: float
    ledger_batches: int
    memory_rows: int
    resync_rows: int
    resync_commits: int
    search_documents: int
    search_queries: int
    verify_rows: int
    jetstream_messages: int
    jetstream_rounds: int


FULL = Sizes(
    capture_rows=200_000,
    capture_rounds=5,
    index_documents=300,
    index_rounds=3,
    freshness_commits=200,
    idle_s=20.0,
    idle_settle_s=15.0,
    ledger_batches=400,
    memory_rows=1_000_000,
    resync_rows=200_000,
    resync_commits=200,
    search_documents=1_000,
    search_queries=300,
    verify_rows=1_000_000,
    jetstream_messages=20_000,
    jetstream_rounds=3,
)

QUICK = Sizes(
    capture_rows=20_000,
    capture_rounds=2,
    index_documents=24,
    index_rounds=1,
    freshness_commits=20,
    idle_s=5.0,
    idle_settle_s=2.0,
    ledger_batches=40,
    memory_rows=100_000,
    resync_rows=5_000,
    resync_commits=20,
    search_documents=60,
    search_queries=30,
    verify_rows=5_000,
    jetstream_messages=1_000,
    jetstream_rounds=1,
)
