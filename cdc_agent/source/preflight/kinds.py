"""Which kinds of relation can hold documents, and why the others cannot."""

from __future__ import annotations

from cdc_agent.source.preflight.facts import Relation

_NOT_TABLES = {
    "v": ("a view", "name a table that it reads"),
    "m": ("a materialized view", "name a table that it reads"),
    "f": ("a foreign table", "let source.dsn lead to the server that holds its rows"),
}


def unsuitable(relation: Relation) -> tuple[str, str] | None:
    table = relation.quoted
    if relation.kind not in ("r", "p"):
        what, hint = _NOT_TABLES.get(relation.kind, ("no table", "name a table"))
        return f"is {what}, its changes are not in the log", hint
    if relation.persistence == "t":
        return "is a temporary table, it is never in the log", "name an ordinary table"
    if relation.persistence == "u":
        return (
            "is unlogged, its changes are not in the log",
            f"run as {relation.owner}: alter table {table} set logged;",
        )
    if not relation.is_publishable:
        return "is a system table, its changes are not published", "name a table of your own"
    if relation.children:
        cuts = " ".join(f"alter table {child} no inherit {table};" for child in relation.children)
        return (
            f"has tables that inherit from it ({', '.join(relation.children)}); their changes come under other names",
            f"make them partitions, or run as {relation.owner} and name each as a table: {cuts}",
        )
    return None
