"""Where the server's log is now, on a connection of its own: readers ask while a resync holds the others."""

from __future__ import annotations

import threading
from typing import Any

import psycopg

from cdc_agent import queries
from cdc_agent.lsn import Lsn
from cdc_agent.source.connection import classify, connect

__all__ = ["SourceClock"]

_SQL = queries.load("cdc_agent.source", "clock.sql")


class SourceClock:
    """Connects at the first question. Calls from several threads take turns."""

    def __init__(self, dsn: str, *, connect_timeout_s: float = 10.0) -> None:
        self._dsn = dsn
        self._connect_timeout_s = connect_timeout_s
        self._connection: psycopg.Connection[Any] | None = None
        self._lock = threading.Lock()

    def now(self) -> Lsn:
        """The end of what is flushed. Raises ``SourceUnavailable`` when the server does not answer."""
        with self._lock:
            # The connection may have been lost since the last question; a new one tells.
            for is_last in (self._connection is None, True):
                try:
                    return self._ask()
                except psycopg.Error as exc:
                    self._drop()
                    if is_last:
                        raise classify(exc) from exc
        raise AssertionError("unreachable")

    def close(self) -> None:
        with self._lock:
            self._drop()

    def _ask(self) -> Lsn:
        if self._connection is None:
            self._connection = connect(self._dsn, connect_timeout_s=self._connect_timeout_s)
        row = self._connection.execute(_SQL["flushed"]).fetchone()
        assert row is not None
        return Lsn.parse(row[0])

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
