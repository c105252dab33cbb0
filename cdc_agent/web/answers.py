"""Answers: facts become JSON, failures become an object with ``error`` and ``hint``."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from starlette.responses import JSONResponse

from cdc_agent.cloudevents import published
from cdc_agent.explain import Explanation
from cdc_agent.journal.base import Entry
from cdc_agent.ledger.base import DeadLetter, Resync
from cdc_agent.search import SearchHit

__all__ = ["ApiError", "error_response", "json_dead_letter", "json_explanation", "json_fact", "json_hit", "json_resync"]


class ApiError(Exception):
    """A request that is answered with ``status`` and a reason; ``more`` goes beside ``error`` and ``hint``."""

    def __init__(self, status: int, error: str, hint: str = "", more: Mapping[str, Any] | None = None) -> None:
        super().__init__(error)
        self.status = status
        self.error = error
        self.hint = hint
        self.more = more or {}


def error_response(
    status: int, error: str, hint: str = "", /, *, headers: Mapping[str, str] | None = None, **more: Any
) -> JSONResponse:
    return JSONResponse({"error": error, "hint": hint, **more}, status, headers=headers)


def json_hit(hit: SearchHit) -> dict[str, Any]:
    fields = asdict(hit)
    fields["metadata"] = {key: _number_or_none(value) for key, value in hit.metadata.items()}
    return fields


def json_explanation(explanation: Explanation) -> dict[str, Any]:
    facts: dict[str, Any] = _finite(explanation.as_json())
    return facts


def json_dead_letter(letter: DeadLetter) -> dict[str, Any]:
    return {
        "id": letter.id,
        "agent": letter.agent,
        "collection": letter.collection,
        "document_id": letter.document_id,
        "table": letter.table,
        "key": list(letter.key),
        "version": str(letter.version),
        "reason": letter.reason,
        "error": letter.error,
        "attempts": letter.attempts,
        "parked_at": _iso(letter.parked_at),
    }


def json_fact(entry: Entry) -> dict[str, Any]:
    """A CloudEvent with two more attributes: its place, and when we recorded it."""
    recorded = entry.recorded_at.isoformat(timespec="milliseconds")
    return {**published(entry.event), "entry": entry.number, "recordedtime": recorded}


def json_resync(resync: Resync, rate: float | None = None) -> dict[str, Any]:
    """``rate`` is rows a second, where it is known."""
    left = max(0, resync.rows_estimated - resync.rows_done)
    return {
        "id": resync.id,
        "table": resync.table,
        "collections": list(resync.collections),
        "keys": [list(key) for key in resync.keys],
        "where": resync.predicate,
        "rewrite": resync.rewrite,
        "reason": resync.reason,
        "state": resync.state,
        "rows_done": resync.rows_done,
        "rows_estimated": resync.rows_estimated,
        "rows_per_s": round(rate, 1) if rate else None,
        "eta_s": round(left / rate, 1) if rate else None,
        "started_at": _iso(resync.started_at),
        "finished_at": _iso(resync.finished_at),
        "error": resync.error,
    }


def _iso(seconds: float | None) -> str | None:
    return None if seconds is None else dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat(timespec="milliseconds")


def _finite(value: Any) -> Any:
    """The same with no number that JSON does not have, at any depth."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return _number_or_none(value)


def _number_or_none(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
