"""examples/fraud_detective: windows over purchases freeze accounts, once each, and nobody wakes themselves for ever."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cdc_agent.testing import Bench
from examples.stage.world import World
from tests.support.daemon import DaemonProcess
from tests.support.examples import MISHAPS, Shop, app_of
from tests.support.oracle import assert_index_equals_table
from tests.support.postgres import Database

NewDaemon = Callable[..., DaemonProcess]


@pytest.mark.parametrize("mishap", MISHAPS)
def test_what_looks_like_fraud_is_frozen_once_and_nothing_goes_round(
    pg: Database, new_daemon: NewDaemon, tmp_path: Path, world: World, mishap: str
) -> None:
    shop = Shop("fraud_detective", pg, new_daemon, tmp_path, world, mishap=mishap)

    # When one account buys five times at once, three share an address, and others do neither
    pg.execute("insert into purchases values (1, 1, '1 Elm St'), (2, 2, '2 Elm St'), (3, 1, '1 Elm St')")
    pg.execute("insert into purchases select 10 + n, 3, '3 Elm St' from generate_series(1, 5) as n")
    for number, account in enumerate((4, 5, 6), 20):
        pg.execute("insert into purchases values (%s, %s, '13 Dark Ln')", (number, account))
    # Long ago, so nobody's window holds them together
    hourly = "now() - n * interval '1 hour'"
    pg.execute(f"insert into purchases select 30 + n, 7, 'Oak', {hourly} from generate_series(1, 5) n")
    shop.wait_for("account_annotated", 4)
    shop.settle()

    # Then those are frozen, each by one decision, and each is annotated once: the notes woke nobody
    assert pg.execute("select id from accounts where frozen order by id") == [(3,), (4,), (5,), (6,)]
    frozen = Counter(fact.data["account"] for fact in shop.facts("account_frozen"))
    annotated = Counter(fact.data["account"] for fact in shop.facts("account_annotated"))
    assert frozen == annotated == {3: 1, 4: 1, 5: 1, 6: 1}
    reasons = {fact.data["why"] for fact in shop.facts("account_frozen")}
    assert reasons == {"5 purchases within 60 s", "3 accounts send to one address"}
    notes = pg.execute("select distinct note from accounts where frozen")
    assert notes == [("frozen, a person should look",)]
    # What freezes an account says which purchase led to it, through the database.
    fact = shop.facts("account_annotated")[0]
    assert [step.partition(":")[0] for step in fact.trail][-2:] == ["freeze", "annotate"]
    assert_index_equals_table(shop.daemon, pg)


def purchase(number: int, account: int, second: int) -> dict[str, Any]:
    at = f"2026-01-01T12:{second // 60:02}:{second % 60:02}+00:00"
    return {"id": number, "account_id": account, "address": f"{account} Elm St", "bought_at": at}


@pytest.mark.parametrize(("apart_s", "suspected"), [(10, 1), (15, 0)])
def test_a_window_is_as_long_as_it_says(apart_s: int, suspected: int) -> None:
    # A test of one rule, in memory; the agent that would write to a database is left out.
    app = app_of("fraud_detective")
    with Bench(app, only={"rapid_fire"}) as bench:
        for number in range(5):
            bench.change("public.purchases", after=purchase(number, 1, number * apart_s))
        bench.run()
        assert len(bench.facts("fraud_suspected")) == suspected
