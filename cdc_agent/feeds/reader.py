"""Reads the documents of a feed as rows: for a resync, for an audit, and for who explains one document.

What is read is the mirror. Whoever begins to read all of it has the feed looked at first, so the truth that an index is
compared with is what the feed says now.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cdc_agent.errors import UsageError
from cdc_agent.feeds.follower import Follower
from cdc_agent.lsn import Lsn
from cdc_agent.source.base import RowSet, TableRows

__all__ = ["FeedReader"]


class FeedReader:
    """See ``source.base.RowReader`` and ``verify.ends.KeyedReader``. Conditions in SQL have nobody to decide them."""

    def __init__(self, follower: Follower) -> None:
        self._follower = follower

    def page(self, request: TableRows) -> RowSet:
        if request.after_key is None and request.limit:
            self._follower.look()
        after = request.after_key[0] if request.after_key is not None else None
        snapshot, rows = self._follower.page(after, request.limit)
        return RowSet(snapshot=snapshot, relations=[self._follower.relation] * len(rows), rows=rows)

    def by_key(self, table: str, keys: Iterable[tuple[str, ...]]) -> RowSet:  # noqa: ARG002 (a feed is one table)
        snapshot, rows = self._follower.rows([key[0] for key in keys])
        return RowSet(snapshot=snapshot, relations=[self._follower.relation] * len(rows), rows=rows)

    def mark(self, prefix: str, content: Mapping[str, object]) -> Lsn:
        return self._follower.mark(prefix, content)

    def key_names(self, table: str) -> tuple[str, ...]:  # noqa: ARG002
        return self._follower.relation.key

    def estimated_rows(self, table: str, predicate: str = "") -> int:  # noqa: ARG002
        return self._follower.count()

    def check_predicate(self, table: str, predicate: str) -> None:  # noqa: ARG002
        raise UsageError(f"{table} is a feed: it cannot be read by a condition", hint="read all of it, or name keys")
