"""Looks every now and then whether the store still holds what the ledger says, and whether our files are whole.

A collection that is wrong is named in ``/readyz`` at once; its writer builds it again, or the daemon ends.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

from cdc_agent.errors import IdentityMismatch, StoreUnavailable
from cdc_agent.health import Health
from cdc_agent.storekeeper.guard import StoreGuard

__all__ = ["StoreWatch"]

log = logging.getLogger(__name__)

_INTERVAL_S = 30.0
#: How soon one look may follow another.
_PAUSE_S = 0.5


class StoreWatch:
    """The body of one thread. ``rebuild`` asks a collection's writer to look itself and mend.

    ``damaged`` says what was found damaged elsewhere; that ends this thread, and with it the daemon.
    """

    def __init__(
        self,
        *,
        guard: StoreGuard,
        names: Callable[[], Sequence[str]],
        rebuild: Callable[[str], None],
        damaged: Callable[[], IdentityMismatch | None],
        health: Health,
        mend: bool,
        stop: threading.Event,
        interval_s: float = _INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._guard = guard
        self._names = names
        self._rebuild = rebuild
        self._damaged = damaged
        self._health = health
        self._mend = mend
        self._stop = stop
        self._interval_s = interval_s
        self._clock = clock
        self._soon = threading.Event()

    def soon(self) -> None:
        """Something happened to the store: look at once."""
        self._soon.set()

    def run(self) -> None:
        """Until stopped; raises ``IdentityMismatch`` for what is not to be mended."""
        due = self._clock() + self._interval_s
        while not self._stop.wait(_PAUSE_S):
            if self._soon.is_set() or self._clock() >= due:
                self._soon.clear()
                self.look()
                due = self._clock() + self._interval_s

    def look(self) -> None:
        self._look_at_files()
        for name in self._names():
            try:
                self._guard.check(name)
            except StoreUnavailable as exc:
                # The ping and the writer say that already.
                log.debug("store not checked collection=%s error=%s", name, exc.message)
            except IdentityMismatch as exc:
                self._health.report("store", exc)
                if not self._mend:
                    raise
                self._rebuild(name)
                # Until it is mended.
                self._soon.set()
                return
        self._health.clear("store")

    def _look_at_files(self) -> None:
        try:
            found = self._damaged()
        except StoreUnavailable as exc:
            log.warning("store not made anew yet error=%s", exc.message)
            self._soon.set()
            return
        if found is not None:
            raise found
