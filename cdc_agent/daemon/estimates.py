"""What a migration would cost: a sample of rows is rendered and cut as the new configuration says."""

from __future__ import annotations

from typing import Any

from cdc_agent.config import CollectionConfig, Config
from cdc_agent.config.specs import collection_spec
from cdc_agent.daemon.feeds import mirrored
from cdc_agent.daemon.generations import Embedders, changed_collections, differences
from cdc_agent.daemon.models import build_embedder, collection_of
from cdc_agent.embedding.base import Embedder
from cdc_agent.ledger.base import Generation, Ledger
from cdc_agent.migrate.planning import SAMPLE_ROWS, Sample, extrapolated, sampled
from cdc_agent.source.base import TableRows
from cdc_agent.source.catalog import Catalog
from cdc_agent.source.rows import SqlRowReader

__all__ = ["estimates"]


def estimates(config: Config, ledger: Ledger, name: str | None) -> list[dict[str, Any]]:
    """One entry for each configured collection that is described otherwise than it was built, JSON-ready."""
    embedders = Embedders(config.embedding, build_embedder)
    try:
        generations = ledger.generations()
        changed = [c for c in changed_collections(config, generations, embedders) if name in (None, c.name)]
        embedder = embedders.of(config.embedding)
        return [_estimate(config, c, _live(generations, c.name), ledger, embedder) for c in changed]
    finally:
        embedders.close()


def _live(generations: list[Generation], name: str) -> Generation:
    return next(g for g in generations if g.collection == name and g.state == "live")


def _estimate(
    config: Config, collection: CollectionConfig, live: Generation, ledger: Ledger, embedder: Embedder
) -> dict[str, Any]:
    documents, chunks = ledger.counts(live.physical)
    rows, sample = _sample(config, collection, ledger, embedder)
    cost = extrapolated(sample, rows)
    return {
        "collection": collection.name,
        "generation": live.number,
        "changed": differences(live, collection, config.embedding),
        "documents": documents,
        "chunks_now": chunks,
        "model": embedder.model,
        "sampled_rows": sample.rows,
        "rows": rows,
        "chunks": cost.chunks,
        "tokens": cost.tokens,
        "reused_chunks": cost.reused,
        "tokens_per_s": round(sample.tokens_per_s, 1),
        "seconds": cost.seconds,
    }


def _sample(config: Config, collection: CollectionConfig, ledger: Ledger, embedder: Embedder) -> tuple[int, Sample]:
    spec = collection_spec(collection)
    if collection.feed is not None:
        rows, page = mirrored(config, collection, SAMPLE_ROWS)
        return rows, sampled(collection_of(spec, embedder), page, embedder, ledger)
    source = config.source
    catalog = Catalog(source.dsn.get_secret_value(), connect_timeout_s=source.connect_timeout_s)
    try:
        oids = {table.qualified_name: table.oid for table in catalog.watch([(spec.schema, spec.table)])}
        reader = SqlRowReader(source.dsn.get_secret_value(), catalog, oids, connect_timeout_s=source.connect_timeout_s)
        try:
            page = reader.page(TableRows(table=spec.qualified_table, limit=SAMPLE_ROWS))
            short = len(page.rows) < SAMPLE_ROWS
            rows = len(page.rows) if short else max(len(page.rows), reader.estimated_rows(spec.qualified_table))
        finally:
            reader.close()
    finally:
        catalog.close()
    return rows, sampled(collection_of(spec, embedder), page, embedder, ledger)
