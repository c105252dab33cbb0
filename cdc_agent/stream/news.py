"""How far a stream is, and those of this process that wait for it to move."""

from __future__ import annotations

import threading

from cdc_agent.stream.base import Position

__all__ = ["News"]


class News:
    """Position and head of a stream; readers wait on a condition, not on a poll."""

    def __init__(self) -> None:
        self._position = Position()
        self._head = 0
        self._wakes = 0
        self._wake_next = False
        self._moved = threading.Condition()

    def tell(self, position: Position, head: int) -> None:
        with self._moved:
            self._position, self._head = position, head
            self._moved.notify_all()

    @property
    def position(self) -> Position:
        with self._moved:
            return self._position

    @property
    def head(self) -> int:
        with self._moved:
            return self._head

    def wait(self, after_offset: int, wait_s: float) -> tuple[Position, int]:
        """Position and head, once there is an entry after ``after_offset``, the position moved, somebody called
        ``wake``, or ``wait_s`` are over."""
        with self._moved:
            if wait_s > 0:
                before, wakes = self._position, self._wakes
                if self._head <= after_offset and not self._wake_next:
                    self._moved.wait_for(lambda: self._wakes != wakes or self._position != before, wait_s)
                self._wake_next = False
            return self._position, self._head

    def wake(self) -> None:
        with self._moved:
            self._wakes += 1
            # Who is about to wait must not miss it.
            self._wake_next = True
            self._moved.notify_all()
