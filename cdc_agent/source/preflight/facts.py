"""What is asked for, and what the server's catalogs answer: plain facts, read by the rules beside this file."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import psycopg
from psycopg.rows import class_row

from cdc_agent import queries
from cdc_agent.source.preflight.findings import quote

SQL = queries.load("cdc_agent.source.preflight", "preflight.sql")


_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Wanted:
    slot_name: str
    publication_name: str
    plugin: str
    tables: tuple[tuple[str, str], ...]
    columns: Mapping[tuple[str, str], Collection[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    version_num: int
    version: str
    in_recovery: bool
    wal_level: str
    raises_wal_level: bool
    max_slots: int
    used_slots: int
    idle_slots: Sequence[str]
    max_senders: int
    used_senders: int
    max_slot_wal_keep_size: str
    plugin_libraries: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    name: str
    is_superuser: bool
    may_create_databases: bool
    may_create_roles: bool
    bypasses_rls: bool
    may_replicate: bool
    on_rds: bool
    has_rds_replication: bool
    database: str
    may_create: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    type: str
    plugin: str | None
    database: str | None
    active_pid: int | None
    wal_status: str | None
    invalidation_reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Relation:
    root_oid: int
    oid: int
    schema: str
    name: str
    kind: str
    persistence: str
    identity: str
    is_publishable: bool
    owner: str
    is_ours: bool
    may_select: bool
    hides_rows: bool
    ancestor_oids: Sequence[int]
    ancestor_schema_oids: Sequence[int]
    children: Sequence[str]
    parent: str | None
    partition_columns: Sequence[str]

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"

    @property
    def quoted(self) -> str:
        return quote(self.schema, self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    relation_oid: int
    name: str
    is_primary: bool
    is_identity: bool
    columns: Sequence[str]
    fault: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    relation_oid: int
    name: str
    generated: str
    expression: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    all_tables: bool
    inserts: bool
    updates: bool
    deletes: bool
    truncates: bool
    via_root: bool
    sends_generated: bool
    is_ours: bool
    relation_oids: Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    oid: int
    row_filter: str | None
    columns: Sequence[str] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TableName:
    schema: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Oid:
    oid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Writer:
    pid: int | None
    gid: str | None
    role: str
    database: str
    application: str
    age: int


def ask(connection: psycopg.Connection[Any], kind: type[_T], query: str, **params: object) -> list[_T]:
    with connection.cursor(row_factory=class_row(kind)) as cursor:
        return cursor.execute(SQL[query], params).fetchall()


@dataclass(frozen=True, slots=True)
class Catalog:
    """The wanted tables that exist, and what belongs to them, by oid."""

    roots: Mapping[tuple[str, str], Relation]
    leaves: Mapping[int, Sequence[Relation]]
    indexes: Mapping[int, Sequence[Index]]
    columns: Mapping[int, Sequence[Column]]

    @classmethod
    def read(cls, connection: psycopg.Connection[Any], wanted: Wanted) -> Catalog:
        schemas, names = [schema for schema, _ in wanted.tables], [name for _, name in wanted.tables]
        relations = ask(connection, Relation, "relations", schemas=schemas, names=names)
        oids = [relation.oid for relation in relations]
        indexes = ask(connection, Index, "unique_indexes", oids=oids)
        columns = ask(connection, Column, "columns", oids=oids)
        return cls(
            {(r.schema, r.name): r for r in relations if r.oid == r.root_oid},
            {oid: [r for r in relations if r.root_oid == oid and r.oid != oid] for oid in oids},
            {oid: [index for index in indexes if index.relation_oid == oid] for oid in oids},
            {oid: [column for column in columns if column.relation_oid == oid] for oid in oids},
        )
