"""Audits as jobs of the daemon: asked for over HTTP, run one at a time on a thread of their own, kept in memory."""

from __future__ import annotations

import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence

from cdc_agent import metrics
from cdc_agent.errors import CdcAgentError, UsageError
from cdc_agent.retry import Stopping
from cdc_agent.verify.audit import Audit
from cdc_agent.verify.defects import Kind
from cdc_agent.verify.ends import Audited, Ends
from cdc_agent.verify.report import Report, Wanted

__all__ = ["VerifyRunner"]

log = logging.getLogger(__name__)

#: Audits that are remembered.
_MAX_REPORTS = 50
_POLL_S = 0.5


class VerifyRunner:
    """``collections`` says what there is to audit at the moment that an audit begins."""

    def __init__(self, ends: Ends, collections: Callable[[], Sequence[Audited]]) -> None:
        self._ends = ends
        self._collections = collections
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._reports: dict[int, Report] = {}
        self._asked: queue.Queue[Report | None] = queue.Queue()

    def request(self, wanted: Wanted) -> Report:
        """Raises ``UsageError`` for what is not there, and while another audit is not finished."""
        self._matching(wanted)
        with self._lock:
            busy = next((r for r in self._reports.values() if r.state in ("waiting", "running")), None)
            if busy is not None:
                raise UsageError(f"audit {busy.id} is not finished", hint=f"GET /verifies/{busy.id} says how far it is")
            report = Report(id=next(self._numbers), wanted=wanted)
            self._reports[report.id] = report
            while len(self._reports) > _MAX_REPORTS:
                del self._reports[min(self._reports)]
        self._asked.put(report)
        return report

    def report(self, number: int) -> Report | None:
        with self._lock:
            return self._reports.get(number)

    def reports(self) -> list[Report]:
        with self._lock:
            return list(self._reports.values())

    def run(self) -> None:
        """The body of one thread."""
        while not self._ends.stop.is_set():
            try:
                report = self._asked.get(timeout=_POLL_S)
            except queue.Empty:
                continue
            if report is not None:
                self._audit(report)

    def wake(self) -> None:
        """For whoever stops the daemon: an idle runner sees it at once."""
        self._asked.put(None)

    def _matching(self, wanted: Wanted) -> list[Audited]:
        there = self._collections()
        found = [
            audited
            for audited in there
            if wanted.collection in (None, audited.configured, audited.name)
            and wanted.table in (None, audited.collection.table)
        ]
        if not found:
            names = ", ".join(sorted(f"{audited.configured} ({audited.collection.table})" for audited in there))
            raise UsageError("no collection is like that", hint=f"collections and their tables: {names}")
        return found

    def _audit(self, report: Report) -> None:
        report.started_at = time.time()
        report.state = "running"
        log.info("verify starts id=%d repair=%s", report.id, report.wanted.repair)
        try:
            audited = self._matching(report.wanted)
            self._ends.await_copies({one.name for one in audited})
            Audit(self._ends, audited, report).run()
            state = "done"
        except Stopping:
            state = "stopped"
        except CdcAgentError as exc:
            log.error("verify given up id=%d error=%s", report.id, exc.message)
            report.error, report.hint, state = exc.message, exc.hint, "failed"
        except Exception:
            # A mistake of ours must not end the indexing beside it.
            log.exception("verify failed id=%d", report.id)
            report.error, report.hint, state = "the audit failed", "the daemon's log says why", "failed"
        report.finished_at = time.time()
        report.state = state
        self._publish(report)

    def _publish(self, report: Report) -> None:
        for kind in Kind:
            metrics.VERIFY_DEFECTS.labels(kind=kind.value).set(report.left[kind.value])
        log.info(
            "verify %s id=%d rows=%d found=%d left=%d parked=%d moving=%d",
            report.state,
            report.id,
            report.rows,
            report.found.total(),
            report.left.total(),
            report.parked,
            report.moving,
        )
