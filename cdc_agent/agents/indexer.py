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

from cdc_agent import metrics
from cdc_agent.agents.batch import BatchFolder, Folded
from cdc_agent.agents.folding import Pending
from cdc_agent.agents.inflight import InFlight
from cdc_agent.agents.pacing import Deferred, Pacer
from cdc_agent.agents.parking import dead_letter, still_indexed
from cdc_agent.agents.planning import Collection, Plan, needs_row, plan
from cdc_agent.agents.rereading import reread
from cdc_agent.agents.vectors import Vectorizer
from cdc_agent.agents.watermark import Watermark
from cdc_agent.agents.writing import IndexWriter, PlanAgainError, Prepared, TaintedError
from cdc_agent.errors import CdcAgentError, LedgerFull, RenderError, StreamFull
from cdc_agent.failpoints import hit
from cdc_agent.ledger.base import Checkpoint, DeadLetter, Ledger, Resync
from cdc_agent.lsn import Lsn
from cdc_agent.retry import Retrier, Stopping
from cdc_agent.snapshot import Snapshot
from cdc_agent.source.base import RowReader
from cdc_agent.stream.base import Batch, Stream

__all__ = ["AGENT", "Indexer"]

log = logging.getLogger(__name__)

#: The indexer's name as a consumer of the stream.
AGENT = "indexer"
#: Chunks to embed that one batch aims at: enough to fill the model's batches, few enough to be searchable soon.
_TARGET_CHUNKS = 64
_MIN_EVENTS, _MAX_EVENTS = 16, 4_000
#: How long a read waits for something new; a signal ends it at once.
_READ_WAIT_S = 1.0
#: Seconds between looks for ids that nothing names.
_SWEEP_INTERVAL_S = 3600.0
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
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream
        self._ledger = ledger
        self._writer = writer
        self._vectorizer = vectorizer
        self._row_reader = row_reader
        self._collections = collections
        self._planner_retrier = planner_retrier
        self._writer_retrier = writer_retrier
        self._stop = stop
        self._wall_clock = wall_clock
        self._in_flight = InFlight()
        self._clock = clock
        self._next_sweep = 0.0
        self._pacer = Pacer(clock)
        self._deferred = Deferred(clock)
        self._folder = BatchFolder(
            ledger=ledger,
            in_flight=self._in_flight,
            collections=collections,
            root_oids=root_oids,
            resume=self._resumed,
            waiting=self._deferred.places,
            wall_clock=wall_clock,
        )
        self._held: dict[tuple[str, str], Checkpoint] = {}
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
                wait_s = self._deferred.due_in_s(_READ_WAIT_S)
                self._take(self._stream.read(self._next.offset, limit=self._limit, wait_s=wait_s))
        except Stopping:
            log.debug("planner stopped")

    def hurry(self) -> None:
        """Somebody waits for the watermark: nothing is put off any longer."""
        self._deferred.hurry()
        self._stream.wake()

    def _start_over(self) -> None:
        """Throw away what is in flight and go on from the last checkpoint."""
        failed = self._failed
        # The writer empties its queue without writing while a failure stands.
        while not self._in_flight.wait_empty(0.5) and not self._stop.is_set():
            continue
        self._failed = None
        if failed is not None and not failed.retryable:
            raise failed
        self._deferred.clear()
        self._next = self._ledger.checkpoint(AGENT)

    def _take(self, batch: Batch) -> None:
        checkpoint = Checkpoint(
            offset=batch.next_offset, applied_lsn=max(self._next.applied_lsn, Lsn(batch.applied_lsn))
        )
        due = self._deferred.take_due()
        self._held = {place: entry.held for place, entry in due.items()}
        if batch.events or due:
            hit("after_read")
            waited = {place: entry.pending for place, entry in due.items()}
            folded = self._folder.fold(batch.events, waited)
            self._hand_over(self._prepare(folded, len(batch.events), checkpoint, frozenset(due)))
        elif checkpoint != self._next:
            self._move_on(checkpoint)
        self._next = checkpoint

    def _move_on(self, checkpoint: Checkpoint) -> None:
        """Nothing concerned us, and the source is further."""
        safe = self._deferred.safe(checkpoint)
        # Asked in this order: a batch that was given up leaves the air only after it is known to have failed.
        if self._in_flight.empty and self._failed is None:
            self.watermark.advance(safe.offset, safe.applied_lsn)
        else:
            self._hand_over(Prepared(checkpoint=safe))

    def _resumed(self, collection: str, document_id: str) -> Pending | None:
        """A document that was put off changes again."""
        entry = self._deferred.take((collection, document_id))
        if entry is None:
            return None
        self._held[collection, document_id] = entry.held
        return entry.pending

    def _prepare(
        self, folded: Folded, events: int, checkpoint: Checkpoint, due: frozenset[tuple[str, str]]
    ) -> Prepared:
        folds, resyncs = folded.folds, folded.resyncs
        letters: list[DeadLetter] = []
        plans: list[Plan] = []
        for name, fold in folds.items():
            collection = self._collections[name]
            for pending in self._complete_rows(collection, list(fold.pending.values()), letters):
                made = self._plan(collection, pending, letters)
                if made is not None and not self._put_off(made, due):
                    plans.append(made)
        hit("after_plan")
        vectors, fresh = self._vectorizer.vectors(plans, letters, self._collections)
        parked = {(letter.collection, letter.document_id) for letter in letters}
        plans = [p for p in plans if (p.collection, p.pending.document_id) not in parked]
        hit("after_embed")
        self._adapt(events, sum(len(p.new) for p in plans))
        _count(plans)
        if letters:
            hit("dead_letter")
        prepared = self._writer.begin(
            plans,
            vectors,
            fresh,
            checkpoint=self._deferred.safe(checkpoint),
            retrier=self._planner_retrier,
            letters=letters,
            resyncs=list(resyncs.values()),
        )
        kept = [still_indexed(folds[name].pending[document]) for name, document in sorted(parked)]
        prepared.manifests += [manifest for manifest in kept if manifest is not None]
        return prepared

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
            made = plan(collection, pending, tainted=self._writer.tainted(pending.base))
            # A row that is new and does not match was never here: no tombstone is needed to keep it out.
            return None if made.deleted and pending.born else made
        except RenderError as exc:
            letters.append(dead_letter(AGENT, collection, pending, "render", exc, 1))
            return None

    def _put_off(self, made: Plan, due: frozenset[tuple[str, str]]) -> bool:
        """Whether a document that changes again and again waits a little before it is embedded once more."""
        place = (made.collection, made.pending.document_id)
        if not made.new or made.pending.from_resync or place in due or self._deferred.urgent:
            return False
        wait_s = self._pacer.wait_s(place)
        if wait_s > 0:
            self._deferred.add(place, made.pending, wait_s, self._held.get(place, self._next))
        return wait_s > 0

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
            self._sweep()
            self._collect(0)
            since_garbage = 0
            while not self._stop.is_set():
                try:
                    number, prepared = self._handoff.get(timeout=0.5)
                except queue.Empty:
                    if self._clock() >= self._next_sweep:
                        self._sweep()
                    continue
                self._write(number, prepared)
                since_garbage = self._collect(since_garbage + 1)
        except Stopping:
            log.debug("writer stopped")

    def _sweep(self) -> None:
        """Remove what landed late; when idle, because it reads every id."""
        self._writer.sweep(self._writer_retrier)
        self._next_sweep = self._clock() + _SWEEP_INTERVAL_S

    def _write(self, number: int, prepared: Prepared) -> None:
        try:
            if self._failed is None:
                as_planned = self._write_one(prepared)
                self._finish(prepared)
                if not as_planned:
                    self._failed = PlanAgainError("the store did not take everything at once")
        except TaintedError as exc:
            log.warning("planning again error=%s", exc.message)
            self._failed = exc
            self._wait_for_store(exc)
        finally:
            self._in_flight.settle(number)

    def _write_one(self, prepared: Prepared) -> bool:
        if not prepared.empty or prepared.checkpoint.offset > self.watermark.offset:
            return self._writer.write(prepared, self._writer_retrier)
        return True

    def _wait_for_store(self, exc: TaintedError) -> None:
        self._writer_retrier.wait("vectorstore", exc, 1)

    def _finish(self, prepared: Prepared) -> None:
        checkpoint = prepared.checkpoint
        self.watermark.advance(checkpoint.offset, checkpoint.applied_lsn)
        self._writer_retrier.until_done("stream", lambda: self._stream.release(AGENT, checkpoint.offset), (StreamFull,))
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
                self._prune(resync, checkpoint)
                hit("resync_done")

    def _prune(self, resync: Resync, checkpoint: Checkpoint) -> None:
        """Tombstones older than the beginning of a finished resync have nothing left to guard against."""
        if resync.snapshot is None:
            return
        below_xid = Snapshot.parse(resync.snapshot).xmin
        for collection in resync.collections:
            self._writer_retrier.until_done(
                "ledger",
                lambda name=collection: self._ledger.prune_tombstones(  # type: ignore[misc]
                    name, below_xid=below_xid, up_to=checkpoint.applied_lsn
                ),
                (LedgerFull,),
            )

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
