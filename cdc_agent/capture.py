"""Capture: source → stream. The only writer of changes, and the owner of acknowledgement.

Two threads. The reader owns the replication connection: it decodes, hands over through a bounded queue, and sends
status updates on time whatever else happens. The writer appends what has gathered in one durable write (group
commit). The slot is acknowledged only up to what the stream holds, and holds safely.
"""

from __future__ import annotations

import collections
import logging
import threading
import time
from collections.abc import Callable, Sequence

from cdc_agent import metrics
from cdc_agent.errors import SlotBusy, SourceAuthError, SourceError, StreamError, StreamFull
from cdc_agent.events import Transaction
from cdc_agent.failpoints import hit
from cdc_agent.health import Health
from cdc_agent.lsn import Lsn
from cdc_agent.retry import Backoff, Retrier, Stopping
from cdc_agent.source.replication import ReplicationFeed, ServerIdentity
from cdc_agent.stream.base import Position, Stream
from cdc_agent.stream.retries import until_taken
from cdc_agent.tracing import NO_TRACES, Traces

__all__ = ["Capture", "Expand"]

log = logging.getLogger(__name__)

#: Sees every transaction; turns one of our own logical messages into the rows that it marks the place of.
Expand = Callable[[Transaction], "Transaction | None"]

#: Bytes of decoded transactions that may wait for the stream before reading stops.
_QUEUE_BYTES = 32 << 20
#: An idle position is made durable this often at most, unless somebody waits for it.
_IDLE_INTERVAL_S = 10.0
_POLL_S = 1.0


class _Queue:
    """Transactions between reader and writer, bounded by bytes; taken all at once."""

    def __init__(self) -> None:
        self._items: list[Transaction] = []
        self._bytes = 0
        self._closed = False
        #: Transactions put and not yet durable.
        self._waiting = 0
        self._changed = threading.Condition()

    def put(self, items: Sequence[Transaction], timeout_s: float) -> bool:
        """Add items once there is room; False if there was none in time."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._bytes < _QUEUE_BYTES, timeout_s):
                return False
            self._items.extend(items)
            self._bytes += sum(tx.size_bytes for tx in items)
            self._waiting += len(items)
            metrics.QUEUE_TRANSACTIONS.set(self._waiting)
            self._changed.notify_all()
            return True

    def take(self, timeout_s: float) -> list[Transaction]:
        """Everything that has gathered, oldest first; waits for the first, unless none will come."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._items) or self._closed, timeout_s)
            items, self._items = self._items, []
            return items

    def taken(self, items: Sequence[Transaction]) -> None:
        """The items are durable; their room is free."""
        with self._changed:
            self._bytes -= sum(tx.size_bytes for tx in items)
            self._waiting -= len(items)
            metrics.QUEUE_TRANSACTIONS.set(self._waiting)
            self._changed.notify_all()

    def close(self) -> None:
        """Nothing more will come."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class Capture:
    """Wired by ``daemon.build``. ``run_reader`` and ``run_writer`` are the bodies of its two threads.

    ``verify`` is called on every connection, before anything streams, with what the server says it is; it raises
    ``IdentityMismatch`` to refuse. ``expand`` places the rows of a resync.
    ``hear`` sees every transaction before it is in the stream. ``progressed`` hears how far the server's
    log is; whoever sets ``reconnect`` wants the connection made anew (and ``verify`` clears it).
    """

    def __init__(
        self,
        *,
        feed: ReplicationFeed,
        in_transaction: Callable[[], bool],
        stream: Stream,
        verify: Callable[[ServerIdentity], None],
        expand: Expand,
        hear: Callable[[Transaction], None] = lambda _: None,
        health: Health,
        stop: threading.Event,
        backoff: Backoff | None = None,
        progressed: Callable[[Lsn], None] = lambda _: None,
        reconnect: threading.Event | None = None,
        traces: Traces = NO_TRACES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._feed = feed
        self._progressed = progressed
        self._traces = traces
        self._reconnect = reconnect or threading.Event()
        self._in_transaction = in_transaction
        self._stream = stream
        self._verify = verify
        self._expand = expand
        self._hear = hear
        self._health = health
        self._stop = stop
        self._backoff = backoff or Backoff(initial_s=0.1, maximum_s=5.0)
        self._retrier = Retrier(stop, health, Backoff(initial_s=0.1, maximum_s=2.0))
        self._clock = clock
        self._queue = _Queue()
        self._durable = stream.position().captured_lsn
        self._queued_lsn = self._durable
        self._parted = Lsn(0)
        self._next_idle = 0.0
        self._turned_at = clock()
        self._hurry = threading.Event()
        self._answer_wanted: int | None = None
        self._reader_done = threading.Event()
        self.streaming = threading.Event()

    def hurry(self) -> None:
        """Somebody waits for the watermark: ask the server where it is now instead of waiting for its word."""
        self._hurry.set()
        self._feed.alarm.ring()

    def alive_within(self, seconds: float) -> bool:
        """Whether the reader's loop has turned within the last ``seconds``: what a watchdog should watch."""
        return self._clock() - self._turned_at < seconds

    # -- reader thread ----------------------------------------------------------------------------------------

    def run_reader(self) -> None:
        """Stream until stopped, reconnecting as often as needed. Raises what cannot be retried."""
        attempt = 0
        try:
            while not self._stop.is_set():
                try:
                    self._connect()
                    attempt = 0
                    self._read()
                except (SourceError, StreamError) as exc:
                    self._turned_at = self._clock()
                    attempt += 1
                    self._lost(exc, attempt)
        except Stopping:
            log.debug("reader stopped")
        finally:
            self.streaming.clear()
            metrics.STREAMING.set(0)
            self._reader_done.set()
            self._queue.close()
            self._finish()

    def _connect(self) -> None:
        server = self._feed.open()
        self._verify(server)
        self._feed.start(self._stream.position().captured_lsn, acknowledged=self._stream.acknowledgeable())
        self._health.clear("source")
        self.streaming.set()
        metrics.STREAMING.set(1)
        log.info("streaming from_lsn=%s", self._stream.position().captured_lsn)

    def _read(self) -> None:
        while not self._stop.is_set() and not self._reconnect.is_set():
            self._turned_at = self._clock()
            self._acknowledge()
            transactions = self._feed.poll(_POLL_S)
            if transactions:
                hit("after_recv")
                self._put(transactions)
                if self._in_transaction():
                    hit("mid_tx")
            self._advance_idle()
            self._progressed(max(self._feed.idle_lsn, self._queued_lsn))

    def _acknowledge(self) -> None:
        self._feed.acknowledge(min(self._durable, self._stream.acknowledgeable()))

    def _put(self, transactions: Sequence[Transaction]) -> None:
        """Hand over; while there is no room nothing is read, but status updates go on."""
        kept = [tx for tx in transactions if self._counts(tx)]
        while kept and not self._queue.put(kept, _POLL_S):
            if self._stop.is_set():
                raise Stopping
            self._turned_at = self._clock()
            self._acknowledge()
            self._feed.feedback()
        for tx in transactions:
            self._queued_lsn = max(self._queued_lsn, tx.end_lsn or Lsn(0))
        for tx in kept:
            _count(tx)

    def _counts(self, tx: Transaction) -> bool:
        """Whether the stream must hear of it: it has changes, or it ends a commit that was handed over in parts."""
        ends_parts = tx.commit_lsn == self._parted
        self._parted = tx.commit_lsn if tx.end_lsn is None else Lsn(0)
        return bool(tx.changes) or ends_parts

    def _advance_idle(self) -> None:
        """Nothing of ours is under way and the server is further: make that durable, then it may be acknowledged.

        It goes through the queue behind everything that was read before, so it cannot overtake a change.
        """
        if self._hurry.is_set():
            self._hurry.clear()
            self._answer_wanted = self._feed.keepalives + 1
            self._feed.ask()
        answered = self._answer_wanted is not None and self._feed.keepalives >= self._answer_wanted
        reached = max(self._feed.idle_lsn, self._queued_lsn)
        if self._in_transaction() or reached <= self._durable:
            return
        if not answered and self._clock() < self._next_idle:
            return
        hit("idle_advance")
        self._answer_wanted = None
        self._next_idle = self._clock() + _IDLE_INTERVAL_S
        self._queued_lsn = reached
        self._queue.put([Transaction(xid=0, commit_lsn=reached, commit_ts_us=0, changes=[], end_lsn=reached)], _POLL_S)

    def _lost(self, exc: SourceError | StreamError, attempt: int) -> None:
        self.streaming.clear()
        metrics.STREAMING.set(0)
        self._feed.close()
        self._health.report("source", exc)
        if not exc.retryable:
            raise exc
        metrics.RECONNECTS.inc()
        at_least = 5.0 if isinstance(exc, SourceAuthError) else 0.5 if isinstance(exc, SlotBusy) else None
        delay = self._backoff.delay_s(attempt, at_least)
        log.warning("reconnecting attempt=%d delay_s=%.1f error=%s", attempt, delay, exc.message)
        if self._stop.wait(delay):
            raise Stopping

    def _finish(self) -> None:
        self._acknowledge()
        self._feed.stop()

    # -- writer thread ----------------------------------------------------------------------------------------

    def run_writer(self) -> None:
        """Append what the reader hands over, until stopped. What is not durable then comes again from the server."""
        try:
            while not (self._stop.is_set() and self._reader_done.is_set()):
                items = self._queue.take(_POLL_S)
                if items:
                    self._append(items)
                    self._queue.taken(items)
        except Stopping:
            log.debug("capture writer stopped")

    def _append(self, items: Sequence[Transaction]) -> None:
        expanded = [self._expanded(tx) for tx in items]
        hit("before_append")
        position = until_taken(self._retrier, lambda: self._append_or_raise(expanded))
        hit("after_append")
        if any(tx.resync_id for tx in expanded):
            hit("resync_after_append")
        self._durable = position.captured_lsn
        self._traces.captured(expanded)
        metrics.CAPTURED_LSN.set(position.captured_lsn)
        metrics.STREAM_BYTES.set(self._stream.size_bytes())
        metrics.TRANSACTIONS.inc(sum(1 for tx in expanded if tx.end_lsn is not None and tx.changes))
        newest = max((tx.commit_ts_us for tx in expanded), default=0)
        if newest:
            metrics.SOURCE_LAG_SECONDS.set(max(0.0, time.time() - newest / 1_000_000))

    def _append_or_raise(self, expanded: Sequence[Transaction]) -> Position:
        try:
            position = self._stream.append(expanded)
        except StreamFull:
            metrics.STREAM_FULL.set(1)
            raise
        metrics.STREAM_FULL.set(0)
        return position

    def _expanded(self, tx: Transaction) -> Transaction:
        self._hear(tx)
        return self._expand(tx) or tx


def _count(tx: Transaction) -> None:
    counts = collections.Counter(change.op for change in tx.changes)
    for op, n in counts.items():
        metrics.CHANGES_RECEIVED.labels(op=op).inc(n)
