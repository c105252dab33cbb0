"""examples/refund_saga: paid once, by one gateway or the other, or undone and told to a human, whatever dies when."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from examples.stage.world import World
from tests.support.daemon import DaemonProcess
from tests.support.examples import MISHAPS, Shop
from tests.support.oracle import assert_index_equals_table
from tests.support.postgres import Database

NewDaemon = Callable[..., DaemonProcess]
#: A call that was carried out and is not noted, and one that is noted.
SAGA_DEATHS = ["saga_before_save:kill@3", "saga_after_save:kill@3"]


@pytest.mark.parametrize("mishap", [*MISHAPS, *SAGA_DEATHS])
def test_when_one_gateway_is_down_the_other_pays_once(
    pg: Database, new_daemon: NewDaemon, tmp_path: Path, world: World, mishap: str
) -> None:
    world.down.add("/gateways/first")
    shop = Shop("refund_saga", pg, new_daemon, tmp_path, world, mishap=mishap)

    # When two refunds are wanted
    pg.execute("insert into refunds values (1, 501, 4900, 'it leaks'), (2, 502, 1250, 'wrong colour')")
    shop.wait_for("saga.completed", 2)
    shop.settle()

    # Then each was reserved and paid once, and that stands in its row
    assert sorted(effect.body["cents"] for effect in world.effects("/bank/reserve")) == [1250, 4900]
    assert sorted(effect.body["cents"] for effect in world.effects("/gateways/second")) == [1250, 4900]
    assert len(world.effects()) == 4
    assert pg.execute("select id, status from refunds order by id") == [(1, "paid"), (2, "paid")]
    assert {fact.data["by"] for fact in shop.facts("refund_paid")} == {"/gateways/second"}
    assert len(shop.facts("refund_paid")) == len(shop.facts("saga.started")) == 2
    assert_index_equals_table(shop.daemon, pg)


@pytest.mark.parametrize("mishap", ["calm", "killed-when-settled", "every-attempt-twice", *SAGA_DEATHS])
def test_when_both_are_down_it_is_undone_and_a_human_is_called_once(
    pg: Database, new_daemon: NewDaemon, tmp_path: Path, world: World, mishap: str
) -> None:
    world.down |= {"/gateways/first", "/gateways/second"}
    shop = Shop("refund_saga", pg, new_daemon, tmp_path, world, mishap=mishap)
    pg.execute("insert into refunds values (1, 501, 4900, 'it leaks')")
    shop.wait_for("human_alerted")
    shop.settle()

    # Then what was reserved is released, once, and one person knows
    assert [effect.path for effect in world.effects()] == ["/bank/reserve", "/bank/release", "/alerts"]
    assert world.effects("/alerts")[0].body["refund"] == "1"
    assert pg.execute("select status from refunds") == [("failed",)]
    assert shop.facts("refund_paid") == []


def test_a_large_one_waits_for_a_human_also_over_a_death(
    pg: Database, new_daemon: NewDaemon, tmp_path: Path, world: World
) -> None:
    shop = Shop("refund_saga", pg, new_daemon, tmp_path, world)
    pg.execute("insert into refunds values (1, 501, 129900, 'scratched')")
    shop.wait_for("saga.approval_wanted")
    assert world.effects("/gateways/first") == []

    # When the process dies, and somebody agrees afterwards
    shop.restart()
    [waiting] = shop.daemon.get("/sagas", state="waiting").json()["sagas"]
    assert shop.daemon.post(f"/sagas/{waiting['id']}/approve", {"by": "anna"}).status_code == 200
    shop.wait_for("refund_paid")

    # Then it is paid, by the first gateway, and reserved no second time
    assert [effect.path for effect in world.effects()] == ["/bank/reserve", "/gateways/first"]
