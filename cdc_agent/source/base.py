"""The contracts of the source: a feed of committed transactions, and reads of rows by key.

Both have one implementation for real (``replication``, ``rows``) and scripted ones in tests.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from cdc_agent.events import RawRow, Relation, Transaction
from cdc_agent.lsn import Lsn

__all__ = ["ChangeFeed", "Decoder", "RowReader", "RowSet", "TableRows"]


class Decoder(Protocol):
    """Turns the payload of one XLogData message into changes. Pure but for the relations it remembers.

    Raises ``DecodeError`` when the bytes are not the plugin's format.
    """

    #: The output plugin's name.
    plugin: str

    def feed(self, payload: memoryview | bytes) -> Transaction | None:
        """Take one message; return a transaction (or a part of a large one) when there is one to hand over."""
        ...

    @property
    def in_transaction(self) -> bool:
        """A transaction has begun and its end has not been handed over."""
        ...

    def reset(self) -> None:
        """Forget the open transaction and all relations (the connection was lost)."""
        ...


class ChangeFeed(Protocol):
    """A connection that streams committed transactions in commit order."""

    def poll(self, timeout_s: float) -> Sequence[Transaction]:
        """Return what has arrived; wait at most ``timeout_s`` for the first."""
        ...

    def acknowledge(self, lsn: Lsn) -> None:
        """Everything up to ``lsn`` is durable elsewhere; the server may recycle its WAL."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSet:
    """Rows that one statement saw, in one snapshot. ``rows`` are raw text values in the relation's column order.

    ``relations`` holds one entry per row: a partition's row carries the partition's relation.
    """

    snapshot: str
    relations: Sequence[Relation]
    rows: Sequence[RawRow]


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRows:
    """Where to read: a table by name, and its rows after a key (keyset paging), as far as ``predicate`` wants them."""

    table: str
    after_key: tuple[str, ...] | None = None
    limit: int = 1000
    predicate: str = ""


class RowReader(Protocol):
    """Reads rows of the source over SQL, in short statements."""

    def page(self, request: TableRows) -> RowSet:
        """The next rows after a key, ordered by the document key."""
        ...

    def by_key(self, table: str, keys: Iterable[tuple[str, ...]]) -> RowSet:
        """The rows with these keys, as far as they exist."""
        ...

    def mark(self, prefix: str, content: Mapping[str, object]) -> Lsn:
        """Write a transactional logical message into the WAL and return its position."""
        ...
