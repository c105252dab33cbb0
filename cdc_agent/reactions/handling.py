"""One attempt of an agent at one event: guards, handler, and what came of it."""

from __future__ import annotations

import asyncio
import inspect
import logging
import traceback
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from cdc_agent.errors import CdcAgentError
from cdc_agent.events import Event
from cdc_agent.journal.base import Letter, Outcome
from cdc_agent.reactions.agent import Agent
from cdc_agent.reactions.context import Context, Park, Tools
from cdc_agent.reactions.guard import refusal

__all__ = ["Failure", "Handling", "Job", "letter_of"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """An event that an agent has in hand. ``blown``: more events of this key came than the fuse bears. ``crashes``: how
    often the process has died in its hands. ``letter``: it was a dead letter, and is tried again."""

    number: int
    event: Event
    key: str
    attempt: int = 1
    blown: bool = False
    crashes: int = 0
    letter: Letter | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An attempt that had no effect. ``reason`` is of a fixed set; ``final``: trying again is no use."""

    reason: str
    error: str
    final: bool = False
    retry_after_s: float = 0.0


class Handling:
    """For many threads. ``run`` awaits a coroutine of the agent's and returns its result."""

    def __init__(self, agent: Agent, tools: Tools, run: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
        self._agent = agent
        self._tools = tools
        self._run = run

    @property
    def is_coroutine(self) -> bool:
        return inspect.iscoroutinefunction(self._agent.handler)

    def attempt(self, job: Job) -> Outcome | Failure:
        """Never raises what the handler raises. The outcome does not say yet what has been passed."""
        refused = self._refused(job)
        if refused is not None:
            return refused
        context = Context(agent=self._agent.name, event=job.event, key=job.key, attempt=job.attempt, tools=self._tools)
        try:
            self._handle(job.event, context)
            memory = context.memory()
        except Park as exc:
            return Failure(reason="parked", error=str(exc) or "parked by its handler", final=True)
        except TimeoutError as exc:
            return Failure(reason="timeout", error=_told(exc) or f"no end after {self._agent.timeout_s} s")
        except (Exception, SystemExit, asyncio.CancelledError) as exc:
            # Where it failed is for whoever wrote it. What it says may be what was handled, and stands in the letter.
            where = "".join(traceback.format_tb(exc.__traceback__))
            log.debug("handler failed agent=%s error=%s\n%s", self._agent.name, type(exc).__name__, where)
            return Failure(
                reason="failed", error=_told(exc), retry_after_s=float(getattr(exc, "retry_after_s", None) or 0.0)
            )
        return Outcome(
            agent=self._agent.name,
            number=job.number,
            emitted=tuple(context.emitted),
            memory=memory,
            replayed=job.letter is not None,
        )

    def _refused(self, job: Job) -> Failure | None:
        if job.crashes >= self._agent.retries.attempts:
            told = f"the process died {job.crashes} times while this was handled"
            return Failure(reason="crashed", error=told, final=True)
        # Somebody looked at the letter and wants it tried.
        if job.letter is not None:
            return None
        found = refusal(self._agent, job.event)
        if found is None and job.blown:
            assert self._agent.fuse is not None
            most = f"{self._agent.fuse.events} in {self._agent.fuse.window_s:g} s"
            found = "fuse", f"more events of this key than {most}"
        return None if found is None else Failure(reason=found[0], error=found[1], final=True)

    def _handle(self, event: Event, context: Context) -> None:
        if self._agent.when is not None and not self._agent.when(event):
            return
        result = self._agent.handler(event, context)
        if inspect.isawaitable(result):
            self._run(asyncio.wait_for(result, self._agent.timeout_s))


def letter_of(agent: Agent, job: Job, failure: Failure, tools: Tools) -> Letter:
    return Letter(
        agent=agent.name,
        number=job.number,
        event=job.event,
        reason=failure.reason,
        error=failure.error,
        attempts=job.attempt + (job.letter.attempts if job.letter else 0),
        parked_at=tools.now(),
    )


def _told(exc: BaseException) -> str:
    """For the dead letter, which holds the event itself; never for the log."""
    if isinstance(exc, CdcAgentError):
        return exc.message
    return f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__
