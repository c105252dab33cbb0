"""Reads rows wherever they are kept: of tables from the database, of feeds from their mirrors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cdc_agent.daemon.feeds import Feeds
from cdc_agent.lsn import Lsn
from cdc_agent.source.base import RowSet, TableRows
from cdc_agent.source.rows import SqlRowReader
from cdc_agent.verify.ends import KeyedReader

__all__ = ["Readers"]


class Readers:
    """See ``verify.ends.KeyedReader``. A mark goes into the log of the database."""

    def __init__(self, tables: SqlRowReader, feeds: Feeds) -> None:
        self._tables = tables
        self._feeds = feeds

    def page(self, request: TableRows) -> RowSet:
        return self._of(request.table).page(request)

    def by_key(self, table: str, keys: Iterable[tuple[str, ...]]) -> RowSet:
        return self._of(table).by_key(table, keys)

    def mark(self, prefix: str, content: Mapping[str, object]) -> Lsn:
        return self._tables.mark(prefix, content)

    def key_names(self, table: str) -> tuple[str, ...]:
        return self._of(table).key_names(table)

    def estimated_rows(self, table: str) -> int:
        return self._of(table).estimated_rows(table)

    def check_predicate(self, table: str, predicate: str) -> None:
        feeding = self._feeds.of(table)
        (self._tables if feeding is None else feeding.reader).check_predicate(table, predicate)

    def close(self) -> None:
        self._tables.close()

    def _of(self, table: str) -> KeyedReader:
        feeding = self._feeds.of(table)
        return self._tables if feeding is None else feeding.reader
