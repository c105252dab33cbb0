"""Who may use the model next: one at a time, searches before batches.

Owns the order of waiting threads, nothing about models. A person waits for a search; nobody waits for one batch.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Turnstile"]

#: Searches that may overtake one waiting batch in a row. A flood of searches slows indexing, it never stops it.
PATIENCE = 16


class Turnstile:
    """A lock with two queues. Who holds it keeps it until done; then a waiting query goes before a waiting batch."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last_query = -math.inf
        self._changed = threading.Condition()
        self._busy = False
        self._queries_waiting = 0
        self._batches_waiting = 0
        self._overtakes = 0

    @property
    def waiting(self) -> tuple[int, int]:
        """Queries and batches that wait now."""
        with self._changed:
            return self._queries_waiting, self._batches_waiting

    def queried_within(self, seconds: float) -> bool:
        """Whether somebody searches now or has done so lately: then the next search is likely to be near."""
        with self._changed:
            return self._queries_waiting > 0 or self._clock() - self._last_query < seconds

    @contextmanager
    def for_query(self) -> Iterator[None]:
        """Hold the turnstile for one search."""
        with self._changed:
            self._queries_waiting += 1
            self._last_query = self._clock()
            try:
                self._changed.wait_for(self._query_may_pass)
            finally:
                self._queries_waiting -= 1
            self._overtakes += 1 if self._batches_waiting else 0
            self._busy = True
        try:
            yield
        finally:
            self._leave()

    @contextmanager
    def for_batch(self) -> Iterator[None]:
        """Hold the turnstile for one small batch; leave between batches so that searches get in."""
        with self._changed:
            self._batches_waiting += 1
            try:
                self._changed.wait_for(self._batch_may_pass)
            finally:
                self._batches_waiting -= 1
            self._overtakes = 0
            self._busy = True
        try:
            yield
        finally:
            self._leave()

    def _query_may_pass(self) -> bool:
        return not self._busy and not (self._batches_waiting and self._overtakes >= PATIENCE)

    def _batch_may_pass(self) -> bool:
        return not self._busy and (not self._queries_waiting or self._overtakes >= PATIENCE)

    def _leave(self) -> None:
        with self._changed:
            self._busy = False
            self._changed.notify_all()
