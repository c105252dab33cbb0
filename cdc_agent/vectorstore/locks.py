"""How long a store has not written anything since it said that it cannot. Pure; safe for several threads.

A Chroma server whose disk was full can keep a transaction open that nobody will ever end, and with it the lock of its
SQLite file: searches go on, and each write is answered ``database is locked`` or not at all. Only a restart mends that
(seen with chromadb 1.5.9).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cdc_agent.vectorstore.records import StoreBlocked

__all__ = ["BLOCKED_S", "Locks"]

#: So long a lock is the store's own business: a checkpoint or a large write may hold it for some seconds.
BLOCKED_S = 20.0
#: A lock that a restart did not end is somebody else's; then it is tried ever more rarely.
_LONGEST_S = 1800.0


class Locks:
    """``writing`` wraps each write; ``stuck`` says that a restart is due, ``restarted`` that it was made."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._patience_s = BLOCKED_S
        self._clock = clock
        self._lock = threading.Lock()
        self._since: float | None = None

    @contextmanager
    def writing(self) -> Iterator[None]:
        """One write. What fails otherwise, or is not answered, neither begins the time nor ends it."""
        try:
            yield
        except StoreBlocked:
            with self._lock:
                self._since = self._clock() if self._since is None else self._since
            raise
        with self._lock:
            self._since, self._patience_s = None, BLOCKED_S

    @property
    def stuck(self) -> bool:
        """Whether no write got through since one was answered that way, too long ago."""
        with self._lock:
            return self._since is not None and self._clock() - self._since >= self._patience_s

    def explained(self) -> None:
        """It cannot write for a reason that a restart does not take away: the time begins when that is over."""
        with self._lock:
            self._since = None if self._since is None else self._clock()

    def restarted(self) -> None:
        """Begin anew, with twice the patience until a write gets through."""
        with self._lock:
            self._since, self._patience_s = None, min(2 * self._patience_s, _LONGEST_S)
