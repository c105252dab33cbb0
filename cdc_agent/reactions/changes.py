"""From the stream of row changes to events that agents hear: the tables that somebody listens to, each change once, and
stamped with the event that its transaction answers. Pure."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Sequence

from cdc_agent.envelope import to_debezium
from cdc_agent.events import ChangeEvent, Event, Kind, Op
from cdc_agent.journal.base import Reading
from cdc_agent.reactions.origin import ORIGIN_PREFIX, Origin, parse_origin

__all__ = ["event_of", "looked_through"]

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
#: What a resync reads again is no change.
_OPS = frozenset({Op.CREATE, Op.UPDATE, Op.DELETE, Op.TRUNCATE})


def looked_through(
    changes: Sequence[ChangeEvent], reading: Reading, reached: int, tables: Collection[str], database: str
) -> tuple[list[Event], Reading]:
    """Events of those changes that are of ``tables``, and how far the stream is known now (``reached``).

    A mark counts for what follows it in its transaction, whose end may lie behind these changes.
    """
    events: list[Event] = []
    commit_lsn, content = reading.commit_lsn, reading.origin
    for change in changes:
        if change.version.commit_lsn != commit_lsn:
            commit_lsn, content = int(change.version.commit_lsn), None
        if change.message is not None and change.message[0] == ORIGIN_PREFIX:
            content = change.message[1]
        elif change.op in _OPS and change.relation is not None and change.relation.qualified_name in tables:
            events.append(event_of(change, database, parse_origin(content)))
    return events, Reading(offset=reached, commit_lsn=commit_lsn, origin=content)


def event_of(change: ChangeEvent, database: str, origin: Origin | None = None) -> Event:
    """A change of a row as an event: its type is the table, its key the row's, its data Debezium's envelope."""
    assert change.relation is not None
    row = change.after if change.after is not None else change.before
    key = (row.key() if row is not None else None) or ()
    return Event(
        id=f"{int(change.version.commit_lsn):X}-{change.version.ordinal}",
        source=f"postgresql/{database}",
        kind=Kind.CHANGE,
        type=change.relation.qualified_name,
        key=",".join(key),
        time=_EPOCH + dt.timedelta(microseconds=change.commit_ts_us),
        data=to_debezium(change, database),
        correlation_id=origin.correlation_id if origin else "",
        causation_id=origin.causation_id if origin else "",
        hops=origin.hops if origin else 0,
        trail=origin.trail if origin else (),
    )
