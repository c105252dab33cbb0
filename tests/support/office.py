"""A journal with its desk and its saga book, in one file that can be closed and opened again."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cdc_agent.events import Event
from cdc_agent.journal.base import Desk, Journal, Query
from cdc_agent.journal.desk import SqliteDesk
from cdc_agent.journal.file import JournalFile
from cdc_agent.journal.saga_book import SagaBook
from cdc_agent.journal.saga_sqlite import SqliteSagaBook
from cdc_agent.journal.sqlite import SqliteJournal

__all__ = ["Office"]


@dataclass
class Office:
    path: Path
    wall_clock: Callable[[], float] = time.time

    def __post_init__(self) -> None:
        self._open()

    def _open(self) -> None:
        self.file = JournalFile(self.path)
        self.journal: Journal = SqliteJournal(self.file, wall_clock=self.wall_clock)
        self.desk: Desk = SqliteDesk(self.file, wall_clock=self.wall_clock)
        self.book: SagaBook = SqliteSagaBook(self.file)

    def reopened(self) -> Office:
        self.file.close()
        self._open()
        return self

    def said(self) -> list[Event]:
        """Everything that is in the journal, first to last."""
        return [entry.event for entry in self.journal.find(Query())]
