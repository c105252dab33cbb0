"""Hot documents: one that changes again and again is embedded a few times, then about once a second.

Nothing else waits for it, and it waits only while nobody asks for it: a reader who waits for the watermark ends every
deferral. What is deferred lives in memory; the checkpoint stays before its first change, so a crash loses nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cdc_agent.agents.folding import Pending
from cdc_agent.ledger.base import Checkpoint

__all__ = ["Deferred", "Pacer"]

#: A document may be embedded this often in a row…
_BURST = 3
#: …and then once in this many seconds.
_INTERVAL_S = 1.0
#: How long somebody's waiting counts; waiters repeat themselves more often than this.
_URGENT_S = 0.5
#: Documents remembered before the cool ones are forgotten.
_REMEMBERED = 10_000

#: A document of a collection.
Place = tuple[str, str]


class Pacer:
    """A token bucket for each document that was embedded lately."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._buckets: dict[Place, tuple[float, float]] = {}

    def wait_s(self, place: Place) -> float:
        """0 if the document may be embedded now (which is counted), otherwise the seconds until it may."""
        now = self._clock()
        tokens, since = self._buckets.get(place, (float(_BURST), now))
        tokens = min(float(_BURST), tokens + (now - since) / _INTERVAL_S)
        if tokens < 1.0:
            self._buckets[place] = (tokens, now)
            return (1.0 - tokens) * _INTERVAL_S
        self._buckets[place] = (tokens - 1.0, now)
        self._forget_cool(now)
        return 0.0

    def _forget_cool(self, now: float) -> None:
        if len(self._buckets) > _REMEMBERED:
            horizon = now - _BURST * _INTERVAL_S
            self._buckets = {place: entry for place, entry in self._buckets.items() if entry[1] > horizon}


@dataclass(frozen=True, slots=True)
class _Entry:
    pending: Pending
    due: float
    held: Checkpoint


class Deferred:
    """The documents that wait, each with the checkpoint from which its changes can be read again.

    Used by the planner; ``hurry`` may be called from any thread (it writes one number).
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._entries: dict[Place, _Entry] = {}
        self._urgent_until = 0.0

    def add(self, place: Place, pending: Pending, wait_s: float, held: Checkpoint) -> None:
        """Put a document off. One that was put off before keeps its first checkpoint."""
        self._entries[place] = _Entry(pending, self._clock() + wait_s, held)

    def hurry(self) -> None:
        """Somebody waits: everything is due now, and nothing is put off for a moment."""
        self._urgent_until = self._clock() + _URGENT_S

    @property
    def urgent(self) -> bool:
        return self._clock() < self._urgent_until

    def due_in_s(self, at_most_s: float) -> float:
        """Seconds until the first one is due."""
        if not self._entries:
            return at_most_s
        if self.urgent:
            return 0.0
        first = min(entry.due for entry in self._entries.values())
        return max(0.0, min(at_most_s, first - self._clock()))

    def take_due(self) -> dict[Place, _Entry]:
        """Remove and return what is due."""
        everything, now = self.urgent, self._clock()
        due = {place: entry for place, entry in self._entries.items() if everything or entry.due <= now}
        for place in due:
            del self._entries[place]
        return due

    def take(self, place: Place) -> _Entry | None:
        """Remove and return one document: it changes again."""
        return self._entries.pop(place, None)

    def __contains__(self, place: Place) -> bool:
        return place in self._entries

    def places(self, collection: str) -> list[str]:
        return [document for name, document in self._entries if name == collection]

    def safe(self, checkpoint: Checkpoint) -> Checkpoint:
        """The newest checkpoint that is before every change that waits."""
        return min((checkpoint, *(entry.held for entry in self._entries.values())), key=lambda c: c.offset)

    def clear(self) -> None:
        self._entries.clear()
