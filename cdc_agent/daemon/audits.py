"""Wires the audits of ``verify`` to the daemon's ends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from cdc_agent.agents.watermark import Progress
from cdc_agent.ledger.base import Ledger
from cdc_agent.lsn import Lsn
from cdc_agent.resync import ResyncRunner
from cdc_agent.retry import Retrier
from cdc_agent.stream.base import Stream
from cdc_agent.vectorstore.base import VectorStore
from cdc_agent.verify.ends import Audited, Barrier, Ends, KeyedReader
from cdc_agent.verify.runner import VerifyRunner

__all__ = ["Late", "verify_runner"]


class Late:
    """The progress of what begins later than who asks for it, and may be replaced meanwhile."""

    def __init__(self, progress: Callable[[], Progress]) -> None:
        self._progress = progress

    @property
    def applied_lsn(self) -> Lsn:
        return self._progress().applied_lsn

    @property
    def offset(self) -> int:
        return self._progress().offset

    def wait_lsn(self, lsn: Lsn, timeout_s: float) -> bool:
        return self._progress().wait_lsn(lsn, timeout_s)


def verify_runner(
    *,
    ledger: Ledger,
    stream: Stream,
    store: VectorStore,
    reader: KeyedReader,
    resync: ResyncRunner,
    watermark: Progress,
    hurry: Callable[[], None],
    collections: Callable[[], Sequence[Audited]],
    retrier: Retrier,
    stop: threading.Event,
    feeds: Sequence[tuple[KeyedReader, Callable[[], Progress]]],
) -> VerifyRunner:
    """``hurry`` is called while an audit waits for a watermark; ``feeds`` have one of their own each."""
    ends = Ends(
        ledger=ledger,
        store=store,
        reader=reader,
        barrier=Barrier(watermark=watermark, hurry=hurry, stop=stop),
        request=resync.request,
        behind=lambda: stream.head_offset() > watermark.offset,
        retrier=retrier,
        stop=stop,
        beside=[(one, Barrier(watermark=Late(mark), hurry=hurry, stop=stop)) for one, mark in feeds],
    )
    return VerifyRunner(ends, collections)
