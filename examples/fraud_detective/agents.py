"""Windows over purchases, kept by address and by account; what looks like fraud freezes the account. See README.md."""

from __future__ import annotations

import datetime as dt
import os
from typing import Any

import psycopg

from cdc_agent import Agents, Context, Event, mark

app = Agents()

DSN = os.environ.get("EXAMPLE_DSN", "postgresql://localhost/shop")
#: So many purchases of one account in so many seconds are no person's.
RAPID, RAPID_S = 5, 60
#: So many accounts that send to one address in so many seconds are one person's.
SHARED, SHARED_S = 3, 600


@app.on_change("public.purchases", ops="c", key=lambda event: str(event.data["after"]["account_id"]))
def rapid_fire(event: Event, context: Context) -> None:
    """What it remembers is kept by account, and becomes durable with what it emits: no purchase counts twice."""
    row = event.data["after"]
    window = recent(context, row, RAPID_S)
    if len(window) >= RAPID:
        suspect(context, row["account_id"], f"{len(window)} purchases within {RAPID_S} s")


@app.on_change("public.purchases", ops="c", key=lambda event: event.data["after"]["address"])
def shared_address(event: Event, context: Context) -> None:
    """The same by address: a second agent with a memory of its own, at its own pace."""
    window = recent(context, event.data["after"], SHARED_S)
    accounts = sorted({account for _, account in window})
    if len(accounts) >= SHARED:
        for account in accounts:
            suspect(context, account, f"{len(accounts)} accounts send to one address")


@app.on("fraud_suspected")
def freeze(event: Event, context: Context) -> None:
    """Write to the database that is being followed, marked as the answer to this event. Should this run twice, the
    second time writes nothing, finds its own key, and says the same."""
    account, key = event.data["account"], context.idempotency_key
    with psycopg.connect(DSN) as connection:
        mark(connection, context)
        connection.execute(
            "update accounts set frozen = true, frozen_by = %s where id = %s and not frozen", (key, account)
        )
        [(decided_by,)] = connection.execute("select frozen_by from accounts where id = %s", (account,)).fetchall()
    # Another suspicion may have frozen it before.
    if decided_by == key:
        context.emit("account_frozen", event.data)


@app.on_change("public.accounts", ops="u")
def annotate(event: Event, context: Context) -> None:
    """It writes to the very table that it listens to. Its own write comes back from the log like any other; the mark
    says whose it is, and it is left out."""
    account = event.data["after"]
    with psycopg.connect(DSN) as connection:
        mark(connection, context)
        note = "frozen, a person should look" if account["frozen"] else "in order"
        connection.execute("update accounts set note = %s where id = %s", (note, account["id"]))
    context.emit("account_annotated", {"account": account["id"], "note": note})


def recent(context: Context, row: dict[str, Any], seconds: int) -> list[list[Any]]:
    """Purchases so near to this one in time, which is among them. The rows tell the time; some come late."""
    now = dt.datetime.fromisoformat(row["bought_at"]).timestamp()
    window = [seen for seen in context.state.get("window", []) if abs(seen[0] - now) < seconds]
    context.state["window"] = window = [*window, [now, row["account_id"]]]
    return window


def suspect(context: Context, account: int, why: str) -> None:
    context.emit("fraud_suspected", {"account": account, "why": why}, key=f"account-{account}")
