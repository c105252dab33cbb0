"""What has just become true in the index: which documents, by what kind of change, how long after the commit.

For people who watch, and for freshness. Bounded and in memory. Keys and operations only, never a value of a cell.
"""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cdc_agent import metrics
from cdc_agent.agents.planning import Plan
from cdc_agent.events import Op
from cdc_agent.freshness import FreshnessHistory
from cdc_agent.lsn import Lsn
from cdc_agent.tracing import IndexedPart

__all__ = ["Indexed", "Recent", "indexed_parts"]

#: Entries that are remembered.
_KEPT = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Indexed:
    """One document that became what its row is. ``number`` counts from 1 since the daemon's start.

    ``op`` is Debezium's, ``r`` for a row that a resync read. Of its chunks ``new`` were written, ``moved`` got other
    metadata, ``kept`` stayed with their vectors (``moved`` among them). ``age_s``: commit to found, None for ``r``.
    """

    number: int
    found_at: float
    op: Op
    collection: str
    table: str
    key: tuple[str, ...]
    new: int
    moved: int
    kept: int
    age_s: float | None


class Recent:
    """Written by the indexers' writers, read by anybody. Safe to use from any thread."""

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._entries: collections.deque[Indexed] = collections.deque(maxlen=_KEPT)
        self._number = 0
        self._lock = threading.Lock()
        self.freshness = FreshnessHistory(clock=clock)

    @property
    def newest(self) -> int:
        """The number of the newest entry, 0 before there is one."""
        with self._lock:
            return self._number

    def found(self, plans: Iterable[Plan]) -> None:
        """These plans were carried out just now."""
        now = self._clock()
        changed = [plan for plan in plans if plan.pending.touched]
        ages = [_age_s(plan, now) for plan in changed if not plan.pending.from_resync]
        for age in ages:
            metrics.FRESHNESS_SECONDS.observe(age)
        self.freshness.observe(ages)
        shown = [plan for plan in changed if _is_news(plan)]
        with self._lock:
            self._number += max(0, len(shown) - _KEPT)
            for plan in shown[-_KEPT:]:
                self._number += 1
                self._entries.append(_entry(self._number, plan, now))

    def since(self, number: int) -> list[Indexed]:
        """What came after entry ``number``, oldest first, as far as it is remembered."""
        with self._lock:
            missing = min(self._number - number, len(self._entries))
            return [self._entries[i] for i in range(len(self._entries) - missing, len(self._entries))]


def indexed_parts(plans: Iterable[Plan]) -> list[IndexedPart]:
    """What each commit came to in each collection, of changes alone; a document counts for its last commit."""
    found: dict[tuple[Lsn, str], list[Plan]] = {}
    for plan in plans:
        if plan.pending.touched and not plan.pending.from_resync:
            found.setdefault((plan.pending.version.commit_lsn, plan.collection), []).append(plan)
    return [
        IndexedPart(
            commit_lsn=lsn,
            commit_ts_us=made[0].pending.commit_ts_us,
            collection=collection,
            documents=len(made),
            new_chunks=sum(len(plan.new) for plan in made),
            kept_chunks=sum(len(plan.kept) for plan in made if not plan.deleted),
        )
        for (lsn, collection), made in found.items()
    ]


def _is_news(plan: Plan) -> bool:
    """Whether anything happened that a reader could have told: not that a read found what was known already."""
    if plan.deleted:
        return plan.pending.was_live
    return not (plan.pending.from_resync and plan.same)


def _entry(number: int, plan: Plan, now: float) -> Indexed:
    pending = plan.pending
    return Indexed(
        number=number,
        found_at=now,
        op=_op(plan),
        collection=plan.collection,
        table=pending.document_id.partition(":")[0],
        key=pending.key,
        new=len(plan.new),
        moved=len(plan.moved),
        kept=0 if plan.deleted else len(plan.kept),
        age_s=None if pending.from_resync else _age_s(plan, now),
    )


def _op(plan: Plan) -> Op:
    if plan.deleted:
        return Op.DELETE
    if plan.pending.from_resync:
        return Op.READ
    return Op.UPDATE if plan.pending.was_live else Op.CREATE


def _age_s(plan: Plan, now: float) -> float:
    return max(0.0, now - plan.pending.first_commit_ts_us / 1_000_000)
