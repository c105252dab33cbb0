"""The contract of every journal: each event once, in the order of arrival, never changed and never removed."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from cdc_agent.events import Event

__all__ = ["Entry", "Journal", "Query"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """An event and its place in the journal: 1, 2, 3…"""

    number: int
    recorded_at: dt.datetime
    event: Event


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """Which entries. ``type`` may end in ``*``: then it is how the type begins. ``since`` and ``until`` are about the
    time of the event: from the first on, and before the second."""

    type: str = ""
    key: str = ""
    source: str = ""
    since: dt.datetime | None = None
    until: dt.datetime | None = None
    after: int = 0
    limit: int = 100


class Journal(Protocol):
    """Safe to call from several threads."""

    def append(self, events: Sequence[Event]) -> int:
        """Record events; durable on return. One that is here already, by ``source`` and ``id``, is left as it was.

        Returns how many were new. Raises ``JournalFull`` without having recorded any.
        """
        ...

    def find(self, wanted: Query) -> list[Entry]:
        """Entries in order. Raises ``JournalError`` when one is not as it was written."""
        ...

    def close(self) -> None: ...
