"""How far the first copy of a generation is, from what the ledger remembers of resyncs. Pure."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

from cdc_agent.ledger.base import Generation, Resync

__all__ = ["CopyProgress", "copy_of", "progress_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyProgress:
    """``state``: ``waiting`` (not begun), ``running``, ``done`` or ``failed``. ``busy``: some resync of it runs."""

    state: str
    busy: bool
    rows_done: int = 0
    rows_estimated: int = 0
    eta_s: float | None = None


def copy_of(generation: Generation, table: str) -> Resync:
    """The first copy of a generation."""
    reason = "first copy" if generation.number == 1 else f"generation {generation.number}"
    return Resync(table=table, collections=(generation.physical,), reason=reason)


def progress_of(
    generation: Generation, resyncs: Iterable[Resync], *, begun: bool = True, now: float | None = None
) -> CopyProgress:
    """A whole resync that is done makes a generation complete, whoever asked for it. Until it is ``begun`` nothing
    does: it was never read, or has lost its place in the log since."""
    own = [r for r in resyncs if generation.physical in r.collections]
    whole = [r for r in own if not r.keys and not r.predicate]
    busy = any(r.state not in ("done", "failed", "cancelled") for r in own)
    newest = whole[-1] if whole else None
    if newest is None:
        return CopyProgress(state="done" if generation.number == 1 and begun else "waiting", busy=busy)
    done = any(r.state == "done" for r in whole)
    state = "done" if done else "running" if busy else "failed"
    return CopyProgress(
        state=state,
        busy=busy,
        rows_done=newest.rows_done,
        rows_estimated=newest.rows_done if done else max(newest.rows_estimated, newest.rows_done),
        eta_s=None if done else _eta_s(newest, time.time() if now is None else now),
    )


def _eta_s(resync: Resync, now: float) -> float | None:
    elapsed = now - resync.started_at
    if resync.rows_done <= 0 or elapsed <= 0 or not resync.started_at:
        return None
    return round(max(0, resync.rows_estimated - resync.rows_done) * elapsed / resync.rows_done, 1)
