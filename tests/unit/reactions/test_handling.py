"""What agents see and do, told with the bench that ships for its users: the runner of the daemon, without threads."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from cdc_agent.errors import AgentError, ConfigError
from cdc_agent.events import Event
from cdc_agent.reactions import Agents, Context, Fuse, Park, Retries
from cdc_agent.testing import Bench


def test_one_fact_reaches_all_who_listen_each_with_a_life_of_its_own() -> None:
    # Given three agents on one purchase, one of which fails for good
    app = Agents()
    seen: list[str] = []

    @app.on("purchase.made")
    def thank(event: Event, context: Context) -> None:
        seen.append(f"thank {event.key}")

    @app.on("purchase.*")
    def count(event: Event, context: Context) -> None:
        context.state["n"] = context.state.get("n", 0) + 1

    @app.on("purchase.made", retries=Retries(attempts=2))
    def fraud(event: Event, context: Context) -> None:
        raise RuntimeError("the gateway is down")

    # When it happens, and is delivered twice
    with Bench(app) as bench:
        bench.emit("purchase.made", key="7", id_="one")
        bench.emit("purchase.made", key="7", id_="one")
        bench.run()

        # Then the others have done their work, once, and the third has a dead letter
        assert seen == ["thank 7"]
        assert bench.state("count", "7") == {"n": 1}
        [letter] = bench.letters
        assert (letter.agent, letter.reason, letter.attempts) == ("fraud", "failed", 2)
        assert letter.error == "RuntimeError: the gateway is down"


def test_what_a_handler_emits_says_what_it_comes_of() -> None:
    app = Agents()

    @app.on("payment_failed")
    def gather(event: Event, context: Context) -> None:
        context.emit("looked_up", {"n": 1})
        context.command("offer", {"order": event.key}, key="customer-1")

    @app.command("offer")
    def offer(event: Event, context: Context) -> None:
        context.emit("offered")

    with Bench(app) as bench:
        cause = bench.emit("payment_failed", key="order-7")
        bench.run()

        [looked_up] = bench.facts("looked_up")
        [command] = bench.commands()
        [offered] = bench.facts("offered")
    assert (looked_up.key, command.key, offered.key) == ("order-7", "customer-1", "customer-1")
    assert looked_up.causation_id == command.causation_id == cause.id
    assert offered.causation_id == command.id
    assert {e.correlation_id for e in (looked_up, command, offered)} == {cause.id}
    assert [e.hops for e in (cause, command, offered)] == [0, 1, 2]
    assert [step.partition(":")[0] for step in offered.trail] == ["gather", "offer"]


def test_an_attempt_that_failed_has_had_no_effect() -> None:
    # Given a handler that fails at its end, the first time
    app = Agents()
    attempts: list[tuple[int, str]] = []

    @app.on("order")
    def handle(event: Event, context: Context) -> None:
        attempts.append((context.attempt, context.idempotency_key))
        context.emit("begun")
        context.state["seen"] = context.attempt
        if context.attempt == 1:
            raise RuntimeError

    with Bench(app) as bench:
        bench.emit("order", key="7")
        bench.run()

        # Then only what the second did is there, and both gave the outside world the same key
        assert len(bench.facts("begun")) == 1
        assert bench.state("handle", "7") == {"seen": 2}
    assert [attempt for attempt, _ in attempts] == [1, 2]
    assert len({key for _, key in attempts}) == 1


def test_a_handler_that_parks_is_not_asked_again_until_somebody_replays() -> None:
    app = Agents()
    fixed: list[bool] = []

    @app.on("order")
    def handle(event: Event, context: Context) -> None:
        if not fixed:
            raise Park("no such customer")
        context.emit("handled")

    with Bench(app) as bench:
        bench.emit("order")
        bench.run()
        [letter] = bench.letters
        assert (letter.reason, letter.error, letter.attempts) == ("parked", "no such customer", 1)

        # When what was wrong is mended and the letter given back
        fixed.append(True)
        bench.replay(letter)
        bench.run()

        assert bench.letters == []
        assert len(bench.facts("handled")) == 1


def test_a_replay_that_fails_again_is_a_letter_again() -> None:
    app = Agents()

    @app.on("order", retries=Retries(attempts=2))
    def handle(event: Event, context: Context) -> None:
        raise RuntimeError("still")

    with Bench(app) as bench:
        bench.emit("order")
        bench.run()
        bench.replay(bench.letters[0])
        bench.run()

        [letter] = bench.letters
        assert (letter.state, letter.attempts) == ("parked", 4)


def test_coroutines_are_handlers_too_and_their_time_is_limited() -> None:
    import asyncio

    app = Agents()

    @app.on("quick")
    async def quick(event: Event, context: Context) -> None:
        await asyncio.sleep(0)
        context.emit("done")

    @app.on("slow", timeout_s=0.01, retries=Retries(attempts=1))
    async def slow(event: Event, context: Context) -> None:
        await asyncio.sleep(60)

    with Bench(app) as bench:
        bench.emit("quick")
        bench.emit("slow")
        bench.run()

        assert len(bench.facts("done")) == 1
        assert [letter.reason for letter in bench.letters] == ["timeout"]


def test_a_condition_and_a_key_of_its_own_narrow_what_an_agent_remembers() -> None:
    app = Agents()

    @app.on_change(
        "public.purchases",
        ops="c",
        when=lambda e: e.data["after"]["amount"] > 10,
        key=lambda e: e.data["after"]["address"],
    )
    def windows(event: Event, context: Context) -> None:
        context.state.setdefault("orders", []).append(event.key)

    with Bench(app) as bench:
        for number, amount in enumerate((5, 50, 60)):
            bench.change("public.purchases", after={"id": number, "amount": amount, "address": "Elm St"})
        bench.change("public.purchases", before={"id": 1}, after={"id": 1, "amount": 99, "address": "Elm St"})
        bench.change("public.others", after={"id": 1, "amount": 99, "address": "Elm St"})
        bench.run()

        assert bench.state("windows", "Elm St") == {"orders": ["1", "2"]}


def test_the_clock_wakes_agents_once_for_each_time() -> None:
    app = Agents()
    times: list[str] = []

    @app.every("5m")
    def sweep(event: Event, context: Context) -> None:
        times.append(event.time.isoformat())

    with Bench(app, now=dt.datetime(2026, 1, 1, 12, 0, 30, tzinfo=dt.UTC)) as bench:
        bench.run()
        bench.advance(60)
        bench.advance(4 * 60)
        bench.advance(3 * 3600)

    assert times == ["2026-01-01T12:00:00+00:00", "2026-01-01T12:05:00+00:00", "2026-01-01T15:05:00+00:00"]


def test_an_agent_can_search_the_index() -> None:
    app = Agents()

    @app.on("question")
    def answer(event: Event, context: Context) -> None:
        context.emit("answer", context.search("docs", "refunds", k=1, where={"lang": "en"}))

    def index(collection: str, query: str, *, k: int, where: Any) -> list[str]:
        return [f"{collection} {query} {k} {where}"]

    with Bench(app, search=index) as bench:
        bench.emit("question")
        bench.run()
        assert bench.facts("answer")[0].data == ["docs refunds 1 {'lang': 'en'}"]


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (lambda c: c.emit(""), "needs a type"),
        (lambda c: c.emit("x", {1, 2}), "is no JSON"),
        (lambda c: c.emit("x", key="\ud800"), "no text"),
        (lambda c: c.emit("\ud800"), "no text"),
        (lambda c: c.emit("x", "\ud800"), "is no JSON"),
        (lambda c: c.emit("x", "y" * (2 << 20)), "bytes of JSON"),
        (lambda c: c.command("nobody"), "no agent carries out 'nobody'"),
        (lambda c: c.start("nothing"), "no saga 'nothing'"),
        (lambda c: c.search("docs", "x"), "no index"),
    ],
)
def test_what_cannot_be_asked_for_is_said_at_once(act: Any, said: str) -> None:
    app = Agents()
    raised: list[BaseException] = []

    @app.on("order")
    def handle(event: Event, context: Context) -> None:
        try:
            act(context)
        except AgentError as exc:
            raised.append(exc)

    with Bench(app) as bench:
        bench.emit("order")
        bench.run()
    assert said in str(raised[0])


class TestLoopGuard:
    def test_two_agents_that_wake_each_other_stop_and_say_how_they_came_there(self) -> None:
        # Given ping and pong, about the same thing
        app = Agents()

        @app.on("ping")
        def one(event: Event, context: Context) -> None:
            context.emit("pong")

        @app.on("pong")
        def two(event: Event, context: Context) -> None:
            context.emit("ping")

        with Bench(app) as bench:
            bench.emit("ping", key="7")
            bench.run()

            # Then the first one that meets its own work parks it, with the way that led there
            assert len(bench.facts()) == 3
            [letter] = bench.letters
            assert (letter.agent, letter.reason) == ("one", "loop")
            assert "one > two" in letter.error
            assert letter.event.hops == 2

    def test_an_agent_may_be_allowed_to_come_back_a_number_of_times(self) -> None:
        app = Agents()
        tries: list[int] = []

        @app.on("payment_failed", revisits=3)
        def again(event: Event, context: Context) -> None:
            tries.append(event.hops)
            context.emit("payment_failed")

        with Bench(app) as bench:
            bench.emit("payment_failed", key="7")
            bench.run()
            assert tries == [0, 1, 2, 3]
            assert [letter.reason for letter in bench.letters] == ["loop"]

    def test_a_loop_over_ever_new_keys_ends_at_the_hop_limit(self) -> None:
        app = Agents()

        @app.on("copied")
        def copy(event: Event, context: Context) -> None:
            context.emit("copied", key=f"{event.key}+")

        with Bench(app) as bench:
            bench.emit("copied", key="7")
            bench.run()
            assert [letter.reason for letter in bench.letters] == ["hop_limit"]
            assert len(bench.facts()) == 18

    def test_a_loop_that_leaves_no_trace_blows_the_fuse(self) -> None:
        # Given somebody outside who answers every fact with a new one
        app = Agents()

        @app.on("page.updated", fuse=Fuse(events=3, window_s=60))
        def update(event: Event, context: Context) -> None:
            context.emit("updated")

        with Bench(app) as bench:
            for _ in range(5):
                bench.emit("page.updated", key="home")
            bench.emit("page.updated", key="about")
            bench.run()
            assert len(bench.facts("updated")) == 4
            assert [letter.reason for letter in bench.letters] == ["fuse", "fuse"]

            # and a minute later it is whole again.
            bench.advance(61)
            bench.emit("page.updated", key="home")
            bench.run()
            assert len(bench.facts("updated")) == 5


@pytest.mark.parametrize(
    ("declare", "said"),
    [
        (lambda app: app.on(), "names no type"),
        (lambda app: app.on_change("payments"), "names no table"),
        (lambda app: app.on_change("public.payments", ops="x"), "names no changes"),
        (lambda app: app.command("offer.*"), "is a pattern"),
        (lambda app: app.every("soon"), "is no interval"),
        (lambda app: app.every(0), "too often"),
        (lambda app: app.on("x", name="no spaces")(print), "is no name"),
        (lambda app: app.on("x", timeout_s=0)(print), "too small"),
        (lambda app: (app.on("x", name="a")(print), app.on("y", name="a")(print)), "two agents named a"),
        (lambda app: (app.command("x", name="a")(print), app.command("x", name="b")(print)), "both carry out x"),
        (lambda _: Retries(attempts=0), "make no sense"),
    ],
)
def test_what_makes_no_agent_is_said_where_it_is_declared(declare: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        declare(Agents())
    assert caught.value.hint


def test_agents_that_go_on_for_ever_end_the_test() -> None:
    app = Agents()

    @app.on("x", revisits=10**9, fuse=None)
    def loop(event: Event, context: Context) -> None:
        context.event = Event(**{**{n: getattr(event, n) for n in event.__slots__}, "hops": 0, "trail": ()})
        context.emit("x")

    with Bench(app) as bench:
        bench.emit("x")
        with pytest.raises(AssertionError, match="for ever"):
            bench.run()
