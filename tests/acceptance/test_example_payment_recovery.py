"""examples/payment_recovery: a failed payment is answered by one offer that suits the customer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cdc_agent.testing import Bench
from examples.stage.world import World
from tests.support.daemon import DaemonProcess
from tests.support.examples import MISHAPS, Shop, app_of
from tests.support.fake_chat import FakeChat
from tests.support.postgres import Database
from tests.support.wait import until

NewDaemon = Callable[..., DaemonProcess]
OFFER = "Your payment of {} did not go through. Would you like to use {} instead?"


@pytest.mark.parametrize("mishap", MISHAPS)
def test_a_failed_payment_is_answered_by_one_offer(
    pg: Database, new_daemon: NewDaemon, tmp_path: Path, world: World, mishap: str
) -> None:
    shop = Shop("payment_recovery", pg, new_daemon, tmp_path, world, mishap=mishap)

    # When Ada's payment fails, in the very commit that holds what she said about it; and Grace's, a moment later
    pg.execute(
        """begin;
        insert into customer_notes values (2, 1, 'Ada lost her card and would like to use PayPal from now on.');
        insert into payments values (1, 1, 1250, 'card', 'failed');
        commit"""
    )
    pg.execute("insert into payments values (2, 2, 4900, 'card', 'new')")
    pg.execute("update payments set status = 'failed' where id = 2")
    pg.execute("update payments set amount_cents = 4900 where id = 2")
    shop.wait_for("recovery_flow_initiated", 2)
    shop.settle()

    # Then each had one mail, with what suits them, whatever befell us on the way
    mails = {effect.body["customer"]: effect.body["text"] for effect in world.effects("/emails")}
    assert mails == {1: OFFER.format("12.50", "paypal"), 2: OFFER.format("49.00", "bank transfer")}
    assert len(world.effects()) == 2
    # and the journal tells of it, step by step.
    assert sorted(event.type for event in shop.facts() if event.key == "2") == [
        "offer_alternative_payment",
        "payment_failed",
        "recovery_flow_initiated",
        "send_offer",
    ]
    [initiated] = [fact for fact in shop.facts("recovery_flow_initiated") if fact.key == "2"]
    assert [step.partition(":")[0] for step in initiated.trail] == ["notice", "offer", "send"]


def test_what_was_committed_with_the_failure_is_waited_for(
    pg: Database, new_daemon: NewDaemon, tmp_path: Path, world: World
) -> None:
    # Given an index that hangs at the note that is committed together with the failure
    shop = Shop("payment_recovery", pg, new_daemon, tmp_path, world, mishap="before_flip:hang@2")
    pg.execute(
        """begin;
        insert into customer_notes values (2, 1, 'Ada asks for a bank transfer.');
        insert into payments values (1, 1, 1250, 'card', 'failed');
        commit"""
    )

    # When the agent has heard of the failure, nothing is decided before the index knows the note
    until(lambda: shop.changes("public.payments"), what="the change to be heard of")
    assert shop.daemon.get("/wait", lsn="now", timeout_s=2).status_code == 504
    assert shop.facts() == []
    shop.restart()
    shop.wait_for("recovery_flow_initiated")

    # Then the offer is what she asked for
    assert [effect.body["text"] for effect in world.effects()] == [OFFER.format("12.50", "bank transfer")]


def test_a_model_words_the_offer_where_there_is_one(
    pg: Database, new_daemon: NewDaemon, tmp_path: Path, world: World
) -> None:
    # Given a model, and a mail service that fails after the model was asked
    with FakeChat("Dear Grace, how about a bank transfer?") as fake:
        world.down.add("/emails")
        shop = Shop("payment_recovery", pg, new_daemon, tmp_path, world, env={"EXAMPLE_LLM": fake.base_url})
        pg.execute("insert into payments values (1, 2, 4900, 'card', 'failed')")
        shop.wait_for("send_offer")
        fake.answer = "Something else."
        world.down.clear()
        shop.wait_for("recovery_flow_initiated")

        # Then its words are sent, it was asked once, and that is a fact
        [mail] = world.effects("/emails")
        assert mail.body["text"] == "Dear Grace, how about a bank transfer?"
        assert len(fake.requests) == 1
        [called] = shop.facts("llm.called")
        assert (called.key, called.data["prompt_tokens"]) == ("1", 10)


def test_who_prefers_nothing_is_offered_the_next_best() -> None:
    # A test of the agents alone, without a daemon: five lines.
    def search(collection: str, query: str, **_: Any) -> list[Any]:
        return [SimpleNamespace(text="Ada likes cats.")]

    with Bench(app_of("payment_recovery"), search=search) as bench:
        payment = {"id": 1, "customer_id": 1, "amount_cents": 100, "method": "paypal", "status": "failed"}
        bench.change("public.payments", after=payment)
        bench.change("public.payments", before=payment, after=payment)
        bench.run()
        [command] = bench.commands("offer_alternative_payment")
        assert (command.data["method"], command.data["why"]) == ("bank transfer", "")
