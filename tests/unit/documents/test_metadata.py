"""Metadata: the scalar that every vector store keeps exactly, or else text."""

from __future__ import annotations

import datetime as dt
import decimal
import math
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc_agent.documents.metadata import RESERVED_PREFIX, metadata_value, reserved_metadata
from cdc_agent.events import UNCHANGED
from cdc_agent.lsn import Lsn


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (True, True),
        (7, 7),
        (2**63 - 1, 2**63 - 1),
        (2**63, "9223372036854775808"),
        (-(2**63), -(2**63)),
        (-(2**63) - 1, "-9223372036854775809"),
        (1.5, 1.5),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
        ("a\0b", "ab"),
        (decimal.Decimal("1.50"), 1.5),
        (decimal.Decimal("123456789012345"), 123456789012345.0),
        (decimal.Decimal("1234567890123456"), "1234567890123456"),
        (decimal.Decimal("0.12345678901234567"), "0.12345678901234567"),
        (decimal.Decimal("1E+400"), "1" + "0" * 400),
        (decimal.Decimal("NaN"), "NaN"),
        (dt.datetime(2025, 1, 2, 3, tzinfo=dt.UTC), "2025-01-02T03:00:00+00:00"),
        (dt.date(2025, 1, 2), "2025-01-02"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        ([3, 1], "[3, 1]"),
        ({"b": 1, "a": None}, '{"b": 1, "a": null}'),
        (b"\x00\xff", "00ff"),
    ],
)
def test_every_kind_of_value_has_one_form(value: object, expected: object) -> None:
    result = metadata_value(value)

    assert result == expected
    assert type(result) is type(expected)


@given(st.decimals(allow_nan=False, allow_infinity=False))
def test_a_decimal_never_loses_digits(value: decimal.Decimal) -> None:
    result = metadata_value(value)

    assert decimal.Decimal(str(result)) == value


def test_an_unchanged_value_is_the_callers_mistake() -> None:
    with pytest.raises(ValueError, match="UNCHANGED"):
        metadata_value(UNCHANGED)


@pytest.mark.fault("metadata-injection")
def test_reserved_keys_say_where_a_chunk_comes_from() -> None:
    reserved = reserved_metadata(
        document_id="public.t:1",
        table="public.t",
        position=2,
        commit_lsn=Lsn.parse("16/B374D848"),
        commit_ts_us=1_735_787_045_000_006,
    )

    assert reserved == {
        "cdc_doc": "public.t:1",
        "cdc_table": "public.t",
        "cdc_chunk": 2,
        "cdc_lsn": 0x16B374D848,
        "cdc_commit_ts": "2025-01-02T03:04:05.000006+00:00",
    }
    assert type(reserved["cdc_lsn"]) is int
    assert all(key.startswith(RESERVED_PREFIX) for key in reserved)
