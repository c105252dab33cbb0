"""Run agents in memory, in a unit test, in a few lines, with the runner that the daemon uses and no thread of it::

    with Bench(app) as bench:
        bench.emit("payment_failed", {"amount": 12}, key="order-7")
        bench.run()
        assert [c.data for c in bench.commands("offer_alternative_payment")] == [{"order": "order-7"}]

Time stands still unless a test moves it; what is to be tried again later is tried at once, in that order.
"""

from __future__ import annotations

import datetime as dt
import itertools
import threading
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Self

from cdc_agent.events import Event, Kind
from cdc_agent.health import Health
from cdc_agent.journal.base import Letter, Query
from cdc_agent.journal.desk import SqliteDesk
from cdc_agent.journal.file import JournalFile
from cdc_agent.journal.saga_book import SagaRecord
from cdc_agent.journal.saga_sqlite import SqliteSagaBook
from cdc_agent.journal.sqlite import SqliteJournal
from cdc_agent.reactions.agents import Agents
from cdc_agent.reactions.context import Moment, Tools
from cdc_agent.reactions.runner import Runner
from cdc_agent.retry import Backoff, Retrier
from cdc_agent.sagas.context import SagaTools
from cdc_agent.sagas.operations import SagaOperations
from cdc_agent.sagas.runtime import SagaRuntime

__all__ = ["Bench"]

_BEGAN = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
_ALL = 1_000_000
#: Rounds after which agents that still wake each other are called endless.
_MAX_ROUNDS = 10_000


class Bench:
    """``search`` answers ``context.search(collection, query, k=…, where=…)``; without it there is no index.

    ``only`` names the agents that are to run; without it all do.

    What happened is a list of ``Event``: ``facts``, ``commands``; what could not be handled is in ``letters``.
    """

    def __init__(
        self, app: Agents, *, search: Any = None, now: dt.datetime = _BEGAN, only: Collection[str] = ()
    ) -> None:
        self._now = now
        self._count = itertools.count(1)
        self._file = JournalFile(None)
        self._journal = SqliteJournal(self._file, wall_clock=self._time)
        self._desk = SqliteDesk(self._file, wall_clock=self._time)
        self._stop = threading.Event()
        retrier = Retrier(self._stop, Health(), Backoff())
        tools = Tools(
            commands=app.commands,
            sagas=app.sagas.keys(),
            search=_asked(search),
            recall=self._desk.recall,
            find=self._journal.find,
            now=lambda: self._now,
        )
        self._runners = [
            Runner(
                agent,
                journal=self._journal,
                desk=self._desk,
                tools=tools,
                retrier=retrier,
                stop=self._stop,
                clock=self._time,
                wall_clock=self._time,
            )
            for agent in app.agents.values()
            if not only or agent.name in only
        ]
        self._book = SqliteSagaBook(self._file, wall_clock=self._time)
        self._saga_runtime = SagaRuntime(
            app.sagas,
            journal=self._journal,
            desk=self._desk,
            book=self._book,
            tools=SagaTools(search=search, commands=app.commands, now=lambda: self._now),
            clock=self._time,
            inline=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._stop.set()
        for runner in self._runners:
            runner.close()
        self._file.close()

    # -- what happens ------------------------------------------------------------------------------------------

    def emit(self, type_: str, data: Any = None, *, key: str = "", id_: str = "") -> Event:
        """A fact from outside. With the ``id_`` of an earlier one it is that one, delivered twice."""
        return self._told(Kind.FACT, type_, data, key, id_)

    def command(self, type_: str, data: Any = None, *, key: str = "", id_: str = "") -> Event:
        """A command from outside."""
        return self._told(Kind.COMMAND, type_, data, key, id_)

    def change(
        self,
        table: str,
        *,
        after: Mapping[str, Any] | None = None,
        before: Mapping[str, Any] | None = None,
        op: str = "",
        key: str = "",
    ) -> Event:
        """A row of ``schema.table`` was created (``after`` alone), deleted (``before`` alone) or updated."""
        kind = op or ("d" if after is None else "c" if before is None else "u")
        row = after if after is not None else before or {}
        schema, _, name = table.partition(".")
        place = next(self._count)
        lsn = place << 24
        data = {
            "op": kind,
            "before": before,
            "after": after,
            "ts_ms": int(self._now.timestamp() * 1000),
            "source": {"schema": schema, "table": name, "lsn": lsn, "connector": "postgresql", "snapshot": "false"},
        }
        about = key or str(next(iter(row.values()), ""))
        return self._told(Kind.CHANGE, table, data, about, f"{lsn:X}-1")

    def run(self) -> None:
        """Until there is nothing left to do: what fails is tried again, as often as it may be."""
        for _ in range(_MAX_ROUNDS):
            if any(runner.step() for runner in self._runners) or self._saga_runtime.until_idle():
                continue
            due = [seconds for runner in self._runners if (seconds := runner.due_in_s()) is not None]
            if (retry_at := self._saga_runtime.next_due(waiting=False)) is not None:
                due.append(max(0.0, retry_at - self._time()))
            if not due:
                return
            # And a little more: a rest that is shorter than a microsecond would never pass.
            self._now += dt.timedelta(seconds=min(due), microseconds=1)
        raise AssertionError("the agents go on for ever")

    def advance(self, seconds: float) -> None:
        """Let time pass, and run what is due by then, the clock's ticks among it."""
        self._now += dt.timedelta(seconds=seconds)
        self.run()

    def answer(self, action: str, saga: SagaRecord, **more: str) -> None:
        """``approve``, ``reject`` or ``cancel`` a saga, as an operator would (``by=``, ``note=``), and run."""
        SagaOperations(self._book, self._saga_runtime).act(saga.id, action, **more)
        self.run()

    def replay(self, letter: Letter) -> None:
        """Give a dead letter back, as an operator would."""
        self._desk.replay(letter.agent, letter.number)

    # -- what came of it ---------------------------------------------------------------------------------------

    def facts(self, type_: str = "", key: str = "") -> list[Event]:
        return self._found(Kind.FACT, type_, key)

    def commands(self, type_: str = "", key: str = "") -> list[Event]:
        return self._found(Kind.COMMAND, type_, key)

    @property
    def letters(self) -> list[Letter]:
        return self._desk.letters()

    def sagas(self, name: str = "") -> list[SagaRecord]:
        """Those that were begun, in order: ``state``, ``step``, ``results``, ``id``."""
        return self._book.find(name=name, limit=_ALL)

    def state(self, agent: str, key: str) -> dict[str, Any]:
        """What an agent remembers of a key."""
        return self._desk.recall(agent, key) or {}

    def _told(self, kind: Kind, type_: str, data: Any, key: str, id_: str) -> Event:
        event = Event(
            id=id_ or f"test-{next(self._count)}",
            source="test",
            kind=kind,
            type=type_,
            key=key,
            time=self._now,
            data=data,
        )
        self._journal.append([event])
        return event

    def _found(self, kind: Kind, type_: str, key: str) -> list[Event]:
        found = self._journal.find(Query(kind=kind, type=type_, key=key, limit=_ALL))
        return [entry.event for entry in found]

    def _time(self) -> float:
        return self._now.timestamp()


def _asked(search: Any) -> Any:
    if search is None:
        return None

    def ask(collection: str, query: str, k: int, where: Mapping[str, Any] | None, _: Moment | None) -> Sequence[Any]:
        found: Sequence[Any] = search(collection, query, k=k, where=where)
        return found

    return ask
