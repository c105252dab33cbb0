"""Sagas complete or are compensated, whatever the outside world does, and say everything that became of them."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cdc_agent import metrics
from cdc_agent.errors import AgentError, JournalFull, UsageError
from cdc_agent.events import Event, Kind
from cdc_agent.journal.base import Query
from cdc_agent.journal.saga_book import SagaRecord
from cdc_agent.reactions.hands import Hands
from cdc_agent.sagas import Approval, Saga, Step, StepContext, rules
from cdc_agent.sagas.context import SagaTools
from cdc_agent.sagas.rules import Move
from tests.support.saga_world import NOW, House, World, start_command

NewHouse = Callable[..., House]


@pytest.fixture
def new_house(tmp_path: Path) -> Iterator[NewHouse]:
    houses: list[House] = []

    def build(*sagas: Saga, **more: Any) -> House:
        houses.append(House(tmp_path / "journal.sqlite", *sagas, **more))
        return houses[-1]

    yield build
    for house in houses:
        house.file.close()


def refund(world: World, **more: Any) -> Saga:
    """Reserve, pay by one gateway or the other, tell."""
    pay = {"attempts": 3, "backoff_s": 0.5, "alternatives": (world.does("gateway_b"),)} | more
    steps = [
        Step("reserve", world.does("reserve"), undo=world.does("release")),
        Step("pay", world.does("gateway_a"), **pay),
        Step("tell", world.does("tell"), undo=world.does("untell")),
    ]
    return Saga("refund", steps)


def test_a_saga_does_its_steps_in_order_and_completes(new_house: NewHouse) -> None:
    # Given a saga in a world where all is well
    world = World()
    house = new_house(refund(world))

    # When somebody begins it
    id_ = house.start("refund")

    # Then every step was done once, under a key of its own
    assert world.calls == [
        ("reserve", f"{id_}:reserve"),
        ("gateway_a", f"{id_}:pay"),
        ("tell", f"{id_}:tell"),
    ]
    assert house.one().state == "completed"
    assert house.one().results["pay"] == {"receipt": "receipt gateway_a"}
    assert house.facts() == ["started", "step_done", "step_done", "step_done", "completed"]


def test_a_command_that_is_read_again_begins_nothing(new_house: NewHouse) -> None:
    # Given a saga that has ended
    world = World()
    house = new_house(refund(world))
    house.start("refund")

    # When whoever began it does so again, and the runtime begins to read anew
    house.journal.append([start_command("refund")])
    house.runtime._reached = 0
    house.runtime.until_idle()

    # Then nothing happens
    assert len(house.book.find()) == 1
    assert len(world.calls) == 3


def test_a_failed_attempt_is_repeated_with_the_same_key_after_a_while(new_house: NewHouse) -> None:
    # Given a gateway that does not answer twice
    world = World({"gateway_a": ["fail", "fail"]})
    house = new_house(refund(world))

    # When the saga comes to it
    id_ = house.start("refund")

    # Then it is tried again after half a second, and a second more
    assert (house.one().state, house.one().attempt) == ("running", 1)
    assert house.runtime.next_due() == NOW.timestamp() + 0.5
    house.now += 0.49
    house.runtime.until_idle()
    assert world.names() == ["reserve", "gateway_a"]
    house.to_the_end()
    assert house.now == NOW.timestamp() + 1.5
    assert [call for call in world.calls if call[0] == "gateway_a"] == [("gateway_a", f"{id_}:pay")] * 3
    assert house.one().state == "completed"


def test_a_pause_between_attempts_survives_a_restart(new_house: NewHouse) -> None:
    world = World({"gateway_a": ["fail"]})
    house = new_house(refund(world))
    house.start("refund")

    house.reopened().runtime.until_idle()
    assert world.names() == ["reserve", "gateway_a"]

    house.to_the_end()
    assert world.names() == ["reserve", "gateway_a", "gateway_a", "tell"]


def test_when_one_way_fails_the_next_is_tried(new_house: NewHouse) -> None:
    world = World({"gateway_a": ["fail"] * 3, "gateway_b": ["fail"]})
    house = new_house(refund(world))

    house.start("refund")
    house.to_the_end()

    assert world.names() == ["reserve", *["gateway_a"] * 3, "gateway_b", "gateway_b", "tell"]
    assert house.facts(type="saga.alternative") == ["alternative"]
    assert house.one().state == "completed"


def test_when_every_way_fails_what_was_done_is_undone_the_last_first(new_house: NewHouse) -> None:
    # Given a saga whose last step fails for good
    world = World({"last": ["fail"] * 9})
    steps = [Step(n, world.does(n), undo=world.does(f"un{n}"), backoff_s=0) for n in ("one", "two", "last")]
    house = new_house(Saga("trip", steps))

    # When it is begun
    id_ = house.start("trip")
    house.to_the_end()

    # Then that step, which may have been done, and those before it are undone in reverse
    assert world.names() == ["one", "two", *["last"] * 3, "unlast", "untwo", "unone"]
    assert ("untwo", f"{id_}:two:undo") in world.calls
    record = house.one()
    assert record.state == "compensated"
    assert record.reason.startswith("step last failed: ConnectionError")
    assert house.facts()[-5:] == ["compensating", "undone", "undone", "undone", "compensated"]


def test_a_refusal_is_not_repeated_and_there_is_nothing_to_undo_of_it(new_house: NewHouse) -> None:
    world = World({"pay": ["refuse"]})
    steps = [Step(n, world.does(n), undo=world.does(f"un{n}")) for n in ("reserve", "pay")]
    house = new_house(Saga("refund", steps))

    house.start("refund")
    house.to_the_end()

    assert world.names() == ["reserve", "pay", "unreserve"]


def test_what_may_have_been_done_in_one_way_is_undone_although_another_was_refused(new_house: NewHouse) -> None:
    # Given one gateway that does what it is asked without ever answering, and one that refuses
    world = World({"a": ["lost"], "b": ["refuse"]})
    pay = Step("pay", world.does("a"), undo=world.does("unpay"), attempts=1, alternatives=(world.does("b"),))
    house = new_house(Saga("refund", [pay]))

    house.start("refund")
    house.to_the_end()

    assert world.names() == ["a", "b", "unpay"]
    assert house.one().state == "compensated"


def test_a_lost_answer_has_its_effect_once(new_house: NewHouse) -> None:
    world = World({"gateway_a": ["lost"]})
    house = new_house(refund(world))

    id_ = house.start("refund")
    house.to_the_end()

    assert world.names().count("gateway_a") == 2
    assert list(world.effects) == [f"{id_}:reserve", f"{id_}:pay", f"{id_}:tell"]


def test_what_cannot_be_undone_is_tried_for_ever_and_a_human_is_told_once(new_house: NewHouse) -> None:
    # Given something that cannot be undone for long, and somebody who wants to know
    world = World({"pay": ["refuse"], "release": ["fail"] * 50})
    steps = [Step("reserve", world.does("reserve"), undo=world.does("release")), Step("pay", world.does("pay"))]

    def alert(context: StepContext) -> None:
        context.command("call_a_human", {"saga": context.saga_id, "error": context.error})

    house = new_house(Saga("refund", steps, on_stuck=alert))
    house.start("refund")

    # When it has failed five times
    for _ in range(4):
        assert house.one().state == "compensating"
        house.now = house.runtime.next_due() or 0
        house.runtime.until_idle()

    # Then the saga is stuck, and says so, with what the alert emitted
    assert house.one().state == "stuck"
    [told] = house.journal.find(Query(kind=Kind.COMMAND, type="call_a_human"))
    assert told.event.data["error"] == "ConnectionError: release does not answer"
    assert house.facts(type="saga.stuck") == ["stuck"]
    facts = len(house.facts())

    # And it goes on trying, at most five minutes apart, without saying any more, until it succeeds.
    for _ in range(40):
        before, house.now = house.now, house.runtime.next_due() or 0
        assert house.now - before <= 300
        house.runtime.until_idle()
    assert len(house.facts()) == facts
    house.to_the_end()
    assert house.one().state == "compensated"
    assert house.facts()[facts:] == ["undone", "compensated"]
    assert len(house.journal.find(Query(kind=Kind.COMMAND, type="call_a_human"))) == 1


def test_an_alert_that_fails_is_told_too_and_holds_nothing_up(new_house: NewHouse) -> None:
    world = World({"pay": ["refuse"], "release": ["fail"] * 5})
    steps = [Step("reserve", world.does("reserve"), undo=world.does("release")), Step("pay", world.does("pay"))]
    house = new_house(Saga("refund", steps, on_stuck=World({"mail": ["fail"]}).does("mail")))

    house.start("refund")
    house.to_the_end()

    [stuck] = house.journal.find(Query(type="saga.stuck"))
    assert stuck.event.data["on_stuck_failed"] == "ConnectionError: mail does not answer"
    assert house.one().state == "compensated"


# What steps see and say.


def test_a_step_sees_what_the_saga_was_begun_with_and_what_earlier_steps_returned(new_house: NewHouse) -> None:
    seen: list[Any] = []

    def first(context: StepContext) -> Any:
        seen.append((context.data, context.results, context.attempt, context.key))
        context.results["mine"] = "not kept"
        return {"n": 1}

    async def second(context: StepContext) -> Any:
        await asyncio.sleep(0)
        seen.append((context.results, context.event.id))

    house = new_house(Saga("s", [Step("first", first), Step("second", second)]))
    house.start("s", data={"cents": 5})

    assert seen == [({"cents": 5}, {"mine": "not kept"}, 1, "order-1"), ({"first": {"n": 1}}, "1")]
    assert house.one().results == {"first": {"n": 1}, "second": None}


def test_what_a_step_emits_counts_when_it_ends_well_and_only_then(new_house: NewHouse) -> None:
    # Given a step that emits and fails, and emits again and succeeds
    outcomes = iter([True, False])

    def step(context: StepContext) -> None:
        context.emit("paid", {"attempt": context.attempt})
        context.command("thank", key="customer-3")
        if next(outcomes):
            raise ConnectionError

    house = new_house(Saga("s", [Step("pay", step)]))
    id_ = house.start("s")
    house.to_the_end()

    # Then what it said the second time is in the journal, with where it comes from
    paid, thanked = house.journal.find(Query(type="paid")) + house.journal.find(Query(type="thank"))
    assert paid.event.data == {"attempt": 2}
    assert (paid.event.source, paid.event.key, paid.event.time) == ("saga/s", "order-1", NOW + dt.timedelta(seconds=1))
    assert (paid.event.correlation_id, paid.event.causation_id, paid.event.hops) == ("purchase-7", "1", 2)
    assert [step.partition(":")[0] for step in paid.event.trail] == ["shop", "saga/s"]
    assert (thanked.event.kind, thanked.event.key) == (Kind.COMMAND, "customer-3")
    assert paid.event.id.startswith(f"{id_}/")


@pytest.mark.parametrize("result", [object(), 1 << 70, "x" * 2_000_000, float], ids=["object", "int", "long", "type"])
def test_a_result_that_is_no_json_is_a_failure(new_house: NewHouse, result: Any) -> None:
    house = new_house(Saga("s", [Step("odd", lambda _: result, attempts=1)]))

    house.start("s")

    assert house.one().state == "compensated"
    assert "AgentError" in house.one().error


def test_a_step_can_search_and_command_only_what_there_is(new_house: NewHouse) -> None:
    tools = SagaTools(search=lambda *what, **more: [(what, more)], commands={"thank"})
    told: list[Any] = []

    def step(context: StepContext) -> None:
        told.append(context.search("docs", "refunds", k=2))
        context.command("thank")
        with pytest.raises(AgentError, match="no agent carries out 'thnak'"):
            context.command("thnak")

    house = new_house(Saga("s", [Step("look", step)]), tools=tools)
    house.start("s")

    assert house.one().state == "completed"
    assert told == [[(("docs", "refunds"), {"k": 2, "where": None})]]


def test_an_exception_may_say_anything(new_house: NewHouse) -> None:
    # Given steps that raise what is no text, no exception, or cannot be told
    class Mute(Exception):
        def __str__(self) -> str:
            raise ValueError

    raised = iter([ValueError("\udce4 " * 9_000), SystemExit(3), GeneratorExit(), Mute(), TimeoutError()])

    def step(_: StepContext) -> None:
        raise next(raised)

    house = new_house(Saga("s", [Step("odd", step, attempts=5, backoff_s=0)]))
    house.start("s")
    house.to_the_end()

    assert house.one().state == "compensated"
    errors = [entry.event.data["error"] for entry in house.journal.find(Query(type="saga.step_failed"))]
    assert [error.partition(":")[0] for error in errors] == [
        *("ValueError", "SystemExit", "GeneratorExit", "Mute", "TimeoutError")
    ]


def test_an_event_whose_name_is_no_text_is_a_failure_of_its_step_alone(new_house: NewHouse) -> None:
    def step(context: StepContext) -> None:
        context.emit("\ud800")

    house = new_house(Saga("s", [Step("odd", step, attempts=1)]), Saga("fine", [Step("do", lambda _: None)]))
    house.start("s")
    house.start("fine", 2)

    assert [str(record.state) for record in house.book.find()] == ["compensated", "completed"]


def test_a_long_journal_is_not_read_again_from_its_beginning(new_house: NewHouse) -> None:
    house = new_house(Saga("s", [Step("do", lambda _: None)]))
    facts = [Event(id=str(n), source="shop", type="order", time=NOW, data=None) for n in range(10_500)]
    house.journal.append(facts)
    house.runtime.until_idle()

    house.reopened()

    assert house.runtime._reached >= 10_000


# Approvals.


def approved(world: World, **more: Any) -> Saga:
    return Saga(
        "payout",
        [
            Step("reserve", world.does("reserve"), undo=world.does("release")),
            Approval("agree", **more),
            Step("pay", world.does("pay")),
        ],
    )


def test_a_saga_waits_for_an_approval_over_a_restart_and_then_goes_on(new_house: NewHouse) -> None:
    # Given a saga that waits
    world = World()
    house = new_house(approved(world))
    id_ = house.start("payout")
    assert (house.one().state, house.one().step) == ("waiting", "agree")
    assert house.facts()[-1] == "approval_wanted"

    # When somebody approves after a restart
    house.reopened()
    house.now += 3600
    house.runtime.until_idle()
    assert world.names() == ["reserve"]
    answer = house.operations.act(id_, "approve", step="agree", by="anna", note="fine")
    house.runtime.until_idle()

    # Then it goes on, and it is known who it was
    assert answer is not None
    assert answer["state"] == "running"
    assert world.names() == ["reserve", "pay"]
    assert house.one().results["agree"] == {"approved": True, "by": "anna", "note": "fine"}
    [said] = house.journal.find(Query(type="saga.approved"))
    assert said.event.data["by"] == "anna"


def test_a_second_approval_is_refused(new_house: NewHouse) -> None:
    house = new_house(approved(World()))
    id_ = house.start("payout")
    house.operations.act(id_, "approve")

    with pytest.raises(UsageError, match="waits for nobody's approval"):
        house.operations.act(id_, "approve")
    assert house.operations.act("nobody", "approve") is None


def test_an_approval_of_another_step_is_refused(new_house: NewHouse) -> None:
    house = new_house(approved(World()))
    id_ = house.start("payout")

    with pytest.raises(UsageError, match="does not wait for pay"):
        house.operations.act(id_, "approve", step="pay")
    assert house.one().state == "waiting"


def test_a_rejection_undoes_what_was_done(new_house: NewHouse) -> None:
    world = World()
    house = new_house(approved(world))

    house.operations.act(house.start("payout"), "reject", by="bert")
    house.runtime.until_idle()

    assert world.names() == ["reserve", "release"]
    assert house.facts()[-4:] == ["rejected", "compensating", "undone", "compensated"]


@pytest.mark.parametrize(
    ("on_timeout", "calls", "state"),
    [("compensate", ["reserve", "release"], "compensated"), ("continue", ["reserve", "pay"], "completed")],
)
def test_when_nobody_answers_in_time_the_declaration_decides(
    new_house: NewHouse, on_timeout: str, calls: list[str], state: str
) -> None:
    world = World()
    house = new_house(approved(world, timeout_s=60, on_timeout=on_timeout))
    id_ = house.start("payout")

    house.now += 59
    house.runtime.until_idle()
    assert house.one().state == "waiting"
    house.now += 1
    house.runtime.until_idle()

    assert world.names() == calls
    assert house.one().state == state
    assert house.facts(type="saga.timed_out") == ["timed_out"]
    with pytest.raises(UsageError):
        house.operations.act(id_, "approve")


def test_a_saga_may_begin_and_end_with_an_approval(new_house: NewHouse) -> None:
    world = World()
    house = new_house(Saga("s", [Approval("first"), Step("do", world.does("do")), Approval("last")]))
    id_ = house.start("s")

    for _ in range(2):
        house.operations.act(id_, "approve")
        house.runtime.until_idle()

    assert world.names() == ["do"]
    assert house.one().state == "completed"


# Cancelling.


def test_to_cancel_is_to_undo_what_was_done_and_what_may_be_being_done(new_house: NewHouse) -> None:
    # Given a saga that waits for its second attempt at a step
    world = World({"two": ["lost"]})
    steps = [Step(n, world.does(n), undo=world.does(f"un{n}")) for n in ("one", "two", "three")]
    house = new_house(Saga("trip", steps))
    id_ = house.start("trip")

    # When it is cancelled
    house.operations.act(id_, "cancel", by="carl")
    house.to_the_end()

    # Then both are undone, and it cannot be cancelled again
    assert world.names() == ["one", "two", "untwo", "unone"]
    assert "cancelled" in house.facts()
    with pytest.raises(UsageError, match="is compensated"):
        house.operations.act(id_, "cancel")


# Declarations that change.


def test_a_saga_whose_declaration_changed_is_left_alone_until_it_is_declared_as_it_was(new_house: NewHouse) -> None:
    # Given a saga that waits, declared otherwise after a restart
    world = World()
    house = new_house(approved(world))
    id_ = house.start("payout")
    other = Saga("payout", [Step("hold", world.does("hold")), Approval("agree"), Step("pay", world.does("pay"))])
    house.reopened(other)
    house.now += 1_000_000
    house.runtime.until_idle()

    # Then nothing is guessed
    [shown] = house.operations.find(state="orphaned")
    assert shown["state"] == "orphaned"
    assert "reserve, agree, pay" in shown["hint"]
    with pytest.raises(UsageError, match="is an orphan") as refused:
        house.operations.act(id_, "approve")
    assert "reserve, agree, pay" in refused.value.hint

    # When it is declared as it was, then it goes on
    house.now = NOW.timestamp()
    house.reopened(approved(world))
    house.operations.act(id_, "approve")
    house.runtime.until_idle()
    assert world.names() == ["reserve", "pay"]


def test_a_saga_that_nobody_declares_begins_when_somebody_does(new_house: NewHouse) -> None:
    world = World()
    house = new_house(approved(world))
    house.start("refund")
    [shown] = house.operations.find(name="refund")
    assert (shown["state"], shown["step"]) == ("orphaned", "")
    assert "declares a saga refund" in shown["hint"]

    house.reopened(refund(world), approved(world)).runtime.until_idle()

    assert world.names() == ["reserve", "gateway_a", "tell"]
    assert house.one().state == "completed"


@pytest.mark.parametrize("name", ["", "a b", "x" * 100, "a/b"])
def test_a_name_that_no_saga_can_have_begins_nothing(new_house: NewHouse, name: str) -> None:
    house = new_house(approved(World()))
    house.journal.append([start_command(name)])

    house.runtime.until_idle()

    assert house.book.find() == []


# Looking.


def test_what_is_shown_can_be_written_as_json_and_has_everything(new_house: NewHouse) -> None:
    house = new_house(approved(World()))
    id_ = house.start("payout", data={"cents": 7})

    shown = house.operations.show(id_)

    assert json.loads(json.dumps(shown)) == shown
    assert shown is not None
    assert (shown["data"], shown["steps"], shown["step"]) == ({"cents": 7}, ["reserve", "agree", "pay"], "agree")
    assert [said["type"] for said in shown["history"]] == ["saga.started", "saga.step_done", "saga.approval_wanted"]
    assert house.operations.show("nobody") is None
    assert "data" not in house.operations.find()[0]
    with pytest.raises(UsageError, match="no state"):
        house.operations.find(state="sleeping")


# Steps that kill the process. A death is what leaves the file as it is.


def test_a_step_that_kills_the_process_again_and_again_is_given_up(new_house: NewHouse, tmp_path: Path) -> None:
    # Given a saga whose second step kills the process whenever it is done
    world, lives = World(), []
    kill = Step("kill", lambda _: lives.append(1), attempts=2, alternatives=[world.does("other")])
    saga = Saga("s", [Step("one", world.does("one")), kill])
    house = new_house(saga, in_hand=Dying(tmp_path / "in-hand.json", kill_at=":kill"))
    with pytest.raises(Died):
        house.start("s")

    # When it is started again, and again
    for _ in range(2):
        house.again(in_hand=Dying(tmp_path / "in-hand.json", kill_at=":kill"))
        with pytest.raises(Died):
            house.runtime.until_idle()
    house.again(in_hand=Dying(tmp_path / "in-hand.json", kill_at="nothing"))
    house.to_the_end()

    # Then it is not done a fourth time: there is another way
    assert lives == []
    assert world.names() == ["one", "other"]
    [failed] = house.journal.find(Query(type="saga.step_failed"))
    assert failed.event.data["error"] == "the process died 3 times in a row while this was done"
    assert house.one().state == "completed"


def test_an_undo_that_kills_the_process_is_tried_on_with_pauses(new_house: NewHouse, tmp_path: Path) -> None:
    world = World({"pay": ["refuse"]})
    saga = Saga("s", [Step("one", world.does("one"), undo=world.does("undo")), Step("pay", world.does("pay"))])
    path = tmp_path / "in-hand.json"
    house = new_house(saga, in_hand=Dying(path, kill_at=":undo"))
    with pytest.raises(Died):
        house.start("s")

    # When it has died of it three times
    for _ in range(2):
        house.again(in_hand=Dying(path, kill_at=":undo"))
        with pytest.raises(Died):
            house.runtime.until_idle()
    house.again(in_hand=Dying(path, kill_at="nothing"))
    house.runtime.until_idle()

    # Then it rests, and goes on
    assert (house.one().state, house.one().attempt) == ("compensating", 1)
    assert world.names() == ["one", "pay"]
    house.to_the_end()
    assert house.one().state == "compensated"
    assert world.names() == ["one", "pay", "undo"]


def test_a_process_that_ends_as_it_should_is_no_death(new_house: NewHouse, tmp_path: Path) -> None:
    path = tmp_path / "in-hand.json"
    saga = Saga("s", [Step("one", lambda _: None, attempts=1)])
    for life in range(4):
        hands = Dying(path, kill_at=":one")
        if not life:
            house = new_house(saga, in_hand=hands)
            house.journal.append([start_command("s")])
        else:
            house.again(in_hand=hands)
        with pytest.raises(Died):
            house.runtime.until_idle()
        hands.close()

    house.again(in_hand=Hands(path))
    house.runtime.until_idle()
    assert house.one().state == "completed"


class Died(BaseException):
    """The process is no more."""


class Dying(Hands):
    """Dies as soon as something of this name is in hand."""

    def __init__(self, path: Path, *, kill_at: str) -> None:
        super().__init__(path)
        self._kill_at = kill_at

    def take(self, agent: str, number: int) -> None:
        super().take(agent, number)
        if agent.endswith(self._kill_at):
            raise Died


# Two at once, and no room.


def test_an_answer_that_comes_second_is_decided_anew(new_house: NewHouse) -> None:
    # Given somebody who approves, and somebody else who rejects in between
    house = new_house(approved(World()))
    id_ = house.start("payout")

    def decide(saga: Saga, record: SagaRecord, now_us: int) -> Move:
        move = rules.approve(saga, record, "", {}, now_us)
        house.operations.act(id_, "reject")
        return move

    # Then the first of them to be recorded counts, and the other is told
    with pytest.raises(UsageError, match="waits for nobody's approval"):
        house.runtime.answer(id_, decide)
    assert house.one().state == "compensating"
    assert "approved" not in house.facts()


def test_without_room_on_the_disk_sagas_wait_and_answers_are_refused(new_house: NewHouse) -> None:
    # Given a disk that is full for a while, and who tries again
    full: list[str] = []

    def keep(write: Callable[[], Any]) -> Any:
        while True:
            try:
                return write()
            except JournalFull:
                full.pop()

    world = World()
    house = new_house(approved(world), keep=keep)
    save = house.book.save

    def save_if_there_is_room(*what: Any) -> bool:
        if full:
            raise JournalFull("the disk is full")
        return save(*what)

    house.book.save = save_if_there_is_room  # type: ignore[method-assign]
    full.extend(["", ""])

    # When a step ends meanwhile, then it is recorded when there is room, and was done once
    id_ = house.start("payout")
    assert (full, world.names(), house.one().state) == ([], ["reserve"], "waiting")

    # When somebody answers meanwhile, they are told to try again
    full.append("")
    with pytest.raises(JournalFull):
        house.operations.act(id_, "approve")
    assert (full, house.one().state) == ([""], "waiting")


def test_what_ended_is_counted_by_how_and_what_is_under_way_by_state(new_house: NewHouse) -> None:
    before = metrics.total(metrics.SAGAS_ENDED), metrics.total(metrics.SAGA_ATTEMPTS)
    house = new_house(approved(World()))
    first, _ = house.start("payout"), house.start("payout", 2)

    house.operations.act(first, "approve")
    house.runtime.until_idle()
    house.runtime.tell()

    assert (metrics.total(metrics.SAGAS_ENDED), metrics.total(metrics.SAGA_ATTEMPTS)) == (before[0] + 1, before[1] + 3)
    [family] = metrics.SAGAS.collect()
    assert {sample.labels["state"]: sample.value for sample in family.samples} == {
        "running": 0,
        "waiting": 1,
        "compensating": 0,
        "stuck": 0,
        "orphaned": 0,
    }
