"""Opens SQLite files the way durable state needs it: WAL, every commit synced, private to us, damage noticed."""

from __future__ import annotations

import errno
import os
import sqlite3
import time
from pathlib import Path

from cdc_agent.errors import CdcAgentError, IdentityMismatch

__all__ = ["DAMAGED_HINT", "file_is_damaged", "is_damage", "is_new", "open_file", "put_aside", "schema_is"]

DAMAGED_HINT = (
    "restore the file; or start with CDC_AGENT_SOURCE__ON_MISMATCH=resync: it is put aside, everything is read again, "
    "and only what differs is embedded"
)


def open_file(
    path: Path,
    error: type[CdcAgentError],
    *,
    read_only: bool = False,
    page_bytes: int = 4096,
    corrupt: str = "",
) -> sqlite3.Connection:
    """Open or create a database file.

    Commits are on disk when they return (``synchronous=FULL``). Raises ``error`` when the file cannot be opened or
    is damaged; with ``corrupt`` damage is an ``IdentityMismatch`` of that state. ``page_bytes`` counts for a new file
    only. The connection may be used from any thread, by one at a time.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not read_only:
            _make_private(path)
        mode = "ro" if read_only else "rwc"
        connection = sqlite3.connect(
            f"file:{path}?mode={mode}", uri=True, isolation_level=None, check_same_thread=False, timeout=30.0
        )
        connection.execute(f"pragma page_size = {page_bytes:d}")
        connection.execute("pragma journal_mode = wal" if not read_only else "pragma query_only = on")
        connection.execute("pragma synchronous = full")
        connection.execute("pragma foreign_keys = on")
        _check(connection)
    except (sqlite3.Error, OSError) as exc:
        if is_damage(exc):
            damage = f"{path} is damaged: {exc}"
            raise IdentityMismatch(corrupt, damage, hint=DAMAGED_HINT) if corrupt else error(damage) from exc
        raise error(f"cannot open {path}: {exc}", hint="check the path, its permissions and the free space") from exc
    return connection


def _make_private(path: Path) -> None:
    """Before SQLite opens it: the files that it puts beside this one get their rights from it.

    A file that is there is not opened for this. Closing any descriptor of it would drop the locks that SQLite holds on
    it in this process, and another process that opens and closes it would then take the write-ahead log away.
    """
    if path.is_symlink():
        raise OSError(errno.ELOOP, "it is a link, and may lead to somebody else's file", str(path))
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))
    except FileExistsError:
        path.chmod(0o600)


def is_damage(exc: BaseException) -> bool:
    """Whether SQLite says that the file is not as it was written."""
    if "Could not decode to UTF-8" in str(exc):
        # Bytes of ours that now claim to be text.
        return True
    code = getattr(exc, "sqlite_errorcode", None)
    # The low byte is the kind; the rest of an extended code says where.
    return code is not None and code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def file_is_damaged(path: Path) -> bool:
    """Whether SQLite finds a file of somebody else's to be damaged. Reads all of it and changes nothing."""
    if not path.exists():
        return False
    try:
        connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5.0)
    except sqlite3.Error as exc:
        return is_damage(exc)
    try:
        _check(connection)
    except sqlite3.Error as exc:
        return is_damage(exc)
    finally:
        connection.close()
    return False


def put_aside(path: Path) -> Path:
    """Rename a damaged file (with what SQLite keeps beside it) or folder, so that it can be looked at; returns its
    new name."""
    aside = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{os.getpid()}")
    for suffix in ("-wal", "-shm", ""):
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.rename(aside.with_name(aside.name + suffix))
    return aside


def is_new(connection: sqlite3.Connection) -> bool:
    """Whether there is no table in it yet."""
    return not connection.execute("select 1 from sqlite_master limit 1").fetchall()


def schema_is(connection: sqlite3.Connection, script: str) -> bool:
    """Whether the file's tables are those that ``script`` makes."""
    fresh = sqlite3.connect(":memory:")
    try:
        fresh.executescript(script)
        return _schema(fresh) <= _schema(connection)
    finally:
        fresh.close()


def _schema(connection: sqlite3.Connection) -> set[tuple[str, str]]:
    return set(connection.execute("select name, sql from sqlite_master where sql is not null"))


def _check(connection: sqlite3.Connection) -> None:
    row = connection.execute("pragma quick_check(1)").fetchone()
    if row is None or row[0] != "ok":
        damage = sqlite3.DatabaseError(row[0] if row else "no answer")
        damage.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise damage
