"""What a record must be before any store sees it, and the faults that all stores share. Pure.

Checked here and not left to the store, because stores differ and some are silent: Chroma drops a NaN from the metadata
and turns an integer beyond 64 bits into a float.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from cdc_agent.documents.model import text_hash
from cdc_agent.errors import StoreRejected, StoreUnavailable, VectorStoreError
from cdc_agent.vectorstore.base import Record

__all__ = [
    "CollectionDamaged",
    "CollectionMissing",
    "StoreBlocked",
    "StoreFailing",
    "StoreHungUp",
    "check_metadata",
    "check_records",
    "last_of_each_id",
    "pages",
    "usable_vectors",
]

#: Metadata keys with a meaning of their own in Chroma.
RESERVED_KEYS = frozenset({"chroma:document"})

T = TypeVar("T")


class CollectionMissing(StoreRejected):
    """The whole collection is not in the store: somebody deleted it. No record is to blame."""

    def __init__(self, collection: str) -> None:
        super().__init__(
            f"the collection {collection} is not in the vector store",
            hint="if it was deleted by hand, `cdc-agent resync` builds it again",
        )
        self.collection = collection


class CollectionDamaged(VectorStoreError):
    """The store answers, but this collection cannot be read or written, however often one tries."""

    def __init__(self, collection: str, why: str) -> None:
        super().__init__(
            f"the collection {collection} is damaged: {why}",
            hint="start with CDC_AGENT_SOURCE__ON_MISMATCH=resync: it is built again from the ledger's vectors",
        )
        self.collection = collection


class StoreFailing(StoreUnavailable):
    """The store answered that something inside it failed."""


class StoreBlocked(StoreUnavailable):
    """The store answered that it cannot write: its disk is full, or its own database is locked. It may never be able
    to again, see ``locks``."""


class StoreHungUp(StoreUnavailable):
    """The store took the request and dropped the connection: it may have died of it."""


def check_records(records: Sequence[Record], *, dimensions: int | None) -> None:
    """Raise ``StoreRejected``, naming the record, for anything that a store would refuse or change silently."""
    for record in records:
        _check_id(record.id)
        _check_text(record.text, f"the text of {record.id}")
        _check_embedding(record, dimensions)
        check_metadata(record.id, record.metadata)


def check_metadata(record_id: str, metadata: Mapping[str, Any]) -> None:
    """Raise ``StoreRejected`` for a key or value that no store keeps as it is."""
    for key, value in metadata.items():
        if not key or key.startswith(("#", "$")) or key in RESERVED_KEYS:
            raise StoreRejected(f"{record_id}: the metadata key {key!r} is reserved", hint="rename it in `metadata`")
        _check_value(value, f"{record_id}: metadata {key!r}")


def last_of_each_id(records: Sequence[Record]) -> list[Record]:
    """One record for each id, the last one given; stores refuse a batch that names an id twice."""
    return list({record.id: record for record in records}.values())


def pages(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Items in slices of at most ``size``."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def usable_vectors(records: Sequence[Record], *, dimensions: int) -> dict[bytes, npt.NDArray[np.float32]]:
    """Vectors by the hash of their text, of those records that have a sound one."""
    return {
        text_hash(r.text): r.embedding
        for r in records
        if r.text and r.embedding is not None and r.embedding.shape == (dimensions,) and np.isfinite(r.embedding).all()
    }


def _check_id(record_id: str) -> None:
    if not record_id:
        raise StoreRejected("a record has an empty id")
    _check_text(record_id, "an id")


def _check_embedding(record: Record, dimensions: int | None) -> None:
    if record.embedding is None:
        raise StoreRejected(f"{record.id} has no vector; a metadata-only write goes through update_metadata")
    if dimensions is not None and record.embedding.shape != (dimensions,):
        raise StoreRejected(
            f"{record.id} has a vector of shape {record.embedding.shape}, the collection takes {dimensions} dimensions",
            hint="a new model needs `cdc-agent migrate`",
        )
    if not np.isfinite(record.embedding).all():
        raise StoreRejected(f"{record.id} has NaN or infinity in its vector")


def _check_value(value: Any, what: str) -> None:
    if isinstance(value, str):
        _check_text(value, what)
    elif isinstance(value, float) and not math.isfinite(value):
        raise StoreRejected(f"{what} is not a finite number")
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise StoreRejected(f"{what} does not fit in 64 bits", hint="store it as text")
    elif value is not None and not isinstance(value, (str, int, float, bool)):
        raise StoreRejected(f"{what} is a {type(value).__name__}, only text, numbers and booleans are stored")


def _check_text(text: str, what: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        raise StoreRejected(f"{what} is not valid Unicode") from exc
