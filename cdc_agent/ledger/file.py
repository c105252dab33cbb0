"""The file under the ledger: one writing and one reading connection, tables of a known version, faults by their names.

Searches read through the second connection, so they never wait for a writer's sync.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cdc_agent import queries
from cdc_agent.errors import IdentityMismatch, LedgerError, LedgerFull
from cdc_agent.ledger import rows
from cdc_agent.sqlite_file import DAMAGED_HINT, is_damage, open_file
from cdc_agent.sqlite_schema import Schema

__all__ = ["SCHEMA", "SQL", "LedgerFile"]

SQL = queries.load("cdc_agent.ledger", "schema.sql")
#: A new version is a new step; the files of versions before it are in tests/old_state.
SCHEMA = Schema(
    steps=(SQL["schema"], SQL["since_2"]),
    unnumbered="select cast(value as integer) from meta where key = 'schema_version'",
    functions={"seal": rows.seal},
)
#: The state of a ledger whose file is not as it was written.
_CORRUPT = "LEDGER_CORRUPT"


class LedgerFile:
    """Raises ``IdentityMismatch`` for a damaged file, ``LedgerFull`` for a full disk, ``LedgerError`` for the rest."""

    def __init__(self, path: Path) -> None:
        self._path = path
        #: What was found damaged while it was in use.
        self.damage: IdentityMismatch | None = None
        self._writer = open_file(path, LedgerError, corrupt=_CORRUPT)
        # Entered again by those who do more than one transaction. Taken before the other one.
        self._write_lock = threading.RLock()
        self._read_lock = threading.Lock()
        self._reader = self._writer
        with self._translated():
            # Embeddings are as private as the texts: what is deleted is overwritten.
            self._writer.execute("pragma secure_delete = on")
            SCHEMA.bring_up_to_date(self._writer, path, error=LedgerError, damaged=self._damaged)
            self._reader = open_file(path, LedgerError, corrupt=_CORRUPT)
        self._uuid = self._meta("uuid")

    def _damaged(self, what: object) -> IdentityMismatch:
        self.damage = IdentityMismatch(_CORRUPT, f"{self._path} is damaged: {what}", hint=DAMAGED_HINT)
        return self.damage

    @property
    def uuid(self) -> str:
        return self._uuid

    def close(self) -> None:
        with self._write_lock, self._read_lock:
            self._writer.close()
            self._reader.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._write_lock, self._translated():
            self._writer.execute("begin immediate")
            try:
                yield self._writer
                self._writer.execute("commit")
            finally:
                if self._writer.in_transaction:
                    self._writer.execute("rollback")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as exc:
            if getattr(exc, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
                raise LedgerFull(
                    "the disk under the ledger is full", hint="free space; work goes on by itself"
                ) from exc
            if is_damage(exc):
                raise self._damaged(exc) from exc
            raise LedgerError(f"the ledger failed: {exc}", hint="check the file and its disk") from exc
        except rows.Damaged as exc:
            raise self._damaged(exc) from exc

    def _one(self, statement: str, params: Sequence[Any] = ()) -> Any:
        with self._read_lock, self._translated():
            return self._reader.execute(statement, params).fetchone()

    def _all(self, statement: str, params: Sequence[Any] = ()) -> list[Any]:
        with self._read_lock, self._translated():
            return self._reader.execute(statement, params).fetchall()

    def _meta(self, key: str) -> str:
        return str(self._one(SQL["meta"], (key,))[0])
