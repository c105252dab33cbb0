"""Carries sagas on: takes the commands that begin them from the journal, makes the attempts that are due, and writes
down what came of each, one transaction for each transition."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from cdc_agent import failpoints, metrics
from cdc_agent.errors import UsageError
from cdc_agent.events import Event, Kind
from cdc_agent.health import Health
from cdc_agent.journal.base import Desk, Journal
from cdc_agent.journal.saga_book import ENDED, SagaBook, SagaRecord, SagaState
from cdc_agent.reactions.hands import Hands as InHand
from cdc_agent.retry import Stopping
from cdc_agent.sagas import rules
from cdc_agent.sagas.attempts import Hands, InlineHands, ThreadedHands
from cdc_agent.sagas.calls import Calls
from cdc_agent.sagas.context import SagaTools
from cdc_agent.sagas.model import START, Saga, is_name
from cdc_agent.sagas.rules import Move, hint_for
from cdc_agent.sagas.scribe import Keep, Scribe

__all__ = ["AGENT", "SagaRuntime"]

log = logging.getLogger(__name__)

#: Under which name the runtime has its place in the journal.
AGENT = "sagas"
#: Commands that are taken in one transaction.
_AT_ONCE = 100
#: Entries of the journal that are read again after a restart, at most.
_NOTE_EVERY = 10_000
#: Seconds after which a thread that waits looks whether it is to end, and after the end for what is under way.
_LOOK_S = 1.0
_DRAIN_S = 1.0


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
        self._scribe = Scribe(book, clock, keep)
        self._bell = threading.Event()
        self._hands: Hands = InlineHands() if inline else ThreadedHands(self._bell.set)
        self._calls = Calls(
            sagas,
            book=book,
            scribe=self._scribe,
            hands=self._hands,
            in_hand=in_hand or InHand(None),
            tools=tools or SagaTools(now=self._scribe.now),
        )
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
            self._note(page.reached, moves)
            failpoints.hit("saga_after_take")
            self._bell.set()
        elif page.reached - self._noted >= _NOTE_EVERY:
            self._note(page.reached, ())
        self._reached = page.reached
        return True

    def _note(self, reached: int, moves: Sequence[Move]) -> None:
        self._scribe.begin(AGENT, reached, moves)
        self._noted = reached

    def _begun(self, start: Event) -> Move:
        name = start.type.removeprefix(START)
        move = rules.begin(self.sagas.get(name), start, self._scribe.now_us())
        if move.record.orphaned:
            log.warning("a saga begins that nobody declares saga=%s id=%s", name, move.record.id)
        return move

    def _sort_out(self) -> None:
        """Whoever is under way with other steps than those declared now is left alone until they are declared again."""
        for record in self._book.declare({name: saga.shape for name, saga in self.sagas.items()}):
            self._scribe.save(record, rules.adopt(self.sagas[record.name], record, self._scribe.now_us()))
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
        ended = self._calls.conclude_ended()
        begun = self._calls.begin_due()
        self._report_weariness()
        return ended or begun

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

    # Answers from outside; from any thread.

    def answer(self, saga_id: str, decide: Callable[[Saga, SagaRecord, int], Move]) -> SagaRecord | None:
        """Let a saga go where ``decide`` says; what it is then, or None when there is none of this id. Raises what
        ``decide`` raises, ``UsageError`` for an orphan, and ``JournalFull``."""
        while (record := self._book.load(saga_id)) is not None:
            if record.orphaned:
                raise UsageError(f"saga {saga_id} is an orphan", hint=hint_for(record))
            move = decide(self.sagas[record.name], record, self._scribe.now_us())
            if self._scribe.save(record, move, patient=False):
                self._bell.set()
                return self._book.load(saga_id)
        return None

    def _drain(self) -> None:
        """Give what is under way a moment to end: whatever does not is done again at the next start."""
        until = time.monotonic() + _DRAIN_S
        while self._hands.at_work and time.monotonic() < until:
            self._bell.clear()
            self._calls.conclude_ended()
            self._bell.wait(min(self._hands.patience_s() or 0.0, 0.1))

    def _patience_s(self) -> float:
        """How long nothing is due."""
        next_due = self.next_due()
        until_due = _LOOK_S if next_due is None else next_due - self._clock()
        if self._calls.is_full:
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


def _wanted(kind: str, type_: str) -> bool:
    return kind == Kind.COMMAND and type_.startswith(START) and is_name(type_.removeprefix(START))
