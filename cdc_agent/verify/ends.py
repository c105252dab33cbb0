"""What an audit works with: the ends it reads, the way to the truth of a moment, and the collections there are."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from cdc_agent.agents import planning
from cdc_agent.agents.watermark import Progress
from cdc_agent.documents.model import MetadataValue
from cdc_agent.embedding.base import Embedder
from cdc_agent.errors import CdcAgentError, LedgerUnavailable, SourceError, StoreUnavailable
from cdc_agent.events import Row
from cdc_agent.ledger.base import Ledger, Manifest, Resync
from cdc_agent.lsn import Lsn
from cdc_agent.retry import Retrier, Stopping
from cdc_agent.source.base import RowReader, RowSet, TableRows
from cdc_agent.vectorstore.base import Record, VectorStore
from cdc_agent.vectorstore.records import CollectionMissing

__all__ = ["MESSAGE_PREFIX", "Audited", "Barrier", "Ends", "KeyedReader"]

T = TypeVar("T")

#: Prefix of the logical messages whose place in the log an audit waits for. Nobody reads their content.
MESSAGE_PREFIX = "cdc_agent.verify"
#: Longest wait for an index that stands still; one slow batch is not that.
_PATIENCE_S = 300.0
#: How often a waiter asks again for what is put off.
_ASK_INTERVAL_S = 0.25
#: How often it looks whether a collection has been read again.
_COPY_INTERVAL_S = 0.5
#: Longest wait for a collection that is not in the store: somebody notices, and builds it again.
_REBUILT_S = 60.0


class KeyedReader(RowReader, Protocol):
    """A row reader that also knows keys and sizes."""

    def key_names(self, table: str) -> tuple[str, ...]: ...
    def estimated_rows(self, table: str) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Audited:
    """One collection under the ``name`` that ledger and store know, and under the ``configured`` one. ``fingerprint``
    names its vectors in the cache, ``marker`` is what the store's collection must carry."""

    name: str
    configured: str
    collection: planning.Collection
    embedder: Embedder
    fingerprint: str
    marker: Mapping[str, MetadataValue]


class Barrier:
    """Waits until the index holds everything up to a position, for as long as it comes nearer."""

    def __init__(
        self,
        *,
        watermark: Progress,
        hurry: Callable[[], None],
        stop: threading.Event,
        patience_s: float = _PATIENCE_S,
    ) -> None:
        self._watermark = watermark
        self._hurry = hurry
        self._stop = stop
        self._patience_s = patience_s

    def wait(self, lsn: Lsn) -> None:
        """Return when every commit up to ``lsn`` is in the index."""
        offset, since = self._watermark.offset, time.monotonic()
        while not self._watermark.wait_lsn(lsn, 0.0):
            if self._stop.is_set():
                raise Stopping
            if self._watermark.offset != offset:
                offset, since = self._watermark.offset, time.monotonic()
            if time.monotonic() - since >= self._patience_s:
                raise CdcAgentError(
                    f"the index stands still before {lsn}", hint="/readyz says why; audit again when it moves"
                )
            self._hurry()
            self._watermark.wait_lsn(lsn, _ASK_INTERVAL_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """Every call waits while its end is away, and raises ``Stopping`` when the process stops.

    ``behind`` says whether live changes wait for the indexer. ``beside`` are other logs that the index is made from,
    each with who writes a mark into it and who waits for that.
    """

    ledger: Ledger
    store: VectorStore
    reader: KeyedReader
    barrier: Barrier
    request: Callable[[Resync], Resync]
    behind: Callable[[], bool]
    retrier: Retrier
    stop: threading.Event
    beside: Sequence[tuple[KeyedReader, Barrier]] = ()
    rebuilt_s: float = _REBUILT_S

    def being_copied(self) -> set[str]:
        """The collections whose tables are being read as a whole: what that has not brought yet is not missing."""
        running = self.ledger.resyncs(running_only=True)
        return {name for resync in running if not (resync.keys or resync.predicate) for name in resync.collections}

    def await_copies(self, names: Collection[str]) -> None:
        """Return when none of these collections is being copied."""
        while not self.being_copied().isdisjoint(names):
            if self.stop.wait(_COPY_INTERVAL_S):
                raise Stopping

    def page(self, table: str, after: tuple[str, ...] | None, limit: int) -> RowSet:
        return self._source(lambda: self.reader.page(TableRows(table=table, after_key=after, limit=limit)))

    def rows(self, table: str, keys: Sequence[tuple[str, ...]]) -> tuple[str, dict[tuple[str, ...], Row]]:
        """The snapshot of the read, and the rows that exist by key."""
        found = self._source(lambda: self.reader.by_key(table, keys))
        rows = (Row(relation, raw) for relation, raw in zip(found.relations, found.rows, strict=True))
        return found.snapshot, {key: row for row in rows if (key := row.key()) is not None}

    def key_columns(self, table: str) -> int:
        return len(self._source(lambda: self.reader.key_names(table)))

    def estimated_rows(self, table: str) -> int:
        return max(0, self._source(lambda: self.reader.estimated_rows(table)))

    def catch_up(self) -> None:
        """Wait until the index holds every commit that anybody can see by now."""
        for reader, barrier in ((self.reader, self.barrier), *self.beside):
            barrier.wait(self._source(lambda reader=reader: reader.mark(MESSAGE_PREFIX, {})))  # type: ignore[misc]

    def manifests(self, collection: str, document_ids: Sequence[str]) -> dict[str, Manifest]:
        return self.ledger.manifests(collection, document_ids)

    def records(self, collection: str, ids: Sequence[str], *, with_embeddings: bool = False) -> dict[str, Record]:
        found = self.in_store(lambda: self.store.get(collection, ids, with_embeddings=with_embeddings))
        return {record.id: record for record in found}

    def in_store(self, call: Callable[[], T]) -> T:
        return self.present(lambda: self.retrier.until_done("verify", call, (StoreUnavailable,)))

    def present(self, call: Callable[[], T]) -> T:
        """What a call says once its collection is there: one that is being built again is missing for a moment."""
        deadline = time.monotonic() + self.rebuilt_s
        while True:
            try:
                return call()
            except CollectionMissing:
                if time.monotonic() >= deadline:
                    raise
            self.stop.wait(_ASK_INTERVAL_S)
            self.check_stop()

    def stored_ids(self, collection: str) -> Iterator[list[str]]:
        """Every id of a collection, page by page; after a fault from the beginning."""
        attempt, pages = 0, self.store.ids(collection)
        while True:
            try:
                yield from pages
                return
            except StoreUnavailable as exc:
                attempt += 1
                self.retrier.wait("verify", exc, attempt)
            except CollectionMissing:
                self.in_store(lambda: self.store.count(collection))
            pages = self.store.ids(collection)

    def in_ledger(self, call: Callable[[], T]) -> T:
        return self.retrier.until_done("verify", call, (LedgerUnavailable,))

    def check_stop(self) -> None:
        if self.stop.is_set():
            raise Stopping

    def _source(self, call: Callable[[], T]) -> T:
        return self.retrier.until_done("verify", call, (SourceError,))
