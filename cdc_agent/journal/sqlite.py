"""The journal in one SQLite file."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import orjson

from cdc_agent.events import Event
from cdc_agent.journal.base import Entry, Page, Query, Wants
from cdc_agent.journal.file import SQL, JournalFile
from cdc_agent.journal.rows import entries, insert, microseconds

__all__ = ["SqliteJournal"]

#: Behind every text that begins with a prefix.
_LAST = chr(0x10FFFF)
#: Events that are looked at for each one asked for.
_GLANCE = 10


class SqliteJournal:
    """See ``journal.base.Journal``. ``wall_clock`` gives seconds since 1970."""

    def __init__(self, file: JournalFile, *, wall_clock: Callable[[], float] = time.time) -> None:
        self._file = file
        self._wall_clock = wall_clock

    def append(self, events: Sequence[Event]) -> int:
        with self._file.transaction() as connection:
            return insert(connection, events, round(self._wall_clock() * 1_000_000))

    def find(self, wanted: Query) -> list[Entry]:
        return entries(self._file, self._file.query(SQL["find"], _conditions(wanted)))

    def read(self, after: int, wants: Wants, *, limit: int, wait_s: float) -> Page:
        if wait_s > 0:
            self._file.wait(after, wait_s)
        glanced = self._file.query(SQL["glance"], (after, limit * _GLANCE))
        numbers = [number for number, kind, type_ in glanced if wants(kind, type_)][:limit]
        found = self._file.query(SQL["load"], (orjson.dumps(numbers),)) if numbers else []
        reached = numbers[-1] if len(numbers) == limit else glanced[-1][0] if glanced else after
        return Page(entries=entries(self._file, found), reached=reached)

    def head(self) -> int:
        return self._file.head

    def wake(self) -> None:
        self._file.wake()

    def close(self) -> None:
        self._file.close()


def _conditions(wanted: Query) -> dict[str, Any]:
    begins = wanted.type.endswith("*")
    prefix = wanted.type.removesuffix("*")
    return {
        "after": wanted.after,
        "limit": wanted.limit,
        "kind": wanted.kind or "",
        "type": "" if begins else wanted.type,
        "type_from": prefix if begins else "",
        "type_to": prefix + _LAST,
        "key": wanted.key,
        "source": wanted.source,
        "correlation": wanted.correlation_id,
        "since_us": None if wanted.since is None else microseconds(wanted.since),
        "until_us": None if wanted.until is None else microseconds(wanted.until),
    }
