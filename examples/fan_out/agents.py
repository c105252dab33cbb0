"""One purchase reaches three agents that know nothing of each other. See README.md."""

from __future__ import annotations

import os

import httpx
import psycopg

from cdc_agent import Agents, Context, Event, Retries, mark

app = Agents()

DSN = os.environ.get("EXAMPLE_DSN", "postgresql://localhost/shop")
WORLD = os.environ.get("EXAMPLE_WORLD", "http://127.0.0.1:9000")
SUSPICIOUS_CENTS = 100_000
#: The outside world may be down for a while.
PATIENT = Retries(attempts=10, initial_s=0.2, maximum_s=30.0)


@app.on_change("public.purchases", ops="c")
def announce(event: Event, context: Context) -> None:
    """The row becomes a fact of the business, which is kept for ever and which anybody may listen to."""
    context.emit("NewPurchase", event.data["after"])


@app.on("NewPurchase", retries=PATIENT)
def thank_you(event: Event, context: Context) -> None:
    told(context, "/emails", {"to": event.data["customer"], "text": f"Thank you for order {event.data['id']}!"})
    context.emit("customer_thanked")


# Of one product one at a time, and in order.
@app.on("NewPurchase", key=lambda event: event.data["sku"])
def inventory(event: Event, context: Context) -> None:
    """Take from the stock. If this runs twice, the second time finds its own move and takes nothing."""
    sku, quantity = event.data["sku"], event.data["quantity"]
    with psycopg.connect(DSN) as connection:
        mark(connection, context)
        moved = connection.execute(
            "insert into stock_moves values (%s, %s, %s) on conflict do nothing",
            (context.idempotency_key, sku, quantity),
        )
        if moved.rowcount:
            connection.execute("update products set in_stock = in_stock - %s where sku = %s", (quantity, sku))
        [(left,)] = connection.execute("select in_stock from products where sku = %s", (sku,)).fetchall()
    context.emit("stock_taken", {"sku": sku, "quantity": quantity, "left": left})


@app.on("NewPurchase", retries=PATIENT, when=lambda event: event.data["amount_cents"] >= SUSPICIOUS_CENTS)
def fraud(event: Event, context: Context) -> None:
    told(context, "/alerts", {"purchase": event.data["id"], "why": "a large amount"})
    context.emit("purchase_flagged", {"amount_cents": event.data["amount_cents"]})


def told(context: Context, path: str, body: object) -> None:
    """Post to the outside world, which knows by the key what it has heard before."""
    headers = {"Idempotency-Key": context.idempotency_key}
    httpx.post(WORLD + path, json=body, headers=headers, timeout=5.0).raise_for_status()
