"""An outside world that sagas act upon: it remembers every call with its idempotency key, does each key once, and fails
as it is told."""

from __future__ import annotations

import collections
import datetime as dt
import json
import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cdc_agent.events import Event, Kind
from cdc_agent.journal.base import Query
from cdc_agent.journal.desk import SqliteDesk
from cdc_agent.journal.file import JournalFile
from cdc_agent.journal.saga_book import ENDED, SagaRecord
from cdc_agent.journal.saga_sqlite import SqliteSagaBook
from cdc_agent.journal.sqlite import SqliteJournal
from cdc_agent.sagas import Refused, Saga, Step, StepContext
from cdc_agent.sagas.operations import SagaOperations
from cdc_agent.sagas.runtime import SagaRuntime

__all__ = ["NOW", "FileWorld", "House", "World", "judge", "start_command"]

NOW = dt.datetime(2026, 11, 28, 1, 0, tzinfo=dt.UTC)


class World:
    """``script`` says by what is called what becomes of the next calls: ``ok``, ``fail``, ``refuse``, or ``lost``: it
    is done, and the answer does not arrive. Without a script everything is ok."""

    def __init__(self, script: Mapping[str, Sequence[str]] | None = None) -> None:
        self.script = {name: collections.deque(outcomes) for name, outcomes in (script or {}).items()}
        self._lock = threading.Lock()
        self.calls: list[tuple[str, str]] = []
        #: What was done, by its key, in order; each once, as a gateway does it.
        self.effects: dict[str, str] = {}

    def call(self, name: str, key: str) -> str:
        with self._lock:
            outcome = self._outcome(name)
            self.calls.append((name, key))
            if outcome in ("ok", "lost"):
                self.effects.setdefault(key, name)
        return self._answer(name, key, outcome)

    def _answer(self, name: str, key: str, outcome: str) -> str:
        if outcome == "refuse" and self.effects.get(key) != name:
            # What it did it does not refuse: it knows the key.
            raise Refused("no such card")
        if outcome not in ("ok", "refuse"):
            raise ConnectionError(f"{name} does not answer")
        return f"receipt {self.effects[key]}"

    def does(self, name: str) -> Any:
        """The function of a step that calls this."""

        def function(context: StepContext) -> Any:
            return {"receipt": self.call(name, context.idempotency_key)}

        function.__name__ = name
        return function

    def names(self) -> list[str]:
        return [name for name, _ in self.calls]

    def _outcome(self, name: str) -> str:
        outcomes = self.script.get(name)
        return outcomes.popleft() if outcomes else "ok"


#: What becomes of the n-th call (from 0) of a function for a key.
Fate = Callable[[str, str, int], str]


class FileWorld(World):
    """One that outlives the processes that call it: every call is a line of a file. ``fate`` says what becomes of it; a
    call that is ``cut`` or ``shot`` kills the process, after it had its effect or before."""

    def __init__(self, path: Path, fate: Fate = lambda _name, _key, _nth: "ok") -> None:
        super().__init__()
        self._path = path
        self._fate = fate
        for line in path.read_text().splitlines() if path.exists() else ():
            name, key, outcome = json.loads(line)
            self._remember(name, key, outcome)

    def call(self, name: str, key: str) -> str:
        with self._lock:
            outcome = self._fate(name, key, self.calls.count((name, key)))
            self._remember(name, key, outcome)
            with self._path.open("a") as file:
                file.write(json.dumps([name, key, outcome]) + "\n")
        if outcome in ("cut", "shot"):
            os.kill(os.getpid(), signal.SIGKILL)
        return self._answer(name, key, outcome)

    def _remember(self, name: str, key: str, outcome: str) -> None:
        self.calls.append((name, key))
        if outcome in ("ok", "lost", "cut"):
            self.effects.setdefault(key, name)


def start_command(saga: str, number: int = 1, data: Any = None, key: str = "order-1") -> Event:
    return Event(
        id=str(number),
        source="agent/shop",
        kind=Kind.COMMAND,
        type=f"saga.start.{saga}",
        key=key,
        time=NOW,
        data=data,
        correlation_id="purchase-7",
        causation_id="paid-1",
        hops=1,
        trail=("shop:00000000",),
    )


class House:
    """A journal with everything that sagas need, which can be closed and opened again; its clock stands still."""

    def __init__(self, path: Path, *sagas: Saga, inline: bool = True, **more: Any) -> None:
        self._path, self._inline, self._more = path, inline, more
        self.now = NOW.timestamp()
        self._open(sagas)

    def _open(self, sagas: Sequence[Saga]) -> None:
        self.sagas = sagas
        self.file = JournalFile(self._path)
        self.journal = SqliteJournal(self.file)
        self.book = SqliteSagaBook(self.file)
        self.runtime = SagaRuntime(
            {saga.name: saga for saga in sagas},
            journal=self.journal,
            desk=SqliteDesk(self.file),
            book=self.book,
            clock=lambda: self.now,
            inline=self._inline,
            **self._more,
        )
        self.operations = SagaOperations(self.book, self.runtime)

    def reopened(self, *sagas: Saga) -> House:
        """After a restart, with other declarations if there are any."""
        self.file.close()
        self._open(sagas or self.sagas)
        return self

    def again(self, **more: Any) -> House:
        """After a death, with other parts if there are any."""
        self._more |= more
        return self.reopened()

    def start(self, saga: str, number: int = 1, data: Any = None, key: str = "order-1") -> str:
        """Ask for a saga; everything that is due by now is done. Returns its id."""
        self.journal.append([start_command(saga, number, data, key)])
        self.runtime.until_idle()
        return self.book.find(name=saga)[-1].id

    def to_the_end(self) -> None:
        """Let time pass until nothing goes on by itself."""
        self.runtime.until_idle()
        while (due := self.runtime.next_due()) is not None:
            self.now = max(self.now, due)
            self.runtime.until_idle()

    def one(self) -> SagaRecord:
        [record] = self.book.find()
        return record

    def facts(self, **wanted: Any) -> list[str]:
        """Types of what was said, without ``saga.``."""
        found = self.journal.find(Query(**({"kind": Kind.FACT, "limit": 10_000} | wanted)))
        return [entry.event.type.removeprefix("saga.") for entry in found]


def judge(record: SagaRecord, saga: Saga, effects: Mapping[str, str], said: Sequence[str]) -> None:
    """Whether a saga that has ended did all of its steps and undid none, or has nothing left that it could undo."""
    assert record.state in ENDED, record
    steps = [step for step in saga.steps if isinstance(step, Step)]
    done = [f"{record.id}:{step.name}" in effects for step in steps]
    undone = [f"{record.id}:{step.name}:undo" in effects for step in steps]
    ends = [what for what in said if what in ("completed", "compensated")]
    assert ends == [str(record.state)], (record.id, said)
    if record.state == "completed":
        assert all(done), (record.id, effects)
        assert not any(undone), (record.id, effects)
        return
    can_undo = [step.undo is not None for step in steps]
    left = [done and can and not undone for done, can, undone in zip(done, can_undo, undone, strict=True)]
    assert not any(left), (record.id, effects)
