"""Calls the functions of steps: at once, or in threads that are left behind when they take too long."""

from __future__ import annotations

import asyncio
import inspect
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from cdc_agent.errors import CdcAgentError
from cdc_agent.journal.saga_book import SagaRecord
from cdc_agent.sagas.context import StepContext, as_json
from cdc_agent.sagas.model import Function, Refused
from cdc_agent.sagas.rules import Failure, Move

__all__ = ["Attempt", "Hands", "InlineHands", "ThreadedHands"]

#: Most characters of what an exception says that are kept.
_MAX_ERROR = 500


@dataclass(slots=True, kw_only=True, eq=False)
class Attempt:
    """One call of one function. ``stuck``: it tells somebody that this is what the saga comes to."""

    record: SagaRecord
    function: Function
    context: StepContext
    timeout_s: float
    undo: bool = False
    stuck: Move | None = None
    began: float = 0.0
    result: Any = None
    failure: Failure | None = None
    #: Guards against an answer that comes when its time is over.
    over: bool = field(default=False)


class Hands(Protocol):
    """What attempts are made with. For one thread."""

    @property
    def at_work(self) -> frozenset[str]:
        """The sagas that have an attempt under way."""
        ...

    def room(self) -> int:
        """How many more may begin."""
        ...

    def start(self, attempt: Attempt) -> None: ...

    def ended(self) -> Sequence[Attempt]:
        """Those that have ended since, by themselves or because their time is over."""
        ...

    def patience_s(self) -> float | None:
        """Until the time of one of them is over; None when none is under way."""
        ...


class InlineHands:
    """Makes each attempt at once, in the thread that starts it, however long it takes: for tests."""

    def __init__(self) -> None:
        self._ended: list[Attempt] = []

    @property
    def at_work(self) -> frozenset[str]:
        return frozenset(attempt.record.id for attempt in self._ended)

    def room(self) -> int:
        return 1 - len(self._ended)

    def start(self, attempt: Attempt) -> None:
        _make(attempt)
        self._ended.append(attempt)

    def ended(self) -> Sequence[Attempt]:
        ended, self._ended = self._ended, []
        return ended

    def patience_s(self) -> float | None:
        return None


class ThreadedHands:
    """A thread for each attempt. A coroutine is cancelled when its time is over; a thread cannot be, so it is left
    behind and what it returns is not looked at. With too many left behind nothing begins. ``ring`` is called from the
    threads when something has ended."""

    def __init__(self, ring: Callable[[], None], *, concurrency: int = 16, most_left_behind: int = 32) -> None:
        self._ring = ring
        self._concurrency = concurrency
        self._most_left_behind = most_left_behind
        self._under_way: list[Attempt] = []
        self._done: queue.SimpleQueue[Attempt] = queue.SimpleQueue()
        self.left_behind = 0

    @property
    def at_work(self) -> frozenset[str]:
        return frozenset(attempt.record.id for attempt in self._under_way)

    @property
    def worn_out(self) -> bool:
        """Whether so many threads hang that nothing begins any more."""
        return self.left_behind >= self._most_left_behind

    def room(self) -> int:
        return 0 if self.worn_out else self._concurrency - len(self._under_way)

    def start(self, attempt: Attempt) -> None:
        attempt.began = time.monotonic()
        self._under_way.append(attempt)
        threading.Thread(target=self._run, args=(attempt,), name=f"saga-{attempt.record.step}", daemon=True).start()

    def ended(self) -> Sequence[Attempt]:
        ended = [attempt for attempt in self._answers() if not attempt.over]
        now = time.monotonic()
        overdue = [a for a in self._under_way if a not in ended and now >= a.began + a.timeout_s]
        for attempt in overdue:
            self.left_behind += 1
            # Its own fields are the thread's; this is another attempt that ended.
            ended.append(_given_up(attempt))
        gone = {*ended, *overdue}
        self._under_way = [attempt for attempt in self._under_way if attempt not in gone]
        return ended

    def patience_s(self) -> float | None:
        now = time.monotonic()
        return min((max(0.0, a.began + a.timeout_s - now) for a in self._under_way), default=None)

    def _answers(self) -> list[Attempt]:
        answers: list[Attempt] = []
        while True:
            try:
                attempt = self._done.get_nowait()
            except queue.Empty:
                return answers
            self.left_behind -= attempt.over
            answers.append(attempt)

    def _run(self, attempt: Attempt) -> None:
        _make(attempt)
        self._done.put(attempt)
        self._ring()


def _given_up(attempt: Attempt) -> Attempt:
    attempt.over = True
    return Attempt(
        record=attempt.record,
        function=attempt.function,
        context=attempt.context,
        timeout_s=attempt.timeout_s,
        undo=attempt.undo,
        stuck=attempt.stuck,
        began=attempt.began,
        failure=Failure(error=f"it took longer than {attempt.timeout_s:g} s", timed_out=True),
    )


def _make(attempt: Attempt) -> None:
    """Never raises: an exception of the function is how the attempt ended."""
    try:
        result = attempt.function(attempt.context)
        if inspect.isawaitable(result):
            result = asyncio.run(_within(result, attempt.timeout_s))
        attempt.result = as_json(result, f"what {attempt.record.step} returned")
    except Refused as exc:
        attempt.failure = Failure(error=_told(exc), refused=True)
    except BaseException as exc:
        if isinstance(exc, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
            # Somebody at a terminal ends their tests.
            raise
        # Also what is no Exception: the thread is nobody else's, and a saga must not wait for it for ever.
        attempt.failure = Failure(error=_told(exc), timed_out=isinstance(exc, TimeoutError))


async def _within(awaitable: Any, timeout_s: float) -> Any:
    return await asyncio.wait_for(awaitable, timeout_s)


def _told(exc: BaseException) -> str:
    try:
        said = exc.message if isinstance(exc, CdcAgentError) else str(exc)
    except Exception:
        said = "(what it says cannot be told)"
    name = type(exc).__name__
    told = (f"{name}: {said}" if said else name)[:_MAX_ERROR]
    # An exception may say anything; what is recorded is text.
    return told.encode("utf-8", "backslashreplace").decode()
