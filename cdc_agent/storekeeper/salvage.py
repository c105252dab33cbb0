"""Saves the vectors of a collection whose ledger is lost: they are as good as the day they were computed."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from cdc_agent.errors import StoreUnavailable
from cdc_agent.vectorstore.base import VectorStore
from cdc_agent.vectorstore.records import pages, usable_vectors

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
                records = store.get(collection, part, with_embeddings=True)
                vectors = {h: v.tobytes() for h, v in usable_vectors(records, dimensions=dimensions).items()}
                found += len(vectors)
                yield vectors
    except StoreUnavailable as exc:
        log.warning("not all vectors could be saved collection=%s error=%s", collection, exc.message)
    log.info("saved vectors collection=%s vectors=%d", collection, found)
