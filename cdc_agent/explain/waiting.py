"""Finds the changes of one row among those that the indexer has not dealt with."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection
from dataclasses import dataclass, field

from cdc_agent.events import ChangeEvent, Op
from cdc_agent.explain.facts import PendingChange
from cdc_agent.stream.base import Stream

__all__ = ["Waiting", "waiting"]

#: Entries that are looked at: some ten thousand take about a tenth of a second.
MOST_ENTRIES = 20_000
#: Changes that are named.
MOST_CHANGES = 20
_PAGE = 2_000


@dataclass(slots=True, kw_only=True)
class Waiting:
    """``entries`` of all rows wait, ``examined`` of them were looked at, ``changes`` are of this row (the first of
    them), ``count`` is how many there are."""

    entries: int = 0
    examined: int = 0
    count: int = 0
    changes: list[PendingChange] = field(default_factory=list)


def waiting(stream: Stream, after_offset: int, *, tables: Collection[int], key: tuple[str, ...]) -> Waiting:
    """Look through the stream behind ``after_offset``. ``tables`` are root oids that the row comes under."""
    found = Waiting()
    offset = after_offset
    while True:
        batch = stream.read(offset, limit=_PAGE, wait_s=0)
        found.entries = batch.head_offset - after_offset
        for event in batch.events:
            if _concerns(event, tables, key):
                found.count += 1
                if found.count <= MOST_CHANGES:
                    found.changes.append(_pending(event))
        found.examined += len(batch.events)
        offset = batch.next_offset
        if not batch.events or offset >= batch.head_offset or found.examined >= MOST_ENTRIES:
            return found


def _concerns(event: ChangeEvent, tables: Collection[int], key: tuple[str, ...]) -> bool:
    if event.relation is None or event.relation.root_oid not in tables:
        return False
    if event.op is Op.TRUNCATE:
        return True
    return any(row is not None and row.key() == key for row in (event.after, event.before))


def _pending(event: ChangeEvent) -> PendingChange:
    moment = dt.datetime.fromtimestamp(event.commit_ts_us / 1_000_000, dt.UTC) if event.commit_ts_us else None
    return PendingChange(
        offset=event.offset,
        op=str(event.op),
        commit_lsn=str(event.version.commit_lsn),
        committed_at=moment.isoformat(timespec="milliseconds") if moment else None,
    )
