"""What comes after what in a saga. Pure: a record, what happened and the time go in; a record and what is to be said
come out."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from cdc_agent.errors import UsageError
from cdc_agent.events import Event
from cdc_agent.journal.saga_book import SagaRecord, SagaState
from cdc_agent.sagas.model import START, Approval, Saga, Step

__all__ = [
    "STUCK_AFTER",
    "Failure",
    "Move",
    "Said",
    "adopt",
    "approve",
    "begin",
    "cancel",
    "done",
    "failed",
    "hint_for",
    "reject",
    "saga_id",
    "timed_out",
    "undo_failed",
    "undone",
]

#: Failures in a row after which what cannot be undone is reported.
STUCK_AFTER = 5
#: Most seconds between two attempts.
_MAX_BACKOFF_S = 300.0


@dataclass(frozen=True, slots=True)
class Said:
    """A fact to be recorded: ``saga.<what>``."""

    what: str
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Move:
    """What a saga becomes, and what is said of it."""

    record: SagaRecord
    said: tuple[Said, ...] = ()

    def saying(self, what: str, **more: Any) -> Move:
        return Move(self.record, (*self.said, Said(what, more)))

    def becoming(self, **changes: Any) -> Move:
        return Move(replace(self.record, **changes), self.said)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why an attempt came to nothing. ``refused``: nothing was done, and to try again is no use."""

    error: str
    refused: bool = False
    timed_out: bool = False


def saga_id(start: Event) -> str:
    """Short, printable, and always the same for the same command."""
    digest = hashlib.sha256(f"{start.source}\0{start.id}".encode("utf-8", "surrogatepass")).digest()
    return f"{_name(start)}-{base64.b32encode(digest)[:13].decode().lower()}"


def begin(saga: Saga | None, start: Event, now_us: int) -> Move:
    record = SagaRecord(
        id=saga_id(start),
        name=_name(start),
        state=SagaState.RUNNING,
        start=start,
        steps=(),
        due_us=now_us,
        started_us=now_us,
        changed_us=now_us,
        version=1,
        orphaned=True,
    )
    move = Move(record).saying("started")
    return move if saga is None else _adopted(saga, move, now_us)


def hint_for(record: SagaRecord) -> str:
    """What an operator does about an orphan."""
    if not record.steps:
        return f"no app in `agents` declares a saga {record.name}: declare it and start again"
    return f"declare {record.name} again with the steps {', '.join(record.step_names)}, and start again"


def adopt(saga: Saga, record: SagaRecord, now_us: int) -> Move:
    """A saga that began before anybody declared it takes the steps of today."""
    return _adopted(saga, Move(record), now_us)


def done(saga: Saga, record: SagaRecord, result: Any, now_us: int) -> Move:
    """What is at hand was done."""
    results = {**record.results, record.step: result}
    move = Move(record).saying("step_done", step=record.step, alternative=record.alternative, result=result)
    return _arrive(saga, move.becoming(results=results), record.cursor + 1, now_us)


def failed(saga: Saga, record: SagaRecord, failure: Failure, now_us: int) -> Move:
    """An attempt failed: another one, another way, or back."""
    step, attempt = _step(saga, record), record.attempt + 1
    doubtful = record.doubtful or not failure.refused
    move = Move(record).saying("step_failed", step=step.name, attempt=attempt, **_of(failure))
    move = move.becoming(error=failure.error, doubtful=doubtful)
    if not failure.refused and attempt < step.attempts:
        return move.becoming(attempt=attempt, due_us=now_us + _backoff_us(step, attempt))
    if record.alternative + 1 < len(step.ways):
        way = record.alternative + 1
        move = move.saying("alternative", step=step.name, alternative=way, function=_called(step.ways[way]))
        return move.becoming(alternative=way, attempt=0, due_us=now_us)
    why = f"step {step.name} failed: {failure.error}"
    return _back(saga, move, record.cursor if doubtful else record.cursor - 1, why, now_us)


def undone(saga: Saga, record: SagaRecord, now_us: int) -> Move:
    """What is at hand was undone."""
    return _descend(saga, Move(record).saying("undone", step=record.step), record.cursor - 1, now_us)


def undo_failed(saga: Saga, record: SagaRecord, failure: Failure, now_us: int) -> Move:
    """It is tried again for ever; of failures beyond those that are reported only the last is remembered."""
    step, attempt = _step(saga, record), record.attempt + 1
    due_us = now_us + _backoff_us(step, attempt)
    move = Move(record).becoming(attempt=attempt, due_us=due_us, error=failure.error)
    if record.state is SagaState.STUCK:
        return move
    move = move.saying("step_failed", step=step.name, attempt=attempt, undo=True, **_of(failure))
    if attempt < STUCK_AFTER:
        return move
    return move.becoming(state=SagaState.STUCK).saying("stuck", step=step.name, error=failure.error)


def timed_out(saga: Saga, record: SagaRecord, now_us: int) -> Move:
    """Nobody has answered in time."""
    approval = saga.steps[record.cursor]
    assert isinstance(approval, Approval)
    move = Move(record).saying("timed_out", step=approval.name, on_timeout=approval.on_timeout)
    if approval.on_timeout == "compensate":
        return _back(saga, move, record.cursor - 1, f"nobody answered {approval.name} in time", now_us)
    results = {**record.results, approval.name: {"approved": False, "timed_out": True}}
    return _arrive(saga, move.becoming(results=results), record.cursor + 1, now_us)


def approve(saga: Saga, record: SagaRecord, step: str, answer: Mapping[str, Any], now_us: int) -> Move:
    """Raises ``UsageError`` when the saga does not wait for this."""
    _check_waiting(record, step)
    results = {**record.results, record.step: {"approved": True, **answer}}
    move = Move(record).saying("approved", step=record.step, **answer).becoming(results=results)
    return _arrive(saga, move, record.cursor + 1, now_us)


def reject(saga: Saga, record: SagaRecord, step: str, answer: Mapping[str, Any], now_us: int) -> Move:
    """Raises ``UsageError`` when the saga does not wait for this."""
    _check_waiting(record, step)
    move = Move(record).saying("rejected", step=record.step, **answer)
    return _back(saga, move, record.cursor - 1, f"{record.step} was rejected", now_us)


def cancel(saga: Saga, record: SagaRecord, answer: Mapping[str, Any], now_us: int) -> Move:
    """Undo what was done, and what may be being done. Raises ``UsageError`` when there is nothing to be stopped."""
    if record.state not in (SagaState.RUNNING, SagaState.WAITING):
        raise UsageError(f"saga {record.id} is {record.state}", hint="only what still goes forward can be cancelled")
    top = record.cursor if record.state is SagaState.RUNNING else record.cursor - 1
    return _back(saga, Move(record).saying("cancelled", **answer), top, "it was cancelled", now_us)


def _adopted(saga: Saga, move: Move, now_us: int) -> Move:
    return _arrive(saga, move.becoming(steps=saga.shape, orphaned=False), 0, now_us)


def _arrive(saga: Saga, move: Move, cursor: int, now_us: int) -> Move:
    """Forward: the step at ``cursor`` is next, if there is one."""
    move = move.becoming(
        cursor=cursor, alternative=0, attempt=0, doubtful=False, error="", state=SagaState.RUNNING, due_us=now_us
    )
    if cursor == len(saga.steps):
        return move.becoming(state=SagaState.COMPLETED, due_us=None).saying("completed")
    step = saga.steps[cursor]
    if isinstance(step, Step):
        return move
    due_us = now_us + round(step.timeout_s * 1_000_000)
    until = dt.datetime.fromtimestamp(due_us / 1_000_000, dt.UTC).isoformat()
    return move.becoming(state=SagaState.WAITING, due_us=due_us).saying("approval_wanted", step=step.name, until=until)


def _back(saga: Saga, move: Move, top: int, why: str, now_us: int) -> Move:
    """Backward from the step at ``top``."""
    return _descend(saga, move.becoming(reason=why).saying("compensating", reason=why), top, now_us)


def _descend(saga: Saga, move: Move, top: int, now_us: int) -> Move:
    """The highest step from ``top`` down that can be undone is next, if there is one."""
    for cursor in range(top, -1, -1):
        step = saga.steps[cursor]
        if isinstance(step, Step) and step.undo is not None:
            return move.becoming(state=SagaState.COMPENSATING, cursor=cursor, attempt=0, due_us=now_us)
    return move.becoming(state=SagaState.COMPENSATED, cursor=0, due_us=None).saying(
        "compensated", reason=move.record.reason
    )


def _check_waiting(record: SagaRecord, step: str) -> None:
    if record.state is not SagaState.WAITING:
        where = f"is {record.state}" + (f" at {record.step}" if record.step else "")
        raise UsageError(f"saga {record.id} waits for nobody's approval: it {where}", hint="cdc-agent sagas list")
    if step and step != record.step:
        raise UsageError(
            f"saga {record.id} does not wait for {step}", hint=f"it waits for {record.step}; look at it first"
        )


def _step(saga: Saga, record: SagaRecord) -> Step:
    step = saga.steps[record.cursor]
    assert isinstance(step, Step)
    return step


def _of(failure: Failure) -> dict[str, Any]:
    told: dict[str, Any] = {"error": failure.error}
    told |= {"refused": True} if failure.refused else {}
    return told | ({"timed_out": True} if failure.timed_out else {})


def _backoff_us(step: Step, attempt: int) -> int:
    backoff_s = min(step.backoff_s * 2.0 ** min(attempt - 1, 40), _MAX_BACKOFF_S)
    return round(backoff_s * 1_000_000)


def _called(function: Any) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


def _name(start: Event) -> str:
    return start.type.removeprefix(START)
