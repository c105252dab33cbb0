"""A run's facts as text for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["as_text"]


def as_text(facts: Mapping[str, Any]) -> str:
    """What one run did and found, as lines."""
    lines = [
        f"seed {facts['seed']}, {facts['plugin']}, store {facts['store']}: "
        f"{facts['cycles']} cycles in {facts['seconds']:.0f} s",
        *(["interrupted: the index was not compared in the end"] if facts["interrupted"] else []),
        "",
        "faults       " + _counts(facts["faults"]),
        *(f"skipped      {name}: {reason}" for name, reason in facts["skipped"].items()),
        "",
        *(f"{name.replace('_', ' '):<34} {count:>9,}" for name, count in facts["counts"].items()),
        "",
        f"{'seconds to recover from':<34} {'n':>4} {'p50':>7} {'p95':>7} {'max':>7}",
        *(_recovery(kind, spread) for kind, spread in facts["recovery_s"].items()),
        "",
        "violations   " + _counts(facts["violations"]),
        *(f"  {kind}: {words}" for kind, told in facts["told"].items() for words in told),
    ]
    return "\n".join(lines)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items()) or "none"


def _recovery(kind: str, spread: Mapping[str, float]) -> str:
    figures = " ".join(f"{spread[name]:>7.2f}" for name in ("p50", "p95", "max"))
    return f"{kind.replace('_', ' '):<34} {spread['n']:>4} {figures}"
