"""Rows that a resync read, which wait so that live changes go first.

The rule of visibility (``folding``) makes a read and a change of the same row come to the same in either order, so
changes may overtake reads. Reads keep their own order, and the checkpoint stays before the first that waits.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable

from cdc_agent.events import ChangeEvent
from cdc_agent.ledger.base import Checkpoint
from cdc_agent.lsn import Lsn

__all__ = ["Backlog", "Portion"]

#: Events after which nothing more is read ahead.
_FULL = 4_000
#: A change as young as this says that there may be more.
_LIVELY_S = 5.0
#: With changes about, a portion of reads may take as long as so many batches of changes, within these bounds.
_LIVELY_BATCHES = 1.5
_LEAST_PORTION_S, _CALM_PORTION_S = 0.02, 0.5
#: Chunks to embed that one portion aims at.
_TARGET_CHUNKS = 64
_LEAST, _MOST = 8, 2_000
#: How much the newest of some times counts.
_NEWEST = 0.2


class Backlog:
    """First in, first out; used by the planner alone."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._events: collections.deque[tuple[ChangeEvent, Lsn]] = collections.deque()
        self._changed_at = float("-inf")
        self._worked_at = float("-inf")
        self.portion = Portion()

    def __bool__(self) -> bool:
        return bool(self._events)

    @property
    def full(self) -> bool:
        return len(self._events) >= _FULL

    @property
    def lively(self) -> bool:
        """Whether live changes are about."""
        return self._clock() - self._changed_at < _LIVELY_S

    @property
    def starved(self) -> bool:
        """Whether reads get less than half of the time, however much changes."""
        return self._clock() - self._worked_at > 2 * self.portion.seconds

    def changed(self, seconds: float) -> None:
        """A batch of changes came by, and took so long."""
        self._changed_at = self._clock()
        self.portion.changed(seconds)

    def worked(self, events: int, chunks: int, seconds: float) -> None:
        """A portion of so many events, with so many new chunks, took so long."""
        self.portion.took(events, chunks, seconds, lively=self.lively)

    def add(self, events: Iterable[ChangeEvent], applied_lsn: Lsn) -> None:
        """Changes are complete up to ``applied_lsn`` in front of these events."""
        self._events.extend((event, applied_lsn) for event in events)

    def take(self, most: int) -> list[ChangeEvent]:
        """The oldest, at most so many."""
        self._worked_at = self._clock()
        return [self._events.popleft()[0] for _ in range(min(most, len(self._events)))]

    def safe(self, checkpoint: Checkpoint) -> Checkpoint:
        """The newest checkpoint that is before everything that waits."""
        if not self._events:
            return checkpoint
        event, applied_lsn = self._events[0]
        held = Checkpoint(offset=event.offset - 1, applied_lsn=applied_lsn)
        return min(checkpoint, held, key=lambda c: c.offset)

    def clear(self) -> None:
        self._events.clear()


class Portion:
    """How many reads to take at a time: by the chunks that they bring, and by how long they hold changes up.

    A batch has a cost of its own, however small it is. So the time that a portion may take hangs on what a batch of
    changes takes: much less would be all cost and no work.
    """

    def __init__(self) -> None:
        self.size = _TARGET_CHUNKS
        #: What the last one took.
        self.seconds = _LEAST_PORTION_S
        self._change_s = _LEAST_PORTION_S

    def changed(self, seconds: float) -> None:
        """A batch of changes took so long."""
        self._change_s += _NEWEST * (min(seconds, _CALM_PORTION_S) - self._change_s)

    def took(self, events: int, chunks: int, seconds: float, *, lively: bool) -> None:
        """A portion of ``events`` with so many new chunks took so long; sizes the next."""
        self.seconds = min(seconds, _CALM_PORTION_S)
        within_s = max(_LEAST_PORTION_S, _LIVELY_BATCHES * self._change_s) if lively else _CALM_PORTION_S
        by_time = events * within_s / max(seconds, 1e-4)
        by_chunks = _TARGET_CHUNKS * events / max(chunks, 1)
        self.size = max(_LEAST, min(_MOST, int(min(by_time, by_chunks)), self.size * 4))
