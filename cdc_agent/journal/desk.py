"""The desk, in the journal's own file: what an agent emits and where it is become durable together."""

from __future__ import annotations

import datetime as dt
import sqlite3
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

import orjson

from cdc_agent.events import Event
from cdc_agent.journal.base import Letter, Outcome, Progress, Reading
from cdc_agent.journal.file import SQL, JournalFile
from cdc_agent.journal.rows import from_microseconds, insert, load_event, microseconds, store_event

__all__ = ["SqliteDesk"]


class SqliteDesk:
    """See ``journal.base.Desk``."""

    def __init__(self, file: JournalFile, *, wall_clock: Callable[[], float] = time.time) -> None:
        self._file = file
        self._wall_clock = wall_clock

    def place(self, agent: str, number: int) -> Progress:
        with self._file.transaction() as connection:
            connection.execute(SQL["place"], (agent, number))
            reached = connection.execute(SQL["agent"], (agent,)).fetchone()[0]
            handled = connection.execute(SQL["handled"], (agent,)).fetchall()
        return Progress(number=reached, handled=frozenset(row[0] for row in handled))

    def settle(self, outcome: Outcome) -> bool:
        with self._file.transaction() as connection:
            if not _claimed(connection, outcome):
                return False
            insert(connection, outcome.emitted, self._now_us())
            if outcome.memory is not None:
                _remember(connection, outcome.agent, *outcome.memory)
            if outcome.letter is not None:
                _park(connection, outcome.letter)
            _advance(connection, outcome.agent, outcome.passed)
        return True

    def advance(self, agent: str, number: int) -> None:
        with self._file.transaction() as connection:
            _advance(connection, agent, number)

    def agents(self) -> dict[str, int]:
        return dict(self._file.query(SQL["agents"]))

    def forget(self, agent: str) -> None:
        with self._file.transaction() as connection:
            for statement in ("forget", "forget_handled", "forget_memory", "forget_letters"):
                connection.execute(SQL[statement], (agent,))

    def recall(self, agent: str, key: str) -> Any:
        rows = self._file.query(SQL["recall"], (agent, key))
        return orjson.loads(rows[0][0]) if rows else None

    def letters(self, *, agent: str = "", state: str = "", number: int = 0, limit: int = 1000) -> list[Letter]:
        wanted = {"agent": agent, "state": state, "number": number, "limit": limit}
        return [_letter(row) for row in self._file.query(SQL["letters"], wanted)]

    def letter_counts(self) -> dict[str, int]:
        return dict(self._file.query(SQL["letter_counts"]))

    def replay(self, agent: str, number: int) -> bool:
        changed = self._changed("replay", agent, number)
        self._file.wake()
        return changed

    def discard(self, agent: str, number: int) -> bool:
        return self._changed("discard", agent, number)

    def tidy(self, before: dt.datetime, agents: Collection[str]) -> int:
        with self._file.transaction() as connection:
            return connection.execute(SQL["tidy"], (orjson.dumps(sorted(agents)), microseconds(before))).rowcount

    def reading(self) -> Reading | None:
        rows = self._file.query(SQL["reading"])
        return Reading(offset=rows[0][0], commit_lsn=rows[0][1], origin=rows[0][2]) if rows else None

    def read_to(self, reading: Reading, changes: Sequence[Event]) -> None:
        with self._file.transaction() as connection:
            insert(connection, changes, self._now_us())
            connection.execute(SQL["read_to"], (reading.offset, reading.commit_lsn, reading.origin))

    def _changed(self, statement: str, agent: str, number: int) -> bool:
        with self._file.transaction() as connection:
            return connection.execute(SQL[statement], (agent, number)).rowcount == 1

    def _now_us(self) -> int:
        return round(self._wall_clock() * 1_000_000)


def _claimed(connection: sqlite3.Connection, outcome: Outcome) -> bool:
    """Whether the entry had not been settled before; from now on it is."""
    place = (outcome.agent, outcome.number)
    if outcome.replayed:
        return connection.execute(SQL["replayed"], place).rowcount == 1
    reached = connection.execute(SQL["agent"], (outcome.agent,)).fetchone()
    if reached is None or outcome.number <= reached[0] or connection.execute(SQL["is_handled"], place).fetchone():
        return False
    connection.execute(SQL["handle"], place)
    return True


def _advance(connection: sqlite3.Connection, agent: str, number: int) -> None:
    connection.execute(SQL["advance"], (number, agent))
    connection.execute(SQL["handled_passed"], {"agent": agent})


def _remember(connection: sqlite3.Connection, agent: str, key: str, value: Any) -> None:
    if value is None:
        connection.execute(SQL["unremember"], (agent, key))
    else:
        connection.execute(SQL["remember"], (agent, key, orjson.dumps(value)))


def _park(connection: sqlite3.Connection, letter: Letter) -> None:
    parked_us = microseconds(letter.parked_at)
    error = (letter.reason, letter.error, letter.attempts)
    connection.execute(SQL["park"], (letter.agent, letter.number, *error, parked_us, store_event(letter.event)))


def _letter(row: Sequence[Any]) -> Letter:
    agent, number, state, reason, error, attempts, parked_us, event = row
    return Letter(
        agent=agent,
        number=number,
        state=state,
        reason=reason,
        error=error,
        attempts=attempts,
        parked_at=from_microseconds(parked_us),
        event=load_event(event),
    )
