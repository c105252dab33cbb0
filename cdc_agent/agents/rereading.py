"""Reads rows again from their table when the log did not carry a value that a document depends on.

The row is taken whole, with the snapshot in which it was seen: changes visible in that snapshot are skipped when the
stream comes to them, so a document never mixes two versions and never goes backward. A row is not taken before it
shows the change that made us read it: a commit is in the log before readers see it.
"""

from __future__ import annotations

from collections.abc import Sequence

from cdc_agent.agents.folding import Pending
from cdc_agent.errors import SourceError, SourceUnavailable
from cdc_agent.events import Row
from cdc_agent.retry import Retrier
from cdc_agent.snapshot import Snapshot
from cdc_agent.source.base import RowReader, RowSet

__all__ = ["reread"]

#: Rows asked for in one statement.
_AT_A_TIME = 500
#: Reads in a row while a commit is not visible yet; it takes microseconds, or as long as a synchronous standby.
_READS_AT_ONCE = 50


def reread(table: str, wanted: Sequence[Pending], reader: RowReader, retrier: Retrier) -> None:
    """Complete the rows of ``wanted``; one that is gone meanwhile leaves None. Waits while the source is away."""
    for start in range(0, len(wanted), _AT_A_TIME):
        part = wanted[start : start + _AT_A_TIME]
        found = _read(table, part, reader, retrier)
        rows: dict[tuple[str, ...] | None, Row] = {}
        for relation, raw in zip(found.relations, found.rows, strict=True):
            row = Row(relation, raw)
            rows[row.key()] = row
        for pending in part:
            pending.row = rows.get(pending.key)
            pending.snapshot = found.snapshot
            pending.touched = True
            if pending.row is not None:
                # It may have moved on to another partition.
                pending.relation_oid = pending.row.relation.oid


def _read(table: str, part: Sequence[Pending], reader: RowReader, retrier: Retrier) -> RowSet:
    keys = [pending.key for pending in part]
    newest = {pending.xid for pending in part}

    def read() -> RowSet:
        for _ in range(_READS_AT_ONCE):
            found = reader.by_key(table, keys)
            if all(map(Snapshot.parse(found.snapshot).sees, newest)):
                return found
        raise SourceUnavailable(
            "a commit is in the log but not visible to readers yet", hint="it probably waits for a synchronous standby"
        )

    return retrier.until_done("source_rows", read, (SourceError,))
