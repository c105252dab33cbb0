"""What ``examples/run payment_recovery`` shows."""

from __future__ import annotations

from examples.stage.stage import Stage


def play(stage: Stage) -> None:
    stage.sql("Grace's card is declined", "insert into payments values (1, 2, 4900, 'card', 'failed')")
    stage.wait_for("recovery_flow_initiated")
    stage.sql(
        "Ada's payment fails, too; what she said a moment ago is committed together with it",
        """insert into customer_notes values (2, 1, 'Ada lost her card and would like to use PayPal from now on.');
        insert into payments values (2, 1, 1250, 'card', 'failed')""",
    )
    stage.wait_for("recovery_flow_initiated", 2)
    stage.sql("Nothing new: somebody touches the row again", "update payments set amount_cents = 1250 where id = 2")
    stage.listen()
