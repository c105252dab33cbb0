"""One trace for each commit, from the commit to the moment at which it is found: what is traced, and under which ids.

The ids are made of the commit itself, so a process that goes on where another was killed goes on with its trace.
Attributes are positions, names and counts, never a value of a cell. Who sends traces anywhere is the daemon's business.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from cdc_agent.events import Transaction
from cdc_agent.lsn import Lsn

__all__ = ["NO_TRACES", "CommitIds", "IndexedPart", "Stages", "Traces", "commit_ids", "is_sampled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitIds:
    """W3C ids: of the trace (128 bits), and of its first span (64 bits)."""

    trace_id: int
    span_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexedPart:
    """What one commit came to in one collection."""

    commit_lsn: Lsn
    commit_ts_us: int
    collection: str
    documents: int
    new_chunks: int
    kept_chunks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """When the stages of a batch began and ended, in Unix nanoseconds. Planning ends where embedding begins."""

    planned_from_ns: int
    embedded_from_ns: int
    embedded_to_ns: int
    written_from_ns: int
    written_to_ns: int


class Traces(Protocol):
    """Safe to call from several threads; neither blocks nor fails."""

    @property
    def on(self) -> bool:
        """Whether it is worth while to gather what ``indexed`` wants."""
        ...

    def captured(self, transactions: Sequence[Transaction]) -> None:
        """These are durable in the stream now."""
        ...

    def indexed(self, agent: str, parts: Iterable[IndexedPart], stages: Stages) -> None:
        """These are found now."""
        ...

    def close(self) -> None:
        """Send what is left, within some seconds."""
        ...


class _NoTraces:
    on = False

    def captured(self, transactions: Sequence[Transaction]) -> None:
        """Nobody wants to know."""

    def indexed(self, agent: str, parts: Iterable[IndexedPart], stages: Stages) -> None:
        """Nobody wants to know."""

    def close(self) -> None:
        """Nothing is left."""


NO_TRACES: Traces = _NoTraces()


def commit_ids(source: str, commit_lsn: Lsn) -> CommitIds:
    """``source`` tells databases apart whose commits may have the same position."""
    digest = hashlib.blake2b(f"{source} {commit_lsn}".encode(), digest_size=24).digest()
    # Ids of zeros are invalid.
    return CommitIds(trace_id=int.from_bytes(digest[:16]) or 1, span_id=int.from_bytes(digest[16:]) or 1)


def is_sampled(trace_id: int, share: float) -> bool:
    """The same answer for a commit in every process, and the one that OpenTelemetry's own sampler by ratio gives."""
    return (trace_id & (2**64 - 1)) < round(share * 2**64)
