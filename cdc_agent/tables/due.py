"""Tables that are due to be read again, each at its moment.

A table is read again once every transaction that was under way when the difference was seen has ended: what the log
said of these may have been decoded as the table was before.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from cdc_agent import metrics
from cdc_agent.ledger.base import Ledger, SourceTable
from cdc_agent.source.shape import Difference, Seen

__all__ = ["Dues"]

log = logging.getLogger(__name__)

#: Seconds that a resync waits for transactions that were under way, before it is made twice: now, and after them.
_PATIENCE_S = 10.0


@dataclass(slots=True, kw_only=True)
class _Due:
    """A table to be read again: why, what it is then remembered as, up to which transaction all must have ended, and
    not before which moment.

    ``partitions``: only their rows (none: the whole table).
    """

    reason: str
    remember: SourceTable
    partitions: frozenset[int]
    barrier: int
    begin: float
    deadline: float
    asked: bool = False


class Dues:
    """``request`` asks for a table to be read again, or those of its rows that fulfil a ``condition``. What
    it is from then on is remembered after that, so a crash in between repeats it."""

    def __init__(
        self,
        *,
        request: Callable[[str, str, str], None],
        ledger: Ledger,
        condition: Callable[[Iterable[int]], str],
        clock: Callable[[], float],
    ) -> None:
        self._request = request
        self._ledger = ledger
        self._condition = condition
        self._clock = clock
        self._due: dict[str, _Due] = {}

    def __bool__(self) -> bool:
        return bool(self._due)

    @property
    def waiting(self) -> bool:
        """Whether some table may be read as soon as transactions have ended."""
        return any(not due.asked and self._clock() >= due.begin for due in self._due.values())

    def add(
        self,
        remember: SourceTable,
        differences: Collection[Difference],
        seen: Seen,
        partitions: frozenset[int] = frozenset(),
        wait_s: float = 0.0,
    ) -> None:
        """A table differs; what is due already stays so."""
        reason = "table " + ", ".join(sorted(differences))
        known = self._due.get(remember.name)
        if known is not None and known.remember == remember and known.reason == reason:
            return
        log.warning("table changed table=%s differences=%s", remember.name, ",".join(sorted(differences)))
        for difference in differences:
            metrics.TABLE_CHANGES.labels(difference=difference.value.replace(" ", "_")).inc()
        self._due[remember.name] = _Due(
            reason=reason,
            remember=remember,
            partitions=partitions,
            barrier=max(seen.running, default=0),
            begin=self._clock() + wait_s,
            deadline=self._clock() + wait_s + _PATIENCE_S,
        )

    def drop(self, name: str) -> None:
        """A table is as it was, or cannot be read now."""
        self._due.pop(name, None)

    def settle(self, seen: Seen) -> None:
        """Have tables read again whose time has come, and remember them then."""
        for name, due in list(self._due.items()):
            if self._clock() < due.begin:
                continue
            if seen.xmin > due.barrier:
                self._request(name, due.reason, self._rows(due))
                self._ledger.save_source_table(due.remember)
                del self._due[name]
            elif not due.asked and self._clock() >= due.deadline:
                reason = f"{due.reason}; again when transactions of that time have ended"
                self._request(name, reason, self._rows(due))
                due.asked = True

    def _rows(self, due: _Due) -> str:
        return self._condition(due.partitions) if due.partitions else ""
