"""When everything that a log position covers can be seen by a SELECT.

A commit is in the WAL before it is visible, arbitrarily long before under synchronous replication. A consumer that
begins to read the log at a position may only trust rows read once every transaction of before has come to its end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg

from cdc_agent.source.connection import classify, connect

__all__ = ["everything_visible"]


def everything_visible(dsn: str, *, connect_timeout_s: float) -> Callable[[], bool]:
    """A question to repeat: have all transactions that had begun by now ended, and does every SELECT see them?

    Raises a kind of ``SourceError`` on each call that cannot ask.
    """
    with connect(dsn, connect_timeout_s=connect_timeout_s) as connection:
        barrier = _number(connection, "select pg_current_xact_id()::text")

    def asked() -> bool:
        with connect(dsn, connect_timeout_s=connect_timeout_s) as connection:
            return _number(connection, "select pg_snapshot_xmin(pg_current_snapshot())::text") > barrier

    return asked


def _number(connection: psycopg.Connection[Any], statement: str) -> int:
    try:
        row = connection.execute(statement.encode()).fetchone()
    except psycopg.Error as exc:
        raise classify(exc) from exc
    assert row is not None
    return int(row[0])
