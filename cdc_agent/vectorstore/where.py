"""Chroma's filter language, evaluated in Python: what matches, and what is not a filter at all. Pure.

Found by asking chromadb 1.5.9, not from its documentation; tests/contract asks it again. A record without the key
matches ``$ne`` and ``$nin``. An integer in the store is compared with the operand cut to an integer, so ``1`` matches
``{"$eq": 1.5}``.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cdc_agent.errors import StoreRejected

__all__ = ["FilterRefused", "check_where", "matches"]

_ORDER: dict[str, Callable[[Any, Any], bool]] = {
    "$gt": operator.gt,
    "$gte": operator.ge,
    "$lt": operator.lt,
    "$lte": operator.le,
}
#: Those that ask inside a list. No scalar is a list, so nothing contains and everything does not contain.
_INSIDE = ("$contains", "$not_contains")
_SCALAR = (str, int, float, bool)


class FilterRefused(StoreRejected):
    """A filter that no store takes. ``reason`` says why, without saying where in the filter."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the search filter is refused: {reason}", hint='for example {"lang": "en"}')
        self.reason = reason


def check_where(where: Mapping[str, Any]) -> None:
    """Raise ``FilterRefused`` for a filter that Chroma would refuse."""
    if len(where) != 1:
        raise _refused("a filter has exactly one key; join several with $and")
    [(key, condition)] = where.items()
    if key in ("$and", "$or"):
        _check_branches(key, condition)
    else:
        _check_condition(*_operator_and_operand(condition))


def matches(where: Mapping[str, Any], metadata: Mapping[str, Any]) -> bool:
    """Whether a record with this metadata passes the filter; the filter passed ``check_where``."""
    [(key, condition)] = where.items()
    if key == "$and":
        return all(matches(branch, metadata) for branch in condition)
    if key == "$or":
        return any(matches(branch, metadata) for branch in condition)
    return _holds(*_operator_and_operand(condition), metadata.get(key))


def _check_branches(key: str, branches: Any) -> None:
    if not isinstance(branches, list) or len(branches) < 2:
        raise _refused(f"{key} takes a list of at least two filters")
    for branch in branches:
        check_where(branch)


def _check_condition(name: str, operand: Any) -> None:
    if name in ("$in", "$nin"):
        _check_list(operand)
    elif name in _ORDER:
        if isinstance(operand, bool) or not isinstance(operand, (int, float)):
            raise _refused(f"{name} takes a number")
    elif name not in ("$eq", "$ne", *_INSIDE):
        raise _refused(f"there is no operator {name}")
    elif isinstance(operand, list):
        raise _refused(f"{name} takes one value; a list goes with $in or $nin")
    elif not isinstance(operand, _SCALAR):
        raise _refused(f"{name} takes a text, number or boolean")


def _check_list(operand: Any) -> None:
    if not isinstance(operand, list) or not operand or len({type(value) for value in operand}) != 1:
        raise _refused("$in and $nin take a list of values of one type that is not empty")
    if not isinstance(operand[0], _SCALAR):
        raise _refused("$in and $nin take texts, numbers or booleans")


def _operator_and_operand(condition: Any) -> tuple[str, Any]:
    if not isinstance(condition, Mapping):
        return "$eq", condition
    if len(condition) != 1:
        raise _refused("a condition has exactly one operator; join several with $and")
    [pair] = condition.items()
    return pair


def _holds(name: str, operand: Any, value: Any) -> bool:
    if name in _INSIDE:
        return name == "$not_contains"
    if name in ("$in", "$nin"):
        return _is_one_of(operand, value) == (name == "$in")
    if name in ("$eq", "$ne"):
        return _is_one_of([operand], value) == (name == "$eq")
    return _comparable(value, operand) and _ORDER[name](value, type(value)(operand))


def _is_one_of(operands: Sequence[Any], value: Any) -> bool:
    return any(_comparable(value, operand) and value == type(value)(operand) for operand in operands)


def _comparable(value: Any, operand: Any) -> bool:
    """Text with text, boolean with boolean, number with number."""
    if isinstance(value, bool) or isinstance(operand, bool):
        return isinstance(value, bool) and isinstance(operand, bool)
    if isinstance(value, str) or isinstance(operand, str):
        return isinstance(value, str) and isinstance(operand, str)
    return value is not None


def _refused(reason: str) -> FilterRefused:
    return FilterRefused(reason)
