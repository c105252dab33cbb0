"""A resync among writers, as a pure model: commits that readers do not see yet, pages, marks, overtaking, deaths.

Whatever the schedule, no row that was deleted comes back, nothing newer is overwritten, and the end is the table.
"""

from __future__ import annotations

import itertools
import random
from typing import Any

import orjson
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cdc_agent.agents.batch import split
from cdc_agent.documents.model import document_id
from cdc_agent.events import ChangeEvent, Op, Row
from cdc_agent.resync import MESSAGE_PREFIX, PageBoard, _Page
from cdc_agent.snapshot import Snapshot
from cdc_agent.source.base import RowSet, TableRows
from tests.support.scripted import LONG, TABLE, ScriptedDatabase, Statement, events_of, raw
from tests.unit.agents.test_folding import Index, wanted

KEYS = [str(key) for key in range(1, 7)]
PAGE = 2


class World:
    """The database, its log, the stream, and an index that deals with the stream as the indexer does."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.database = ScriptedDatabase()
        self.board = PageBoard()
        self.index = Index(self.database)
        self.stream: list[ChangeEvent] = []
        self.front = self.reached = 0
        self.backlog: list[tuple[int, ChangeEvent]] = []
        self.numbers = 0
        #: The resync: its number, the snapshot of its beginning, the last key applied, the page that waits.
        self.resync = 0
        self.since = ""
        self.applied_key: str | None = None
        self.read_key: str | None = None
        self.page: RowSet | None = None
        self.rewrite = False
        #: For each key the last commit whose changes the index was given.
        self.floor: dict[str, int] = {}

    # -- the source -------------------------------------------------------------------------------------------

    def write(self) -> None:
        rows = self.database.rows(hidden=True)
        statements = []
        for _ in range(self.rng.choice([1, 1, 2])):
            statements.append(self.statement(rows))
            self.database._change(statements[-1], rows, 0)
        self.append(self.database.commit(*statements, hide=self.rng.random() < 0.4))

    def statement(self, rows: dict[str, Any]) -> Statement:
        pick = self.rng.choice
        free = [key for key in KEYS if key not in rows]
        kind = pick(["insert"] * 3 * bool(free) + ["update", "update", "move", "delete"] * bool(rows))
        if self.rng.random() < 0.04:
            return Statement("truncate", partition=pick([1, 2]))
        key = pick(free) if kind == "insert" else pick(sorted(rows))
        if kind == "delete":
            return Statement("delete", key)
        self.numbers += 1
        to = pick(free) if kind == "move" and free else key
        body = rows[key][0][2] if kind != "insert" and pick([True, False]) else f"{self.numbers:>{pick([1, LONG + 1])}}"
        values = (to, f"t{self.numbers}", body, "en")
        return Statement("insert" if kind == "insert" else "update", key, values, pick([1, 1, 2]))

    def append(self, tx: Any) -> None:
        expanded = self.board.expand(tx) or tx
        self.stream += events_of(expanded, len(self.stream) + 1)

    # -- the resync -------------------------------------------------------------------------------------------

    def read(self) -> None:
        if self.page is not None:
            return self.mark()
        if self.since == "":
            self.resync, self.since, self.applied_key, self.read_key = (
                self.resync + 1,
                self.database.snapshot(),
                None,
                None,
            )
            self.rewrite = self.rng.random() < 0.3
        after = (self.read_key,) if self.read_key else None
        self.page = self.database.page(TableRows(table=TABLE, after_key=after, limit=PAGE))
        return None

    def mark(self) -> None:
        page = self.page
        assert page is not None
        last = Row(page.relations[-1], page.rows[-1]).key() if page.rows else None
        self.read_key = last[0] if last else self.read_key
        body = {"last_key": self.read_key, "done": len(page.rows) < PAGE, "since": self.since, "rows_done": 0}
        self.board.put("token", _Page(rows=page, body=body, resync_id=self.resync))
        self.page = None
        self.append(self.database.message(MESSAGE_PREFIX, {"token": "token"}))

    # -- the indexer ------------------------------------------------------------------------------------------

    def take(self, most: int) -> None:
        events = self.stream[self.front : self.front + most]
        steps, rest = split(events)
        for step in steps:
            self.backlog += [(event.offset, event) for event in step.reads]
            if step.wide is not None:
                self.fold([event for _, event in self.backlog])
                self.backlog = []
                self.wide(step.wide)
            else:
                self.fold(step.changes)
        self.backlog += [(event.offset, event) for event in rest]
        self.front += len(events)
        self.check()

    def work_off(self, most: int) -> None:
        events = [event for _, event in self.backlog[:most]]
        del self.backlog[:most]
        self.fold(events)
        self.check()

    def fold(self, events: list[ChangeEvent]) -> None:
        fold = self.index.fold()
        for event in events:
            if event.op is Op.MESSAGE:
                if event.resync_id == self.resync and event.message is not None:
                    self.applied_key = orjson.loads(event.message[1])["last_key"]
            else:
                fold.change(event, epoch=event.resync_id, rewrite=self.rewrite)
        self.index.apply(fold)

    def wide(self, event: ChangeEvent) -> None:
        fold = self.index.fold()
        if event.op is Op.TRUNCATE:
            fold.change(event)
        elif event.resync_id == self.resync and self.since:
            for found, manifest in list(self.index.manifests.items()):
                if not manifest.deleted and manifest.epoch < event.resync_id:
                    fold.gone(found, event, since=Snapshot.parse(self.since), epoch=event.resync_id)
            self.since = ""
        self.index.apply(fold)

    def die(self) -> None:
        """What was read and what waits is lost; the stream is read again from before it, or from further back."""
        back = self.backlog[0][0] - 1 if self.backlog else self.front
        self.front = max(0, back - self.rng.choice([0, 0, 3]))
        self.backlog, self.page, self.board = [], None, self._board_again()
        self.read_key = self.applied_key

    def _board_again(self) -> PageBoard:
        board = PageBoard()
        board._truncated.update(self.board._truncated)
        return board

    # -- what must hold ---------------------------------------------------------------------------------------

    def check(self) -> None:
        """Every document is as its row was at the last commit that the index was given of it, or later."""
        heard = {event.xid for event in self.stream[: self.front]}
        states: list[tuple[int, dict[str, Any]]] = [(0, {})]
        rows: dict[str, Any] = {}
        for xid, statements in self.database.commits:
            for statement in statements:
                self.database._change(statement, rows, 0)
            states.append((xid, {key: raw(values) for key, (values, _) in rows.items()}))
        self.reached = max(self.reached, self.front)
        ends = self.stream[self.front - 1 : self.front + 1]
        if self.front < self.reached or (self.front > 0 and len(ends) == 2 and ends[0].xid == ends[1].xid):
            # In the middle of a transaction, or where a death left it, documents may be as no commit left them.
            return
        for before, (xid, after) in itertools.pairwise(states):
            if xid in heard:
                for key in KEYS:
                    if before[1].get(key) != after.get(key):
                        self.floor[key] = max(self.floor.get(key, 0), xid)
        for key in KEYS:
            held = self.index.rows.get(document_id(TABLE, (key,)))
            later = [after.get(key) for xid, after in states if xid >= self.floor.get(key, 0)]
            assert held in later or (held is None and self.floor.get(key, 0) == 0), (key, held, later)


@settings(max_examples=1_000, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.randoms(use_true_random=False), st.integers(10, 60))
def test_no_schedule_resurrects_a_row_or_overwrites_a_newer_change(rng: random.Random, steps: int) -> None:
    # Given writers, readers that do not see every commit yet, and an indexer that lets changes overtake reads
    world = World(rng)
    acts = [
        (30, world.write),
        (8, world.database.show),
        (25, world.read),
        (20, lambda: world.take(rng.randrange(1, 8))),
        (12, lambda: world.work_off(rng.randrange(1, 4))),
        (2, world.die),
    ]
    weights = [weight for weight, _ in acts]

    # When anything happens in any order
    for _ in range(steps):
        rng.choices(acts, weights)[0][1]()

    # Then no document was ever older than what the index had been given, and in the end the index is the table
    while world.since or world.page is not None:
        world.read()
        world.take(len(world.stream))
        world.work_off(len(world.backlog))
    while world.database.hidden:
        world.database.show()
    world.take(len(world.stream))
    world.work_off(len(world.backlog))
    assert world.index.rows == wanted(world.database)
