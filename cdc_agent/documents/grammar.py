"""Which SQL a ``Predicate`` understands: sqlglot's tree, checked piece by piece.

A piece that is not listed here, or carries a part that is not listed with it, is refused, not half understood.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from typing import Any, Final

import sqlglot
from sqlglot import exp

from cdc_agent.documents.comparison import Kind
from cdc_agent.errors import ConfigError

__all__ = [
    "CAST_KINDS",
    "COMPARISONS",
    "SUPPORTED",
    "column_name",
    "is_string",
    "parse_condition",
    "unnested",
    "unsupported",
]

SUPPORTED: Final = (
    "supported are columns, literals, = <> < <= > >=, and, or, not, is [not] null/true/false, [not] in (…), "
    "[not] between, [not] like/ilike, and casts of literals; anything else fits into a generated column or a view"
)

COMPARISONS: Final[dict[type[exp.Expression], tuple[str, Callable[[Any, Any], bool]]]] = {
    exp.EQ: ("=", operator.eq),
    exp.NEQ: ("<>", operator.ne),
    exp.LT: ("<", operator.lt),
    exp.LTE: ("<=", operator.le),
    exp.GT: (">", operator.gt),
    exp.GTE: (">=", operator.ge),
}
#: The parts of each piece that we understand; one that carries another part is refused, not half understood.
_PARTS: Final[dict[type[exp.Expression], frozenset[str]]] = {
    **{comparison: frozenset({"this", "expression"}) for comparison in COMPARISONS},
    exp.And: frozenset({"this", "expression"}),
    exp.Or: frozenset({"this", "expression"}),
    exp.Not: frozenset({"this"}),
    exp.Paren: frozenset({"this"}),
    exp.Is: frozenset({"this", "expression", "negate"}),
    exp.In: frozenset({"this", "expressions", "negate"}),
    exp.Between: frozenset({"this", "low", "high", "negate"}),
    exp.Like: frozenset({"this", "expression", "negate"}),
    exp.ILike: frozenset({"this", "expression", "negate"}),
    exp.Escape: frozenset({"this", "expression"}),
    exp.Column: frozenset({"this"}),
    exp.Identifier: frozenset({"this", "quoted"}),
    exp.Literal: frozenset({"this", "is_string"}),
    exp.Boolean: frozenset({"this"}),
    exp.Null: frozenset(),
    exp.Neg: frozenset({"this"}),
    exp.Cast: frozenset({"this", "to"}),
    exp.DataType: frozenset({"this", "nested"}),
}
#: What a literal may be cast to, by sqlglot's names.
CAST_KINDS: Final = {
    "BOOLEAN": Kind.BOOLEAN,
    "SMALLINT": Kind.INTEGER,
    "INT": Kind.INTEGER,
    "BIGINT": Kind.INTEGER,
    "DECIMAL": Kind.NUMERIC,
    "FLOAT": Kind.REAL,
    "DOUBLE": Kind.DOUBLE,
    "TEXT": Kind.TEXT,
    "VARCHAR": Kind.VARCHAR,
    "DATE": Kind.DATE,
    "TIMESTAMP": Kind.TIMESTAMP,
    "TIMESTAMPTZ": Kind.TIMESTAMPTZ,
    "TIME": Kind.TIME,
    "UUID": Kind.UUID,
}
#: Without quotes these words are functions of the server, not columns.
_NOT_COLUMNS: Final = frozenset(
    {"user", "session_user", "current_user", "current_role", "current_catalog", "current_schema"}
    | {"current_date", "current_time", "current_timestamp", "localtime", "localtimestamp", "default"}
)


#: How deep a condition may nest: it is checked, bound and asked by functions that call themselves.
DEEPEST: Final = 400


def parse_condition(sql: str) -> exp.Expression:
    """The tree of one condition. Raises ``ConfigError`` for anything else, however deep it nests."""
    try:
        trees = sqlglot.parse(sql, read="postgres")
    except RecursionError:
        raise _too_deep(sql) from None
    except sqlglot.errors.SqlglotError as exc:
        raise ConfigError(f"the predicate {sql!r} is no SQL condition: {_first_line(exc)}", hint=SUPPORTED) from exc
    if len(trees) != 1 or not isinstance(trees[0], exp.Expression):
        raise ConfigError(f"the predicate {sql!r} is not one SQL condition", hint=SUPPORTED)
    if _is_too_deep(trees[0]):
        raise _too_deep(sql)
    for node in trees[0].walk():
        if not isinstance(node, exp.Expression) or not _is_supported(node):
            raise unsupported(sql, node)
    return trees[0]


def _is_too_deep(tree: exp.Expression) -> bool:
    level: list[exp.Expression] = [tree]
    for _ in range(DEEPEST):
        level = [child for node in level for child in node.iter_expressions()]
        if not level:
            return False
    return True


def _too_deep(sql: str) -> ConfigError:
    return ConfigError(f"the predicate {sql[:60]!r}… nests too deeply", hint="use fewer parentheses, or `in (…)`")


def _first_line(exc: Exception) -> str:
    """sqlglot underlines the place with terminal colours, which no log wants."""
    return re.sub(r"\x1b\[[0-9;]*m", "", str(exc)).splitlines()[0]


def _is_supported(node: exp.Expression) -> bool:
    parts = _PARTS.get(type(node))
    if parts is None or any(name not in parts for name, part in node.args.items() if part):
        return False
    return not (isinstance(node, exp.Column) and not node.this.args.get("quoted") and column_name(node) in _NOT_COLUMNS)


def unsupported(sql: str, node: Any) -> ConfigError:
    piece = node.sql(dialect="postgres") if isinstance(node, exp.Expression) else str(node)
    return ConfigError(f"the predicate {sql!r} has {piece!r} ({type(node).__name__}), not supported", hint=SUPPORTED)


def column_name(column: exp.Expression) -> str:
    """Without quotes Postgres folds to lower case."""
    identifier = column.this
    name: str = identifier.this
    return name if identifier.args.get("quoted") else name.lower()


def is_string(node: exp.Expression) -> bool:
    return isinstance(node, exp.Literal) and bool(node.is_string)


def unnested(node: exp.Expression) -> exp.Expression:
    """What stands inside of the parentheses."""
    while isinstance(node, exp.Paren):
        node = node.this
    return node
