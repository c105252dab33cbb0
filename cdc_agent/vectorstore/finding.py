"""Which records can a search not find? An index of approximate neighbours that has seen deletions may keep a record and
lead to it from nowhere (Chroma's does, see chroma-core/chroma#7758): it can be read by its id, and no search shows it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from cdc_agent.vectorstore.base import VectorStore

__all__ = ["unfound"]

#: A record must be among this many nearest to its own vector; asked a second time with more, because the index is
#: approximate.
_NEAREST = (10, 100)
#: Neighbours as close as the record itself hide it rightfully: they hold the same text.
_AS_CLOSE = 1e-4


def unfound(store: VectorStore, collection: str, vectors: Mapping[str, npt.NDArray[np.float32]]) -> list[str]:
    """The ids of those records that searches with their own vectors do not show."""
    left = dict(vectors)
    for k in _NEAREST:
        if not left:
            break
        found = store.neighbours(collection, list(left.values()), k=k)
        left = {
            record_id: vector
            for (record_id, vector), near in zip(left.items(), found, strict=True)
            if not _shows(near, record_id, k)
        }
    return list(left)


def _shows(near: Sequence[tuple[str, float]], record_id: str, k: int) -> bool:
    if any(neighbour == record_id for neighbour, _ in near):
        return True
    return len(near) == k and near[-1][1] >= 1.0 - _AS_CLOSE
