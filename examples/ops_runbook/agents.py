"""A disk fills up: look into the runbook, clear temporary files, and tell what was done. See README.md."""

from __future__ import annotations

import os
from pathlib import Path

import httpx
import temp_files

from cdc_agent import Agents, Context, Event, Park, Retries
from cdc_agent.llm import Llm

app = Agents()

WORLD = os.environ.get("EXAMPLE_WORLD", "http://127.0.0.1:9000")
SANDBOX = Path(os.environ.get("EXAMPLE_SANDBOX", "/tmp/cdc-agent-ops-runbook"))
FULL_PERCENT = 90
OLD_S = 3600
#: Optional: a model sums up, where there is one.
llm = (
    Llm(url=os.environ["EXAMPLE_LLM"], model=os.environ.get("EXAMPLE_MODEL", "llama3.2"), daily_tokens=100_000)
    if "EXAMPLE_LLM" in os.environ
    else None
)


@app.on("disk.usage", key=lambda event: event.data["folder"], when=lambda event: event.data["percent"] >= FULL_PERCENT)
def look_up(event: Event, context: Context) -> None:
    """Find the runbook, and decide what is to be removed. The decision is a command, so it is durable before the first
    file goes, and is carried out as it was made however often that takes."""
    [best] = context.search("runbooks", "the disk is nearly full", k=1)
    folder = event.data["folder"]
    context.emit("runbook_followed", {"runbook": best.document_id, "percent": event.data["percent"]}, key=folder)
    try:
        names = temp_files.temporary_files(SANDBOX, folder, before=event.time.timestamp() - OLD_S)
    except temp_files.Unsafe as exc:
        # No other try will make it safe: a person should look at who sends such things.
        raise Park(str(exc)) from exc
    context.command("clear_temp_files", {"folder": folder, "names": names}, key=folder)


@app.command("clear_temp_files")
def clear(event: Event, context: Context) -> None:
    try:
        gone = temp_files.remove(SANDBOX, event.data["folder"], event.data["names"])
    except temp_files.Unsafe as exc:
        raise Park(str(exc)) from exc
    context.emit("temp_files_cleared", {"files": gone})


@app.on("temp_files_cleared")
def sum_up(event: Event, context: Context) -> None:
    """The log of an incident is what its event led to. What is said of it is decided here, and sent by the next."""
    log = [f"{fact.type} {fact.data}" for fact in context.facts(correlation_id=event.correlation_id)]
    text = f"{event.key}: {event.data['files']} temporary files removed."
    if llm is not None:
        text = llm.chat(context, {"role": "system", "content": "Sum up this incident in one sentence."}, "\n".join(log))
    context.command("tell_team", {"text": text, "steps": len(log)})


@app.command("tell_team", retries=Retries(attempts=10, initial_s=0.2, maximum_s=30.0))
def tell(event: Event, context: Context) -> None:
    headers = {"Idempotency-Key": context.idempotency_key}
    httpx.post(f"{WORLD}/chat", json=event.data, headers=headers, timeout=5.0).raise_for_status()
    context.emit("incident_told", event.data)
