"""The runner with its threads: order, hanging handlers, restarts, and a full disk."""

from __future__ import annotations

import asyncio
import datetime as dt
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cdc_agent.errors import JournalFull
from cdc_agent.events import Event
from cdc_agent.health import Health
from cdc_agent.journal.base import Outcome, Query
from cdc_agent.journal.desk import SqliteDesk
from cdc_agent.journal.file import JournalFile
from cdc_agent.journal.sqlite import SqliteJournal
from cdc_agent.reactions import Agents, Context, Retries
from cdc_agent.reactions.context import Tools
from cdc_agent.reactions.runner import Runner
from cdc_agent.retry import Backoff, Retrier
from tests.support.wait import until

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
#: In CPython 3.11 a traced thread turns for ever at the entry of a function, as long as an exception waits for another
#: thread that is blocked in a call (seen with faulthandler: `is_coroutine` did not begin until the gate opened).
untraced = pytest.mark.skipif(sys.gettrace() is not None, reason="a tracer (coverage) holds up all other threads")


class Shop:
    """A journal in a file, and the agents of an app on threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stop = threading.Event()
        self.file = JournalFile(path)
        self.journal = SqliteJournal(self.file)
        self.desk = SqliteDesk(self.file)
        self.health = Health()
        self.runners: dict[str, Runner] = {}
        self.threads: list[threading.Thread] = []

    def open(self, app: Agents) -> None:
        for agent in app.agents.values():
            runner = Runner(
                agent,
                journal=self.journal,
                desk=self.desk,
                tools=Tools(commands=app.commands, recall=self.desk.recall),
                retrier=Retrier(self.stop, self.health, Backoff(initial_s=0.01, maximum_s=0.01)),
                stop=self.stop,
            )
            self.runners[agent.name] = runner
            thread = threading.Thread(target=runner.run, daemon=True)
            self.threads.append(thread)
            thread.start()

    def close(self) -> None:
        self.stop.set()
        self.journal.wake()
        for thread in self.threads:
            thread.join(30)
        self.file.close()

    def tell(self, *numbers: int, key: Callable[[int], str] = str, type_: str = "order") -> None:
        self.journal.append(
            [Event(id=f"e-{n}", source="shop", type=type_, key=key(n), time=NOW, data={"n": n}) for n in numbers]
        )

    def facts(self, type_: str) -> list[Event]:
        return [entry.event for entry in self.journal.find(Query(type=type_, limit=10_000))]


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    shop = Shop(tmp_path / "journal.sqlite")
    yield shop
    shop.close()


def test_events_of_a_key_come_in_order_and_those_of_others_meanwhile(shop: Shop) -> None:
    # Given an agent that is held up by the first event of one key
    app = Agents()
    gate = threading.Event()

    @app.on("order", concurrency=2)
    def handle(event: Event, context: Context) -> None:
        if event.data["n"] == 0:
            gate.wait(30)
        context.emit("handled", event.data["n"])

    shop.open(app)

    # When events of two keys come
    shop.tell(*range(10), key=lambda n: "even" if n % 2 == 0 else "odd")
    until(lambda: len(shop.facts("handled")) == 5)
    assert [event.data for event in shop.facts("handled")] == [1, 3, 5, 7, 9]
    gate.set()

    # Then the held ones follow in their order
    until(lambda: len(shop.facts("handled")) == 10)
    assert [event.data for event in shop.facts("handled")][5:] == [0, 2, 4, 6, 8]


def test_what_was_handled_before_a_restart_is_not_handled_after_it(tmp_path: Path) -> None:
    # Given an agent that handled all but the first event, which hangs on in its hands
    app = Agents()
    gate = threading.Event()
    handled: list[int] = []

    @app.on("order")
    def handle(event: Event, context: Context) -> None:
        if event.data["n"] == 0:
            gate.wait(30)
        handled.append(event.data["n"])

    first = Shop(tmp_path / "journal.sqlite")
    first.open(app)
    first.tell(*range(6))
    until(lambda: len(handled) == 5)
    until(lambda: len(first.desk.place("handle", 0).handled) == 5)
    first.stop.set()

    # When another daemon goes on, and there is more
    gate.set()
    first.close()
    handled.clear()
    second = Shop(tmp_path / "journal.sqlite")
    second.open(app)
    second.tell(6)

    # Then it handles what is left, and only that
    until(lambda: 6 in handled)
    second.close()
    assert sorted(handled) in ([0, 6], [6])


@untraced
def test_a_handler_that_hangs_is_given_up_and_its_late_word_does_not_count(shop: Shop) -> None:
    # Given a handler that hangs on one event, and only the first time
    app = Agents()
    gate, hung = threading.Event(), threading.Event()

    @app.on("order", timeout_s=0.5, concurrency=1, retries=Retries(attempts=2, initial_s=0.01))
    def handle(event: Event, context: Context) -> None:
        context.emit("handled", [event.data["n"], context.attempt])
        if event.data["n"] == 0 and context.attempt == 1:
            hung.set()
            gate.wait(30)

    shop.open(app)
    shop.tell(0, 1)

    # Then the others are handled, and this one by somebody else
    until(lambda: sorted(event.data for event in shop.facts("handled")) == [[0, 2], [1, 1]])
    gate.set()
    shop.tell(2)
    until(lambda: len(shop.facts("handled")) == 3)
    assert [0, 1] not in [event.data for event in shop.facts("handled")]


@untraced
def test_an_agent_all_of_whose_handlers_hang_stops_alone(shop: Shop) -> None:
    app = Agents()
    gate = threading.Event()

    @app.on("order", timeout_s=0.01, concurrency=1, retries=Retries(attempts=100, initial_s=0.01, maximum_s=0.01))
    def hang(event: Event, context: Context) -> None:
        gate.wait(60)

    @app.on("order")
    def work(event: Event, context: Context) -> None:
        context.emit("handled")

    shop.open(app)
    shop.tell(0)
    until(lambda: bool(shop.runners["hang"].failed))
    shop.tell(1)

    until(lambda: len(shop.facts("handled")) == 2)
    assert shop.runners["work"].failed == ""
    assert "hang" in shop.runners["hang"].failed
    gate.set()


def test_a_full_disk_is_waited_for_and_nothing_is_handled_twice(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a disk that is full when what came of an event is to be recorded
    app = Agents()
    handled: list[int] = []

    @app.on("order")
    def handle(event: Event, context: Context) -> None:
        handled.append(event.data["n"])
        context.emit("handled")

    settle, full = shop.desk.settle, [True, True, False]

    def settle_when_there_is_room(outcome: Outcome) -> bool:
        if full and full.pop(0):
            raise JournalFull("the disk under the journal is full")
        return settle(outcome)

    monkeypatch.setattr(shop.desk, "settle", settle_when_there_is_room)
    shop.open(app)
    shop.tell(1)

    until(lambda: len(shop.facts("handled")) == 1)
    assert handled == [1]
    assert shop.health.problems() == []


def test_a_new_agent_hears_of_what_comes_unless_it_asks_for_all(shop: Shop) -> None:
    app = Agents()

    @app.on("order")
    def late(event: Event, context: Context) -> None:
        context.emit("late", event.data["n"])

    @app.on("order", from_start=True)
    def historian(event: Event, context: Context) -> None:
        context.emit("told", event.data["n"])

    shop.tell(1)
    shop.open(app)
    shop.tell(2)

    until(lambda: len(shop.facts("told")) == 2 and len(shop.facts("late")) == 1)
    assert sorted(event.data for event in shop.facts("told")) == [1, 2]
    assert [event.data for event in shop.facts("late")] == [2]


def test_where_an_agent_is_becomes_durable_although_nothing_concerned_it(shop: Shop) -> None:
    app = Agents()

    @app.on("order")
    def idle(event: Event, context: Context) -> None: ...

    shop.open(app)
    shop.tell(1, 2, type_="other")
    until(lambda: shop.runners["idle"].passed == 2)
    shop.stop.set()
    shop.journal.wake()
    shop.threads[0].join(30)

    assert shop.desk.agents() == {"idle": 2}


def test_two_runners_of_one_agent_have_one_effect(shop: Shop) -> None:
    # Given a second one that does not know of the first
    app = Agents()
    gate = threading.Barrier(2, timeout=30)

    @app.on("order")
    def handle(event: Event, context: Context) -> None:
        gate.wait()
        context.emit("handled")

    shop.open(app)
    shop.open(app)
    shop.tell(1)

    until(lambda: all(runner.passed == shop.journal.head() for runner in shop.runners.values()))
    assert len(shop.facts("handled")) == 1


def test_what_is_in_hand_when_the_daemon_stops_is_ended_and_recorded(tmp_path: Path) -> None:
    # Given a handler in the middle of its work, a coroutine at that
    app = Agents()
    begun, gate = threading.Event(), threading.Event()

    @app.on("order")
    async def handle(event: Event, context: Context) -> None:
        begun.set()
        await asyncio.to_thread(gate.wait, 30)
        context.emit("handled")

    shop = Shop(tmp_path / "journal.sqlite")
    shop.open(app)
    shop.tell(1)
    assert begun.wait(30)

    # When the daemon is to stop
    shop.stop.set()
    shop.journal.wake()
    gate.set()
    shop.threads[0].join(30)

    # Then it has ended by the time the agent has
    assert len(shop.facts("handled")) == 1
    shop.close()


@untraced
@pytest.mark.parametrize("kind", ["function", "coroutine"])
def test_a_handler_that_computes_for_ever_is_ended_and_the_agent_goes_on(shop: Shop, kind: str) -> None:
    # Given a handler that never lets go, for every third event
    app = Agents()
    spinning: set[threading.Thread] = set()
    options: Any = {"timeout_s": 0.3, "concurrency": 1, "retries": Retries(attempts=2, initial_s=0.01)}

    def spin(event: Event, context: Context) -> None:
        if event.data["n"] % 3 == 0:
            spinning.add(threading.current_thread())
            while True:
                pass
        context.emit("handled", event.data["n"])

    async def spin_in_loop(event: Event, context: Context) -> None:
        spin(event, context)

    app.on("order", name="handle", **options)(spin if kind == "function" else spin_in_loop)
    shop.open(app)

    # When more of them come than may hang at a time
    shop.tell(*range(9))

    # Then the others are handled, those are parked, no thread of theirs is left, and the agent works
    until(lambda: shop.desk.letter_counts() == {"handle": 3}, 60)
    until(lambda: len(shop.facts("handled")) == 6)
    until(lambda: not any(thread.is_alive() for thread in spinning))
    assert {letter.reason for letter in shop.desk.letters()} == {"timeout"}
    assert len(spinning) == 6
    assert shop.runners["handle"].failed == ""
