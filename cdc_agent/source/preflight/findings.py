"""One finding of the preflight, and how names and values are quoted in the SQL that it suggests."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from psycopg import sql


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One question and its answer. ``hint`` mends what is not ok; on a finding that is ok it is advice.

    ``passing``: it may mend itself, such as a server that is being started.
    """

    name: str
    ok: bool
    message: str
    hint: str = ""
    passing: bool = False


def passed(name: str, message: str, advice: str = "") -> Finding:
    return Finding(name=name, ok=True, message=message, hint=advice)


def failed(name: str, message: str, hint: str) -> Finding:
    return Finding(name=name, ok=False, message=message, hint=hint)


def quote(*names: str) -> str:
    return sql.Identifier(*names).as_string()


def literal(value: str) -> str:
    return sql.Literal(value).as_string()


def comma_list(names: Iterable[str]) -> str:
    return ", ".join(quote(name) for name in names)
