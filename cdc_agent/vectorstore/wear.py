"""How much was deleted from each collection of a store, which is what wears an approximate index out."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

__all__ = ["Wear"]


class Wear:
    """Counts since the start of the process. Safe for several threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._deleted: dict[str, int] = {}
        self._written_at: dict[str, float] = {}

    def note_deleted(self, collection: str, records: int) -> None:
        with self._lock:
            self._deleted[collection] = self._deleted.get(collection, 0) + records

    def note_written(self, collection: str) -> None:
        with self._lock:
            self._written_at[collection] = self._clock()

    def deleted(self, collection: str) -> int:
        """Records that were deleted from it."""
        with self._lock:
            return self._deleted.get(collection, 0)

    def calm_s(self, collection: str) -> float:
        """Seconds since records were last added to it."""
        with self._lock:
            return self._clock() - self._written_at.get(collection, float("-inf"))
