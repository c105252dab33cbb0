"""What the daemon answers to HTTP: search, watermark, status, readiness, dead letters, resyncs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import cdc_agent
from cdc_agent import metrics
from cdc_agent.daemon.build import Daemon
from cdc_agent.errors import CdcAgentError, DaemonUnavailable, StreamError, UsageError
from cdc_agent.health import Problem
from cdc_agent.ledger.base import DeadLetter, Resync
from cdc_agent.lsn import Lsn
from cdc_agent.search import SearchHit
from cdc_agent.source import slot

__all__ = ["DaemonService"]

#: How often a waiter asks the server again where it is.
_ASK_INTERVAL_S = 0.25


class DaemonService:
    """See ``web.service.Service``."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._started_at = time.time()

    def search(self, collection: str, query: str, *, k: int, where: Mapping[str, Any] | None) -> Sequence[SearchHit]:
        return self._daemon.searcher.search(collection, query, k, where)

    def wait(self, lsn: Lsn, timeout_s: float) -> Lsn:
        watermark = self._daemon.indexer.watermark
        deadline = time.monotonic() + timeout_s
        while not watermark.wait_lsn(lsn, 0):
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            if self._daemon.stop.is_set():
                raise DaemonUnavailable("the daemon is stopping", hint="ask again when it is back")
            # The watermark may be behind only because the server has had no reason to say how far it is.
            self._daemon.capture.hurry()
            self._daemon.indexer.hurry()
            watermark.wait_lsn(lsn, min(left, _ASK_INTERVAL_S))
        return watermark.applied_lsn

    def applied_lsn(self) -> Lsn:
        return self._daemon.indexer.watermark.applied_lsn

    def lag_s(self) -> float | None:
        if not self._daemon.capture.streaming.is_set():
            return None
        oldest = self._oldest_unapplied_us()
        return 0.0 if oldest is None else max(0.0, time.time() - oldest / 1_000_000)

    def _oldest_unapplied_us(self) -> int | None:
        stream, offset = self._daemon.stream, self._daemon.indexer.watermark.offset
        if stream.head_offset() <= offset:
            return None
        try:
            events = stream.read(offset, limit=1, wait_s=0).events
        except StreamError:
            return None
        return events[0].commit_ts_us if events else None

    def status(self) -> dict[str, Any]:
        daemon = self._daemon
        watermark = daemon.indexer.watermark
        captured = daemon.stream.position().captured_lsn
        return {
            "version": cdc_agent.__version__,
            "uptime_s": round(time.time() - self._started_at, 1),
            "streaming": daemon.capture.streaming.is_set(),
            "problems": [{"name": p.name, "message": p.message, "hint": p.hint} for p in self.readiness()],
            "captured_lsn": str(captured),
            "applied_lsn": str(watermark.applied_lsn),
            "lag_s": self.lag_s(),
            "stream": {
                "bytes": daemon.stream.size_bytes(),
                "head_offset": daemon.stream.head_offset(),
                "applied_offset": watermark.offset,
            },
            "slot": self._slot(),
            "collections": [self._collection(spec.name, spec.qualified_table) for spec in daemon.specs],
            "dead_letters": len(daemon.ledger.dead_letters()),
            "resyncs": [_resync(r) for r in daemon.ledger.resyncs(running_only=True)],
        }

    def _slot(self) -> dict[str, Any] | None:
        source = self._daemon.config.source
        try:
            found = slot.describe(source.dsn.get_secret_value(), source.slot_name)
        except CdcAgentError:
            # The problem list says already that the source is away.
            return None
        if found is None:
            return None
        metrics.SLOT_RETAINED_BYTES.set(found.retained_bytes or 0)
        metrics.REPLICATION_LAG_BYTES.set(found.lag_bytes or 0)
        return {
            "name": found.name,
            "plugin": found.plugin,
            "wal_status": found.wal_status,
            "confirmed_flush_lsn": str(found.confirmed_flush_lsn),
            "retained_bytes": found.retained_bytes,
            "lag_bytes": found.lag_bytes,
        }

    def _collection(self, name: str, table: str) -> dict[str, Any]:
        documents, chunks = self._daemon.ledger.counts(name)
        metrics.DOCUMENTS.labels(collection=name).set(documents)
        metrics.CHUNKS.labels(collection=name).set(chunks)
        return {"name": name, "table": table, "documents": documents, "chunks": chunks}

    def readiness(self) -> Sequence[Problem]:
        problems = list(self._daemon.health.problems())
        names = {problem.name for problem in problems}
        if not self._daemon.capture.streaming.is_set() and "source" not in names:
            problems.append(Problem(name="source", message="not streaming yet", hint="it is connecting"))
        if "vectorstore" not in names:
            try:
                self._daemon.store.ping()
            except CdcAgentError as exc:
                problems.append(Problem(name="vectorstore", message=exc.message, hint=exc.hint))
        return problems

    def dead_letters(self) -> Sequence[DeadLetter]:
        return self._daemon.ledger.dead_letters()

    def dead_letter(self, letter_id: int) -> DeadLetter | None:
        return self._daemon.ledger.dead_letter(letter_id)

    def replay_dead_letter(self, letter_id: int) -> bool:
        letter = self._daemon.ledger.dead_letter(letter_id)
        if letter is None:
            return False
        wanted = Resync(
            table=letter.table, collections=(letter.collection,), keys=(letter.key,), reason=f"dead letter {letter_id}"
        )
        self._daemon.resync.request(wanted)
        return True

    def discard_dead_letter(self, letter_id: int) -> bool:
        return self._daemon.ledger.discard_dead_letter(letter_id)

    def resyncs(self) -> Sequence[Resync]:
        return self._daemon.ledger.resyncs()

    def start_resync(self, *, table: str | None, keys: Sequence[tuple[str, ...]], reason: str) -> Sequence[Resync]:
        by_table: dict[str, list[str]] = {}
        for spec in self._daemon.specs:
            by_table.setdefault(spec.qualified_table, []).append(spec.name)
        if table is not None and table not in by_table:
            raise UsageError(f"no collection is made of table {table}", hint=f"tables: {', '.join(sorted(by_table))}")
        wanted = sorted(by_table) if table is None else [table]
        return [
            self._daemon.resync.request(
                Resync(table=name, collections=tuple(by_table[name]), keys=tuple(keys), reason=reason)
            )
            for name in wanted
        ]


def _resync(r: Resync) -> dict[str, Any]:
    elapsed = time.time() - r.started_at if r.started_at else 0.0
    rate = r.rows_done / elapsed if elapsed > 0 else 0.0
    left = max(0, r.rows_estimated - r.rows_done)
    return {
        "id": r.id,
        "table": r.table,
        "reason": r.reason,
        "rows_done": r.rows_done,
        "rows_estimated": r.rows_estimated,
        "eta_s": round(left / rate, 1) if rate > 0 else None,
    }
