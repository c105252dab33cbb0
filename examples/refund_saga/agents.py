"""A refund: reserve the money, pay it by a gateway or else by another, write it down; or undo it all and call a human.
See README.md."""

from __future__ import annotations

import os
from typing import Any

import httpx
import psycopg

from cdc_agent import Agents, Context, Event, Retries, mark
from cdc_agent.sagas import Approval, Refused, Saga, Step, StepContext

app = Agents()

DSN = os.environ.get("EXAMPLE_DSN", "postgresql://localhost/shop")
WORLD = os.environ.get("EXAMPLE_WORLD", "http://127.0.0.1:9000")
#: From here on a human has to agree.
LARGE_CENTS = 50_000


def reserve(context: StepContext) -> dict[str, Any]:
    return posted(context, "/bank/reserve", {"cents": context.data["amount_cents"]})


def release(context: StepContext) -> None:
    """Undo ``reserve``. It names the saga, not the reservation: whether there is one cannot be known here."""
    posted(context, "/bank/release", {"saga": context.saga_id})


def pay_first(context: StepContext) -> dict[str, Any]:
    return paid(context, "/gateways/first")


def pay_second(context: StepContext) -> dict[str, Any]:
    return paid(context, "/gateways/second")


def write_down(context: StepContext) -> None:
    status(context, "paid")
    context.emit("refund_paid", context.results["pay"])


def take_back(context: StepContext) -> None:
    status(context, "failed")


def steps(*between: Approval) -> list[Step | Approval]:
    return [
        # First of all, so that a refund that fails says so in its row.
        Step("open", lambda context: status(context, "open"), undo=take_back, attempts=10, backoff_s=0.2),
        Step("reserve", reserve, undo=release, attempts=5, backoff_s=0.2),
        *between,
        # A gateway that says 503 has done nothing: the other one is asked at once. One that says nothing may have done
        # it: it is asked again, for a long time, before anybody else is.
        Step("pay", pay_first, alternatives=[pay_second], attempts=20, backoff_s=0.2, timeout_s=10),
        Step("write_down", write_down, attempts=100, backoff_s=0.2),
    ]


refund = Saga("refund", steps())
large_refund = Saga("large_refund", steps(Approval("agree", timeout_s=7 * 86_400.0)))
app.add(refund)
app.add(large_refund)


@app.on_change("public.refunds", ops="c")
def begin(event: Event, context: Context) -> None:
    row = event.data["after"]
    saga = large_refund if row["amount_cents"] >= LARGE_CENTS else refund
    context.start(saga, {"refund": row["id"], "amount_cents": row["amount_cents"]})


@app.on("saga.compensated", retries=Retries(attempts=20, initial_s=0.2))
def call_a_human(event: Event, context: Context) -> None:
    """What the saga could not do, and has undone, is for a person."""
    body = {"refund": event.key, "text": "neither gateway pays; the reservation is released"}
    headers = {"Idempotency-Key": context.idempotency_key}
    httpx.post(f"{WORLD}/alerts", json=body, headers=headers, timeout=5.0).raise_for_status()
    context.emit("human_alerted")


def paid(context: StepContext, gateway: str) -> dict[str, Any]:
    return posted(context, gateway, {"cents": context.data["amount_cents"]})


def posted(context: StepContext, path: str, body: object) -> dict[str, Any]:
    headers = {"Idempotency-Key": context.idempotency_key}
    answer = httpx.post(WORLD + path, json=body, headers=headers, timeout=5.0)
    if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE:
        raise Refused(f"{path} is out of order")
    result: dict[str, Any] = answer.raise_for_status().json()
    return {**result, "by": path}


def status(context: StepContext, status: str) -> None:
    """Write to the database that is being followed. Done twice it writes nothing the second time."""
    with psycopg.connect(DSN) as connection:
        mark(connection, context)
        connection.execute(
            "update refunds set status = %s where id = %s and status <> %s", (status, context.data["refund"], status)
        )
