"""The stream in one SQLite file: one writer, group commit by the caller, blocks of up to a megabyte.

The file belongs to one daemon. Readers of the same process wait on a condition, not on a poll.
"""

from __future__ import annotations

import itertools
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zlib import crc32

from cdc_agent import queries
from cdc_agent.errors import IdentityMismatch, StreamError, StreamFull
from cdc_agent.events import ChangeEvent, Transaction
from cdc_agent.lsn import Lsn, Version
from cdc_agent.sqlite_file import DAMAGED_HINT, is_damage, open_file
from cdc_agent.sqlite_schema import Schema
from cdc_agent.stream import codec
from cdc_agent.stream.base import Batch, Position
from cdc_agent.stream.news import News
from cdc_agent.stream.progress import fresh, reached

__all__ = ["SCHEMA", "SqliteStream"]

_SQL = queries.load("cdc_agent.stream", "schema.sql")
#: The state of a stream whose file is not as it was written.
_CORRUPT = "STREAM_CORRUPT"
#: A block is cut at about this many bytes or changes.
_BLOCK_BYTES = 1 << 20
_BLOCK_CHANGES = 5_000
#: Large pages halve the cost of writing blocks (measured).
_PAGE_BYTES = 16_384
#: How often old blocks are looked for, in seconds.
_PRUNE_INTERVAL_S = 30.0


def _seal(*values: Any) -> int:
    return crc32(repr(values).encode())


#: A new version is a new step; the files of versions before it are in tests/old_state.
SCHEMA = Schema(
    steps=(f"{_SQL['schema']}\n{_SQL['seal_position']};",), unnumbered="select 1", functions={"seal": _seal}
)


class SqliteStream:
    """See ``stream.base.Stream``. ``corrupt`` is the state that damage is named by."""

    def __init__(
        self,
        path: Path,
        *,
        max_bytes: int = 4 << 30,
        retention_s: float = 86_400.0,
        wall_clock: Callable[[], float] = time.time,
        corrupt: str = _CORRUPT,
    ) -> None:
        self._corrupt = corrupt
        self._max_bytes = max_bytes
        self._retention_s = retention_s
        self._wall_clock = wall_clock
        self._path = path
        #: What was found damaged while it was in use.
        self.damage: IdentityMismatch | None = None
        self._writer = open_file(path, StreamError, page_bytes=_PAGE_BYTES, corrupt=corrupt)
        self._make_tables()
        self._reader = open_file(path, StreamError, corrupt=corrupt)
        self._write_lock = threading.Lock()
        self._read_lock = threading.Lock()
        self._news = News()
        with self._translated("read"):
            self._void = self._load()
        self._size: int = self._writer.execute(_SQL["size"]).fetchone()[0]
        self._next_prune = 0.0
        self._last_block: tuple[int, codec.Block] | None = None

    def _make_tables(self) -> None:
        with self._translated("opened"):
            SCHEMA.bring_up_to_date(self._writer, self._path, error=StreamError, damaged=self._damaged)

    def ledger(self) -> str:
        with self._read_lock, self._translated("read"):
            return str(self._reader.execute(_SQL["load_position"]).fetchone()[5])

    def tie(self, ledger: str) -> None:
        with self._write_lock, self._translated("written"), _transaction(self._writer):
            self._writer.execute(_SQL["tie"], (ledger,))
            self._writer.execute(_SQL["seal_position"])

    def begin_at(self, offset: int) -> None:
        with self._write_lock, self._translated("written"):
            if head := self._news.head:
                raise StreamError(f"the stream is at {head} already", hint="only an empty one can begin anywhere")
            with _transaction(self._writer):
                self._writer.execute(_SQL["begin_at"], (offset,))
                self._writer.execute(_SQL["seal_position"])
            self._void = self._load()

    def check(self, after_offset: int) -> None:
        with self._read_lock, self._translated("read"):
            for first, payload, checksum in self._reader.execute(_SQL["checksums"], (after_offset,)):
                self._check_block(first, payload, checksum)

    def _check_block(self, first: int, payload: bytes, checksum: int) -> None:
        if not isinstance(payload, bytes) or crc32(payload) != checksum:
            raise self._damaged(f"the entries from offset {first} on are not as they were written")

    def _damaged(self, what: object) -> IdentityMismatch:
        self.damage = IdentityMismatch(self._corrupt, f"{self._path} is damaged: {what}", hint=DAMAGED_HINT)
        return self.damage

    # -- writing ----------------------------------------------------------------------------------------------

    def append(self, transactions: Sequence[Transaction], captured_lsn: Lsn | None = None) -> Position:
        with self._write_lock, self._translated("written"):
            new, position = fresh(transactions, self._news.position)
            if captured_lsn is not None:
                position = reached(position, captured_lsn)
            blocks = [(sum(len(t.changes) for t in group), codec.encode(group)) for group in _blocks(new)]
            self._make_room(sum(len(payload) for _, payload in blocks))
            self._news.tell(position, self._write(blocks, position))
        return position

    def _write(self, blocks: Sequence[tuple[int, bytes]], position: Position) -> int:
        head = self._news.head
        partial = position.partial
        now = self._wall_clock()
        with _transaction(self._writer):
            for count, payload in blocks:
                self._writer.execute(_SQL["insert_block"], (head + 1, count, now, payload, crc32(payload)))
                head += count
            place = (partial.commit_lsn, partial.ordinal) if partial else (None, None)
            self._writer.execute(_SQL["save_position"], (position.captured_lsn, *place, head))
            self._writer.execute(_SQL["seal_position"])
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

    def rebase(self, captured_lsn: Lsn) -> None:
        with self._write_lock, self._read_lock, self._translated("written"):
            with _transaction(self._writer):
                self._writer.execute(_SQL["rebase_blocks"])
                self._writer.execute(_SQL["rebase_position"], (captured_lsn,))
                self._writer.execute(_SQL["seal_position"])
            self._size = 0
            self._last_block = None
            self._void = self._load()

    def release(self, consumer: str, offset: int) -> None:
        with self._write_lock, self._translated("written"):
            self._writer.execute(_SQL["release"], (consumer, offset))

    def consumers(self) -> list[str]:
        with self._read_lock, self._translated("read"):
            return [row[0] for row in self._reader.execute(_SQL["consumers"])]

    def released(self, consumer: str) -> int:
        with self._read_lock, self._translated("read"):
            row = self._reader.execute(_SQL["consumer"], (consumer,)).fetchone()
        return int(row[0]) if row else 0

    def forget(self, consumer: str) -> None:
        with self._write_lock, self._translated("written"):
            self._writer.execute(_SQL["forget"], (consumer,))

    # -- reading ----------------------------------------------------------------------------------------------

    def position(self) -> Position:
        return self._news.position

    def acknowledgeable(self) -> Lsn:
        return self._news.position.captured_lsn

    def head_offset(self) -> int:
        return self._news.head

    def first_offset(self) -> int:
        with self._read_lock, self._translated("read"):
            first = self._reader.execute(_SQL["first_offset"]).fetchone()[0]
        return int(first) if first is not None else self.head_offset() + 1

    def size_bytes(self) -> int:
        return self._size

    def read(self, after_offset: int, *, limit: int, wait_s: float) -> Batch:
        position, head = self._news.wait(after_offset, wait_s)
        events: list[ChangeEvent] = []
        applied = Lsn(0)
        offset = max(after_offset, self._void)
        while len(events) < limit and offset < head:
            first, block = self._block_after(offset)
            start = offset + 1 - first
            stop = min(len(block), start + limit - len(events))
            events.extend(block.events(start, stop, first))
            applied = max(applied, block.complete_lsn(stop))
            offset = first + stop - 1
        if offset >= head:
            applied = max(applied, position.captured_lsn)
        return Batch(events=events, next_offset=offset, applied_lsn=applied, head_offset=head)

    def _block_after(self, offset: int) -> tuple[int, codec.Block]:
        with self._read_lock, self._translated("read"):
            if self._last_block is not None:
                first, block = self._last_block
                if first <= offset + 1 < first + len(block):
                    return self._last_block
            row = self._reader.execute(_SQL["block_after"], (offset,)).fetchone()
            if row is None or not row[0] <= offset + 1 < row[0] + row[1]:
                raise StreamError(
                    f"entries after offset {offset} are not in the stream any more",
                    hint="retention removed them or the stream file is another one; run `cdc-agent resync`",
                )
            self._check_block(row[0], row[2], row[3])
            self._last_block = (row[0], codec.decode(row[2]))
            return self._last_block

    def wake(self) -> None:
        self._news.wake()

    def close(self) -> None:
        with self._write_lock, self._read_lock:
            self._writer.close()
            self._reader.close()

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as exc:
            if getattr(exc, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
                raise StreamFull(
                    "the disk under the stream is full", hint="free space; reading goes on by itself"
                ) from exc
            if is_damage(exc):
                raise self._damaged(exc) from exc
            raise StreamError(f"the stream cannot be {what}: {exc}", hint="check the file and its disk") from exc

    def _load(self) -> int:
        """Tell position and head; returns up to where entries are void."""
        row = self._writer.execute(_SQL["load_position"]).fetchone()
        if row is None:
            raise self._damaged("it has no position")
        captured, lsn, ordinal, head, void, ledger, checksum = row
        if _seal(captured, lsn, ordinal, head, void, ledger) != checksum:
            raise self._damaged("its position is not as it was written")
        partial = Version(Lsn(lsn), ordinal) if lsn is not None else None
        self._news.tell(Position(captured_lsn=Lsn(captured), partial=partial), head)
        return int(void)


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


def _blocks(transactions: Sequence[Transaction]) -> Iterator[list[Transaction]]:
    """Group transactions into blocks of bounded size; transactions without changes need no place."""
    group: list[Transaction] = []
    size = changes = 0
    for tx in itertools.filterfalse(lambda t: not t.changes, transactions):
        group.append(tx)
        size += tx.size_bytes
        changes += len(tx.changes)
        # Cut behind, not before: the short rest of a large commit shares a block with what follows.
        if size >= _BLOCK_BYTES or changes >= _BLOCK_CHANGES:
            yield group
            group, size, changes = [], 0, 0
    if group:
        yield group
