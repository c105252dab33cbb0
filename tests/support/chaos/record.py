"""What a run has seen: violations, kills, recoveries, counts. Shared by all threads of the run."""

from __future__ import annotations

import statistics
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

__all__ = ["Record"]

#: Every kind of violation there is; a report names each, with its count.
KINDS = (
    "lost",  # a document or chunk that must be there is not
    "doubled",  # a chunk twice
    "stale",  # an older text, vector or metadata than the table's, at rest
    "orphaned",  # in the store, and no row, manifest, intent or garbage names it
    "torn",  # one answer with chunks of two versions, or with a part of one
    "older",  # an answer older than one that was given before, or than what the reader asked for
    "ghost",  # something that was rolled back
    "early_ack",  # Postgres was told that we hold what is not durable here
    "regress",  # a checkpoint or a document's version went back
    "embedded_again",  # a text was embedded twice without a disturbance in between
    "stuck",  # not back in time, or ended by itself
    "parked",  # a dead letter, though no text is to blame
)
#: So many of each kind are told in words.
_TOLD = 12


class Record:
    """Counts and sentences. ``say`` writes progress."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._lock = threading.Lock()
        self._quiet = quiet
        self._began = time.monotonic()
        self.violations: Counter[str] = Counter()
        self.told: dict[str, list[str]] = defaultdict(list)
        self.faults: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self._recoveries: dict[str, list[float]] = defaultdict(list)
        self.skipped: dict[str, str] = {}
        #: Lives of the daemon so far.
        self.cycles = 0
        self.interrupted = False
        #: A store that came back unreadable from a kill is being built again: until then nothing is promised of it.
        self.mending = False

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._began

    def say(self, words: str) -> None:
        if not self._quiet:
            print(f"{self.elapsed_s:7.1f}  {words}", file=sys.stderr, flush=True)

    def violation(self, kind: str, words: str) -> None:
        assert kind in KINDS, kind
        with self._lock:
            self.violations[kind] += 1
            if len(self.told[kind]) < _TOLD:
                self.told[kind].append(f"at {self.elapsed_s:.1f} s: {words}")
        self.say(f"VIOLATION {kind}: {words}")

    def count(self, what: str, by: int = 1) -> None:
        with self._lock:
            self.counts[what] += by

    def fault(self, kind: str) -> None:
        with self._lock:
            self.faults[kind] += 1

    def recovered(self, kind: str, seconds: float) -> None:
        with self._lock:
            self._recoveries[kind].append(seconds)

    def skip(self, fault: str, reason: str) -> None:
        if fault not in self.skipped:
            self.say(f"skipping {fault}: {reason}")
        self.skipped[fault] = reason

    def begin_mending(self) -> None:
        self.say("the store came back unreadable: started once with on_mismatch resync")
        self.count("store_built_again_after_a_kill")
        self.mending = True

    def end_mending(self) -> None:
        self.say("the store is built again")
        self.mending = False

    def interrupt(self) -> None:
        """Somebody has ended the run: nothing was compared in the end."""
        self.say("interrupted: the parts are being ended, the report follows")
        self.interrupted = True

    def facts(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {
            "seconds": round(self.elapsed_s, 1),
            "interrupted": self.interrupted,
            "faults": dict(sorted(self.faults.items())),
            "counts": dict(sorted(self.counts.items())),
            "recovery_s": {kind: _spread(found) for kind, found in sorted(self._recoveries.items())},
            "skipped": self.skipped,
            "violations": {kind: self.violations[kind] for kind in KINDS},
            "told": dict(self.told),
        }


def _spread(seconds: Sequence[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    p95 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))]
    found = {"p50": statistics.median(ordered), "p95": p95, "max": ordered[-1]}
    return {"n": len(ordered)} | {name: round(value, 2) for name, value in found.items()}
