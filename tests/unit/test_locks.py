"""When a store that says it cannot write has not written for too long, and what is no reason to restart it."""

from __future__ import annotations

import pytest

from cdc_agent.errors import StoreUnavailable
from cdc_agent.vectorstore.locks import BLOCKED_S, Locks
from cdc_agent.vectorstore.records import StoreBlocked, StoreFailing


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def locks(clock: Clock) -> Locks:
    return Locks(clock=clock)


def write(locks: Locks, error: Exception | None = None) -> None:
    try:
        with locks.writing():
            if error is not None:
                raise error
    except StoreUnavailable:
        assert error is not None


BLOCKED = StoreBlocked("locked")


def test_a_store_is_stuck_when_no_write_got_through_for_long_enough(locks: Locks, clock: Clock) -> None:
    write(locks, BLOCKED)
    clock.now = BLOCKED_S - 1
    write(locks, BLOCKED)
    assert not locks.stuck

    clock.now = BLOCKED_S
    assert locks.stuck


def test_one_write_that_gets_through_ends_it(locks: Locks, clock: Clock) -> None:
    write(locks, BLOCKED)
    clock.now = BLOCKED_S
    write(locks)

    assert not locks.stuck


@pytest.mark.parametrize("error", [StoreFailing("damaged"), StoreUnavailable("no answer")], ids=["failing", "silent"])
def test_what_fails_otherwise_neither_begins_nor_ends_it(locks: Locks, clock: Clock, error: Exception) -> None:
    write(locks, error)
    clock.now = BLOCKED_S
    assert not locks.stuck

    write(locks, BLOCKED)
    write(locks, error)
    clock.now = 2 * BLOCKED_S
    assert locks.stuck


def test_while_there_is_a_reason_the_time_does_not_begin(locks: Locks, clock: Clock) -> None:
    write(locks, BLOCKED)
    clock.now = BLOCKED_S
    locks.explained()
    assert not locks.stuck

    clock.now = 2 * BLOCKED_S
    assert locks.stuck


def test_a_reason_alone_begins_nothing(locks: Locks, clock: Clock) -> None:
    locks.explained()
    clock.now = BLOCKED_S
    assert not locks.stuck


def test_after_a_restart_that_changed_nothing_the_next_one_waits_twice_as_long(locks: Locks, clock: Clock) -> None:
    write(locks, BLOCKED)
    clock.now = BLOCKED_S
    locks.restarted()
    assert not locks.stuck

    write(locks, BLOCKED)
    clock.now += 2 * BLOCKED_S - 1
    assert not locks.stuck
    clock.now += 1
    assert locks.stuck


def test_a_write_that_gets_through_makes_the_patience_what_it_was(locks: Locks, clock: Clock) -> None:
    locks.restarted()
    write(locks)

    write(locks, BLOCKED)
    clock.now = BLOCKED_S
    assert locks.stuck
