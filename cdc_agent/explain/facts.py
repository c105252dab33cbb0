"""What is known of one document, each fact with where it comes from. Carries texts and metadata: whoever may search may
see them, and nobody else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cdc_agent.explain.verdict import Verdict
from cdc_agent.verify.defects import Defect

__all__ = [
    "ChunkFacts",
    "Explanation",
    "GenerationFacts",
    "IndexFacts",
    "LetterFacts",
    "PendingChange",
    "Progress",
    "ResyncFacts",
    "RowFacts",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowFacts:
    """The row as the source has it now. ``exists`` is None when the source could not be asked (``error``), ``matches``
    when ``where`` cannot be decided. ``chunks`` is how many the row renders to."""

    exists: bool | None
    matches: bool | None = None
    chunks: int | None = None
    metadata: Mapping[str, Any] | None = None
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkFacts:
    """One chunk that the manifest names. ``present`` is None when the store could not be asked. ``commit_lsn`` and
    ``commit_ts`` are of the commit that wrote it, ``written_at`` is when it came into the store: embedded then, or with
    a vector that was remembered. To the second for recent ones, else to the minute and never too late."""

    id: str
    position: int
    present: bool | None
    text: str | None
    commit_lsn: str | None
    commit_ts: str | None
    written_at: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexFacts:
    """What the manifest says. ``version`` is that of the newest change it is made of. ``read_from_table``: its content
    was read by a resync, not from the log. A ``deleted`` one has no chunks."""

    version: str
    commit_lsn: str
    deleted: bool
    read_from_table: bool
    chunks: Sequence[ChunkFacts]
    metadata: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationFacts:
    """Which build of the collection answers searches, since when, and with what model."""

    number: int
    physical: str
    model: str
    fingerprint: str
    created_at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LetterFacts:
    id: int
    version: str
    reason: str
    error: str
    attempts: int
    parked_at: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingChange:
    """A change of this row that is in the stream and that the indexer has not dealt with."""

    offset: int
    op: str
    commit_lsn: str
    committed_at: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far the index is. ``waiting`` are entries of all rows between it and the head of the stream; ``examined`` of
    them were looked at for this row. ``source_lsn`` and ``lag_s`` are None when that is unknown."""

    applied_lsn: str
    captured_lsn: str
    source_lsn: str | None
    lag_s: float | None
    waiting: int
    examined: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ResyncFacts:
    """A resync under way that reads this row, among others or alone."""

    id: int
    state: str
    reason: str
    rows_done: int
    rows_estimated: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    collection: str
    document_id: str
    table: str
    key: tuple[str, ...]
    verdict: Verdict
    where: str | None
    row: RowFacts
    index: IndexFacts | None
    generation: GenerationFacts
    dead_letter: LetterFacts | None
    pending: Sequence[PendingChange]
    progress: Progress
    resyncs: Sequence[ResyncFacts]
    differences: Sequence[Defect]

    def as_json(self) -> dict[str, Any]:
        facts = asdict(self)
        facts["key"] = list(self.key)
        facts["verdict"]["state"] = str(self.verdict.state)
        facts["differences"] = [{"kind": str(d.kind), "chunk": d.chunk_id, "what": d.what} for d in self.differences]
        return facts
