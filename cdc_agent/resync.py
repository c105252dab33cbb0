"""Resync: reading rows again while streaming. First copy, repair and replay of a dead letter are this one thing.

A page of rows is read in one snapshot; then a logical message is written to the WAL. Capture puts the page into the
stream at the place of that message, so every change that the snapshot saw stands before it. A change that the
snapshot did not see may stand before it too (a commit is in the WAL before it is visible); the indexer knows by
transaction id and keeps the newer one (``agents.folding``). No long transaction, no lock, no window to track.

Progress is what the indexer has applied, so a resync goes on from there after any crash; pages that were in the
stream but not applied are at most read twice.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import orjson

from cdc_agent import metrics
from cdc_agent.errors import LedgerUnavailable, RenderError, SourceError
from cdc_agent.events import Change, Op, RawRow, Row, Transaction
from cdc_agent.failpoints import hit
from cdc_agent.ledger.base import Ledger, Resync
from cdc_agent.retry import Retrier, Stopping
from cdc_agent.snapshot import Snapshot
from cdc_agent.source.base import RowReader, RowSet, TableRows

__all__ = ["MESSAGE_PREFIX", "PageBoard", "ResyncRunner"]

T = TypeVar("T")
log = logging.getLogger(__name__)

#: Prefix of the logical messages that mark where a page belongs.
MESSAGE_PREFIX = "cdc_agent.resync"
#: Keys that are looked for in one statement.
_KEYS_AT_ONCE = 500
#: Pages that may be in the stream and not applied yet.
_PAGES_AHEAD = 2
#: A page aims at this much work for the indexer, so that live changes do not wait long behind it.
_PAGE_S = 0.5
#: A mark that has not come back after this many seconds is written again.
_REPEAT_MARK_S = 30.0
_MIN_ROWS, _MAX_ROWS = 8, 2_000


@dataclass(slots=True, kw_only=True)
class _Page:
    rows: RowSet
    body: Mapping[str, object]
    resync_id: int
    placed: threading.Event = field(default_factory=threading.Event)


class PageBoard:
    """Pages that wait for their mark to come back through the WAL. A mark of an earlier life finds nothing."""

    def __init__(self) -> None:
        self._pages: dict[str, _Page] = {}
        self._lock = threading.Lock()
        #: The last transaction that truncated a relation, by its oid.
        self._truncated: dict[int, int] = {}

    def put(self, token: str, page: _Page) -> None:
        with self._lock:
            self._pages[token] = page

    def expand(self, tx: Transaction) -> Transaction | None:
        """The transaction that the stream gets in place of a mark: the page's rows, then its progress.

        Sees every transaction. A truncate between the read of a page and its mark takes rows with it that the index
        need not have heard of yet, so only here can it be known that they are gone.
        """
        if len(tx.changes) != 1 or tx.changes[0].op != Op.MESSAGE:
            self._truncated.update({c.relation.oid: tx.xid for c in tx.changes if c.op == Op.TRUNCATE and c.relation})
            return None
        prefix, content = tx.changes[0].before or (b"", b"")
        if prefix != MESSAGE_PREFIX.encode() or not isinstance(content, bytes):
            return None
        token = _token(content)
        with self._lock:
            page = self._pages.pop(token, None) if token else None
        return _filled(tx, page, self._truncated) if page is not None else None


def _token(content: bytes) -> str | None:
    try:
        body = orjson.loads(content)
    except orjson.JSONDecodeError:
        return None
    token = body.get("token") if isinstance(body, dict) else None
    # Anybody may write such a message.
    return token if isinstance(token, str) else None


def _filled(tx: Transaction, page: _Page, truncated: Mapping[int, int]) -> Transaction:
    rows = page.rows
    sees = Snapshot.parse(rows.snapshot).sees
    changes = [
        Change(Op.READ.value, relation, i, None, raw)
        for i, (relation, raw) in enumerate(zip(rows.relations, rows.rows, strict=True), start=1)
        if sees(truncated.get(relation.oid, 0))
    ]
    message = (MESSAGE_PREFIX.encode(), orjson.dumps(page.body))
    changes.append(Change(Op.MESSAGE.value, None, len(rows.rows) + 1, message, None))
    page.placed.set()
    return Transaction(
        xid=tx.xid,
        commit_lsn=tx.commit_lsn,
        commit_ts_us=tx.commit_ts_us,
        changes=changes,
        end_lsn=tx.end_lsn,
        size_bytes=sum(_size(raw) for raw in rows.rows),
        snapshot=rows.snapshot,
        resync_id=page.resync_id,
    )


def _size(raw: RawRow) -> int:
    return sum([len(value) for value in raw if isinstance(value, bytes)]) + 50


class _Moved(Exception):
    """Somebody paused or cancelled the resync that is being read."""


class ResyncRunner:
    """Works off the running resyncs of the ledger; the body of one thread.

    Tables one after the other; some keys do not wait for a table. ``caught_up`` begins to watch for everything that is
    in the stream by now and returns a question: has it been applied? ``own`` says which resyncs are this runner's.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        reader: RowReader,
        board: PageBoard,
        estimated_rows: Callable[[str, str], int],
        retrier: Retrier,
        stop: threading.Event,
        rows_per_page: int | None = None,
        caught_up: Callable[[], Callable[[], bool]] = lambda: lambda: True,
        own: Callable[[Resync], bool] = lambda _: True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger = ledger
        self._reader = reader
        self._board = board
        self._estimated_rows = estimated_rows
        self._retrier = retrier
        self._stop = stop
        self._rows_per_page = rows_per_page
        self._caught_up = caught_up
        self._own = own
        self._clock = clock
        self._limit = rows_per_page or 32
        self._asked = threading.Condition()
        #: Resyncs that have begun to read in this life.
        self._reading: set[int] = set()
        self._rates: dict[int, float] = {}

    def request(self, resync: Resync) -> Resync:
        """Record a resync durably and start on it as soon as the earlier ones are done."""
        wanted = replace(resync, started_at=time.time())
        started = self._retrier.until_done("ledger", lambda: self._ledger.start_resync(wanted), (LedgerUnavailable,))
        self.notify()
        return started

    def pause(self, resync_id: int) -> bool:
        """Read no more until ``resume``; False when it is not running. What was read is applied still."""
        return self._ledger.move_resync(resync_id, "paused", only=["running"])

    def resume(self, resync_id: int) -> bool:
        """Go on where it was; False when it is neither paused nor failed."""
        moved = self._ledger.move_resync(resync_id, "running", only=["paused", "failed"])
        self.notify()
        return moved

    def cancel(self, resync_id: int) -> bool:
        """End it where it is; False when it has ended. What was read is applied still, nothing is swept out."""
        return self._ledger.move_resync(resync_id, "cancelled", only=["running", "paused", "failed"], at=time.time())

    def request_once(self, resync: Resync) -> Resync:
        """Like ``request``, unless a whole resync of these collections waits that has not begun to read."""
        with self._asked:
            for waiting in self._ledger.resyncs(running_only=True):
                whole = not waiting.keys and not waiting.predicate and waiting.snapshot is None
                covers = waiting.table == resync.table and set(resync.collections) <= set(waiting.collections)
                if whole and covers and waiting.rewrite >= resync.rewrite and waiting.id not in self._reading:
                    return waiting
            return self.request(resync)

    def notify(self) -> None:
        with self._asked:
            self._asked.notify_all()

    def rate(self, resync_id: int) -> float | None:
        """Rows a second that it makes at the moment."""
        return self._rates.get(resync_id)

    def run(self) -> None:
        try:
            while not self._stop.is_set():
                if running := self._running():
                    self._work(min(running, key=lambda r: (not r.keys, r.id)))
                else:
                    with self._asked:
                        self._asked.wait(1.0)
        except Stopping:
            log.debug("resync stopped")

    def _running(self) -> list[Resync]:
        running = self._ledger.resyncs(running_only=True)
        metrics.RESYNCS_RUNNING.set(len(running))
        return [resync for resync in running if self._own(resync)]

    def _work(self, resync: Resync) -> None:
        resync = self._begun_before(resync)
        log.info("resync starts id=%d table=%s after_key=%s", resync.id, resync.table, resync.last_key is not None)
        try:
            if resync.keys:
                self._keys(resync)
            else:
                resync = self._begun(resync)
                self._table(resync)
        except _Moved:
            log.info("resync interrupted id=%d", resync.id)
        except (RenderError, SourceError) as exc:
            # What can be tried again was: this table, or these keys, will never be read.
            log.error("resync given up id=%d error=%s", resync.id, exc.message)
            self._save(replace(resync, state="failed", finished_at=time.time(), error=exc.message))
            return
        self._await_applied(resync, lambda found: found is None)
        self._rates.pop(resync.id, None)

    def _begun_before(self, resync: Resync) -> Resync:
        """Pages of an earlier life or of before a pause may still wait in the stream: go on after them."""
        if resync.snapshot is None and resync.last_key is None:
            return resync
        applied = self._caught_up()
        while not applied():
            if self._stop.wait(0.01):
                raise Stopping
        return self._ledger.resync(resync.id) or resync

    def _begun(self, resync: Resync) -> Resync:
        """Remember the snapshot of the beginning: what it saw and the resync never meets is gone from the table."""
        if resync.snapshot is not None:
            return resync
        with self._asked:
            self._reading.add(resync.id)
        first = self._page(resync, None, 0)
        estimated = self._read(lambda: self._estimated_rows(resync.table, resync.predicate))
        begun = replace(resync, snapshot=first.snapshot, rows_estimated=estimated)
        self._save(begun)
        return begun

    def _save(self, resync: Resync) -> None:
        self._retrier.until_done("ledger", lambda: self._ledger.save_resync(resync), (LedgerUnavailable,))

    def _goes_on(self, resync: Resync) -> bool:
        """Whether nobody paused or cancelled it."""
        found = self._ledger.resync(resync.id)
        return found is not None and found.state == "running"

    def _table(self, resync: Resync) -> None:
        after, done = resync.last_key, resync.rows_done
        marks: list[tuple[int, float]] = []
        while self._goes_on(resync):
            limit = self._limit
            rows = self._page(resync, after, limit)
            done += len(rows.rows)
            finished = len(rows.rows) < limit
            after = Row(rows.relations[-1], rows.rows[-1]).key() if rows.rows else after
            self._place(
                resync, rows, {"last_key": after, "rows_done": done, "done": finished, "since": resync.snapshot}
            )
            metrics.RESYNC_ROWS.inc(len(rows.rows))
            if finished:
                return
            marks.append((done, self._clock()))
            self._keep_pace(resync, marks)
            self._let_keys_pass()

    def _let_keys_pass(self) -> None:
        """A few keys do not wait for a whole table."""
        for resync in self._running():
            if resync.keys:
                self._work(resync)

    def _page(self, resync: Resync, after: tuple[str, ...] | None, limit: int) -> RowSet:
        request = TableRows(table=resync.table, after_key=after, limit=limit, predicate=resync.predicate)
        return self._read(lambda: self._wanted_page(resync, request))

    def _wanted_page(self, resync: Resync, request: TableRows) -> RowSet:
        """A page that can never be read must not outlive the wish to read it."""
        if not self._goes_on(resync):
            raise _Moved
        return self._reader.page(request)

    def _keys(self, resync: Resync) -> None:
        keys = list(dict.fromkeys(resync.keys))
        begin = keys.index(resync.last_key) + 1 if resync.last_key in keys else 0
        done = resync.rows_done
        while self._goes_on(resync) and begin < len(keys):
            part = keys[begin : begin + _KEYS_AT_ONCE]
            begin += len(part)
            done += self._some_keys(resync, part, done, last=begin >= len(keys))

    def _some_keys(self, resync: Resync, keys: Sequence[tuple[str, ...]], done: int, *, last: bool) -> int:
        rows = self._read(lambda: self._reader.by_key(resync.table, keys))
        found = {Row(relation, raw).key() for relation, raw in zip(rows.relations, rows.rows, strict=True)}
        absent = [key for key in keys if key not in found]
        body = {"last_key": keys[-1], "rows_done": done + len(rows.rows), "done": last, "absent": absent}
        self._place(resync, rows, body)
        metrics.RESYNC_ROWS.inc(len(rows.rows))
        return len(rows.rows)

    def _place(self, resync: Resync, rows: RowSet, body: Mapping[str, object]) -> None:
        """Write the mark and wait until the page is in the stream."""
        token = secrets.token_hex(8)
        page = _Page(rows=rows, body=body, resync_id=resync.id)
        self._board.put(token, page)
        while not page.placed.is_set():
            hit("resync_before_mark")
            self._read(lambda: self._reader.mark(MESSAGE_PREFIX, {"token": token}))
            hit("resync_after_mark")
            self._await_placed(page)

    def _await_placed(self, page: _Page) -> None:
        """Wait for the mark, but not for ever: one that was written before a slot was made anew never comes."""
        deadline = self._clock() + _REPEAT_MARK_S
        while not page.placed.wait(0.5) and self._clock() < deadline:
            if self._stop.is_set():
                raise Stopping

    def _keep_pace(self, resync: Resync, marks: list[tuple[int, float]]) -> None:
        """Stay at most ``_PAGES_AHEAD`` pages ahead of the indexer, and size pages by how fast it is."""
        if len(marks) < _PAGES_AHEAD:
            return
        done, since = marks.pop(0)
        self._await_applied(resync, lambda found: found is None or found.rows_done >= done)
        rows = (marks[0][0] - done) if marks else self._limit
        per_s = rows / max(self._clock() - since, 0.001)
        before = self._rates.get(resync.id, per_s)
        self._rates[resync.id] = 0.8 * before + 0.2 * per_s
        if self._rows_per_page is None:
            self._limit = max(_MIN_ROWS, min(_MAX_ROWS, int(per_s * _PAGE_S), self._limit * 2))

    def _await_applied(self, resync: Resync, reached: Callable[[Resync | None], bool]) -> None:
        """Wait for the indexer. Looks at the local ledger a few times a second; the source is not asked."""
        while True:
            found = self._ledger.resync(resync.id)
            if reached(found if found is not None and found.state == "running" else None):
                return
            if self._stop.wait(0.01):
                raise Stopping

    def _read(self, call: Callable[[], T]) -> T:
        return self._retrier.until_done("resync", call, (SourceError,))
