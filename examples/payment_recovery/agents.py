"""A payment fails; the customer is offered another way to pay that suits them. See README.md."""

from __future__ import annotations

import os
from typing import Any

import httpx

from cdc_agent import Agents, Context, Event, Retries
from cdc_agent.llm import Llm

app = Agents()

WORLD = os.environ.get("EXAMPLE_WORLD", "http://127.0.0.1:9000")
METHODS = ("paypal", "bank transfer", "card")
#: Optional: a model words the offer, where there is one.
llm = (
    Llm(url=os.environ["EXAMPLE_LLM"], model=os.environ.get("EXAMPLE_MODEL", "llama3.2"), daily_tokens=100_000)
    if "EXAMPLE_LLM" in os.environ
    else None
)


@app.on_change("public.payments", ops="cu")
def notice(event: Event, context: Context) -> None:
    """A row of payments turned to failed: gather what is known, and ask for an offer. Once for each failure, however
    often the row is written while it is so."""
    payment = event.data["after"]
    if payment["status"] != "failed":
        context.state.clear()
    elif not context.state:
        context.state["failed"] = True
        context.emit("payment_failed", payment)
        # A note that was committed together with the failure is in the answer.
        notes = context.search(
            "customer_notes",
            "how does this customer prefer to pay?",
            k=3,
            where={"customer_id": payment["customer_id"]},
            fresh=True,
        )
        method, why = preferred(payment["method"], [note.text for note in notes])
        context.command("offer_alternative_payment", {"payment": payment, "method": method, "why": why})


@app.command("offer_alternative_payment")
def offer(event: Event, context: Context) -> None:
    """Find the words. A model may find others the next time, so they are kept in the command that sends them: whatever
    happens from here on, the same words are sent."""
    context.command("send_offer", {**event.data, "text": wording(event.data, context)})


@app.command("send_offer", retries=Retries(attempts=10, initial_s=0.2, maximum_s=30.0))
def send(event: Event, context: Context) -> None:
    """The effect in the outside world. It may be asked for twice, and has one effect: the key is the same."""
    payment = event.data["payment"]
    answer = httpx.post(
        f"{WORLD}/emails",
        json={"customer": payment["customer_id"], "text": event.data["text"]},
        headers={"Idempotency-Key": context.idempotency_key},
        timeout=5.0,
    )
    answer.raise_for_status()
    context.emit(
        "recovery_flow_initiated",
        {"customer": payment["customer_id"], "method": event.data["method"], "email": answer.json()["id"]},
    )


def preferred(failed: str, notes: list[str]) -> tuple[str, str]:
    """Another method, and the note that speaks for it; the first other one where none does."""
    others = [method for method in METHODS if method != failed]
    for note in notes:
        for method in others:
            if method in note.lower():
                return method, note
    return others[0], ""


def wording(data: dict[str, Any], context: Context) -> str:
    amount = f"{data['payment']['amount_cents'] / 100:.2f}"
    if llm is None:
        return f"Your payment of {amount} did not go through. Would you like to use {data['method']} instead?"
    return llm.chat(
        context,
        {"role": "system", "content": "You write one kind sentence to a customer of a shop."},
        f"The payment of {amount} by {data['payment']['method']} failed. Offer {data['method']} instead.",
    )
