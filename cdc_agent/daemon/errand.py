"""Errands: a daemon that runs in the foreground until one thing is done, and stops then."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from cdc_agent.daemon.service import DaemonService
from cdc_agent.ledger.base import Resync
from cdc_agent.lsn import Lsn
from cdc_agent.resync_order import ResyncOrder
from cdc_agent.search import SearchHit
from cdc_agent.verify.report import Report, Wanted

__all__ = ["Errand", "ResyncErrand", "SearchErrand", "VerifyErrand"]


class Errand(Protocol):
    """Asked a few times a second."""

    def done(self, service: DaemonService) -> bool:
        """Whether the daemon may stop."""
        ...


class ResyncErrand:
    """Orders, then watches. ``show`` sees how far the resyncs are. A resync that is done is in the index."""

    def __init__(self, order: ResyncOrder, show: Callable[[Sequence[Resync], DaemonService], None]) -> None:
        self._order = order
        self._show = show
        self._ids: set[int] | None = None
        #: What became of them.
        self.resyncs: Sequence[Resync] = ()

    def done(self, service: DaemonService) -> bool:
        if self._ids is None:
            self._ids = {resync.id for resync in service.start_resync(self._order)}
        self.resyncs = [resync for resync in service.resyncs() if resync.id in (self._ids or ())]
        self._show(self.resyncs, service)
        return not any(resync.open for resync in self.resyncs)


class VerifyErrand:
    """Begins an audit, then watches."""

    def __init__(self, wanted: Wanted, show: Callable[[Report], None]) -> None:
        self._wanted = wanted
        self._show = show
        self.report: Report | None = None

    def done(self, service: DaemonService) -> bool:
        if self.report is None:
            self.report = service.start_verify(self._wanted)
        self._show(self.report)
        return self.report.finished_at is not None


class SearchErrand:
    """Catches up with the source as it is at the beginning, then searches."""

    def __init__(self, collection: str, query: str, *, k: int, where: Mapping[str, Any] | None) -> None:
        self._collection = collection
        self._query = query
        self._k = k
        self._where = where
        self._wanted: Lsn | None = None
        self.hits: Sequence[SearchHit] | None = None

    def done(self, service: DaemonService) -> bool:
        if self._wanted is None:
            self._wanted = service.source_lsn()
        if not service.reached(self._wanted) or any(resync.open for resync in service.resyncs()):
            return False
        self.hits = service.search(self._collection, self._query, k=self._k, where=self._where)
        return True
