"""The publication: covers the tables, publishes every kind of change, hides nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import psycopg

from cdc_agent.source.preflight.facts import (
    Catalog,
    Oid,
    Publication,
    Published,
    Relation,
    Role,
    Server,
    Slot,
    Wanted,
    ask,
)
from cdc_agent.source.preflight.findings import Finding, failed, literal, passed, quote
from cdc_agent.source.preflight.keys import key_of


def absent_publication(wanted: Wanted, role: Role, sound: Sequence[Relation], slot: Slot | None) -> Finding:
    name = wanted.publication_name
    if slot is not None and slot.plugin == wanted.plugin:
        return _publication_lost(name, wanted.slot_name)
    if role.may_create and all(root.is_ours for root in sound):
        return passed("publication", f"publication {name} will be created")
    tables = ", ".join(root.quoted for root in sound)
    return failed(
        "publication",
        f"there is no publication {name}, and role {role.name} may not create it: that takes the ownership of "
        f"every table and the right to create in database {role.database}",
        f"run as a superuser: create publication {quote(name)} for table {tables};",
    )


def _publication_lost(name: str, slot_name: str) -> Finding:
    """The log is decoded with the catalog of its time: a publication made now does not mend a slot from before."""
    return failed(
        "publication",
        f"slot {slot_name} exists and its publication {name} does not; the slot can never be read again",
        f"give up the slot, check again, then resync: select pg_drop_replication_slot({literal(slot_name)});",
    )


def publication_findings(
    connection: psycopg.Connection[Any],
    publication: Publication,
    wanted: Wanted,
    server: Server,
    catalog: Catalog,
    sound: Sequence[Relation],
) -> Iterator[Finding]:
    name = wanted.publication_name
    schemas = _published_schemas(connection, name, server)
    missing = [root for root in sound if not _covers(publication, schemas, root)]
    yield _coverage(name, publication, missing)
    yield from _hidden_parts(connection, wanted, catalog, sound)
    # Last, for Postgres turns publish_via_partition_root off only once no partitioned table has a row filter.
    yield from _options(name, publication)


def _hidden_parts(
    connection: psycopg.Connection[Any], wanted: Wanted, catalog: Catalog, sound: Sequence[Relation]
) -> Iterator[Finding]:
    name, oids = wanted.publication_name, list(catalog.columns)
    published = {p.oid: p for p in ask(connection, Published, "published_tables", publication=name, oids=oids)}
    for root in sound:
        for relation in (root, *catalog.leaves[root.oid]):
            # A generated column may be absent without any column list; that is a question of its own.
            generated = {column.name for column in catalog.columns[relation.oid] if column.generated}
            if relation.oid in published:
                needed = columns_needed(root, wanted, catalog) - generated
                yield from _hidden(name, relation, published[relation.oid], needed)


def _options(name: str, publication: Publication) -> Iterator[Finding]:
    sends = {
        "insert": publication.inserts,
        "update": publication.updates,
        "delete": publication.deletes,
        "truncate": publication.truncates,
    }
    lacking = [what for what, is_sent in sends.items() if not is_sent]
    if lacking:
        yield failed(
            "publication",
            f"publication {name} does not send: {', '.join(lacking)}",
            f"run as its owner: alter publication {quote(name)} set (publish = 'insert, update, delete, truncate');",
        )
    if publication.via_root:
        yield failed(
            "publication",
            f"publication {name} publishes via partition roots, which hides the truncation of one partition",
            f"run as its owner: alter publication {quote(name)} set (publish_via_partition_root = false);",
        )


def _published_schemas(connection: psycopg.Connection[Any], name: str, server: Server) -> set[int]:
    if server.version_num < 150000:
        return set()
    return {schema.oid for schema in ask(connection, Oid, "published_schemas", publication=name)}


def _covers(publication: Publication, schemas: set[int], root: Relation) -> bool:
    """Leaves named one by one do not count: the next partition would be missing."""
    by_name = set(publication.relation_oids) & set(root.ancestor_oids)
    return publication.all_tables or bool(by_name) or bool(schemas & set(root.ancestor_schema_oids))


def _coverage(name: str, publication: Publication, missing: Sequence[Relation]) -> Finding:
    names = ", ".join(map(str, missing))
    if not missing:
        return passed("publication", f"publication {name} holds every table")
    if publication.is_ours and all(root.is_ours for root in missing):
        return passed("publication", f"{names} will be added to publication {name}")
    tables = ", ".join(root.quoted for root in missing)
    return failed(
        "publication",
        f"publication {name} does not hold {names}, and we may not add what others own",
        f"run as a superuser: alter publication {quote(name)} add table {tables};",
    )


def columns_needed(root: Relation, wanted: Wanted, catalog: Catalog) -> set[str]:
    key = key_of(root, catalog.indexes[root.oid]) or ()
    return {*wanted.columns.get((root.schema, root.name), ()), *key}


def _hidden(name: str, relation: Relation, published: Published, needed: set[str]) -> Iterator[Finding]:
    publication, table = quote(name), relation.quoted
    # Both in one transaction: a change that commits between them would never be sent.
    anew = " ".join(f"alter publication {publication} {verb} table {table};" for verb in ("drop", "add"))
    if published.row_filter:
        yield failed(
            f"publication of {relation}",
            f"publication {name} sends only rows where {published.row_filter}; use `where:` in the collection",
            f"run as its owner: begin; {anew} commit;",
        )
    unsent = needed - set(published.columns) if published.columns is not None else set()
    if unsent:
        yield failed(
            f"publication of {relation}",
            f"publication {name} has a column list without {', '.join(sorted(unsent))}",
            f"run as its owner: begin; {anew} commit;",
        )
