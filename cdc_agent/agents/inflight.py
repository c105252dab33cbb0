"""Batches that were handed to the writer and are not flipped yet, and the manifests that they will make true."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from cdc_agent.ledger.base import Manifest

__all__ = ["InFlight"]


class InFlight:
    """Shared by the planner (adds) and the writer (settles). The newest manifest of a document wins."""

    def __init__(self) -> None:
        self._manifests: dict[tuple[str, str], tuple[int, Manifest]] = {}
        self._number = 0
        self._open = 0
        self._settled = threading.Condition()

    def begin(self, manifests: Iterable[Manifest]) -> int:
        """Add one batch; returns its number."""
        with self._settled:
            self._number += 1
            self._open += 1
            for manifest in manifests:
                self._manifests[manifest.collection, manifest.document_id] = (self._number, manifest)
            return self._number

    def settle(self, number: int) -> None:
        """The batch is flipped or given up: the ledger answers for its documents from now on."""
        with self._settled:
            self._open -= 1
            self._manifests = {place: entry for place, entry in self._manifests.items() if entry[0] > number}
            self._settled.notify_all()

    @property
    def empty(self) -> bool:
        with self._settled:
            return self._open == 0

    def wait_empty(self, timeout_s: float) -> bool:
        with self._settled:
            return self._settled.wait_for(lambda: self._open == 0, timeout_s)

    def manifest(self, collection: str, document_id: str) -> Manifest | None:
        with self._settled:
            found = self._manifests.get((collection, document_id))
        return found[1] if found else None

    def manifests(self, collection: str, documents: Iterable[str]) -> dict[str, Manifest]:
        with self._settled:
            places = ((document, self._manifests.get((collection, document))) for document in documents)
            return {document: found[1] for document, found in places if found is not None}

    def live(self, collection: str) -> list[Manifest]:
        with self._settled:
            return [m for _, m in self._manifests.values() if m.collection == collection and not m.deleted]

    def documents_of(self, collection: str, relation_oid: int) -> list[str]:
        return [m.document_id for m in self.live(collection) if m.relation_oid == relation_oid]
