"""Ends what takes too long. A thread cannot be killed, but an exception can be put into it: it is raised at its next
step in Python. So what computes for ever ends; what waits in a call for ever ends when the call returns.
"""

from __future__ import annotations

import ctypes
import threading

__all__ = ["Overdue", "interrupt"]


class Overdue(BaseException):
    """Raised in the middle of a handler that has been given up. Not an ``Exception``, so that no handler's own
    ``except Exception`` goes on with what nobody waits for."""


def interrupt(thread: threading.Thread) -> None:
    """Raise ``Overdue`` in a thread, if it lives."""
    if thread.ident is not None and thread.is_alive():
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(Overdue))
