"""What ``examples/run fan_out`` shows."""

from __future__ import annotations

from examples.stage.stage import Stage


def play(stage: Stage) -> None:
    stage.sql("A small purchase", "insert into purchases values (1, 'ada@example.com', 'kettle', 2, 4900)")
    stage.wait_for("customer_thanked")
    stage.wait_for("stock_taken")

    stage.world.down.add("/emails")
    stage.sql(
        "A large one, while no mail can be sent: the two other agents do not wait for the first",
        "insert into purchases values (2, 'grace@example.com', 'lens', 1, 129900)",
    )
    stage.wait_for("purchase_flagged")
    stage.wait_for("stock_taken", 2)
    print("\n> The mail works again", flush=True)
    stage.world.down.clear()
    stage.wait_for("customer_thanked", 2)
