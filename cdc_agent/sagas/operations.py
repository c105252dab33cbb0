"""What people may ask of sagas, and answer them: JSON-ready, from any thread."""

from __future__ import annotations

import datetime as dt
from typing import Any

from cdc_agent.errors import UsageError
from cdc_agent.journal.saga_book import SagaBook, SagaRecord, SagaState
from cdc_agent.sagas import rules
from cdc_agent.sagas.model import Saga
from cdc_agent.sagas.rules import Move, hint_for
from cdc_agent.sagas.runtime import SagaRuntime

__all__ = ["ACTIONS", "STATES", "SagaOperations"]

ACTIONS = ("approve", "reject", "cancel")
#: What a list can be narrowed to.
STATES = (*(str(state) for state in SagaState), "orphaned", "open")
_DECISIONS = {"approve": rules.approve, "reject": rules.reject}


class SagaOperations:
    def __init__(self, book: SagaBook, runtime: SagaRuntime) -> None:
        self._book = book
        self._runtime = runtime

    def find(self, *, state: str = "open", name: str = "", after: int = 0, limit: int = 100) -> list[dict[str, Any]]:
        """Sagas in the order in which they began, without what they carry; ``number`` is what ``after`` takes.

        Raises ``UsageError`` for a state that there is not.
        """
        if state and state not in STATES:
            raise UsageError(f"{state!r} is no state of a saga", hint="states: " + ", ".join(STATES))
        found = self._book.find(state=state, name=name, after=after, limit=limit)
        return [_summary(record) for record in found]

    def counts(self) -> dict[str, int]:
        """How many are under way, by state."""
        return self._book.counts()

    def show(self, saga_id: str) -> dict[str, Any] | None:
        """One with everything: what it carries and what became of it so far; None when there is none."""
        record = self._book.load(saga_id)
        if record is None:
            return None
        history = [
            {"time": _time(entry.event.time), "type": entry.event.type, "data": entry.event.data}
            for entry in self._book.history(record)
        ]
        carried = {
            "steps": list(record.step_names),
            "data": record.start.data,
            "results": dict(record.results),
            "correlation_id": record.start.correlation_id or record.start.id,
        }
        return {**_summary(record), **carried, "history": history}

    def act(
        self, saga_id: str, action: str, *, step: str = "", by: str = "", note: str = "", token: str = ""
    ) -> dict[str, Any] | None:
        """Approve, reject or cancel; durable on return. With a ``step`` only if it waits at this one. Who it was is
        kept for ever: ``by`` their own word, ``token`` the name of what let them in.

        Returns what the saga is then, None when there is none. Raises ``UsageError`` when it cannot be done.
        """
        answer = {name: value for name, value in (("by", by), ("note", note), ("token", token)) if value}

        def decide(saga: Saga, record: SagaRecord, now_us: int) -> Move:
            if action == "cancel":
                return rules.cancel(saga, record, answer, now_us)
            return _DECISIONS[action](saga, record, step, answer, now_us)

        record = self._runtime.answer(saga_id, decide)
        return None if record is None else _summary(record)


def _summary(record: SagaRecord) -> dict[str, Any]:
    shown = {
        "number": record.number,
        "id": record.id,
        "saga": record.name,
        "key": record.start.key,
        "state": "orphaned" if record.orphaned else str(record.state),
        "step": record.step,
        "attempts": record.attempt,
        "due_at": None if record.due_us is None else _time_of(record.due_us),
        "started_at": _time_of(record.started_us),
        "changed_at": _time_of(record.changed_us),
        "reason": record.reason,
        "error": record.error,
    }
    return {**shown, "hint": hint_for(record)} if record.orphaned else shown


def _time_of(us: int) -> str:
    return _time(dt.datetime.fromtimestamp(us / 1_000_000, dt.UTC))


def _time(moment: dt.datetime) -> str:
    return moment.isoformat(timespec="milliseconds")
