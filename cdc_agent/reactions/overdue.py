"""Ends what takes too long. A thread cannot be killed, but an exception can be put into it: it is raised at its next
step in Python. So what computes for ever ends; what waits in a call for ever ends when the call returns.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable
from typing import TypeVar

__all__ = ["Interruptible", "Overdue", "interrupt"]

T = TypeVar("T")


class Overdue(BaseException):
    """Raised in the middle of a handler that has been given up. Not an ``Exception``, so that no handler's own
    ``except Exception`` goes on with what nobody waits for."""


class Interruptible:
    """A piece of work of the thread that makes this. Another thread may end it there, and neither before nor behind it,
    where the thread may be about to take a lock, or to let go of one.

    Takes no lock itself: whether the work is over or is being ended is decided by who gets the one item of a list.
    """

    def __init__(self) -> None:
        self._open = [threading.get_ident()]
        self._begun = self._settled = False

    def run(self, work: Callable[[], T]) -> T:
        """What the work returns. Raises ``Overdue`` where it is ended, also before it began, unless it keeps that to
        itself."""
        try:
            self._begun = True
            if not self._open:
                raise Overdue
            return work()
        finally:
            self._close()

    def interrupt(self) -> None:
        """End it, from another thread, unless it is over."""
        try:
            thread_id = self._open.pop()
        except IndexError:
            return
        if self._begun:
            _throw(thread_id)
        self._settled = True

    def _close(self) -> None:
        try:
            self._open.pop()
        except IndexError:
            # Somebody is ending it: what is thrown is to arrive here, if it has not yet, and not later.
            while not self._settled:
                time.sleep(0.001)
            for _ in range(2):
                time.sleep(0)


def interrupt(thread: threading.Thread) -> None:
    """Raise ``Overdue`` in a thread that has nothing in hand but what is to be ended, if it lives."""
    if thread.ident is not None and thread.is_alive():
        _throw(thread.ident)


def _throw(thread_id: int) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread_id), ctypes.py_object(Overdue))
