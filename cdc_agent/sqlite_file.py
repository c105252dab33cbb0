"""Opens SQLite files the way durable state needs it: WAL, every commit synced, private to us, damage noticed."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from cdc_agent.errors import CdcAgentError

__all__ = ["open_file"]


def open_file(
    path: Path, error: type[CdcAgentError], *, read_only: bool = False, page_bytes: int = 4096
) -> sqlite3.Connection:
    """Open or create a database file.

    Commits are on disk when they return (``synchronous=FULL``). Raises ``error`` when the file cannot be opened or
    is damaged. ``page_bytes`` counts for a new file only. The connection may be used from any thread, by one at a time.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = "ro" if read_only else "rwc"
        connection = sqlite3.connect(
            f"file:{path}?mode={mode}", uri=True, isolation_level=None, check_same_thread=False, timeout=30.0
        )
        connection.execute(f"pragma page_size = {page_bytes:d}")
        connection.execute("pragma journal_mode = wal" if not read_only else "pragma query_only = on")
        connection.execute("pragma synchronous = full")
        connection.execute("pragma foreign_keys = on")
        _check(connection, path, error)
    except (sqlite3.Error, OSError) as exc:
        raise error(f"cannot open {path}: {exc}", hint="check the path, its permissions and the free space") from exc
    if not read_only:
        path.chmod(0o600)
    return connection


def _check(connection: sqlite3.Connection, path: Path, error: type[CdcAgentError]) -> None:
    row = connection.execute("pragma quick_check(1)").fetchone()
    if row is None or row[0] != "ok":
        raise error(
            f"{path} is damaged: {row[0] if row else 'no answer'}", hint="restore it, or move it away and resync"
        )
