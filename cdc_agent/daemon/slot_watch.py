"""What the server says of our slot: asked as rarely as whoever wants to know allows, and not while nothing happens."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from cdc_agent import metrics
from cdc_agent.errors import CdcAgentError
from cdc_agent.lsn import Lsn
from cdc_agent.source import slot
from cdc_agent.source.slot import SlotStatus

__all__ = ["SlotWatch"]


class SlotWatch:
    """Remembers the last answer and keeps the gauges of the slot. Safe to use from any thread.

    ``heard`` is the highest position that the server told us of by itself: as long as it stays, an answer stays true
    enough, and an idle server is left alone.
    """

    def __init__(
        self, dsn: str, slot_name: str, *, heard: Callable[[], Lsn], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._dsn = dsn
        self._slot_name = slot_name
        self._heard = heard
        self._clock = clock
        self._lock = threading.Lock()
        self._last: SlotStatus | None = None
        self._heard_then = Lsn(0)
        self._asked_at = float("-inf")

    @property
    def last(self) -> SlotStatus | None:
        """What was known last, without asking."""
        with self._lock:
            return self._last

    def look(self, max_age_s: float) -> SlotStatus | None:
        """The slot as it was at most ``max_age_s`` ago, longer on an idle server; None when nobody can tell."""
        with self._lock:
            heard, now = self._heard(), self._clock()
            is_old = now - self._asked_at >= max_age_s
            if is_old and (self._last is None or heard != self._heard_then):
                self._last = self._ask()
                self._heard_then, self._asked_at = heard, now
            return self._last

    def _ask(self) -> SlotStatus | None:
        try:
            found = slot.describe(self._dsn, self._slot_name)
        except CdcAgentError:
            # The problem list says already that the source is away.
            return None
        if found is not None:
            metrics.SLOT_RETAINED_BYTES.set(found.retained_bytes or 0)
            metrics.REPLICATION_LAG_BYTES.set(found.lag_bytes or 0)
        return found
