"""Looks at the database under a ledger without opening it, and renames the schema of one that is damaged."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from cdc_agent.errors import CdcAgentError, LedgerError
from cdc_agent.ledger.postgres_faults import error_of
from cdc_agent.ledger.postgres_schema import STEPS, TablesMissing, put_aside, version_of
from cdc_agent.ledger.postgres_server import SQL, conninfo_of, session_of

__all__ = ["Found", "database_of", "examine", "is_there", "put_schema_aside"]

_LONGEST_NAME_BYTES = 63


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """``database`` is its server's system identifier and its own oid, if it could be asked."""

    ok: bool
    message: str
    hint: str = ""
    database: tuple[str, int] | None = None


def examine(dsn: str, schema: str) -> Found:
    """Whether a ledger could be opened here. Never raises for what it finds."""
    try:
        with _connected(dsn, schema) as connection:
            return _examined(connection, schema)
    except CdcAgentError as exc:
        return Found(ok=False, message=exc.message, hint=exc.hint)


def database_of(dsn: str) -> tuple[str, int]:
    with _connected(dsn, "pg_catalog") as connection:
        return _database(connection)


def is_there(dsn: str, schema: str) -> bool:
    """Whether the schema holds a ledger, or what is left of one."""
    with _connected(dsn, schema) as connection:
        try:
            return version_of(connection, schema) > 0
        except TablesMissing:
            return True


def put_schema_aside(dsn: str, schema: str) -> str:
    """Returns the new name."""
    mark = f"_damaged_{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}_{os.getpid()}"
    kept = schema.encode()[: _LONGEST_NAME_BYTES - len(mark)].decode(errors="ignore")
    with _connected(dsn, schema) as connection:
        put_aside(connection, schema, kept + mark)
    return kept + mark


@contextmanager
def _connected(dsn: str, schema: str) -> Iterator[psycopg.Connection[Any]]:
    try:
        with psycopg.connect(conninfo_of(dsn), autocommit=True) as connection:
            connection.execute(SQL["begin_session"], session_of(schema))
            yield connection
    except psycopg.Error as exc:
        raise error_of(exc) from exc


def _database(connection: psycopg.Connection[Any]) -> tuple[str, int]:
    row = connection.execute(SQL["database"]).fetchone()
    assert row is not None
    return row[0], row[1]


def _examined(connection: psycopg.Connection[Any], schema: str) -> Found:
    row = connection.execute(SQL["rights"], {"schema": schema}).fetchone()
    assert row is not None
    encoding, exists, may_fill, may_create = row
    database = _database(connection)
    if encoding != "UTF8":
        return Found(ok=False, message=f"its database has encoding {encoding}", hint="make one of encoding UTF8")
    user = sql.Identifier(connection.info.user).as_string()
    name = sql.Identifier(schema).as_string()
    if not exists and not may_create:
        hint = f"run as a superuser: create schema {name} authorization {user};"
        return Found(ok=False, message=f"there is no schema {schema}, and we may not make it", hint=hint)
    if exists and not may_fill:
        hint = f"as its owner: grant usage, create on schema {name} to {user};"
        return Found(ok=False, message=f"we may not make tables in schema {schema}", hint=hint)
    try:
        version = version_of(connection, schema) if exists else 0
    except TablesMissing as exc:
        raise LedgerError(str(exc), hint="restore the schema from a backup") from exc
    if version > len(STEPS):
        hint = "start the newer cdc-agent that wrote it"
        return Found(ok=False, message=f"schema {schema} has version {version}, we know {len(STEPS)}", hint=hint)
    state = f"holds a ledger of version {version}" if version else "will hold the ledger"
    return Found(ok=True, message=f"schema {schema} {state}", database=database)
