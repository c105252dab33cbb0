"""The router: the one consumer of the stream of row changes on behalf of all agents. It copies what somebody listens to
into the journal, where each agent goes at its own pace; so an agent that is slow never holds up the stream, whose
retention waits for everybody who reads it."""

from __future__ import annotations

import datetime as dt
import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence

from cdc_agent import metrics
from cdc_agent.errors import JournalFull
from cdc_agent.events import Event
from cdc_agent.failpoints import hit
from cdc_agent.journal.base import Desk, Reading
from cdc_agent.reactions.changes import looked_through
from cdc_agent.retry import Retrier, Stopping
from cdc_agent.stream.base import Stream
from cdc_agent.stream.retries import until_answered, until_taken

__all__ = ["CONSUMER", "Router"]

log = logging.getLogger(__name__)

#: The router's name as a consumer of the stream.
CONSUMER = "agents"
_BATCH = 1_000
_READ_WAIT_S = 1.0
#: How far the stream was looked through becomes durable this often while nothing in it was wanted.
_REST_S = 5.0
#: Changes and ticks that all agents have passed are kept this long, for whoever looks into what happened.
_KEEP_S = 86_400.0
_TIDY_S = 60.0


class Router:
    """Wired by ``daemon``. ``run`` is the body of its thread. ``tables`` are those that somebody listens to."""

    def __init__(
        self,
        *,
        stream: Stream,
        desk: Desk,
        tables: Collection[str],
        agents: Collection[str],
        database: str,
        retrier: Retrier,
        stop: threading.Event,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
    ) -> None:
        self._stream = stream
        self._desk = desk
        self._tables = frozenset(tables)
        self._agents = frozenset(agents)
        self._database = database
        self._retrier = retrier
        self._stop = stop
        self._clock = clock
        self._now = now
        self._reading = self._begin()
        self._saved = self._reading
        self._save_at = self._tidy_at = clock()

    @property
    def offset(self) -> int:
        """Everything in the stream up to here has been looked through."""
        return self._reading.offset

    def run(self) -> None:
        try:
            while not self._stop.is_set():
                self.turn(_READ_WAIT_S)
            self._save(())
        except Stopping:
            log.debug("router stopped")

    def turn(self, wait_s: float) -> None:
        """Look through what there is, and wait for it if there is nothing."""
        batch = until_answered(
            self._retrier, lambda: self._stream.read(self._reading.offset, limit=_BATCH, wait_s=wait_s)
        )
        events, self._reading = looked_through(
            batch.events, self._reading, batch.next_offset, self._tables, self._database
        )
        if events or (self._reading != self._saved and self._clock() >= self._save_at):
            self._save(events)
            metrics.AGENT_CHANGES.inc(len(events))
        if self._clock() >= self._tidy_at:
            self._tidy_at = self._clock() + _TIDY_S
            self._desk.tidy(self._now() - dt.timedelta(seconds=_KEEP_S), self._agents)

    def _begin(self) -> Reading:
        """Where it was, which must be in the stream; the first time, and with another stream, at its head."""
        reading, head = self._desk.reading(), self._stream.head_offset()
        if reading is None or reading.offset > head:
            if reading is not None:
                log.warning("the stream is another one: agents go on at its head offset=%d", head)
            reading = Reading(offset=head)
            self._desk.read_to(reading, ())
        self._stream.release(CONSUMER, reading.offset)
        return reading

    def _save(self, events: Sequence[Event]) -> None:
        hit("agents_read")
        self._retrier.until_done("journal", lambda: self._desk.read_to(self._reading, events), (JournalFull,))
        hit("agents_routed")
        until_taken(self._retrier, lambda: self._stream.release(CONSUMER, self._reading.offset))
        self._saved = self._reading
        self._save_at = self._clock() + _REST_S
