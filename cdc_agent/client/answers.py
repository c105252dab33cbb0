"""What a search answers, typed. Pure: JSON in, facts out."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

from cdc_agent.lsn import Lsn

__all__ = [
    "Answer",
    "Document",
    "DocumentChunk",
    "Explanation",
    "Freshness",
    "Hit",
    "SearchableCollection",
    "SourceRow",
]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentChunk:
    """A piece of a document as it is in the index. ``written_at`` is when it came there, None if that is not known."""

    id: str
    position: int
    text: str
    committed_at: dt.datetime | None
    written_at: dt.datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """What the index holds of one row, complete up to ``freshness``. ``commit_lsn`` is of its newest change, also where
    that changed no chunk. ``stale`` as in a ``Hit``."""

    document_id: str
    table: str
    key: tuple[str, ...]
    commit_lsn: Lsn
    metadata: Mapping[str, Any]
    chunks: tuple[DocumentChunk, ...]
    stale: bool
    freshness: Freshness

    @property
    def text(self) -> str:
        """The chunks in order, with a blank line between two."""
        return "\n\n".join(chunk.text for chunk in self.chunks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Why a row is, or is not, in the index. ``state`` is one word (docs/CLI.md, explain), ``sentence`` says it, and
    ``remedy`` what to do. ``facts`` is everything that is known, as ``GET /documents`` answers it."""

    document_id: str
    state: str
    in_index: bool
    sentence: str
    remedy: str
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchableCollection:
    """``metadata`` names the columns that a condition may name."""

    name: str
    table: str
    metadata: tuple[str, ...]


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


def explanation(facts: Mapping[str, Any]) -> Explanation:
    verdict = facts["verdict"]
    return Explanation(
        document_id=facts["document_id"],
        state=verdict["state"],
        in_index=verdict["in_index"],
        sentence=verdict["sentence"],
        remedy=verdict["remedy"],
        facts=facts,
    )


def document(facts: Mapping[str, Any]) -> Document | None:
    """What is in the index of the document that was explained; None when that is nothing."""
    index = facts["index"]
    if index is None or index["deleted"] or not facts["verdict"]["in_index"]:
        return None
    return Document(
        document_id=facts["document_id"],
        table=facts["table"],
        key=tuple(facts["key"]),
        commit_lsn=Lsn.parse(index["commit_lsn"]),
        metadata=index["metadata"] or {},
        chunks=tuple(_chunk(chunk) for chunk in index["chunks"] if chunk["present"]),
        stale=facts["dead_letter"] is not None,
        freshness=Freshness(applied_lsn=Lsn.parse(facts["progress"]["applied_lsn"]), lag_s=facts["progress"]["lag_s"]),
    )


def collections(body: Mapping[str, Any]) -> list[SearchableCollection]:
    return [
        SearchableCollection(name=one["name"], table=one["table"], metadata=tuple(one["metadata"]))
        for one in body["collections"]
    ]


def _chunk(body: Mapping[str, Any]) -> DocumentChunk:
    return DocumentChunk(
        id=body["id"],
        position=body["position"],
        text=body["text"],
        committed_at=_moment(body["commit_ts"]),
        written_at=_moment(body["written_at"]),
    )


def _moment(text: str | None) -> dt.datetime | None:
    return dt.datetime.fromisoformat(text) if text else None
