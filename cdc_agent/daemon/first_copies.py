"""First copies that wait until all before their agent's place can be seen, each in a thread that ends with it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from cdc_agent.daemon.consumers import Consumers, Served
from cdc_agent.daemon.threads import Threads
from cdc_agent.errors import LedgerUnavailable, SourceError
from cdc_agent.failpoints import hit
from cdc_agent.ledger.base import Ledger, Resync
from cdc_agent.migrate.copying import CopyProgress, copy_of, progress_of
from cdc_agent.retry import Retrier, Stopping

__all__ = ["FirstCopies"]

log = logging.getLogger(__name__)

_POLL_S = 0.2


class FirstCopies:
    """``visible`` begins to ask whether all that had begun by now can be seen; ``notify`` tells who reads tables."""

    def __init__(
        self,
        *,
        consumers: Consumers,
        ledger: Ledger,
        notify: Callable[[], None],
        retrier: Retrier,
        visible: Callable[[], Callable[[], bool]],
        stop: threading.Event,
    ) -> None:
        self._consumers = consumers
        self._ledger = ledger
        self._notify = notify
        self._retrier = retrier
        self._visible = visible
        self._stop = stop
        self._threads: Threads | None = None

    def run(self, threads: Threads) -> None:
        """Begin the first copies that are still to be begun, each in a thread of its own that ends with it: of what is
        being built, of what came while another transaction hid rows, and of what has lost its place in the log."""
        self._threads = threads
        for served in self._consumers.served:
            if not self._is_begun(served):
                self.begin(served)

    def begin(self, served: Served) -> None:
        """Begin one, while the daemon runs."""
        assert self._threads is not None
        self._threads.start(f"copy {served.physical}", lambda: self._begin_copy(served), vital=False)

    def _begin_copy(self, served: Served) -> None:
        """Ask for the first copy once every change that this generation's agent was not given can be read."""
        try:
            if self.progress(served).state == "waiting":
                hit("migrate_before_copy")
                self._await_visible()
            self._retrier.until_done("ledger", lambda: self._ask_for_copy(served), (LedgerUnavailable,))
            self._notify()
        except Stopping:
            log.debug("copy not begun")

    def _ask_for_copy(self, served: Served) -> None:
        """Unless its agent has given up its place meanwhile: nobody would apply it, nor did it begin from there."""
        with self._consumers.unless_stopped(served) as working:
            if not working or not self._is_kept(served):
                return
            if self.progress(served).state == "waiting":
                copy = copy_of(served.generation, served.collection.table)
                self._ledger.start_resync(replace(copy, started_at=time.time()))
            self._ledger.save_collection(served.physical, served.generation.fingerprint)

    def _await_visible(self) -> None:
        asked = self._retrier.until_done("source", self._visible, (SourceError,))
        while not self._retrier.until_done("source", asked, (SourceError,)):
            if self._stop.wait(_POLL_S):
                raise Stopping

    def _is_kept(self, served: Served) -> bool:
        """Whether nobody began to drop it meanwhile."""
        kept = [g for g in self._ledger.generations() if g.state in ("building", "live", "retired")]
        return any(g.physical == served.physical for g in kept)

    def _is_begun(self, served: Served) -> bool:
        return self._ledger.collection_fingerprint(served.physical) is not None

    def progress(self, served: Served, resyncs: Sequence[Resync] | None = None) -> CopyProgress:
        """How far the copy is. ``resyncs`` are all that the ledger knows, if they are at hand."""
        known = self._ledger.resyncs() if resyncs is None else resyncs
        return progress_of(served.generation, known, begun=self._is_begun(served))
