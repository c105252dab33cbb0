"""What a feed holds, as far as we have looked: the table that a feed does not have, in one SQLite file.

A change is written here first, with a sequence number, and then appended to the stream under that number; the stream
drops what it has already. So a crash between the two loses and doubles nothing (see ``follower``). All of it can be
asked for again: a damaged file is thrown away.
"""

from __future__ import annotations

import itertools
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from cdc_agent import queries
from cdc_agent.errors import FeedUnavailable, StreamError
from cdc_agent.events import RawRow
from cdc_agent.sqlite_file import is_new, open_file, schema_is

__all__ = ["Changed", "Mirror"]

_SQL = queries.load("cdc_agent.feeds", "mirror.sql")
_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """One document that came (``c``), became another (``u``) or went (``d``: the row is what it was)."""

    op: str
    key: str
    etag: str
    row: tuple[bytes | None, ...]
    at_us: int


class Mirror:
    """Safe to call from several threads.

    Raises ``StreamError`` for a file that cannot be opened, and ``FeedUnavailable`` when it cannot be used later: that
    must wait, and must not stop who has nothing to do with it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._file = open_file(path, StreamError)
        try:
            version, self._sequence, self._heeded = self._opened()
        except sqlite3.Error as exc:
            self._file.close()
            raise StreamError(f"{path} is damaged: {exc}") from exc
        if version != _VERSION:
            self._file.close()
            raise StreamError(f"{path} is of version {version}: it was made by another version of us")

    def _opened(self) -> tuple[int, int, int]:
        if not is_new(self._file) and not schema_is(self._file, _SQL["schema"]):
            raise sqlite3.DatabaseError("its tables are not as they were made")
        self._file.executescript(_SQL["schema"])
        version, sequence, heeded = self._file.execute(_SQL["place"]).fetchone()
        return version, sequence, heeded

    # -- writing ----------------------------------------------------------------------------------------------

    def put(self, changes: Sequence[Changed], sequence: int) -> None:
        """All of them, or none; durable on return."""
        with self._using(), self._transaction():
            for one in changes:
                row = msgspec.msgpack.encode(one.row)
                self._file.execute(_SQL["put"], (one.key, one.etag, row, sequence, one.op, one.at_us))
            self._file.execute(_SQL["count_up"], (sequence,))
        self._sequence = sequence

    def restamp(self, etags: Mapping[str, str]) -> None:
        """The marks of documents changed, and nothing else."""
        with self._using(), self._transaction():
            self._file.executemany(_SQL["restamp"], [(etag, key) for key, etag in etags.items()])

    def forget_gone(self, before: int) -> None:
        with self._using():
            self._file.execute(_SQL["forget"], (before,))

    def heed(self, number: int) -> None:
        """Every entry of the journal up to ``number`` was dealt with."""
        with self._using():
            self._file.execute(_SQL["heed"], (number,))
        self._heeded = max(self._heeded, number)

    # -- reading ----------------------------------------------------------------------------------------------

    @property
    def sequence(self) -> int:
        """The newest number that was given away."""
        return self._sequence

    @property
    def heeded(self) -> int:
        return self._heeded

    def etags(self) -> dict[str, str]:
        with self._using():
            return dict(self._file.execute(_SQL["etags"]))

    def since(self, sequence: int) -> list[tuple[int, list[Changed]]]:
        """The changes from a number on, by number. A document counts under its newest alone."""
        with self._using():
            found = self._file.execute(_SQL["since"], (sequence,)).fetchall()
        return [
            (number, [Changed(op=op, key=key, etag="", row=_row(row), at_us=at_us) for _, key, row, op, at_us in group])
            for number, group in itertools.groupby(found, key=lambda found: int(found[0]))
        ]

    def page(self, after: str | None, limit: int) -> list[RawRow]:
        """Rows in the order of their keys."""
        with self._using():
            if after is None:
                return [_row(row) for (row,) in self._file.execute(_SQL["first_page"], (limit,))]
            return [_row(row) for (row,) in self._file.execute(_SQL["page"], (after, limit))]

    def rows(self, keys: Sequence[str]) -> dict[str, tuple[bytes | None, ...]]:
        """Those of ``keys`` that are there."""
        with self._using():
            found = {key: self._file.execute(_SQL["one"], (key,)).fetchone() for key in keys}
        return {key: _row(hit[0]) for key, hit in found.items() if hit is not None and hit[1] != "d"}

    def count(self) -> int:
        with self._using():
            return int(self._file.execute(_SQL["count"]).fetchone()[0])

    def close(self) -> None:
        with self._lock:
            self._file.close()

    @contextmanager
    def _using(self) -> Iterator[None]:
        with self._lock:
            try:
                yield
            except sqlite3.Error as exc:
                raise FeedUnavailable(
                    f"{self._path} cannot be used: {exc}",
                    hint="free space on its disk; if it is damaged, stop, remove it, and start: it is made again",
                ) from exc

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._file.execute("begin immediate")
        try:
            yield
            self._file.execute("commit")
        finally:
            if self._file.in_transaction:
                self._file.execute("rollback")


def _row(packed: bytes) -> tuple[bytes | None, ...]:
    return msgspec.msgpack.decode(packed, type=tuple[bytes | None, ...])
