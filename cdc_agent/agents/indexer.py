"""The indexer: the agent that keeps the vector store true to the stream.

Two threads: one reads, folds, plans and embeds; the other writes. While a batch is being written the next one is
embedded, so the model does not wait for the store. The plan of the next batch builds on the manifests of the batches
in flight (the overlay). Everything in flight is derived from the ledger and the stream: on any failure it is thrown
away and made again from the last checkpoint.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import orjson

from cdc_agent import metrics
from cdc_agent.agents.folding import Fold, Pending
from cdc_agent.agents.inflight import InFlight
from cdc_agent.agents.parking import dead_letter, still_indexed
from cdc_agent.agents.planning import Collection, Plan, needs_row, plan
from cdc_agent.agents.rereading import reread
from cdc_agent.agents.vectors import Vectorizer
from cdc_agent.agents.watermark import Watermark
from cdc_agent.agents.writing import IndexWriter, Prepared, TaintedError
from cdc_agent.errors import CdcAgentError, RenderError
from cdc_agent.events import ChangeEvent, Op
from cdc_agent.failpoints import hit
from cdc_agent.ledger.base import Checkpoint, DeadLetter, Ledger, Manifest, Resync
from cdc_agent.lsn import Lsn
from cdc_agent.retry import Retrier, Stopping
from cdc_agent.snapshot import Snapshot
from cdc_agent.source.base import RowReader
from cdc_agent.stream.base import Batch, Stream

__all__ = ["AGENT", "RESYNC_PREFIX", "Indexer"]

log = logging.getLogger(__name__)

#: The indexer's name as a consumer of the stream.
AGENT = "indexer"
#: Logical messages that carry the progress of a resync.
RESYNC_PREFIX = "cdc_agent.resync"
#: Chunks to embed that one batch aims at: enough to fill the model's batches, few enough to be searchable soon.
_TARGET_CHUNKS = 64
_MIN_EVENTS, _MAX_EVENTS = 16, 4_000
#: How long a read waits for something new; a signal ends it at once.
_READ_WAIT_S = 1.0
#: Garbage is collected at the latest after this many batches.
_GARBAGE_EVERY = 8


class Indexer:
    """Wired by ``daemon.build``. ``run_planner`` and ``run_writer`` are the bodies of its two threads."""

    def __init__(
        self,
        *,
        stream: Stream,
        ledger: Ledger,
        writer: IndexWriter,
        vectorizer: Vectorizer,
        row_reader: RowReader,
        collections: Mapping[str, Collection],
        root_oids: Mapping[str, int],
        planner_retrier: Retrier,
        writer_retrier: Retrier,
        stop: threading.Event,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._stream = stream
        self._ledger = ledger
        self._writer = writer
        self._vectorizer = vectorizer
        self._row_reader = row_reader
        self._by_root: dict[int, list[Collection]] = {}
        for collection in collections.values():
            self._by_root.setdefault(root_oids[collection.name], []).append(collection)
        self._collections = collections
        self._planner_retrier = planner_retrier
        self._writer_retrier = writer_retrier
        self._stop = stop
        self._wall_clock = wall_clock
        self._in_flight = InFlight()
        self._handoff: queue.Queue[tuple[int, Prepared]] = queue.Queue(maxsize=1)
        self._failed: CdcAgentError | None = None
        self._limit = _TARGET_CHUNKS
        checkpoint = ledger.checkpoint(AGENT)
        self._next = checkpoint
        self.watermark = Watermark(checkpoint.offset, checkpoint.applied_lsn)

    # -- planner thread ---------------------------------------------------------------------------------------

    def run_planner(self) -> None:
        """Read, fold, plan, embed, hand over; until stopped. Raises what cannot be retried."""
        try:
            while not self._stop.is_set():
                if self._failed is not None:
                    self._start_over()
                batch = self._stream.read(self._next.offset, limit=self._limit, wait_s=_READ_WAIT_S)
                self._take(batch)
        except Stopping:
            log.debug("planner stopped")

    def _start_over(self) -> None:
        """Throw away what is in flight and go on from the last checkpoint."""
        failed = self._failed
        # The writer empties its queue without writing while a failure stands.
        while not self._in_flight.wait_empty(0.5) and not self._stop.is_set():
            continue
        self._failed = None
        if failed is not None and not failed.retryable:
            raise failed
        self._next = self._ledger.checkpoint(AGENT)

    def _take(self, batch: Batch) -> None:
        checkpoint = Checkpoint(
            offset=batch.next_offset, applied_lsn=max(self._next.applied_lsn, Lsn(batch.applied_lsn))
        )
        if checkpoint == self._next:
            return
        if batch.events:
            hit("after_read")
            self._hand_over(self._prepare(batch.events, checkpoint))
        elif not self._in_flight.empty:
            self._hand_over(Prepared(checkpoint=checkpoint))
        else:
            self.watermark.advance(checkpoint.offset, checkpoint.applied_lsn)
        self._next = checkpoint

    def _prepare(self, events: Sequence[ChangeEvent], checkpoint: Checkpoint) -> Prepared:
        folds, resyncs = self._fold(events)
        letters: list[DeadLetter] = []
        plans: list[Plan] = []
        for name, fold in folds.items():
            collection = self._collections[name]
            for pending in self._complete_rows(collection, list(fold.pending.values()), letters):
                made = self._plan(collection, pending, letters)
                if made is not None:
                    plans.append(made)
        hit("after_plan")
        vectors, fresh = self._vectorizer.vectors(plans, letters, self._collections)
        parked = {(letter.collection, letter.document_id) for letter in letters}
        plans = [p for p in plans if (p.collection, p.pending.document_id) not in parked]
        hit("after_embed")
        self._adapt(len(events), sum(len(p.new) for p in plans))
        _count(plans)
        if letters:
            hit("dead_letter")
        prepared = self._writer.begin(
            plans,
            vectors,
            fresh,
            checkpoint=checkpoint,
            retrier=self._planner_retrier,
            letters=letters,
            resyncs=list(resyncs.values()),
        )
        kept = [still_indexed(folds[name].pending[document]) for name, document in sorted(parked)]
        prepared.manifests += [manifest for manifest in kept if manifest is not None]
        return prepared

    def _fold(self, events: Sequence[ChangeEvent]) -> tuple[dict[str, Fold], dict[int, Resync]]:
        folds: dict[str, Fold] = {}
        resyncs: dict[int, Resync] = {}
        for event in events:
            if event.op is Op.MESSAGE:
                self._resync_message(event, folds, resyncs)
                continue
            assert event.relation is not None
            for collection in self._by_root.get(event.relation.root_oid, ()):
                self._fold_of(collection, folds).change(event, epoch=event.resync_id)
        return folds, resyncs

    def _fold_of(self, collection: Collection, folds: dict[str, Fold]) -> Fold:
        fold = folds.get(collection.name)
        if fold is None:
            name = collection.name
            fold = folds[name] = Fold(
                table=collection.table,
                manifest_of=lambda found: self._manifest(name, found),
                documents_of=lambda oid: self._documents(name, oid),
            )
        return fold

    def _manifest(self, collection: str, document_id: str) -> Manifest | None:
        pending = self._in_flight.manifest(collection, document_id)
        if pending is not None:
            return pending
        return self._ledger.manifests(collection, [document_id]).get(document_id)

    def _documents(self, collection: str, relation_oid: int) -> list[str]:
        in_ledger = self._ledger.documents_of_relation(collection, relation_oid)
        return [*in_ledger, *self._in_flight.documents_of(collection, relation_oid)]

    def _resync_message(self, event: ChangeEvent, folds: dict[str, Fold], resyncs: dict[int, Resync]) -> None:
        """A page of a resync ended here: remember how far it is; at its end, what it never met is gone."""
        if event.message is None or event.message[0] != RESYNC_PREFIX or event.resync_id == 0:
            return
        found = resyncs.get(event.resync_id) or next(
            (r for r in self._ledger.resyncs(running_only=True) if r.id == event.resync_id), None
        )
        if found is None:
            return
        body = orjson.loads(event.message[1])
        for collection in (self._collections[name] for name in found.collections if name in self._collections):
            fold = self._fold_of(collection, folds)
            for key in body.get("absent", ()):
                fold.absent(event, tuple(key))
            if body["done"] and not found.keys:
                self._sweep_out(collection, fold, event, Snapshot.parse(body["since"]))
        resyncs[found.id] = replace(
            found,
            last_key=tuple(body["last_key"]) if body["last_key"] else found.last_key,
            rows_done=body["rows_done"],
            state="done" if body["done"] else "running",
            finished_at=self._wall_clock() if body["done"] else None,
        )

    def _sweep_out(self, collection: Collection, fold: Fold, event: ChangeEvent, since: Snapshot) -> None:
        """Documents that a whole resync never met are gone from the table."""
        for manifest in self._ledger.unseen(collection.name, event.resync_id):
            newest = self._in_flight.manifest(collection.name, manifest.document_id) or manifest
            if not newest.deleted and newest.epoch < event.resync_id:
                fold.gone(newest, event, since=since, epoch=event.resync_id)

    def _complete_rows(
        self, collection: Collection, pending: Sequence[Pending], letters: list[DeadLetter]
    ) -> Sequence[Pending]:
        """Read again what must be read again; returns what can be planned."""
        wanted = [p for p in pending if needs_row(collection, p, tainted=bool(self._writer.tainted(p.base)))]
        if not wanted:
            return pending
        try:
            reread(collection.table, wanted, self._row_reader, self._planner_retrier)
        except RenderError as exc:
            letters += [dead_letter(AGENT, collection, p, "render", exc, 1) for p in wanted]
            return [p for p in pending if p not in wanted]
        metrics.REREAD_ROWS.inc(len(wanted))
        hit("after_reread")
        return pending

    def _plan(self, collection: Collection, pending: Pending, letters: list[DeadLetter]) -> Plan | None:
        try:
            return plan(collection, pending, tainted=self._writer.tainted(pending.base))
        except RenderError as exc:
            letters.append(dead_letter(AGENT, collection, pending, "render", exc, 1))
            return None

    def _adapt(self, events: int, chunks: int) -> None:
        """Aim at batches of about ``_TARGET_CHUNKS`` new chunks, whatever the rows look like."""
        per_event = max(chunks / max(events, 1), _TARGET_CHUNKS / _MAX_EVENTS)
        wanted = int(_TARGET_CHUNKS / per_event)
        self._limit = max(_MIN_EVENTS, min(_MAX_EVENTS, wanted, self._limit * 4))

    def _hand_over(self, prepared: Prepared) -> None:
        number = self._in_flight.begin(prepared.manifests)
        while not self._stop.is_set():
            try:
                self._handoff.put((number, prepared), timeout=0.5)
            except queue.Full:
                continue
            return
        raise Stopping

    # -- writer thread ----------------------------------------------------------------------------------------

    def run_writer(self) -> None:
        """Write what is handed over, in order; until stopped. Raises what cannot be retried."""
        try:
            self._writer.sweep(self._writer_retrier)
            self._collect(0)
            since_garbage = 0
            while not self._stop.is_set():
                try:
                    number, prepared = self._handoff.get(timeout=0.5)
                except queue.Empty:
                    continue
                self._write(number, prepared)
                since_garbage = self._collect(since_garbage + 1)
        except Stopping:
            log.debug("writer stopped")

    def _write(self, number: int, prepared: Prepared) -> None:
        try:
            if self._failed is None:
                self._write_one(prepared)
                self._finish(prepared)
        except TaintedError as exc:
            log.warning("planning again error=%s", exc.message)
            self._failed = exc
            self._wait_for_store(exc)
        finally:
            self._in_flight.settle(number)

    def _write_one(self, prepared: Prepared) -> None:
        if not prepared.empty or prepared.checkpoint.offset > self.watermark.offset:
            self._writer.write(prepared, self._writer_retrier)

    def _wait_for_store(self, exc: TaintedError) -> None:
        self._writer_retrier.wait("vectorstore", exc, 1)

    def _finish(self, prepared: Prepared) -> None:
        checkpoint = prepared.checkpoint
        self.watermark.advance(checkpoint.offset, checkpoint.applied_lsn)
        self._stream.release(AGENT, checkpoint.offset)
        now = self._wall_clock()
        for made in prepared.plans:
            if made.pending.touched and not made.pending.from_resync:
                age = now - made.pending.first_commit_ts_us / 1_000_000
                metrics.FRESHNESS_SECONDS.observe(max(0.0, age))
        for letter in prepared.letters:
            metrics.DEAD_LETTERED.labels(reason=letter.reason).inc()
        if prepared.letters:
            log.warning("parked documents=%d", len(prepared.letters))
        for resync in prepared.resyncs:
            if resync.state == "done":
                log.info("resync done id=%d table=%s rows=%d", resync.id, resync.table, resync.rows_done)
                hit("resync_done")

    def _collect(self, since: int) -> int:
        """Collect garbage when there is nothing more urgent, or when it has waited long enough."""
        if self._handoff.empty() or since >= _GARBAGE_EVERY:
            self._writer.collect_garbage(self._writer_retrier)
            return 0
        return since


def _count(plans: Sequence[Plan]) -> None:
    for made in plans:
        metrics.METADATA_UPDATES.inc(len(made.moved))
        if made.pending.touched and not made.deleted:
            metrics.CHUNKS_UNCHANGED.inc(len(made.kept))
