"""An example in the real daemon on a real database: its own schema, configuration and agents, and what befalls them."""

from __future__ import annotations

import os
import sqlite3
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cdc_agent.events import Event, Kind
from cdc_agent.journal.base import Entry, Letter, Query
from cdc_agent.journal.desk import SqliteDesk
from cdc_agent.journal.file import JournalFile
from cdc_agent.journal.sqlite import SqliteJournal
from cdc_agent.reactions.agent import Agent
from cdc_agent.reactions.agents import Agents
from cdc_agent.reactions.loading import load
from examples.stage.stage import EXAMPLES, settings_of
from examples.stage.world import World
from tests.support.daemon import DaemonProcess
from tests.support.postgres import Database
from tests.support.wait import until

__all__ = ["MISHAPS", "Shop", "app_of"]

#: What befalls an example in the middle, and the place where it is killed, if it is. When it is handled, effects in the
#: outside world have happened, and nothing of it is recorded.
MISHAPS = {
    "calm": "",
    "killed-when-handled": "agents_handled:kill@2",
    "killed-when-settled": "agents_settled:kill@2",
    "killed-when-heard": "agents_routed:kill",
    "every-attempt-twice": "",
    "every-event-twice": "",
}
#: Each handler fails at its end, the first time: so all it does to the outside world it does twice.
_TWICE = """
import dataclasses
from cdc_agent import Agents, Retries
from cdc_agent.reactions.loading import load
from cdc_agent.sagas import Step

def late(handler):
    def handle(*arguments):
        result = handler(*arguments)
        if arguments[-1].attempt == 1:
            raise RuntimeError("too late")
        return result
    return handle

app = Agents()
example = load([{reference!r}])
for agent in example.agents.values():
    patient = Retries(attempts=agent.retries.attempts + 1, initial_s=0.05, maximum_s=agent.retries.maximum_s)
    app.take(dataclasses.replace(agent, handler=late(agent.handler), retries=patient))
for saga in example.sagas.values():
    steps = [
        dataclasses.replace(
            step,
            do=late(step.do),
            undo=step.undo and late(step.undo),
            alternatives=[late(way) for way in step.alternatives],
            attempts=step.attempts + 1,
            backoff_s=0.05,
        )
        if isinstance(step, Step)
        else step
        for step in saga.steps
    ]
    app.add(dataclasses.replace(saga, steps=steps))
"""


def app_of(name: str) -> Agents:
    """The agents of an example, for a test without a daemon."""
    return load([f"{EXAMPLES / name}/agents.py:app"])


class Shop:
    """One example, running. ``mishap``: one of ``MISHAPS``, or a failpoint at which it dies."""

    def __init__(
        self,
        name: str,
        pg: Database,
        new_daemon: Callable[..., DaemonProcess],
        folder: Path,
        world: World,
        *,
        mishap: str = "calm",
        env: Mapping[str, str] | None = None,
        prepare: Callable[[dict[str, Any], Path], None] = lambda _settings, _folder: None,
    ) -> None:
        self.pg = pg
        self.world = world
        self.sandbox = folder / "sandbox"
        self.sandbox.mkdir()
        self._mishap = mishap
        self._failpoint = MISHAPS.get(mishap, mishap)
        self._doomed = bool(self._failpoint)
        app = app_of(name)
        self._agents, self._hears_changes = app.agents.values(), bool(app.tables)
        self._env = {
            **os.environ,
            "EXAMPLE_DSN": pg.dsn,
            "EXAMPLE_WORLD": world.url,
            "EXAMPLE_SANDBOX": str(self.sandbox),
            **(env or {}),
        }
        pg.execute((EXAMPLES / name / "schema.sql").read_text())
        settings = settings_of(name)
        prepare(settings, folder)
        if mishap == "every-attempt-twice":
            [reference] = settings["agents"]
            twice = folder / "twice.py"
            twice.write_text(textwrap.dedent(_TWICE).format(reference=reference))
            settings["agents"] = [f"{twice}:app"]
        collections = settings.pop("collections")
        settings.pop("source")
        self.daemon = new_daemon(pg, collections=collections, **settings)
        self._begin(self._failpoint or None)

    def _begin(self, failpoint: str | None) -> None:
        """Ready, with what is to befall it still to come: a machine that is slow may meet it earlier."""
        while True:
            self.daemon.start(failpoint=failpoint, env=self._env, ready=False)
            until(lambda: not self.daemon.running or self.daemon.problems() == [], 60.0, "the daemon to be ready")
            if self.daemon.running:
                return
            assert failpoint is not None, self.daemon.log[-4000:]
            assert self.daemon.returncode == -9, self.daemon.log[-4000:]

    def facts(self, type_: str = "") -> list[Event]:
        """Facts and commands."""
        return self._found(Query(type=type_, limit=100_000))

    def changes(self, table: str) -> list[Event]:
        """Changes of rows that agents have been told of."""
        return self._found(Query(kind=Kind.CHANGE, type=table, limit=100_000))

    def letters(self) -> list[Letter]:
        """What agents could not handle."""
        file = JournalFile(self.daemon.config.journal_path)
        try:
            return SqliteDesk(file).letters()
        finally:
            file.close()

    def wait_for(self, type_: str, count: int = 1) -> None:
        """Until so many facts of a type are recorded, whatever befalls the daemon on the way."""
        if self._doomed:
            self._doomed = False
            self.daemon.wait_exit()
            self.daemon.start(env=self._env)
        until(lambda: len(self.facts(type_)) >= count, what=f"{count} of {type_}")

    def restart(self) -> None:
        """kill -9, and start again."""
        self._doomed = False
        self.daemon.kill()
        self.daemon.start(env=self._env)

    def settle(self) -> None:
        """Until nothing is left to do; then tell everything again, if that is what is to befall."""
        self._wait_idle()
        if self._mishap == "every-event-twice":
            reached = self._reading()
            self.daemon.kill()
            with sqlite3.connect(self.daemon.config.journal_path) as journal:
                journal.execute("update reading set offset = 0, commit_lsn = 0, origin = null")
            journal.close()
            assert self._reading() == 0
            self.daemon.start(env=self._env)
            until(lambda: self._reading() >= reached, what="the stream to be read again")
            self._wait_idle()

    def _wait_idle(self) -> None:
        # A change that is committed by now is in the stream when the index knows it.
        self.daemon.wait_applied(self.pg.execute("select pg_current_wal_lsn()::text")[0][0])
        if self._hears_changes and not self._failpoint:
            head = _asked(self.daemon.config.stream_path, "select head_offset from position")
            until(lambda: self._reading() >= head, what="the stream to be looked through")
        until(lambda: not self._pending(), what="agents to have nothing left to do")

    def _found(self, wanted: Query) -> list[Event]:
        # Read beside the daemon, which has it open.
        file = JournalFile(self.daemon.config.journal_path)
        try:
            return [entry.event for entry in SqliteJournal(file).find(wanted)]
        finally:
            file.close()

    def _reading(self) -> int:
        return _asked(self.daemon.config.journal_path, "select offset from reading")

    def _pending(self) -> list[str]:
        """What agents have not dealt with."""
        file = JournalFile(self.daemon.config.journal_path)
        try:
            journal, desk = SqliteJournal(file), SqliteDesk(file)
            return [f"{agent.name} {entry.event}" for agent in self._agents for entry in _left(agent, journal, desk)]
        finally:
            file.close()


def _left(agent: Agent, journal: SqliteJournal, desk: SqliteDesk) -> list[Entry]:
    place = desk.place(agent.name, 0)
    found = journal.read(place.number, agent.trigger.wants, limit=10_000, wait_s=0.0).entries
    return [e for e in found if e.number not in place.handled and agent.trigger.matches(agent.name, e.event)]


def _asked(path: Path, statement: str) -> int:
    connection = sqlite3.connect(path)
    try:
        return int(connection.execute(statement).fetchone()[0])
    finally:
        connection.close()
