"""Per-key order, concurrency across keys, and no more passed than is dealt with: over any history."""

from __future__ import annotations

import datetime as dt
import random

from hypothesis import given
from hypothesis import strategies as st

from cdc_agent.events import Event
from cdc_agent.reactions.handling import Job
from cdc_agent.reactions.lanes import Lanes

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


def job(number: int, key: str) -> Job:
    return Job(number=number, key=key, event=Event(id=str(number), source="s", type="t", time=NOW, data=None))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_one_of_a_key_at_a_time_and_others_beside_it() -> None:
    lanes = Lanes(0, Clock())
    lanes.add([job(1, "a"), job(2, "a"), job(3, "b")], 3)

    first, second = lanes.take(0), lanes.take(0)
    assert first is not None
    assert second is not None
    assert (first.number, second.number, lanes.take(0)) == (1, 3, None)

    assert lanes.claim(first)
    lanes.done(first)
    third = lanes.take(0)
    assert third is not None
    assert third.number == 2


def test_what_failed_waits_with_its_lane_and_counts_its_attempts() -> None:
    clock = Clock()
    lanes = Lanes(0, clock)
    lanes.add([job(1, "a"), job(2, "a")], 2)
    first = lanes.take(0)
    assert first is not None
    assert lanes.claim(first)

    lanes.again(first, 5.0)
    assert lanes.take(0) is None
    assert lanes.due_in_s(60) == 5.0
    clock.now = 5.0
    again = lanes.take(0)
    assert again is not None
    assert (again.number, again.attempt) == (1, 2)


def test_who_took_too_long_has_no_say_any_more() -> None:
    clock = Clock()
    lanes = Lanes(0, clock)
    lanes.add([job(1, "a")], 1)
    late = lanes.take(0)
    clock.now = 61.0

    assert late is not None
    assert lanes.overdue(60) == [late]
    assert lanes.overdue(60) == []
    assert not lanes.claim(late)
    lanes.again(late, 0)
    again = lanes.take(0)
    assert again is not None
    assert again.attempt == 2
    assert not lanes.claim(late)


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=30), st.integers(0, 2**32))
def test_any_history_is_in_order_and_never_passes_what_is_open(keys: list[str], seed: int) -> None:
    # Given events of some keys, of which everyone may fail a few times
    dice = random.Random(seed)
    clock = Clock()
    lanes = Lanes(0, clock)
    lanes.add([job(number, key) for number, key in enumerate(keys, 1)], len(keys))
    dealt: list[Job] = []
    running: list[Job] = []

    # When several work on them, and end in any order
    while len(dealt) < len(keys):
        clock.now += 1
        if len(running) < 3 and (taken := lanes.take(0)) is not None:
            assert taken.key not in {other.key for other in running}
            running.append(taken)
        if running and dice.random() < 0.6:
            ended = running.pop(dice.randrange(len(running)))
            assert lanes.claim(ended)
            if dice.random() < 0.3:
                lanes.again(ended, dice.randrange(4))
                continue
            # Then nothing is passed that is not dealt with,
            passed = lanes.passed_without(ended)
            assert set(range(1, passed + 1)) <= {j.number for j in dealt} | {ended.number}
            lanes.done(ended)
            dealt.append(ended)

    # and each key saw its events in order, once.
    for key in set(keys):
        numbers = [j.number for j in dealt if j.key == key]
        assert numbers == [number for number, other in enumerate(keys, 1) if other == key]
    assert lanes.passed() == len(keys)
    assert lanes.idle
