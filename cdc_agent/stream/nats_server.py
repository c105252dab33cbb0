"""What is to be known of a NATS server before it is trusted with a stream: its version, and when it writes to disk."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import httpx

from cdc_agent.errors import StreamError

__all__ = ["SyncFacts", "refuse_old", "sync_facts"]

#: 2.10.22 and older could lose a whole stream when their process was killed.
OLDEST = (2, 10, 23)
#: Added to the server's interval: its clock, its disk.
_MARGIN_S = 30.0
#: What a server does that nothing was said to.
_SYNC_INTERVAL_S = 120.0
_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncFacts:
    """After ``hold_s`` what the server acknowledged is on its disk; ``known`` tells whether it was asked."""

    hold_s: float
    known: bool


def refuse_old(version: str) -> None:
    """Raise ``StreamError`` for a server that is too old."""
    found = tuple(int(part) for part in re.findall(r"\d+", version)[:3])
    if found < OLDEST:
        raise StreamError(
            f"the NATS server is of version {version}, which can lose a whole stream when it is killed",
            hint=f"run nats-server {'.'.join(map(str, OLDEST))} or newer; distributions often have older ones",
        )


def sync_facts(monitor_url: str | None) -> SyncFacts:
    """Ask the server's monitoring port when it writes to its disk; the default of its kind when it cannot be asked."""
    found = _jetstream_config(monitor_url) if monitor_url else {}
    if found.get("sync_always"):
        return SyncFacts(hold_s=0.0, known=True)
    interval_ns = found.get("sync_interval")
    if not isinstance(interval_ns, int) or interval_ns <= 0:
        return SyncFacts(hold_s=_SYNC_INTERVAL_S + _MARGIN_S, known=False)
    return SyncFacts(hold_s=interval_ns / 1e9 + _MARGIN_S, known=True)


def _jetstream_config(monitor_url: str) -> dict[str, Any]:
    """Empty when nobody answers, or when the answer is of another kind."""
    try:
        answer = httpx.get(f"{monitor_url.rstrip('/')}/varz", timeout=_TIMEOUT_S)
        found = answer.json()["jetstream"]["config"] if answer.status_code == 200 else {}
    except (httpx.HTTPError, ValueError, LookupError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}
