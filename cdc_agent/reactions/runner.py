"""The runner: one agent at work. One thread reads and watches over time; others handle.

Whatever an agent does wrong stays with it: what it raises is tried again and then parked, what hangs is given up, and
when too much hangs, this agent stops, and no other.
"""

from __future__ import annotations

import datetime as dt
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from cdc_agent import metrics
from cdc_agent.errors import JournalFull
from cdc_agent.events import Event, Kind
from cdc_agent.failpoints import hit
from cdc_agent.journal.base import Desk, Entry, Journal, Outcome
from cdc_agent.reactions.agent import Agent
from cdc_agent.reactions.context import Tools
from cdc_agent.reactions.guard import FuseBox
from cdc_agent.reactions.handling import Failure, Handling, Job, letter_of
from cdc_agent.reactions.hands import Hands
from cdc_agent.reactions.lanes import Lanes
from cdc_agent.reactions.loop import Loop
from cdc_agent.reactions.overdue import Interruptible, Overdue
from cdc_agent.retry import Backoff, Retrier, Stopping

__all__ = ["Runner", "tick"]

T = TypeVar("T")

log = logging.getLogger(__name__)

#: How long one read waits for something new.
_READ_WAIT_S = 1.0
#: Events taken from the journal at once.
_PAGE = 64
#: An attempt may take so much longer than it should before it is given up: what can end itself does by then.
_GRACE_S = 1.0
#: Places are made durable this often while nothing is handled.
_REST_S = 10.0
#: Threads that may hang, for each that works.
_HANGING = 4


class Runner:
    """Wired by ``daemon``. ``run`` is the body of its thread."""

    def __init__(
        self,
        agent: Agent,
        *,
        journal: Journal,
        desk: Desk,
        tools: Tools,
        retrier: Retrier,
        stop: threading.Event,
        hands: Hands | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.agent = agent
        self._journal = journal
        self._desk = desk
        self._tools = tools
        self._retrier = retrier
        self._stop = stop
        self._hands = hands or Hands(None)
        self._clock = clock
        self._wall_clock = wall_clock
        self._loop = Loop(f"agent {agent.name} loop")
        self._handling = Handling(agent, tools, self._loop.run)
        self._backoff = Backoff(initial_s=agent.retries.initial_s, maximum_s=agent.retries.maximum_s)
        self._fuse = FuseBox(agent.fuse, clock) if agent.fuse else None
        begin = 0 if agent.from_start else journal.head()
        progress = desk.place(agent.name, begin)
        self._handled = progress.handled
        self._lanes = Lanes(progress.number, clock)
        self._saved = progress.number
        self._save_at = clock() + _REST_S
        #: Threads that were given up and do not end.
        self._hanging: list[threading.Thread] = []
        #: The threads that handle, and what each has in hand. Those that hang are not among them.
        self._workers: dict[threading.Thread, tuple[Job, Interruptible] | None] = {}
        #: What keeps it from working, for good.
        self.failed = ""
        self._next_tick = self._first_tick()

    @property
    def passed(self) -> int:
        """Everything up to here is dealt with."""
        return self._lanes.passed()

    # -- the reading thread ------------------------------------------------------------------------------------

    def run(self) -> None:
        """Until stopped, or until too much of it hangs."""
        for _ in range(self.agent.concurrency):
            self._hire()
        try:
            while not self._stop.is_set() and not self.failed:
                self._turn(_READ_WAIT_S)
            self._save()
        except Stopping:
            log.debug("agent stopped name=%s", self.agent.name)
        finally:
            self._lanes.close()
            # What is in hand ends, and is recorded, before the files are closed.
            for thread in list(self._workers):
                thread.join()
            self._loop.close()

    def close(self) -> None:
        """Whoever waits for work goes home."""
        self._lanes.close()
        self._loop.close()

    def step(self) -> bool:
        """Without threads, for tests: handle what can be handled now; whether there was anything."""
        self._turn(0.0)
        busy = False
        while (job := self._lanes.take(0.0)) is not None:
            self._worked(job)
            busy = True
        return busy

    def due_in_s(self) -> float | None:
        """Seconds until something is to be tried again; None if nothing is."""
        return None if self._lanes.idle else self._lanes.due_in_s(self.agent.retries.maximum_s)

    def _turn(self, wait_s: float) -> None:
        self._tick()
        self._give_up_overdue()
        self._take_letters()
        room = min(self._lanes.room, _PAGE)
        if room <= 0:
            self._lanes.wait_for_room(wait_s)
            return
        page = self._journal.read(
            self._lanes.read_to, self.agent.trigger.wants, limit=room, wait_s=self._tick_in_s(wait_s)
        )
        self._lanes.add([job for entry in page.entries if (job := self._job(entry)) is not None], page.reached)
        if self._clock() >= self._save_at:
            self._save()

    def _job(self, entry: Entry) -> Job | None:
        if entry.number in self._handled or not self.agent.trigger.matches(self.agent.name, entry.event):
            return None
        key = self._key_of(entry.event)
        blown = self._fuse is not None and self._fuse.blows(key)
        crashes = self._hands.crashes(self.agent.name, entry.number)
        return Job(number=entry.number, event=entry.event, key=key, attempt=1 + crashes, blown=blown, crashes=crashes)

    def _key_of(self, event: Event) -> str:
        """What it is about; an agent whose own function fails on it is told so in the attempt."""
        try:
            return self.agent.key_of(event)
        except Exception:
            log.warning("key function failed agent=%s event=%s", self.agent.name, event.id)
            return event.key

    def _take_letters(self) -> None:
        for letter in self._desk.letters(agent=self.agent.name, state="replay"):
            if not self._lanes.holds_letter(letter.number):
                crashes = self._hands.crashes(self.agent.name, letter.number)
                key = self._key_of(letter.event)
                job = Job(number=letter.number, event=letter.event, key=key, crashes=crashes, letter=letter)
                self._lanes.add([job], 0)

    def _give_up_overdue(self) -> None:
        for job in self._lanes.overdue(self.agent.timeout_s + _GRACE_S):
            self._give_up(job)
            self._failed(job, Failure(reason="timeout", error=f"no end after {self.agent.timeout_s:g} s"))
            if len(self._hanging) >= _HANGING * self.agent.concurrency:
                self.failed = f"{len(self._hanging)} of its handlers hang"
                log.error("agent stopped name=%s why=%s", self.agent.name, self.failed)
                return
            self._hire()

    def _give_up(self, job: Job) -> None:
        for thread, held in list(self._workers.items()):
            if held is not None and held[0] is job:
                del self._workers[thread]
                held[1].interrupt()
                self._hanging.append(thread)
        if self._handling.is_coroutine:
            # It would have been cancelled in time if its loop turned.
            self._loop.give_up()
        self._hanging = [thread for thread in self._hanging if thread.is_alive()]
        log.error("handler hangs agent=%s event=%s threads=%d", self.agent.name, job.event.id, len(self._hanging))

    def _save(self) -> None:
        passed = self._lanes.passed()
        if passed > self._saved:
            self._durably(lambda: self._desk.advance(self.agent.name, passed))
            self._saved = passed
        self._save_at = self._clock() + _REST_S

    # -- ticks -------------------------------------------------------------------------------------------------

    def _first_tick(self) -> int:
        """The slot of time that is due now, so that one that passed while nobody ran is made up for."""
        return int(self._wall_clock() / self.agent.every_s) if self.agent.every_s else 0

    def _tick(self) -> None:
        if not self.agent.every_s or self._wall_clock() < self._next_tick * self.agent.every_s:
            return
        slot = int(self._wall_clock() / self.agent.every_s)
        self._durably(lambda: self._journal.append([tick(self.agent, slot)]))
        self._next_tick = slot + 1

    def _tick_in_s(self, at_most_s: float) -> float:
        if not self.agent.every_s:
            return at_most_s
        return max(0.0, min(at_most_s, self._next_tick * self.agent.every_s - self._wall_clock()))

    # -- handling threads ----------------------------------------------------------------------------------------

    def _hire(self) -> None:
        thread = threading.Thread(target=self._work, name=f"agent {self.agent.name}", daemon=True)
        self._workers[thread] = None
        thread.start()

    def _work(self) -> None:
        try:
            while not self._stop.is_set() and not self.failed:
                job = self._lanes.take(_READ_WAIT_S)
                if job is not None and not self._worked(job):
                    return
        except Stopping:
            log.debug("agent stopped name=%s", self.agent.name)
        except Overdue:
            log.warning("handler that hung has ended agent=%s", self.agent.name)
        except Exception:
            log.exception("agent stopped name=%s", self.agent.name)
            self.failed = "its journal fails"
            self._journal.wake()

    def _worked(self, job: Job) -> bool:
        """False when it took too long: somebody else has gone on, and nobody needs this thread."""
        began = self._clock()
        attempt = Interruptible()
        self._workers[threading.current_thread()] = (job, attempt)
        self._hands.take(self.agent.name, job.number)
        try:
            result = attempt.run(lambda: self._handling.attempt(job))
        finally:
            self._hands.put(self.agent.name, job.number)
        hit("agents_handled")
        if not self._lanes.claim(job):
            return False
        metrics.AGENT_SECONDS.labels(agent=self.agent.name).observe(self._clock() - began)
        if isinstance(result, Failure):
            self._failed(job, result)
        else:
            self._settle(job, result)
        return True

    def _failed(self, job: Job, failure: Failure) -> None:
        final = failure.final or job.attempt >= self.agent.retries.attempts
        outcome = "parked" if final else "failed"
        metrics.AGENT_EVENTS.labels(agent=self.agent.name, outcome=outcome).inc()
        log.warning(
            "event %s agent=%s event=%s attempt=%d reason=%s",
            *(outcome, self.agent.name, job.event.id, job.attempt, failure.reason),
        )
        if not final:
            self._lanes.again(job, self._backoff.delay_s(job.attempt, failure.retry_after_s))
            return
        if failure.reason in ("hop_limit", "loop", "fuse"):
            metrics.AGENT_GUARD.labels(agent=self.agent.name, reason=failure.reason).inc()
        parked = letter_of(self.agent, job, failure, self._tools)
        replayed = job.letter is not None
        self._settle(job, Outcome(agent=self.agent.name, number=job.number, letter=parked, replayed=replayed))

    def _settle(self, job: Job, outcome: Outcome) -> None:
        whole = replace(outcome, passed=self._lanes.passed_without(job))
        settled = self._durably(lambda: self._desk.settle(whole))
        hit("agents_settled")
        self._lanes.done(job)
        if settled and outcome.letter is None:
            metrics.AGENT_EVENTS.labels(agent=self.agent.name, outcome="handled").inc()

    def _durably(self, call: Callable[[], T]) -> T:
        # What is handled is recorded even when the process is to stop, if it can be at once.
        return self._retrier.until_done("journal", call, (JournalFull,), once=True)


def tick(agent: Agent, slot: int) -> Event:
    """The event of one slot of time; the same one, whoever makes it."""
    moment = dt.datetime.fromtimestamp(slot * agent.every_s, dt.UTC)
    [type_] = agent.trigger.types
    return Event(
        id=f"{agent.every_s:g}-{slot}",
        source=f"agent/{agent.name}",
        kind=Kind.TICK,
        type=type_,
        time=moment,
        data={"every_s": agent.every_s},
    )
