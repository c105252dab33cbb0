"""How Postgres compares two values, for the types that a ``Predicate`` may compare.

Owns: which kind of value a column holds, which kinds may meet, what a literal means next to each kind, and the Python
value that orders as the server would. Strings order by code point (the "C" collation) and ``timestamptz`` literals
without an offset are UTC; a server may be set up differently in both.
"""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import math
import re
import struct
from collections.abc import Callable, Sequence
from typing import Any, Final

from psycopg import postgres

from cdc_agent import values
from cdc_agent.errors import ConfigError, RenderError

__all__ = ["Kind", "common_kind", "kind_of", "list_kind", "load_literal", "order_key"]


class Kind(enum.Enum):
    """Types that compare alike."""

    BOOLEAN = "boolean"
    INTEGER = "integer"
    NUMERIC = "numeric"
    REAL = "real"
    DOUBLE = "double precision"
    TEXT = "text"
    VARCHAR = "character varying"
    CHAR = "character"
    DATE = "date"
    TIMESTAMP = "timestamp"
    TIMESTAMPTZ = "timestamptz"
    TIME = "time"
    UUID = "uuid"
    #: A type that the database defined: an enum, most of the time. Its labels can only be told apart.
    LABEL = "user-defined"
    #: A quoted literal or NULL: it takes the type of what it is compared with.
    UNKNOWN = "unknown"
    #: A built-in type without a comparison here.
    OTHER = "unsupported"


_KINDS: Final = {
    "bool": Kind.BOOLEAN,
    "int2": Kind.INTEGER,
    "int4": Kind.INTEGER,
    "int8": Kind.INTEGER,
    "numeric": Kind.NUMERIC,
    "float4": Kind.REAL,
    "float8": Kind.DOUBLE,
    "text": Kind.TEXT,
    "varchar": Kind.VARCHAR,
    "name": Kind.TEXT,
    "bpchar": Kind.CHAR,
    "date": Kind.DATE,
    "timestamp": Kind.TIMESTAMP,
    "timestamptz": Kind.TIMESTAMPTZ,
    "time": Kind.TIME,
    "uuid": Kind.UUID,
}
#: Of two kinds in one row the later one takes both.
_LADDERS: Final = (
    (Kind.INTEGER, Kind.NUMERIC),
    # Next to char, varchar ignores trailing blanks too; next to text, char loses its own.
    (Kind.VARCHAR, Kind.CHAR, Kind.TEXT),
    (Kind.DATE, Kind.TIMESTAMP, Kind.TIMESTAMPTZ),
)
#: In a list every number may become any later one here; of strings, the first decides.
_LIST_LADDERS: Final = (
    (Kind.INTEGER, Kind.NUMERIC, Kind.REAL, Kind.DOUBLE),
    (Kind.DATE, Kind.TIMESTAMP, Kind.TIMESTAMPTZ),
)
_STRINGS: Final = frozenset({Kind.TEXT, Kind.VARCHAR, Kind.CHAR})
_NUMBERS: Final = frozenset({Kind.INTEGER, Kind.NUMERIC, Kind.REAL, Kind.DOUBLE})
_TYPE_OIDS: Final = {kind: postgres.types[name].oid for name, kind in reversed(_KINDS.items())}

_INTEGER = re.compile(r"\s*[+-]?[0-9]+\s*")
_NUMBER = re.compile(
    r"\s*([+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?|NaN|[+-]?(Infinity|inf))\s*", re.IGNORECASE
)
_DATE = re.compile(r"\d{4}-\d\d-\d\d")
_MOMENT = re.compile(
    r"(?P<date>\d{4}-\d\d-\d\d)([ T](?P<time>\d\d:\d\d(:\d\d(\.\d{1,6})?)?)\s?(?P<zone>Z|[+-]\d\d(:?\d\d)?)?)?"
)
_TIME = re.compile(r"\d\d:\d\d(:\d\d(\.\d{1,6})?)?")
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
#: Each may be shortened as long as it stays unambiguous, as on the server.
_TRUTHS: Final = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}
_INFINITIES: Final = {"infinity": 1, "-infinity": -1}


def kind_of(type_oid: int) -> Kind:
    """What a column of this type is to a comparison."""
    info = postgres.types.get(type_oid)
    if info is None:
        return Kind.LABEL
    # A psycopg type answers for its array too; only the scalar is comparable here.
    return _KINDS.get(info.name, Kind.OTHER) if info.oid == type_oid else Kind.OTHER


def common_kind(left: Kind, right: Kind) -> Kind | None:
    """The kind in which the server compares the two, or None where it has no such operator (or we do not know it)."""
    if Kind.OTHER in (left, right):
        return None
    if left is right:
        # Two labels may belong to two types.
        return {Kind.UNKNOWN: Kind.TEXT, Kind.LABEL: None}.get(left, left)
    if Kind.UNKNOWN in (left, right):
        return right if left is Kind.UNKNOWN else left
    for ladder in _LADDERS:
        if left in ladder and right in ladder:
            return max(left, right, key=ladder.index)
    return Kind.DOUBLE if left in _NUMBERS and right in _NUMBERS else None


def list_kind(kinds: Sequence[Kind]) -> Kind | None:
    """The one kind that the server gives to the constants of a list, or None where that is left to each comparison.

    https://www.postgresql.org/docs/current/typeconv-union-case.html
    """
    known = [kind for kind in kinds if kind is not Kind.UNKNOWN]
    if not known:
        return None
    if _STRINGS.issuperset(known):
        return known[0]
    for ladder in _LIST_LADDERS:
        if set(ladder).issuperset(known):
            return max(known, key=ladder.index)
    return None


def load_literal(kind: Kind, text: str) -> Any:
    """A quoted literal as a Python value of this kind. Raises ``ConfigError`` where the server would refuse it."""
    try:
        return _LOADERS[kind](text)
    except (ValueError, OverflowError, decimal.InvalidOperation) as exc:
        raise ConfigError(
            f"{text!r} is no {kind.value}",
            hint="write dates and times in ISO 8601 ('2025-01-31 12:00:00+00'); 'now' and the like are no constants",
        ) from exc


def order_key(kind: Kind, own: Kind, value: Any) -> Any:
    """A Python value that compares as the server compares ``value`` (of kind ``own``) in kind ``kind``.

    Raises ``RenderError`` for a value that Python cannot hold, such as a year BC.
    """
    if kind is Kind.NUMERIC or kind is Kind.INTEGER:
        return _number_key(value)
    if kind in (Kind.REAL, Kind.DOUBLE):
        return _number_key(_float32(value) if own is Kind.REAL or kind is Kind.REAL else float(value))
    if kind is Kind.CHAR or own is Kind.CHAR:
        return value.rstrip(" ")
    if kind in (Kind.DATE, Kind.TIMESTAMP, Kind.TIMESTAMPTZ):
        return _moment_key(kind, value)
    if kind is Kind.TIME and not isinstance(value, dt.time):
        raise RenderError(f"the predicate meets the time {value!r}, which it cannot compare", hint="is it 24:00?")
    return value


def _number_key(value: Any) -> tuple[int, Any]:
    """NaN equals itself and is greater than every number."""
    return (1, 0) if math.isnan(value) else (0, value)


def _float32(value: Any) -> float:
    """``real`` has 24 bits: 0.1::real is not 0.1::double precision."""
    rounded: float = struct.unpack("f", struct.pack("f", float(value)))[0]
    return rounded


def _moment_key(kind: Kind, value: Any) -> tuple[int, Any]:
    if isinstance(value, str):
        if value not in _INFINITIES:
            raise RenderError(
                f"the predicate meets the {kind.value} {value!r}, which it cannot compare",
                hint="years before 1 and after 9999 are outside of what Python holds",
            )
        return _INFINITIES[value], 0
    if kind is Kind.DATE:
        return 0, value
    moment = value if isinstance(value, dt.datetime) else dt.datetime.combine(value, dt.time())
    if kind is Kind.TIMESTAMPTZ and moment.tzinfo is None:
        moment = moment.replace(tzinfo=dt.UTC)
    return 0, moment


def _boolean(text: str) -> bool:
    word = text.strip().lower()
    # "o" alone could become "on" or "off".
    meant = {truth for name, truth in _TRUTHS.items() if word and name.startswith(word)}
    if len(meant) != 1:
        raise ValueError(text)
    return meant.pop()


def _matching(pattern: re.Pattern[str], kind: Kind) -> Callable[[str], Any]:
    """Let psycopg load what the pattern admits: its loaders trust that a server wrote the text."""

    def load(text: str) -> Any:
        if pattern.fullmatch(text.strip()) is None:
            raise ValueError(text)
        return values.load(_TYPE_OIDS[kind], text.strip().encode())

    return load


def _moment(kind: Kind) -> Callable[[str], Any]:
    def load(text: str) -> Any:
        if text.strip().lower() in _INFINITIES:
            return text.strip().lower()
        match = _MOMENT.fullmatch(text.strip())
        if match is None or (kind is Kind.DATE and match["time"]):
            raise ValueError(text)
        if kind is Kind.DATE:
            return dt.date.fromisoformat(match["date"])
        moment = dt.datetime.fromisoformat(f"{match['date']}T{match['time'] or '00:00'}")
        # The server ignores an offset in a literal of plain timestamp.
        if kind is Kind.TIMESTAMP:
            return moment
        return dt.datetime.fromisoformat(f"{moment.isoformat()}{match['zone'] or '+00:00'}")

    return load


def _float(text: str) -> float:
    if _NUMBER.fullmatch(text) is None:
        raise ValueError(text)
    return float(text)


def _numeric(text: str) -> decimal.Decimal:
    if _NUMBER.fullmatch(text) is None:
        raise ValueError(text)
    return decimal.Decimal(text.strip())


def _same(text: str) -> str:
    return text


_LOADERS: Final[dict[Kind, Callable[[str], Any]]] = {
    Kind.BOOLEAN: _boolean,
    Kind.INTEGER: _matching(_INTEGER, Kind.INTEGER),
    Kind.NUMERIC: _numeric,
    Kind.REAL: lambda text: _float32(_float(text)),
    Kind.DOUBLE: _float,
    Kind.TEXT: _same,
    Kind.VARCHAR: _same,
    Kind.CHAR: _same,
    Kind.LABEL: _same,
    Kind.DATE: _moment(Kind.DATE),
    Kind.TIMESTAMP: _moment(Kind.TIMESTAMP),
    Kind.TIMESTAMPTZ: _moment(Kind.TIMESTAMPTZ),
    Kind.TIME: _matching(_TIME, Kind.TIME),
    Kind.UUID: _matching(_UUID, Kind.UUID),
}
