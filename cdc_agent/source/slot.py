"""The replication slot and the publication: created, described, dropped by us.

The publication must exist before the slot and is never dropped while the slot lives: the log is decoded with the
catalog of its time, and a slot whose publication did not exist then is wedged for good.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from cdc_agent import queries
from cdc_agent.errors import PreflightError, SourceUnavailable
from cdc_agent.lsn import Lsn
from cdc_agent.source.connection import classify, connect

__all__ = ["SlotStatus", "adding", "create_slot", "describe", "drop", "ensure_publication", "publication_oid"]

_SQL = queries.load("cdc_agent.source", "slot.sql")


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotStatus:
    """One row of ``pg_replication_slots``. ``retained_bytes``: WAL kept for it; ``lag_bytes``: not yet acknowledged.

    ``ours``: it is a logical slot of the database that was asked. ``invalidation`` is why the server gave it up.
    """

    name: str
    plugin: str | None
    database: str | None
    active_pid: int | None
    wal_status: str | None
    confirmed_flush_lsn: Lsn | None
    restart_lsn: Lsn | None
    retained_bytes: int | None
    lag_bytes: int | None
    ours: bool = True
    invalidation: str | None = None


def describe(dsn: str, slot_name: str) -> SlotStatus | None:
    """The slot as the server has it, or None."""
    try:
        with connect(dsn) as connection:
            return describe_on(connection, slot_name)
    except psycopg.Error as exc:
        raise classify(exc) from exc


def describe_on(connection: psycopg.Connection[Any], slot_name: str) -> SlotStatus | None:
    row = connection.execute(_SQL["describe_slot"], (slot_name,)).fetchone()
    if row is None:
        return None
    name, plugin, database, pid, wal_status, confirmed, restart, retained, lag, ours, invalidation = row
    return SlotStatus(
        name=name,
        plugin=plugin,
        database=database,
        active_pid=pid,
        wal_status=wal_status,
        confirmed_flush_lsn=Lsn.parse(confirmed) if confirmed else None,
        restart_lsn=Lsn.parse(restart) if restart else None,
        retained_bytes=retained,
        lag_bytes=lag,
        ours=ours,
        invalidation=invalidation,
    )


def drop(dsn: str, slot_name: str) -> bool:
    """Drop the slot; True if there was one. Raises ``SlotBusy`` while somebody streams from it."""
    try:
        with connect(dsn) as connection:
            return connection.execute(_SQL["drop_slot"], (slot_name,)).fetchone() is not None
    except psycopg.Error as exc:
        raise classify(exc) from exc


def create_slot(dsn: str, *, slot_name: str, plugin: str, lock_timeout_s: float = 60.0) -> Lsn:
    """Create the slot and return its consistent point.

    Creating waits for every open write transaction of the server; after ``lock_timeout_s`` this raises and names
    them. (Only ``lock_timeout`` ends that wait: ``statement_timeout`` does not fire there.)
    """
    # The walsender's grammar knows its keywords in capitals only.
    command = sql.SQL("CREATE_REPLICATION_SLOT {} LOGICAL {} {}")
    with connect(dsn, replication=True) as connection:
        option = _slot_options(connection.info.server_version)
        text = command.format(sql.Identifier(slot_name), sql.Identifier(plugin), option).as_string(connection)
        try:
            connection.execute(f"set lock_timeout = {int(lock_timeout_s * 1000)}")
            row = connection.execute(text).fetchone()
        except psycopg.errors.LockNotAvailable as exc:
            raise SourceUnavailable(
                f"creating slot {slot_name} waits for open write transactions (pids {_blockers(dsn)})",
                hint="finish or terminate those sessions; the daemon tries again",
            ) from exc
        except psycopg.Error as exc:
            raise classify(exc) from exc
    assert row is not None
    return Lsn.parse(row[1])


def _slot_options(server_version: int) -> sql.SQL:
    if server_version >= 170000:
        # A failover slot survives promotion of a synchronised standby.
        return sql.SQL("(SNAPSHOT 'nothing', FAILOVER true)")
    if server_version >= 150000:
        return sql.SQL("(SNAPSHOT 'nothing')")
    return sql.SQL("NOEXPORT_SNAPSHOT")


def _blockers(dsn: str) -> str:
    with connect(dsn) as connection:
        row = connection.execute(_SQL["blockers"]).fetchone()
    return ", ".join(map(str, row[0])) if row and row[0] else "unknown"


def publication_oid(dsn: str, name: str) -> int:
    """Which publication has this name now; 0 when none has."""
    try:
        with connect(dsn) as connection:
            row = connection.execute(_SQL["publication"], (name,)).fetchone()
    except psycopg.Error as exc:
        raise classify(exc) from exc
    return int(row[0]) if row else 0


def ensure_publication(
    dsn: str, *, name: str, tables: Sequence[tuple[str, str]], table_oids: Sequence[int], create: bool = True
) -> None:
    """Create the publication (unless told not to), or add the tables it lacks. Never drops a member."""
    try:
        with connect(dsn) as connection:
            # A VACUUM of the table, or an ALTER TABLE, may hold it for hours.
            connection.execute("set lock_timeout = '10s'")
            row = connection.execute(_SQL["publication"], (name,)).fetchone()
            if row is None:
                if not create:
                    return
                connection.execute(
                    sql.SQL("create publication {} for table {}").format(sql.Identifier(name), _table_list(tables))
                )
                return
            _oid, via_root, all_tables, members = row
            _refuse_via_root(name, via_root)
            missing = [] if all_tables else [t for t, oid in zip(tables, table_oids, strict=True) if oid not in members]
            if missing:
                connection.execute(
                    sql.SQL("alter publication {} add table {}").format(sql.Identifier(name), _table_list(missing))
                )
    except psycopg.errors.LockNotAvailable as exc:
        raise SourceUnavailable(
            f"publication {name} cannot be altered while somebody holds a lock on its tables",
            hint="wait for the ALTER TABLE or VACUUM, or end it; the daemon tries again",
        ) from exc
    except psycopg.errors.InsufficientPrivilege as exc:
        raise PreflightError(
            f"no right to create or alter publication {name}: {str(exc).splitlines()[0]}",
            hint="run `cdc-agent check`: it prints the SQL for an owner of the tables",
        ) from exc
    except psycopg.Error as exc:
        raise classify(exc) from exc


def adding(publication: str, schema: str, table: str) -> str:
    """The SQL that adds a table, for an operator to run."""
    members = sql.SQL("alter publication {} add table {};")
    return members.format(sql.Identifier(publication), sql.Identifier(schema, table)).as_string(None)


def _refuse_via_root(name: str, via_root: bool) -> None:
    if via_root:
        raise PreflightError(
            f"publication {name} publishes via partition roots, which hides the truncation of one partition",
            hint=f'alter publication "{name}" set (publish_via_partition_root = false);',
        )


def _table_list(tables: Sequence[tuple[str, str]]) -> sql.Composed:
    return sql.SQL(", ").join(sql.Identifier(schema, name) for schema, name in tables)
