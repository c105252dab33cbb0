"""A store that notices when one of its collections is damaged, which no trying again will mend.

A Chroma server that was killed while it wrote its index can come back and answer, and yet fail every call on a
collection, or die of it again and again. Calls that fail while the server answers are counted; then the collection is
read in a few places, and if that fails too it is ``CollectionDamaged``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from cdc_agent.documents.model import MetadataValue
from cdc_agent.errors import StoreUnavailable
from cdc_agent.vectorstore.base import Hit, Record, VectorStore
from cdc_agent.vectorstore.records import CollectionDamaged, StoreFailing, StoreHungUp
from cdc_agent.vectorstore.wear import Wear

__all__ = ["WatchedStore", "damage"]

T = TypeVar("T")

#: Calls in a row that fail while the server answers before a collection is examined.
_FAILURES = 4
#: Calls in a row that the server dies of before that is held against the collection, though it can be read.
_DEATHS = 6
#: Chunks that an examination reads, and how often it tries.
_SAMPLE = 5
_TRIES = 3
_PAUSE_S = 0.3


class WatchedStore:
    """See ``vectorstore.base.VectorStore``. For the writer of a collection; safe for several threads."""

    def __init__(
        self, store: VectorStore, *, wear: Wear | None = None, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._store = store
        self._wear = wear or Wear()
        self._sleep = sleep
        self._lock = threading.Lock()
        self._failures: dict[str, int] = {}
        self._deaths: dict[str, int] = {}

    def _watched(self, collection: str, call: Callable[[], T]) -> T:
        try:
            result = call()
        except StoreFailing as exc:
            if self._count(self._failures, collection) >= _FAILURES and (found := self._damage(collection)):
                raise self._condemned(collection, found) from exc
            raise
        except StoreHungUp as exc:
            if self._count(self._deaths, collection) >= _DEATHS:
                raise self._condemned(collection, "the server dies of every write") from exc
            raise
        with self._lock:
            self._failures.pop(collection, None)
            self._deaths.pop(collection, None)
        return result

    def _count(self, counts: dict[str, int], collection: str) -> int:
        with self._lock:
            counts[collection] = counts.get(collection, 0) + 1
            return counts[collection]

    def _damage(self, collection: str) -> str:
        try:
            return damage(self._store, collection, sleep=self._sleep)
        except StoreUnavailable:
            # It does not answer at all, which is something else.
            return ""

    def _condemned(self, collection: str, why: str) -> CollectionDamaged:
        with self._lock:
            self._failures.pop(collection, None)
            self._deaths.pop(collection, None)
        return CollectionDamaged(collection, why)

    # -- the contract, call by call ---------------------------------------------------------------------------

    def open_collection(self, name: str, *, dimensions: int, marker: Mapping[str, MetadataValue]) -> dict[str, Any]:
        return self._store.open_collection(name, dimensions=dimensions, marker=marker)

    def marker(self, name: str) -> dict[str, Any]:
        return self._store.marker(name)

    def set_marker(self, name: str, marker: Mapping[str, MetadataValue]) -> None:
        self._store.set_marker(name, marker)

    def recreate_collection(self, name: str, *, dimensions: int, marker: Mapping[str, MetadataValue]) -> None:
        self._store.recreate_collection(name, dimensions=dimensions, marker=marker)

    def stored(self) -> dict[str, dict[str, Any]]:
        return self._store.stored()

    def alias(self, name: str, stored_as: str) -> None:
        self._store.alias(name, stored_as)

    def rename_collection(self, name: str, stored_as: str) -> None:
        self._store.rename_collection(name, stored_as)

    def upsert(self, collection: str, records: Sequence[Record]) -> None:
        self._watched(collection, lambda: self._store.upsert(collection, records))
        self._wear.note_written(collection)

    def update_metadata(self, collection: str, metadata_by_id: Mapping[str, Mapping[str, MetadataValue]]) -> None:
        self._watched(collection, lambda: self._store.update_metadata(collection, metadata_by_id))

    def delete(self, collection: str, ids: Sequence[str]) -> None:
        self._watched(collection, lambda: self._store.delete(collection, ids))
        self._wear.note_deleted(collection, len(ids))

    def query(
        self, collection: str, vector: npt.NDArray[np.float32], *, k: int, where: Mapping[str, Any] | None = None
    ) -> list[Hit]:
        return self._watched(collection, lambda: self._store.query(collection, vector, k=k, where=where))

    def neighbours(
        self, collection: str, vectors: Sequence[npt.NDArray[np.float32]], *, k: int
    ) -> list[list[tuple[str, float]]]:
        return self._watched(collection, lambda: self._store.neighbours(collection, vectors, k=k))

    def get(self, collection: str, ids: Sequence[str], *, with_embeddings: bool = False) -> list[Record]:
        return self._watched(collection, lambda: self._store.get(collection, ids, with_embeddings=with_embeddings))

    def ids(self, collection: str) -> Iterator[list[str]]:
        pages = self._store.ids(collection)
        while (page := self._watched(collection, lambda: next(pages, None))) is not None:
            yield page

    def count(self, collection: str) -> int:
        return self._watched(collection, lambda: self._store.count(collection))

    def drop_collection(self, name: str) -> None:
        self._store.drop_collection(name)

    def ping(self) -> None:
        self._store.ping()

    def close(self) -> None:
        self._store.close()


def damage(store: VectorStore, collection: str, *, sleep: Callable[[float], None] = time.sleep) -> str:
    """What is wrong with a collection that can be listed, read and searched only in part; empty if nothing is.

    Reads the same few chunks again and again before it says so, because writes beside it can disturb a read.
    Raises ``StoreUnavailable`` when the store does not answer, ``CollectionMissing`` when the collection is not there.
    """
    failed = ""
    for attempt in range(_TRIES):
        if attempt:
            sleep(_PAUSE_S * attempt)
        store.ping()
        try:
            _read_some(store, collection)
        except StoreFailing as exc:
            failed = exc.message
        else:
            return ""
    return failed


def _read_some(store: VectorStore, collection: str) -> None:
    page = next(iter(store.ids(collection)), [])
    step = max(1, len(page) // _SAMPLE)
    records = store.get(collection, page[::step], with_embeddings=True)
    for record in records[:_SAMPLE]:
        if record.embedding is None:
            raise StoreFailing(f"{record.id} has lost its vector")
        if not store.query(collection, record.embedding, k=1):
            raise StoreFailing(f"a search with the vector of {record.id} finds nothing")
