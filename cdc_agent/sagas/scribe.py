"""Writes down what becomes of sagas: each transition with everything that is said of it, in one transaction."""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Callable, Sequence
from typing import Any

from cdc_agent import failpoints, metrics
from cdc_agent.events import Event, Kind
from cdc_agent.journal.saga_book import ENDED, SagaBook, SagaRecord
from cdc_agent.sagas.context import said_by
from cdc_agent.sagas.rules import Move, Said

__all__ = ["Keep", "Scribe"]

log = logging.getLogger(__name__)

#: Makes a write and returns what it returned.
Keep = Callable[[Callable[[], Any]], Any]


class Scribe:
    """Safe to call from several threads. ``clock`` gives seconds since 1970; ``keep`` makes a write, again and again
    while the journal has no room."""

    def __init__(self, book: SagaBook, clock: Callable[[], float], keep: Keep | None) -> None:
        self._book = book
        self._clock = clock
        self._keep = keep or _once

    def begin(self, agent: str, reached: int, moves: Sequence[Move]) -> None:
        """New sagas, and how far the journal has been read for them."""
        begun = [(move.record, self._events(move.record, 0, move.said)) for move in moves]
        self._keep(lambda: self._book.begin(agent, reached, begun))

    def save(self, before: SagaRecord, move: Move, emitted: Sequence[Event] = (), *, patient: bool = True) -> bool:
        """False when somebody else was quicker: then nothing of it counts. Not ``patient``: raises ``JournalFull``."""
        now_us = self.now_us()
        record = move.becoming(changed_us=now_us).record
        events = [*emitted, *self._events(before, before.version, move.said)]
        failpoints.hit("saga_before_save")
        keep = self._keep if patient else _once
        saved = bool(keep(lambda: self._book.save(record, events)))
        failpoints.hit("saga_after_save")
        if not saved:
            log.info("saga went another way meanwhile id=%s step=%s", before.id, before.step)
        elif record.state in ENDED:
            metrics.SAGAS_ENDED.labels(outcome=str(record.state)).inc()
            metrics.SAGA_SECONDS.observe((now_us - record.started_us) / 1_000_000)
        return saved

    def now_us(self) -> int:
        return round(self._clock() * 1_000_000)

    def now(self) -> dt.datetime:
        return dt.datetime.fromtimestamp(self._clock(), dt.UTC)

    def _events(self, record: SagaRecord, version: int, said: Sequence[Said]) -> list[Event]:
        named = {"saga": record.name, "saga_id": record.id}
        return [
            said_by(
                record,
                str(number),
                version=version,
                kind=Kind.FACT,
                type_=f"saga.{fact.what}",
                data={**named, **fact.more},
                key=None,
                now=self.now(),
            )
            for number, fact in enumerate(said, 1)
        ]


def _once(write: Callable[[], Any]) -> Any:
    return write()
