"""Transactions become messages of bounded size, each of which says how far the stream is with it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc_agent.errors import StreamError
from cdc_agent.events import Change, Column, Relation, Transaction
from cdc_agent.lsn import Lsn, Version
from cdc_agent.stream import codec, progress
from cdc_agent.stream.base import Position
from cdc_agent.stream.marks import Mark, Message, messages_of, read_mark, write_mark

RELATION = Relation(oid=1, root_oid=1, schema="public", name="t", columns=(Column(name="a", type_oid=25),), key=("a",))


def transaction(lsn: int, sizes: list[int], *, end: bool = True) -> Transaction:
    changes = [Change("c", RELATION, n, None, (b"x" * size,)) for n, size in enumerate(sizes, 1)]
    end_lsn = Lsn(lsn + 8) if end else None
    return Transaction(xid=lsn, commit_lsn=Lsn(lsn), commit_ts_us=0, changes=changes, end_lsn=end_lsn)


def made(*transactions: Transaction, most_bytes: int = 1_000) -> list[Message]:
    return list(messages_of(transactions, Mark(), now=1.0, most_bytes=most_bytes))


def test_a_message_holds_at_most_a_hundred_changes_and_the_last_one_ends_the_commit() -> None:
    messages = made(transaction(100, [1] * 250), most_bytes=1 << 20)

    assert [(m.mark.first, m.mark.head, m.mark.after) for m in messages] == [
        (1, 100, 0),
        (101, 200, 100),
        (201, 250, 200),
    ]
    assert [m.mark.position for m in messages] == [
        Position(partial=Version(Lsn(100), 100)),
        Position(partial=Version(Lsn(100), 200)),
        Position(captured_lsn=Lsn(108)),
    ]
    assert [m.id for m in messages] == ["0-64-1-0", "0-64-101-0", "0-64-201-0"]


def test_a_change_that_is_too_large_lies_in_fragments_of_which_the_last_one_counts() -> None:
    messages = made(transaction(100, [10, 2_500]))

    # The small one has a message of its own
    assert [(m.mark.part, m.mark.parts, m.mark.head) for m in messages] == [(0, 1, 1), (0, 3, 1), (1, 3, 1), (2, 3, 2)]
    assert [m.mark.messages for m in messages] == [1, 2, 3, 4]
    block = codec.decode(b"".join(m.payload for m in messages[1:]))
    assert [event.offset for event in block.events(0, 1, 2)] == [2]


def test_an_end_without_changes_is_told_by_the_next_message() -> None:
    messages = made(transaction(100, [1], end=False), transaction(100, []), transaction(200, [1], end=False))

    assert messages[-1].mark.position == Position(captured_lsn=Lsn(108), partial=Version(Lsn(200), 1))


@given(sizes=st.lists(st.lists(st.integers(0, 3_000), max_size=12), max_size=5), most_bytes=st.integers(200, 2_000))
def test_whatever_is_cut_comes_together_again(sizes: list[list[int]], most_bytes: int) -> None:
    # Given commits of any sizes
    transactions = [transaction(100 * n, one) for n, one in enumerate(sizes, 1)]
    wanted = [(int(tx.commit_lsn), change.ordinal) for tx in transactions for change in tx.changes]

    # When they are cut, and put together by their marks
    messages = made(*transactions, most_bytes=most_bytes)
    found, parts, position = [], [], Position()
    for message in messages:
        parts = [*parts, message.payload] if message.mark.part else [message.payload]
        if message.mark.part == message.mark.parts - 1:
            block = codec.decode(b"".join(parts))
            found += [(int(e.version.commit_lsn), e.version.ordinal) for e in block.events(0, len(block), 1)]

    # Then nothing is missing, no message is too large, and the last mark is where the rules say that we are
    for tx in transactions:
        position = progress.after(position, tx)
    assert found == wanted
    assert all(len(message.payload) <= most_bytes for message in messages)
    assert messages == [] or messages[-1].mark.head == len(wanted)
    assert messages == [] or sizes[-1] == [] or messages[-1].mark.position == position


def test_a_mark_comes_back_as_it_was_written() -> None:
    mark = Mark(
        first=3, head=7, after=2, captured=5, partial_lsn=9, partial_ordinal=2, void=1, ledger="a", written_at=0.5
    )

    assert read_mark(write_mark(mark)) == mark


@pytest.mark.parametrize("text", ["", "[]", "{}", '[2,1,"x"]', "no JSON"])
def test_what_is_no_mark_is_refused(text: str) -> None:
    with pytest.raises(StreamError) as refused:
        read_mark(text)
    assert refused.value.hint
