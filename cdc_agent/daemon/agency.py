"""Runs the user's agents: their program, a runner for each, and the router that brings them row changes."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cdc_agent import metrics
from cdc_agent.config import Config
from cdc_agent.daemon.consumers import LiveWatermark
from cdc_agent.daemon.threads import Threads
from cdc_agent.errors import AgentError, CdcAgentError, UsageError
from cdc_agent.events import Event, Kind
from cdc_agent.health import Health
from cdc_agent.journal.base import Desk, Journal, Letter, Query
from cdc_agent.lsn import Lsn
from cdc_agent.migrate.serving import LiveSearch
from cdc_agent.reactions.agents import Agents
from cdc_agent.reactions.context import Moment, Search, Tools
from cdc_agent.reactions.hands import Hands
from cdc_agent.reactions.loading import load
from cdc_agent.reactions.router import CONSUMER, Router
from cdc_agent.reactions.runner import Runner
from cdc_agent.retry import Backoff, Retrier
from cdc_agent.search import SearchHit
from cdc_agent.stream.base import Stream

__all__ = ["Agency", "UserAgent", "fresh_search", "load_agents", "open_agency"]

log = logging.getLogger(__name__)

#: How long a handler's search waits for the commit that it is about.
_FRESH_S = 30.0
#: Events of one chain of causes that are looked through.
_CHAIN = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class UserAgent:
    """An agent of the user's for people. ``backlog`` counts what it has not passed, wanted or not; ``failed`` says why
    it does not work any more."""

    name: str
    kind: str
    listens_to: tuple[str, ...]
    passed: int
    backlog: int
    letters: int
    failed: str


def load_agents(references: Sequence[str]) -> Agents:
    """Raises ``ConfigError`` for a program that cannot be loaded: half a set of agents would lose what the others
    wait for."""
    return load(references)


def fresh_search(
    searcher: LiveSearch, watermark: LiveWatermark, hurry: Callable[[], None], captured: Callable[[], Lsn]
) -> Search:
    """Searches as ``/search`` does; with a moment only once the index is complete up to it."""

    def search(
        collection: str, query: str, k: int, where: Mapping[str, Any] | None, moment: Moment | None
    ) -> Sequence[SearchHit]:
        min_lsn = captured() if moment == "captured" else moment
        if min_lsn is not None and watermark.applied_lsn < min_lsn:
            hurry()
            if not watermark.wait_lsn(min_lsn, _FRESH_S):
                raise AgentError(f"the index did not reach {min_lsn} in {_FRESH_S:g} s", hint="see /readyz")
        return searcher.search(collection, query, k, where)

    return search


class Agency:
    """Safe to call from several threads. An agent that fails fails alone."""

    def __init__(
        self,
        app: Agents,
        *,
        journal: Journal,
        desk: Desk,
        runners: Sequence[Runner],
        router: Router | None,
        hands: Hands,
    ) -> None:
        self._hands = hands
        self._commands = app.commands
        self._journal = journal
        self._desk = desk
        self._runners = {runner.agent.name: runner for runner in runners}
        self._router = router

    def start(self, threads: Threads) -> None:
        if self._router is not None:
            threads.start("router", self._guarded_router, vital=False)
        for name in self._runners:
            threads.start(f"agent {name}", lambda name=name: self._guarded(name), vital=False)  # type: ignore[misc]

    def wake(self) -> None:
        """The process is to stop: nobody waits any longer for what might come."""
        self._journal.wake()

    def close(self) -> None:
        """After its threads have ended, or were left behind."""
        self._hands.close()

    def tell(self) -> None:
        """Metrics of what is now."""
        counts = self._desk.letter_counts()
        for name, runner in self._runners.items():
            metrics.AGENT_BACKLOG.labels(agent=name).set(self._journal.head() - runner.passed)
            metrics.AGENT_LETTERS.labels(agent=name).set(counts.get(name, 0))
            metrics.AGENT_UP.labels(agent=name).set(0 if runner.failed else 1)

    def states(self) -> list[UserAgent]:
        """Every agent, by name."""
        counts, head = self._desk.letter_counts(), self._journal.head()
        return [
            UserAgent(
                name=name,
                kind=str(runner.agent.trigger.kind),
                listens_to=runner.agent.trigger.types,
                passed=runner.passed,
                backlog=head - runner.passed,
                letters=counts.get(name, 0),
                failed=runner.failed,
            )
            for name, runner in sorted(self._runners.items())
        ]

    def letters(self, agent: str, limit: int) -> list[Letter]:
        """Dead letters of one agent, or of all (empty)."""
        return self._desk.letters(agent=agent, limit=limit)

    def letter(self, agent: str, number: int) -> Letter | None:
        return next(iter(self._desk.letters(agent=agent, number=number)), None)

    def move_letter(self, agent: str, number: int, action: str) -> bool:
        """``replay`` or ``discard``; False when there is no such letter."""
        if action == "replay" and agent not in self._runners:
            raise UsageError(f"agent {agent} does not run here", hint="name its app in agents, or discard the letter")
        return self._desk.replay(agent, number) if action == "replay" else self._desk.discard(agent, number)

    def chain(self, event: Event) -> list[Event]:
        """What led to an event, the oldest first, as far as it is still known; the event itself is the last."""
        if not event.correlation_id:
            return [event]
        found = self._journal.find(Query(correlation_id=event.correlation_id, limit=_CHAIN))
        by_id = {entry.event.id: entry.event for entry in found}
        chain = [event]
        while (cause := by_id.pop(chain[-1].causation_id, None)) is not None:
            chain.append(cause)
        return chain[::-1]

    def emit(self, events: Sequence[Event]) -> int:
        """Record events from outside; how many were new. Raises ``UsageError`` for a command nobody carries out."""
        for event in events:
            if event.kind not in (Kind.FACT, Kind.COMMAND):
                raise UsageError(f"nobody may tell us of a {event.kind}", hint="facts and commands come from outside")
            if event.kind is Kind.COMMAND and event.type not in self._commands:
                known = ", ".join(sorted(self._commands)) or "none"
                raise UsageError(f"no agent carries out {event.type!r}", hint=f"commands here: {known}")
        return self._journal.append(events)

    def _guarded(self, name: str) -> None:
        runner = self._runners[name]
        try:
            runner.run()
        except CdcAgentError as exc:
            runner.failed = exc.message
            log.error("agent stopped name=%s error=%s", name, exc)
        except Exception:
            # A bug of ours or theirs: nobody else is to stop for it.
            runner.failed = "it failed, see the log"
            log.exception("agent stopped name=%s", name)

    def _guarded_router(self) -> None:
        assert self._router is not None
        try:
            self._router.run()
        except CdcAgentError as exc:
            log.error("agents hear of no changes any more error=%s", exc)
            for runner in self._runners.values():
                if runner.agent.trigger.kind is Kind.CHANGE:
                    runner.failed = exc.message


def open_agency(
    config: Config,
    app: Agents,
    *,
    journal: Journal,
    desk: Desk,
    stream: Stream,
    search: Search,
    database: str,
    health: Health,
    stop: threading.Event,
) -> Agency:
    retrier = Retrier(stop, health, Backoff(initial_s=config.retry.initial_s, maximum_s=config.retry.maximum_s))
    tools = Tools(
        commands=app.commands,
        sagas=frozenset(app.sagas),
        search=search,
        recall=desk.recall,
        find=journal.find,
    )
    # Before any agent is placed: what it will read comes after.
    router = None
    if app.tables:
        router = Router(
            stream=stream,
            desk=desk,
            tables=app.tables,
            agents=app.agents.keys(),
            database=database,
            retrier=retrier,
            stop=stop,
        )
    elif CONSUMER in stream.consumers():
        stream.forget(CONSUMER)
    hands = Hands(config.state_dir / "agents-in-hand.json")
    runners = [
        Runner(agent, journal=journal, desk=desk, tools=tools, retrier=retrier, stop=stop, hands=hands)
        for agent in app.agents.values()
    ]
    return Agency(app, journal=journal, desk=desk, runners=runners, router=router, hands=hands)
