"""Positions in the log, as numbers, as text, and in order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc_agent.lsn import ZERO, Lsn, Version

POSITIONS = st.integers(0, 2**64 - 1)


@pytest.mark.parametrize(
    ("text", "number"),
    [("0/0", 0), ("16/B374D848", 0x16B374D848), ("FFFFFFFF/FFFFFFFF", 2**64 - 1), ("1/a", 0x10000000A)],
)
def test_a_position_is_read_as_postgres_writes_it(text: str, number: int) -> None:
    assert Lsn.parse(text) == number
    assert str(Lsn(number)) == text.upper()


@given(POSITIONS)
def test_every_position_comes_back_from_its_text(number: int) -> None:
    assert Lsn.parse(str(Lsn(number))) == number


@pytest.mark.parametrize("text", ["", "0", "0/", "/0", "0/0/0", "-1/0", "0x1/2", "123456789/0", "0/G", "0 / 0", "1.0"])
def test_what_is_no_position_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match="not an LSN"):
        Lsn.parse(text)


@given(POSITIONS, POSITIONS)
@pytest.mark.fault("position-order")
def test_positions_are_in_the_order_of_their_numbers_and_not_of_their_texts(a: int, b: int) -> None:
    assert (Lsn(a) < Lsn(b)) == (a < b)


@given(st.tuples(POSITIONS, st.integers(0, 10**9)), st.tuples(POSITIONS, st.integers(0, 10**9)))
def test_versions_are_ordered_by_commit_and_then_by_place_in_the_commit(a: tuple, b: tuple) -> None:
    first, second = Version(Lsn(a[0]), a[1]), Version(Lsn(b[0]), b[1])

    assert (first < second) == (a < b)
    assert first >= ZERO


def test_a_version_is_readable() -> None:
    assert str(Version(Lsn(0x16B374D848), 3)) == "16/B374D848.3"
