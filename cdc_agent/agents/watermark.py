"""The applied watermark of one agent: up to which commit its work is complete. Readers wait on it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from cdc_agent.lsn import Lsn

__all__ = ["Progress", "Watermark"]


class Progress(Protocol):
    """How far something is: one agent, or all that answer searches."""

    @property
    def applied_lsn(self) -> Lsn: ...
    @property
    def offset(self) -> int: ...
    def wait_lsn(self, lsn: Lsn, timeout_s: float) -> bool: ...


class Watermark:
    """``offset`` and ``applied_lsn`` only ever grow."""

    def __init__(self, offset: int = 0, applied_lsn: Lsn = Lsn(0)) -> None:
        self._offset = offset
        self._applied_lsn = applied_lsn
        self._moved = threading.Condition()

    @property
    def applied_lsn(self) -> Lsn:
        with self._moved:
            return self._applied_lsn

    @property
    def offset(self) -> int:
        with self._moved:
            return self._offset

    def advance(self, offset: int, applied_lsn: Lsn) -> None:
        with self._moved:
            self._offset = max(self._offset, offset)
            self._applied_lsn = max(self._applied_lsn, applied_lsn)
            self._moved.notify_all()

    @contextmanager
    def still(self) -> Iterator[Lsn]:
        """Nobody is told of anything newer meanwhile. Keep it short: the writer waits too."""
        with self._moved:
            yield self._applied_lsn

    def wait_lsn(self, lsn: Lsn, timeout_s: float) -> bool:
        """Wait until everything that committed at or before ``lsn`` is in the index."""
        with self._moved:
            return self._moved.wait_for(lambda: self._applied_lsn >= lsn, timeout_s)
