"""How the position moves: what of a delivery is new, and when a commit that came in parts has ended."""

from __future__ import annotations

from cdc_agent.events import Change, Column, Relation, Transaction
from cdc_agent.lsn import Lsn, Version
from cdc_agent.stream.base import Position
from cdc_agent.stream.progress import fresh, reached

RELATION = Relation(
    oid=1, root_oid=1, schema="public", name="t", columns=(Column(name="id", type_oid=23),), key=("id",)
)
#: Two changes of the commit at 100 are here, and its end is not.
PARTLY = Position(captured_lsn=Lsn(90), partial=Version(Lsn(100), 2))


def commit(lsn: int, *ordinals: int) -> Transaction:
    changes = [Change("c", RELATION, n, None, (b"1",)) for n in ordinals]
    return Transaction(xid=lsn, commit_lsn=Lsn(lsn), commit_ts_us=1, changes=changes, end_lsn=Lsn(lsn + 8))


def test_of_a_commit_that_is_partly_here_the_rest_is_new() -> None:
    new, position = fresh([commit(100, 1, 2, 3)], PARTLY)

    assert [change.ordinal for tx in new for change in tx.changes] == [3]
    assert position == Position(captured_lsn=Lsn(108), partial=None)


def test_of_another_commit_everything_is_new() -> None:
    # Given a server that has lost the commit that is partly here, and goes on with another one
    new, position = fresh([commit(200, 1, 2, 3)], PARTLY)

    assert [change.ordinal for tx in new for change in tx.changes] == [1, 2, 3]
    assert position == Position(captured_lsn=Lsn(208), partial=None)


def test_a_commit_ends_behind_the_position_of_its_record() -> None:
    # A server may say that it is where the record of the commit begins: the commit itself is still to come.
    assert reached(PARTLY, Lsn(100)) == Position(captured_lsn=Lsn(100), partial=PARTLY.partial)
    assert reached(PARTLY, Lsn(101)) == Position(captured_lsn=Lsn(101), partial=None)
