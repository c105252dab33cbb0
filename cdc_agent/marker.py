"""What tells whose a collection in the store is and how it was built, and the first copy of one that is new."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from cdc_agent.documents.model import MetadataValue
from cdc_agent.ledger.base import Ledger, Resync

__all__ = ["first_copies", "marker_of"]


def marker_of(ledger: Ledger, *, model: str, dimensions: int, fingerprint: str) -> dict[str, MetadataValue]:
    """What a collection in the store carries, so that it is known whose it is and how it was built."""
    return {
        "cdc_ledger": ledger.uuid,
        "cdc_model": model,
        "cdc_dimensions": dimensions,
        "cdc_fingerprint": fingerprint,
    }


def first_copies(
    ledger: Ledger,
    wanted: Sequence[Resync],
    fingerprints: Mapping[str, str],
    wall_clock: Callable[[], float] = time.time,
) -> None:
    """Record the first copies. In this order a crash in between repeats nothing."""
    begun = {name for resync in ledger.resyncs() if _is_whole_and_unread(resync) for name in resync.collections}
    for resync in wanted:
        name = resync.collections[0]
        if name not in begun:
            ledger.start_resync(replace(resync, started_at=wall_clock()))
        ledger.save_collection(name, fingerprints[name])


def _is_whole_and_unread(resync: Resync) -> bool:
    """Whether it will read all that a resync reads which begins now."""
    return resync.state == "running" and resync.snapshot is None and not (resync.keys or resync.predicate)
