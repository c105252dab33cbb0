"""Waiting for something that another thread or process is about to do. The only place in the tests that sleeps."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import pytest

__all__ = ["until"]

T = TypeVar("T")

_POLL_S = 0.02


def until(predicate: Callable[[], T], timeout_s: float = 20.0, what: str = "") -> T:
    """Ask ``predicate`` until it answers something true and return that; fail the test after ``timeout_s``.

    ``what`` completes the sentence "waited for …". An assertion that fails inside the predicate counts as "not yet".
    """
    deadline = time.monotonic() + timeout_s
    while True:
        last: object
        try:
            if answer := predicate():
                return answer
            last = answer
        except AssertionError as exc:
            last = exc
        if time.monotonic() >= deadline:
            awaited = what or getattr(predicate, "__name__", "a condition")
            pytest.fail(f"waited {timeout_s:g} s for {awaited}; the last answer was {last!r}")
        time.sleep(_POLL_S)
