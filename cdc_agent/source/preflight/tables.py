"""The tables: there, ordinary, readable, with the columns that documents are made of."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any

import psycopg

from cdc_agent.source.preflight.facts import Catalog, Publication, Relation, Role, Server, Slot, TableName, Wanted, ask
from cdc_agent.source.preflight.findings import Finding, failed, passed, quote
from cdc_agent.source.preflight.generated import generated_findings
from cdc_agent.source.preflight.keys import identity_findings
from cdc_agent.source.preflight.kinds import unsuitable
from cdc_agent.source.preflight.publication import absent_publication, publication_findings


def table_findings(
    connection: psycopg.Connection[Any], wanted: Wanted, server: Server, role: Role, slot: Slot | None
) -> Iterator[Finding]:
    catalog = Catalog.read(connection, wanted)
    sound: list[Relation] = []
    for table in wanted.tables:
        root = catalog.roots.get(table)
        existence = _suitable(root) if root else _missing(connection, table)
        yield existence
        if root and existence.ok:
            sound.append(root)
            yield from _one_table(root, catalog, wanted, role)
    publication = None
    # wal2json reads every table and knows no publications.
    if wanted.plugin == "pgoutput" and sound:
        publication = next(iter(ask(connection, Publication, "publication", publication=wanted.publication_name)), None)
        if publication is None:
            yield absent_publication(wanted, role, sound, slot)
        else:
            yield from publication_findings(connection, publication, wanted, server, catalog, sound)
    for root in sound:
        yield from generated_findings(root, publication, wanted, server, catalog)


def _one_table(root: Relation, catalog: Catalog, wanted: Wanted, role: Role) -> Iterator[Finding]:
    yield _readable(root, role)
    if root.hides_rows:
        yield _hidden_rows(root, role)
    yield from identity_findings(root, catalog)
    yield from _columns(root, catalog, wanted)


def _missing(connection: psycopg.Connection[Any], table: tuple[str, str]) -> Finding:
    schema, name = table
    all_names = ask(connection, TableName, "table_names")
    near = difflib.get_close_matches(name, [t.name for t in all_names if t.schema == schema], n=1)
    suggestions = [(schema, found) for found in near] or [(t.schema, t.name) for t in all_names if t.name == name]
    hint = f"correct `table:` in the configuration, or create {quote(schema, name)}"
    if suggestions:
        hint = "write `table: " + " or ".join(".".join(found) for found in suggestions) + "`"
    return failed(f"table {schema}.{name}", "there is no such table", hint)


#: Relations that look like tables and whose changes no log holds, by pg_class.relkind.
def _suitable(relation: Relation) -> Finding:
    fault, hint = unsuitable(relation) or ("", "")
    kind = "a partitioned table" if relation.kind == "p" else "an ordinary table"
    return Finding(name=f"table {relation}", ok=not fault, message=fault or f"is {kind}", hint=hint)


def _readable(relation: Relation, role: Role) -> Finding:
    if relation.may_select:
        return passed(f"select on {relation}", f"role {role.name} may read it")
    user = quote(role.name)
    return failed(
        f"select on {relation}",
        f"role {role.name} may not read it; the first copy and every resync would fail",
        f"run as {relation.owner}: grant usage on schema {quote(relation.schema)} to {user}; "
        f"grant select on table {relation.quoted} to {user};",
    )


def _hidden_rows(relation: Relation, role: Role) -> Finding:
    return failed(
        f"rows of {relation}",
        f"row security hides rows from {role.name} that the log shows; a resync would delete their documents",
        f"run as a superuser: alter role {quote(role.name)} bypassrls;",
    )


def _columns(root: Relation, catalog: Catalog, wanted: Wanted) -> Iterator[Finding]:
    needed = wanted.columns.get((root.schema, root.name), ())
    present = [column.name for column in catalog.columns[root.oid]]
    missing = [name for name in needed if name not in present]
    if needed and not missing:
        yield passed(f"columns of {root}", f"has {', '.join(needed)}")
    for name in missing:
        near = difflib.get_close_matches(name, present, n=1)
        hint = f"write {near[0]} in place of {name}" if near else f"its columns are {', '.join(present)}"
        yield failed(f"columns of {root}", f"there is no column {name}", hint)
