"""When to look at a feed: when a doorbell rings, again a little later, and now and then without any.

Deliveries lie in the journal; how far they were heeded is durable, and moves only after what they led to is in the
stream. The API may answer with a state that is older than the webhook that told of it, so each look that a doorbell
led to is repeated once. Deliveries that never came are made up for by the look that nobody asked for.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from cdc_agent.errors import FeedUnavailable
from cdc_agent.feeds.base import EVERYTHING, Ring
from cdc_agent.feeds.follower import Follower
from cdc_agent.feeds.mirror import Mirror
from cdc_agent.health import Health
from cdc_agent.journal.base import Journal, Query
from cdc_agent.retry import Retrier, Stopping

__all__ = ["ODD", "Bell"]

log = logging.getLogger(__name__)

#: The problem of a feed that is followed, and of which something cannot be indexed.
ODD = "odd"
#: Seconds between two looks into the journal when nobody says that something came.
_POLL_S = 1.0
_ENTRIES_AT_ONCE = 200
#: Documents that are asked for one by one; more than that are a look at everything.
_MOST_KEYS = 200


class Bell:
    """The body of one thread. ``webhook`` names the sender whose deliveries ring; empty: nobody's do."""

    def __init__(
        self,
        *,
        follower: Follower,
        mirror: Mirror,
        journal: Journal | None,
        webhook: str,
        every_s: float,
        again_s: float,
        retrier: Retrier,
        health: Health,
        stop: threading.Event,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._follower = follower
        self._mirror = mirror
        self._journal = journal
        self._webhook = webhook
        self._every_s = every_s
        self._again_s = again_s
        self._retrier = retrier
        self._health = health
        self._stop = stop
        self._clock = clock
        self._rung = threading.Event()
        self._next_all = clock()
        #: Looks that are to be repeated, and when.
        self._again: list[tuple[float, Ring]] = []

    def ring(self) -> None:
        """Something came, or the process is to stop."""
        self._rung.set()

    def run(self) -> None:
        try:
            while not self._stop.is_set():
                self.turn()
                self._rung.wait(_POLL_S)
                self._rung.clear()
        except Stopping:
            log.debug("feed stopped name=%s", self._follower.name)

    def turn(self) -> None:
        """Look at what is due."""
        heard, rings = self._heard()
        now = self._clock()
        due = [ring for at, ring in self._again if at <= now]
        self._again = [(at, ring) for at, ring in self._again if at > now]
        self._look([*rings, *due, *([EVERYTHING] if now >= self._next_all else [])])
        if rings:
            self._again.append((self._clock() + self._again_s, _together(rings)))
        if heard > self._mirror.heeded:
            self._mirror.heed(heard)

    def _look(self, rings: list[Ring]) -> None:
        if not rings:
            return
        ring = _together(rings)
        self._retrier.until_done("feed", lambda: self._follower.look(ring), (FeedUnavailable,))
        if ring.whole:
            self._next_all = self._clock() + self._every_s
            self._tell()

    def _tell(self) -> None:
        odd = self._follower.feed.oddities()
        if odd:
            self._health.report(ODD, odd[0], "see docs/FEEDS.md")
        else:
            self._health.clear(ODD)

    def _heard(self) -> tuple[int, list[Ring]]:
        """The number of the newest delivery, and what they say to us."""
        heard, rings = self._mirror.heeded, []
        while self._journal is not None and self._webhook:
            wanted = Query(source=self._webhook, after=heard, limit=_ENTRIES_AT_ONCE)
            entries = self._journal.find(wanted)
            for entry in entries:
                heard = entry.number
                ring = self._follower.feed.heed(entry.event)
                if ring is not None:
                    rings.append(ring)
            if len(entries) < _ENTRIES_AT_ONCE:
                break
        return heard, rings


def _together(rings: list[Ring]) -> Ring:
    keys = frozenset[str]().union(*(ring.keys for ring in rings))
    if len(keys) > _MOST_KEYS:
        return EVERYTHING
    return Ring(keys, whole=any(ring.whole for ring in rings))
