"""examples/fan_out: one purchase, three agents, each effect once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from examples.stage.world import World
from tests.support.daemon import DaemonProcess
from tests.support.examples import MISHAPS, Shop
from tests.support.oracle import assert_index_equals_table
from tests.support.postgres import Database
from tests.support.wait import until

NewDaemon = Callable[..., DaemonProcess]


@pytest.mark.parametrize("mishap", MISHAPS)
def test_one_purchase_reaches_all_who_listen_and_each_acts_once(
    pg: Database, new_daemon: NewDaemon, tmp_path: Path, world: World, mishap: str
) -> None:
    shop = Shop("fan_out", pg, new_daemon, tmp_path, world, mishap=mishap)

    # When a small and a large purchase are made
    pg.execute("insert into purchases values (1, 'ada', 'kettle', 2, 4900), (2, 'grace', 'lens', 1, 129900)")
    shop.wait_for("customer_thanked", 2)
    shop.wait_for("purchase_flagged")
    shop.wait_for("stock_taken", 2)
    shop.settle()

    # Then each is a fact, and the world and the stock have heard of each once, whatever befell us
    assert sorted(fact.data["id"] for fact in shop.facts("NewPurchase")) == [1, 2]
    assert sorted(effect.body["text"] for effect in world.effects("/emails")) == [
        "Thank you for order 1!",
        "Thank you for order 2!",
    ]
    assert [effect.body["purchase"] for effect in world.effects("/alerts")] == [2]
    assert pg.execute("select sku, in_stock from products order by sku") == [("kettle", 8), ("lens", 2)]
    assert len(shop.facts("customer_thanked")) == len(shop.facts("stock_taken")) == 2
    assert len(shop.facts("purchase_flagged")) == 1
    if mishap == "every-attempt-twice":
        assert len(world.requests) == 6
    # And the index knows of what the agents wrote to an indexed table.
    assert_index_equals_table(shop.daemon, pg)


def test_who_cannot_act_holds_up_nobody_else(pg: Database, new_daemon: NewDaemon, tmp_path: Path, world: World) -> None:
    # Given a world in which no mail can be sent
    world.down.add("/emails")
    shop = Shop("fan_out", pg, new_daemon, tmp_path, world)

    # When somebody buys
    pg.execute("insert into purchases values (1, 'grace', 'lens', 1, 129900)")
    shop.wait_for("stock_taken")
    shop.wait_for("purchase_flagged")
    until(lambda: [r.path for r in world.requests].count("/emails") >= 2)
    assert shop.facts("customer_thanked") == []

    # Then she is thanked once it can be again
    world.down.clear()
    shop.wait_for("customer_thanked")
    assert len(world.effects("/emails")) == 1
