"""Trying again: jittered exponential backoff that ends at once when the process is to stop."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TypeVar

import tenacity

from cdc_agent.errors import CdcAgentError
from cdc_agent.health import Health

__all__ = ["Backoff", "Retrier", "Stopping"]

T = TypeVar("T")
log = logging.getLogger(__name__)


class Stopping(Exception):
    """Not an error: the process is to stop; what was in work is abandoned, which is always safe."""


class Backoff:
    """Delays that double from ``initial_s`` to ``maximum_s``, each with up to ``initial_s`` of jitter."""

    def __init__(self, *, initial_s: float = 0.2, maximum_s: float = 30.0) -> None:
        self.initial_s = initial_s
        self.maximum_s = maximum_s
        self._wait = tenacity.wait_exponential(multiplier=initial_s, max=maximum_s) + tenacity.wait_random(0, initial_s)

    def delay_s(self, attempt: int, at_least_s: float | None = None) -> float:
        """Seconds to wait after the ``attempt``-th failure in a row (1, 2, …)."""
        state = tenacity.RetryCallState(retry_object=None, fn=None, args=(), kwargs={})  # type: ignore[arg-type]
        state.attempt_number = attempt
        return max(min(float(self._wait(state)), self.maximum_s), at_least_s or 0.0)


class Retrier:
    """Repeats calls that fail retryably, tells health about it meanwhile, and stops when ``stop`` is set."""

    def __init__(self, stop: threading.Event, health: Health, backoff: Backoff) -> None:
        self._stop = stop
        self._health = health
        self._backoff = backoff

    def paced(self, backoff: Backoff) -> Retrier:
        """The same with other pauses."""
        return Retrier(self._stop, self._health, backoff)

    def until_done(
        self, name: str, call: Callable[[], T], retry_on: tuple[type[CdcAgentError], ...], *, once: bool = False
    ) -> T:
        """Return what ``call`` returns, however long it takes. Raises ``Stopping``, or any other error of the call.

        With ``once`` it is called once even when the process is to stop.
        """
        attempt = 0
        while not self._stop.is_set() or (once and attempt == 0):
            try:
                result = call()
            except retry_on as exc:
                if not exc.retryable:
                    raise
                attempt += 1
                self.wait(name, exc, attempt)
            else:
                if attempt:
                    log.info("recovered component=%s attempts=%d", name, attempt)
                self._health.clear(name)
                return result
        raise Stopping

    def wait(self, name: str, exc: CdcAgentError, attempt: int) -> None:
        """Report a failure and sleep; raises ``Stopping`` when asked to stop meanwhile."""
        self._health.report(name, exc)
        delay = self._backoff.delay_s(attempt, getattr(exc, "retry_after_s", None))
        log.warning("retrying component=%s attempt=%d delay_s=%.1f error=%s", name, attempt, delay, exc.message)
        if self._stop.wait(delay):
            raise Stopping
