"""What may be acknowledged to Postgres while what the stream took may be lost with its server's power. Pure."""

from __future__ import annotations

import collections
from collections.abc import Callable

from cdc_agent.lsn import Lsn

__all__ = ["HoldBack"]

#: Positions are kept this far apart at least, so that a hold-back of minutes is a few hundred of them.
_GRAIN_S = 0.5


class HoldBack:
    """Positions in the order in which they were taken; each has settled ``hold_s`` after it was.

    ``place`` is where in the stream a position stands.
    """

    def __init__(self, hold_s: float, clock: Callable[[], float]) -> None:
        self.hold_s = hold_s
        self._clock = clock
        self._settled = (Lsn(0), 0)
        self._waiting: collections.deque[tuple[float, Lsn, int]] = collections.deque()

    def took(self, lsn: Lsn, place: int, *, ago_s: float = 0.0) -> None:
        """Everything up to ``lsn`` is taken since ``ago_s``."""
        now = self._clock()
        if len(self._waiting) > 1 and now - ago_s - self._waiting[-2][0] < _GRAIN_S:
            # Settles with the newest of them, a little late.
            self._waiting.pop()
        self._waiting.append((now - ago_s, lsn, place))

    def settled(self) -> tuple[Lsn, int]:
        """The newest position that outlives a loss of power, and its place; 0 and 0 before there is one."""
        horizon = self._clock() - self.hold_s
        while self._waiting and self._waiting[0][0] <= horizon:
            _, lsn, place = self._waiting.popleft()
            self._settled = (lsn, place)
        return self._settled

    def begin_anew(self) -> None:
        """Positions before belong to another history."""
        self._settled = (Lsn(0), 0)
        self._waiting.clear()
