"""The write protocol: intents, store, manifest flip, garbage. The only writer of the index.

1. ``begin``: ledger transaction 1 takes a generation number and records the ids to be written as intents.
2. the store gets the new chunks under ids that were never used before, then metadata of chunks that stay.
3. ``flip``: ledger transaction 2 is the commit point; the document changes for its readers here.
4. what no manifest names any more is deleted from the store.

A request that lands late (the store was stopped, we were killed) can only write an id that nobody names, which the
sweep removes. The exceptions are a metadata write in place, and an upsert that was repeated and is followed by one: the
chunk becomes *tainted* when a request may still be under way, and the next write of its document gives it a new id.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from cdc_agent import metrics
from cdc_agent.agents.parking import dead_letter, still_indexed
from cdc_agent.agents.planning import Collection, Plan, chunk_metadata
from cdc_agent.documents.model import MetadataValue
from cdc_agent.errors import CdcAgentError, LedgerUnavailable, StoreRejected, StoreUnavailable
from cdc_agent.failpoints import hit
from cdc_agent.ledger.base import Checkpoint, DeadLetter, Flip, Ledger, Manifest, NewChunks, Resync
from cdc_agent.lsn import Lsn
from cdc_agent.retry import Retrier
from cdc_agent.vectorstore.base import Record, VectorStore
from cdc_agent.vectorstore.records import CollectionMissing

__all__ = ["IndexWriter", "PlanAgainError", "Prepared", "TaintedError"]

log = logging.getLogger(__name__)

#: Chunks deleted from the store at a time.
_GARBAGE_BATCH = 200


class PlanAgainError(CdcAgentError):
    """What was planned on top of a batch must be planned again: the batch came to something else."""

    retryable = True


class TaintedError(PlanAgainError):
    """A metadata write in place failed and may still land; its batch must be planned again with new ids."""


@dataclass(slots=True, kw_only=True)
class Prepared:
    """One batch, planned and embedded, with ids allocated; ready to be written in any later moment."""

    checkpoint: Checkpoint
    #: Changes are complete up to here once this is written; what a resync read may still wait.
    live_lsn: Lsn = Lsn(0)
    #: Whether all of it is what a resync read.
    reads: bool = False
    generation: int = 0
    plans: Sequence[Plan] = ()
    manifests: list[Manifest] = field(default_factory=list)
    #: Manifests of documents whose chunks stay as they are.
    same: list[Manifest] = field(default_factory=list)
    records: dict[tuple[str, str], list[Record]] = field(default_factory=dict)
    letters: list[DeadLetter] = field(default_factory=list)
    resyncs: Sequence[Resync] = ()
    #: When planning began, when embedding began and when it ended, in Unix nanoseconds.
    planned_ns: tuple[int, int, int] = (0, 0, 0)
    #: Chunks that an upsert which failed may still write once more, over what is written in place later.
    suspected: set[tuple[str, str]] = field(default_factory=set)

    @property
    def empty(self) -> bool:
        return not (self.manifests or self.same or self.letters or self.resyncs)


class IndexWriter:
    """Writes prepared batches in order. ``begin`` may run ahead of ``write`` by any number of batches."""

    def __init__(
        self,
        *,
        agent: str,
        ledger: Ledger,
        store: VectorStore,
        collections: Mapping[str, Collection],
        fingerprint: str,
    ) -> None:
        self._agent = agent
        self._ledger = ledger
        self._store = store
        self._collections = collections
        self._fingerprint = fingerprint
        self._lock = threading.Lock()
        self._tainted = self._left_behind()
        #: The generation that was taken last. A batch without new chunks carries it, too: what was begun before it is
        #: over by the time that it is flipped, and what was begun later is not.
        self._begun = ledger.generation()

    def tainted(self, manifest: Manifest | None) -> frozenset[str]:
        """Chunk ids of a document that must not be written in place again."""
        with self._lock:
            if not self._tainted or manifest is None:
                return frozenset()
            return frozenset(c.id for c in manifest.chunks if (manifest.collection, c.id) in self._tainted)

    def _left_behind(self) -> set[tuple[str, str]]:
        """Live chunks with an intent: the process died while their metadata was being written."""
        return {(c, i) for c, i in self._ledger.intents(self._agent) if self._ledger.live(c, [i])}

    # -- transaction 1 ----------------------------------------------------------------------------------------

    def begin(
        self,
        plans: Sequence[Plan],
        vectors: Mapping[bytes, npt.NDArray[np.float32]],
        remember: Iterable[bytes],
        *,
        checkpoint: Checkpoint,
        retrier: Retrier,
        letters: Sequence[DeadLetter] = (),
        resyncs: Sequence[Resync] = (),
    ) -> Prepared:
        """Allocate ids for what the plans add. ``remember``: hashes of texts whose vectors the cache must have."""
        new = [
            NewChunks(
                collection=p.collection,
                document_id=p.pending.document_id,
                count=len(p.new),
                hashes=[p.hashes[i] for i in p.new],
            )
            for p in plans
            if p.new
        ]
        touched = [(p.collection, chunk_id) for p in plans for chunk_id in p.moved]
        ids: dict[tuple[str, str], list[str]] = {}
        if new or touched:
            hit("before_intent")
            # A document that was parked meanwhile has no use of its vectors, so none would ever leave with it.
            used = {digest for chunks in new for digest in chunks.hashes}
            kept = {digest: vectors[digest].tobytes() for digest in remember if digest in used}
            self._begun, ids = retrier.until_done(
                "ledger",
                lambda: self._ledger.begin_write(
                    new, agent=self._agent, touched=touched, fingerprint=self._fingerprint, vectors=kept
                ),
                (LedgerUnavailable,),
                # Who is to stop keeps what was embedded: it is paid for.
                once=True,
            )
            hit("after_intent")
        prepared = Prepared(
            checkpoint=checkpoint, generation=self._begun, plans=plans, letters=list(letters), resyncs=resyncs
        )
        for plan in plans:
            place = (plan.collection, plan.pending.document_id)
            manifest = plan.manifest(ids.get(place, ()))
            (prepared.same if plan.same else prepared.manifests).append(manifest)
            if plan.new:
                prepared.records[place] = self._records(plan, ids[place], vectors)
        return prepared

    def _records(
        self, plan: Plan, ids: Sequence[str], vectors: Mapping[bytes, npt.NDArray[np.float32]]
    ) -> list[Record]:
        collection = self._collections[plan.collection]
        return [
            Record(
                id=chunk_id,
                text=plan.texts[position],
                metadata=chunk_metadata(collection, plan, position),
                embedding=vectors[plan.hashes[position]],
            )
            for chunk_id, position in zip(ids, plan.new, strict=True)
        ]

    # -- store and transaction 2 ------------------------------------------------------------------------------

    def write(self, prepared: Prepared, retrier: Retrier) -> bool:
        """Carry one batch out. Durable and visible on return. Raises ``TaintedError`` when it must be planned again.

        Returns False when it came to something else than what was planned on top of it: the store refused a document,
        or took chunks only after a request that may still land.
        """
        letters = len(prepared.letters)
        if prepared.records:
            self._upsert(prepared, retrier)
            hit("after_upsert")
        self._update_metadata(prepared)
        hit("before_flip")
        flip = Flip(
            agent=self._agent,
            checkpoint=prepared.checkpoint,
            generation=prepared.generation,
            manifests=prepared.manifests,
            same=prepared.same,
            dead_letters=prepared.letters,
            resyncs=prepared.resyncs,
            suspected=sorted(prepared.suspected),
        )
        retrier.until_done("ledger", lambda: self._ledger.flip(flip), (LedgerUnavailable,))
        hit("after_flip")
        with self._lock:
            self._tainted |= prepared.suspected
        self._forget_taint([*prepared.manifests, *prepared.same])
        return len(prepared.letters) == letters and not prepared.suspected

    def _upsert(self, prepared: Prepared, retrier: Retrier) -> None:
        by_collection: dict[str, list[Record]] = {}
        for (collection, _), records in prepared.records.items():
            by_collection.setdefault(collection, []).extend(records)
        for collection, records in by_collection.items():
            try:
                self._put(prepared, collection, records, retrier)
            except CollectionMissing:
                raise
            except StoreRejected:
                self._upsert_one_by_one(prepared, collection, retrier)

    def _put(self, prepared: Prepared, collection: str, records: Sequence[Record], retrier: Retrier) -> None:
        def upsert() -> None:
            try:
                self._store.upsert(collection, records)
            except StoreUnavailable:
                prepared.suspected.update((collection, record.id) for record in records)
                raise

        hit("mid_upsert")
        with metrics.VECTORSTORE_WRITE_SECONDS.time():
            retrier.until_done("vectorstore", upsert, (StoreUnavailable,))

    def _upsert_one_by_one(self, prepared: Prepared, collection: str, retrier: Retrier) -> None:
        """The store refuses something in the batch: find out which document, and park it."""
        for place, records in list(prepared.records.items()):
            if place[0] != collection:
                continue
            try:
                self._put(prepared, collection, records, retrier)
            except StoreRejected as exc:
                self._park(prepared, place, exc)

    def _park(self, prepared: Prepared, place: tuple[str, str], exc: StoreRejected) -> None:
        plan = next(p for p in prepared.plans if (p.collection, p.pending.document_id) == place)
        prepared.letters.append(dead_letter(self._agent, self._collections[place[0]], plan.pending, "rejected", exc, 1))
        kept = still_indexed(self._collections[place[0]], plan.pending)
        others = [m for m in prepared.manifests if (m.collection, m.document_id) != place]
        prepared.manifests = [*others, kept]
        prepared.plans = [p for p in prepared.plans if p is not plan]

    def _update_metadata(self, prepared: Prepared) -> None:
        changes: dict[str, dict[str, Mapping[str, MetadataValue]]] = {}
        for plan in prepared.plans:
            if plan.moved:
                changes.setdefault(plan.collection, {}).update(plan.moved)
        for collection, metadata_by_id in changes.items():
            try:
                self._put_metadata(collection, metadata_by_id)
            except CollectionMissing:
                raise
            except StoreRejected:
                self._update_one_by_one(prepared, collection)
            hit("after_metadata")

    def _put_metadata(self, collection: str, metadata_by_id: Mapping[str, Mapping[str, MetadataValue]]) -> None:
        try:
            with metrics.VECTORSTORE_WRITE_SECONDS.time():
                self._store.update_metadata(collection, metadata_by_id)
        except StoreUnavailable as exc:
            with self._lock:
                self._tainted |= {(collection, chunk_id) for chunk_id in metadata_by_id}
            raise TaintedError(exc.message, hint=exc.hint) from exc

    def _update_one_by_one(self, prepared: Prepared, collection: str) -> None:
        for plan in list(prepared.plans):
            if plan.collection == collection and plan.moved:
                try:
                    self._put_metadata(collection, plan.moved)
                except StoreRejected as exc:
                    self._park(prepared, (collection, plan.pending.document_id), exc)

    def _forget_taint(self, manifests: Sequence[Manifest]) -> None:
        with self._lock:
            if not self._tainted:
                return
            for manifest in manifests:
                live = {chunk.id for chunk in manifest.chunks}
                self._tainted = {
                    (c, i)
                    for c, i in self._tainted
                    if c != manifest.collection or i.rpartition("#")[0] != manifest.document_id or i in live
                }

    # -- garbage ----------------------------------------------------------------------------------------------

    def collect_garbage(self, retrier: Retrier) -> None:
        """Delete what no manifest names any more."""
        while items := self._ledger.garbage(_GARBAGE_BATCH, list(self._collections)):
            hit("before_gc")
            by_collection: dict[str, list[str]] = {}
            for collection, chunk_id in items:
                by_collection.setdefault(collection, []).append(chunk_id)
            for collection, ids in by_collection.items():
                self._delete(collection, ids, retrier)
            hit("mid_gc")
            self._clear_garbage(items, retrier)
            metrics.CHUNKS_DELETED.inc(len(items))
            hit("after_gc")

    def _clear_garbage(self, items: Sequence[tuple[str, str]], retrier: Retrier) -> None:
        retrier.until_done("ledger", lambda: self._ledger.clear_garbage(items), (LedgerUnavailable,))

    def sweep(self, retrier: Retrier) -> int:
        """Delete ids from the store that nothing names: requests of an earlier life that landed late."""
        swept = 0
        for collection in self._collections:
            for page in self._pages(collection, retrier):
                strays = sorted(set(page) - self._ledger.known(collection, page))
                if strays:
                    self._delete(collection, strays, retrier)
                    swept += len(strays)
            hit("sweep")
        if swept:
            log.info("swept chunks=%d", swept)
        return swept

    def _delete(self, collection: str, ids: Sequence[str], retrier: Retrier) -> None:
        retrier.until_done("vectorstore", lambda: self._store.delete(collection, ids), (StoreUnavailable,))

    def _pages(self, collection: str, retrier: Retrier) -> list[list[str]]:
        return retrier.until_done("vectorstore", lambda: list(self._store.ids(collection)), (StoreUnavailable,))
