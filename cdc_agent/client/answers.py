"""What a search answers, typed. Pure: JSON in, facts out."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

from cdc_agent.lsn import Lsn

__all__ = ["Answer", "Freshness", "Hit", "SourceRow"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRow:
    """The row that a chunk comes from, and the last commit that wrote the chunk.

    ``key`` is the primary key as text; of several columns, their values in order. ``age_s`` are the seconds between
    that commit and the answer, by the clocks of the server and of this machine.
    """

    table: str
    key: str
    commit_lsn: Lsn
    committed_at: dt.datetime | None
    age_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """One chunk. ``score`` is cosine similarity, 1 is the same. ``stale``: a newer version of its document could not
    be indexed and waits as a dead letter."""

    text: str
    score: float
    metadata: Mapping[str, Any]
    source: SourceRow
    document_id: str
    id: str
    stale: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Freshness:
    """The index holds every commit up to ``applied_lsn``. ``lag_s``: seconds behind the source, None when unknown."""

    applied_lsn: Lsn
    lag_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer(Sequence[Hit]):
    """Hits, best first, and how fresh they are: at least as fresh as ``freshness`` says."""

    hits: tuple[Hit, ...]
    freshness: Freshness

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)

    def __len__(self) -> int:
        return len(self.hits)

    @overload
    def __getitem__(self, place: int) -> Hit: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Hit]: ...
    def __getitem__(self, place: int | slice) -> Hit | Sequence[Hit]:
        return self.hits[place]


def freshness(body: Mapping[str, Any]) -> Freshness:
    return Freshness(applied_lsn=Lsn.parse(body["applied_lsn"]), lag_s=body["lag_s"])


def answer(body: Mapping[str, Any], *, now: dt.datetime) -> Answer:
    """Raises ``KeyError`` or ``ValueError`` when this is no answer of ours."""
    return Answer(hits=tuple(_hit(hit, now) for hit in body["hits"]), freshness=freshness(body))


def _hit(body: Mapping[str, Any], now: dt.datetime) -> Hit:
    source = body["source"]
    committed_at = dt.datetime.fromisoformat(source["commit_ts"]) if source["commit_ts"] else None
    row = SourceRow(
        table=source["table"],
        key=source["pk"],
        commit_lsn=Lsn.parse(source["commit_lsn"]),
        committed_at=committed_at,
        age_s=max(0.0, (now - committed_at).total_seconds()) if committed_at else None,
    )
    return Hit(
        text=body["text"],
        score=body["score"],
        metadata=body["metadata"],
        source=row,
        document_id=body["document_id"],
        id=body["id"],
        stale=body.get("stale", False),
    )
