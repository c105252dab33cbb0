"""``where:`` of a collection: an SQL condition on one row, judged by us as Postgres would judge it.

sqlglot reads the SQL, nothing of it is executed: what is outside of the supported subset is a ``ConfigError`` when the
configuration is read. Owns how the pieces are put together and which types may meet. Which SQL is understood:
``grammar``; how values compare: ``comparison``; patterns: ``like``; three-valued logic: ``truth``.
"""

from __future__ import annotations

import decimal
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from sqlglot import exp

from cdc_agent.documents.comparison import Kind, common_kind, kind_of, list_kind, load_literal, order_key
from cdc_agent.documents.grammar import (
    CAST_KINDS,
    COMPARISONS,
    SUPPORTED,
    column_name,
    is_string,
    parse_condition,
    unnested,
    unsupported,
)
from cdc_agent.documents.like import folded, like_regex
from cdc_agent.documents.truth import Truth, all_of, any_of, negation
from cdc_agent.errors import ConfigError, RenderError
from cdc_agent.events import UNCHANGED, Relation, Row

__all__ = ["Predicate"]

_Condition: TypeAlias = Callable[[Row], Truth]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Operand:
    """One side of a comparison in the rows of one relation; ``literal`` is the text of a quoted literal."""

    kind: Kind
    read: Callable[[Row], Any]
    literal: str | None = None


class Predicate:
    """An SQL condition over the columns of one row. Unknown (NULL) is no match, as in WHERE.

    Agrees with Postgres on the supported subset, with three footnotes: strings order by code point (the "C"
    collation), a ``timestamptz`` literal without an offset is UTC, and columns of user-defined types (enums) can only
    be told apart. Types are checked against the first row of each relation: a comparison that the server would refuse
    is a ``ConfigError`` then. Safe to call from several threads.
    """

    __slots__ = ("_bound", "_tree", "columns", "sql")

    def __init__(self, sql: str) -> None:
        self.sql = sql
        self._tree = parse_condition(sql)
        self.columns = frozenset(column_name(column) for column in self._tree.find_all(exp.Column))
        self._bound: tuple[Relation, _Condition] | None = None
        # Shape and literals are checked now, with columns that compare with everything.
        _Binder(sql, None).condition(self._tree)

    def matches(self, row: Row) -> bool:
        """Whether the row is wanted. The caller resolves ``UNCHANGED`` first; meeting it is a ``ValueError``."""
        bound = self._bound
        if bound is None or bound[0] is not row.relation:
            bound = self._bound = row.relation, self._bind(row.relation)
        return bound[1](row) is True

    def check(self, relation: Relation) -> None:
        """Raise ``ConfigError`` unless the condition makes sense for rows of this relation."""
        self._bind(relation)

    def _bind(self, relation: Relation) -> _Condition:
        return _Binder(self.sql, relation).condition(self._tree)

    def __eq__(self, other: object) -> bool:
        return self.sql == other.sql if isinstance(other, Predicate) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.sql)

    def __repr__(self) -> str:
        return f"Predicate({self.sql!r})"


class _Binder:
    """Turns the tree into a function of a row, knowing the columns' types; without a relation it only checks."""

    def __init__(self, sql: str, relation: Relation | None) -> None:
        self._sql = sql
        self._relation = relation

    # Conditions ---------------------------------------------------------------------------------------------------

    def condition(self, node: exp.Expression) -> _Condition:
        build = self._builders.get(type(node))
        if build is None:
            return self._boolean_operand(node)
        condition = build(self, node)
        return _negated(condition) if node.args.get("negate") else condition

    def _boolean_operand(self, node: exp.Expression) -> _Condition:
        operand = self._operand(node)
        if operand.kind is Kind.UNKNOWN and operand.literal is not None:
            truth = bool(load_literal(Kind.BOOLEAN, operand.literal))
            return lambda _row: truth
        if operand.kind not in (Kind.BOOLEAN, Kind.UNKNOWN):
            raise self._error(node, f"is {operand.kind.value}, but a condition must be boolean")
        return operand.read

    def _and(self, node: exp.Expression) -> _Condition:
        parts = self._chain(node)
        return lambda row: all_of(part(row) for part in parts)

    def _or(self, node: exp.Expression) -> _Condition:
        parts = self._chain(node)
        return lambda row: any_of(part(row) for part in parts)

    def _chain(self, node: exp.Expression) -> list[_Condition]:
        """The links of ``a and b and c …``, side by side: one inside the other, a long chain is a deep tree."""
        links: list[exp.Expression] = []
        inner = node
        while type(inner) is type(node):
            links.append(inner.expression)
            inner = inner.this
        return [self.condition(link) for link in (inner, *reversed(links))]

    def _not(self, node: exp.Expression) -> _Condition:
        return _negated(self.condition(node.this))

    def _paren(self, node: exp.Expression) -> _Condition:
        return self.condition(node.this)

    def _is(self, node: exp.Expression) -> _Condition:
        wanted = node.expression
        if isinstance(wanted, exp.Null):
            read = self._nullable(node.this)
            return lambda row: read(row) is None
        if not isinstance(wanted, exp.Boolean):
            raise unsupported(self._sql, node)
        truth = bool(wanted.this)
        condition = self.condition(node.this)
        return lambda row: condition(row) is truth

    def _nullable(self, node: exp.Expression) -> Callable[[Row], Any]:
        """What IS NULL may ask about: a condition, or a value of any type."""
        inner = unnested(node)
        return self.condition(inner) if type(inner) in self._builders else self._operand(inner).read

    def _comparison(self, node: exp.Expression) -> _Condition:
        symbol, compare = COMPARISONS[type(node)]
        return self._compared(node, symbol, compare, self._operand(node.this), self._operand(node.expression))

    def _between(self, node: exp.Expression) -> _Condition:
        value, low, high = (self._operand(node.args[part]) for part in ("this", "low", "high"))
        above = self._compared(node, ">=", operator.ge, value, low)
        below = self._compared(node, "<=", operator.le, value, high)
        return lambda row: all_of(part(row) for part in (above, below))

    def _in(self, node: exp.Expression) -> _Condition:
        value = self._operand(node.this)
        constants = [self._operand(member) for member in node.expressions if member.find(exp.Column) is None]
        others = [self._operand(member) for member in node.expressions if member.find(exp.Column) is not None]
        if len(constants) > 1 and self._relation is not None:
            constants = self._of_one_kind(node, value, constants)
        members = [*constants, *others]
        tests = [self._compared(node, "=", operator.eq, value, member) for member in members]
        return lambda row: any_of(test(row) for test in tests)

    def _of_one_kind(self, node: exp.Expression, value: _Operand, constants: list[_Operand]) -> list[_Operand]:
        """The server settles on one type for the constants of a list, where a single one is compared as it is."""
        kind = list_kind([value.kind, *(constant.kind for constant in constants)])
        if kind is None:
            return constants
        return [
            _constant(kind, self._loaded(node, kind, constant.literal))
            if constant.literal is not None
            else _Operand(kind=kind, read=constant.read)
            for constant in constants
        ]

    def _like(self, node: exp.Expression) -> _Condition:
        return self._matching(node, "\\")

    def _escape(self, node: exp.Expression) -> _Condition:
        escape = node.expression
        if not isinstance(node.this, exp.Like | exp.ILike) or not is_string(escape) or len(escape.this) > 1:
            raise unsupported(self._sql, node)
        condition = self._matching(node.this, escape.this)
        return _negated(condition) if node.this.args.get("negate") else condition

    def _matching(self, node: exp.Expression, escape: str) -> _Condition:
        subject = self._operand(node.this)
        if subject.kind not in (Kind.TEXT, Kind.VARCHAR, Kind.CHAR, Kind.UNKNOWN):
            raise self._error(node, f"compares {subject.kind.value} with a pattern, but only text has patterns")
        if isinstance(node.expression, exp.Null):
            return lambda _row: None
        if not is_string(node.expression):
            raise self._error(node, "has a pattern that is no literal")
        fold = folded if isinstance(node, exp.ILike) else str
        pattern = self._pattern(node, fold(node.expression.this), escape)
        read = subject.read
        return lambda row: None if (text := read(row)) is None else pattern.fullmatch(fold(text)) is not None

    def _pattern(self, node: exp.Expression, like: str, escape: str) -> re.Pattern[str]:
        try:
            return like_regex(like, escape)
        except ValueError as exc:
            raise self._error(node, str(exc)) from exc

    # Values -------------------------------------------------------------------------------------------------------

    def _operand(self, node: exp.Expression) -> _Operand:  # noqa: PLR0911 (one line per kind of node is a table)
        node = unnested(node)
        if isinstance(node, exp.Column):
            return self._column(node)
        if isinstance(node, exp.Null):
            return _constant(Kind.UNKNOWN, None)
        if isinstance(node, exp.Boolean):
            return _constant(Kind.BOOLEAN, bool(node.this))
        if isinstance(node, exp.Literal):
            return _literal(node)
        if isinstance(node, exp.Neg):
            return self._negative(node)
        if isinstance(node, exp.Cast):
            return self._cast(node)
        if type(node) in self._builders:
            return _Operand(kind=Kind.BOOLEAN, read=self.condition(node))
        raise unsupported(self._sql, node)

    def _column(self, node: exp.Column) -> _Operand:
        name = column_name(node)
        if self._relation is None:
            return _Operand(kind=Kind.UNKNOWN, read=lambda _row: None)
        at = self._relation.index.get(name)
        if at is None:
            raise self._error(node, f"names a column that {self._relation.qualified_name} does not have")
        return _Operand(kind=kind_of(self._relation.columns[at].type_oid), read=lambda row: _value(row, name))

    def _negative(self, node: exp.Neg) -> _Operand:
        operand = self._operand(node.this)
        number = common_kind(operand.kind, Kind.DOUBLE) is Kind.DOUBLE
        if not number or operand.literal is not None:
            raise self._error(node, "negates something that is no number")
        read = operand.read
        # Decimal's own minus would round to the context's precision.
        return _Operand(kind=operand.kind, read=lambda row: None if (value := read(row)) is None else _minus(value))

    def _cast(self, node: exp.Cast) -> _Operand:
        kind = CAST_KINDS.get(str(node.to.this.name))
        inner = unnested(node.this)
        if kind is None or node.to.expressions:
            raise unsupported(self._sql, node)
        if isinstance(inner, exp.Null):
            return _constant(kind, None)
        if is_string(inner):
            return _constant(kind, load_literal(kind, inner.this))
        if isinstance(inner, exp.Literal) and kind in (Kind.NUMERIC, Kind.DOUBLE):
            return _constant(kind, load_literal(kind, inner.this))
        raise self._error(node, "casts something that is no quoted literal")

    def _compared(
        self, node: exp.Expression, symbol: str, compare: Callable[[Any, Any], bool], left: _Operand, right: _Operand
    ) -> _Condition:
        kind = common_kind(left.kind, right.kind)
        if kind is None or (kind is Kind.LABEL and symbol not in ("=", "<>")):
            raise self._error(node, f"compares {left.kind.value} {symbol} {right.kind.value}, which we cannot")
        # While only the shape is checked, a column may still turn out to be anything, and so may a literal beside it.
        if self._relation is None and Kind.UNKNOWN in (left.kind, right.kind):
            return lambda _row: None
        read_left, read_right = self._key_reader(node, kind, left), self._key_reader(node, kind, right)

        def condition(row: Row) -> Truth:
            mine = read_left(row)
            theirs = None if mine is None else read_right(row)
            return None if theirs is None else compare(mine, theirs)

        return condition

    def _key_reader(self, node: exp.Expression, kind: Kind, operand: _Operand) -> Callable[[Row], Any]:
        if operand.literal is not None:
            key = order_key(kind, kind, self._loaded(node, kind, operand.literal))
            return lambda _row: key
        read, own = operand.read, operand.kind
        return lambda row: None if (value := read(row)) is None else order_key(kind, own, value)

    def _loaded(self, node: exp.Expression, kind: Kind, literal: str) -> Any:
        try:
            return load_literal(kind, literal)
        except ConfigError as exc:
            raise ConfigError(
                f"the predicate {self._sql!r}: {node.sql(dialect='postgres')!r}: {exc.message}", hint=exc.hint
            ) from exc

    def _error(self, node: exp.Expression, complaint: str) -> ConfigError:
        piece = node.sql(dialect="postgres")
        return ConfigError(f"the predicate {self._sql!r}: {piece!r} {complaint}", hint=SUPPORTED)

    _builders: Final[dict[type[exp.Expression], Callable[[_Binder, exp.Expression], _Condition]]] = {
        exp.And: _and,
        exp.Or: _or,
        exp.Not: _not,
        exp.Paren: _paren,
        exp.Is: _is,
        exp.In: _in,
        exp.Between: _between,
        exp.Like: _like,
        exp.ILike: _like,
        exp.Escape: _escape,
        **dict.fromkeys(COMPARISONS, _comparison),
    }


def _negated(condition: _Condition) -> _Condition:
    return lambda row: negation(condition(row))


def _value(row: Row, name: str) -> Any:
    try:
        value = row[name]
    except UnicodeDecodeError as exc:
        raise RenderError(
            f"column {name!r} holds bytes that are no UTF-8, so the predicate cannot judge the row",
            hint="the database's encoding lets them in (SQL_ASCII?); mend the row",
        ) from exc
    if value is UNCHANGED:
        raise ValueError(f"column {name!r} is UNCHANGED: resolve it before judging the row")
    return value


def _constant(kind: Kind, value: Any) -> _Operand:
    return _Operand(kind=kind, read=lambda _row: value)


def _literal(node: exp.Literal) -> _Operand:
    text = str(node.this)
    if node.is_string:
        return _Operand(kind=Kind.UNKNOWN, read=lambda _row: text, literal=text)
    if text.isascii() and text.isdigit():
        return _constant(Kind.INTEGER, int(text))
    return _constant(Kind.NUMERIC, load_literal(Kind.NUMERIC, text))


def _minus(value: Any) -> Any:
    return value.copy_negate() if isinstance(value, decimal.Decimal) else -value
