"""Saves the vectors of a collection whose ledger is lost: they are as good as the day they were computed."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import numpy as np

from cdc_agent.documents.model import text_hash
from cdc_agent.errors import StoreUnavailable
from cdc_agent.vectorstore.base import Record, VectorStore
from cdc_agent.vectorstore.records import pages

__all__ = ["salvaged"]

log = logging.getLogger(__name__)

#: Records read at a time.
_AT_A_TIME = 200


def salvaged(store: VectorStore, collection: str, *, dimensions: int) -> Iterator[dict[bytes, bytes]]:
    """Vectors by text hash, page by page, as far as the collection can be read; the rest is embedded again."""
    found = 0
    try:
        for ids in store.ids(collection):
            for part in pages(ids, _AT_A_TIME):
                vectors = _usable(store.get(collection, part, with_embeddings=True), dimensions)
                found += len(vectors)
                yield vectors
    except StoreUnavailable as exc:
        log.warning("not all vectors could be saved collection=%s error=%s", collection, exc.message)
    log.info("saved vectors collection=%s vectors=%d", collection, found)


def _usable(records: Sequence[Record], dimensions: int) -> dict[bytes, bytes]:
    return {
        text_hash(r.text): r.embedding.tobytes()
        for r in records
        if r.text and r.embedding is not None and r.embedding.shape == (dimensions,) and np.isfinite(r.embedding).all()
    }
