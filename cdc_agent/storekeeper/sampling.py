"""Compares a few chunks in the store with what the ledger says of them. Finds an index that answers, but wrongly.

A single wrong chunk is for ``verify``; here it is asked whether the collection as a whole can be believed.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from cdc_agent.ledger.base import ChunkRef, Ledger
from cdc_agent.vectorstore.base import Record, VectorStore

__all__ = ["Sampler"]

#: Documents looked at each time, chosen out of the next so many: neighbours may share a fate.
_DOCUMENTS, _STRETCH = 24, 2_400
#: So many chunks, and this share of them, must be wrong.
_LEAST, _SHARE = 4, 1 / 3
#: Two vectors of one text: stores keep them in 32 bits, and some scale them to length one.
_SAME = 0.99


class Sampler:
    """Goes round the documents of one collection, a stretch at a time."""

    def __init__(self, store: VectorStore, ledger: Ledger, collection: str, fingerprint: str) -> None:
        self._store = store
        self._ledger = ledger
        self._collection = collection
        self._fingerprint = fingerprint
        self._after = ""

    def look(self) -> str:
        """What is wrong with many of the next chunks; empty if nothing is."""
        chunks = self._next()
        vectors = self._ledger.cached_vectors(self._fingerprint, {c.text_hash for c in chunks})
        records = {r.id: r for r in self._store.get(self._collection, [c.id for c in chunks], with_embeddings=True)}
        # Only what is live before and after the read was live at the read.
        live = self._ledger.live(self._collection, [c.id for c in chunks])
        seen = [c for c in chunks if c.id in live]
        missing = [c for c in seen if c.id not in records]
        wrong = [c for c in seen if c.id in records and not _matches(records[c.id], vectors.get(c.text_hash))]
        bad = len(missing) + len(wrong)
        if bad < _LEAST or bad < len(seen) * _SHARE:
            return ""
        return f"of {len(seen)} chunks {len(missing)} are missing and {len(wrong)} have another vector"

    def _next(self) -> Sequence[ChunkRef]:
        ids = self._ledger.documents_after(self._collection, self._after, _STRETCH)
        self._after = ids[-1] if len(ids) == _STRETCH else ""
        chosen = random.sample(ids, min(_DOCUMENTS, len(ids)))
        manifests = self._ledger.manifests(self._collection, chosen).values()
        return [m.chunks[0] for m in manifests if m.chunks]


def _matches(record: Record, wanted: bytes | None) -> bool:
    if wanted is None or record.embedding is None:
        return record.embedding is not None
    vector = np.frombuffer(wanted, dtype=np.float32)
    lengths = float(np.linalg.norm(vector) * np.linalg.norm(record.embedding))
    if record.embedding.shape != vector.shape or not np.isfinite(lengths):
        return False
    return lengths == 0.0 or float(vector @ record.embedding) / lengths > _SAME
