"""What a vector store gets to know about a chunk besides its text: typed scalars, and our own reserved keys."""

from __future__ import annotations

import datetime as dt
import decimal
import math
from typing import Any, Final

from cdc_agent.documents.model import MetadataValue
from cdc_agent.documents.rendering import json_text, storable
from cdc_agent.events import UNCHANGED
from cdc_agent.lsn import Lsn

__all__ = ["RESERVED_PREFIX", "metadata_value", "reserved_metadata"]

#: Keys that start so are ours; a configured column must not.
RESERVED_PREFIX: Final = "cdc_"
#: Every decimal of up to 15 significant digits survives the way through a double and back.
EXACT_DIGITS = 15
_INT64 = range(-(2**63), 2**63)
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def metadata_value(value: Any) -> MetadataValue:  # noqa: PLR0911 (one line per kind of value is a table)
    """The nearest form that every vector store keeps exactly: a scalar where one holds the value, else its text."""
    if value is UNCHANGED:
        raise ValueError("the value is UNCHANGED: resolve it before rendering")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, int):
        return int(value) if value in _INT64 else str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, decimal.Decimal):
        return _decimal_value(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    # Times, UUIDs, arrays and JSON.
    return storable(json_text(value))


def reserved_metadata(
    *, document_id: str, table: str, position: int, commit_lsn: Lsn, commit_ts_us: int
) -> dict[str, MetadataValue]:
    """Where a chunk comes from: its document, its place in it, and the commit that last wrote it."""
    return {
        "cdc_doc": document_id,
        "cdc_table": table,
        "cdc_chunk": position,
        "cdc_lsn": int(commit_lsn),
        "cdc_commit_ts": (_EPOCH + dt.timedelta(microseconds=commit_ts_us)).isoformat(),
    }


def _decimal_value(value: decimal.Decimal) -> MetadataValue:
    if not value.is_finite():
        return str(value)
    number = float(value)
    digits = len(value.normalize().as_tuple().digits)
    exact = digits <= EXACT_DIGITS and math.isfinite(number) and decimal.Decimal(repr(number)) == value
    return number if exact else format(value, "f")
