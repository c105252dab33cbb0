"""Makes the calls of steps that are due, and says what became of each. What kills the process whenever it is done is
found out, and given up."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from cdc_agent import failpoints, metrics
from cdc_agent.journal.saga_book import SagaBook, SagaRecord, SagaState
from cdc_agent.reactions.hands import Hands as InHand
from cdc_agent.sagas import rules
from cdc_agent.sagas.attempts import Attempt, Hands
from cdc_agent.sagas.context import SagaTools, StepContext
from cdc_agent.sagas.model import Saga, Step
from cdc_agent.sagas.rules import Failure, Move, Said
from cdc_agent.sagas.scribe import Scribe

__all__ = ["Calls"]

log = logging.getLogger(__name__)

#: Deaths of the process in a row for which what was being done is to blame, at least.
_CRASHES = 3
#: How long telling somebody that a saga is stuck may take.
_ALERT_S = 60.0


class Calls:
    """For one thread. ``in_hand`` remembers what is being done when the process dies."""

    def __init__(
        self,
        sagas: Mapping[str, Saga],
        *,
        book: SagaBook,
        scribe: Scribe,
        hands: Hands,
        in_hand: InHand,
        tools: SagaTools,
    ) -> None:
        self._sagas = sagas
        self._book = book
        self._scribe = scribe
        self._hands = hands
        self._in_hand = in_hand
        self._tools = tools
        #: The saga that is to be alone.
        self._alone = ""
        #: Whether nothing may begin until something ends.
        self.is_full = False

    def conclude_ended(self) -> bool:
        """Write down what the calls that ended came to; whether there were any."""
        ended = self._hands.ended()
        for attempt in ended:
            self._conclude(attempt)
        return bool(ended)

    def begin_due(self) -> bool:
        """Begin the calls that are due; whether there were any."""
        due = self._due()
        for record in due:
            self._begin(record)
        return bool(due)

    def _due(self) -> Sequence[SagaRecord]:
        """What may begin now. Whoever was in hand at each of the last deaths is alone the next time: only one of those
        that were is to blame."""
        room, at_work = self._hands.room(), self._hands.at_work
        self.is_full = room <= 0 or self._alone in at_work
        if self.is_full:
            return ()
        due = self._book.due(self._scribe.now_us(), limit=room, without=at_work)
        suspects = [record for record in due if self._in_hand.crashes(_in_hand_as(record), 0) >= _CRASHES - 1]
        if not suspects:
            return due
        self.is_full = bool(at_work)
        if at_work:
            return ()
        self._alone = suspects[0].id
        return suspects[:1]

    def _begin(self, record: SagaRecord) -> None:
        saga = self._sagas[record.name]
        if record.state is SagaState.WAITING:
            self._scribe.save(record, rules.timed_out(saga, record, self._scribe.now_us()))
            return
        step, undo = saga.steps[record.cursor], record.state is not SagaState.RUNNING
        assert isinstance(step, Step)
        function = step.undo if undo else step.ways[min(record.alternative, len(step.ways) - 1)]
        assert function is not None
        context = StepContext(record, purpose="undo" if undo else "do", tools=self._tools)
        attempt = Attempt(record=record, function=function, context=context, timeout_s=step.timeout_s, undo=undo)
        crashes = self._in_hand.crashes(_in_hand_as(record), 0)
        if crashes < _most_crashes(record, step):
            failpoints.hit("saga_before_call")
            self._start(attempt)
            return
        attempt.failure = Failure(error=f"the process died {crashes} times in a row while this was done")
        if not undo:
            # No other attempt of this way, whatever it says: the daemon would die of it again.
            attempt.record = replace(record, attempt=max(record.attempt, step.attempts - 1))
        self._conclude(attempt)

    def _start(self, attempt: Attempt) -> None:
        self._in_hand.take(attempt.context.idempotency_key, 0)
        self._hands.start(attempt)

    def _conclude(self, attempt: Attempt) -> None:
        """Write down what an attempt came to."""
        self._in_hand.put(attempt.context.idempotency_key, 0)
        if attempt.stuck is not None:
            self._conclude_alert(attempt, attempt.stuck)
            return
        record, saga, now_us = attempt.record, self._sagas[attempt.record.name], self._scribe.now_us()
        _count(attempt)
        if attempt.failure is None:
            advance = rules.undone(saga, record, now_us) if attempt.undo else _done(saga, attempt, now_us)
            self._scribe.save(record, advance, attempt.context.emitted)
            return
        log.warning(
            "saga attempt failed id=%s step=%s undo=%s attempt=%d error=%s",
            record.id, record.step, attempt.undo, record.attempt + 1, attempt.failure.error.partition(":")[0],
        )  # fmt: skip
        refusal = rules.undo_failed if attempt.undo else rules.failed
        move = refusal(saga, record, attempt.failure, now_us)
        if move.record.state is SagaState.STUCK and record.state is not SagaState.STUCK and saga.on_stuck is not None:
            self._alert(saga.on_stuck, attempt, move)
        else:
            self._scribe.save(record, move)

    def _alert(self, function: Callable[[Any], Any], attempt: Attempt, move: Move) -> None:
        context = StepContext(attempt.record, purpose="stuck", tools=self._tools)
        context.error = move.record.error
        alert = Attempt(record=attempt.record, function=function, context=context, timeout_s=_ALERT_S, stuck=move)
        crashes = self._in_hand.crashes(context.idempotency_key, 0)
        if crashes < _CRASHES:
            self._start(alert)
            return
        alert.failure = Failure(error=f"the process died {crashes} times in a row while this was done")
        self._conclude(alert)

    def _conclude_alert(self, attempt: Attempt, move: Move) -> None:
        if attempt.failure is None:
            self._scribe.save(attempt.record, move, attempt.context.emitted)
            return
        log.error("on_stuck failed id=%s step=%s", attempt.record.id, attempt.record.step)
        *before, stuck = move.said
        told = Said(stuck.what, {**stuck.more, "on_stuck_failed": attempt.failure.error})
        self._scribe.save(attempt.record, Move(move.record, (*before, told)))


def _in_hand_as(record: SagaRecord) -> str:
    """The idempotency key of what is next."""
    return f"{record.id}:{record.step}" + ("" if record.state is SagaState.RUNNING else ":undo")


def _most_crashes(record: SagaRecord, step: Step) -> int:
    """How often the process may die in a row while this is done. Who is stuck has had enough of them."""
    if record.state is SagaState.RUNNING:
        return max(_CRASHES, step.attempts)
    return 1 if record.state is SagaState.STUCK else _CRASHES


def _done(saga: Saga, attempt: Attempt, now_us: int) -> Move:
    return rules.done(saga, attempt.record, attempt.result, now_us)


def _count(attempt: Attempt) -> None:
    failure: Failure | None = attempt.failure
    outcome = "ok" if failure is None else "timed_out" if failure.timed_out else "failed"
    metrics.SAGA_ATTEMPTS.labels(action="undo" if attempt.undo else "do", outcome=outcome).inc()
