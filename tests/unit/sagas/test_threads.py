"""Steps run in threads: what hangs is given up, what comes late counts for nothing, nobody waits for anybody else."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cdc_agent.health import Health
from cdc_agent.reactions.hands import Hands
from cdc_agent.sagas import Saga, Step, StepContext, rules
from cdc_agent.sagas.attempts import Attempt, ThreadedHands
from cdc_agent.sagas.context import SagaTools
from tests.support.saga_world import House, World, start_command
from tests.support.wait import until

Running = Callable[..., House]


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    """A house in which the threads of the runtime go on, with the time of the world."""
    houses: list[tuple[House, threading.Event, list[threading.Thread]]] = []

    def build(*sagas: Saga, **more: Any) -> House:
        stop = threading.Event()
        house = House(tmp_path / "journal.sqlite", *sagas, inline=False, stop=stop, **more)
        threads = [threading.Thread(target=body) for body in (house.runtime.run_intake, house.runtime.run)]
        houses.append((house, stop, threads))
        for thread in threads:
            thread.start()
        return house

    yield build
    for house, stop, threads in houses:
        stop.set()
        house.runtime.ring()
        house.journal.wake()
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive()
        house.file.close()


def begin(house: House, saga: str, *numbers: int) -> None:
    house.journal.append([start_command(saga, number) for number in numbers])


def ends(house: House, **wanted: Any) -> list[str]:
    return [str(record.state) for record in house.book.find(**wanted) if record.due_us is None]


def test_a_step_that_hangs_is_given_up_and_what_it_returns_later_counts_for_nothing(running: Running) -> None:
    # Given a step that hangs at its first attempt
    world, released, returned = World(), threading.Event(), threading.Event()

    def step(context: StepContext) -> str:
        world.call("pay", context.idempotency_key)
        context.emit("paid", {"attempt": context.attempt})
        if context.attempt == 1:
            released.wait(30)
            returned.set()
        return f"attempt {context.attempt}"

    house = running(Saga("s", [Step("pay", step, timeout_s=0.2, backoff_s=0)]))

    # When the saga is begun, then the second attempt counts,
    begin(house, "s", 1)
    until(lambda: ends(house) == ["completed"], what="the saga to complete")
    assert house.one().results == {"pay": "attempt 2"}
    # and the first one changes nothing any more when it ends.
    facts = house.facts()
    released.set()
    assert returned.wait(10)
    begin(house, "s", 2)
    until(lambda: len(ends(house)) == 2, what="another saga to complete")
    assert facts == ["started", "step_failed", "paid", "step_done", "completed"]
    assert house.facts(type="paid") == ["paid", "paid"]
    assert len({key for _, key in world.calls}) == 2


def test_a_coroutine_that_hangs_is_cancelled(running: Running) -> None:
    cancelled = threading.Event()

    async def step(context: StepContext) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    house = running(Saga("s", [Step("pay", step, timeout_s=0.1, attempts=1)]))
    begin(house, "s", 1)

    until(lambda: ends(house) == ["compensated"], what="the saga to be compensated")
    assert cancelled.wait(10)


def test_a_saga_that_hangs_or_fails_holds_nobody_up(running: Running) -> None:
    # Given a saga that hangs, one that fails for ever, and many that do not
    released = threading.Event()
    world = World({"fails": ["fail"] * 1000})
    hang = Step("hang", lambda _: released.wait(60), timeout_s=60)
    house = running(
        Saga("hangs", [hang]),
        Saga("fails", [Step("fail", world.does("fails"), attempts=1000, backoff_s=0)]),
        Saga("fine", [Step("do", world.does("fine"))]),
    )
    begin(house, "hangs", 1, 2, 3)
    begin(house, "fails", 4)

    # When those are begun
    begin(house, "fine", *range(10, 50))

    # Then they complete while the others are under way
    until(lambda: ends(house, name="fine") == ["completed"] * 40, what="forty sagas to complete")
    assert house.book.counts()["running"] >= 3
    released.set()


def test_only_so_many_are_under_way_at_once_and_one_saga_never_twice(running: Running) -> None:
    # Given steps that note who else is at work
    lock, at_work, most, twice = threading.Lock(), [], [], []

    def step(context: StepContext) -> None:
        with lock:
            twice.extend([context.saga_id] * (context.saga_id in at_work))
            at_work.append(context.saga_id)
            most.append(len(at_work))
        asyncio.run(asyncio.sleep(0.005))
        with lock:
            at_work.remove(context.saga_id)

    house = running(Saga("s", [Step("one", step), Step("two", step)]))

    begin(house, "s", *range(60))
    until(lambda: len(ends(house)) == 60, what="sixty sagas to end")

    assert 1 < max(most) <= 16
    assert twice == []


def test_what_is_cancelled_in_the_middle_of_a_step_is_undone_after_it(running: Running) -> None:
    # Given a saga whose step is under way
    began, released, calls = threading.Event(), threading.Event(), []

    def step(context: StepContext) -> None:
        began.set()
        released.wait(30)
        calls.append("do")
        context.emit("paid")

    house = running(Saga("s", [Step("pay", step, undo=lambda _: calls.append("undo"))]))
    begin(house, "s", 1)
    assert began.wait(10)

    # When it is cancelled
    house.operations.act(house.one().id, "cancel")

    # Then it is undone once the step has ended, and what the step said is not recorded
    assert house.one().state == "compensating"
    released.set()
    until(lambda: ends(house) == ["compensated"], what="the saga to be compensated")
    assert calls == ["do", "undo"]
    assert house.facts(type="paid") == []


def test_what_is_under_way_when_it_stops_is_recorded_if_it_ends_soon(running: Running, tmp_path: Path) -> None:
    began, released, stop = threading.Event(), threading.Event(), threading.Event()

    def step(context: StepContext) -> None:
        began.set()
        released.wait(30)

    house = House(tmp_path / "other.sqlite", Saga("s", [Step("pay", step)]), inline=False, stop=stop)
    begin(house, "s", 1)
    house.runtime.take()
    thread = threading.Thread(target=house.runtime.run)
    thread.start()
    assert began.wait(10)

    stop.set()
    house.runtime.ring()
    released.set()
    thread.join(20)

    assert ends(house) == ["completed"]
    house.file.close()


def test_when_too_many_threads_hang_nothing_begins_until_one_ends() -> None:
    # Given hands that may leave two threads behind
    rung, released = threading.Event(), threading.Event()
    hands = ThreadedHands(rung.set, concurrency=4, most_left_behind=2)
    house_record = start_record()
    for _ in range(2):
        context = StepContext(house_record, purpose="do", tools=SagaTools())
        hands.start(
            Attempt(record=house_record, function=lambda _: released.wait(30), context=context, timeout_s=0.001)
        )

    # When both hang beyond their time
    ended: list[Attempt] = []
    until(lambda: len(ended) == 2 or ended.extend(hands.ended()), what="both to be given up")

    # Then there is room for nothing, until they end
    assert all(attempt.failure is not None and attempt.failure.timed_out for attempt in ended)
    assert (hands.room(), hands.worn_out) == (0, True)
    released.set()
    late: list[Attempt] = []
    until(lambda: late.extend(hands.ended()) or hands.room() == 4, what="the threads to end")
    assert late == []


def test_hanging_threads_are_told_of(running: Running) -> None:
    health, released = Health(), threading.Event()
    saga = Saga("s", [Step("hang", lambda _: released.wait(60), timeout_s=0.01, attempts=1)])
    house = running(saga, health=health)

    begin(house, "s", *range(40))

    until(lambda: [p.name for p in health.problems()] == ["sagas"], what="the problem to be reported")
    released.set()
    until(lambda: len(ends(house)) == 40, what="all sagas to end")
    until(lambda: health.problems() == [], what="the problem to be over")


def start_record() -> Any:
    saga = Saga("s", [Step("hang", lambda _: None)])
    return rules.begin(saga, start_command("s"), 0).record


def test_who_was_in_hand_at_the_last_two_deaths_is_alone_the_next_time(running: Running, tmp_path: Path) -> None:
    # Given three sagas that were all in hand when the process died twice
    path, lock, at_work, together = tmp_path / "in-hand.json", threading.Lock(), set(), set()

    def step(context: StepContext) -> None:
        with lock:
            at_work.add(context.saga_id)
            if len(at_work) > 1:
                together.update(at_work)
        asyncio.run(asyncio.sleep(0.02))
        with lock:
            at_work.remove(context.saga_id)

    saga = Saga("s", [Step("do", step)])
    ids = [rules.saga_id(start_command("s", number)) for number in (1, 2, 3)]
    for _ in range(2):
        hands = Hands(path)
        for id_ in ids:
            hands.take(f"{id_}:do", 0)

    # When they go on, beside others
    house = running(saga, in_hand=Hands(path))
    begin(house, "s", *range(1, 20))
    until(lambda: len(ends(house)) == 19, what="all to end")

    # Then each of the three was alone, and the others were not
    assert together
    assert together.isdisjoint(ids)
    assert set(ends(house)) == {"completed"}
