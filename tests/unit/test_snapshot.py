"""Visibility, against a model server that begins, commits and shows transactions one by one."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import example, given
from hypothesis import strategies as st

from cdc_agent.snapshot import Snapshot, widen_xid

EPOCH = 2**32


@dataclass
class Server:
    """Hands out transaction ids; a transaction becomes visible some time after it began."""

    next_xid: int
    running: set[int] = field(default_factory=set)
    visible: set[int] = field(default_factory=set)

    def begin(self) -> None:
        self.running.add(self.next_xid)
        self.next_xid += 1

    def show(self, choice: int) -> None:
        if self.running:
            xid = sorted(self.running)[choice % len(self.running)]
            self.running.remove(xid)
            self.visible.add(xid)

    def snapshot(self) -> str:
        """As Postgres makes it: xmax is one past the newest transaction that is over."""
        xmax = max((xid + 1 for xid in self.visible), default=min(self.running, default=self.next_xid))
        running = sorted(xid for xid in self.running if xid < xmax)
        return f"{running[0] if running else xmax}:{xmax}:{','.join(map(str, running))}"


HISTORIES = st.lists(st.one_of(st.none(), st.integers(0, 5)), max_size=30)
BEGINNINGS = st.sampled_from([3, 1_000, EPOCH - 4, EPOCH, 5 * EPOCH - 3])


def walk(server: Server, history: list[int | None]) -> None:
    for step in history:
        server.begin() if step is None else server.show(step)


@given(BEGINNINGS, HISTORIES)
def test_a_snapshot_sees_what_was_over_and_nothing_else(first: int, history: list[int | None]) -> None:
    # Given a server where some transactions are over and some still run
    server = Server(first)
    walk(server, history)

    # When a snapshot is taken
    snapshot = Snapshot.parse(server.snapshot())

    # Then it sees exactly the transactions that are over, and everything from before the beginning
    assert {xid for xid in range(first, server.next_xid + 3) if snapshot.sees(xid)} == server.visible
    assert snapshot.sees(0)
    assert snapshot.sees(first - 1)


@given(BEGINNINGS, HISTORIES, HISTORIES)
def test_a_later_snapshot_is_not_before_an_earlier_one(
    first: int, before: list[int | None], between: list[int | None]
) -> None:
    # Given a snapshot, more history, and another snapshot
    server = Server(first)
    walk(server, before)
    seen = set(server.visible)
    earlier = Snapshot.parse(server.snapshot())
    walk(server, between)
    later = Snapshot.parse(server.snapshot())

    # Then the later one is never before the earlier one, and the earlier one is if it misses something
    assert later.not_before(earlier)
    assert earlier.not_before(later) == (server.visible == seen)


def test_a_snapshot_is_read_as_postgres_writes_it() -> None:
    assert Snapshot.parse("10:20:10,14,15") == Snapshot(10, 20, frozenset({10, 14, 15}))
    assert Snapshot.parse("10:10:") == Snapshot(10, 10, frozenset())


@given(near=st.integers(0, 2**40), distance=st.integers(-(2**31) + 1, 2**31 - 1))
@example(near=EPOCH - 1, distance=1)
@example(near=EPOCH, distance=-1)
@example(near=3 * EPOCH + 5, distance=-6)
@example(near=0, distance=7)
def test_a_transaction_id_is_widened_to_the_nearest_one(near: int, distance: int) -> None:
    # Given a 64-bit id within two billion of a known one
    xid = max(0, near + distance)

    # When the log carries only its low half
    assert widen_xid(xid % EPOCH, near) == xid


@given(near=st.integers(0, 2**40), low=st.integers(0, EPOCH - 1))
def test_a_widened_id_keeps_its_low_half_and_is_never_negative(near: int, low: int) -> None:
    full = widen_xid(low, near)

    assert full % EPOCH == low
    assert full >= 0
    assert abs(full - near) <= 2**31 or full == low
