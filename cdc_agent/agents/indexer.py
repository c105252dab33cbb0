"""The indexer: the agent that keeps the vector store true to the stream.

Two threads: one reads, folds, plans and embeds; the other writes. While a batch is being written the next one is
embedded, so the model does not wait for the store. The model itself is asked on a third thread, and while it takes its
time what needs no model is handed to the writer (``overtaking``). The plan of the next batch builds on the manifests
of the batches in flight (the overlay). Everything in flight is derived from the ledger and the stream: on any failure
it is thrown away and made again from the last checkpoint.
"""

from __future__ import annotations

import functools
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Protocol

import numpy as np
import numpy.typing as npt

from cdc_agent import metrics
from cdc_agent.agents.aside import Aside
from cdc_agent.agents.backlog import Backlog
from cdc_agent.agents.batch import BatchFolder, Folded, Step, split
from cdc_agent.agents.folding import Pending
from cdc_agent.agents.inflight import InFlight
from cdc_agent.agents.overtaking import Overtaking
from cdc_agent.agents.pacing import Deferred, Pacer
from cdc_agent.agents.parking import dead_letter, still_indexed
from cdc_agent.agents.planning import Collection, Plan, needs_row, plan
from cdc_agent.agents.recent import Recent, indexed_parts
from cdc_agent.agents.rereading import reread
from cdc_agent.agents.vectors import Vectorizer
from cdc_agent.agents.watermark import Watermark
from cdc_agent.agents.writing import IndexWriter, PlanAgainError, Prepared, TaintedError
from cdc_agent.errors import CdcAgentError, LedgerUnavailable, RenderError, StoreUnavailable, VectorStoreError
from cdc_agent.events import ChangeEvent
from cdc_agent.failpoints import hit
from cdc_agent.ledger.base import Checkpoint, DeadLetter, Ledger, Resync
from cdc_agent.lsn import Lsn
from cdc_agent.retry import Retrier, Stopping
from cdc_agent.snapshot import Snapshot
from cdc_agent.source.base import RowReader
from cdc_agent.stream.base import Batch, Stream
from cdc_agent.stream.retries import until_answered, until_taken
from cdc_agent.tracing import NO_TRACES, Stages, Traces
from cdc_agent.vectorstore.records import CollectionDamaged, CollectionMissing

__all__ = ["AGENT", "Indexer"]

log = logging.getLogger(__name__)

#: The indexer's name as a consumer of the stream; those of later generations have names of their own.
AGENT = "indexer"
#: Chunks to embed that one batch aims at: enough to fill the model's batches, few enough to be searchable soon.
_TARGET_CHUNKS = 64
_MIN_EVENTS, _MAX_EVENTS = 16, 4_000
#: How long a read waits for something new; a signal ends it at once.
_READ_WAIT_S = 1.0
#: How long either thread waits for the other before it looks whether to stop.
_HANDOFF_WAIT_S = 0.5
#: How long it waits for changes while a portion of a resync is being written.
_LOOK_OUT_S = 0.003
#: How long the model may take before we look for what needs no model, and between two such looks.
_OVERTAKE_S = 0.05
#: Rows of a resync that are taken at a time when something waits for all of them.
_WIDE_PORTION = 500
#: Seconds between looks for ids that nothing names.
_SWEEP_INTERVAL_S = 3600.0
#: Garbage is collected at the latest after this many batches.
_GARBAGE_EVERY = 8


class Mender(Protocol):
    """Builds a collection again in the store. Called by the thread that writes it."""

    def mend(self, found: VectorStoreError) -> None:
        """A write found it missing or damaged. Raises what is not to be mended."""
        ...

    def mend_if_needed(self, name: str) -> bool:
        """Somebody found it to be wrong. True if it was built again."""
        ...


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
        mender: Mender | None = None,
        recent: Recent | None = None,
        traces: Traces = NO_TRACES,
        agent: str = AGENT,
        wall_clock: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._agent = agent
        self._mender = mender
        self._traces = traces
        self._recent = recent or Recent(clock=wall_clock)
        self._suspects: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._stream = stream
        self._ledger = ledger
        self._writer = writer
        self._vectorizer = vectorizer
        self._row_reader = row_reader
        self._collections = collections
        self._planner_retrier = planner_retrier
        self._writer_retrier = writer_retrier
        self._stop = stop
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
        self._backlog = Backlog(clock)
        self._aside = Aside(f"{agent}-embedding")
        self._overtaking = Overtaking(stream=stream, folder=self._folder, tainted=writer.tainted)
        #: How long the last write of changes took, and of a portion of reads.
        self._write_s = {False: 0.0, True: 0.0}
        self._released = -1
        self._held: dict[tuple[str, str], Checkpoint] = {}
        self._handoff: queue.Queue[tuple[int, Prepared] | None] = queue.Queue(maxsize=1)
        self._failed: CdcAgentError | None = None
        self._since_garbage = 0
        self._limit = _TARGET_CHUNKS
        checkpoint = ledger.checkpoint(agent)
        self._next = checkpoint
        #: Everything up to here is written or in hand; None while something that must not be passed follows in hand.
        self._front: int | None = None
        self.watermark = Watermark(checkpoint.offset, checkpoint.applied_lsn)

    # -- planner thread ---------------------------------------------------------------------------------------

    def run_planner(self) -> None:
        """Read, fold, plan, embed, hand over; until stopped. Raises what cannot be retried."""
        try:
            while not self._stop.is_set():
                self._planner_turn()
        except Stopping:
            log.debug("planner stopped")
        finally:
            self._aside.close()
            # So that a writer with nothing to do sees at once that it is over; one that has something comes to it.
            with suppress(queue.Full):
                self._handoff.put_nowait(None)

    def follow(self, oids: Mapping[str, int]) -> None:
        """From now on the rows of these tables come under these oids. Called before any such row is captured."""
        for table, oid in oids.items():
            self._folder.follow(table, oid)

    def hurry(self) -> None:
        """Somebody waits for the watermark: nothing is put off any longer."""
        self._deferred.hurry()
        self._stream.wake()

    def _start_over(self) -> None:
        """Throw away what is in flight and go on from the last checkpoint."""
        failed = self._failed
        # The writer empties its queue without writing while a failure stands.
        while not self._in_flight.wait_empty(_HANDOFF_WAIT_S) and not self._stop.is_set():
            continue
        self._failed = None
        if failed is not None and not failed.retryable:
            raise failed
        self._deferred.clear()
        self._backlog.clear()
        self._overtaking.clear()
        self._next = self._ledger.checkpoint(self._agent)

    def _planner_turn(self) -> None:
        """Live changes first; then a portion of the rows that a resync read."""
        if self._failed is not None:
            self._start_over()
        wait_s = self._deferred.due_in_s(_READ_WAIT_S)
        if self._backlog:
            # With changes about, the next portion waits until the last one is written, and looks out meanwhile.
            wait_s = 0.0 if self._may_work_off() else _LOOK_OUT_S
        self._read_ahead(wait_s)
        if self._backlog and self._failed is None and self._may_work_off():
            self._work_off(self._backlog.portion.size, front=self._next.offset)

    def _may_work_off(self) -> bool:
        return not self._backlog.lively or self._in_flight.empty or self._backlog.starved

    def _read_ahead(self, wait_s: float) -> None:
        """Read on through the pages of a resync, until there are changes or nothing more."""
        while self._failed is None and not self._backlog.full:
            batch = self._read(wait_s)
            changed = self._take(batch)
            if changed or batch.next_offset >= batch.head_offset:
                return
            wait_s = 0.0

    def _read(self, wait_s: float) -> Batch:
        return until_answered(
            self._planner_retrier,
            lambda: self._stream.read(self._next.offset, limit=self._limit, wait_s=wait_s),
        )

    def _take(self, batch: Batch) -> bool:
        """Deal with a batch, but for reads, which join the backlog; whether there was more than those."""
        reached = Checkpoint(offset=batch.next_offset, applied_lsn=max(self._next.applied_lsn, Lsn(batch.applied_lsn)))
        due = self._deferred.take_due()
        self._held = {place: entry.held for place, entry in due.items()}
        waited = {place: entry.pending for place, entry in due.items()}
        steps, rest = split(batch.events)
        if waited and (not steps or steps[0].wide is not None):
            steps.insert(0, Step())
        for step in steps:
            hit("after_read")
            self._put_back(step.reads)
            last = step is steps[-1]
            if step.wide is not None:
                self._take_wide(step.wide, rest if last else (), reached if last else self._next)
                continue
            self._put_back(rest if last else ())
            began = self._clock()
            self._front = batch.next_offset if last else None
            folded = self._folder.fold(step.changes, waited if step is steps[0] else {})
            prepared = self._prepare(folded, reached if last else self._next, frozenset(waited))
            self._limit = self._adapted(len(step.changes), prepared)
            self._backlog.changed(self._clock() - began + self._write_s[False])
            self._hand_over(prepared)
        if not steps:
            self._put_back(rest)
            if reached != self._next:
                self._move_on(reached)
        self._next = reached
        return bool(steps)

    def _put_back(self, reads: Sequence[ChangeEvent]) -> None:
        self._backlog.add(reads, self._next.applied_lsn)

    def _take_wide(self, event: ChangeEvent, rest: Sequence[ChangeEvent], reached: Checkpoint) -> None:
        """An event that concerns any number of documents, page by page. What was read before it goes before it."""
        while self._backlog and self._failed is None:
            self._work_off(_WIDE_PORTION, front=None)
        self._put_back(rest)
        for folded, last in self._folder.fold_wide(event):
            if self._failed is not None:
                return
            self._hand_over(self._prepare(folded, reached if last else self._next, frozenset()))

    def _work_off(self, most: int, *, front: int | None) -> None:
        """Index a portion of the rows that a resync read. ``front``: changes are dealt with up to this offset."""
        hit("after_read")
        began = self._clock()
        self._held = {}
        events = self._backlog.take(most)
        self._front = front
        prepared = self._prepare(self._folder.fold(events, {}), self._next, frozenset())
        prepared.reads = True
        self._backlog.worked(len(events), _new_chunks(prepared), self._clock() - began + self._write_s[True])
        self._hand_over(prepared)

    def _safe(self, checkpoint: Checkpoint) -> Checkpoint:
        """The newest checkpoint that is before everything that waits."""
        return self._backlog.safe(self._deferred.safe(checkpoint))

    def _move_on(self, checkpoint: Checkpoint) -> None:
        """Nothing concerned us, and the source is further."""
        safe, live = self._safe(checkpoint), self._deferred.safe(checkpoint)
        # Asked in this order: a batch that was given up leaves the air only after it is known to have failed.
        if self._in_flight.empty and self._failed is None:
            self.watermark.advance(safe.offset, live.applied_lsn)
        else:
            self._hand_over(Prepared(checkpoint=safe, live_lsn=live.applied_lsn))

    def _resumed(self, collection: str, document_id: str) -> Pending | None:
        """A document that was put off changes again."""
        entry = self._deferred.take((collection, document_id))
        if entry is None:
            return None
        self._held[collection, document_id] = entry.held
        return entry.pending

    def _prepare(self, folded: Folded, checkpoint: Checkpoint, due: frozenset[tuple[str, str]]) -> Prepared:
        folds, resyncs = folded.folds, folded.resyncs
        began_ns = time.time_ns()
        letters: list[DeadLetter] = []
        plans: list[Plan] = []
        for name, fold in folds.items():
            collection = self._collections[name]
            for pending in self._complete_rows(collection, list(fold.pending.values()), letters):
                made = self._plan(collection, pending, letters)
                if made is not None and not self._put_off(made, due):
                    plans.append(made)
        hit("after_plan")
        embedding_ns = time.time_ns()
        plans, vectors, remember = self._embedded(plans, letters)
        embedded_ns = time.time_ns()
        parked = {(letter.collection, letter.document_id) for letter in letters}
        plans = [p for p in plans if (p.collection, p.pending.document_id) not in parked]
        hit("after_embed")
        _count(plans)
        if letters:
            hit("dead_letter")
        prepared = self._writer.begin(
            plans,
            vectors,
            remember,
            checkpoint=self._safe(checkpoint),
            retrier=self._planner_retrier,
            letters=letters,
            resyncs=list(resyncs.values()),
        )
        prepared.live_lsn = self._deferred.safe(checkpoint).applied_lsn
        prepared.planned_ns = (began_ns, embedding_ns, embedded_ns)
        kept = [still_indexed(self._collections[name], folds[name].pending[doc]) for name, doc in sorted(parked)]
        prepared.manifests += kept
        return prepared

    def _embedded(
        self, plans: list[Plan], letters: list[DeadLetter]
    ) -> tuple[list[Plan], dict[bytes, npt.NDArray[np.float32]], list[bytes]]:
        """The plans that are left to be written, and their vectors. While the model takes its time, what needs none
        is handed over: first of these plans, then of the changes behind them."""
        if not any(made.new for made in plans):
            return plans, *self._vectorizer.vectors(plans, letters, self._collections)
        heavy = [made for made in plans if _is_heavy(made)]
        left = list(plans)
        # A document that could not be planned is on its way to a dead letter, in its turn.
        in_hand = {(made.collection, made.pending.document_id) for made in heavy}
        in_hand |= {(letter.collection, letter.document_id) for letter in letters}

        def overtake() -> None:
            if self._failed is not None or self._stop.is_set():
                return
            light, left[:] = [made for made in left if not _is_heavy(made)], heavy
            ahead = light or (self._overtaking.plans(self._front, waits) if self._front is not None else ())
            with suppress(Stopping):
                self._hand_over_ahead(ahead)

        def waits(place: tuple[str, str]) -> bool:
            return place in in_hand or place in self._deferred

        vectors, remember = self._aside.run(
            lambda: self._vectorizer.vectors(heavy, letters, self._collections), overtake, _OVERTAKE_S
        )
        return left, vectors, remember

    def _hand_over_ahead(self, plans: Sequence[Plan]) -> None:
        """Write these before what is in front of them in the stream: the checkpoint stays where it is."""
        if not plans:
            return
        prepared = self._writer.begin(plans, {}, (), checkpoint=self._safe(self._next), retrier=self._planner_retrier)
        prepared.live_lsn = self._deferred.safe(self._next).applied_lsn
        # Nothing is embedded for them.
        prepared.planned_ns = (time.time_ns(),) * 3
        metrics.OVERTAKEN.inc(len(plans))
        _count(plans)
        self._hand_over(prepared)

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
            letters += [dead_letter(self._agent, collection, p, "render", exc, 1) for p in wanted]
            return [p for p in pending if p not in wanted]
        metrics.REREAD_ROWS.inc(len(wanted))
        hit("after_reread")
        return pending

    def _plan(self, collection: Collection, pending: Pending, letters: list[DeadLetter]) -> Plan | None:
        try:
            made = plan(collection, pending, tainted=self._writer.tainted(pending.base))
            # A row that is new and does not match was never here: no tombstone is needed to keep it out.
            new = pending.born or (pending.base is None and pending.from_resync)
            return None if made.deleted and new else made
        except RenderError as exc:
            letters.append(dead_letter(self._agent, collection, pending, "render", exc, 1))
            return None

    def _put_off(self, made: Plan, due: frozenset[tuple[str, str]]) -> bool:
        """Whether a document that changes again and again waits a little before it is embedded once more."""
        place = (made.collection, made.pending.document_id)
        read = made.pending.from_resync or made.pending.rewrite
        # It would be found at neither of its keys.
        if not made.new or read or made.pending.moved_here or place in due or self._deferred.urgent:
            return False
        wait_s = self._pacer.wait_s(place)
        if wait_s > 0:
            self._deferred.add(place, made.pending, wait_s, self._held.get(place, self._next))
        return wait_s > 0

    def _adapted(self, events: int, prepared: Prepared) -> int:
        """Aim at batches of about ``_TARGET_CHUNKS`` new chunks, whatever the rows look like."""
        per_event = max(_new_chunks(prepared) / max(events, 1), _TARGET_CHUNKS / _MAX_EVENTS)
        return max(_MIN_EVENTS, min(_MAX_EVENTS, int(_TARGET_CHUNKS / per_event), self._limit * 4))

    def _hand_over(self, prepared: Prepared) -> None:
        number = self._in_flight.begin([*prepared.manifests, *prepared.same])
        while not self._stop.is_set():
            try:
                self._handoff.put((number, prepared), timeout=_HANDOFF_WAIT_S)
            except queue.Full:
                continue
            return
        raise Stopping

    # -- writer thread ----------------------------------------------------------------------------------------

    def run_writer(self) -> None:
        """Write what is handed over, in order; until stopped. Raises what cannot be retried."""
        try:
            self._healing(self._sweep)
            self._healing(self._collect)
            while not self._stop.is_set():
                self._writer_turn(_HANDOFF_WAIT_S)
        except Stopping:
            log.debug("writer stopped")

    def _writer_turn(self, wait_s: float) -> None:
        """Write one batch if there is one within ``wait_s``; garbage and strays when there is time."""
        self._mend_suspects()
        try:
            handed = self._handoff.get(timeout=wait_s)
        except queue.Empty:
            if self._clock() >= self._next_sweep:
                self._healing(self._sweep)
            return
        if handed is None:
            return
        self._write(*handed)
        self._since_garbage += 1
        # When there is nothing more urgent, or when it has waited long enough.
        if self._handoff.empty() or self._since_garbage >= _GARBAGE_EVERY:
            self._healing(self._collect)
            self._since_garbage = 0

    def _sweep(self) -> None:
        """Remove what landed late; when idle, because it reads every id."""
        self._writer.sweep(self._writer_retrier)
        self._prune_vectors()
        self._next_sweep = self._clock() + _SWEEP_INTERVAL_S

    def rebuild(self, collection: str) -> None:
        """Somebody found a collection in the store to be wrong: the writer looks itself, and mends."""
        self._suspects.put(collection)

    def _mend_suspects(self) -> None:
        while self._mender is not None and not self._suspects.empty():
            suspect = self._suspects.get_nowait()
            if self._writer_retrier.until_done(
                "vectorstore",
                functools.partial(self._mender.mend_if_needed, suspect),
                (StoreUnavailable, LedgerUnavailable),
            ):
                self._failed = PlanAgainError("a collection was built again in the store")

    def _healing(self, act: Callable[[], None]) -> None:
        """Do something to the store; where a collection turns out to be lost it is built again, and everything that
        is in flight was planned on chunks that are no more."""
        try:
            act()
        except (CollectionMissing, CollectionDamaged) as exc:
            if self._mender is None:
                raise
            self._writer_retrier.until_done(
                "vectorstore", functools.partial(self._mender.mend, exc), (StoreUnavailable, LedgerUnavailable)
            )
            self._failed = PlanAgainError("a collection was built again in the store")

    def _write(self, number: int, prepared: Prepared) -> None:
        began = self._clock()
        try:
            self._healing(lambda: self._write_planned(prepared))
        finally:
            self._in_flight.settle(number)
            self._write_s[prepared.reads] = self._clock() - began

    def _write_planned(self, prepared: Prepared) -> None:
        try:
            if self._failed is None:
                began_ns = time.time_ns()
                as_planned = self._write_one(prepared)
                self._finish(prepared)
                if self._traces.on:
                    self._traces.indexed(self._agent, indexed_parts(prepared.plans), _stages(prepared, began_ns))
                if not as_planned:
                    self._failed = PlanAgainError("the store did not take everything at once")
        except TaintedError as exc:
            log.warning("planning again error=%s", exc.message)
            self._failed = exc
            self._wait_for_store(exc)

    def _write_one(self, prepared: Prepared) -> bool:
        if not prepared.empty or prepared.checkpoint.offset > self.watermark.offset:
            return self._writer.write(prepared, self._writer_retrier)
        return True

    def _wait_for_store(self, exc: TaintedError) -> None:
        self._writer_retrier.wait("vectorstore", exc, 1)

    def _finish(self, prepared: Prepared) -> None:
        checkpoint = prepared.checkpoint
        self.watermark.advance(checkpoint.offset, max(checkpoint.applied_lsn, prepared.live_lsn))
        if checkpoint.offset > self._released:
            self._released = checkpoint.offset
            until_taken(self._writer_retrier, lambda: self._stream.release(self._agent, checkpoint.offset))
        self._recent.found(prepared.plans)
        for letter in prepared.letters:
            metrics.DEAD_LETTERED.labels(reason=letter.reason).inc()
        if prepared.letters:
            log.warning("parked documents=%d", len(prepared.letters))
        for resync in prepared.resyncs:
            if resync.state == "done":
                log.info("resync done id=%d table=%s rows=%d", resync.id, resync.table, resync.rows_done)
                self._prune(resync, checkpoint)
                self._prune_vectors()
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
                (LedgerUnavailable,),
            )

    def _collect(self) -> None:
        self._writer.collect_garbage(self._writer_retrier)

    def _prune_vectors(self) -> None:
        """Vectors that belong to nobody go, once no resync may still want them."""
        if not any(resync.open for resync in self._ledger.resyncs()):
            self._writer_retrier.until_done("ledger", self._ledger.prune_vectors, (LedgerUnavailable,))


def _stages(prepared: Prepared, written_from_ns: int) -> Stages:
    planned_from_ns, embedded_from_ns, embedded_to_ns = prepared.planned_ns
    return Stages(
        planned_from_ns=planned_from_ns,
        embedded_from_ns=embedded_from_ns,
        embedded_to_ns=embedded_to_ns,
        written_from_ns=written_from_ns,
        written_to_ns=time.time_ns(),
    )


def _new_chunks(prepared: Prepared) -> int:
    return sum(len(made.new) for made in prepared.plans)


def _is_heavy(made: Plan) -> bool:
    """Whether it waits for the model. So does the old key of a row that moved: searches find it there until they find
    it at the new one."""
    return bool(made.new) or (made.deleted and made.pending.moved_away)


def _count(plans: Sequence[Plan]) -> None:
    metrics.METADATA_UPDATES.inc(sum(len(made.moved) for made in plans))
    metrics.CHUNKS_UNCHANGED.inc(sum(len(made.kept) for made in plans if made.pending.touched and not made.deleted))
