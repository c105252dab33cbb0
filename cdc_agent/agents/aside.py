"""One call at a time on a thread of its own, while who wants its result does something useful."""

from __future__ import annotations

import contextvars
import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["Aside"]

T = TypeVar("T")


class _Call(Generic[T]):
    """A call, and what came of it."""

    def __init__(self, call: Callable[[], T]) -> None:
        self._call = call
        # What is true of who calls is true there: a loop may wait, a request may not.
        self._context = contextvars.copy_context()
        self._failed: BaseException | None = None
        self.done = threading.Event()
        self.result: T

    def carry_out(self) -> None:
        try:
            self.result = self._context.run(self._call)
        except BaseException as exc:
            self._failed = exc
        finally:
            self.done.set()

    def outcome(self) -> T:
        if self._failed is not None:
            raise self._failed
        return self.result


class Aside:
    """Used by one thread. The thread aside begins with the first call and ends with ``close``."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: queue.SimpleQueue[_Call[object] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def run(self, call: Callable[[], T], meanwhile: Callable[[], None], every_s: float) -> T:
        """Returns what ``call`` returns, or raises what it raises; does ``meanwhile`` again and again until then.

        An error of ``meanwhile`` is raised once the call has ended: nothing is left at work behind the caller's back.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
            self._thread.start()
        begun = _Call(call)
        self._calls.put(begun)  # type: ignore[arg-type]  # The thread only carries it out.
        try:
            while not begun.done.wait(every_s):
                meanwhile()
        finally:
            begun.done.wait()
        return begun.outcome()

    def close(self) -> None:
        """The thread ends after what it does now."""
        if self._thread is not None:
            self._calls.put(None)
            self._thread = None

    def _work(self) -> None:
        while (begun := self._calls.get()) is not None:
            begun.carry_out()
