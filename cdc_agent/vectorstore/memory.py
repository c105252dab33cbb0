"""The reference vector store: the contract in a dictionary, exact search, nothing kept.

Other backends are tested against the same suite; where Chroma is peculiar (merged metadata, filters), so is this.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from cdc_agent.documents.model import MetadataValue
from cdc_agent.errors import StoreRejected
from cdc_agent.vectorstore.base import Hit, Record
from cdc_agent.vectorstore.records import CollectionMissing, check_metadata, check_records, last_of_each_id, pages
from cdc_agent.vectorstore.where import check_where, matches

__all__ = ["MemoryStore"]

#: Ids of one page of a listing.
IDS_PER_PAGE = 1000


@dataclass(slots=True)
class _Collection:
    dimensions: int
    metadata: dict[str, Any]
    records: dict[str, Record] = field(default_factory=dict)


class MemoryStore:
    """Collections in memory. Safe to call from several threads; one call at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._collections: dict[str, _Collection] = {}
        self._aliases: dict[str, str] = {}

    def open_collection(self, name: str, *, dimensions: int, marker: Mapping[str, MetadataValue]) -> dict[str, Any]:
        with self._lock:
            stored_as = self._aliases.get(name, name)
            if stored_as not in self._collections:
                metadata = {**_without_none(marker), "hnsw:space": "cosine"}
                self._collections[stored_as] = _Collection(dimensions=dimensions, metadata=metadata)
            return dict(self._collections[stored_as].metadata)

    def marker(self, name: str) -> dict[str, Any]:
        with self._lock:
            return dict(self._find(name).metadata)

    def set_marker(self, name: str, marker: Mapping[str, MetadataValue]) -> None:
        with self._lock:
            self._find(name).metadata = _without_none(marker)

    def recreate_collection(self, name: str, *, dimensions: int, marker: Mapping[str, MetadataValue]) -> None:
        with self._lock:
            self._collections.pop(self._aliases.get(name, name), None)
        self.open_collection(name, dimensions=dimensions, marker=marker)

    def stored(self) -> dict[str, dict[str, Any]]:
        with self._lock:
            return {name: dict(collection.metadata) for name, collection in self._collections.items()}

    def alias(self, name: str, stored_as: str) -> None:
        with self._lock:
            self._aliases[name] = stored_as

    def rename_collection(self, name: str, stored_as: str) -> None:
        with self._lock:
            found = self._find(name)
            if self._collections.get(stored_as, found) is not found:
                raise StoreRejected(f"there is a collection {stored_as} already")
            del self._collections[self._aliases.get(name, name)]
            self._collections[stored_as] = found
            self._aliases[name] = stored_as

    def upsert(self, collection: str, records: Sequence[Record]) -> None:
        with self._lock:
            found = self._find(collection)
            check_records(records, dimensions=found.dimensions)
            for record in last_of_each_id(records):
                before = found.records.get(record.id)
                found.records[record.id] = Record(
                    id=record.id,
                    text=record.text,
                    metadata=_merged(before.metadata if before else {}, record.metadata),
                    embedding=np.array(record.embedding, dtype=np.float32),
                )

    def update_metadata(self, collection: str, metadata_by_id: Mapping[str, Mapping[str, MetadataValue]]) -> None:
        with self._lock:
            found = self._find(collection)
            for record_id, metadata in metadata_by_id.items():
                check_metadata(record_id, metadata)
            for record_id, metadata in metadata_by_id.items():
                if record := found.records.get(record_id):
                    found.records[record_id] = Record(
                        id=record.id,
                        text=record.text,
                        metadata=_merged(record.metadata, metadata),
                        embedding=record.embedding,
                    )

    def delete(self, collection: str, ids: Sequence[str]) -> None:
        with self._lock:
            found = self._find(collection)
            for record_id in ids:
                found.records.pop(record_id, None)

    def query(
        self, collection: str, vector: npt.NDArray[np.float32], *, k: int, where: Mapping[str, Any] | None = None
    ) -> list[Hit]:
        if where:
            check_where(where)
        with self._lock:
            found = self._find(collection)
            if vector.shape != (found.dimensions,):
                raise StoreRejected(f"the search vector has shape {vector.shape}, not {found.dimensions} dimensions")
            kept = [record for record in found.records.values() if not where or matches(where, record.metadata)]
        hits = [_hit(record, vector) for record in kept]
        return sorted(hits, key=lambda hit: -hit.score)[: max(k, 0)]

    def neighbours(
        self, collection: str, vectors: Sequence[npt.NDArray[np.float32]], *, k: int
    ) -> list[list[tuple[str, float]]]:
        return [[(hit.id, hit.score) for hit in self.query(collection, vector, k=k)] for vector in vectors]

    def get(self, collection: str, ids: Sequence[str], *, with_embeddings: bool = False) -> list[Record]:
        with self._lock:
            found = self._find(collection)
            kept = [found.records[record_id] for record_id in dict.fromkeys(ids) if record_id in found.records]
        return [_copy(record, with_embeddings) for record in kept]

    def ids(self, collection: str) -> Iterator[list[str]]:
        with self._lock:
            names = list(self._find(collection).records)
        for page in pages(names, IDS_PER_PAGE):
            yield list(page)

    def count(self, collection: str) -> int:
        with self._lock:
            return len(self._find(collection).records)

    def drop_collection(self, name: str) -> None:
        with self._lock:
            self._collections.pop(self._aliases.get(name, name), None)

    def ping(self) -> None:
        """Memory always answers."""

    def close(self) -> None:
        """Nothing is held."""

    def _find(self, name: str) -> _Collection:
        try:
            return self._collections[self._aliases.get(name, name)]
        except KeyError as exc:
            raise CollectionMissing(name) from exc


def _merged(before: Mapping[str, MetadataValue], after: Mapping[str, MetadataValue]) -> dict[str, MetadataValue]:
    return _without_none({**before, **after})


def _without_none(metadata: Mapping[str, MetadataValue]) -> dict[str, MetadataValue]:
    return {key: value for key, value in metadata.items() if value is not None}


def _copy(record: Record, with_embedding: bool) -> Record:
    embedding = record.embedding.copy() if with_embedding and record.embedding is not None else None
    return Record(id=record.id, text=record.text, metadata=dict(record.metadata), embedding=embedding)


def _hit(record: Record, vector: npt.NDArray[np.float32]) -> Hit:
    stored = np.zeros_like(vector) if record.embedding is None else record.embedding
    lengths = float(np.linalg.norm(stored) * np.linalg.norm(vector))
    score = float(stored @ vector) / lengths if lengths else 0.0
    return Hit(id=record.id, text=record.text, metadata=dict(record.metadata), score=score)
