"""The agents of this daemon and the generations that each keeps: started, stopped and counted one by one.

The first agent keeps every first generation; each later generation has an agent of its own, so that it reads the stream
from its own place. Readers see all of them as one: complete is what every generation that answers searches has.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from cdc_agent.agents.indexer import Indexer
from cdc_agent.agents.planning import Collection
from cdc_agent.agents.watermark import Watermark
from cdc_agent.config import EmbeddingConfig
from cdc_agent.daemon.leaving import give_up_place
from cdc_agent.daemon.threads import Threads
from cdc_agent.embedding.base import Embedder
from cdc_agent.errors import CdcAgentError, StreamFull
from cdc_agent.health import Health, Problem
from cdc_agent.ledger.base import Generation, Ledger, Resync
from cdc_agent.lsn import Lsn
from cdc_agent.migrate.names import follows_feed
from cdc_agent.migrate.serving import Target
from cdc_agent.stream.base import Stream

__all__ = ["STOPPED", "AgentState", "Consumers", "MakeIndexer", "Served", "StillBusy", "resync_targets"]

log = logging.getLogger(__name__)

#: The problem of an agent that ended because of an error.
STOPPED = "stopped"
#: How long the work in hand of one agent may take when only this agent is stopped.
_STOP_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A generation as it runs."""

    generation: Generation
    collection: Collection
    embedding: EmbeddingConfig
    embedder: Embedder
    target: Target

    @property
    def physical(self) -> str:
        return self.generation.physical


#: Wires the indexer of one agent over its generations; the event stops it, health hears of its troubles.
MakeIndexer = Callable[[str, Sequence[Served], threading.Event, Health], Indexer]


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentState:
    """How far one agent is. ``state``: ``live`` (answers searches), ``building`` or ``failed``."""

    name: str
    state: str
    collections: tuple[str, ...]
    offset: int
    head_offset: int
    applied_lsn: Lsn
    problems: tuple[Problem, ...]


@dataclass(slots=True, kw_only=True)
class _Agent:
    name: str
    health: Health
    served: dict[str, Served] = field(default_factory=dict)
    stop: threading.Event = field(default_factory=threading.Event)
    threads: list[threading.Thread] = field(default_factory=list)
    indexer: Indexer
    stream: Stream
    failed: bool = False
    running: int = 0

    @property
    def live(self) -> bool:
        return any(s.generation.state == "live" for s in self.served.values())


class Consumers:
    """Safe to call from several threads, but ``add`` and ``remove`` by one at a time.

    What is added after ``start`` starts at once. ``feeds`` are the streams of feeds, by the name that stands for a
    table: who keeps one of those reads that stream, and has nothing to do with the watermark of the database.
    """

    def __init__(
        self, *, make: MakeIndexer, ledger: Ledger, stream: Stream, feeds: Mapping[str, Stream] | None = None
    ) -> None:
        self._feeds = dict(feeds or {})
        self._make = make
        self._ledger = ledger
        self._stream = stream
        self._lock = threading.RLock()
        self._agents: dict[str, _Agent] = {}
        self._threads: Threads | None = None
        self._stopping = False
        self.watermark = LiveWatermark(self._live_watermarks)

    # -- lives ------------------------------------------------------------------------------------------------

    def add(self, name: str, served: Sequence[Served]) -> None:
        """An agent with its generations. It begins at the end of the stream unless it has been here before."""
        stream = self.stream_of(served[0])
        checkpoint = self._ledger.register_agent(name, stream.head_offset())
        stream.release(name, checkpoint.offset)
        # Of its own: troubles of a generation that answers nobody yet are not the daemon's.
        agent = self._made(name, {s.physical: s for s in served}, Health())
        with self._lock:
            self._begin(agent)

    def stream_of(self, served: Served) -> Stream:
        return self._feeds.get(served.collection.table, self._stream)

    def start(self, threads: Threads) -> None:
        with self._lock:
            self._threads = threads
            for agent in self._agents.values():
                self._run(agent)

    def stop(self) -> None:
        """Ask all of them to end; their threads are joined with the others."""
        with self._lock:
            self._stopping = True
            for agent in self._agents.values():
                agent.stop.set()

    def remove(self, served: Served) -> bool:
        """Stop keeping a generation. Returns whether its agent has nothing left to do and is gone."""
        name = served.generation.agent
        agent = self._agents.get(name)
        if agent is None:
            return True
        self._end(agent)
        left = {physical: s for physical, s in agent.served.items() if physical != served.physical}
        again = self._again(agent, left) if left and not agent.failed else None
        with self._lock:
            if self._agents.get(name) is not agent:
                raise StillBusy(f"{name} has just begun again", hint="ask again")
            if not left:
                del self._agents[name]
                return True
            if again is None:
                # It has lost its place, which only a start gives it anew.
                agent.served = left
            else:
                self._begin(again)
        return False

    def _again(self, agent: _Agent, served: dict[str, Served]) -> _Agent:
        """Another agent for the place of one whose threads have ended."""
        again = self._made(agent.name, served, agent.health)
        before = agent.indexer.watermark
        again.indexer.watermark.advance(before.offset, before.applied_lsn)
        return again

    def _begin(self, agent: _Agent) -> None:
        self._agents[agent.name] = agent
        if self._threads is not None:
            self._run(agent)

    def _revive(self, agent: _Agent) -> None:
        """One that did not end in time goes on with all that it served, once it has ended."""
        for thread in agent.threads:
            thread.join()
        again = self._again(agent, agent.served)
        with self._lock:
            if self._agents.get(agent.name) is agent and not self._stopping and not agent.failed:
                self._begin(again)

    def _made(self, name: str, served: dict[str, Served], health: Health) -> _Agent:
        stop = threading.Event()
        indexer = self._make(name, list(served.values()), stop, health)
        stream = self.stream_of(next(iter(served.values())))
        return _Agent(name=name, health=health, served=served, stop=stop, indexer=indexer, stream=stream)

    def _run(self, agent: _Agent) -> None:
        assert self._threads is not None
        suffix = f":{agent.name}" if follows_feed(agent.name) else agent.name.removeprefix("indexer")
        agent.running = 2
        for role, body in (("planner", agent.indexer.run_planner), ("writer", agent.indexer.run_writer)):
            contained = functools.partial(self._contained, agent, body)
            agent.threads.append(self._threads.start(role + suffix, contained, vital=False))

    def _contained(self, agent: _Agent, body: Callable[[], None]) -> None:
        """What fails in a generation that answers nobody stops its agent, and not those that answer."""
        try:
            body()
        except CdcAgentError as exc:
            if not self._fails_alone(agent, exc):
                raise
        finally:
            self._ended(agent)

    def _fails_alone(self, agent: _Agent, exc: CdcAgentError) -> bool:
        with self._lock:
            if agent.live:
                return False
            agent.health.report(STOPPED, exc)
            agent.failed = True
        agent.stop.set()
        agent.stream.wake()
        self._give_up_resyncs(agent)
        log.error("agent stopped name=%s error=%s", agent.name, exc.message)
        return True

    def make_room(self) -> None:
        """The stream is full. Once all who answer have done with it, those who do not and are behind give up their
        places: their models may come back, but nobody else waits for that."""
        with self._lock:
            working = [agent for agent in self._agents.values() if not agent.failed and agent.stream is self._stream]
        head = self._stream.head_offset()
        behind = [agent for agent in working if self._stream.released(agent.name) < head]
        if not any(agent.live for agent in behind):
            for agent in behind:
                why = StreamFull("it was behind when the stream was full", hint="raise stream.max_bytes")
                self._fails_alone(agent, why)

    def _ended(self, agent: _Agent) -> None:
        """The last thread of an agent that failed gives up its place: until the next start nobody reads from there, and
        retention must not wait for that."""
        with self._lock:
            agent.running -= 1
            if agent.running or not agent.failed:
                return
        give_up_place(self._ledger, agent.stream, agent.name, [s.generation for s in agent.served.values()])
        log.warning("agent gave up its place name=%s, what it keeps is read again after the next start", agent.name)

    @contextmanager
    def unless_stopped(self, served: Served) -> Iterator[bool]:
        """Whether the agent of a generation works; it does not fail before the end of the block."""
        with self._lock:
            agent = self._agents.get(served.generation.agent)
            yield agent is not None and not agent.failed

    def _give_up_resyncs(self, agent: _Agent) -> None:
        """Nobody applies them any more, and those of others wait behind them."""
        for resync in self._ledger.resyncs():
            if resync.open and set(resync.collections) <= set(agent.served):
                self._ledger.move_resync(resync.id, "failed", only=("running", "paused"), at=time.time())

    def _end(self, agent: _Agent) -> None:
        agent.stop.set()
        agent.stream.wake()
        for thread in agent.threads:
            thread.join(_STOP_S)
            if thread.is_alive():
                threading.Thread(target=self._revive, args=(agent,), name=f"revive {agent.name}", daemon=True).start()
                raise StillBusy(f"{thread.name} is still at work", hint="ask again when the store and the model answer")

    # -- what is kept -----------------------------------------------------------------------------------------

    @property
    def served(self) -> list[Served]:
        with self._lock:
            return [s for agent in self._agents.values() for s in agent.served.values()]

    @property
    def working(self) -> list[Served]:
        """What is kept by agents that have not failed."""
        with self._lock:
            return [s for agent in self._agents.values() if not agent.failed for s in agent.served.values()]

    @property
    def of_tables(self) -> list[Served]:
        """Like ``working``, without what is made of feeds."""
        return [s for s in self.working if s.collection.table not in self._feeds]

    def update(self, generations: Sequence[Generation]) -> None:
        """The ledger says something new about generations; all of it becomes true at once."""
        with self._lock:
            for generation in generations:
                agent = self._agents.get(generation.agent)
                if agent is not None and generation.physical in agent.served:
                    known = agent.served[generation.physical]
                    agent.served[generation.physical] = replace(known, generation=generation)

    def tables(self) -> dict[str, str]:
        """The table of each configured collection."""
        return {s.generation.collection: s.collection.table for s in self.served if s.generation.state == "live"}

    def directed(self, resync: Resync) -> list[Resync]:
        """What was asked for by configured names, for every generation of them: one resync for each agent."""
        meant = [s for s in self.working if s.generation.collection in resync.collections]
        targets = resync_targets(meant, resync.table)
        return [replace(resync, collections=collections) for _, collections in targets]

    def targets(self) -> Mapping[str, Target]:
        """What answers for each configured collection."""
        return {s.generation.collection: s.target for s in self.served if s.generation.state == "live"}

    def progress_of(self, table: str) -> Callable[[], LiveWatermark]:
        """How complete what answers searches from one feed is, whoever keeps it when that is asked."""

        def marks() -> list[Watermark]:
            with self._lock:
                own = [a for a in self._agents.values() if a.stream is self._feeds[table] and a.live]
                return [agent.indexer.watermark for agent in own]

        return lambda: LiveWatermark(marks)

    def watermark_of(self, served: Served) -> Watermark:
        with self._lock:
            return self._agents[served.generation.agent].indexer.watermark

    def follow(self, oids: Mapping[str, int]) -> None:
        """Tables have other oids now, by configured name."""
        with self._lock:
            agents = list(self._agents.values())
        for agent in agents:
            agent.indexer.follow(oids)

    def rebuild(self, physical: str) -> None:
        """Somebody found a generation in the store to be wrong: its writer looks, and mends."""
        with self._lock:
            keepers = [agent for agent in self._agents.values() if physical in agent.served]
        for agent in keepers:
            agent.indexer.rebuild(physical)

    def hurry(self) -> None:
        """Somebody waits for the watermark."""
        with self._lock:
            agents = list(self._agents.values())
        for agent in agents:
            agent.indexer.hurry()

    def problems(self) -> list[Problem]:
        """Troubles of agents whose generations answer searches, each named once."""
        with self._lock:
            agents = [a for a in self._agents.values() if a.live]
        found = {problem.name: problem for agent in agents for problem in agent.health.problems()}
        return list(found.values())

    def problems_of(self, served: Served) -> list[Problem]:
        with self._lock:
            return list(self._agents[served.generation.agent].health.problems())

    def states(self) -> list[AgentState]:
        """Every agent, by name."""
        with self._lock:
            agents = sorted(self._agents.values(), key=lambda agent: agent.name)
            return [
                AgentState(
                    name=agent.name,
                    state="failed" if agent.failed else "live" if agent.live else "building",
                    collections=tuple(agent.served),
                    offset=agent.indexer.watermark.offset,
                    head_offset=agent.stream.head_offset(),
                    applied_lsn=agent.indexer.watermark.applied_lsn,
                    problems=tuple(agent.health.problems()),
                )
                for agent in agents
            ]

    def _live_watermarks(self) -> list[Watermark]:
        with self._lock:
            agents = [agent for agent in self._agents.values() if agent.stream is self._stream]
            return [a.indexer.watermark for a in agents if a.live] or [a.indexer.watermark for a in agents]


def resync_targets(served: Sequence[Served], table: str | None = None) -> list[tuple[str, tuple[str, ...]]]:
    """What a resync of everything (or of one table) is made of: one for each table and agent, with its collections."""
    found: dict[tuple[str, str], list[str]] = {}
    for one in served:
        if table in (None, one.collection.table):
            found.setdefault((one.collection.table, one.generation.agent), []).append(one.physical)
    return [(name, tuple(collections)) for (name, _), collections in sorted(found.items())]


class StillBusy(CdcAgentError):
    """Work in hand did not end in time; asking again may help."""

    retryable = True


class LiveWatermark:
    """How complete what answers searches is: the least of its agents."""

    def __init__(self, marks: Callable[[], Sequence[Watermark]]) -> None:
        self._marks = marks

    @property
    def applied_lsn(self) -> Lsn:
        while True:
            marks = self._marks()
            applied = min(mark.applied_lsn for mark in marks)
            # What answered when it was read may have been replaced since by one that is not as far.
            if self._marks() == marks:
                return applied

    @property
    def offset(self) -> int:
        return min(mark.offset for mark in self._marks())

    def wait_lsn(self, lsn: Lsn, timeout_s: float) -> bool:
        """See ``Watermark.wait_lsn``."""
        deadline = time.monotonic() + timeout_s
        while True:
            marks = self._marks()
            reached = all(mark.wait_lsn(lsn, max(0.0, deadline - time.monotonic())) for mark in marks)
            if not reached or self._marks() == marks:
                return reached
