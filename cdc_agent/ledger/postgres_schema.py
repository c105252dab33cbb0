"""Versions of the ledger's tables in Postgres: made, or brought up to date, by one process while the others wait."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg import sql

from cdc_agent import queries
from cdc_agent.errors import LedgerError

__all__ = ["STEPS", "TablesMissing", "bring_up_to_date", "put_aside", "version_of"]

_SQL = queries.load("cdc_agent.ledger", "postgres_schema.sql")
#: ``STEPS[n]`` makes version n + 1 out of version n. A new version is a new step.
STEPS: tuple[str, ...] = (_SQL["step_1"],)
#: In any version: without them it is no ledger any more.
_TABLES = frozenset(
    [
        "checkpoint",
        "collection",
        "dead_letter",
        "garbage",
        "generation",
        "generation_number",
        "identity",
        "intent",
        "manifest",
        "mending",
        "meta",
        "resync",
        "source_table",
        "tally",
        "vector_cache",
        "vector_use",
        "writing",
    ]
)


class TablesMissing(Exception):
    """The schema holds a part of a ledger."""


def version_of(connection: psycopg.Connection[Any], schema: str) -> int:
    """0 where there is no ledger. Raises ``TablesMissing`` for a ledger that lost tables."""
    found = {name for (name,) in connection.execute(_SQL["tables"], (schema,))} & _TABLES
    if not found:
        return 0
    if missing := _TABLES - found:
        raise TablesMissing(f"schema {schema} has no {', '.join(sorted(missing))}")
    row = connection.execute(_SQL["version"]).fetchone()
    if row is None:
        raise TablesMissing(f"schema {schema} does not say its version")
    return int(row[0])


def bring_up_to_date(connection: psycopg.Connection[Any], schema: str, steps: Sequence[str] = STEPS) -> None:
    """Afterwards the schema has the tables of today; who dies in the middle leaves it as it was.

    ``connection`` finds its tables in ``schema``. Raises ``LedgerError`` for tables of a newer cdc-agent, and for a
    schema that the role may not make or fill.
    """
    if version_of(connection, schema) == len(steps):
        return
    with connection.transaction():
        connection.execute(_SQL["lock"], (schema,))
        _ensure_schema(connection, schema)
        version = version_of(connection, schema)
        if version > len(steps):
            raise LedgerError(
                f"the ledger in schema {schema} has version {version}, and this cdc-agent knows none after"
                f" {len(steps)}",
                hint="start the newer cdc-agent that wrote it, or restore the copy from before the upgrade",
            )
        for step in steps[version:]:
            # Ours, and without parameters: many statements in one.
            connection.execute(step.encode())
        connection.execute(_SQL["save_version"], (str(len(steps)),))


def put_aside(connection: psycopg.Connection[Any], schema: str, aside: str) -> None:
    """Rename the schema of a damaged ledger, so that it can be looked at."""
    connection.execute(
        sql.SQL(_SQL["rename_schema"]).format(schema=sql.Identifier(schema), aside=sql.Identifier(aside))
    )


def _ensure_schema(connection: psycopg.Connection[Any], schema: str) -> None:
    row = connection.execute(_SQL["find_schema"], (schema,)).fetchone()
    if row is None:
        connection.execute(sql.SQL(_SQL["create_schema"]).format(schema=sql.Identifier(schema)))
    elif not row[0]:
        raise LedgerError(
            f"role {connection.info.user} may not make tables in schema {schema}",
            hint=f"as its owner: {_grant(connection, schema)}",
        )


def _grant(connection: psycopg.Connection[Any], schema: str) -> str:
    statement = sql.SQL("grant usage, create on schema {} to {};")
    return statement.format(sql.Identifier(schema), sql.Identifier(connection.info.user)).as_string(connection)
