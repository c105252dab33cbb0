"""The saga book, in the journal's own file."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any
from zlib import crc32

import orjson

from cdc_agent import queries
from cdc_agent.errors import JournalError
from cdc_agent.events import Event
from cdc_agent.journal.base import Entry
from cdc_agent.journal.file import DAMAGED, JournalFile
from cdc_agent.journal.file import SQL as JOURNAL_SQL
from cdc_agent.journal.rows import entries, insert, load_event, store_event
from cdc_agent.journal.saga_book import ENDED, SagaRecord, SagaState

__all__ = ["SqliteSagaBook"]

_SQL = queries.load("cdc_agent.journal", "sagas.sql")


class SqliteSagaBook:
    """See ``journal.saga_book.SagaBook``. ``wall_clock`` gives seconds since 1970."""

    def __init__(self, file: JournalFile, *, wall_clock: Callable[[], float] = time.time) -> None:
        self._file = file
        self._wall_clock = wall_clock

    def begin(self, agent: str, reached: int, begun: Sequence[tuple[SagaRecord, Sequence[Event]]]) -> int:
        new = 0
        with self._file.transaction() as connection:
            for record, events in begun:
                if connection.execute(_SQL["begin"], (*_row(record), record.orphaned)).rowcount == 1:
                    insert(connection, events, self._now_us())
                    new += 1
            connection.execute(JOURNAL_SQL["advance"], (reached, agent))
        return new

    def save(self, record: SagaRecord, events: Sequence[Event]) -> bool:
        with self._file.transaction() as connection:
            known = connection.execute(_SQL["version"], (record.id,)).fetchone()
            if known is None or known[0] != record.version:
                return False
            row = _row(record, version=record.version + 1)
            connection.execute(_SQL["save"], (*row, record.orphaned, record.id))
            insert(connection, events, self._now_us())
        return True

    def load(self, saga_id: str) -> SagaRecord | None:
        found = self._records("load", (saga_id,))
        return found[0] if found else None

    def find(self, *, state: str = "", name: str = "", after: int = 0, limit: int = 100) -> list[SagaRecord]:
        # Those that have ended are many: whoever asks for others does not read them.
        statement = "find" if state in {"", *ENDED} else "find_open"
        return self._records(statement, {"state": state, "name": name, "after": after, "limit": limit})

    def due(self, now_us: int, *, limit: int, without: Collection[str]) -> list[SagaRecord]:
        return self._records("due", (now_us, orjson.dumps(sorted(without)), limit))

    def next_due(self, *, without: Collection[str], waiting: bool = True) -> int | None:
        rows = self._file.query(_SQL["next_due"], (orjson.dumps(sorted(without)), waiting))
        return int(rows[0][0]) if rows else None

    def declare(self, declared: Mapping[str, Sequence[str]]) -> list[SagaRecord]:
        known = orjson.dumps({name: _steps(steps) for name, steps in declared.items()})
        with self._file.transaction() as connection:
            connection.execute(_SQL["declare"], (known,))
        return self._records("undecided", (orjson.dumps(sorted(declared)),))

    def counts(self) -> dict[str, int]:
        return dict(self._file.query(_SQL["counts"]))

    def history(self, record: SagaRecord) -> list[Entry]:
        # Its events are named ``<id>/…``; 0 is what comes after / in ASCII.
        between = {"source": record.source, "first": f"{record.id}/", "last": f"{record.id}0"}
        return entries(self._file, self._file.query(_SQL["history"], between))

    def _records(self, statement: str, values: Sequence[Any] | dict[str, Any]) -> list[SagaRecord]:
        return [self._record(row) for row in self._file.query(_SQL[statement], values)]

    def _record(self, row: Sequence[Any]) -> SagaRecord:
        *kept, checksum, orphaned, number = row
        if _sealed(kept)[-1] != checksum:
            raise JournalError(f"{self._file.path} is damaged: saga {number} is not as it was written", hint=DAMAGED)
        id_, name, state, steps, cursor, alternative, attempt, doubtful, due_us, results, *rest = kept
        reason, error, version, started_us, changed_us, start = rest
        return SagaRecord(
            id=id_,
            name=name,
            state=SagaState(state),
            steps=tuple(orjson.loads(steps)),
            cursor=cursor,
            alternative=alternative,
            attempt=attempt,
            doubtful=bool(doubtful),
            due_us=due_us,
            results=orjson.loads(results),
            reason=reason,
            error=error,
            version=version,
            started_us=started_us,
            changed_us=changed_us,
            start=load_event(start),
            orphaned=bool(orphaned),
            number=number,
        )

    def _now_us(self) -> int:
        return round(self._wall_clock() * 1_000_000)


def _row(record: SagaRecord, *, version: int | None = None) -> tuple[Any, ...]:
    row = (
        record.id,
        record.name,
        str(record.state),
        _steps(record.steps),
        record.cursor,
        record.alternative,
        record.attempt,
        int(record.doubtful),
        record.due_us,
        orjson.dumps(record.results),
        record.reason,
        record.error,
        record.version if version is None else version,
        record.started_us,
        record.changed_us,
        store_event(record.start),
    )
    return _sealed(row)


def _steps(names: Iterable[str]) -> str:
    """As text of one form only: it is compared."""
    return orjson.dumps(list(names)).decode()


def _sealed(row: Sequence[Any]) -> tuple[Any, ...]:
    return (*row, crc32(repr(tuple(row)).encode("utf-8", "surrogatepass")))
