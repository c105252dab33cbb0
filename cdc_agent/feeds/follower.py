"""Keeps a mirror true to its feed, and a stream true to the mirror.

The mirror counts as a table: each change of it has a number, which is transaction and place in the log at once. A
change is durable in the mirror first and is appended to the stream under its number; at the next start what the stream
has not got is appended again, and what it has is dropped by its place. So the stream holds each change once, whatever
is killed when.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import orjson

from cdc_agent import metrics
from cdc_agent.errors import FeedUnavailable, StreamFull
from cdc_agent.events import Change, Op, RawRow, Relation, Transaction
from cdc_agent.failpoints import hit
from cdc_agent.feeds.base import EVERYTHING, Feed, Found, Ring
from cdc_agent.feeds.mirror import Changed, Mirror
from cdc_agent.lsn import Lsn
from cdc_agent.retry import Stopping
from cdc_agent.stream.base import Stream

__all__ = ["Follower"]

T = TypeVar("T")
log = logging.getLogger(__name__)

#: Documents that are fetched before they are written, and that go at once.
_FETCHED_AT_ONCE = 16
_GONE_AT_ONCE = 500


class Follower:
    """``expand`` may put something else in the place of a mark (see ``resync.PageBoard``)."""

    def __init__(
        self,
        *,
        name: str,
        feed: Feed,
        mirror: Mirror,
        stream: Stream,
        relation: Relation,
        expand: Callable[[Transaction], Transaction | None],
        stop: threading.Event,
        wall_clock: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.feed = feed
        self.relation = relation
        self._mirror = mirror
        self._stream = stream
        self._expand = expand
        self._stop = stop
        self._wall_clock = wall_clock
        self._clock = clock
        #: One look at a time; and nobody reads the mirror between a change of it and its place in the stream.
        self._looking = threading.Lock()
        self._lock = threading.RLock()

    # -- looking ----------------------------------------------------------------------------------------------

    def look(self, ring: Ring = EVERYTHING) -> int:
        """Make the mirror equal to the feed, or what a doorbell names of it; returns how many documents changed.

        What was done by the time that something fails stays done. Raises ``FeedUnavailable``.
        """
        with self._looking:
            began = self._clock()
            try:
                changed = self._look(ring)
            except FeedUnavailable:
                metrics.FEED_LOOKS.labels(collection=self.name, outcome="failed").inc()
                raise
            metrics.FEED_LOOKS.labels(collection=self.name, outcome="changed" if changed else "same").inc()
            if ring.whole:
                metrics.FEED_LOOKED.labels(collection=self.name).set(self._wall_clock())
        if changed:
            log.info("feed looked at name=%s changed=%d took_s=%.1f", self.name, changed, self._clock() - began)
        return changed

    def _look(self, ring: Ring) -> int:
        self.publish()
        wanted, gone = self._differing() if ring.whole else ({}, set())
        for key in sorted(ring.keys):
            wanted.setdefault(key, "")
        # First what is there: a file that was renamed is found under both names for a moment, and never under none.
        return self._fetch(wanted) + sum(self._remove(part) for part in _parts(sorted(gone), _GONE_AT_ONCE))

    def _differing(self) -> tuple[dict[str, str], set[str]]:
        listed, known = self.feed.list(), self._mirror.etags()
        wanted = {key: etag for key, etag in listed.items() if not etag or known.get(key) != etag}
        gone = known.keys() - listed.keys()
        if self.feed.listing_is_whole:
            return wanted, gone
        return wanted | dict.fromkeys(sorted(gone), ""), set()

    def _fetch(self, wanted: Mapping[str, str]) -> int:
        changed = 0
        for part in _parts(wanted.items(), _FETCHED_AT_ONCE):
            found: dict[str, Found | None] = {}
            try:
                for key, etag in part:
                    if self._stop.is_set():
                        raise Stopping
                    found[key] = self.feed.fetch(key, etag)
                    metrics.FEED_FETCHES.labels(collection=self.name).inc()
            finally:
                # What was fetched before something failed need not be fetched again.
                changed += self._take(found)
        return changed

    def _remove(self, keys: Sequence[str]) -> int:
        return self._take(dict.fromkeys(keys))

    def _take(self, found: Mapping[str, Found | None]) -> int:
        """Write what differs from the mirror, and append it to the stream."""
        with self._lock:
            self.publish()
            known = self._mirror.rows(list(found))
            at_us = int(self._wall_clock() * 1_000_000)
            changes = [c for key, one in found.items() if (c := _changed(key, one, known.get(key), at_us)) is not None]
            same = {key: one.etag for key, one in found.items() if one is not None and one.row == known.get(key)}
            if same:
                self._mirror.restamp(same)
            if changes:
                self._mirror.put(changes, self._next())
                hit("before_append")
                self.publish()
                hit("after_append")
        return len(changes)

    # -- the stream -------------------------------------------------------------------------------------------

    def publish(self) -> None:
        """Append what is in the mirror and not in the stream. Raises ``FeedUnavailable`` when that is full."""
        with self._lock:
            for sequence, changes in self._mirror.since(self._stream.position().captured_lsn):
                own = [self._change(place, changed) for place, changed in enumerate(changes, 1)]
                self._append(self._transaction(sequence, own, changes[0].at_us))
                self._mirror.forget_gone(sequence + 1)

    def _append(self, transaction: Transaction) -> None:
        try:
            self._stream.append([transaction])
        except StreamFull as exc:
            raise FeedUnavailable(f"the stream of {self.name} is full: {exc.message}", hint=exc.hint) from exc

    def mark(self, prefix: str, content: Mapping[str, object]) -> Lsn:
        """Append a message; returns the position up to which a reader must be to have passed it."""
        with self._lock:
            self.publish()
            sequence = self._next()
            message = Change(Op.MESSAGE.value, None, 1, (prefix.encode(), orjson.dumps(content)), None)
            marked = self._transaction(sequence, [message], int(self._wall_clock() * 1_000_000))
            self._append(self._expand(marked) or marked)
            return self._stream.position().captured_lsn

    def head(self) -> Lsn:
        """Up to where the stream holds the mirror's changes."""
        return self._stream.position().captured_lsn

    def _next(self) -> int:
        return max(int(self._stream.position().captured_lsn), self._mirror.sequence + 1, 1)

    def _transaction(self, sequence: int, changes: list[Change], at_us: int) -> Transaction:
        return Transaction(
            xid=sequence,
            commit_lsn=Lsn(sequence),
            commit_ts_us=at_us,
            changes=changes,
            end_lsn=Lsn(sequence + 1),
            size_bytes=sum(_size(c) for c in changes),
        )

    def _change(self, ordinal: int, changed: Changed) -> Change:
        gone = changed.op == Op.DELETE
        return Change(changed.op, self.relation, ordinal, changed.row if gone else None, None if gone else changed.row)

    # -- the mirror -------------------------------------------------------------------------------------------

    def page(self, after: str | None, limit: int) -> tuple[str, list[RawRow]]:
        """Rows in the order of their keys, and the snapshot that they were read in."""
        with self._lock:
            self.publish()
            return self._snapshot(), self._mirror.page(after, limit)

    def rows(self, keys: Sequence[str]) -> tuple[str, list[RawRow]]:
        with self._lock:
            self.publish()
            return self._snapshot(), list(self._mirror.rows(keys).values())

    def count(self) -> int:
        return self._mirror.count()

    def _snapshot(self) -> str:
        """Everything that has a number by now is seen."""
        return f"{self._next()}:{self._next()}:"


def _changed(key: str, found: Found | None, known: tuple[bytes | None, ...] | None, at_us: int) -> Changed | None:
    if found is None:
        return Changed(op="d", key=key, etag="", row=known, at_us=at_us) if known is not None else None
    if found.row == known:
        return None
    return Changed(op="c" if known is None else "u", key=key, etag=found.etag, row=found.row, at_us=at_us)


def _size(change: Change) -> int:
    row = change.after or change.before or ()
    return sum(len(value) for value in row if isinstance(value, bytes)) + 50


def _parts(items: Iterable[T], size: int) -> Iterable[list[T]]:
    iterator = iter(items)
    while part := list(itertools.islice(iterator, size)):
        yield part
