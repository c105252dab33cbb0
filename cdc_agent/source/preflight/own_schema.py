"""The ledger's own tables, where they lie in the database that is followed: the log must not send them.

Every flip would come back as a change, and the change as a flip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

from cdc_agent.source.connection import classify, connect
from cdc_agent.source.preflight.facts import Oid, TableName, ask
from cdc_agent.source.preflight.findings import Finding, failed, passed, quote

_NAME = "ledger's tables"
#: From this version on a publication can hold whole schemas.
_HOLDS_SCHEMAS = 150_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    system_id: str
    database_oid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AllTables:
    all_tables: bool


def own_tables(
    dsn: str,
    *,
    publication_name: str | None,
    tables: Sequence[tuple[str, str]],
    schema: str,
    database: tuple[str, int],
) -> Finding:
    """Whether the source leaves a schema of ours alone, which lies in ``database`` (system identifier and oid).

    ``publication_name`` is None for a plugin that sends whole schemas of the watched tables. Raises ``SourceError``.
    """
    try:
        with connect(dsn) as connection:
            if ask(connection, Place, "place") != [Place(system_id=database[0], database_oid=database[1])]:
                return passed(_NAME, "the ledger lies in another database than the source")
            if any(table[0] == schema for table in tables):
                return failed(_NAME, f"a collection is made of a table in {schema}", "give ledger.schema_name another")
            if publication_name is None:
                return passed(_NAME, f"schema {schema} is not followed")
            return _published(connection, publication_name, schema)
    except psycopg.Error as exc:
        raise classify(exc) from exc


def _published(connection: psycopg.Connection[Any], publication: str, schema: str) -> Finding:
    name = quote(publication)
    if AllTables(all_tables=True) in ask(connection, AllTables, "publishes_all", publication=publication):
        return failed(
            _NAME,
            f"publication {publication} is for all tables, and would send the ledger's own in schema {schema}",
            "put the ledger into another database, or name the tables: "
            f"drop publication {name}; create publication {name} for table ...; (the slot must be made again then)",
        )
    if _holds_schema(connection, publication, schema):
        return failed(
            _NAME,
            f"publication {publication} holds schema {schema}, the ledger's own",
            f"run as its owner: alter publication {name} drop tables in schema {quote(schema)};",
        )
    if found := ask(connection, TableName, "published_of_schema", publication=publication, schema=schema):
        sent = ", ".join(quote(table.schema, table.name) for table in found)
        return failed(
            _NAME,
            f"publication {publication} sends tables of the ledger's own",
            f"run as its owner: alter publication {name} drop table {sent};",
        )
    return passed(_NAME, f"publication {publication} leaves schema {schema} alone")


def _holds_schema(connection: psycopg.Connection[Any], publication: str, schema: str) -> bool:
    if connection.info.server_version < _HOLDS_SCHEMAS:
        return False
    held = ask(connection, Oid, "published_schemas", publication=publication)
    named = ask(connection, Oid, "schema_named", schema=schema)
    return any(one in held for one in named)
