"""What the live page shows, read from the running daemon: cheap facts often, those that cost something seldom.

Nothing here runs by itself. ``web.live`` asks while somebody watches.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Sequence
from typing import Any

from psycopg.conninfo import conninfo_to_dict

import cdc_agent
from cdc_agent import metrics
from cdc_agent.agents.recent import Indexed
from cdc_agent.daemon.consumers import AgentState
from cdc_agent.daemon.parts import Daemon
from cdc_agent.daemon.service import DaemonService
from cdc_agent.freshness import BUCKET_S, Freshness
from cdc_agent.web.answers import json_dead_letter, json_resync
from cdc_agent.web.live import Part

__all__ = ["LiveFacts"]

#: Seconds over which rates are taken, and over which freshness counts as that of now.
_RATE_S = 10.0
_NOW_S = 60.0
#: Dead letters and finished resyncs that are listed.
_LETTERS = 50
_FINISHED = 3
#: Sagas that wait for somebody and are listed.
_WAITING = 20
#: Seconds between two questions to the server about our slot.
_SLOT_S = 10.0


class LiveFacts:
    """See ``web.live.LiveSource``."""

    def __init__(self, daemon: Daemon, service: DaemonService) -> None:
        self._daemon = daemon
        self._service = service
        self._recent = daemon.recent
        #: When, and how many changes had been received by then.
        self._received: collections.deque[tuple[float, int]] = collections.deque(maxlen=30)

    @property
    def stopping(self) -> bool:
        return self._daemon.stop.is_set()

    def parts(self) -> Sequence[Part]:
        return (
            Part("pulse", 1.0, self._pulse),
            Part("work", 2.0, self._work),
            Part("problems", 2.0, self._problems),
            Part("slot", 2.0, self._slot),
            Part("sagas", 2.0, self._sagas),
        )

    def hello(self) -> dict[str, Any]:
        source = self._daemon.config.source
        history = [_row(bucket) for bucket in self._recent.freshness.history()]
        return {
            "version": cdc_agent.__version__,
            "source": _place(source.dsn.get_secret_value()),
            "slot": source.slot_name,
            "plugin": source.plugin,
            "started_at": self._service.started_at,
            "bucket_s": BUCKET_S,
            "history": history,
        }

    @property
    def newest_change(self) -> int:
        return self._recent.newest

    def changes(self, after: int) -> Sequence[dict[str, Any]]:
        return [_change(entry) for entry in self._recent.since(after)]

    def _pulse(self) -> dict[str, Any]:
        daemon, freshness = self._daemon, self._recent.freshness
        watermark = daemon.indexer.watermark
        captured, applied = daemon.stream.position().captured_lsn, watermark.applied_lsn
        head, now = daemon.stream.head_offset(), time.time()
        newest = freshness.newest()
        return {
            "streaming": daemon.capture.streaming.is_set(),
            "lag_s": self._service.lag_s(),
            "freshness": _summary(freshness.over(_NOW_S)),
            "newest": _summary(newest),
            "hour": _summary(freshness.over(3600.0)),
            "buckets": [_row(bucket) for bucket in freshness.history(now - 2 * BUCKET_S)],
            "captured_lsn": str(captured),
            "applied_lsn": str(applied),
            "behind_bytes": max(0, max(self._source_end(), captured) - applied),
            "behind_changes": max(0, head - watermark.offset),
            "changes_per_s": self._changes_per_s(),
            "changes": metrics.total(metrics.CHANGES_RECEIVED),
            "embedded": metrics.total(metrics.CHUNKS_EMBEDDED),
            "cached": metrics.total(metrics.CHUNKS_CACHED),
            "unchanged": metrics.total(metrics.CHUNKS_UNCHANGED),
            "stream": {"bytes": daemon.stream.size_bytes(), "max_bytes": daemon.config.stream.max_bytes, "head": head},
            "agents": [_agent(state) for state in daemon.indexer.states()],
        }

    def _source_end(self) -> int:
        """The highest position of the server's log that is known without asking it."""
        known = self._daemon.slot_watch.last
        asked = (known.confirmed_flush_lsn or 0) + (known.lag_bytes or 0) if known is not None else 0
        return max(self._daemon.feed.received_lsn, asked)

    def _changes_per_s(self) -> float | None:
        """None as long as somebody has not watched for a second yet."""
        now, count = time.monotonic(), metrics.total(metrics.CHANGES_RECEIVED)
        while self._received and now - self._received[0][0] > _RATE_S + 2:
            self._received.popleft()
        self._received.append((now, count))
        since, before = self._received[0]
        return round((count - before) / (now - since), 1) if now - since > 0.5 else None

    def _work(self) -> dict[str, Any]:
        ledger = self._daemon.ledger
        resyncs = ledger.resyncs()
        finished = [resync for resync in resyncs if not resync.open][-_FINISHED:]
        shown = [*(resync for resync in resyncs if resync.open), *reversed(finished)]
        tables = self._daemon.indexer.tables()
        generations = self._service.migrations()
        return {
            "collections": [{**one, "table": tables.get(one["collection"])} for one in generations],
            "resyncs": [json_resync(resync, self._service.resync_rate(resync.id)) for resync in shown],
            "dead_letters": {
                "count": sum(ledger.dead_letter_counts().values()),
                "first": [json_dead_letter(letter) for letter in ledger.dead_letters(limit=_LETTERS)],
            },
        }

    def _sagas(self) -> dict[str, Any] | None:
        """None where there are none: the page has no room for them then."""
        if self._daemon.sagas is None:
            return None
        operations = self._daemon.sagas.operations
        waiting = operations.find(state="waiting", limit=_WAITING)
        return {"counts": operations.counts(), "waiting": waiting}

    def _problems(self) -> list[dict[str, Any]]:
        return [{"name": p.name, "message": p.message, "hint": p.hint} for p in self._service.readiness()]

    def _slot(self) -> dict[str, Any] | None:
        return self._service.slot(max_age_s=_SLOT_S)


def _place(dsn: str) -> str:
    """Which database, for people: what tells one from another, and nothing that opens it."""
    options = conninfo_to_dict(dsn)
    host = options.get("host") or options.get("hostaddr") or "local socket"
    port = f":{options['port']}" if options.get("port") else ""
    return f"{options.get('dbname') or options.get('user') or 'postgres'} on {host}{port}"


def _row(bucket: Freshness) -> list[float]:
    """A bucket as the chart takes it: start, documents, and p50, p99 and most in seconds."""
    return [bucket.at, bucket.count, round(bucket.p50_s, 4), round(bucket.p99_s, 4), round(bucket.max_s, 4)]


def _summary(freshness: Freshness | None) -> dict[str, float] | None:
    if freshness is None:
        return None
    at, count, p50_s, p99_s, max_s = _row(freshness)
    return {"at": at, "count": count, "p50_s": p50_s, "p99_s": p99_s, "max_s": max_s}


def _agent(state: AgentState) -> dict[str, Any]:
    return {
        "name": state.name,
        "state": state.state,
        "collections": list(state.collections),
        "offset": state.offset,
        "behind": max(0, state.head_offset - state.offset),
        "applied_lsn": str(state.applied_lsn),
        "problems": [{"name": p.name, "message": p.message, "hint": p.hint} for p in state.problems],
    }


def _change(entry: Indexed) -> dict[str, Any]:
    return {
        "number": entry.number,
        "found_at": round(entry.found_at, 3),
        "op": str(entry.op),
        "collection": entry.collection,
        "table": entry.table,
        "key": list(entry.key),
        "new": entry.new,
        "moved": entry.moved,
        "kept": entry.kept,
        "age_s": None if entry.age_s is None else round(entry.age_s, 4),
    }
