"""Search: what the store finds, narrowed to what the ledger says is live.

The store may hold chunks of a document's old and new version for some milliseconds. Only chunks that a manifest names
are returned, so a document switches from old to new at once for everybody who searches here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from cdc_agent import metrics
from cdc_agent.documents.metadata import RESERVED_PREFIX
from cdc_agent.embedding.base import Embedder
from cdc_agent.embedding.recent import RecentVectors
from cdc_agent.errors import PoisonText, UsageError
from cdc_agent.grants import check_columns, narrowed, permits
from cdc_agent.ledger.base import Ledger
from cdc_agent.lsn import Lsn
from cdc_agent.vectorstore.base import Hit, VectorStore
from cdc_agent.vectorstore.where import FilterRefused, check_where

__all__ = ["MAX_K", "MAX_QUERY_BYTES", "HitSource", "SearchHit", "Searcher", "condition"]

MAX_K = 100
MAX_QUERY_BYTES = 8 * 1024
#: Most records that one search asks the store for.
_MAX_FETCH = 2000
#: Most calls to the store in one search.
_MAX_ROUNDS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class HitSource:
    """The row that a chunk comes from, and the last commit that wrote it. ``pk`` is as in the document's id."""

    table: str
    pk: str
    commit_lsn: str
    commit_ts: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchHit:
    """One chunk. ``score`` is cosine similarity; ``metadata`` holds the configured columns only. ``stale``: the row has
    a newer version that could not be indexed (a dead letter), so this is an older one."""

    id: str
    document_id: str
    text: str
    score: float
    metadata: Mapping[str, Any]
    source: HitSource
    stale: bool = False


class Searcher:
    """Searches collections by meaning. Safe to call from several threads.

    ``embedders`` names the collections there are. ``columns`` (if given) names the metadata columns of each, so that
    a misspelt one in ``where`` is an error instead of no hits.
    """

    def __init__(
        self,
        store: VectorStore,
        ledger: Ledger,
        embedders: Mapping[str, Embedder],
        *,
        columns: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._embedders = embedders
        self._columns = columns or {}
        self._recent = {name: RecentVectors() for name in embedders}

    def search(
        self,
        collection: str,
        query: str,
        k: int = 5,
        where: Mapping[str, Any] | None = None,
        *,
        within: Mapping[str, Any] | None = None,
    ) -> list[SearchHit]:
        """The ``k`` nearest live chunks, best first. Raises ``UsageError`` for what can never work.

        ``within`` is what the one who asks may see at all (``grants``); ``where`` cannot widen it. Raises
        ``NotPermitted`` where that cannot be told.
        """
        embedder = self._embedder(collection)
        _check_query(query)
        _check_k(k)
        columns = self._columns.get(collection)
        wanted = condition(where, columns) if where else None
        if within is not None:
            check_columns(within, columns or ())
            wanted = narrowed(wanted, within)
        with metrics.SEARCH_SECONDS.time():
            vector = self._recent[collection].of(query, lambda: _embed(embedder, query))
            hits = [_search_hit(hit) for hit in self._live_hits(collection, vector, k, wanted, within)]
            parked = self._ledger.parked(collection, {hit.document_id for hit in hits})
            return [replace(hit, stale=True) if hit.document_id in parked else hit for hit in hits]

    def _embedder(self, collection: str) -> Embedder:
        try:
            return self._embedders[collection]
        except KeyError:
            names = ", ".join(sorted(self._embedders)) or "none"
            raise UsageError(f"there is no collection {collection!r}", hint=f"collections here: {names}") from None

    def _live_hits(
        self,
        collection: str,
        vector: npt.NDArray[np.float32],
        k: int,
        where: dict[str, Any] | None,
        within: Mapping[str, Any] | None,
    ) -> list[Hit]:
        """Ask for more than ``k``, keep what is live, ask again while that can change the answer.

        A document may switch between the question to the store and the one to the ledger, and before all of its new
        chunks are in the store. So an answer counts if nothing switched while it was read, or if it keeps the same
        chunks as the one before it and drops none that is new to us. Where neither comes true, what moves is left out.
        """
        fetch = k * 2 + 10
        dropped: set[str] = set()
        before: set[str] | None = None
        kept: list[Hit] = []
        for _ in range(_MAX_ROUNDS):
            turn = self._ledger.turn(collection)
            hits = self._store.query(collection, vector, k=fetch, where=where)
            live = self._ledger.live(collection, [hit.id for hit in hits])
            still = turn % 2 == 0 and self._ledger.turn(collection) == turn
            # The store has applied the condition; that it did is not for the store to say.
            kept = [hit for hit in hits if hit.id in live and permits(within, hit.metadata)]
            ids, news = {hit.id for hit in kept}, {hit.id for hit in hits} - live - dropped
            starved = len(kept) < k and len(hits) >= fetch and fetch < _MAX_FETCH
            if (still or (ids == before and not news)) and not starved:
                return kept[:k]
            moving = _documents(news | (ids ^ (ids if before is None else before)))
            before, dropped = ids, dropped | news
            fetch = min(fetch * 2, _MAX_FETCH) if starved else fetch
        return kept[:k] if still else [hit for hit in kept if _document(hit.id) not in moving][:k]


def _documents(chunk_ids: Iterable[str]) -> set[str]:
    return {_document(chunk_id) for chunk_id in chunk_ids}


def _document(chunk_id: str) -> str:
    return chunk_id.rpartition("#")[0]


def _embed(embedder: Embedder, query: str) -> npt.NDArray[np.float32]:
    """What the model refuses for good is the caller's to mend."""
    try:
        return embedder.embed_query(query)
    except PoisonText as exc:
        hint = f"{embedder.model} reads {embedder.max_tokens} tokens, some {embedder.max_tokens // 2} words"
        raise UsageError(f"the model refuses the query: {exc.message}", hint=hint) from exc


def _search_hit(hit: Hit) -> SearchHit:
    document_id = str(hit.metadata.get("cdc_doc", ""))
    table = str(hit.metadata.get("cdc_table", ""))
    return SearchHit(
        id=hit.id,
        document_id=document_id,
        text=hit.text,
        score=hit.score,
        metadata={key: value for key, value in hit.metadata.items() if not key.startswith(RESERVED_PREFIX)},
        source=HitSource(
            table=table,
            pk=document_id.removeprefix(f"{table}:"),
            commit_lsn=str(Lsn(int(hit.metadata.get("cdc_lsn", 0)))),
            commit_ts=str(hit.metadata.get("cdc_commit_ts", "")),
        ),
    )


def _check_query(query: str) -> None:
    if not query.strip():
        raise UsageError("query is empty", hint="say in words what to look for")
    try:
        size = len(query.encode("utf-8"))
    except UnicodeEncodeError:
        raise UsageError("query is not Unicode text", hint="it holds half of a surrogate pair; send UTF-8") from None
    if size > MAX_QUERY_BYTES:
        raise UsageError(
            f"query has {size} bytes, the most is {MAX_QUERY_BYTES}",
            hint="a model reads a few hundred words; search for one passage of the text",
        )


def _check_k(k: int) -> None:
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= MAX_K:
        raise UsageError(f"k is {k!r}", hint=f"k is a whole number from 1 to {MAX_K}")


# Conditions on metadata, in Chroma's language.

#: Most conditions inside each other; a request could otherwise exhaust the stack.
_MAX_DEPTH = 8
_INT64 = range(-(2**63), 2**63)
_WHERE_HINT = (
    'a condition on stored columns: {"lang": "en"}, {"year": {"$gte": 2020}}, {"tag": {"$in": ["a", "b"]}}, '
    '{"$and": [{…}, {…}]}; operators: $eq $ne $gt $gte $lt $lte $in $nin $and $or'
)


def condition(where: Mapping[str, Any], columns: Sequence[str] | None = None) -> dict[str, Any]:
    """The condition as the store takes it: several keys or operators side by side become one ``$and``.

    Raises ``UsageError`` for what the store would refuse, or what names a column that is not stored; it says where in
    the condition that is.
    """
    return _joined(where, columns, 1, "")


def _joined(where: Any, columns: Sequence[str] | None, depth: int, at: str) -> dict[str, Any]:
    if not isinstance(where, Mapping) or not where:
        raise _refused(at, f"expected a condition, got {_short(where)}")
    if depth > _MAX_DEPTH:
        raise UsageError(f"where: more than {_MAX_DEPTH} conditions inside each other", hint=_WHERE_HINT)
    parts = [_part(str(key), value, columns, depth, at) for key, value in where.items()]
    return parts[0] if len(parts) == 1 else {"$and": parts}


def _part(key: str, value: Any, columns: Sequence[str] | None, depth: int, at: str) -> dict[str, Any]:
    if key in ("$and", "$or"):
        return _branches(key, value, columns, depth, at)
    if key.startswith("$"):
        raise _refused(at, f"there is no operator {_short(key)} around conditions; there are $and and $or")
    if columns is not None and key not in columns and not key.startswith(RESERVED_PREFIX):
        raise UsageError(
            f"where: {at}{_short(key)} is not stored with this collection",
            hint=f"stored columns: {', '.join(columns) or 'none'}; add it to metadata in the configuration to filter",
        )
    several = isinstance(value, Mapping) and len(value) > 1
    parts = [{key: {name: operand}} for name, operand in value.items()] if several else [{key: value}]
    for part in parts:
        _check_numbers(key, part[key])
        _check_part(part, f"{at}{key}")
    return parts[0] if len(parts) == 1 else {"$and": parts}


def _branches(key: str, value: Any, columns: Sequence[str] | None, depth: int, at: str) -> dict[str, Any]:
    if not isinstance(value, list) or not value:
        raise _refused(f"{at}{key}", f"takes a list of conditions, got {_short(value)}")
    branches = [_joined(branch, columns, depth + 1, f"{at}{key}[{n}].") for n, branch in enumerate(value)]
    return branches[0] if len(branches) == 1 else {key: branches}


def _check_part(part: Mapping[str, Any], at: str) -> None:
    try:
        check_where(part)
    except FilterRefused as exc:
        raise _refused(at, exc.reason) from exc


def _refused(at: str, reason: str) -> UsageError:
    place = f"{at.rstrip('.')}: " if at else ""
    return UsageError(f"where: {place}{reason}", hint=_WHERE_HINT)


def _check_numbers(key: str, value: Any) -> None:
    """Stores take 64-bit integers and finite floats, and some change others without a word."""
    operands = list(value.values()) if isinstance(value, Mapping) else [value]
    for operand in operands:
        for number in operand if isinstance(operand, list) else [operand]:
            too_big = isinstance(number, int) and number not in _INT64
            if too_big or (isinstance(number, float) and not math.isfinite(number)):
                raise UsageError(f"where: {_short(key)}: {_short(number)} is out of range", hint=_WHERE_HINT)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
