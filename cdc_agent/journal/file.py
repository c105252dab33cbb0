"""The file under journal and desk. Nothing can make it again, so a damaged one is never put aside by itself."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cdc_agent import queries
from cdc_agent.errors import JournalError, JournalFull
from cdc_agent.sqlite_file import is_damage, open_file
from cdc_agent.sqlite_schema import Schema

__all__ = ["DAMAGED", "SCHEMA", "SQL", "JournalFile"]

SQL = queries.load("cdc_agent.journal", "schema.sql")
DAMAGED = "restore it from a copy; or move it away: what it held cannot be had from anywhere else"

#: A new version is a new step. Until one is released, the first may change.
SCHEMA = Schema(steps=(SQL["schema"],), unnumbered="select 1")


class JournalFile:
    """Safe to call from several threads. What a ``transaction`` wrote is durable when it ends."""

    def __init__(self, path: Path | None) -> None:
        """``path`` None: in memory, and gone with this object."""
        self.path = path or Path(":memory:")
        self._lock = threading.Lock()
        self._grown = threading.Condition()
        self._wakes = 0
        self._file = _opened(path)
        with self._translated("opened"):
            SCHEMA.bring_up_to_date(self._file, self.path, error=JournalError, damaged=self._damaged)
            self._head = self._newest()

    def _damaged(self, why: str) -> JournalError:
        return JournalError(f"{self.path} is no journal of this version: {why}", hint=DAMAGED)

    @property
    def head(self) -> int:
        """The number of the newest event there ever was; 0 before the first."""
        return self._head

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All of it or nothing. Raises ``JournalFull`` and ``JournalError``."""
        with self._lock, self._translated("written"):
            self._file.execute("begin immediate")
            try:
                yield self._file
                self._file.execute("commit")
            finally:
                if self._file.in_transaction:
                    self._file.execute("rollback")
            newest = self._newest()
        self._tell(newest)

    def query(self, statement: str, values: Sequence[Any] | dict[str, Any] = ()) -> list[tuple[Any, ...]]:
        with self._lock, self._translated("read"):
            return self._file.execute(statement, values).fetchall()

    def wait(self, after: int, wait_s: float) -> None:
        """Until there is an event after this number, somebody calls ``wake``, or the time is over."""
        with self._grown:
            wakes = self._wakes
            self._grown.wait_for(lambda: self._head > after or self._wakes != wakes, wait_s)

    def wake(self) -> None:
        with self._grown:
            self._wakes += 1
            self._grown.notify_all()

    def close(self) -> None:
        with self._lock:
            self._file.close()

    def _newest(self) -> int:
        return int(self._file.execute(SQL["head"]).fetchone()[0])

    def _tell(self, newest: int) -> None:
        with self._grown:
            if newest > self._head:
                self._head = newest
                self._grown.notify_all()

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as exc:
            if getattr(exc, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
                raise JournalFull("the disk under the journal is full", hint="free space; senders try again") from exc
            if is_damage(exc):
                raise JournalError(f"{self.path} is damaged: {exc}", hint=DAMAGED) from exc
            raise JournalError(f"the journal cannot be {what}: {exc}", hint="check the file and its disk") from exc


def _opened(path: Path | None) -> sqlite3.Connection:
    if path is None:
        return sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    try:
        return open_file(path, JournalError)
    except JournalError as exc:
        raise JournalError(exc.message, hint=exc.hint or DAMAGED) from exc
