"""GitHub and Notion tell of changes by webhook. The feeds keep the index true to them; these agents tell the team. See
README.md."""

from __future__ import annotations

import os

import httpx

from cdc_agent import Agents, Context, Event, Retries

app = Agents()

WORLD = os.environ.get("EXAMPLE_WORLD", "http://127.0.0.1:9000")
PATIENT = Retries(attempts=10, initial_s=0.2, maximum_s=30.0)


@app.on("github.push", when=lambda event: event.data["ref"] == "refs/heads/main", retries=PATIENT)
def tell_of_push(event: Event, context: Context) -> None:
    commits = event.data["commits"]
    files = {path for commit in commits for change in ("added", "modified", "removed") for path in commit[change]}
    pages = sorted(path for path in files if path.startswith("docs/") and path.endswith(".md"))
    if pages:
        tell(context, f"The handbook changed: {', '.join(pages)}")


@app.on("notion.page.*", retries=PATIENT)
def tell_of_page(event: Event, context: Context) -> None:
    """An event of Notion holds no content, and says only that something is new."""
    tell(context, f"The wiki changed: page {event.key}, {event.type.removeprefix('notion.page.')}")


def tell(context: Context, text: str) -> None:
    headers = {"Idempotency-Key": context.idempotency_key}
    httpx.post(f"{WORLD}/chat", json={"text": text}, headers=headers, timeout=5.0).raise_for_status()
    context.emit("docs_changed", {"text": text})
