"""A state machine over the real core: whatever happens in whatever order, each promise holds at every moment.

Hypothesis chooses what the application does, which thread goes next, what breaks, and where the process dies; it
shrinks what it finds to the shortest history that goes wrong. Promises are numbered as in docs/PROOF.md.

    pytest --hypothesis-profile=nightly tests/unit/test_any_history.py
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from cdc_agent import failpoints
from cdc_agent.documents.model import text_hash
from cdc_agent.events import Row
from cdc_agent.failpoints import FailpointError
from cdc_agent.ledger.base import Checkpoint, Resync
from cdc_agent.lsn import Lsn
from cdc_agent.resync import MESSAGE_PREFIX, _Page
from cdc_agent.source.base import RowSet, TableRows
from tests.support.history import History
from tests.support.scripted import TABLE, Killed, Statement, expected_chunks
from tests.support.slow_motion import SlowMotion

KEYS = [str(key) for key in range(1, 9)]
LONG_BODY = "one two three four five six seven eight"
#: A short one, a long one (which is not sent when it did not change), and two that share chunks with it.
BODIES = ("", "short", LONG_BODY, "one two three four nine ten eleven twelve", f"zero one two three {LONG_BODY}")
TITLES = ("a", "b", "poison")
LANGS = ("en", "de", "refused")
#: The places that a change meets, without those of mending and migration.
PLACES = [name for name in failpoints.NAMES if not name.startswith(("mending", "migrate", "drain", "agents"))]

numbers = st.integers(0, 7)
#: What a statement does: (kind, which row, which free key, title, body, lang, partition), all by place.
ACTS = st.tuples(
    st.sampled_from(["insert", "update", "touch", "toast", "metadata", "move", "delete", "partition"]),
    numbers,
    numbers,
    st.integers(0, 2),
    st.integers(0, len(BODIES) - 1),
    st.integers(0, 2),
)
FAULTS = st.lists(st.sampled_from(["ok", "lost", "done", "late", "twice"]), min_size=1, max_size=4)


class AnyHistory(RuleBasedStateMachine):
    """One table, one daemon, any number of its lives."""

    plugin = "pgoutput"

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(prefix="any-history")
        self.core = self.begin(Path(self.folder.name))
        self.core.server.acknowledged = self.acknowledge
        self.history = History()
        self.open: list[int] = []
        self.resync: Resync | None = None
        self.page: _Page | None = None
        self.read: tuple[RowSet, bool, tuple[tuple[str, ...], ...]] | None = None
        self.after: str | None = None
        self.catching_up = -1
        self.checkpoint = Checkpoint()
        self.watermark = (0, Lsn(0))
        self.streamed: list[tuple[int, int]] = []
        self.streamed_to = 0
        self.late_ids: set[str] = set()

    def begin(self, folder: Path) -> SlowMotion:
        return SlowMotion(folder, self.plugin)

    # -- the application --------------------------------------------------------------------------------------

    def statements(self, acts: list[tuple]) -> list[Statement]:
        """What the acts come to, one after the other, on the rows as they are."""
        rows = self.core.database.rows(hidden=True)
        made: list[Statement] = []
        for act in acts:
            statement = self.statement(rows, *act)
            if statement is not None:
                self.core.database._change(statement, rows, 0)
                made.append(statement)
        return made

    def statement(
        self, rows: dict, kind: str, row: int, free: int, title: int, body: int, lang: int
    ) -> Statement | None:
        unused = [key for key in KEYS if key not in rows]
        if kind == "insert" or not rows:
            if not unused:
                return None
            key = unused[free % len(unused)]
            return Statement("insert", key, (key, TITLES[title], BODIES[body], LANGS[lang]), 1 + free % 2)
        key = sorted(rows)[row % len(rows)]
        (_, *old), partition = rows[key]
        if kind == "delete":
            return Statement("delete", key)
        to = unused[free % len(unused)] if kind == "move" and unused else key
        values = {
            "update": (to, TITLES[title], BODIES[body], LANGS[lang]),
            "toast": (to, TITLES[title], old[1], old[2]),
            "metadata": (to, old[0], old[1], LANGS[lang]),
        }.get(kind, (to, *old))
        return Statement("update", key, values, 3 - partition if kind == "partition" else partition)

    def commit(self, statements: list[Statement], *, hide: bool = False, xid: int = 0) -> None:
        tx = self.core.database.commit(*statements, hide=hide, xid=xid)
        self.history.commit(self.core.database, statements, tx)
        self.core.server.log(tx)

    @rule(acts=st.lists(ACTS, min_size=1, max_size=4), hide=st.booleans())
    def writes(self, acts: list[tuple], hide: bool) -> None:
        self.commit(self.statements(acts), hide=hide)

    @rule(titles=st.lists(st.integers(0, 1), min_size=3, max_size=6))
    def copies(self, titles: list[int]) -> None:
        """COPY: many rows of one commit."""
        self.commit(self.statements([("insert", 0, 0, title, title + 1, 0) for title in titles]))

    @rule(partition=st.integers(1, 2))
    def truncates(self, partition: int) -> None:
        self.commit([Statement("truncate", partition=partition)])

    @rule()
    def begins(self) -> None:
        """A transaction that takes its id now and ends later: commits come in another order than ids."""
        self.open.append(self.core.database.begin())

    @precondition(lambda self: self.open)
    @rule(which=numbers, acts=st.lists(ACTS, min_size=1, max_size=3))
    def ends(self, which: int, acts: list[tuple]) -> None:
        self.commit(self.statements(acts), xid=self.open.pop(which % len(self.open)))

    @precondition(lambda self: self.open)
    @rule(which=numbers)
    def rolls_back(self, which: int) -> None:
        self.core.database.roll_back(self.open.pop(which % len(self.open)))

    @precondition(lambda self: self.core.database.hidden)
    @rule()
    def becomes_visible(self) -> None:
        self.core.database.show()

    # -- the threads ------------------------------------------------------------------------------------------

    @contextmanager
    def mortal(self) -> Iterator[None]:
        try:
            yield
        except (FailpointError, Killed):
            self.die()

    @rule(messages=st.integers(1, 12), breaks=st.sampled_from(["", "", "", "behind", "taken"]))
    def receives(self, messages: int, breaks: str) -> None:
        with self.mortal():
            self.core.receive(messages, breaks)

    @rule()
    def appends(self) -> None:
        with self.mortal():
            self.core.append()

    @rule(hurry=st.booleans(), between=st.integers(0, 4))
    def plans(self, hurry: bool, between: int) -> None:
        """The planner's turn; the writer's comes between two of its looks at the ledger."""
        looks = iter(range(between, -1, -1))
        self.core.ledger.between = lambda: self.core.write() if next(looks, -1) == 1 else None
        with self.mortal():
            if hurry:
                self.core.indexer.hurry()
            self.core.plan()
        self.core.ledger.between = lambda: None

    @rule()
    def writes_index(self) -> None:
        with self.mortal():
            self.core.write()

    @rule(waited_for=st.booleans())
    def catches_up(self, waited_for: bool) -> None:
        """Everything there is goes through, unless something dies of it. What is hot is put off where nobody waits."""
        if not waited_for:
            # Nor has anybody waited of late.
            self.core.now += 0.6
        with self.mortal():
            for _ in range(3):
                self.core.receive(100)
                self.core.append()
                if waited_for:
                    self.core.indexer.hurry()
                self.core.plan()
                self.core.write()

    @rule(seconds=st.sampled_from([0.1, 1.0, 4_000.0]))
    def time_passes(self, seconds: float) -> None:
        self.core.now += seconds

    # -- what breaks ------------------------------------------------------------------------------------------

    def die(self) -> None:
        failpoints.arm(None)
        self.core.die()
        self.read = self.page = None
        self.watermark = (0, Lsn(0))
        self.catching_up = self.core.stream.head_offset()

    @rule()
    def is_killed(self) -> None:
        self.die()

    @rule(place=st.sampled_from(PLACES), passage=st.integers(1, 2))
    def will_be_killed(self, place: str, passage: int) -> None:
        failpoints.arm(f"{place}:raise@{passage}")

    @rule(faults=FAULTS)
    def store_breaks(self, faults: list[str]) -> None:
        self.core.store.break_next(faults)

    @rule(before=st.integers(0, 2), fault=st.sampled_from(["lost", "done", "late"]))
    def will_be_killed_by_the_store(self, before: int, fault: str) -> None:
        self.core.store.break_next([*["ok"] * before, f"die-{fault}"])

    @rule()
    def late_requests_land(self) -> None:
        before = self.core.stored_ids()
        self.core.store.land()
        self.late_ids |= self.core.stored_ids() - before

    @rule(what=st.sampled_from(["stream", "ledger", "embedder"]), times=st.integers(1, 2))
    def fails_for_a_while(self, what: str, times: int) -> None:
        self.core.budget.grant(what, times)

    @rule(steps=st.integers(0, 3))
    def server_crashes(self, steps: int) -> None:
        """Its slot goes back, and what was acknowledged comes again."""
        self.core.server.rewind(steps)

    @rule(model=st.booleans(), store=st.booleans())
    def poison_is_spread(self, model: bool, store: bool) -> None:
        self.core.embedder.poison = {"poison"} if model else set()
        self.core.store.poison = {"refused"} if store else set()

    # -- a resync ---------------------------------------------------------------------------------------------

    @rule(keys=st.lists(st.sampled_from(KEYS), max_size=3, unique=True), rewrite=st.booleans())
    def resync_is_asked_for(self, keys: list[str], rewrite: bool) -> None:
        if self.resync is None:
            self.resync = self.core.ask_for_resync(keys, rewrite=rewrite)
            self.after, self.catching_up = None, -1

    @precondition(lambda self: self.resync is not None)
    @rule(limit=st.integers(1, 4))
    def resync_goes_on(self, limit: int) -> None:
        """What the thread of resyncs does next: read a page, mark its place, wait."""
        if self.is_waited_for():
            return
        if self.read is None:
            self.read_page(limit)
        else:
            self.mark_page()

    def is_waited_for(self) -> bool:
        """Whether the thread waits: for its page to be placed, for the indexer after a death, or for the end."""
        assert self.resync is not None
        if self.page is not None:
            if not self.page.placed.is_set():
                return True
            self.page = None
        if self.core.indexer.watermark.offset < self.catching_up:
            return True
        found = self.core.ledger.resync(self.resync.id)
        if self.catching_up >= 0:
            self.catching_up = -1
            self.resync = found
            self.after = found.last_key[0] if found is not None and found.last_key else None
        if found is not None and found.state == "done":
            self.resync = None
        return self.resync is None or self.after == "done"

    def read_page(self, limit: int) -> None:
        assert self.resync is not None
        database = self.core.database
        if self.resync.keys:
            rows = database.by_key(TABLE, self.resync.keys)
            found = {Row(relation, raw).key() for relation, raw in zip(rows.relations, rows.rows, strict=True)}
            self.read = rows, True, tuple(key for key in self.resync.keys if key not in found)
            return
        after = (self.after,) if self.after else None
        rows = database.page(TableRows(table=TABLE, after_key=after, limit=limit))
        self.read = rows, len(rows.rows) < limit, ()

    def mark_page(self) -> None:
        assert self.resync is not None
        assert self.read is not None
        rows, done, absent = self.read
        last = Row(rows.relations[-1], rows.rows[-1]).key() if rows.rows else None
        last = last or ((self.after,) if self.after else None)
        body = {"last_key": last, "rows_done": 0, "done": done, "since": self.resync.snapshot, "absent": absent}
        self.page, self.read = _Page(rows=rows, body=body, resync_id=self.resync.id), None
        self.core.board.put(f"token{len(self.core.database.commits)}", self.page)
        message = {"token": f"token{len(self.core.database.commits)}"}
        self.core.server.log(self.core.database.message(MESSAGE_PREFIX, message))
        self.after = "done" if done else last[0] if last else None

    # -- what holds at every moment ---------------------------------------------------------------------------

    @invariant()
    def every_promise_holds(self) -> None:
        self.i1_a_manifest_is_the_row_at_its_version()
        self.i2_every_live_chunk_is_there_with_its_text()
        self.i3_what_is_acknowledged_is_in_the_stream_once_and_in_order()
        self.i4_nothing_goes_backward()
        self.i5_the_store_holds_only_what_the_ledger_knows()
        self.i7_no_text_is_embedded_twice_without_a_reason()
        self.i8_what_the_watermark_says_is_in_the_index()
        self.i9_every_vector_leaves_with_its_text()
        self.i10_a_row_that_moves_stands_at_one_of_its_keys()

    def i1_a_manifest_is_the_row_at_its_version(self) -> None:
        parked = {letter.document_id for letter in self.core.ledger.dead_letters()}
        for key, manifest in self.manifests().items():
            if manifest.document_id not in parked:
                values = self.history.at(key, manifest)
                wanted = [text for _, _, text, _ in self.chunks(values)]
                assert [c.text_hash for c in manifest.chunks] == [text_hash(text) for text in wanted], (
                    key,
                    manifest,
                    values,
                )

    def i2_every_live_chunk_is_there_with_its_text(self) -> None:
        stored = {r.id: r for r in self.core.store.everything("docs")}
        for manifest in self.manifests().values():
            for chunk in manifest.chunks:
                assert text_hash(stored[chunk.id].text) == chunk.text_hash

    def acknowledge(self, lsn: Lsn) -> None:
        """I3: what is acknowledged is durable."""
        assert lsn <= self.core.stream.position().captured_lsn

    def i3_what_is_acknowledged_is_in_the_stream_once_and_in_order(self) -> None:
        batch = self.core.stream.read(self.streamed_to, limit=1_000, wait_s=0.0)
        self.streamed += [tuple(event.version) for event in batch.events]
        self.streamed_to = batch.next_offset
        assert self.streamed == sorted(set(self.streamed))
        captured = self.core.stream.position().captured_lsn
        wanted = [
            (tx.commit_lsn, change.ordinal)
            for tx in self.core.server._log
            if (tx.end_lsn or 0) <= captured
            for change in tx.changes
            if change.op != "m"
        ]
        assert set(wanted) <= set(self.streamed)

    def i4_nothing_goes_backward(self) -> None:
        assert self.core.ledger.backward == []
        before, self.checkpoint = self.checkpoint, self.core.ledger.checkpoint("indexer")
        assert self.checkpoint.offset >= before.offset
        assert self.checkpoint.applied_lsn >= before.applied_lsn
        reached = self.core.indexer.watermark
        assert (reached.offset, reached.applied_lsn) >= self.watermark
        self.watermark = (reached.offset, reached.applied_lsn)

    def i5_the_store_holds_only_what_the_ledger_knows(self) -> None:
        stored = self.core.stored_ids()
        self.late_ids &= stored
        assert stored - self.core.ledger.known("docs", stored) <= self.late_ids

    def i8_what_the_watermark_says_is_in_the_index(self) -> None:
        """Who waited for a commit finds it, or something newer."""
        parked = {letter.document_id for letter in self.core.ledger.dead_letters()}
        manifests = self.manifests()
        applied = self.core.indexer.watermark.applied_lsn
        for key in self.history.keys:
            if f"{TABLE}:{key}" not in parked:
                held = [c.text_hash for c in manifests[key].chunks] if key in manifests else []
                allowed = [
                    [text_hash(text) for _, _, text, _ in self.chunks(values)]
                    for values in self.history.since(key, applied)
                ]
                assert held in allowed, (key, applied, held)

    def i7_no_text_is_embedded_twice_without_a_reason(self) -> None:
        """A vector may have left with its last document; a death, or a refusal, came before it was remembered."""
        forgotten = self.core.forgotten()
        for text, count in Counter(self.core.embedder.texts).items():
            assert count <= 1 + forgotten[text_hash(text)] + self.core.deaths + self.core.embedder.refusals

    def i9_every_vector_leaves_with_its_text(self) -> None:
        assert self.core.ledger.unused_vectors() == 0

    def i10_a_row_that_moves_stands_at_one_of_its_keys(self) -> None:
        """Its document leaves the old key together with its coming to the new one."""
        parked = {letter.document_id for letter in self.core.ledger.dead_letters()}
        ids = {f"{TABLE}:{key}" for move in self.history.moves for key in (move.old, move.new)} - parked
        known = self.core.ledger.as_they_are("docs", sorted(ids))
        for move in self.history.moves:
            left, came = known.get(f"{TABLE}:{move.old}"), known.get(f"{TABLE}:{move.new}")
            just_left = left is not None and left.snapshot is None and left.version == move.version
            if just_left and f"{TABLE}:{move.new}" in ids and self.chunks(self.history.stayed(move)):
                assert came is not None, move
                assert came.snapshot is not None or came.version >= move.version, move

    def manifests(self) -> dict:
        return self.core.manifests()

    def chunks(self, values: tuple | None) -> list:
        return expected_chunks(self.core.collection, values) if values is not None else []

    # -- the end ----------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        failpoints.arm(None)
        try:
            if sys.exc_info()[0] is None:
                self.comes_to_the_table()
        finally:
            self.core.close()
            self.folder.cleanup()

    def comes_to_the_table(self) -> None:
        """I6: once all is well, and after a last life has begun, the index is the table."""
        core = self.core
        core.budget.clear()
        core.store.heal()
        core.store.poison, core.embedder.poison = set(), set()
        core.store.land()
        self.die()
        self.late_ids = core.stored_ids()
        while core.database.hidden:
            core.database.show()
        self.ends_resync()
        if parked := [letter.key[0] for letter in core.ledger.dead_letters()]:
            self.resync_is_asked_for(sorted(set(parked)), rewrite=False)
            self.ends_resync()
        self.late_ids = set()
        self.every_promise_holds()
        assert core.stored() == core.wanted()
        assert core.ledger.dead_letters() == []

    def ends_resync(self) -> None:
        self.core.settle()
        for _ in range(50):
            if self.resync is None:
                return
            self.resync_goes_on(4)
            self.core.settle()
            self.every_promise_holds()
        raise AssertionError("the resync does not end")


class AnyHistoryOfWal2Json(AnyHistory):
    plugin = "wal2json"


@pytest.mark.timeout(0)
@pytest.mark.parametrize("machine", [AnyHistory, AnyHistoryOfWal2Json], ids=["pgoutput", "wal2json"])
@pytest.mark.fault("torn-read", "killed-while-writing", "late-write", "answer-lost")
def test_every_promise_holds_in_any_history(machine: type[AnyHistory]) -> None:
    chosen = settings(
        max_examples=settings.default.max_examples // 2, deadline=None, suppress_health_check=list(HealthCheck)
    )
    run_state_machine_as_test(machine, settings=chosen)
