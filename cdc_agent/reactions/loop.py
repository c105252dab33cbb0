"""The event loop of an agent's coroutines."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from cdc_agent.reactions.overdue import Overdue, interrupt

__all__ = ["Loop"]


#: How long coroutines that are cancelled may take over it.
_CANCEL_S = 1.0


class Loop:
    """An event loop on a thread of its own, begun when it is first needed; what its coroutines share, they share."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._begun()).result()

    def give_up(self) -> None:
        """Something in it never lets go: what comes from now on runs in another one. What else is under way in it is
        cancelled as soon as it lets go."""
        with self._lock:
            if self._thread is not None:
                interrupt(self._thread)
            self._end()

    def close(self) -> None:
        with self._lock:
            self._end()

    def _end(self) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
        self._loop = self._thread = None

    def _begun(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=_turn, args=(self._loop,), name=self._name, daemon=True)
                self._thread.start()
            return self._loop


def _turn(loop: asyncio.AbstractEventLoop) -> None:
    with suppress(Overdue):
        loop.run_forever()
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    if left:
        loop.run_until_complete(asyncio.wait(left, timeout=_CANCEL_S))
    loop.close()
