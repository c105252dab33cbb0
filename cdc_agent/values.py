"""Postgres text values become Python values, through psycopg's own loaders. Pure: no socket.

Both plugins deliver a value in Postgres' text form; turning it into Python happens here, once, for all readers.
A value that Python cannot hold (``infinity``, a year BC, an unknown type) stays its text, in both plugins alike.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import psycopg
from psycopg import postgres
from psycopg.adapt import Transformer
from psycopg.pq import Format

__all__ = ["BYTEA_OID", "FLOAT_OIDS", "JSON_OIDS", "TEXT_OIDS", "load"]

_builtin = postgres.types
TEXT_OIDS = frozenset(_builtin[name].oid for name in ("text", "varchar", "bpchar", "name"))
BYTEA_OID = _builtin["bytea"].oid
#: Stays text: a month has no length, so timedelta would invent one.
INTERVAL_OID = _builtin["interval"].oid
JSON_OIDS = frozenset(_builtin[name].oid for name in ("json", "jsonb"))
#: Types with NaN or infinity: JSON cannot carry those, so wal2json writes null for them.
FLOAT_OIDS = frozenset(_builtin[name].oid for name in ("float4", "float8", "numeric"))
_BINARY_FLOAT_OIDS = frozenset(_builtin[name].oid for name in ("float4", "float8"))

_local = threading.local()


def _as_text(data: bytes) -> str:
    return data.decode("utf-8")


def _as_float(data: bytes) -> float:
    # Minus zero equals zero to Postgres, and wal2json's JSON cannot tell them apart: one form for both plugins.
    return float(data) + 0.0


def _loader(type_oid: int) -> Callable[[bytes], Any]:
    loaders: dict[int, Callable[[bytes], Any]] = _local.__dict__.setdefault("loaders", {})
    loader = loaders.get(type_oid)
    if loader is None:
        if type_oid in TEXT_OIDS or type_oid == INTERVAL_OID or not _is_builtin(type_oid):
            loader = _as_text
        elif type_oid in _BINARY_FLOAT_OIDS:
            loader = _as_float
        else:
            loader = Transformer().get_loader(type_oid, Format.TEXT).load
        loaders[type_oid] = loader
    return loader


def _is_builtin(type_oid: int) -> bool:
    return _builtin.get(type_oid) is not None


def load(type_oid: int, data: bytes) -> Any:
    """Return the Python value of one Postgres text value.

    Raises ``UnicodeDecodeError`` when the bytes are no UTF-8 (a SQL_ASCII database can send such).
    """
    try:
        return _loader(type_oid)(data)
    except (psycopg.DataError, ValueError, OverflowError) as exc:
        if isinstance(exc, UnicodeDecodeError):
            raise
        return _as_text(data)
