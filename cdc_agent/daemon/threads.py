"""The daemon's threads: few, named, and each death is noticed. One that fails stops all the others, in order."""

from __future__ import annotations

import contextvars
import logging
import threading
from collections.abc import Callable

from cdc_agent.retry import Stopping

__all__ = ["Threads", "in_a_loop"]

log = logging.getLogger(__name__)


_in_a_loop = contextvars.ContextVar("_in_a_loop", default=False)


def in_a_loop() -> bool:
    """Whether who asks is one of the daemon's loops, which may wait as long as it takes, and no request."""
    return _in_a_loop.get()


class Threads:
    """Threads that live as long as the daemon. ``failure`` is the first error that ended one."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self.failure: BaseException | None = None

    def start(self, name: str, body: Callable[[], None], *, vital: bool = True) -> threading.Thread:
        """The end of a vital thread is the end of the daemon; any other may end, but not fail."""
        thread = threading.Thread(target=self._guarded, args=(name, body, vital), name=name, daemon=True)
        self._threads.append(thread)
        thread.start()
        return thread

    def join(self, timeout_s: float) -> list[str]:
        """Wait for all of them, altogether at most about ``timeout_s``; returns the names of those still running."""
        for thread in self._threads:
            thread.join(timeout_s if thread is self._threads[0] else max(1.0, timeout_s / len(self._threads)))
        return [thread.name for thread in self._threads if thread.is_alive()]

    def _guarded(self, name: str, body: Callable[[], None], vital: bool) -> None:
        _in_a_loop.set(True)
        try:
            body()
        except Stopping:
            log.debug("thread stopped name=%s", name)
        except BaseException as exc:
            with self._lock:
                self.failure = self.failure or exc
            log.debug("thread failed name=%s", name, exc_info=True)
            self._stop.set()
        finally:
            if vital and not self._stop.is_set():
                self._stop.set()
