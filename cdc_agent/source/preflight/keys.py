"""Document keys: what tells one row of a table from another, in the log and in a read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cdc_agent.source.preflight.facts import Catalog, Index, Relation
from cdc_agent.source.preflight.findings import Finding, comma_list, failed, passed, quote
from cdc_agent.source.preflight.kinds import unsuitable


def identity_findings(root: Relation, catalog: Catalog) -> Iterator[Finding]:
    """The table must be able to say which row changed; each leaf partition must say it with the same columns."""
    indexes, leaves = catalog.indexes[root.oid], catalog.leaves[root.oid]
    unfit = [leaf for leaf in leaves if unsuitable(leaf)]
    # First, for a partition on another server keeps the table from having a key at all.
    yield from map(_unsuitable_leaf, unfit)
    key = key_of(root, indexes)
    if key is None:
        yield _no_key(root, indexes)
        return
    yield passed(f"key of {root}", f"rows are known by {', '.join(key)}")
    for leaf in leaves:
        if leaf not in unfit:
            yield _leaf_key(leaf, catalog.indexes[leaf.oid], key)


def _unsuitable_leaf(leaf: Relation) -> Finding:
    message, hint = unsuitable(leaf) or ("", "")
    if leaf.kind == "f":
        hint = f"run as {leaf.owner}: alter table {leaf.parent} detach partition {leaf.quoted};"
    return failed(f"partition {leaf}", message, hint)


def key_of(relation: Relation, indexes: Sequence[Index]) -> tuple[str, ...] | None:
    """The columns that identify a row in every update and delete, or None."""
    if relation.identity == "n":
        return None
    by_index = relation.identity == "i"
    chosen = (index for index in indexes if (index.is_identity if by_index else index.is_primary))
    return next((tuple(index.columns) for index in chosen if index.fault is None), None)


def _no_key(relation: Relation, indexes: Sequence[Index]) -> Finding:
    statements = _give_key(relation, indexes)
    return failed(
        f"key of {relation}",
        f"{_why_no_key(relation, indexes)}; the log would not say which row an update or delete means",
        f"run as {relation.owner}: {statements}",
    )


def _why_no_key(relation: Relation, indexes: Sequence[Index]) -> str:
    if relation.identity == "n":
        return "its replica identity is nothing"
    if relation.identity == "i":
        return "the index of its replica identity was dropped"
    faulty = "".join(f", unique index {index.name} {index.fault}" for index in indexes if index.fault)
    primary = "its primary key cannot serve" if any(i.is_primary for i in indexes) else "it has no primary key"
    return primary + faulty


def _give_key(relation: Relation, indexes: Sequence[Index]) -> str:
    """The mildest SQL that gives the table an identity: use what is there, then add an index, then a column."""
    table = relation.quoted
    primary = next((index for index in indexes if index.is_primary), None)
    if primary and primary.fault is None:
        return f"alter table {table} replica identity default;"
    fit = next((index for index in indexes if index.fault is None), None)
    if fit:
        return _use_index(relation, fit.name)
    if primary:
        # Foreign keys may hang on a deferrable primary key, so it stays and gets a companion.
        name = f"{relation.name[:50]}_cdc_key"
        create = f"create unique index {quote(name)} on {table} ({comma_list(primary.columns)});"
        return f"{create} {_use_index(relation, name)}"
    nullable = next((index for index in indexes if index.fault == "has nullable columns"), None)
    if nullable:
        changes = ", ".join(f"alter column {quote(column)} set not null" for column in nullable.columns)
        return f"alter table {table} {changes}; {_use_index(relation, nullable.name)}"
    return f"add a primary key over the columns that identify a row; if none do: {_add_key(relation)}"


def _add_key(relation: Relation) -> str:
    table = relation.quoted
    # The key of a partitioned table must contain the columns that it is partitioned by.
    add = "add column cdc_id bigint generated always as identity primary key"
    if relation.kind == "p":
        key = comma_list(["cdc_id", *relation.partition_columns])
        add = f"add column cdc_id uuid not null default gen_random_uuid(), add primary key ({key})"
    # Nothing, or a dropped index, would stay the identity beside the new key.
    then = f" alter table {table} replica identity default;" if relation.identity in ("n", "i") else ""
    return f"alter table {table} {add};{then}"


def _use_index(relation: Relation, index: str) -> str:
    return f"alter table {relation.quoted} replica identity using index {quote(index)};"


def _leaf_key(leaf: Relation, indexes: Sequence[Index], key: tuple[str, ...]) -> Finding:
    own = key_of(leaf, indexes)
    if own is not None and set(own) == set(key):
        return passed(f"partition {leaf}", "rows are known by the same columns")
    told = f"identifies rows by {', '.join(own)}" if own else _why_no_key(leaf, indexes)
    return failed(
        f"partition {leaf}",
        f"{told}, the partitioned table by {', '.join(key)}",
        f"run as {leaf.owner}: {_same_key(leaf, indexes, key)}",
    )


def _same_key(leaf: Relation, indexes: Sequence[Index], key: tuple[str, ...]) -> str:
    fit = next((index for index in indexes if index.fault is None and set(index.columns) == set(key)), None)
    if fit is None:
        return _give_key(leaf, indexes)
    return f"alter table {leaf.quoted} replica identity default;" if fit.is_primary else _use_index(leaf, fit.name)
