"""Wires the audits of ``verify`` to the daemon's ends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from cdc_agent.agents.watermark import Progress
from cdc_agent.ledger.base import Ledger
from cdc_agent.resync import ResyncRunner
from cdc_agent.retry import Retrier
from cdc_agent.stream.base import Stream
from cdc_agent.vectorstore.base import VectorStore
from cdc_agent.verify.ends import Audited, Barrier, Ends, KeyedReader
from cdc_agent.verify.runner import VerifyRunner

__all__ = ["verify_runner"]


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
) -> VerifyRunner:
    """``hurry`` is called while an audit waits for the watermark."""
    ends = Ends(
        ledger=ledger,
        store=store,
        reader=reader,
        barrier=Barrier(watermark=watermark, hurry=hurry, stop=stop),
        request=resync.request,
        behind=lambda: stream.head_offset() > watermark.offset,
        retrier=retrier,
        stop=stop,
    )
    return VerifyRunner(ends, collections)
