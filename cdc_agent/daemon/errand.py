"""An errand: a daemon that runs in the foreground until some resyncs have ended, and stops then."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cdc_agent.daemon.service import DaemonService
from cdc_agent.ledger.base import Resync
from cdc_agent.resync_order import ResyncOrder

__all__ = ["ResyncErrand"]


class ResyncErrand:
    """Orders, then watches. ``show`` sees how far the resyncs are, a few times a second."""

    def __init__(self, order: ResyncOrder, show: Callable[[Sequence[Resync], DaemonService], None]) -> None:
        self._order = order
        self._show = show
        self._ids: set[int] | None = None
        #: What became of them.
        self.resyncs: Sequence[Resync] = ()

    def done(self, service: DaemonService) -> bool:
        """Whether the daemon may stop. A resync that is done is in the index."""
        if self._ids is None:
            self._ids = {resync.id for resync in service.start_resync(self._order)}
        self.resyncs = [resync for resync in service.resyncs() if resync.id in (self._ids or ())]
        self._show(self.resyncs, service)
        return not any(resync.open for resync in self.resyncs)
