"""Transactions are put together, and large ones handed over in parts that memory can hold."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdc_agent.errors import DecodeError
from cdc_agent.events import Column, Relation, Transaction
from cdc_agent.source import assembler as room
from cdc_agent.source.assembler import Assembler

RELATION = Relation(
    oid=1, root_oid=1, schema="public", name="t", columns=(Column(name="id", type_oid=23),), key=("id",)
)


def add(assembler: Assembler, number: int, size: int = 10) -> Transaction | None:
    return assembler.add("c", RELATION, None, (str(number).encode(),), size)


def test_a_transaction_is_handed_over_at_its_commit() -> None:
    assembler = Assembler()
    assembler.begin(7, 0x100, 123)

    assert add(assembler, 1) is None
    assert assembler.in_transaction
    done = assembler.commit(0x180)

    assert (done.commit_lsn, done.end_lsn, done.commit_ts_us, done.size_bytes) == (0x100, 0x180, 123, 10)
    assert not assembler.in_transaction


# A change of our table by its size, None for a message that is not ours.
MESSAGES = st.lists(st.one_of(st.none(), st.integers(1, 2_000)), max_size=60)


@settings(deadline=None)
@given(messages=MESSAGES, part_bytes=st.integers(1, 3_000), part_changes=st.integers(1, 10))
def test_parts_hold_everything_once_in_order_and_stay_small(
    messages: list[int | None], part_bytes: int, part_changes: int
) -> None:
    # Given bounds for a part
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "PART_BYTES", part_bytes)
        patch.setattr(room, "PART_CHANGES", part_changes)
        assembler = Assembler()
        assembler.begin(7, 0x100, 123)

        # When a transaction of any size passes
        parts = []
        for number, size in enumerate(messages, start=1):
            if size is None:
                assembler.skip()
            elif (part := add(assembler, number, size)) is not None:
                parts.append(part)
        parts.append(assembler.commit(0x180))

    # Then its parts hold every change of ours once, numbered by its place among all messages
    changes = [change for part in parts for change in part.changes]
    assert [c.ordinal for c in changes] == [n for n, size in enumerate(messages, start=1) if size is not None]
    assert [c.after for c in changes] == [(str(c.ordinal).encode(),) for c in changes]

    # And each part says which transaction it belongs to, and only the last one that it has ended
    assert {(p.commit_lsn, p.xid, p.commit_ts_us) for p in parts} == {(0x100, 7, 123)}
    assert [p.end_lsn for p in parts] == [None] * (len(parts) - 1) + [0x180]

    # And no part is larger than a bound and one change more
    for part in parts:
        assert len(part.changes) <= part_changes
        assert part.size_bytes < part_bytes + 2_000


def test_numbers_start_anew_in_every_transaction() -> None:
    assembler = Assembler()
    for lsn in (1, 2):
        assembler.begin(7, lsn, 0)
        assembler.skip()
        add(assembler, 1)
        [change] = assembler.commit(lsn).changes
        assert change.ordinal == 2


def test_transaction_ids_get_their_high_half_and_keep_it_over_the_wrap() -> None:
    # Given a server close to the end of its third epoch
    assembler = Assembler()
    assembler.xid_reference = 4 * 2**32 - 10
    seen = []

    # When transactions commit around the wrap, not in the order of their ids
    for xid in (2**32 - 5, 3, 2**32 - 4, 4):
        assembler.begin(xid, 1, 0)
        seen.append(assembler.commit(2).xid)

    # Then each id is the one that was meant
    assert seen == [4 * 2**32 - 5, 4 * 2**32 + 3, 4 * 2**32 - 4, 4 * 2**32 + 4]


def test_a_lost_connection_takes_the_open_transaction_with_it_but_not_the_epoch() -> None:
    assembler = Assembler()
    assembler.xid_reference = 2**32
    assembler.begin(7, 1, 0)
    add(assembler, 1)

    assembler.reset()
    assembler.begin(8, 1, 0)

    assert assembler.commit(2).changes == []
    assert assembler.xid_reference == 2**32 + 8


@pytest.mark.parametrize("act", [lambda a: add(a, 1), lambda a: a.commit(1)], ids=["change", "commit"])
def test_nothing_stands_outside_of_a_transaction(act: object) -> None:
    with pytest.raises(DecodeError):
        act(Assembler())  # type: ignore[operator]


def test_transactions_do_not_nest() -> None:
    assembler = Assembler()
    assembler.begin(1, 1, 0)

    with pytest.raises(DecodeError):
        assembler.begin(2, 2, 0)
