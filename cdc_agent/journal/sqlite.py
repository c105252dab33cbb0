"""The journal in one SQLite file. Nothing can make it again, so a damaged one is never put aside by itself."""

from __future__ import annotations

import datetime as dt
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zlib import crc32

import orjson

from cdc_agent import queries
from cdc_agent.errors import JournalError, JournalFull
from cdc_agent.events import Event
from cdc_agent.journal.base import Entry, Query
from cdc_agent.sqlite_file import is_damage, is_new, open_file, schema_is

__all__ = ["SqliteJournal"]

_SQL = queries.load("cdc_agent.journal", "schema.sql")
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MICROSECOND = dt.timedelta(microseconds=1)
_DAMAGED = "restore it from a copy; or move it away: what it held cannot be had from anywhere else"
#: Behind every text that begins with a prefix.
_LAST = chr(0x10FFFF)


class SqliteJournal:
    """See ``journal.base.Journal``. ``wall_clock`` gives seconds since 1970."""

    def __init__(self, path: Path, *, wall_clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._wall_clock = wall_clock
        self._lock = threading.Lock()
        self._file = _opened(path)
        with self._translated("opened"):
            if not is_new(self._file) and not schema_is(self._file, _SQL["schema"]):
                raise JournalError(f"{path} is no journal of this version: its tables are others", hint=_DAMAGED)
            self._file.executescript(_SQL["schema"])

    def append(self, events: Sequence[Event]) -> int:
        recorded_us = round(self._wall_clock() * 1_000_000)
        rows = [_sealed(_row(event, recorded_us)) for event in events]
        with self._lock, self._translated("written"):
            self._file.execute("begin immediate")
            try:
                new = sum(self._file.execute(_SQL["insert"], row).rowcount for row in rows)
                self._file.execute("commit")
            finally:
                if self._file.in_transaction:
                    self._file.execute("rollback")
        return new

    def find(self, wanted: Query) -> list[Entry]:
        with self._lock, self._translated("read"):
            rows = self._file.execute(_SQL["find"], _conditions(wanted)).fetchall()
        return [self._entry(row) for row in rows]

    def close(self) -> None:
        with self._lock:
            self._file.close()

    def _entry(self, row: Sequence[Any]) -> Entry:
        number, *sealed = row
        if _sealed(sealed[:-1])[-1] != sealed[-1]:
            raise JournalError(f"{self._path} is damaged: entry {number} is not as it was written", hint=_DAMAGED)
        source, id_, type_, key, _time_us, moment, recorded_us, correlation_id, causation_id, hops, data, _ = sealed
        event = Event(
            id=id_,
            source=source,
            type=type_,
            key=key,
            time=dt.datetime.fromisoformat(moment),
            data=orjson.loads(data),
            correlation_id=correlation_id,
            causation_id=causation_id,
            hops=hops,
        )
        return Entry(number=number, recorded_at=_EPOCH + recorded_us * _MICROSECOND, event=event)

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as exc:
            if getattr(exc, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
                raise JournalFull("the disk under the journal is full", hint="free space; senders try again") from exc
            if is_damage(exc):
                raise JournalError(f"{self._path} is damaged: {exc}", hint=_DAMAGED) from exc
            raise JournalError(f"the journal cannot be {what}: {exc}", hint="check the file and its disk") from exc


def _opened(path: Path) -> sqlite3.Connection:
    try:
        return open_file(path, JournalError)
    except JournalError as exc:
        raise JournalError(exc.message, hint=exc.hint or _DAMAGED) from exc


def _row(event: Event, recorded_us: int) -> tuple[Any, ...]:
    return (
        event.source,
        event.id,
        event.type,
        event.key,
        _microseconds(event.time),
        event.time.isoformat(),
        recorded_us,
        event.correlation_id,
        event.causation_id,
        event.hops,
        orjson.dumps(event.data),
    )


def _sealed(row: Sequence[Any]) -> tuple[Any, ...]:
    return (*row, crc32(repr(tuple(row)).encode("utf-8", "surrogatepass")))


def _microseconds(moment: dt.datetime) -> int:
    return (moment - _EPOCH) // _MICROSECOND


def _conditions(wanted: Query) -> dict[str, Any]:
    begins = wanted.type.endswith("*")
    prefix = wanted.type.removesuffix("*")
    return {
        "after": wanted.after,
        "limit": wanted.limit,
        "type": "" if begins else wanted.type,
        "type_from": prefix if begins else "",
        "type_to": prefix + _LAST,
        "key": wanted.key,
        "source": wanted.source,
        "since_us": None if wanted.since is None else _microseconds(wanted.since),
        "until_us": None if wanted.until is None else _microseconds(wanted.until),
    }
