"""How long a store has said nothing to writes but that its database is locked. Pure; safe for several threads.

A Chroma server whose disk was full can keep a transaction open that nobody will ever end: searches go on, every write
is answered ``database is locked``, and only a restart mends that (seen with chromadb 1.5.9).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cdc_agent.vectorstore.records import StoreLocked

__all__ = ["LOCKED_S", "Locks"]

#: So long a lock is the store's own business: a checkpoint or a large write may hold it for some seconds.
LOCKED_S = 20.0
#: A lock that a restart did not end is somebody else's; then it is tried ever more rarely.
_LONGEST_S = 1800.0


class Locks:
    """``writing`` wraps each write; ``stuck`` says that a restart is due, ``restarted`` that it was made."""

    def __init__(self, *, patience_s: float = LOCKED_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._first_patience_s = self._patience_s = patience_s
        self._clock = clock
        self._lock = threading.Lock()
        self._since: float | None = None

    @contextmanager
    def writing(self) -> Iterator[None]:
        """One write. What fails otherwise says nothing about locks."""
        try:
            yield
        except StoreLocked:
            with self._lock:
                self._since = self._clock() if self._since is None else self._since
            raise
        with self._lock:
            self._since, self._patience_s = None, self._first_patience_s

    @property
    def stuck(self) -> bool:
        """Whether no write got through since one was answered that way, too long ago."""
        with self._lock:
            return self._since is not None and self._clock() - self._since >= self._patience_s

    def restarted(self) -> None:
        """Begin to count anew, with twice the patience until a write gets through."""
        with self._lock:
            self._since, self._patience_s = None, min(2 * self._patience_s, _LONGEST_S)
