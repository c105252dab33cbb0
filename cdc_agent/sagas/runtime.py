"""Carries sagas on: takes the commands that begin them from the journal, makes the attempts that are due, and writes
down what came of each, one transaction for each transition."""

from __future__ import annotations

import datetime as dt
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from cdc_agent import failpoints, metrics
from cdc_agent.errors import UsageError
from cdc_agent.events import Event, Kind
from cdc_agent.health import Health
from cdc_agent.journal.base import Desk, Journal
from cdc_agent.journal.saga_book import ENDED, SagaBook, SagaRecord, SagaState
from cdc_agent.reactions.hands import Hands as InHand
from cdc_agent.retry import Stopping
from cdc_agent.sagas import rules
from cdc_agent.sagas.attempts import Attempt, Hands, InlineHands, ThreadedHands
from cdc_agent.sagas.context import SagaTools, StepContext, said_by
from cdc_agent.sagas.model import START, Saga, Step, is_name
from cdc_agent.sagas.rules import Failure, Move, Said

__all__ = ["AGENT", "SagaRuntime"]

log = logging.getLogger(__name__)

#: Makes a write and returns what it returned.
Keep = Callable[[Callable[[], Any]], Any]

#: Under which name the runtime has its place in the journal.
AGENT = "sagas"
#: Commands that are taken in one transaction.
_AT_ONCE = 100
#: Deaths of the process in a row for which what was being done is to blame, at least.
_CRASHES = 3
#: Entries of the journal that are read again after a restart, at most.
_NOTE_EVERY = 10_000
#: Seconds after which a thread that waits looks whether it is to end, and after the end for what is under way.
_LOOK_S = 1.0
_DRAIN_S = 1.0
#: How long telling somebody that a saga is stuck may take.
_ALERT_S = 60.0


class SagaRuntime:
    """``run_intake`` and ``run`` each want a thread; ``until_idle`` does the work of both in the caller's.

    ``clock`` gives seconds since 1970. ``keep`` makes a write, again and again while the journal has no room.
    ``in_hand`` remembers what is being done when the process dies.
    """

    def __init__(
        self,
        sagas: Mapping[str, Saga],
        *,
        journal: Journal,
        desk: Desk,
        book: SagaBook,
        health: Health | None = None,
        stop: threading.Event | None = None,
        tools: SagaTools | None = None,
        clock: Callable[[], float] = time.time,
        keep: Keep | None = None,
        in_hand: InHand | None = None,
        inline: bool = False,
    ) -> None:
        self.sagas = sagas
        self._journal = journal
        self._book = book
        self._health = health or Health()
        self._stop = stop or threading.Event()
        self._clock = clock
        self._tools = tools or SagaTools(now=self._now)
        self._keep = keep or _once
        self._in_hand = in_hand or InHand(None)
        #: The saga that is to be alone, and whether nothing may begin until something ends.
        self._alone = ""
        self._is_full = False
        self._bell = threading.Event()
        self._hands: Hands = InlineHands() if inline else ThreadedHands(self._bell.set)
        # From the first event on: a command waits for ever for whom it was meant.
        self._reached = self._noted = desk.place(AGENT, 0).number
        self._sort_out()

    # Beginning.

    def run_intake(self) -> None:
        with suppress(Stopping):
            while not self._stop.is_set():
                self.take(wait_s=_LOOK_S)

    def take(self, *, wait_s: float = 0.0) -> bool:
        """Begin the sagas that somebody asked for; whether there was anything to read."""
        page = self._journal.read(self._reached, _wanted, limit=_AT_ONCE, wait_s=wait_s)
        if page.reached == self._reached:
            return False
        moves = [self._begun(entry.event) for entry in page.entries]
        if moves:
            failpoints.hit("saga_before_take")
            begun = [(move.record, self._events(replace(move.record, version=0), move.said)) for move in moves]
            self._note(page.reached, begun)
            failpoints.hit("saga_after_take")
            self._bell.set()
        elif page.reached - self._noted >= _NOTE_EVERY:
            self._note(page.reached, ())
        self._reached = page.reached
        return True

    def _note(self, reached: int, begun: Sequence[tuple[SagaRecord, Sequence[Event]]]) -> None:
        self._keep(lambda: self._book.begin(AGENT, reached, begun))
        self._noted = reached

    def _begun(self, start: Event) -> Move:
        name = start.type.removeprefix(START)
        move = rules.begin(self.sagas.get(name), start, self._now_us())
        if move.record.orphaned:
            log.warning("a saga begins that nobody declares saga=%s id=%s", name, move.record.id)
        return move

    def _sort_out(self) -> None:
        """Whoever is under way with other steps than those declared now is left alone until they are declared again."""
        for record in self._book.declare({name: saga.shape for name, saga in self.sagas.items()}):
            self._save(record, rules.adopt(self.sagas[record.name], record, self._now_us()))
        for record in self._book.find(state="orphaned", limit=_AT_ONCE):
            log.warning("saga is orphaned id=%s saga=%s steps=%s", record.id, record.name, ",".join(record.step_names))

    # Going on.

    def run(self) -> None:
        with suppress(Stopping):
            while not self._stop.is_set():
                self._bell.clear()
                if not self.go_on():
                    self._bell.wait(self._patience_s())
            self._drain()

    def until_idle(self) -> bool:
        """Take and do everything that is due, until nothing is; time does not pass by itself. Whether there was any."""
        was_any = False
        while self.take() or self.go_on():
            was_any = True
        return was_any

    def go_on(self) -> bool:
        """Write down what ended and begin what is due; whether there was any of it."""
        ended = self._hands.ended()
        for attempt in ended:
            self._conclude(attempt)
        due = self._due()
        for record in due:
            self._begin_attempt(record)
        self._report_weariness()
        return bool(ended or due)

    def next_due(self, *, waiting: bool = True) -> float | None:
        """When the next saga goes on by itself, in seconds since 1970; None when none does. Without ``waiting`` the end
        of an approval's time does not count."""
        due_us = self._book.next_due(without=self._hands.at_work, waiting=waiting)
        return None if due_us is None else due_us / 1_000_000

    def ring(self) -> None:
        """Something may be due, or the time to stop has come."""
        self._bell.set()

    def tell(self) -> None:
        """Say in the metrics how many there are."""
        counts = self._book.counts()
        for state in (*(state for state in SagaState if state not in ENDED), "orphaned"):
            metrics.SAGAS.labels(state=str(state)).set(counts.get(str(state), 0))

    def _due(self) -> Sequence[SagaRecord]:
        """What may begin now. Whoever was in hand at each of the last deaths is alone the next time: only one of those
        that were is to blame."""
        room, at_work = self._hands.room(), self._hands.at_work
        self._is_full = room <= 0 or self._alone in at_work
        if self._is_full:
            return ()
        due = self._book.due(self._now_us(), limit=room, without=at_work)
        suspects = [record for record in due if self._in_hand.crashes(_in_hand_as(record), 0) >= _CRASHES - 1]
        if not suspects:
            return due
        self._is_full = bool(at_work)
        if at_work:
            return ()
        self._alone = suspects[0].id
        return suspects[:1]

    def _begin_attempt(self, record: SagaRecord) -> None:
        saga = self.sagas[record.name]
        if record.state is SagaState.WAITING:
            self._save(record, rules.timed_out(saga, record, self._now_us()))
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
        record, saga, now_us = attempt.record, self.sagas[attempt.record.name], self._now_us()
        _count(attempt)
        if attempt.failure is None:
            advance = rules.undone(saga, record, now_us) if attempt.undo else _done(saga, attempt, now_us)
            self._save(record, advance, attempt.context.emitted)
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
            self._save(record, move)

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
            self._save(attempt.record, move, attempt.context.emitted)
            return
        log.error("on_stuck failed id=%s step=%s", attempt.record.id, attempt.record.step)
        *before, stuck = move.said
        told = Said(stuck.what, {**stuck.more, "on_stuck_failed": attempt.failure.error})
        self._save(attempt.record, Move(move.record, (*before, told)))

    # Answers from outside; from any thread.

    def answer(self, saga_id: str, decide: Callable[[Saga, SagaRecord, int], Move]) -> SagaRecord | None:
        """Let a saga go where ``decide`` says; what it is then, or None when there is none of this id. Raises what
        ``decide`` raises, ``UsageError`` for an orphan, and ``JournalFull``."""
        while (record := self._book.load(saga_id)) is not None:
            if record.orphaned:
                raise UsageError(f"saga {saga_id} is an orphan", hint=hint_for(record))
            move = decide(self.sagas[record.name], record, self._now_us())
            if self._save(record, move, patient=False):
                self._bell.set()
                return self._book.load(saga_id)
        return None

    # Writing.

    def _save(self, before: SagaRecord, move: Move, emitted: Sequence[Event] = (), *, patient: bool = True) -> bool:
        """False when somebody else was quicker: then nothing of it counts. Not ``patient``: raises ``JournalFull``."""
        now_us = self._now_us()
        record = move.becoming(changed_us=now_us).record
        events = [*emitted, *self._events(before, move.said)]
        failpoints.hit("saga_before_save")
        keep = self._keep if patient else _once
        saved = bool(keep(lambda: self._book.save(record, events)))
        failpoints.hit("saga_after_save")
        if not saved:
            log.info("saga went another way meanwhile id=%s step=%s", before.id, before.step)
        elif record.state in ENDED:
            metrics.SAGAS_ENDED.labels(outcome=str(record.state)).inc()
            metrics.SAGA_SECONDS.observe((now_us - record.started_us) / 1_000_000)
        return saved

    def _events(self, record: SagaRecord, said: Sequence[Said]) -> list[Event]:
        named = {"saga": record.name, "saga_id": record.id}
        return [
            said_by(
                record,
                str(number),
                kind=Kind.FACT,
                type_=f"saga.{fact.what}",
                data={**named, **fact.more},
                key=None,
                now=self._now(),
            )
            for number, fact in enumerate(said, 1)
        ]

    def _drain(self) -> None:
        """Give what is under way a moment to end: whatever does not is done again at the next start."""
        until = time.monotonic() + _DRAIN_S
        while self._hands.at_work and time.monotonic() < until:
            self._bell.clear()
            for attempt in self._hands.ended():
                self._conclude(attempt)
            self._bell.wait(min(self._hands.patience_s() or 0.0, 0.1))

    def _patience_s(self) -> float:
        """How long nothing is due."""
        next_due = self.next_due()
        until_due = _LOOK_S if next_due is None else next_due - self._clock()
        if self._is_full:
            until_due = _LOOK_S
        over = self._hands.patience_s()
        return max(0.0, min(_LOOK_S, until_due, _LOOK_S if over is None else over))

    def _report_weariness(self) -> None:
        if isinstance(self._hands, ThreadedHands) and self._hands.worn_out:
            left = self._hands.left_behind
            self._health.report(
                "sagas",
                f"{left} steps of sagas hang beyond their timeout_s, no other is begun",
                hint="give their calls a timeout of their own; a restart ends them",
            )
        else:
            self._health.clear("sagas")

    def _now_us(self) -> int:
        return round(self._clock() * 1_000_000)

    def _now(self) -> dt.datetime:
        return dt.datetime.fromtimestamp(self._clock(), dt.UTC)


def hint_for(record: SagaRecord) -> str:
    """What an operator does about an orphan."""
    if not record.steps:
        return f"no app in `agents` declares a saga {record.name}: declare it and start again"
    return f"declare {record.name} again with the steps {', '.join(record.step_names)}, and start again"


def _once(write: Callable[[], Any]) -> Any:
    return write()


def _wanted(kind: str, type_: str) -> bool:
    return kind == Kind.COMMAND and type_.startswith(START) and is_name(type_.removeprefix(START))


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
