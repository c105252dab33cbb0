"""The contract of every vector store backend.

An error is never "not applied": a call that raised may have been carried out, may be carried out later, or never.
Callers repeat calls with the same ids until one succeeds; every write here is idempotent by id.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cdc_agent.documents.model import MetadataValue

__all__ = ["Hit", "Record", "VectorStore"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One chunk as it is stored. ``embedding`` is None in a metadata-only write."""

    id: str
    text: str
    metadata: Mapping[str, MetadataValue]
    embedding: npt.NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """One search result. ``score`` is cosine similarity, higher is closer."""

    id: str
    text: str
    metadata: Mapping[str, Any]
    score: float


class VectorStore(Protocol):
    """A set of named collections. Safe to call from several threads. Every call is bounded by a timeout.

    Raises ``StoreUnavailable`` (try again) or ``StoreRejected`` (never will be taken).
    """

    def open_collection(self, name: str, *, dimensions: int, marker: Mapping[str, MetadataValue]) -> dict[str, Any]:
        """Create the collection (cosine) with ``marker`` as its metadata if it is not there.

        Returns the collection's metadata as it is in the store; nothing is changed on an existing one.
        """
        ...

    def marker(self, name: str) -> dict[str, Any]:
        """The collection's metadata as it is in the store now."""
        ...

    def set_marker(self, name: str, marker: Mapping[str, MetadataValue]) -> None:
        """Replace the collection's metadata; what is in it stays."""
        ...

    def recreate_collection(self, name: str, *, dimensions: int, marker: Mapping[str, MetadataValue]) -> None:
        """Remove the collection with everything in it, and create it again under the name that it has in the store."""
        ...

    def stored(self) -> dict[str, dict[str, Any]]:
        """Every collection in the store: its metadata, by the name that it has there."""
        ...

    def alias(self, name: str, stored_as: str) -> None:
        """What we call ``name`` has the name ``stored_as`` in the store. Without this both are the same."""
        ...

    def rename_collection(self, name: str, stored_as: str) -> None:
        """Give what we call ``name`` another name in the store. Calls under way go on, and we go on calling it so.

        Raises ``StoreRejected`` when another collection has that name.
        """
        ...

    def upsert(self, collection: str, records: Sequence[Record]) -> None:
        """Write records; replaces text, vector and metadata of an id. None values in metadata remove the key."""
        ...

    def update_metadata(self, collection: str, metadata_by_id: Mapping[str, Mapping[str, MetadataValue]]) -> None:
        """Merge metadata of existing records, vectors untouched; None removes the key. Missing ids are ignored."""
        ...

    def delete(self, collection: str, ids: Sequence[str]) -> None:
        """Remove records; missing ids are no error."""
        ...

    def query(
        self, collection: str, vector: npt.NDArray[np.float32], *, k: int, where: Mapping[str, Any] | None = None
    ) -> list[Hit]:
        """The ``k`` nearest records, best first. ``where`` uses Chroma's operators."""
        ...

    def neighbours(
        self, collection: str, vectors: Sequence[npt.NDArray[np.float32]], *, k: int
    ) -> list[list[tuple[str, float]]]:
        """For each vector what ``query`` finds, as ids and scores alone."""
        ...

    def get(self, collection: str, ids: Sequence[str], *, with_embeddings: bool = False) -> list[Record]:
        """The records that exist, in no promised order."""
        ...

    def ids(self, collection: str) -> Iterator[list[str]]:
        """Every id, page by page (bounded pages). Writes during the listing may or may not be seen."""
        ...

    def count(self, collection: str) -> int: ...

    def drop_collection(self, name: str) -> None:
        """Remove a collection and everything in it; no error when it is not there."""
        ...

    def ping(self) -> None:
        """Return quickly if the store answers, raise ``StoreUnavailable`` otherwise."""
        ...

    def close(self) -> None: ...
