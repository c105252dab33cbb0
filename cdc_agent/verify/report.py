"""What one audit was asked for and what it has found so far. Written by one thread, read by many."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from cdc_agent.verify.defects import Defect

__all__ = ["MAX_LISTED", "Report", "Wanted"]

#: Defects that are listed; all are counted.
MAX_LISTED = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What to audit: everything, one collection, or the collections of one table."""

    collection: str | None = None
    table: str | None = None
    sample: int = 100
    repair: bool = False


@dataclass(slots=True, kw_only=True)
class Report:
    """``found`` counts defects by kind, ``left`` those that were not mended. ``state``: ``waiting``, ``running``,
    ``done``, ``failed`` or ``stopped`` (the daemon stops)."""

    id: int
    wanted: Wanted
    state: str = "waiting"
    rows: int = 0
    documents: int = 0
    records: int = 0
    chunks: int = 0
    sampled: int = 0
    estimated: int = 0
    parked: int = 0
    moving: int = 0
    found: Counter[str] = field(default_factory=Counter)
    left: Counter[str] = field(default_factory=Counter)
    defects: list[Defect] = field(default_factory=list)
    error: str = ""
    hint: str = ""
    started_at: float = 0.0
    finished_at: float | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def done(self) -> int:
        """Rows, documents and records looked at, and chunks of the sample: what the estimate counts."""
        return self.rows + self.documents + self.records + self.sampled

    def add(self, defects: Iterable[Defect]) -> None:
        with self._lock:
            for defect in defects:
                self.found[defect.kind.value] += 1
                self.left[defect.kind.value] += 1
                if len(self.defects) < MAX_LISTED:
                    self.defects.append(defect)

    def mended(self, before: Iterable[Defect], after: Iterable[Defect]) -> None:
        """Of the defects ``before`` a repair, those of ``after`` are what it left."""
        with self._lock:
            self.left.subtract(defect.kind.value for defect in before)
            self.left.update(defect.kind.value for defect in after)

    def as_json(self, *, listed: bool = True) -> dict[str, Any]:
        now = self.finished_at or time.time()
        elapsed = max(0.0, now - self.started_at) if self.started_at else 0.0
        rate = self.done / elapsed if elapsed > 0 else 0.0
        with self._lock:
            found = {kind: count for kind, count in sorted(self.found.items()) if count}
            left = {kind: count for kind, count in sorted(self.left.items()) if count > 0}
            defects = [_json(defect) for defect in self.defects] if listed else []
        return {
            "id": self.id,
            "state": self.state,
            "collection": self.wanted.collection,
            "table": self.wanted.table,
            "sample": self.wanted.sample,
            "repair": self.wanted.repair,
            "rows": self.rows,
            "documents": self.documents,
            "records": self.records,
            "chunks": self.chunks,
            "sampled": self.sampled,
            "done": self.done,
            "estimated": max(self.estimated, self.done),
            "per_s": round(rate, 1),
            "eta_s": self._eta_s(rate),
            "found": found,
            "left": left,
            "parked": self.parked,
            "moving": self.moving,
            "error": self.error,
            "hint": self.hint,
            "started_at": self.started_at or None,
            "finished_at": self.finished_at,
            **({"defects": defects} if listed else {}),
        }

    def _eta_s(self, rate: float) -> float | None:
        if self.state != "running" or rate <= 0:
            return None
        return round(max(0, self.estimated - self.done) / rate, 1)


def _json(defect: Defect) -> dict[str, Any]:
    return {
        "kind": defect.kind.value,
        "collection": defect.collection,
        "document_id": defect.document_id,
        "chunk_id": defect.chunk_id,
        "what": defect.what,
    }
