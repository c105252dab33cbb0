"""A position may be acknowledged once it is as old as the server's disk needs, and never before."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cdc_agent.lsn import Lsn
from cdc_agent.stream.hold_back import HoldBack


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def test_a_position_settles_after_the_hold_and_an_idle_stream_is_not_held_for_ever() -> None:
    clock = Clock()
    held = HoldBack(150.0, clock)
    held.took(Lsn(10), 1)

    clock.now += 149.9
    assert held.settled() == (0, 0)
    clock.now += 0.1
    assert held.settled() == (10, 1)


def test_without_a_hold_it_settles_at_once() -> None:
    held = HoldBack(0.0, Clock())
    held.took(Lsn(10), 1)

    assert held.settled() == (10, 1)


def test_what_was_there_before_has_waited_already() -> None:
    clock = Clock()
    held = HoldBack(150.0, clock)
    held.took(Lsn(10), 1, ago_s=100.0)

    clock.now += 50
    assert held.settled() == (10, 1)


def test_another_history_begins_with_nothing() -> None:
    clock = Clock()
    held = HoldBack(10.0, clock)
    held.took(Lsn(10), 1)
    clock.now += 10
    assert held.settled() == (10, 1)

    held.begin_anew()
    assert held.settled() == (0, 0)


@given(steps=st.lists(st.tuples(st.integers(0, 99), st.integers(1, 5)), max_size=200), hold_s=st.integers(0, 60))
def test_nothing_settles_early_nor_much_too_late(steps: list[tuple[int, int]], hold_s: int) -> None:
    clock, lsn = Clock(), 0
    held = HoldBack(hold_s, clock)
    taken: list[tuple[float, int]] = []
    for eighths, step in steps:
        clock.now += eighths / 8
        lsn += step
        held.took(Lsn(lsn), lsn)
        taken.append((clock.now, lsn))

        # The newest that is old enough, or one that is at most a second older than that
        settled = held.settled()[0]
        old = [taken_lsn for at, taken_lsn in taken if clock.now - at >= hold_s]
        older = [taken_lsn for at, taken_lsn in taken if clock.now - at >= hold_s + 1.0]
        assert max(older, default=0) <= settled <= max(old, default=0)
