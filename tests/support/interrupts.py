"""Ctrl-C at a better moment: not between the birth of a process and the line that remembers it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["held", "listen"]

_NUMBERS = (signal.SIGINT, signal.SIGTERM)


def listen() -> None:
    """SIGTERM ends a run as Ctrl-C does, so that nothing is left behind. So does SIGINT where whoever began the run
    ignores it, as a shell does for what runs in its background."""
    for number in _NUMBERS:
        signal.signal(number, signal.default_int_handler)


@contextmanager
def held() -> Iterator[None]:
    """What asks this process to end meanwhile does so afterwards. Of use in the main thread, where signals arrive."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        arrived.append(number)

    before = {number: signal.signal(number, note) for number in _NUMBERS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for number in arrived[:1]:
        signal.raise_signal(number)
