"""Events as rows of the journal's table, both ways, and sealed: what comes back is what was written."""

from __future__ import annotations

import datetime as dt
import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any
from zlib import crc32

import orjson

from cdc_agent.cloudevents import from_cloudevent, to_cloudevent
from cdc_agent.errors import JournalError
from cdc_agent.events import Event, Kind
from cdc_agent.journal.base import Entry
from cdc_agent.journal.file import DAMAGED, SQL, JournalFile

__all__ = ["entries", "from_microseconds", "insert", "load_event", "microseconds", "store_event"]

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MICROSECOND = dt.timedelta(microseconds=1)


def insert(connection: sqlite3.Connection, events: Iterable[Event], recorded_us: int) -> int:
    """Within a transaction of the caller. Returns how many were new."""
    rows = (_sealed(_row(event, recorded_us)) for event in events)
    return sum(connection.execute(SQL["insert"], row).rowcount for row in rows)


def entries(file: JournalFile, rows: Iterable[Sequence[Any]]) -> list[Entry]:
    """What ``find`` and ``load`` select. Raises ``JournalError`` for a row that is not as it was written."""
    return [_entry(file, row) for row in rows]


def store_event(event: Event) -> bytes:
    return orjson.dumps(to_cloudevent(event))


def load_event(stored: bytes) -> Event:
    """The inverse of ``store_event``."""
    return from_cloudevent(orjson.loads(stored))


def microseconds(moment: dt.datetime) -> int:
    return (moment - _EPOCH) // _MICROSECOND


def from_microseconds(number: int) -> dt.datetime:
    return _EPOCH + number * _MICROSECOND


def _row(event: Event, recorded_us: int) -> tuple[Any, ...]:
    return (
        event.source,
        event.id,
        str(event.kind),
        event.type,
        event.key,
        microseconds(event.time),
        event.time.isoformat(),
        recorded_us,
        event.correlation_id,
        event.causation_id,
        event.hops,
        " ".join(event.trail),
        orjson.dumps(event.data),
    )


def _entry(file: JournalFile, row: Sequence[Any]) -> Entry:
    number, *sealed = row
    if _sealed(sealed[:-1])[-1] != sealed[-1]:
        raise JournalError(f"{file.path} is damaged: entry {number} is not as it was written", hint=DAMAGED)
    source, id_, kind, type_, key, _time_us, moment, recorded_us, correlation, causation, hops, trail, data, _ = sealed
    event = Event(
        id=id_,
        source=source,
        kind=Kind(kind),
        type=type_,
        key=key,
        time=dt.datetime.fromisoformat(moment),
        data=orjson.loads(data),
        correlation_id=correlation,
        causation_id=causation,
        hops=hops,
        trail=tuple(trail.split()),
    )
    return Entry(number=number, recorded_at=from_microseconds(recorded_us), event=event)


def _sealed(row: Sequence[Any]) -> tuple[Any, ...]:
    return (*row, crc32(repr(tuple(row)).encode("utf-8", "surrogatepass")))
