"""What ``examples/run fraud_detective`` shows."""

from __future__ import annotations

from examples.stage.stage import Stage


def play(stage: Stage) -> None:
    stage.sql("Ordinary purchases", "insert into purchases values (1, 1, '1 Elm St'), (2, 2, '2 Elm St')")
    stage.sql(
        "Five within a second, by one account",
        "insert into purchases select 10 + n, 3, '3 Elm St' from generate_series(1, 5) as n",
    )
    stage.wait_for("account_annotated")
    stage.sql(
        "Three accounts, one address",
        "insert into purchases values (21, 4, '13 Dark Ln'), (22, 5, '13 Dark Ln'), (23, 6, '13 Dark Ln')",
    )
    stage.wait_for("account_annotated", 4)
