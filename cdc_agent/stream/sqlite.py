"""The stream in one SQLite file: one writer, group commit by the caller, blocks of up to a megabyte.

The file belongs to one daemon. Readers of the same process wait on a condition, not on a poll.
"""

from __future__ import annotations

import itertools
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from cdc_agent import queries
from cdc_agent.errors import StreamError, StreamFull
from cdc_agent.events import ChangeEvent, Transaction
from cdc_agent.lsn import Lsn, Version
from cdc_agent.sqlite_file import open_file
from cdc_agent.stream import codec
from cdc_agent.stream.base import Batch, Position

__all__ = ["SqliteStream"]

_SQL = queries.load("cdc_agent.stream", "schema.sql")
_VERSION = 1
#: A block is cut at about this many bytes or changes.
_BLOCK_BYTES = 1 << 20
_BLOCK_CHANGES = 5_000
#: Large pages halve the cost of writing blocks (measured).
_PAGE_BYTES = 16_384
#: How often old blocks are looked for, in seconds.
_PRUNE_INTERVAL_S = 30.0


class SqliteStream:
    """See ``stream.base.Stream``."""

    def __init__(
        self,
        path: Path,
        *,
        max_bytes: int = 4 << 30,
        retention_s: float = 86_400.0,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._max_bytes = max_bytes
        self._retention_s = retention_s
        self._wall_clock = wall_clock
        self._writer = open_file(path, StreamError, page_bytes=_PAGE_BYTES)
        self._writer.executescript(_SQL["schema"])
        self._reader = open_file(path, StreamError)
        self._write_lock = threading.Lock()
        self._read_lock = threading.Lock()
        self._moved = threading.Condition()
        self._position, self._head = self._load()
        self._size: int = self._writer.execute(_SQL["size"]).fetchone()[0]
        self._next_prune = 0.0
        self._waking = False
        self._last_block: tuple[int, codec.Block] | None = None

    # -- writing ----------------------------------------------------------------------------------------------

    def append(self, transactions: Sequence[Transaction], captured_lsn: Lsn | None = None) -> Position:
        with self._write_lock:
            fresh = list(self._fresh(transactions))
            position = _after(self._position, fresh, captured_lsn)
            blocks = [(sum(len(t.changes) for t in group), codec.encode(group)) for group in _blocks(fresh)]
            self._make_room(sum(len(payload) for _, payload in blocks))
            head = self._write(blocks, position)
        with self._moved:
            self._position, self._head = position, head
            self._moved.notify_all()
        return position

    def _fresh(self, transactions: Sequence[Transaction]) -> Iterator[Transaction]:
        """What is not here yet: a redelivered commit starts before the position, a partial one is known by place."""
        captured, partial = self._position.captured_lsn, self._position.partial
        for tx in transactions:
            if tx.commit_lsn < captured:
                continue
            if partial is not None and tx.commit_lsn == partial.commit_lsn:
                tx.changes = [change for change in tx.changes if change.ordinal > partial.ordinal]
            yield tx

    def _write(self, blocks: Sequence[tuple[int, bytes]], position: Position) -> int:
        head = self._head
        partial = position.partial
        now = self._wall_clock()
        try:
            with _transaction(self._writer):
                for count, payload in blocks:
                    self._writer.execute(_SQL["insert_block"], (head + 1, count, now, payload))
                    head += count
                place = (partial.commit_lsn, partial.ordinal) if partial else (None, None)
                self._writer.execute(_SQL["save_position"], (position.captured_lsn, *place, head))
        except sqlite3.Error as exc:
            if exc.sqlite_errorcode == sqlite3.SQLITE_FULL:
                raise StreamFull(
                    "the disk under the stream is full", hint="free space; reading goes on by itself"
                ) from exc
            raise StreamError(f"the stream cannot be written: {exc}", hint="check the file and its disk") from exc
        self._size += sum(len(payload) for _, payload in blocks)
        return head

    def _make_room(self, wanted: int) -> None:
        full = self._size + wanted > self._max_bytes
        if not full and self._wall_clock() < self._next_prune:
            return
        self._next_prune = self._wall_clock() + _PRUNE_INTERVAL_S
        self._prune(self._size + wanted - self._max_bytes if full else 0)
        if wanted and self._size + wanted > self._max_bytes and self._size > 0:
            raise StreamFull(
                f"the stream holds {self._size} of {self._max_bytes} bytes that an agent has not read",
                hint="see what holds the agents up in /readyz, or raise stream.max_bytes",
            )

    def _prune(self, needed_bytes: int) -> None:
        """Remove released blocks that are old, and as many more as are needed."""
        released = self._writer.execute(_SQL["released"]).fetchone()[0]
        if released is None:
            return
        horizon = self._wall_clock() - self._retention_s
        cut, freed = 0, 0
        for first_offset, written_at, size in self._writer.execute(_SQL["prunable"], (released,)):
            if written_at > horizon and freed >= needed_bytes:
                break
            cut, freed = first_offset, freed + size
        if cut:
            self._writer.execute(_SQL["delete_blocks"], (cut,))
            self._size -= freed

    def release(self, consumer: str, offset: int) -> None:
        with self._write_lock:
            self._writer.execute(_SQL["release"], (consumer, offset))

    # -- reading ----------------------------------------------------------------------------------------------

    def position(self) -> Position:
        with self._moved:
            return self._position

    def head_offset(self) -> int:
        with self._moved:
            return self._head

    def first_offset(self) -> int:
        with self._read_lock:
            first = self._reader.execute(_SQL["first_offset"]).fetchone()[0]
        return int(first) if first is not None else self.head_offset() + 1

    def size_bytes(self) -> int:
        return self._size

    def read(self, after_offset: int, *, limit: int, wait_s: float) -> Batch:
        position, head = self._await(after_offset, wait_s)
        events: list[ChangeEvent] = []
        applied = Lsn(0)
        offset = after_offset
        while len(events) < limit and offset < head:
            first, block = self._block_after(offset)
            start = offset + 1 - first
            stop = min(len(block), start + limit - len(events))
            events.extend(block.events(start, stop, first))
            applied = max(applied, block.complete_lsn(stop))
            offset = first + stop - 1
        if offset >= head and position.partial is None:
            applied = max(applied, position.captured_lsn)
        return Batch(events=events, next_offset=offset, applied_lsn=applied, head_offset=head)

    def _await(self, after_offset: int, wait_s: float) -> tuple[Position, int]:
        with self._moved:
            before = self._position
            if self._head <= after_offset and not self._waking and wait_s > 0:
                self._moved.wait_for(lambda: self._waking or self._position != before, wait_s)
            self._waking = False
            return self._position, self._head

    def _block_after(self, offset: int) -> tuple[int, codec.Block]:
        with self._read_lock:
            if self._last_block is not None:
                first, block = self._last_block
                if first <= offset + 1 < first + len(block):
                    return self._last_block
            row = self._reader.execute(_SQL["block_after"], (offset,)).fetchone()
            if row is None or row[0] > offset + 1:
                raise StreamError(
                    f"entries after offset {offset} are not in the stream any more",
                    hint="retention removed them or the stream file is another one; run `cdc-agent resync`",
                )
            self._last_block = (row[0], codec.decode(row[2]))
            return self._last_block

    def wake(self) -> None:
        with self._moved:
            self._waking = True
            self._moved.notify_all()

    def close(self) -> None:
        with self._write_lock, self._read_lock:
            self._writer.close()
            self._reader.close()

    def _load(self) -> tuple[Position, int]:
        version, captured, lsn, ordinal, head = self._writer.execute(_SQL["load_position"]).fetchone()
        if version != _VERSION:
            raise StreamError(f"stream file of version {version}", hint="it was written by another cdc-agent version")
        partial = Version(Lsn(lsn), ordinal) if lsn is not None else None
        return Position(captured_lsn=Lsn(captured), partial=partial), head


class _transaction:
    """``begin immediate`` … ``commit``, rolled back on any error."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        self._connection.execute("begin immediate")

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self._connection.execute("commit")
        finally:
            if self._connection.in_transaction:
                self._connection.execute("rollback")


def _after(position: Position, fresh: Sequence[Transaction], captured_lsn: Lsn | None) -> Position:
    """The position once ``fresh`` is appended. Never moves backward."""
    captured, partial = position.captured_lsn, position.partial
    for tx in fresh:
        if tx.end_lsn is not None:
            captured = max(captured, tx.end_lsn)
            # Before a transaction that was cut off comes again, the server may report places on the way to it.
            partial = partial if partial is not None and tx.end_lsn <= partial.commit_lsn else None
        elif tx.changes:
            partial = Version(tx.commit_lsn, tx.changes[-1].ordinal)
    if captured_lsn is not None and (partial is None or captured_lsn > partial.commit_lsn):
        captured, partial = max(captured, captured_lsn), None
    return Position(captured_lsn=captured, partial=partial)


def _blocks(transactions: Sequence[Transaction]) -> Iterator[list[Transaction]]:
    """Group transactions into blocks of bounded size; transactions without changes need no place."""
    group: list[Transaction] = []
    size = changes = 0
    for tx in itertools.filterfalse(lambda t: not t.changes, transactions):
        if group and (size + tx.size_bytes > _BLOCK_BYTES or changes + len(tx.changes) > _BLOCK_CHANGES):
            yield group
            group, size, changes = [], 0, 0
        group.append(tx)
        size += tx.size_bytes
        changes += len(tx.changes)
    if group:
        yield group
