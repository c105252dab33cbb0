"""Sagas in the tests of users: begun by a handler, carried on by ``Bench``, without threads and without waiting."""

from __future__ import annotations

from typing import Any

import pytest

from cdc_agent import Agents, Context, Event
from cdc_agent.errors import AgentError, ConfigError, UsageError
from cdc_agent.sagas import Approval, Saga, Step, StepContext
from cdc_agent.testing import Bench
from tests.support.saga_world import World


def shop(world: World, *more: Any) -> Agents:
    """A paid order is delivered; who pays by mistake gets a refund."""
    app = Agents()
    refund = Saga(
        "refund",
        [Step("reserve", world.does("reserve"), undo=world.does("release")), *more, Step("pay", world.does("pay"))],
    )
    app.add(refund)

    @app.on("paid_by_mistake")
    def begin(event: Event, context: Context) -> None:
        context.start(refund, {"cents": event.data["cents"]})

    return app


def test_a_handler_begins_a_saga_which_is_carried_on_to_its_end() -> None:
    # Given a gateway that fails twice
    world = World({"pay": ["fail", "fail"]})
    with Bench(shop(world)) as bench:
        # When an event comes, twice
        for _ in range(2):
            bench.emit("paid_by_mistake", {"cents": 5}, key="order-7", id_="one")
        bench.run()

        # Then there is one saga, which ended well, and everything is said of it under the key of the event
        [saga] = bench.sagas("refund")
        assert (saga.state, saga.key) == ("completed", "order-7")
        assert world.names() == ["reserve", "pay", "pay", "pay"]
        assert [fact.type for fact in bench.facts("saga.*", key="order-7")][-1] == "saga.completed"
        assert {fact.correlation_id for fact in bench.facts("saga.*")} == {"one"}


def test_a_saga_can_be_begun_from_outside_and_by_nobody_else() -> None:
    world = World()
    app = shop(world)
    with pytest.raises(ConfigError, match="begins a saga"):
        app.command("saga.start.refund")
    with Bench(app) as bench:
        bench.command("saga.start.refund", {"cents": 5}, key="order-8")
        bench.run()

        assert [saga.state for saga in bench.sagas()] == ["completed"]
    assert "saga.start.refund" in app.commands


def test_an_approval_waits_for_the_test_to_answer() -> None:
    world = World()
    with Bench(shop(world, Approval("agree", timeout_s=60))) as bench:
        bench.emit("paid_by_mistake", {"cents": 5})
        bench.run()
        [saga] = bench.sagas()
        assert (saga.state, world.names()) == ("waiting", ["reserve"])

        bench.answer("approve", saga, by="anna")

        assert bench.sagas()[0].state == "completed"
        with pytest.raises(UsageError):
            bench.answer("approve", saga)


def test_the_time_of_an_approval_passes_when_the_test_says_so() -> None:
    world = World()
    with Bench(shop(world, Approval("agree", timeout_s=60))) as bench:
        bench.emit("paid_by_mistake", {"cents": 5})
        bench.run()

        bench.advance(60)

        assert (bench.sagas()[0].state, world.names()) == ("compensated", ["reserve", "release"])


def test_agents_and_sagas_wake_each_other() -> None:
    # Given a saga whose step asks an agent to act, and an agent that hears how sagas end
    app = Agents()

    def ask(context: StepContext) -> None:
        context.command("thank", {"saga": context.saga_id})
        with pytest.raises(AgentError, match="no agent carries out"):
            context.command("curse")

    app.add(Saga("thanks", [Step("ask", ask)]))

    @app.on("order_paid")
    def begin(event: Event, context: Context) -> None:
        context.start("thanks")

    @app.command("thank")
    def thank(event: Event, context: Context) -> None:
        context.emit("thanked")

    @app.on("saga.completed")
    def done(event: Event, context: Context) -> None:
        context.emit("known", event.data)

    with Bench(app) as bench:
        bench.emit("order_paid", key="order-7")
        bench.run()

        assert [fact.key for fact in bench.facts("thanked")] == ["order-7"]
        [known] = bench.facts("known")
        assert known.data["saga"] == "thanks"
        assert bench.letters == []
