"""What one token may do and see: scopes, and the condition that keeps it to its tenant. Pure.

The one place for that rule: ``/search``, ``/documents`` and MCP all ask here. The condition is joined with that of the
request as objects, never as text, and whoever answers looks at each record once more with ``permits``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cdc_agent.documents.metadata import RESERVED_PREFIX
from cdc_agent.errors import NotPermitted
from cdc_agent.vectorstore.where import matches

__all__ = ["EVERYTHING", "SCOPES", "Grant", "check_columns", "columns_of", "narrowed", "permits", "too_open"]

#: What a token may be for. None of them implies another.
SCOPES = ("search", "metrics", "events", "admin")
#: Operators that a record without the column satisfies.
_NEGATIONS = frozenset({"$ne", "$nin", "$not_contains"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What the bearer of a token may do. ``where``: the condition on metadata that whatever it is shown fulfils."""

    name: str
    scopes: frozenset[str]
    where: Mapping[str, Any] | None = None

    def allows(self, *scopes: str) -> bool:
        """Whether one of these is enough."""
        return not self.scopes.isdisjoint(scopes)


#: Whoever talks to us on this machine, when there are no tokens.
EVERYTHING = Grant(name="local", scopes=frozenset(SCOPES))


def narrowed(where: Mapping[str, Any] | None, within: Mapping[str, Any]) -> dict[str, Any]:
    """What is asked for, as far as ``within`` reaches. Both passed ``search.condition``."""
    return {"$and": [dict(within), dict(where)]} if where else dict(within)


def permits(within: Mapping[str, Any] | None, metadata: Mapping[str, Any]) -> bool:
    """Whether a record with this metadata may be shown. ``within`` passed ``search.condition``."""
    return within is None or matches(within, metadata)


def check_columns(within: Mapping[str, Any], stored: Collection[str]) -> None:
    """Raises ``NotPermitted`` when a collection that stores these columns does not say whose its documents are."""
    missing = sorted(key for key in columns_of(within) - set(stored) if not key.startswith(RESERVED_PREFIX))
    if missing:
        names = ", ".join(missing)
        raise NotPermitted(
            "this token sees only part of a collection, and this one cannot be parted",
            hint=f"it does not store {names}: add that to the collection's metadata, or search another collection",
        )


def columns_of(where: Mapping[str, Any]) -> set[str]:
    """The columns that a condition asks for."""
    return {key for key, _ in _conditions(where)}


def too_open(where: Mapping[str, Any]) -> str:
    """The operator of a condition that would also show records which do not have the column; "" without one."""
    for _, condition in _conditions(where):
        for operator in condition if isinstance(condition, Mapping) else ():
            if operator in _NEGATIONS:
                return str(operator)
    return ""


def _conditions(where: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in where.items():
        if key in ("$and", "$or"):
            for branch in value:
                yield from _conditions(branch)
        else:
            yield key, value
