"""Versions of what a SQLite file of ours holds, and how an old file becomes a new one.

``PRAGMA user_version`` tells the version. A file is made, or brought up to date, in one transaction: who dies in it
leaves the file as it was.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cdc_agent.errors import CdcAgentError

__all__ = ["Schema"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Schema:
    """``steps[n]`` is the SQL that makes version n + 1 out of version n; version 0 is an empty file. A step that was
    released is never changed. ``unnumbered`` is a query for the version of a file from before files were numbered.
    ``functions`` are those of ours that steps call.
    """

    steps: tuple[str, ...]
    unnumbered: str
    functions: Mapping[str, Callable[..., Any]] = field(default_factory=dict)

    def bring_up_to_date(
        self,
        connection: sqlite3.Connection,
        path: Path,
        *,
        error: type[CdcAgentError],
        damaged: Callable[[str], Exception],
    ) -> None:
        """Afterwards the file has the tables of today.

        Raises ``error`` for a file that a newer cdc-agent has written, and what ``damaged`` makes of a sentence for one
        whose tables are not those of its version. Neither is changed.
        """
        self._add_functions(connection)
        version = self._version(connection)
        if version > len(self.steps):
            raise error(
                f"{path} has schema {version}, and this cdc-agent knows none after {len(self.steps)}",
                hint="start the newer cdc-agent that wrote it, or restore the copy from before the upgrade",
            )
        if not self._is_whole(connection, version):
            raise damaged("its tables are not as they were made")
        if _numbered(connection) < len(self.steps):
            self._climb(connection, version)

    def _version(self, connection: sqlite3.Connection) -> int:
        if not _tables(connection):
            return 0
        if (number := _numbered(connection)) > 0:
            return number
        try:
            row = connection.execute(self.unnumbered).fetchone()
        except sqlite3.OperationalError:
            # The table that would say it is gone: no version is like that.
            row = None
        return int(row[0]) if row else 1

    def _climb(self, connection: sqlite3.Connection, version: int) -> None:
        script = "\n".join(self.steps[version:])
        try:
            connection.executescript(f"begin immediate; {script}\npragma user_version = {len(self.steps):d}; commit;")
        finally:
            if connection.in_transaction:
                connection.execute("rollback")

    def _is_whole(self, connection: sqlite3.Connection, version: int) -> bool:
        wanted = sqlite3.connect(":memory:")
        try:
            self._add_functions(wanted)
            wanted.executescript("\n".join(self.steps[:version]))
            return _tables(wanted) <= _tables(connection)
        finally:
            wanted.close()

    def _add_functions(self, connection: sqlite3.Connection) -> None:
        for name, function in self.functions.items():
            connection.create_function(name, -1, function, deterministic=True)


def _numbered(connection: sqlite3.Connection) -> int:
    return int(connection.execute("pragma user_version").fetchone()[0])


def _tables(connection: sqlite3.Connection) -> set[tuple[str, str]]:
    return set(connection.execute("select name, sql from sqlite_master where sql is not null"))
