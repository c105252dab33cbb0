"""What building a generation would cost: counted exactly on some rows, extrapolated to the table.

The model's rate is measured here and now, on texts of the sample that it has not embedded before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cdc_agent.agents.planning import Collection
from cdc_agent.documents.model import document_id, text_hash
from cdc_agent.embedding.base import Embedder
from cdc_agent.errors import PoisonText, RenderError
from cdc_agent.events import Row
from cdc_agent.ledger.base import Ledger
from cdc_agent.source.base import RowSet

__all__ = ["SAMPLE_ROWS", "Cost", "Sample", "extrapolated", "sampled"]

#: Rows that are rendered, and texts that are embedded to see how fast the model is.
SAMPLE_ROWS = 500
_RATE_TEXTS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """``rows`` were looked at; what belongs to the collection makes so many chunks and tokens.

    Of both, ``reused`` need no embedding, because the cache of the same model knows their texts.
    """

    rows: int
    chunks: int
    tokens: int
    reused_chunks: int
    reused_tokens: int
    tokens_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """The same of the whole table; ``seconds`` of embedding, None where nothing could be measured."""

    chunks: int
    tokens: int
    reused: int
    seconds: float | None


def sampled(
    collection: Collection,
    page: RowSet,
    embedder: Embedder,
    ledger: Ledger,
    clock: Callable[[], float] = time.perf_counter,
) -> Sample:
    texts = [text for row in _rows(page) for text in _chunks(collection, row)]
    tokens = embedder.count_tokens(texts)
    hashes = [text_hash(text) for text in texts]
    known = ledger.cached_vectors(f"{embedder.model}/{embedder.dimensions}", set(hashes))
    fresh = [(text, count) for text, count, digest in zip(texts, tokens, hashes, strict=True) if digest not in known]
    return Sample(
        rows=len(page.rows),
        chunks=len(texts),
        tokens=sum(tokens),
        reused_chunks=len(texts) - len(fresh),
        reused_tokens=sum(tokens) - sum(count for _, count in fresh),
        tokens_per_s=_rate(fresh[:_RATE_TEXTS], embedder, clock),
    )


def extrapolated(sample: Sample, rows: int) -> Cost:
    times = rows / sample.rows if sample.rows else 0.0
    to_embed = (sample.tokens - sample.reused_tokens) * times
    seconds = round(to_embed / sample.tokens_per_s, 1) if sample.tokens_per_s else None
    return Cost(
        chunks=round(sample.chunks * times),
        tokens=round(sample.tokens * times),
        reused=round(sample.reused_chunks * times),
        seconds=seconds if to_embed else 0.0,
    )


def _rows(page: RowSet) -> list[Row]:
    return [Row(relation, raw) for relation, raw in zip(page.relations, page.rows, strict=True)]


def _chunks(collection: Collection, row: Row) -> list[str]:
    """A row that cannot be rendered costs nothing: it will be a dead letter."""
    spec = collection.spec
    try:
        if spec.predicate is not None and not spec.predicate.matches(row):
            return []
        document = spec.render(row, document_id(collection.table, row.key() or ()))
    except RenderError:
        return []
    return collection.chunk(document.text)


def _rate(texts: Sequence[tuple[str, int]], embedder: Embedder, clock: Callable[[], float]) -> float:
    if not texts:
        return 0.0
    began = clock()
    try:
        embedder.embed([text for text, _ in texts])
    except PoisonText:
        return 0.0
    return sum(count for _, count in texts) / max(clock() - began, 1e-6)
