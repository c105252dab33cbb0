"""Postgres' text values as Python values."""

from __future__ import annotations

import datetime as dt
import decimal
import math
import threading
import uuid
from typing import Any

import pytest

from cdc_agent import values

UTC = dt.UTC


@pytest.mark.parametrize(
    ("type_oid", "data", "value"),
    [
        (23, b"-7", -7),
        (20, b"9223372036854775807", 2**63 - 1),
        (25, "café".encode(), "café"),
        (1042, b"ab  ", "ab  "),
        (16, b"t", True),
        (16, b"f", False),
        (701, b"0.1", 0.1),
        (1700, b"12345678901234567890123456789.000000000000000000001", None),
        (17, b"\\x00ff", b"\x00\xff"),
        (1082, b"2026-11-22", dt.date(2026, 11, 22)),
        (1114, b"2026-11-22 10:00:00.000001", dt.datetime(2026, 11, 22, 10, 0, 0, 1)),
        (1184, b"2026-11-22 10:00:00+00", dt.datetime(2026, 11, 22, 10, tzinfo=UTC)),
        (2950, b"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", uuid.UUID("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11")),
        (3802, b'{"a": [1, null]}', {"a": [1, None]}),
        (1009, b'{a,NULL,"b \\"c\\""}', ["a", None, 'b "c"']),
        (1007, b"{1,2}", [1, 2]),
    ],
)
def test_a_value_becomes_its_python_type(type_oid: int, data: bytes, value: Any) -> None:
    loaded = values.load(type_oid, data)

    assert loaded == (decimal.Decimal(data.decode()) if value is None else value)
    assert type(loaded) is (decimal.Decimal if value is None else type(value))


def test_nan_is_a_number_that_is_not_one() -> None:
    assert math.isnan(values.load(701, b"NaN"))
    assert values.load(1700, b"NaN").is_nan()


@pytest.mark.parametrize(
    ("type_oid", "data"),
    [
        (1184, b"infinity"),
        (1114, b"0044-03-15 12:00:00 BC"),
        (1082, b"-infinity"),
        (1186, b"1 mon 2 days"),
        (99_999, b"a value of an extension"),
        (23, b"not a number any more"),
    ],
    ids=lambda value: str(value),
)
def test_what_python_cannot_hold_stays_its_text(type_oid: int, data: bytes) -> None:
    assert values.load(type_oid, data) == data.decode()


@pytest.mark.parametrize("type_oid", [25, 1043, 99_999])
def test_bytes_that_are_no_text_are_an_error_and_not_a_guess(type_oid: int) -> None:
    with pytest.raises(UnicodeDecodeError):
        values.load(type_oid, b"caf\xe9")


def test_threads_do_not_share_a_loader() -> None:
    # Given a value that was loaded in this thread
    values.load(1184, b"2026-11-22 10:00:00+00")
    mine = values._loader(1184)
    theirs: list[object] = []

    # When another thread loads the same type
    thread = threading.Thread(target=lambda: theirs.append(values._loader(1184)))
    thread.start()
    thread.join(10)

    # Then it has made one of its own: psycopg's loaders are not made for two threads
    assert theirs[0] is not mine
    assert values._loader(1184) is mine
