"""The contracts of every journal and desk. A journal keeps each event once, in the order of arrival. A desk keeps where
agents are, in the same transactions as the events that they emit, so that an event has its effects once."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cdc_agent.events import Event, Kind

__all__ = ["Desk", "Entry", "Journal", "Letter", "Outcome", "Page", "Progress", "Query", "Reading", "Wants"]

#: Whether somebody wants to see events of this kind and type.
Wants = Callable[[str, str], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """An event and its place in the journal: 1, 2, 3…"""

    number: int
    recorded_at: dt.datetime
    event: Event


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What one read returned; nothing up to ``reached`` was wanted but ``entries``."""

    entries: Sequence[Entry]
    reached: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """Which entries. ``type`` may end in ``*``: then it is how the type begins. ``since`` and ``until`` are about the
    time of the event: from the first on, and before the second. Without a ``kind`` facts and commands are meant.
    ``correlation_id`` finds what one event began, of every kind, and that event itself."""

    type: str = ""
    key: str = ""
    source: str = ""
    kind: Kind | None = None
    correlation_id: str = ""
    since: dt.datetime | None = None
    until: dt.datetime | None = None
    after: int = 0
    limit: int = 100


class Journal(Protocol):
    """Safe to call from several threads. Facts and commands are never changed and never removed."""

    def append(self, events: Sequence[Event]) -> int:
        """Record events; durable on return. One that is here already, by ``source`` and ``id``, is left as it was.

        Returns how many were new. Raises ``JournalFull`` without having recorded any.
        """
        ...

    def find(self, wanted: Query) -> list[Entry]:
        """Entries in order. Raises ``JournalError`` when one is not as it was written."""
        ...

    def read(self, after: int, wants: Wants, *, limit: int, wait_s: float) -> Page:
        """At most ``limit`` wanted entries after this number, in order; waits up to ``wait_s`` for anything new."""
        ...

    def head(self) -> int:
        """The number of the newest entry there ever was; 0 before the first."""
        ...

    def wake(self) -> None:
        """Wake every waiting reader."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where an agent is: it has dealt with everything up to ``number``, and with ``handled`` beyond."""

    number: int
    handled: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """An event that an agent could not handle. ``state`` is ``parked``, or ``replay`` when it is to be tried again."""

    agent: str
    number: int
    event: Event
    reason: str
    error: str
    attempts: int
    parked_at: dt.datetime
    state: str = "parked"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What handling one entry came to. ``passed``: everything up to it is dealt with, this entry perhaps included.

    ``memory`` is a key and what is now remembered of it (None: nothing any more). With a ``letter`` it was parked.
    ``replayed``: the entry was a dead letter.
    """

    agent: str
    number: int
    passed: int = 0
    emitted: tuple[Event, ...] = ()
    memory: tuple[str, Any] | None = None
    letter: Letter | None = None
    replayed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How far the stream of row changes has been looked through. ``origin`` is what the transaction of ``commit_lsn``
    said about who wrote it, which counts for the rest of it."""

    offset: int
    commit_lsn: int = 0
    origin: bytes | None = None


class Desk(Protocol):
    """Safe to call from several threads."""

    def place(self, agent: str, number: int) -> Progress:
        """Where an agent is; one that is not known yet begins after ``number``."""
        ...

    def settle(self, outcome: Outcome) -> bool:
        """Record what handling an entry came to, all of it in one transaction. False, and nothing is recorded, when it
        had been settled before. Raises ``JournalFull``."""
        ...

    def advance(self, agent: str, number: int) -> None:
        """The agent has dealt with everything up to here."""
        ...

    def agents(self) -> dict[str, int]:
        """All that are known, and where they are."""
        ...

    def forget(self, agent: str) -> None:
        """Everything about an agent; retention does not wait for it."""
        ...

    def recall(self, agent: str, key: str) -> Any:
        """What is remembered; None for nothing."""
        ...

    def letters(self, *, agent: str = "", state: str = "", number: int = 0, limit: int = 1000) -> list[Letter]:
        """Dead letters, by agent and number. Empty conditions are none."""
        ...

    def letter_counts(self) -> dict[str, int]:
        """Parked letters by agent."""
        ...

    def replay(self, agent: str, number: int) -> bool:
        """Give a parked letter back to its agent; False when there is none."""
        ...

    def discard(self, agent: str, number: int) -> bool:
        """Forget a parked letter; False when there is none."""
        ...

    def tidy(self, before: dt.datetime, agents: Collection[str]) -> int:
        """Remove changes and ticks that were recorded before then and that these agents have passed."""
        ...

    def reading(self) -> Reading | None:
        """How far the stream has been looked through; None before the first time."""
        ...

    def read_to(self, reading: Reading, changes: Sequence[Event]) -> None:
        """Record changes that agents want, and how far the stream has been looked through, in one transaction."""
        ...
