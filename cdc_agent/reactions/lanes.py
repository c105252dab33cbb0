"""Lanes: which events of an agent may be handled now. Those of one key in order, one at a time; those of others beside
them. What fails keeps its lane waiting until it is tried again, and nobody else's."""

from __future__ import annotations

import collections
import heapq
import itertools
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

from cdc_agent.reactions.handling import Job

__all__ = ["Lanes"]

#: Most events in hand.
_ROOM = 256


class Lanes:
    """For many threads. ``clock`` gives seconds; ``number`` is what the agent has passed."""

    def __init__(self, number: int, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._read_to = number
        self._lanes: dict[str, collections.deque[Job]] = {}
        self._ready: collections.deque[str] = collections.deque()
        self._asleep: list[tuple[float, int, str]] = []
        self._tiebreak = itertools.count()
        #: The jobs that somebody works on, by key, and since when.
        self._running: dict[str, tuple[Job, float]] = {}
        #: What is in hand: entries, and dead letters, which were passed long ago.
        self._numbers: set[int] = set()
        self._letters: set[int] = set()
        self._changed = threading.Condition()
        self._closed = False

    @property
    def read_to(self) -> int:
        with self._changed:
            return self._read_to

    @property
    def room(self) -> int:
        with self._changed:
            return _ROOM - len(self._numbers)

    @property
    def idle(self) -> bool:
        """Whether nothing is in hand."""
        with self._changed:
            return not self._lanes

    def wait_for_room(self, timeout_s: float) -> None:
        """Until one more may be taken in hand."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._numbers) < _ROOM, timeout_s)

    def holds_letter(self, number: int) -> bool:
        with self._changed:
            return number in self._letters

    def add(self, jobs: Sequence[Job], read_to: int) -> None:
        """Take these in hand, in this order; everything up to ``read_to`` has been looked at."""
        with self._changed:
            for job in jobs:
                lane = self._lanes.setdefault(job.key, collections.deque())
                lane.append(job)
                self._held(job).add(job.number)
                if len(lane) == 1:
                    self._ready.append(job.key)
            self._read_to = max(self._read_to, read_to)
            self._changed.notify_all()

    def take(self, timeout_s: float) -> Job | None:
        """The next one that may be handled; waits for it. None if there was none in time, or it is over."""
        with self._changed:
            self._wake_due()
            if not self._ready and not self._closed:
                self._changed.wait(min(timeout_s, self._due_in_s(timeout_s)))
                self._wake_due()
            if not self._ready or self._closed:
                return None
            key = self._ready.popleft()
            job = self._lanes[key][0]
            self._running[key] = (job, self._clock())
            return job

    def due_in_s(self, at_most_s: float) -> float:
        """Seconds until something that waits is to be tried again."""
        with self._changed:
            return self._due_in_s(at_most_s)

    def claim(self, job: Job) -> bool:
        """Whether the one who worked on it may say what came of it: not if it has been given up for dead."""
        with self._changed:
            running = self._running.get(job.key)
            if running is None or running[0] is not job:
                return False
            del self._running[job.key]
            return True

    def overdue(self, longest_s: float) -> list[Job]:
        """Those that somebody has worked on for longer; they are claimed from whoever does."""
        with self._changed:
            late = [job for job, since in self._running.values() if self._clock() - since > longest_s]
            for job in late:
                del self._running[job.key]
            return late

    def passed_without(self, job: Job) -> int:
        """Everything up to here is dealt with once this one is."""
        with self._changed:
            others = self._numbers - {job.number}
            return min(others) - 1 if others else self._read_to

    def passed(self) -> int:
        with self._changed:
            return min(self._numbers) - 1 if self._numbers else self._read_to

    def done(self, job: Job) -> None:
        """It is dealt with; the next of its lane may come."""
        with self._changed:
            lane = self._lanes[job.key]
            lane.popleft()
            self._held(job).discard(job.number)
            if lane:
                self._ready.append(job.key)
            else:
                del self._lanes[job.key]
            self._changed.notify_all()

    def again(self, job: Job, delay_s: float) -> None:
        """It is to be tried again after this time."""
        with self._changed:
            self._lanes[job.key][0] = replace(job, attempt=job.attempt + 1)
            heapq.heappush(self._asleep, (self._clock() + delay_s, next(self._tiebreak), job.key))
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _held(self, job: Job) -> set[int]:
        return self._numbers if job.letter is None else self._letters

    def _wake_due(self) -> None:
        while self._asleep and self._asleep[0][0] <= self._clock():
            self._ready.append(heapq.heappop(self._asleep)[2])

    def _due_in_s(self, at_most_s: float) -> float:
        return max(0.0, min(at_most_s, self._asleep[0][0] - self._clock())) if self._asleep else at_most_s
