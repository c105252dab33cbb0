"""How far behind the index is: the age of the oldest commit that a reader misses, whatever else waits in the stream."""

from __future__ import annotations

from cdc_agent.errors import StreamError
from cdc_agent.lsn import Lsn
from cdc_agent.stream.base import Stream

__all__ = ["oldest_missing_us"]

#: Entries that are looked through for the first that readers miss.
_LOOK_PAST = 200


def oldest_missing_us(stream: Stream, offset: int, applied_lsn: Lsn) -> int | None:
    """When the oldest captured commit was made that is not in the index, in Unix microseconds; None when all are.

    Changes overtake the rows of a resync. Those wait behind ``offset`` while every commit up to ``applied_lsn`` is
    there, so they are not what a reader misses.
    """
    if stream.head_offset() <= offset or applied_lsn >= stream.position().captured_lsn:
        return None
    try:
        events = stream.read(offset, limit=1, wait_s=0).events
        if events and events[0].version.commit_lsn <= applied_lsn:
            events = stream.read(offset, limit=_LOOK_PAST, wait_s=0).events
    except StreamError:
        return None
    # Where all of these were overtaken, the oldest that was not is no older than the last of them.
    missing = [event for event in events if event.version.commit_lsn > applied_lsn] or events[-1:]
    return missing[0].commit_ts_us if missing else None
