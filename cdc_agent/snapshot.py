"""Snapshots: which transactions a SELECT has seen. Also widens the log's 32-bit transaction ids to 64 bits.

A commit is in the WAL before it is visible to readers (arbitrarily long before, under synchronous replication), so
the order of the log says nothing about what a SELECT saw. Only this does.
https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-INFO-SNAPSHOT
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

__all__ = ["Snapshot", "widen_xid"]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """``xmin:xmax:xip,…`` as Postgres writes a ``pg_snapshot``; all ids have 64 bits."""

    xmin: int
    xmax: int
    in_progress: frozenset[int]

    @classmethod
    @functools.lru_cache(maxsize=1024)
    def parse(cls, text: str) -> Snapshot:
        xmin, xmax, xip = text.split(":")
        return cls(int(xmin), int(xmax), frozenset(int(x) for x in xip.split(",") if x))

    def sees(self, xid: int) -> bool:
        """Whether changes of ``xid`` (0: older than anything) were visible."""
        return xid < self.xmin or (xid < self.xmax and xid not in self.in_progress)

    def not_before(self, other: Snapshot) -> bool:
        """Whether this was taken at or after ``other`` on the same server: it sees everything that the other sees."""
        return self.xmax >= other.xmax and not any(other.sees(xid) for xid in self.in_progress)


def widen_xid(xid: int, near: int) -> int:
    """The 64-bit id with these low 32 bits that is nearest to ``near``."""
    full = (near & ~0xFFFFFFFF) | xid
    if full > near + 0x80000000:
        return max(full - 0x100000000, xid)
    if full < near - 0x80000000:
        return full + 0x100000000
    return full
