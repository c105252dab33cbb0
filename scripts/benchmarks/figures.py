"""What a measurement says in the end, and the table of it. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Figure", "at_least", "at_most", "percentile", "table"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One line of the table. ``ratio`` is what the aim is about where there is a reference."""

    measure: str
    unit: str
    ours: float
    reference: float | None = None
    aim: str = ""
    ok: bool | None = None

    @property
    def ratio(self) -> float | None:
        return self.ours / self.reference if self.reference else None

    def facts(self) -> dict[str, Any]:
        """JSON-ready."""
        names = ("measure", "unit", "ours", "reference", "ratio", "aim", "ok")
        return {name: getattr(self, name) for name in names}


def at_least(measure: str, unit: str, ours: float, reference: float, ratio: float) -> Figure:
    """A figure whose ratio to the reference should be at least ``ratio``."""
    ok = ours >= ratio * reference
    return Figure(measure=measure, unit=unit, ours=ours, reference=reference, aim=f"ratio ≥ {ratio:g}", ok=ok)


def at_most(
    measure: str, unit: str, ours: float, limit: float, *, reference: float | None = None, why: str = ""
) -> Figure:
    """A figure that should not be above ``limit``; ``why`` says what the limit is made of."""
    aim = f"≤ {limit:.4g} {unit}{f' ({why})' if why else ''}"
    return Figure(measure=measure, unit=unit, ours=ours, reference=reference, aim=aim, ok=ours <= limit)


def percentile(values: Sequence[float], percent: int) -> float:
    """Interpolated, so that it is defined for few values, too.

    >>> percentile([1.0, 2.0, 3.0], 50)
    2.0
    """
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


_HEAD = ("measure", "ours", "reference", "ratio", "aim", "")


def table(figures: Sequence[Figure]) -> str:
    """All figures in columns, as a Markdown table: it can be pasted into docs/BENCHMARKS.md."""
    rows = [_HEAD, *(_cells(figure) for figure in figures)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def _cells(figure: Figure) -> tuple[str, ...]:
    verdict = "" if figure.ok is None else "ok" if figure.ok else "below"
    ratio = "" if figure.ratio is None else f"{figure.ratio:.2f}"
    reference = "" if figure.reference is None else _number(figure.reference, figure.unit)
    return figure.measure, _number(figure.ours, figure.unit), reference, ratio, figure.aim, verdict


def _number(value: float, unit: str) -> str:
    digits = 0 if abs(value) >= 1000 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f} {unit}".strip()
