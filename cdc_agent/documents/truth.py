"""SQL's three truths: True, False, and None for unknown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

__all__ = ["Truth", "all_of", "any_of", "negation"]

Truth: TypeAlias = "bool | None"


def all_of(truths: Iterable[Truth]) -> Truth:
    """AND: false as soon as one is false, else unknown if one is unknown."""
    result: Truth = True
    for truth in truths:
        if truth is False:
            return False
        result = None if truth is None else result
    return result


def any_of(truths: Iterable[Truth]) -> Truth:
    """OR: true as soon as one is true, else unknown if one is unknown."""
    result: Truth = False
    for truth in truths:
        if truth is True:
            return True
        result = None if truth is None else result
    return result


def negation(truth: Truth) -> Truth:
    """NOT: unknown stays unknown."""
    return None if truth is None else not truth
